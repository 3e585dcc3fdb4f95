//! Events to people and machines: the classic log lines ([`classic_log`]), JSON ([`json`]), and where they go ([`log`], [`syslog`], [`json_log`]). The
//! sensor hands events over through [`channel`], which drops them, counted, before it ever delays a packet.

pub mod channel;
pub mod classic_log;
pub mod event;
pub mod json;
pub mod json_log;
pub mod log;
pub mod syslog;
