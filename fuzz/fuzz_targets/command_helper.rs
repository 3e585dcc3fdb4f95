//! See `portsentry::fuzzing::command_helper`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| portsentry::fuzzing::command_helper(input));
