//! Types that every module needs: what a ban is for, how long it lasts, where it is enforced, ports and points in time.

mod backend;
mod ban_target;
mod expiry;
mod port_set;
mod prefix;
mod protocol;
mod rate;
mod timestamp;

pub use backend::{Backend, Backends, ParseBackendsError};
pub use ban_target::{BanTarget, ParseBanTargetError};
pub use expiry::Expiry;
pub use port_set::{PortSet, PortSetError};
pub use prefix::Prefix;
pub use protocol::Protocol;
pub use rate::{Rate, RateError};
pub(crate) use timestamp::Tick;
pub use timestamp::Timestamp;
