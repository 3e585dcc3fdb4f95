//! See `portsentry::fuzzing::rtnetlink`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::rtnetlink(input));
