//! A stream of WebSocket frames: `src/fuzzing/framer.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| aldis::fuzzing::framer(input));
