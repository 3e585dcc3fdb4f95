//! Reports events to operators and programs: as classic log lines ([`classic_log`]) and as JSON ([`json`]), written to
//! the log ([`log`], [`syslog`]) and to a file ([`json_log`]), at a limited rate ([`log_limiter`]). The
//! sensor sends events through [`channel`]. If it is full, events are dropped and counted; a packet is never delayed.

pub mod channel;
pub mod classic_log;
pub mod digest;
pub mod event;
pub mod json;
pub mod json_log;
pub mod log;
pub mod log_limiter;
pub mod syslog;
