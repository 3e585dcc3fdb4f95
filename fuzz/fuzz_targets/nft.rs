//! See `portsentry::fuzzing::nft`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::nft(input));
