//! A message of the binary subprotocol: `src/fuzzing/protocol.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| aldis::fuzzing::binary(input));
