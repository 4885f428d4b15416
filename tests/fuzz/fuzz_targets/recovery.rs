//! The opening of a damaged log: `src/fuzzing/recovery.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| aldis::fuzzing::recovery(input));
