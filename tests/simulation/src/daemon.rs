//! Models the daemon: it reads listeners and connections, remembers services in a ledger that survives a reboot,
//! suspends bans while the host settles, and lifts bans without sufficient evidence. The decisions are the program's
//! own code (`portsentry::daemon::host_memory`); the model only decides when it runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use portsentry::daemon::host_memory::{
    KnownPeers, MAX_SETTLING, RecentListeners, Served, ServiceTracker, Settling, unfounded,
};
use portsentry::engine::{Ban, LastBan, Service, ServiceMemory, StrikeHistory};
use portsentry::host::service_ports::{FIRST_UNPRIVILEGED, PortRanges, listening};
use portsentry::ledger::{BanRecord, KnownPeer, Recorder};
use portsentry::netlink::sock_diag::{Bound, Listener};
use portsentry::types::{Backend, BanTarget, Expiry, PortSet, Timestamp};

use crate::chance::{days, hours, seconds};
use crate::detector::Detector;
use crate::host::{HostModel, TICK};

/// Rules of the daemon that can be switched off, and their limits.
#[derive(Clone, Copy, Debug)]
pub struct DaemonRules {
    /// Services are remembered while they are not served.
    pub service_memory: bool,
    /// The number of remembered services is limited.
    pub bounded_services: bool,
    /// Services are remembered for at most a week.
    pub forgets_services: bool,
    /// After a boot, no source is banned until the services are up.
    pub settling: bool,
    /// Settling takes at most a minute.
    pub bounded_settling: bool,
    /// Published ports are remembered as well.
    pub published_ports: bool,
    /// More ports are forgiven for peers with a connection.
    pub known_peers: bool,
    /// Connections through destination NAT are listed as well.
    pub published_peers: bool,
    /// Time for which they are known after the connection; `None` for the program's own time.
    pub peers_remembered: Option<Duration>,
    /// A connection must be older than the first probe.
    pub peers_before_probe: bool,
    /// Peers survive a restart of the daemon, for the rest of their time.
    pub stores_peers: bool,
    pub bounded_stored_peers: bool,
    /// Recently open ports survive a restart of the daemon, for the rest of their time.
    pub stores_listeners: bool,
    pub bounded_stored_listeners: bool,
    /// A listener is a service only after ten minutes.
    pub services_last: bool,
    /// Programs of ordinary users are no services.
    pub only_system_services: bool,
    /// The number of published ports that are remembered is limited.
    pub bounded_published: bool,
    /// Bans end when their evidence is no longer sufficient.
    pub lifts_unfounded: bool,
    /// Bans of the last hour also end for a port on which a system program begins to listen.
    pub lifts_for_listeners: bool,
    pub lifts_within_hour: bool,
}

impl Default for DaemonRules {
    fn default() -> Self {
        Self {
            service_memory: true,
            bounded_services: true,
            forgets_services: true,
            settling: true,
            bounded_settling: true,
            published_ports: true,
            known_peers: true,
            published_peers: true,
            peers_remembered: None,
            peers_before_probe: true,
            stores_peers: true,
            bounded_stored_peers: true,
            stores_listeners: true,
            bounded_stored_listeners: true,
            services_last: true,
            only_system_services: true,
            bounded_published: true,
            lifts_unfounded: true,
            lifts_for_listeners: true,
            lifts_within_hour: true,
        }
    }
}

/// The effects of a tick.
#[derive(Default)]
pub(crate) struct Ticked {
    /// True if the set of closed ports may have changed.
    pub(crate) changed: bool,
    pub(crate) settled: bool,
    pub(crate) lift: Vec<BanTarget>,
}

pub(crate) struct Daemon {
    rules: DaemonRules,
    /// The factor by which durations of days are shortened, because rare events are more frequent by the same factor.
    pace: u32,
    /// One tracker, or several if the number of services is not limited.
    services: Vec<ServiceTracker>,
    recent_listeners: RecentListeners,
    known_peers: KnownPeers,
    ephemeral: PortSet,
    listeners: Vec<Listener>,
    published: Vec<Service>,
    /// True once a port has been published: before, there is nothing to ask the engine.
    publishes: bool,
    ledger: BTreeMap<BanTarget, BanRecord>,
    /// The bans of each target that count as strikes: their number, and the end of the last one.
    strikes: BTreeMap<BanTarget, (u32, Timestamp)>,
    /// The recently open ports that the start has restored.
    restored: Vec<(Service, Duration)>,
    /// Until this time listeners are new and must be observed every few seconds.
    busy_until: Timestamp,
    next: Timestamp,
    /// The last second whose listeners were observed.
    seen_at: Option<Timestamp>,
    settles: Option<Settling>,
    forgiven: u8,
}

/// Longer than the minimum age of a listener that counts as a service.
const BUSY: Duration = Duration::from_secs(610);

/// Interval for observing new listeners. A listener that is missed for more than five seconds counts as new again.
const BUSY_TICK: Duration = Duration::from_secs(5);

/// The ports of a listener on all addresses.
fn services(listener: &Listener) -> impl Iterator<Item = Service> + use<> {
    let Listener { protocol, port, bound, .. } = *listener;
    let families = if bound == Bound::Any { 2 } else { 1 };
    let addresses = [IpAddr::from([0; 4]), IpAddr::from([0; 16])].into_iter().take(families);
    addresses.map(move |address| Service { protocol, port, address })
}

/// The wall clock for times of hours, which the pace does not shorten.
fn exact_wall(now: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + now.since_origin()
}

impl Daemon {
    pub(crate) fn new(now: Timestamp, rules: DaemonRules, pace: u32, host: &HostModel, forgiven: u8) -> Self {
        let shards = if rules.bounded_services { 1 } else { 4 };
        let mut known_peers = KnownPeers::default();
        if let Some(span) = rules.peers_remembered {
            known_peers.remember_for(span);
        }
        Self {
            rules,
            pace,
            services: (0..shards).map(|_| ServiceTracker::default()).collect(),
            recent_listeners: RecentListeners::default(),
            known_peers,
            published: Vec::new(),
            publishes: false,
            ephemeral: host.ephemeral.clone().collect(),
            listeners: Vec::new(),
            ledger: BTreeMap::new(),
            strikes: BTreeMap::new(),
            restored: Vec::new(),
            busy_until: now.after(BUSY),
            next: now,
            seen_at: None,
            settles: None,
            forgiven,
        }
    }

    /// Restarts with the ledger of `before`, or with a new disk.
    pub(crate) fn restarted(now: Timestamp, before: Self, booted: bool, keeps_ledger: bool, host: &HostModel) -> Self {
        let mut daemon = Self::new(now, before.rules, before.pace, host, before.forgiven);
        daemon.publishes = before.publishes;
        if keeps_ledger {
            let wall = daemon.wall(now);
            for (tracker, old) in daemon.services.iter_mut().zip(&before.services) {
                tracker.restore(
                    old.states().into_iter().map(|state| (state.service, state.served)),
                    Recorder::default(),
                    wall,
                );
            }
            daemon.restore(now, &before);
            daemon.ledger = before.ledger;
            daemon.strikes = before.strikes;
        }
        if booted && daemon.rules.settling {
            daemon.settles = Some(Settling::new(now));
        }
        daemon
    }

    /// Restores peers and recently open ports.
    fn restore(&mut self, now: Timestamp, before: &Self) {
        let (rules, wall) = (self.rules, exact_wall(now));
        if rules.stores_peers {
            let aged =
                |peer: KnownPeer| KnownPeer { last: if rules.bounded_stored_peers { peer.last } else { wall }, ..peer };
            self.known_peers.restore(before.known_peers.records(now, wall).into_iter().map(aged), now, wall);
        }
        if rules.stores_listeners {
            self.restored = self.recent_listeners.restore(before.recent_listeners.records(), wall);
        }
    }

    /// Passes the contents of the ledger to a new engine.
    pub(crate) fn brief(&self, now: Timestamp, detector: &mut Detector) {
        detector.restore_listeners(now, &self.restored);
        if self.rules.known_peers {
            self.send_peers(now, detector);
        }
        for (target, (strikes, until)) in &self.strikes {
            let left = until.since(now);
            let last =
                if left.is_zero() { LastBan::Over(now.since(*until)) } else { LastBan::Lasts(Expiry::After(left)) };
            detector.remember(now, &StrikeHistory { target: *target, strikes: *strikes, proven: 0, last });
        }
    }

    fn send_peers(&self, now: Timestamp, detector: &mut Detector) {
        let mut peers = self.known_peers.ages(now);
        if !self.rules.peers_before_probe {
            peers.iter_mut().for_each(|(_, age)| *age = Duration::MAX);
        }
        detector.set_peers(now, &peers);
    }

    /// The time until which the engine settles.
    pub(crate) fn settles_until(&self, now: Timestamp) -> Option<Timestamp> {
        let longest = if self.rules.bounded_settling { MAX_SETTLING } else { days(10_000) };
        self.settles.is_some().then(|| now.after(longest))
    }

    fn wall(&self, now: Timestamp) -> SystemTime {
        let span = if self.rules.forgets_services { now.since_origin() * self.pace } else { Duration::ZERO };
        SystemTime::UNIX_EPOCH + span
    }

    pub(crate) fn next_due(&self) -> Timestamp {
        self.next
    }

    /// Schedules the next observation at `at`.
    pub(crate) fn look_at(&mut self, at: Timestamp) {
        self.next = self.next.min(at);
    }

    /// The remembered services.
    pub(crate) fn services(&self) -> ServiceMemory {
        if !self.rules.service_memory {
            return ServiceMemory::default();
        }
        match self.services.as_slice() {
            [one] => one.memory(),
            many => many.iter().flat_map(ServiceTracker::states).map(|state| state.service).collect(),
        }
    }

    /// Observes the listeners of the second before a change. This happens once for all changes of the next second.
    pub(crate) fn see_out(&mut self, second: Timestamp, host: &HostModel) {
        if self.seen_at != Some(second) {
            self.seen_at = Some(second);
            self.publishes |= host.published_ports().next().is_some();
            let _ = self.observe(second, &host.listeners());
        }
    }

    /// Observes the current listeners. Returns whether the services changed, and whether one is served again.
    fn observe(&mut self, at: Timestamp, listeners: &[Listener]) -> (bool, bool) {
        let (wall, shards) = (self.wall(at), self.services.len());
        let ranges = PortRanges { ephemeral: &self.ephemeral, first_unprivileged: FIRST_UNPRIVILEGED };
        let (mut changed, mut served_again) = (false, false);
        let mut listeners = listeners.to_vec();
        if !self.rules.only_system_services {
            listeners.iter_mut().for_each(|one| one.user = 0);
        }
        if !self.rules.services_last {
            let system = listeners.iter().filter(|one| one.user == 0 && !self.ephemeral.contains(one.port));
            self.services[0].restore(
                system.flat_map(services).map(|service| (service, wall)),
                Recorder::default(),
                wall,
            );
        }
        served_again |= self.recent_listeners.observe(at, exact_wall(at), &listeners, ranges, &Recorder::default());
        for (number, tracker) in self.services.iter_mut().enumerate() {
            let seen = if shards == 1 {
                tracker.observe(at, wall, &listeners, ranges)
            } else {
                let own = |one: &&Listener| usize::from(one.port) % shards == number;
                let own: Vec<Listener> = listeners.iter().filter(own).copied().collect();
                tracker.observe(at, wall, &own, ranges)
            };
            changed |= seen.changed;
            served_again |= seen.served_again;
        }
        (changed, served_again)
    }

    /// One round of the daemon's clock.
    pub(crate) fn tick(&mut self, at: Timestamp, host: &mut HostModel, detector: &mut Detector) -> Ticked {
        let listeners = host.listeners();
        let listeners_changed = listeners != self.listeners;
        self.publishes |= host.published_ports().next().is_some();
        let asks = self.rules.published_ports && self.publishes;
        let published = if asks { detector.published(at) } else { Vec::new() };
        let restores = published != self.published && !self.rules.bounded_published;
        if published != self.published {
            self.services[0].publish(published.clone());
            if restores {
                let wall = self.wall(at);
                let all = host.published_ports().map(|service| (service, wall));
                self.services[0].restore(all, Recorder::default(), wall);
            }
            self.published = published;
            self.busy_until = at.after(BUSY);
        }
        let (services_changed, served_again) = self.observe(at, &listeners);
        self.listeners = listeners;
        if listeners_changed {
            self.busy_until = at.after(BUSY);
        }
        let changed = listeners_changed || services_changed || restores;
        if changed {
            detector.host_changed(at, host, self.services());
        }
        host.close_ended(at);
        let mut connections = host.connections();
        connections.retain(|connection| self.rules.published_peers || !connection.is_published);
        if self.rules.known_peers && self.known_peers.update(at, &connections, detector.host()) {
            self.send_peers(at, detector);
        }
        if !self.rules.bounded_stored_listeners {
            detector.restore_listeners(at, &self.restored);
        }
        let all_served = self.services[0].are_all_served();
        let settled = self.settles.as_mut().is_some_and(|settling| match self.rules.bounded_settling {
            true => settling.is_over(at, listeners_changed, all_served),
            false => all_served,
        });
        if settled {
            self.settles = None;
            detector.end_settling();
        }
        let lift = if served_again && self.rules.lifts_unfounded { self.unfounded(at, detector) } else { Vec::new() };
        let gap = if self.settles.is_some() {
            TICK
        } else if at < self.busy_until {
            BUSY_TICK
        } else {
            hours(1) / self.pace
        };
        self.next = at.after(gap.max(TICK));
        if let Some(end) = host.next_connection_end() {
            self.look_at(end.max(at.after(seconds(2))));
        }
        Ticked { changed: changed || settled, settled, lift }
    }

    fn unfounded(&mut self, at: Timestamp, detector: &Detector) -> Vec<BanTarget> {
        let wall = SystemTime::UNIX_EPOCH + at.since_origin();
        self.ledger.retain(|_, ban| ban.until.is_none_or(|until| until > wall));
        let ranges = PortRanges { ephemeral: &self.ephemeral, first_unprivileged: FIRST_UNPRIVILEGED };
        let listening = match self.rules.lifts_for_listeners {
            true => listening(&self.listeners, ranges),
            false => ServiceMemory::default(),
        };
        let young = |ban: &BanRecord| BanRecord { since: wall, ..ban.clone() };
        let bans: Vec<_> = match self.rules.lifts_within_hour {
            true => self.ledger.values().cloned().collect(),
            false => self.ledger.values().map(young).collect(),
        };
        let served = Served { remembered: detector.host().services.clone(), listening };
        unfounded(bans.iter(), &served, self.forgiven, wall)
    }

    pub(crate) fn record(&mut self, now: Timestamp, ban: &Ban) {
        let at = SystemTime::UNIX_EPOCH + now.since_origin();
        self.ledger.insert(ban.probe.target, BanRecord::from_ban(ban, at, None, Backend::Nft));
        if let (Expiry::After(length), false) = (ban.expiry, ban.capped) {
            let strikes = self.strikes.entry(ban.probe.target).or_insert((0, now));
            *strikes = (strikes.0 + 1, now.after(length));
        }
    }

    /// Removes a lifted ban, which does not count as a strike.
    pub(crate) fn remove(&mut self, target: BanTarget) {
        if self.ledger.remove(&target).is_some_and(|ban| !ban.capped)
            && let Some((strikes, _)) = self.strikes.get_mut(&target)
        {
            *strikes = strikes.saturating_sub(1);
        }
    }
}
