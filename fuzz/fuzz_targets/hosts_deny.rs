//! See `portsentry::fuzzing::hosts_deny`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::hosts_deny(input));
