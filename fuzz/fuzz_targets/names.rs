//! See `portsentry::fuzzing::names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::names(input));
