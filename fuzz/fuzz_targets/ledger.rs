//! See `portsentry::fuzzing::ledger`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::ledger(input));
