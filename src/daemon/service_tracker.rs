//! Tracks the services of this host: listeners that lasted, each with the time at which it was last served. The ledger
//! keeps them across restarts and reboots; the engine receives them with the snapshot of the host.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crate::engine::{MAX_PUBLISHED, Service, ServiceMemory};
use crate::host::service_ports::{PortRanges, is_eligible, services};
use crate::ledger::{LedgerChange, Recorder};
use crate::netlink::sock_diag::Listener;
use crate::types::{DAY, HOUR, Protocol, Timestamp};

/// Minimum age of a listener before it counts as a service. A port that is open only for moments is not a service.
const MIN_SERVICE_AGE: Duration = Duration::from_secs(600);

/// Maximum time for which a listener may be missing before it counts as a new one. The kernel's list may miss a
/// listener that appears while it is read.
const MAX_GAP: Duration = Duration::from_secs(5);

/// Time for which a service that is down is remembered. It covers maintenance, a holiday, or a disk replacement.
const FORGOTTEN_AFTER: Duration = DAY.saturating_mul(7);

/// Maximum number of remembered services.
pub(super) const MAX_SERVICES: usize = 256;

/// Maximum number of listeners whose age is measured.
const MAX_CANDIDATES: usize = 1_024;

/// Interval at which the last-served time of a running service is written.
const RECORD_INTERVAL: Duration = HOUR;

#[derive(Clone, Copy)]
struct Candidate {
    since: Timestamp,
    seen: Timestamp,
}

#[derive(Clone, Copy)]
struct KnownService {
    /// Time at which it was last served. By the wall clock, which remains valid across a reboot.
    served: SystemTime,
    /// The last-served time in the ledger.
    recorded: SystemTime,
    is_served: bool,
}

/// A remembered service, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceState {
    pub service: Service,
    pub served: SystemTime,
    pub is_served: bool,
}

/// Result of [`ServiceTracker::observe`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Observed {
    /// True if the set of remembered services changed.
    pub changed: bool,
    /// True if a service was newly remembered, or is served again.
    pub served_again: bool,
}

/// The remembered services, and the listeners that may become services.
#[derive(Default)]
pub struct ServiceTracker {
    candidates: HashMap<Service, Candidate>,
    remembered: HashMap<Service, KnownService>,
    /// Ports that destination NAT publishes: services without a socket.
    published: Vec<Service>,
    recorder: Recorder,
}

impl ServiceTracker {
    /// Adds the services from the ledger. A time after `wall` means that the clock was set back.
    pub fn restore(
        &mut self,
        services: impl IntoIterator<Item = (Service, SystemTime)>,
        recorder: Recorder,
        wall: SystemTime,
    ) {
        self.recorder = recorder;
        for (service, served) in services.into_iter().take(MAX_SERVICES) {
            let served = served.min(wall);
            self.remembered.insert(service, KnownService { served, recorded: served, is_served: false });
        }
        self.forget_old(wall);
    }

    /// Observes the current listeners. Ephemeral ports are not services.
    pub fn observe(
        &mut self,
        now: Timestamp,
        wall: SystemTime,
        listeners: &[Listener],
        ranges: PortRanges<'_>,
    ) -> Observed {
        let mut observed = Observed::default();
        self.candidates.retain(|_, candidate| now.since(candidate.seen) <= MAX_GAP);
        let eligible = listeners.iter().filter(|listener| is_eligible(listener, ranges));
        let published: Vec<Service> =
            self.published.iter().copied().filter(|service| !ranges.ephemeral.contains(service.port)).collect();
        for service in eligible.flat_map(services).chain(published) {
            if let Some(known) = self.remembered.get_mut(&service) {
                observed.served_again |= !known.is_served;
                (known.served, known.is_served) = (wall, true);
                let step = wall.duration_since(known.recorded).unwrap_or(RECORD_INTERVAL);
                if step >= RECORD_INTERVAL {
                    known.recorded = wall;
                    self.recorder.send(LedgerChange::Served(service, wall));
                }
            } else if self.has_lasted(service, now) && self.make_room() {
                self.candidates.remove(&service);
                self.remembered.insert(service, KnownService { served: wall, recorded: wall, is_served: true });
                self.recorder.send(LedgerChange::Served(service, wall));
                observed = Observed { changed: true, served_again: true };
            }
        }
        // Those that this observation has found were served at `wall`.
        let gone = |known: &KnownService| known.is_served && known.served != wall;
        for (service, known) in self.remembered.iter_mut().filter(|(_, known)| gone(known)) {
            (known.is_served, known.recorded) = (false, known.served);
            self.recorder.send(LedgerChange::Served(*service, known.served));
        }
        observed.changed |= self.forget_old(wall);
        observed
    }

    /// Observes the ports that destination NAT publishes now.
    pub fn publish(&mut self, mut ports: Vec<Service>) {
        ports.sort_unstable();
        ports.truncate(MAX_PUBLISHED);
        self.published = ports;
    }

    /// True if there are remembered services and all of them are served.
    pub fn are_all_served(&self) -> bool {
        !self.remembered.is_empty() && self.remembered.values().all(|known| known.is_served)
    }

    /// Records that a listener exists; true if it has existed for long enough.
    fn has_lasted(&mut self, service: Service, now: Timestamp) -> bool {
        if self.candidates.len() >= MAX_CANDIDATES && !self.candidates.contains_key(&service) {
            return false;
        }
        let candidate = self.candidates.entry(service).or_insert(Candidate { since: now, seen: now });
        candidate.seen = now;
        now.since(candidate.since) >= MIN_SERVICE_AGE
    }

    /// If there are too many services, forgets the one that has been down for the longest time; false if all are
    /// served.
    fn make_room(&mut self) -> bool {
        if self.remembered.len() < MAX_SERVICES {
            return true;
        }
        let unserved = self.remembered.iter().filter(|(_, known)| !known.is_served);
        let Some(oldest) = unserved.min_by_key(|(_, known)| known.served).map(|(service, _)| *service) else {
            return false;
        };
        self.remove(oldest);
        true
    }

    fn forget_old(&mut self, wall: SystemTime) -> bool {
        let is_old = |known: &KnownService| {
            !known.is_served && wall.duration_since(known.served).is_ok_and(|since| since > FORGOTTEN_AFTER)
        };
        let old: Vec<Service> =
            self.remembered.iter().filter(|(_, known)| is_old(known)).map(|(service, _)| *service).collect();
        old.iter().for_each(|service| self.remove(*service));
        !old.is_empty()
    }

    /// Forgets the services on `port`; returns their number. A running service is remembered again when it has lasted.
    pub(super) fn forget(&mut self, port: u16, protocol: Option<Protocol>) -> usize {
        let is_meant = |service: &Service| service.port == port && protocol.is_none_or(|one| one == service.protocol);
        let meant: Vec<Service> = self.remembered.keys().copied().filter(is_meant).collect();
        meant.iter().for_each(|service| self.remove(*service));
        self.candidates.retain(|service, _| !is_meant(service));
        meant.len()
    }

    fn remove(&mut self, service: Service) {
        self.remembered.remove(&service);
        self.recorder.send(LedgerChange::ServiceForgotten(service));
    }

    /// The remembered services for the engine.
    pub fn memory(&self) -> ServiceMemory {
        self.remembered.keys().copied().collect()
    }

    /// The remembered services, sorted.
    pub fn states(&self) -> Vec<ServiceState> {
        let state = |(service, known): (&Service, &KnownService)| ServiceState {
            service: *service,
            served: known.served,
            is_served: known.is_served,
        };
        let mut states: Vec<_> = self.remembered.iter().map(state).collect();
        states.sort_unstable_by_key(|state| state.service);
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::service_ports::FIRST_UNPRIVILEGED;
    use crate::netlink::sock_diag::Bound;
    use crate::types::{PortSet, at};

    struct Scene {
        tracker: ServiceTracker,
        seconds: u64,
        ephemeral: PortSet,
        first_unprivileged: u16,
    }

    fn listener(port: u16, user: u32) -> Listener {
        Listener { protocol: Protocol::Tcp, port, bound: Bound::Any, interface: 0, user }
    }

    impl Scene {
        fn new() -> Self {
            Self {
                tracker: ServiceTracker::default(),
                seconds: 1_000,
                ephemeral: (32_768..=60_999).collect(),
                first_unprivileged: FIRST_UNPRIVILEGED,
            }
        }

        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + self.seconds)
        }

        /// Runs these listeners for `seconds` with an observation each second.
        fn runs(&mut self, listeners: &[Listener], seconds: u64) -> Observed {
            let mut observed = Observed::default();
            for _ in 0..seconds {
                self.seconds += 1;
                let ranges = PortRanges { ephemeral: &self.ephemeral, first_unprivileged: self.first_unprivileged };
                let one = self.tracker.observe(at(self.seconds), self.wall(), listeners, ranges);
                observed.changed |= one.changed;
                observed.served_again |= one.served_again;
            }
            observed
        }

        fn ports(&self) -> Vec<u16> {
            let mut ports: Vec<u16> = self.tracker.states().iter().map(|state| state.service.port).collect();
            ports.dedup();
            ports
        }
    }

    #[test]
    fn listener_is_remembered_after_ten_minutes() {
        let mut scene = Scene::new();
        let _ = scene.runs(&[listener(80, 33)], 600);
        assert_eq!(scene.ports(), [0; 0], "not yet");
        assert!(scene.runs(&[listener(80, 33)], 1).served_again);
        assert_eq!(scene.ports(), [80]);
        assert_eq!(scene.tracker.states().len(), 2, "one service per family");
        let memory = scene.tracker.memory();
        assert!(memory.contains(Protocol::Tcp, [192, 0, 2, 1].into(), 80));
        assert!(!memory.contains(Protocol::Udp, [192, 0, 2, 1].into(), 80), "the protocol counts");
    }

    #[test]
    fn published_port_is_remembered_like_listener() {
        let mut scene = Scene::new();
        let published = |port: u16| Service { protocol: Protocol::Tcp, port, address: [192, 0, 2, 1].into() };
        scene.tracker.publish(vec![published(3_000), published(40_000)]);
        let _ = scene.runs(&[], 601);
        assert_eq!(scene.ports(), [3_000], "none of ip_local_port_range");
        assert!(scene.tracker.are_all_served());
        scene.tracker.publish(Vec::new());
        let _ = scene.runs(&[], 1);
        assert!(!scene.tracker.are_all_served(), "settling after a boot waits for it");
        assert_eq!(scene.ports(), [3_000]);
        scene.tracker.publish((1..=1_000).map(published).collect());
        let _ = scene.runs(&[listener(80, 33)], 700);
        assert_eq!(scene.ports().len(), MAX_PUBLISHED + 2, "a host that publishes every port crowds out no listener");
    }

    #[test]
    fn interrupted_listener_starts_over() {
        let mut scene = Scene::new();
        let _ = scene.runs(&[listener(80, 33)], 590);
        let _ = scene.runs(&[], 4);
        let _ = scene.runs(&[listener(80, 33)], 20);
        assert_eq!(scene.ports(), [80], "a gap of a second does not count");
        let mut scene = Scene::new();
        let _ = scene.runs(&[listener(80, 33)], 590);
        let _ = scene.runs(&[], 6);
        let _ = scene.runs(&[listener(80, 33)], 590);
        assert_eq!(scene.ports(), [0; 0]);
    }

    #[test]
    fn users_and_ephemeral_ports_are_not_services() {
        let mut scene = Scene::new();
        let lasting = [listener(8_080, 1_000), listener(40_000, 0), listener(3_306, 999), listener(443, 1_000)];
        let local = Listener { bound: Bound::One([127, 0, 0, 1].into()), ..listener(5_432, 0) };
        let _ = scene.runs(&[&lasting[..], &[local]].concat(), 700);
        assert_eq!(scene.ports(), [443, 3_306], "only privileged ports and system users, and none on loopback");
    }

    #[test]
    fn dynamic_users_run_services() {
        let mut scene = Scene::new();
        let system = [listener(9_090, 61_184), listener(9_100, 65_519), listener(9_200, 65_534)];
        let others = [listener(8_080, 61_183), listener(8_081, 65_520), listener(8_082, 65_535)];
        let _ = scene.runs(&[system, others].concat(), 700);
        assert_eq!(scene.ports(), [9_090, 9_100, 9_200]);
    }

    #[test]
    fn lowered_unprivileged_port_start_excludes_users() {
        let mut scene = Scene { first_unprivileged: 80, ..Scene::new() };
        let _ = scene.runs(&[listener(79, 1_000), listener(80, 1_000), listener(443, 33)], 700);
        assert_eq!(scene.ports(), [79, 443], "every user may listen on port 80");
        let mut scene = Scene { first_unprivileged: u16::MAX, ..Scene::new() };
        let _ = scene.runs(&[listener(1_024, 1_000), listener(1_023, 1_000)], 700);
        assert_eq!(scene.ports(), [1_023]);
    }

    #[test]
    fn unserved_service_is_forgotten_after_seven_days() {
        let mut scene = Scene::new();
        let _ = scene.runs(&[listener(80, 33)], 601);
        scene.seconds += (7 * DAY).as_secs() - 1;
        assert!(!scene.runs(&[], 1).changed);
        assert_eq!(scene.ports(), [80]);
        assert!(scene.runs(&[listener(80, 33)], 1).served_again, "within the week it is recognised at once");
        scene.seconds += (7 * DAY).as_secs();
        assert!(scene.runs(&[], 1).changed);
        assert_eq!(scene.ports(), [0; 0]);
    }

    #[test]
    fn full_memory_keeps_served_services() {
        let mut scene = Scene::new();
        let all: Vec<_> = (1..=128).map(|port| listener(port, 0)).collect();
        let _ = scene.runs(&all, 601);
        assert_eq!(scene.tracker.states().len(), MAX_SERVICES, "128 ports of two families");
        let _ = scene.runs(&[&all[..], &[listener(200, 0)]].concat(), 700);
        assert_eq!(scene.ports().last(), Some(&128), "no room: all services are served");
        let _ = scene.runs(&[&all[1..], &[listener(200, 0)]].concat(), 700);
        assert_eq!(
            (scene.ports().first(), scene.ports().last()),
            (Some(&2), Some(&200)),
            "the unserved service makes room"
        );
        assert_eq!(scene.tracker.states().len(), MAX_SERVICES);
    }

    #[test]
    fn forgotten_service_has_to_last_again() {
        let mut scene = Scene::new();
        let _ = scene.runs(&[listener(80, 33), listener(443, 33)], 601);
        assert_eq!(scene.tracker.forget(80, Some(Protocol::Udp)), 0);
        assert_eq!(scene.tracker.forget(80, None), 2, "both families");
        let _ = scene.runs(&[listener(80, 33), listener(443, 33)], 600);
        assert_eq!(scene.ports(), [443]);
    }

    #[test]
    fn restored_service_ahead_of_clock_ages() {
        let mut scene = Scene::new();
        let service = Service { protocol: Protocol::Tcp, port: 80, address: [0; 4].into() };
        let (wall, ahead) = (scene.wall(), scene.wall() + 365 * DAY);
        scene.tracker.restore([(service, ahead)], Recorder::default(), wall);
        scene.seconds += (7 * DAY).as_secs() + 1;
        assert!(scene.runs(&[], 1).changed, "a clock that was ahead must not keep it permanently");
        let old = wall - 8 * DAY;
        scene.tracker.restore([(service, old)], Recorder::default(), wall);
        assert_eq!(scene.ports(), [0; 0]);
    }
}
