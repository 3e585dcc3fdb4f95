//! See `portsentry::fuzzing::sock_diag`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::sock_diag(input));
