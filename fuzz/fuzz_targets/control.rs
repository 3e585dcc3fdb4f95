//! See `portsentry::fuzzing::control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::control(input));
