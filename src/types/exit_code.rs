//! Defines the exit codes of the program.

pub const DONE: u8 = 0;
/// A failure at run time.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The configuration is wrong (`EX_CONFIG` of sysexits.h).
pub const CONFIG: u8 = 78;
