//! See `portsentry::fuzzing::helpers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::helpers(input));
