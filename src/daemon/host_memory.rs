//! What the daemon remembers of its host on any clock: services, peers with connections, and what is still to come up after a
//! boot. The daemon keeps the same parts in its snapshot of the host; here they are together for the simulation, which brings
//! listeners, connections and the time.

use std::time::{Duration, SystemTime};

use super::known_peers::KnownPeers;
use super::service_tracker::{self, ServiceTracker, is_eligible};
pub use super::service_tracker::{FIRST_UNPRIVILEGED, PortRanges};
use super::settling::Settling;
use super::unfounded_bans::{Served, is_unfounded};
use crate::engine::{Host, Service, ServiceMemory};
use crate::ledger::Banned;
use crate::netlink::sock_diag::{Connection, Listener};
use crate::types::{BanTarget, Timestamp};

/// The longest time for which a host settles after a boot.
pub const MAX_SETTLING: Duration = super::settling::MAX_SETTLING;

/// The maximum number of remembered services.
pub const MAX_SERVICES: usize = super::service_tracker::MAX_SERVICES;

/// The memory, which begins empty.
#[derive(Default)]
pub struct HostMemory {
    services: ServiceTracker,
    known_peers: KnownPeers,
    settling: Option<Settling>,
}

/// What a look at the listeners has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Seen {
    /// The set of remembered services is another one.
    pub changed: bool,
    /// A service has begun to be remembered, or is served again.
    pub served_again: bool,
}

impl HostMemory {
    /// Goes on with these services, each with the time at which it was last served: what the ledger had at the start.
    pub fn recall(&mut self, services: impl IntoIterator<Item = (Service, SystemTime)>, wall: SystemTime) {
        self.services.recall(services, None, wall);
    }

    /// Takes in what listens now. To be called at least every five seconds while a listener is new.
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

    /// Takes in which ports destination NAT publishes now.
    pub fn publish(&mut self, ports: Vec<Service>) {
        self.services.publish(ports);
    }

    /// The remembered services.
    #[must_use]
    pub fn memory(&self) -> ServiceMemory {
        self.services.memory()
    }

    /// The same, each with the time at which it was last served: what the ledger keeps.
    pub fn services(&self) -> impl Iterator<Item = (Service, SystemTime)> {
        self.services.states().into_iter().map(|state| (state.service, state.served))
    }

    /// Remembers peers for so long after their last connection.
    pub fn remember_peers_for(&mut self, span: Duration) {
        self.known_peers.remember_for(span);
    }

    /// Takes in the connections of now: the peers and for how long each is known, if they have changed.
    pub fn peers(
        &mut self,
        now: Timestamp,
        connections: &[Connection],
        host: &Host,
    ) -> Option<Vec<(BanTarget, Duration)>> {
        self.known_peers.update(now, connections, host).then(|| self.known_peers.ages(now))
    }

    /// True where each of the remembered services is served, and there are some.
    #[must_use]
    pub fn are_all_served(&self) -> bool {
        self.services.are_all_served()
    }

    /// Waits from now on for the services to come up.
    pub fn settle(&mut self, now: Timestamp) {
        self.settling = Some(Settling::new(now));
    }

    /// True once, when the host has settled.
    pub fn has_settled(&mut self, now: Timestamp, listeners_changed: bool) -> bool {
        let all_served = self.are_all_served();
        let is_over = self.settling.as_mut().is_some_and(|one| one.is_over(now, listeners_changed, all_served));
        if is_over {
            self.settling = None;
        }
        is_over
    }
}

/// The ports of services among `listeners`: those of system users or privileged ones, outside the range of own client ports.
#[must_use]
pub fn listening(listeners: &[Listener], ranges: PortRanges<'_>) -> ServiceMemory {
    listeners.iter().filter(|one| is_eligible(one, ranges)).flat_map(service_tracker::services).collect()
}

/// The bans that would not have been made with these services, of which `forgiven` ports are forgiven.
pub fn unfounded<'a>(
    bans: impl Iterator<Item = &'a Banned>,
    remembered: ServiceMemory,
    listening: ServiceMemory,
    forgiven: u8,
    now: SystemTime,
) -> Vec<BanTarget> {
    let served = Served { remembered, listening };
    bans.filter(|ban| is_unfounded(ban, &served, forgiven, now)).map(|ban| ban.target).collect()
}
