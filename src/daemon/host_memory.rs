//! Combines the daemon's memory of its host, independent of the clock used: services, recently open ports, connected
//! peers, and services that have not started yet after a boot. The simulation uses the same parts.

use std::time::SystemTime;

pub use super::known_peers::KnownPeers;
pub use super::recent_listeners::RecentListeners;
pub use super::service_tracker::{FIRST_UNPRIVILEGED, Observed, PortRanges, ServiceState, ServiceTracker};
use super::service_tracker::{is_eligible, services};
pub use super::settling::{MAX_SETTLING, Settling};
use super::unfounded_bans::{Served, is_unfounded};
use crate::engine::ServiceMemory;
use crate::ledger::BanRecord;
use crate::netlink::sock_diag::Listener;
use crate::types::BanTarget;

/// The service ports among `listeners`: those of system users or privileged ones, outside of the ephemeral range.
#[must_use]
pub fn listening(listeners: &[Listener], ranges: PortRanges<'_>) -> ServiceMemory {
    listeners.iter().filter(|one| is_eligible(one, ranges)).flat_map(services).collect()
}

/// The bans that would not have been made if these services had been known, with `forgiven` ports forgiven.
pub fn unfounded<'a>(
    bans: impl Iterator<Item = &'a BanRecord>,
    remembered: ServiceMemory,
    listening: ServiceMemory,
    forgiven: u8,
    now: SystemTime,
) -> Vec<BanTarget> {
    let served = Served { remembered, listening };
    bans.filter(|ban| is_unfounded(ban, &served, forgiven, now)).map(|ban| ban.target).collect()
}
