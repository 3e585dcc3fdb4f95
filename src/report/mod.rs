//! Events to people and machines: the classic log lines ([`line`]), JSON ([`json`]), and where they go ([`log`], [`syslog`], [`file`]). The
//! sensor hands events over through [`queue`], which drops them, counted, before it ever delays a packet.

pub mod event;
pub mod file;
pub mod json;
pub mod line;
pub mod log;
pub mod queue;
pub mod syslog;
