//! Combines the daemon's memory of its host, independent of the clock used: services, recently open ports, connected
//! peers, and services that have not started yet after a boot. The simulation uses the same parts.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot::Receiver;

pub use super::known_peers::KnownPeers;
use super::optional::take_answer;
pub use super::recent_listeners::RecentListeners;
use super::sensor_thread::SensorHandle;
pub use super::service_tracker::{Observed, ServiceState, ServiceTracker};
pub use super::settling::{MAX_SETTLING, Settling};
pub use super::unfounded_bans::{Served, unfounded};
use crate::clock::boot_time;
use crate::engine::{Engine, Host, Service};
use crate::host::service_ports::PortRanges;
use crate::ledger::{KnownPeer, Recorder};
use crate::netlink::sock_diag::{Connection, Listener};
use crate::sensor::{SensorCommand, SensorRequest};
use crate::types::Timestamp;

/// Interval between two queries for the published ports.
const QUERY_INTERVAL: Duration = Duration::from_secs(10);

/// The memory of earlier runs; empty if the ledger cannot be opened.
#[derive(Default)]
pub(super) struct HostRecords {
    /// The remembered services, with the times at which they were last served.
    pub(super) services: Vec<(Service, SystemTime)>,
    /// The recently open ports, with the times at which they were closed; `None` if open at the end of the last run.
    pub(super) listeners: Vec<(Service, Option<SystemTime>)>,
    /// The sources that were connected to a service, also some that have been forgotten since.
    pub(super) peers: Vec<KnownPeer>,
    /// True if this is the first start since the boot.
    pub(super) booted: bool,
}

/// The daemon's own memory of its host, which the ledger keeps across restarts.
#[derive(Default)]
pub(super) struct HostMemory {
    recorder: Recorder,
    pub(super) services: ServiceTracker,
    recent_listeners: RecentListeners,
    known_peers: KnownPeers,
    /// True if the sensor does not have the current peers yet.
    peers_changed: bool,
    /// The query for published ports that the sensor has not answered yet.
    published: Option<Receiver<Vec<Service>>>,
    next_query: Timestamp,
    /// `None` if the services have started.
    settling: Option<Settling>,
    /// True if a service was newly remembered, started to listen, or is served again, until this is taken.
    pub(super) served_again: bool,
}

impl HostMemory {
    /// Restores the memory of earlier runs, also that of `engine`, before the first packet. Later changes go to
    /// `recorder`.
    pub(super) fn restore(&mut self, records: HostRecords, recorder: Recorder, engine: &mut Engine) {
        self.recorder.clone_from(&recorder);
        self.services.restore(records.services, recorder, SystemTime::now());
        if records.booted {
            // The sensor's time begins with its start, a moment from now.
            engine.start_settling(Timestamp::at(MAX_SETTLING));
            self.settling = Some(Settling::new(boot_time()));
        }
        let listeners = self.recent_listeners.restore(records.listeners, SystemTime::now());
        engine.restore_listeners(Timestamp::default(), &listeners);
        self.known_peers.restore(records.peers, boot_time(), SystemTime::now());
        engine.set_peers(Timestamp::default(), &self.known_peers.ages(boot_time()));
    }

    /// Records the currently open ports and the known peers at the end of the run.
    pub(super) fn write(&mut self, now: Timestamp, wall: SystemTime) {
        self.recent_listeners.write(now, &self.recorder);
        self.known_peers.write(now, wall, &self.recorder);
    }

    /// True once when the services have started.
    pub(super) fn ends_settling(&mut self, now: Timestamp, listeners_changed: bool) -> bool {
        let all_served = self.services.are_all_served();
        self.settling.take_if(|settling| settling.is_over(now, listeners_changed, all_served)).is_some()
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
        if let Some(ports) = take_answer(&mut self.published) {
            self.services.publish(ports);
        }
        let observed = self.services.observe(now, wall, listeners, ranges);
        let appeared = self.recent_listeners.observe(now, wall, listeners, ranges, &self.recorder);
        self.known_peers.keep(now, wall, &self.recorder);
        self.served_again |= observed.served_again || appeared;
        observed.changed
    }

    /// The known peers for the sensor, if they have changed.
    pub(super) fn changed_peers(&mut self, now: Timestamp) -> Option<SensorCommand> {
        let changed = std::mem::take(&mut self.peers_changed);
        changed.then(|| SensorCommand::KnownPeers(self.known_peers.ages(now)))
    }

    /// Asks the sensor for the ports that destination NAT publishes, if that is due. No socket of this host shows them,
    /// and after a boot their containers often start later than all other services. While the host settles, each answer
    /// is followed by the next query.
    pub(super) fn query_published(&mut self, now: Timestamp, sensor: &SensorHandle) {
        if self.published.is_none() && (now >= self.next_query || self.settling.is_some()) {
            self.published = sensor.try_ask(|answer| SensorRequest::Published { answer });
            self.next_query = now.after(QUERY_INTERVAL);
        }
    }
}
