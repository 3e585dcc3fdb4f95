//! Judges one probe: whether it counts as evidence, whether its source now has enough evidence for a ban, and whether
//! the kernel's sockets and translations contradict that evidence.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ceiling::{BanRequest, FAST_SCAN_SPAN, Room};
use super::key::{Hashed, Key, Response, fold};
use super::related_ports::is_related_port;
use super::sources::{EVIDENCE, Evidence, ProbeCount};
use super::{
    Ban, Class, Engine, Exempt, Grade, Host, IgnoreReason, Notice, Observation, PortLookup, PortUse, Ports, Probe,
    Service, Verdict,
};
use crate::types::{BanTarget, Protocol, Tick, Timestamp};

/// Probes of one closed port on this many hosts count as a scan of the network. Clients of failed servers probe a few
/// hosts; scanners probe all of them. Limited by the number of ports in a source entry.
const SWEPT_HOSTS: u8 = 16;
const _: () = assert!(SWEPT_HOSTS as usize == EVIDENCE);

/// This many pairs of own address and closed port, beyond the first probed address, count as a scan, even with few
/// distinct ports. A crawler requests one port at a few addresses.
const SWEPT_PAIRS: u8 = 16;

/// Minimum age of a connection before its peer is added to the kernel's trap, so that short visits do not change the
/// set.
const PEER_SETTLED: Duration = Duration::from_secs(2);

/// Before a ban, socket look-ups older than this are repeated: a service may have started in the meantime, and the
/// snapshot of the listeners is up to a second old. A burst of probes causes one look-up.
const STALE: Duration = Duration::from_millis(500);

impl Engine {
    /// Returns the reason why `observation` is not evidence because of its port, if there is one.
    #[inline]
    pub(super) fn ignored_port(&self, now: Timestamp, observation: &Observation, host: &Host) -> Option<IgnoreReason> {
        let port = observation.port;
        let monitored = match observation.protocol {
            Protocol::Tcp => {
                let ports = &self.settings.tcp.ports;
                ports.contains(port) || observation.hides_port() && !ports.is_empty()
            }
            Protocol::Udp => self.settings.udp.ports.contains(port),
            Protocol::Sctp => self.settings.sctp,
            Protocol::Icmp => self.settings.icmp,
        };
        if monitored { self.port_in_use(now, observation, host) } else { Some(IgnoreReason::NotMonitored) }
    }

    /// Returns the reason why `observation` is not evidence, if this host uses its port.
    #[inline]
    pub(super) fn port_in_use(&self, now: Timestamp, observation: &Observation, host: &Host) -> Option<IgnoreReason> {
        let Observation { destination, protocol, port, .. } = *observation;
        // Also for flags that no TCP stack sends: the segments of a real connection may be mangled on the way. Also for
        // decoys: a service may have started since, and its first clients must not count.
        if host.listens(protocol, destination, port, observation.interface) {
            return Some(IgnoreReason::Open);
        }
        let own = Service { address: destination, protocol, port };
        if self.recent_ports.holds(own, observation.source, now.tick()) {
            return Some(IgnoreReason::RecentlyOpen);
        }
        host.services.contains(protocol, destination, port).then_some(IgnoreReason::RememberedService)
    }

    /// Judges `observation`, whose port is not in use as far as the engine knows. It counts against `target`, which has
    /// no ban; `known` is the target's key for [`Response::Block`].
    pub(super) fn judge(
        &mut self,
        now: Timestamp,
        observation: &Observation,
        (target, known): (BanTarget, Hashed),
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Verdict {
        if let Some(protection) = host.protection(observation.source, target) {
            let report = self.exempt.observe(now, observation.source);
            return Verdict::Exempt(Exempt { observation: *observation, protection, report });
        }
        let response = self.response_to(observation.protocol, observation.class);
        let key = if response == Response::Block { known } else { self.key_of(target, response) };
        if response != Response::Block
            && let Some(slot) = self.bans.table.get(key, now.tick())
        {
            let source = (observation.source, Some(observation.protocol));
            return Verdict::Repeated(self.repeat(now, slot, source, (target, response)));
        }
        let port = evidence_port(observation);
        let evidence = Evidence::new(now.tick(), observation.protocol, port, observation.class);
        let evidence = if observation.unverified { evidence.unproven() } else { evidence };
        // If the addresses belong to many hosts, a client that fails at one port of each is not a scanner.
        let apart = !host.local.is_exact() && observation.protocol != Protocol::Icmp;
        let held = if apart { key.key.toward(observation.destination).under(self.secret) } else { key };
        let mut counted = self.sources.observe(held, evidence, now.tick());
        self.counters.evicted += u64::from(counted.evicted);
        let mut enough_evidence = self.is_enough(now, target, &counted, host);
        // A flood above the ceilings causes no more look-ups than ordinary probes do.
        let all = enough_evidence && self.room(now, response, (counted.slot, counted.distinct)) != Room::Withheld;
        let served = all && self.forgive_served(held, counted.slot, observation, host);
        let refuted = (all || counted.fresh) && !self.confirm(now, held, counted.slot, observation, all, lookup);
        if served || refuted {
            // Some of the evidence was refuted; the rest still counts.
            self.sources.recount(held, &mut counted, now.tick());
            if !self.sources.evidence(counted.slot).any(|item| item.is_about(observation.protocol, port)) {
                return Verdict::Ignored(IgnoreReason::Open);
            }
            enough_evidence = self.is_enough(now, target, &counted, host);
        }
        self.counters.probes += 1;
        let ProbeCount { distinct, probes, fresh, .. } = counted;
        // Built in place, because a copy costs as much as a check.
        let probe = || Probe { observation: *observation, target, distinct, probes, fresh };
        if !enough_evidence {
            // Other segments may belong to connections that began before the capture.
            if apart
                && counted.fresh
                && matches!(observation.class, Class::Syn | Class::Sctp)
                && let Some(first) = self.swept(now, key.key, observation, fold(observation.destination), SWEPT_HOSTS)
            {
                let ports = Ports::collect([(observation.protocol, observation.port, observation.class)].into_iter());
                let ban = Ban { hosts: SWEPT_HOSTS, ..self.ban(probe(), ports, first) };
                return match self.room(now, response, (counted.slot, SWEPT_HOSTS)) {
                    Room::Withheld => self.withhold(now, counted.slot, probe()),
                    room => self.impose_ban(now, response, ban, room, host),
                };
            }
            if !apart
                && !self.settling.lasts(now)
                && matches!(observation.class, Class::Syn | Class::Udp | Class::Connect | Class::Sctp)
                && self.sources.is_elsewhere(counted.slot, fold(observation.destination))
                && let Some(first) = self.swept(now, key.key, observation, pair(observation), SWEPT_PAIRS)
            {
                if self.is_used(now, observation, (observation.protocol, observation.port), lookup) {
                    return Verdict::Ignored(IgnoreReason::Open);
                }
                return self.impose_ban_for(now, held, (counted.slot, SWEPT_PAIRS), first, probe(), host);
            }
            if counted.fresh
                && let Some(sweep) = self.distributed_scans.observe(known.hash, port, now.tick())
                && self.notices.len() < self.notices.capacity()
            {
                self.notices.push_back(Notice::DistributedScan(sweep));
            }
            return Verdict::Probe(probe());
        }
        if self.settling.lasts(now) {
            if counted.fresh {
                self.settling.wait(*observation);
            }
            return Verdict::Probe(probe());
        }
        self.impose_ban_for(now, held, (counted.slot, counted.distinct), counted.first, probe(), host)
    }

    fn is_enough(&self, now: Timestamp, target: BanTarget, counted: &ProbeCount, host: &Host) -> bool {
        let ProbeCount { slot, distinct, first, .. } = *counted;
        counted.conclusive || self.exceeds_threshold(now, (target, first), (slot, distinct), host)
    }

    /// True if the `distinct` ports in `slot` exceed the number that is forgiven to `target`. Related ports count as
    /// one. `first` is the time of its first probe.
    pub(super) fn exceeds_threshold(
        &self,
        now: Timestamp,
        (target, first): (BanTarget, Tick),
        (slot, distinct): (usize, u8),
        host: &Host,
    ) -> bool {
        let forgiven = self.settings.scan_trigger;
        if distinct <= forgiven {
            return false;
        }
        let counting = self.counting(now, slot, host);
        counting > forgiven && (counting >= self.bounds.peer_threshold || !self.is_forgiven_more(now, target, first))
    }

    /// Number of ports in `slot` that count; related ports, which one client tries together, count as one.
    fn counting(&self, now: Timestamp, slot: usize, host: &Host) -> u8 {
        let evidence = self.sources.recent_evidence(slot, now.tick());
        host.related.counting(evidence, self.bounds.related, self.bounds.unrelated)
    }

    /// True if `target` has probed more ports than are forgiven, but is not banned because they are related. Used for
    /// the kernel's trap, which counts each of them.
    pub fn is_forgiven_related(&self, now: Timestamp, target: BanTarget, host: &Host) -> bool {
        let now = self.latest.max(now);
        let forgiven = self.settings.scan_trigger;
        let held = self.sources.held(self.key_of(target, Response::Block), now.tick());
        held.is_some_and(|held| held.distinct > forgiven && self.counting(now, held.slot, host) <= forgiven)
    }

    /// True if `target` has probed enough ports for a ban, but the ceilings had no room. Used to review bans of the
    /// kernel's trap, which learns of a reached ceiling with a delay.
    pub fn is_withheld(&self, now: Timestamp, target: BanTarget) -> bool {
        let now = self.latest.max(now);
        let held = self.sources.held(self.key_of(target, Response::Block), now.tick());
        held.is_some_and(|held| held.withheld && held.distinct > self.settings.scan_trigger)
    }

    /// True if a connection to a service of this host lets `target`, whose first probe came at `first`, probe more
    /// ports without a ban.
    fn is_forgiven_more(&self, now: Timestamp, target: BanTarget, first: Tick) -> bool {
        self.known_peers.since(target).is_some_and(|since| since <= first)
            && self.bans.strikes_of(target, now.tick()) == 0
    }

    /// True if `target` is connected to a service of this host and has probed too few ports for a ban of a connected
    /// source. Used for the kernel's trap, which counts ports independently of the engine.
    pub fn is_forgiven_peer(&self, now: Timestamp, target: BanTarget) -> bool {
        let now = self.latest.max(now);
        let held = self.sources.held(self.key_of(target, Response::Block), now.tick());
        let (first, distinct) = held.map_or((now.tick(), 0), |held| (held.first, held.distinct));
        distinct < self.bounds.peer_threshold && self.is_forgiven_more(now, target, first)
    }

    /// The sources for which [`Engine::is_forgiven_peer`] holds and whose connection is older than [`PEER_SETTLED`].
    pub fn forgiven_peers(&self, now: Timestamp) -> impl Iterator<Item = BanTarget> + '_ {
        let settled = Timestamp::at(self.latest.max(now).since_origin().saturating_sub(PEER_SETTLED)).tick();
        self.known_peers.since_before(settled).filter(move |peer| self.is_forgiven_peer(now, *peer))
    }

    /// Bans the source of `probe` for the evidence in `slot`, which is stored under `key`, if the ceilings have room.
    pub(super) fn impose_ban_for(
        &mut self,
        now: Timestamp,
        key: Hashed,
        (slot, distinct): (usize, u8),
        first: Tick,
        probe: Probe,
        host: &Host,
    ) -> Verdict {
        let response = self.response_to(probe.observation.protocol, probe.observation.class);
        let room = self.room(now, response, (slot, distinct));
        if room == Room::Withheld {
            let pace = self.sources.pace(slot, now.tick());
            self.candidates.enter(key, self.grade_in(slot), pace, probe.observation);
            return self.withhold(now, slot, probe);
        }
        self.candidates.remove(key);
        let ports = self.ports_in(slot);
        self.sources.forget(key);
        self.impose_ban(now, response, self.ban(probe, ports, first), room, host)
    }

    fn impose_ban(&mut self, now: Timestamp, response: Response, ban: Ban, room: Room, host: &Host) -> Verdict {
        let verdict = self.bans.impose(now, response, ban, room, (&self.settings, host));
        if let Verdict::Block(ban) = &verdict {
            self.counters.bans += 1;
            self.counters.capped += u64::from(ban.capped);
        }
        verdict
    }

    /// Checks the evidence in `slot`, which is enough for a ban, against the ceilings.
    pub(super) fn room(&mut self, now: Timestamp, response: Response, (slot, distinct): (usize, u8)) -> Room {
        if response != Response::Block {
            return Room::Full;
        }
        let grade = self.grade_in(slot);
        let pace = self.sources.pace(slot, now.tick());
        let hides_ports = self.sources.evidence(slot).any(Evidence::hides_port);
        let request = BanRequest {
            grade,
            distinct: if hides_ports { self.sources.probes(slot) } else { distinct.into() },
            is_fast: grade == Grade::Proven || self.sources.span(slot) <= Tick::ticks(FAST_SCAN_SPAN),
            is_fastest: self.candidates.is_fastest(grade, pace),
        };
        self.bans.room(request, now)
    }

    /// The ports of the evidence in `slot`.
    pub(super) fn ports_in(&self, slot: usize) -> Ports {
        let evidence = self.sources.evidence(slot);
        Ports::collect(evidence.filter_map(|item| Some((item.protocol()?, item.port(), item.class()?))))
    }

    /// Grade of the evidence in `slot`.
    fn grade_in(&self, slot: usize) -> Grade {
        self.grade_of(self.sources.evidence(slot).filter_map(Evidence::class))
    }

    fn grade_of(&self, classes: impl Iterator<Item = Class>) -> Grade {
        Grade::from_classes(classes, self.settings.scan_trigger)
    }

    /// Withholds the ban of the source in `slot`; the source is judged again at its next probes.
    fn withhold(&mut self, now: Timestamp, slot: usize, probe: Probe) -> Verdict {
        if self.sources.withhold(slot) {
            self.counters.withheld += 1;
            self.bans.withhold(now);
        }
        Verdict::Probe(probe)
    }

    /// Counts one more host, or pair of address and port, probed by the source; `what` identifies it. At `limit` it is
    /// a scan: returns the time of the first probe.
    fn swept(&mut self, now: Timestamp, key: Key, observation: &Observation, what: u16, limit: u8) -> Option<Tick> {
        let item = Evidence::new(now.tick(), observation.protocol, what, observation.class);
        let key = key.over_hosts().under(self.secret);
        let counted = self.sources.observe(key, item, now.tick());
        self.counters.evicted += u64::from(counted.evicted);
        if counted.distinct < limit {
            return None;
        }
        self.sources.forget(key);
        Some(counted.first)
    }

    fn ban(&self, probe: Probe, ports: Ports, first: Tick) -> Ban {
        let first = Timestamp::at(first.duration());
        let grade = self.grade_of(ports.iter().map(|(.., class)| class));
        Ban { probe, ports, grade, hosts: 1, first, strikes: 0, expiry: self.settings.expiry, capped: false }
    }

    /// Drops the evidence about ports of `destination` on which a service listens by now; true if there was any.
    fn forgive_served(&mut self, key: Hashed, slot: usize, observation: &Observation, host: &Host) -> bool {
        let Observation { destination, interface, .. } = *observation;
        let is_served = |item: &Evidence| {
            let counts = !item.is_conclusive() && item.class() != Some(Class::Connect);
            let listens = |protocol| {
                host.listens(protocol, destination, item.port(), interface)
                    || host.services.contains(protocol, destination, item.port())
            };
            counts && item.protocol().is_some_and(listens)
        };
        let served = taken(self.sources.evidence(slot).filter(is_served));
        for item in served.into_iter().flatten() {
            let Some(protocol) = item.protocol() else { continue };
            self.forgive(key, protocol, item.port());
        }
        served.first().is_some_and(Option::is_some)
    }

    /// Drops the evidence about a port that turned out to be in use.
    fn forgive(&mut self, key: Hashed, protocol: Protocol, port: u16) {
        self.sources.forgive(key, protocol, port);
        if self.forgiven.len() < EVIDENCE {
            self.forgiven.push((protocol, port));
        }
    }

    /// Verifies unchecked evidence in the kernel. Before a ban (`all`), all of it is checked, including stale results;
    /// otherwise as much as the token bucket allows. Returns false if some of it was refuted.
    fn confirm(
        &mut self,
        now: Timestamp,
        key: Hashed,
        slot: usize,
        observation: &Observation,
        all: bool,
        lookup: &mut impl PortLookup,
    ) -> bool {
        if !all && !self.lookups.try_take(now) {
            return true;
        }
        let is_stale = |item: &Evidence| all && now.tick().since(item.at()) >= Tick::ticks(STALE);
        let unchecked = taken(self.sources.evidence(slot).filter(|item| !item.is_verified() || is_stale(item)));
        let mut sound = true;
        for item in unchecked.into_iter().flatten() {
            let (Some(protocol), Some(class)) = (item.protocol(), item.class()) else { continue };
            let real = class == Class::Connect || item.is_conclusive() || item.port() == 0;
            if !real
                && matches!(protocol, Protocol::Tcp | Protocol::Udp)
                && self.is_used(now, observation, (protocol, item.port()), lookup)
            {
                self.forgive(key, protocol, item.port());
                sound = false;
                continue;
            }
            self.sources.verify(slot, item);
        }
        sound
    }

    /// Asks the kernel whether a port at the destination of `observation` is in use, and records the result.
    pub(super) fn is_used(
        &mut self,
        now: Timestamp,
        observation: &Observation,
        (protocol, port): (Protocol, u16),
        lookup: &mut impl PortLookup,
    ) -> bool {
        self.counters.lookups += 1;
        let source = SocketAddr::new(observation.source, observation.source_port);
        let destination = SocketAddr::new(observation.destination, port);
        let found = lookup.port_use(protocol, source, destination, observation.interface);
        let own = Service { address: observation.destination, protocol, port };
        self.recent_ports.record(found, own, observation.source, now.tick());
        !matches!(found, PortUse::Closed | PortUse::Unknown)
    }
}

/// A copy of `items`, so that the table that they are in can be changed.
pub(super) fn taken(items: impl Iterator<Item = Evidence>) -> [Option<Evidence>; EVIDENCE] {
    let mut taken = [None; EVIDENCE];
    taken.iter_mut().zip(items).for_each(|(place, item)| *place = Some(item));
    taken
}

/// A pair of address and port. All related ports of an address are one, because a client that guesses tries each
/// address of a name.
fn pair(observation: &Observation) -> u16 {
    let port = if is_related_port(observation.protocol, observation.port) { 0 } else { observation.port };
    fold(observation.destination).wrapping_mul(31) ^ port
}

/// ICMP has no ports. Instead, the number of distinct own addresses probed counts, so the address takes the place of
/// the port.
fn evidence_port(observation: &Observation) -> u16 {
    if observation.protocol != Protocol::Icmp {
        return observation.port;
    }
    match observation.destination {
        IpAddr::V4(v4) => {
            let [.., a, b] = v4.octets();
            u16::from_be_bytes([a, b])
        }
        IpAddr::V6(v6) => {
            let [.., last] = v6.segments();
            last
        }
    }
}
