//! Combines the daemon's memory of its host, independent of the clock used: services, recently open ports, connected
//! peers, and services that have not started yet after a boot. The simulation uses the same parts.

use std::time::{Duration, SystemTime};

pub use super::known_peers::KnownPeers;
use super::published_ports::PublishedPorts;
pub use super::recent_listeners::RecentListeners;
pub use super::service_tracker::{FIRST_UNPRIVILEGED, Observed, PortRanges, ServiceState, ServiceTracker};
use super::service_tracker::{is_eligible, services};
pub use super::settling::{MAX_SETTLING, Settling};
use super::unfounded_bans::{Served, is_unfounded};
use crate::engine::{Host, Service, ServiceMemory};
use crate::ledger::{BanRecord, KnownPeer, Recorder};
use crate::netlink::sock_diag::{Connection, Listener};
use crate::sensor::SensorCommand;
use crate::types::{BanTarget, Timestamp};

/// The daemon's own memory of its host, which the ledger keeps across restarts.
#[derive(Default)]
pub(super) struct HostMemory {
    pub(super) services: ServiceTracker,
    pub(super) recent_listeners: RecentListeners,
    known_peers: KnownPeers,
    /// True if the sensor does not have the current peers yet.
    peers_changed: bool,
    published: PublishedPorts,
    /// `None` if the services have started.
    settling: Option<Settling>,
    /// True if a service was newly remembered, started to listen, or is served again.
    served_again: bool,
    /// `None` if there is no ledger.
    recorder: Option<Recorder>,
}

impl HostMemory {
    /// Adds the services that the ledger remembers.
    pub(super) fn recall_services(
        &mut self,
        services: Vec<(Service, SystemTime)>,
        recorder: Option<Recorder>,
        wall: SystemTime,
    ) {
        self.recorder.clone_from(&recorder);
        self.services.recall(services, recorder, wall);
    }

    /// Adds the sources that were connected to a service before the start; returns the peers, each with the age of its
    /// first connection.
    pub(super) fn recall_peers(
        &mut self,
        peers: Vec<KnownPeer>,
        now: Timestamp,
        wall: SystemTime,
    ) -> Vec<(BanTarget, Duration)> {
        self.known_peers.recall(peers, now, wall);
        self.known_peers.ages(now)
    }

    /// Records the currently open ports and the known peers at the end of the run.
    pub(super) fn write(&mut self, now: Timestamp, wall: SystemTime) {
        self.recent_listeners.write(self.recorder.as_ref());
        self.known_peers.write(now, wall, self.recorder.as_ref());
    }

    /// Starts to wait for the services of this host.
    pub(super) fn start_settling(&mut self, now: Timestamp) {
        self.settling = Some(Settling::new(now));
    }

    /// True once when the services have started.
    pub(super) fn ends_settling(&mut self, now: Timestamp, listeners_changed: bool) -> bool {
        let all_served = self.services.are_all_served();
        let is_over = self.settling.as_mut().is_some_and(|one| one.is_over(now, listeners_changed, all_served));
        if is_over {
            self.settling = None;
        }
        is_over
    }

    /// True once after a service was newly remembered, started to listen, or was served again.
    pub(super) fn take_served_again(&mut self) -> bool {
        std::mem::take(&mut self.served_again)
    }

    /// Observes the current connections to services.
    pub(super) fn observe_connections(&mut self, now: Timestamp, connections: &[Connection], host: &Host) {
        self.peers_changed |= self.known_peers.update(now, connections, host);
    }

    /// Observes the current listeners and published ports; true if the set of remembered services changed.
    pub(super) fn observe(
        &mut self,
        now: Timestamp,
        wall: SystemTime,
        listeners: &[Listener],
        ranges: PortRanges<'_>,
    ) -> bool {
        if let Some(ports) = self.published.take_answer() {
            self.services.publish(ports);
        }
        let observed = self.services.observe(now, wall, listeners, ranges);
        let appeared = self.recent_listeners.observe(now, wall, listeners, ranges, self.recorder.as_ref());
        self.known_peers.keep(now, wall, self.recorder.as_ref());
        self.served_again |= observed.served_again || appeared;
        observed.changed
    }

    /// The known peers for the sensor, if they have changed.
    pub(super) fn changed_peers(&mut self, now: Timestamp) -> Option<SensorCommand> {
        let changed = std::mem::take(&mut self.peers_changed);
        changed.then(|| SensorCommand::KnownPeers(self.known_peers.ages(now)))
    }

    /// A query for the published ports, if one is due.
    pub(super) fn query_published(&mut self, now: Timestamp) -> Option<SensorCommand> {
        self.published.ask(now, self.settling.is_some())
    }
}

/// The service ports among `listeners`: those of system users or privileged ones, outside of the ephemeral range.
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
