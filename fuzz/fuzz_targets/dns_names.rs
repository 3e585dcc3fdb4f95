//! See `portsentry::fuzzing::dns_names`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::dns_names(input));
