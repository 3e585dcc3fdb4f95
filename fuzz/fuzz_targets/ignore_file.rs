//! See `portsentry::fuzzing::ignore_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::ignore_file(input));
