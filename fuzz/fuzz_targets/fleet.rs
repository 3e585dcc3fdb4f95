//! See `portsentry::fuzzing::fleet`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::fleet(input));
