//! A message of the JSON subprotocol: `src/fuzzing/protocol.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| aldis::fuzzing::json(input));
