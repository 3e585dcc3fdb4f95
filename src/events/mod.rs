//! Reports events to people and programs: the classic log lines ([`classic_log`]) and JSON ([`json`]), written to the
//! log ([`log`], [`stderr`], [`syslog`]) and to a file ([`json_log`]) within a budget of lines ([`log_limiter`]). The sensor hands events
//! over through [`channel`], which drops and counts them before it ever delays a packet.

pub mod channel;
pub mod classic_log;
pub mod digest;
pub mod event;
pub mod json;
pub mod json_log;
pub mod log;
pub mod log_limiter;
pub mod stderr;
pub mod syslog;
