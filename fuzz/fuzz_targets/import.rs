//! See `portsentry::fuzzing::import`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::import(input));
