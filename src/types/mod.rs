//! Defines basic types that every other module may use. Depends on no other module of the crate.

mod backend;
mod backoff;
mod ban_target;
pub mod exit_code;
mod host_address;
mod line_message;
mod port_set;
pub mod printable;
mod protocol;
mod rate;
mod rate_limit;
mod response;
pub mod shared64;
mod timestamp;
mod update;
mod wording;

pub use backend::{Action, Backend, Backends, ParseBackendsError, RouteKind};
pub use backoff::Backoff;
pub use ban_target::{BanTarget, MAX_LINK, ParseBanTargetError, Prefix};
pub use host_address::is_host_address;
pub use line_message::LineMessage;
pub(crate) use line_message::{nullable, to_line};
pub use port_set::{PORT_GROUPS, PortSet, PortSetError, WEB_PORTS};
pub use protocol::Protocol;
pub use rate::{Rate, RateError};
pub use rate_limit::{LineLimiter, LossReport, TokenBucket};
pub use response::Response;
pub(crate) use timestamp::Tick;
#[cfg(test)]
pub(crate) use timestamp::at;
pub use timestamp::{DAY, Expiry, HOUR, MINUTE, Timestamp};
pub use update::update;
pub use wording::{Span, brief, counted, first_and_more, plain, spaced};
