//! See `portsentry::fuzzing::capture`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::capture(input));
