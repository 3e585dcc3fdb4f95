//! Combines the daemon's memory of its host, independent of the clock used: services, recently open ports, connected
//! peers, and services that have not started yet after a boot. The daemon keeps the same parts in its host snapshot;
//! this type exists for the simulation, which provides listeners, connections and the time.

use std::time::{Duration, SystemTime};

use super::known_peers::KnownPeers;
use super::recent_listeners::RecentListeners;
use super::service_tracker::{self, ServiceTracker, is_eligible};
pub use super::service_tracker::{FIRST_UNPRIVILEGED, PortRanges};
use super::settling::Settling;
use super::unfounded_bans::{Served, is_unfounded};
use crate::engine::{Host, Service, ServiceMemory};
use crate::ledger::{BanRecord, KnownPeer};
use crate::netlink::sock_diag::{Connection, Listener};
use crate::types::{BanTarget, Timestamp};

/// Maximum duration of settling after a boot.
pub const MAX_SETTLING: Duration = super::settling::MAX_SETTLING;

/// Maximum number of remembered services.
pub const MAX_SERVICES: usize = super::service_tracker::MAX_SERVICES;

/// The memory, initially empty.
#[derive(Default)]
pub struct HostMemory {
    services: ServiceTracker,
    recent_listeners: RecentListeners,
    known_peers: KnownPeers,
    settling: Option<Settling>,
}

/// Result of observing the listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Seen {
    /// True if the set of remembered services changed.
    pub changed: bool,
    /// True if a service was newly remembered or is served again.
    pub served_again: bool,
}

impl HostMemory {
    /// Adds services from the ledger, each with the time at which it was last served.
    pub fn recall(&mut self, services: impl IntoIterator<Item = (Service, SystemTime)>, wall: SystemTime) {
        self.services.recall(services, None, wall);
    }

    /// Observes the current listeners. Must be called at least every five seconds while a listener is new.
    pub fn observe(
        &mut self,
        now: Timestamp,
        wall: SystemTime,
        listeners: &[Listener],
        ranges: PortRanges<'_>,
    ) -> Seen {
        let observed = self.services.observe(now, wall, listeners, ranges);
        Seen { changed: observed.changed, served_again: observed.served_again }
    }

    /// Adds the recently open ports from the ledger; returns for how long each still counts as open.
    pub fn recall_listeners(
        &mut self,
        listeners: impl IntoIterator<Item = (Service, Option<SystemTime>)>,
        wall: SystemTime,
    ) -> Vec<(Service, Duration)> {
        self.recent_listeners.recall(listeners, wall)
    }

    /// Records which ports are open; true if a system program has started to listen.
    pub fn observe_recent(
        &mut self,
        now: Timestamp,
        wall: SystemTime,
        listeners: &[Listener],
        ranges: PortRanges<'_>,
    ) -> bool {
        self.recent_listeners.observe(now, wall, listeners, ranges, None)
    }

    /// The recently open ports for the ledger.
    #[must_use]
    pub fn recent_listeners(&self) -> Vec<(Service, Option<SystemTime>)> {
        self.recent_listeners.records()
    }

    /// Applies the ports that destination NAT publishes now.
    pub fn publish(&mut self, ports: Vec<Service>) {
        self.services.publish(ports);
    }

    /// The remembered services.
    #[must_use]
    pub fn memory(&self) -> ServiceMemory {
        self.services.memory()
    }

    /// The remembered services, each with the time at which it was last served, for the ledger.
    pub fn services(&self) -> impl Iterator<Item = (Service, SystemTime)> {
        self.services.states().into_iter().map(|state| (state.service, state.served))
    }

    /// Sets the time for which peers are remembered after their last connection.
    pub fn remember_peers_for(&mut self, span: Duration) {
        self.known_peers.remember_for(span);
    }

    /// Adds peers from the ledger.
    pub fn recall_peers(&mut self, peers: impl IntoIterator<Item = KnownPeer>, now: Timestamp, wall: SystemTime) {
        self.known_peers.recall(peers, now, wall);
    }

    /// The known peers for the ledger.
    #[must_use]
    pub fn known_peers(&self, now: Timestamp, wall: SystemTime) -> Vec<KnownPeer> {
        self.known_peers.records(now, wall)
    }

    /// The known peers, each with the age of its first connection.
    #[must_use]
    pub fn peer_ages(&self, now: Timestamp) -> Vec<(BanTarget, Duration)> {
        self.known_peers.ages(now)
    }

    /// Applies the current connections; returns the peers with their ages, if they have changed.
    pub fn peers(
        &mut self,
        now: Timestamp,
        connections: &[Connection],
        host: &Host,
    ) -> Option<Vec<(BanTarget, Duration)>> {
        self.known_peers.update(now, connections, host).then(|| self.known_peers.ages(now))
    }

    /// True if there are remembered services and all of them are served.
    #[must_use]
    pub fn are_all_served(&self) -> bool {
        self.services.are_all_served()
    }

    /// Starts to wait for the services to start.
    pub fn start_settling(&mut self, now: Timestamp) {
        self.settling = Some(Settling::new(now));
    }

    /// True once, when settling has ended.
    pub fn has_settled(&mut self, now: Timestamp, listeners_changed: bool) -> bool {
        let all_served = self.are_all_served();
        let is_over = self.settling.as_mut().is_some_and(|one| one.is_over(now, listeners_changed, all_served));
        if is_over {
            self.settling = None;
        }
        is_over
    }
}

/// The service ports among `listeners`: those of system users or privileged ones, outside of the ephemeral range.
#[must_use]
pub fn listening(listeners: &[Listener], ranges: PortRanges<'_>) -> ServiceMemory {
    listeners.iter().filter(|one| is_eligible(one, ranges)).flat_map(service_tracker::services).collect()
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
