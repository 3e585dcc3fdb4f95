//! See `portsentry::fuzzing::spawner`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::spawner(input));
