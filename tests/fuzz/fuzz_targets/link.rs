//! Bytes, values and sessions of the link: `src/fuzzing/link.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| aldis::fuzzing::link(input));
