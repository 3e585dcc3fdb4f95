//! See `portsentry::fuzzing::files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::files(input));
