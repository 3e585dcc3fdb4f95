//! Defines basic types that every other module may use. Depends on no other module of the crate.

mod action;
mod backend;
mod backoff;
mod ban_target;
pub mod exit_code;
mod expiry;
mod port_groups;
mod port_set;
mod prefix;
pub mod printable;
mod protocol;
mod rate;
mod rate_limit;
mod route_kind;
pub mod shared64;
mod timestamp;
mod wording;

pub use action::Action;
pub use backend::{Backend, Backends, ParseBackendsError};
pub use backoff::Backoff;
pub use ban_target::{BanTarget, MAX_LINK, ParseBanTargetError};
pub use expiry::Expiry;
pub use port_groups::{PORT_GROUPS, WEB_PORTS};
pub use port_set::{PortSet, PortSetError};
pub use prefix::Prefix;
pub use protocol::Protocol;
pub use rate::{Rate, RateError};
pub use rate_limit::{LineLimiter, TokenBucket};
pub use route_kind::RouteKind;
pub(crate) use timestamp::Tick;
#[cfg(test)]
pub(crate) use timestamp::at;
pub use timestamp::{DAY, HOUR, MINUTE, Timestamp};
pub use wording::{Span, brief, counted, first_and_more, plain};
