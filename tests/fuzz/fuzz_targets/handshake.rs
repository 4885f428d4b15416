//! What a client sends first: `src/fuzzing/handshake.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| aldis::fuzzing::handshake(input));
