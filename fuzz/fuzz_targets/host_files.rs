//! See `portsentry::fuzzing::host_files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::host_files(input));
