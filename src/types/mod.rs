//! Words that every module needs: what a ban is for, how long it lasts, ports, points in time. Pure.

mod ban_target;
mod port_set;
mod timestamp;

pub use ban_target::{BanTarget, Expiry, ParseBanTargetError, Prefix};
pub use port_set::{PortSet, PortSetError};
pub(crate) use timestamp::Tick;
pub use timestamp::Timestamp;
