//! Takes a packet from its observation to its verdict. [`Engine::observe`] recognises packets of sources with a verdict
//! and packets that are no probes. [`Engine::decide`] decides on a probe in four steps: count it as evidence, confirm
//! the evidence with the kernel's sockets and translations, weigh it, and impose the ban if the ceilings have room.

use std::time::Duration;

use super::acceptance::{self, is_unicast};
use super::ceiling::{Admission, BanRequest, FAST_SCAN_SPAN};
use super::evidence::{Evidence, MAX_EVIDENCE, taken};
use super::key::{Hashed, TargetKey, fold};
use super::observation::protocol_of;
use super::related_ports::is_related_port;
use super::sources::SourceSummary;
use super::waiting::{Candidate, RETRY_DELAY};
use super::{Ban, Class, Engine, Exempt, Grade, Host, IgnoreReason, Observation, PortLookup, Ports, Probe, Verdict};
use crate::types::{BanTarget, Protocol, Response, Tick, Timestamp};
use crate::wire::{Checksum, Delivery, Packet};

/// Probes of one closed port on this many hosts count as a scan of the network. Clients of failed servers probe a few
/// hosts; scanners probe all of them. Limited by the number of ports in a source entry.
const HOST_SCAN_HOSTS: u8 = 16;
const _: () = assert!(HOST_SCAN_HOSTS as usize == MAX_EVIDENCE);

/// This many pairs of own address and closed port, beyond the first probed address, count as a scan, even with few
/// distinct ports. A crawler requests one port at a few addresses.
const HOST_SCAN_PAIRS: u8 = 16;

/// Before a ban, socket look-ups older than this are repeated: a service may have started in the meantime, and the
/// snapshot of the listeners is up to a second old. A burst of probes causes one look-up.
const MAX_LOOKUP_AGE: Duration = Duration::from_millis(500);

/// A probe that was counted as evidence.
struct Counted<'a> {
    observation: &'a Observation,
    target: BanTarget,
    response: Response,
    /// The target's key for [`Response::Block`].
    known: Hashed,
    /// True if the evidence is stored for each probed host separately.
    apart: bool,
    /// The key under which the evidence is stored.
    key: Hashed,
    /// The evidence there.
    summary: SourceSummary,
    /// True if `summary` is enough for a ban.
    is_enough: bool,
    /// True if the port is new for the target within the window.
    fresh: bool,
}

impl Counted<'_> {
    /// Called where the probe is returned, because a copy takes as long as one of the checks before.
    #[inline]
    fn probe(&self) -> Probe {
        let SourceSummary { distinct, probes, .. } = self.summary;
        Probe { observation: *self.observation, target: self.target, distinct, probes, fresh: self.fresh }
    }
}

impl Engine {
    /// Observes one packet, and decides on its source if it is a probe. If `now` is earlier than the latest time seen,
    /// the latest one is used.
    pub fn observe(&mut self, now: Timestamp, packet: &Packet, host: &Host, lookup: &mut impl PortLookup) -> Verdict {
        let now = self.clock(now);
        self.counters.packets += 1;
        self.withdrawn.clear();
        if packet.interface != 0 && !is_monitored_interface(packet.interface, host) {
            return Verdict::Ignored(IgnoreReason::OtherInterface);
        }
        if packet.delivery == Delivery::Outgoing {
            let watched = |protocol, port| self.settings.monitors_port(protocol, port);
            if let Some(own) = self.recent_ports.learn(now, packet, host, watched, lookup) {
                // The client's request was not a probe of this port.
                let peer = host.target(packet.destination, host.receiver(packet.interface));
                let peer = self.key_of(peer, self.settings.of_protocol(own.protocol).response);
                self.sources.withdraw_evidence(peer, own.protocol, own.port);
            }
            return Verdict::Ignored(IgnoreReason::Own);
        }
        // Sockets and neighbours belong to the bridge, not to its port.
        let bridge = host.bridge(packet.interface);
        let interface = bridge.unwrap_or(packet.interface);
        let target = host.target(packet.source, interface);
        let known = self.key_of(target, Response::Block);
        if let Some((target, slot)) = self.bans.recognise(packet.source, (target, known), host, now.tick()) {
            let source = (packet.source, protocol_of(&packet.transport));
            return self.bans.repeat(now, slot, source, (target, Response::Block));
        }
        // Used in place: a copy would stall until all its fields have been stored.
        let mut observed = Observation::from_packet(packet);
        let Some(observation) = &mut observed else {
            return Verdict::Ignored(IgnoreReason::NoRequest);
        };
        observation.interface = interface;
        observation.bridge_port = if bridge.is_some() { packet.interface } else { 0 };
        // The next checks change no state, so that a packet with a wrong checksum has no effect.
        if let Some(reason) = acceptance::refusal(packet, interface, host) {
            return Verdict::Ignored(reason);
        }
        if !self.settings.monitors(observation) {
            return Verdict::Ignored(IgnoreReason::NotMonitored);
        }
        if let Some(reason) = self.recent_ports.use_of(observation, host, now.tick()) {
            return Verdict::Ignored(reason);
        }
        match acceptance::verify(packet, interface, host, lookup) {
            Ok(checksum) => observation.unverified = checksum != Checksum::Good && observation.class != Class::Fragment,
            Err(reason) => return Verdict::Ignored(reason),
        }
        self.decide(now, observation, (target, known), host, lookup)
    }

    /// As [`Engine::observe`], for a connection or datagram that a decoy listener accepted. `lookup` must report a
    /// decoy's port as not in use.
    pub fn observe_decoy(
        &mut self,
        now: Timestamp,
        observation: Observation,
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Verdict {
        let now = self.clock(now);
        self.counters.packets += 1;
        self.withdrawn.clear();
        let target = host.target(observation.source, observation.interface);
        let known = self.key_of(target, Response::Block);
        if let Some((target, slot)) = self.bans.recognise(observation.source, (target, known), host, now.tick()) {
            let source = (observation.source, Some(observation.protocol));
            return self.bans.repeat(now, slot, source, (target, Response::Block));
        }
        if !is_unicast(observation.destination) || !host.local.contains(observation.destination) {
            return Verdict::Ignored(IgnoreReason::NotUnicast);
        }
        if let Some(reason) = self.recent_ports.use_of(&observation, host, now.tick()) {
            return Verdict::Ignored(reason);
        }
        self.decide(now, &observation, (target, known), host, lookup)
    }

    /// Returns the verdict on the next source that waited during settling, or whose withheld ban now fits under the
    /// ceilings; `None` if no source is left. Evidence about ports that turned out to be open is dropped first.
    pub fn judge_waiting(&mut self, now: Timestamp, host: &Host, lookup: &mut impl PortLookup) -> Option<Verdict> {
        let now = self.clock(now);
        if self.settling.is_current(now) {
            return None;
        }
        while let Some(probe) = self.settling.take_next() {
            let target = host.target(probe.source, probe.interface);
            let key = self.key_of(target, self.settings.response_to(&probe));
            if let Some(verdict) = self.judge_again(now, key, probe, host, lookup) {
                return Some(verdict);
            }
        }
        if now < self.candidates.retry_at {
            return None;
        }
        for grade in [Grade::Proven, Grade::Forgeable] {
            while let Some(Candidate { key, observation, .. }) = self.candidates.fastest(grade, now.tick()) {
                let response = self.settings.response_to(&observation);
                let summary = self.sources.summary_of(key, now.tick());
                if summary.is_some_and(|summary| {
                    self.admission(now, response, (summary.slot, summary.distinct)) == Admission::Withheld
                }) {
                    break;
                }
                self.candidates.remove(key);
                let verdict = self.judge_again(now, key, observation, host, lookup);
                if verdict.is_some() {
                    return verdict;
                }
            }
        }
        self.candidates.retry_at = now.after(RETRY_DELAY);
        None
    }

    /// Judges a source whose evidence is stored under `key` without a new packet; `observation` is its last probe.
    fn judge_again(
        &mut self,
        now: Timestamp,
        key: Hashed,
        observation: Observation,
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Option<Verdict> {
        let target = host.target(observation.source, observation.interface);
        let exempt = host.protection(observation.source, target).is_some();
        let response = self.settings.response_to(&observation);
        if exempt || self.bans.table.get(self.key_of(target, response), now.tick()).is_some() {
            return None;
        }
        for item in taken(self.sources.within(key, now.tick())).into_iter().flatten() {
            let (Some(protocol), port) = (item.protocol(), item.port()) else { continue };
            if !item.is_conclusive()
                && self.recent_ports.is_served(&observation, (protocol, port), host, lookup, now.tick())
            {
                self.sources.withdraw_evidence(key, protocol, port);
            }
        }
        let summary = self.sources.summary_of(key, now.tick())?;
        if !self.is_enough(now, target, &summary, host) {
            return None;
        }
        let probe = Probe { observation, target, distinct: summary.distinct, probes: summary.probes, fresh: false };
        let verdict = self.impose(now, key, &summary, probe, host);
        // Above the ceilings the source is judged again at its next probes.
        (!matches!(verdict, Verdict::Probe(_))).then_some(verdict)
    }

    /// Decides on `observation`, whose port is not in use as far as the engine knows. It counts against `target`, which
    /// has no ban; `known` is the target's key for [`Response::Block`].
    fn decide(
        &mut self,
        now: Timestamp,
        observation: &Observation,
        (target, known): (BanTarget, Hashed),
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Verdict {
        if let Some(protection) = host.protection(observation.source, target) {
            let report = self.exempt.count(now, observation.source);
            return Verdict::Exempt(Exempt { observation: *observation, protection, report });
        }
        let response = self.settings.response_to(observation);
        let target_key = if response == Response::Block { known } else { self.key_of(target, response) };
        if response != Response::Block
            && let Some(slot) = self.bans.table.get(target_key, now.tick())
        {
            let source = (observation.source, Some(observation.protocol));
            return self.bans.repeat(now, slot, source, (target, response));
        }
        // If the addresses belong to many hosts, the ports of each are counted separately: a client that fails at one
        // port of a few hosts is not a scanner.
        let apart = !host.local.is_exact() && observation.protocol != Protocol::Icmp;
        let key = if apart { target_key.key.toward(observation.destination).under(self.secret) } else { target_key };
        let (summary, fresh) = self.count(now, observation, key);
        let is_enough = self.is_enough(now, target, &summary, host);
        let mut counted = Counted { observation, target, response, known, apart, key, summary, is_enough, fresh };
        if !self.confirm(now, &mut counted, host, lookup) {
            return Verdict::Ignored(IgnoreReason::Open);
        }
        self.counters.probes += 1;
        self.weigh(now, &counted, host, lookup)
    }

    /// Counts `observation` as evidence under `key`. Returns the evidence there, and true if the port is a new one.
    #[inline]
    fn count(&mut self, now: Timestamp, observation: &Observation, key: Hashed) -> (SourceSummary, bool) {
        let port = observation.counted_port();
        let evidence = Evidence::new(now.tick(), observation.protocol, port, observation.class);
        let evidence = if observation.unverified { evidence.with_unverified_checksum() } else { evidence };
        self.sources.add(key, evidence, now.tick())
    }

    /// Drops the evidence that listeners, sockets and translations refute. Returns false if no evidence about the
    /// probe's own port is left.
    #[inline]
    fn confirm(
        &mut self,
        now: Timestamp,
        counted: &mut Counted<'_>,
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> bool {
        let Counted { observation, target, response, key, summary, is_enough, fresh, .. } = *counted;
        // A flood above the ceilings causes no more look-ups than ordinary probes do.
        let all = is_enough && self.admission(now, response, (summary.slot, summary.distinct)) != Admission::Withheld;
        let served = all && self.withdraw_served(observation, (key, summary.slot), host);
        let refuted = (all || fresh) && self.withdraw_refuted(now, observation, (key, summary.slot), all, lookup);
        if served || refuted {
            let (protocol, port) = (observation.protocol, observation.counted_port());
            if !self.sources.evidence(summary.slot).any(|item| item.is_about(protocol, port)) {
                return false;
            }
            let summary = self.sources.summary(summary.slot, now.tick()).unwrap_or(summary);
            counted.is_enough = self.is_enough(now, target, &summary, host);
            counted.summary = summary;
        }
        true
    }

    /// Weighs the evidence to which a probe was added: imposes a ban if it is enough, or if the probe completes a scan
    /// of many addresses. While the host settles, enough evidence leads to no ban yet.
    #[inline]
    fn weigh(&mut self, now: Timestamp, counted: &Counted<'_>, host: &Host, lookup: &mut impl PortLookup) -> Verdict {
        let Counted { observation, summary, is_enough, fresh, .. } = *counted;
        if is_enough && self.settling.is_current(now) {
            if fresh {
                self.settling.wait(*observation);
            }
            return Verdict::Probe(counted.probe());
        }
        if is_enough {
            return self.impose(now, counted.key, &summary, counted.probe(), host);
        }
        match self.count_spread(now, counted) {
            Some(first) if counted.apart => {
                let admission = self.admission(now, counted.response, (summary.slot, HOST_SCAN_HOSTS));
                if admission == Admission::Withheld {
                    return self.withhold(now, summary.slot, counted.probe());
                }
                let ports = Ports::collect([(observation.protocol, observation.port, observation.class)].into_iter());
                let ban = Ban { hosts: HOST_SCAN_HOSTS, ..self.ban(counted.probe(), ports, first) };
                return self.bans.begin(now, counted.response, ban, admission, (&self.settings, host));
            }
            Some(first) => {
                let own_port = (observation.protocol, observation.port);
                if self.recent_ports.look_up(observation, own_port, lookup, now.tick()) {
                    return Verdict::Ignored(IgnoreReason::Open);
                }
                let host_scan = SourceSummary { distinct: HOST_SCAN_PAIRS, first, ..summary };
                return self.impose(now, counted.key, &host_scan, counted.probe(), host);
            }
            None => {}
        }
        if fresh {
            self.distributed_scans.add(counted.known.hash, observation.counted_port(), now.tick());
        }
        Verdict::Probe(counted.probe())
    }

    /// Bans the source of `probe` for the evidence in `summary`, which is stored under `key`, if the ceilings have room.
    fn impose(&mut self, now: Timestamp, key: Hashed, summary: &SourceSummary, probe: Probe, host: &Host) -> Verdict {
        let SourceSummary { slot, distinct, first, .. } = *summary;
        let response = self.settings.response_to(&probe.observation);
        let admission = self.admission(now, response, (slot, distinct));
        if admission == Admission::Withheld {
            let (grade, pace) =
                (self.sources.grade(slot, self.threshold.forgiven), self.sources.pace(slot, now.tick()));
            self.candidates.enter(key, grade, pace, probe.observation);
            return self.withhold(now, slot, probe);
        }
        self.candidates.remove(key);
        let ports = self.sources.ports(slot);
        self.sources.forget(key);
        self.bans.begin(now, response, self.ban(probe, ports, first), admission, (&self.settings, host))
    }

    /// True if the evidence in `summary`, which counts against `target`, is enough for a ban.
    fn is_enough(&self, now: Timestamp, target: BanTarget, summary: &SourceSummary, host: &Host) -> bool {
        summary.conclusive || self.threshold.is_exceeded(target, summary, &self.sources, (&self.bans, host), now.tick())
    }

    /// Checks the evidence in `slot`, which is enough for a ban, against the ceilings.
    fn admission(&mut self, now: Timestamp, response: Response, (slot, distinct): (usize, u8)) -> Admission {
        if response != Response::Block {
            return Admission::FullBan;
        }
        let grade = self.sources.grade(slot, self.threshold.forgiven);
        let pace = self.sources.pace(slot, now.tick());
        let hides_ports = self.sources.evidence(slot).any(Evidence::hides_port);
        let request = BanRequest {
            grade,
            distinct: if hides_ports { self.sources.probes(slot) } else { distinct.into() },
            is_fast: grade == Grade::Proven || self.sources.span(slot) <= Tick::ticks(FAST_SCAN_SPAN),
            is_fastest: self.candidates.is_fastest(grade, pace),
        };
        self.bans.admission(request, now)
    }

    /// Withholds the ban of the source in `slot`; the source is judged again at its next probes.
    fn withhold(&mut self, now: Timestamp, slot: usize, probe: Probe) -> Verdict {
        if self.sources.withhold(slot) {
            self.counters.withheld += 1;
            self.bans.withhold(now);
        }
        Verdict::Probe(probe)
    }

    /// Adds the probed host, or the pair of own address and closed port, to those that the source has probed. Once there
    /// are enough for a scan, returns the time of the first probe.
    // Not inlined without this attribute. Most calls end at a check before `add_spread`.
    #[inline(always)]
    fn count_spread(&mut self, now: Timestamp, counted: &Counted<'_>) -> Option<Tick> {
        let Counted { observation, target, response, apart, fresh, summary, .. } = *counted;
        let address = fold(observation.destination);
        let (what, limit) = if apart {
            // Other segments may belong to connections that began before the capture.
            if !fresh || !matches!(observation.class, Class::Syn | Class::Sctp) {
                return None;
            }
            (address, HOST_SCAN_HOSTS)
        } else {
            if self.settling.is_current(now)
                || !matches!(observation.class, Class::Syn | Class::Udp | Class::Connect | Class::Sctp)
                || !self.sources.is_elsewhere(summary.slot, address)
            {
                return None;
            }
            (pair(observation), HOST_SCAN_PAIRS)
        };
        let item = Evidence::new(now.tick(), observation.protocol, what, observation.class);
        self.add_spread(TargetKey::new(target, response), item, limit)
    }

    /// Adds `item` to the hosts or pairs probed by the source with this key. Once there are `limit` of them, forgets them
    /// and returns the time of the first.
    #[inline(never)]
    fn add_spread(&mut self, source: TargetKey, item: Evidence, limit: u8) -> Option<Tick> {
        let key = source.over_hosts().under(self.secret);
        let (summary, _) = self.sources.add(key, item, item.at());
        if summary.distinct < limit {
            return None;
        }
        self.sources.forget(key);
        Some(summary.first)
    }

    fn ban(&self, probe: Probe, ports: Ports, first: Tick) -> Ban {
        let first = Timestamp::at(first.duration());
        let grade = Grade::from_classes(ports.iter().map(|(.., class)| class), self.threshold.forgiven);
        Ban { probe, ports, grade, hosts: 1, first, strikes: 0, expiry: self.settings.expiry, capped: false }
    }

    /// Drops the evidence about ports on which a service listens by now; true if there was any.
    fn withdraw_served(&mut self, observation: &Observation, (key, slot): (Hashed, usize), host: &Host) -> bool {
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
            self.withdraw_evidence(key, protocol, item.port());
        }
        served.first().is_some_and(Option::is_some)
    }

    /// Verifies unchecked evidence in the kernel and drops what it refutes; true if there was any. Before a ban
    /// (`all`), all of it is checked, including stale results; otherwise as much as the token bucket allows.
    fn withdraw_refuted(
        &mut self,
        now: Timestamp,
        observation: &Observation,
        (key, slot): (Hashed, usize),
        all: bool,
        lookup: &mut impl PortLookup,
    ) -> bool {
        if !all && !self.lookups.try_take(now) {
            return false;
        }
        let is_stale = |item: &Evidence| all && now.tick().since(item.at()) >= Tick::ticks(MAX_LOOKUP_AGE);
        let unchecked = taken(self.sources.evidence(slot).filter(|item| !item.is_looked_up() || is_stale(item)));
        let mut refuted = false;
        for item in unchecked.into_iter().flatten() {
            let (Some(protocol), Some(class)) = (item.protocol(), item.class()) else { continue };
            let real = class == Class::Connect || item.is_conclusive() || item.port() == 0;
            if !real
                && matches!(protocol, Protocol::Tcp | Protocol::Udp)
                && self.recent_ports.look_up(observation, (protocol, item.port()), lookup, now.tick())
            {
                self.withdraw_evidence(key, protocol, item.port());
                refuted = true;
                continue;
            }
            self.sources.verify(slot, item);
        }
        refuted
    }

    /// Drops the evidence about a port that turned out to be in use.
    fn withdraw_evidence(&mut self, key: Hashed, protocol: Protocol, port: u16) {
        self.sources.withdraw_evidence(key, protocol, port);
        if self.withdrawn.len() < MAX_EVIDENCE {
            self.withdrawn.push((protocol, port));
        }
    }
}

/// A pair of address and port. All related ports of an address are one, because a client that guesses tries each
/// address of a name.
fn pair(observation: &Observation) -> u16 {
    let port = if is_related_port(observation.protocol, observation.port) { 0 } else { observation.port };
    fold(observation.destination).wrapping_mul(31) ^ port
}

#[inline]
fn is_monitored_interface(interface: u32, host: &Host) -> bool {
    !host.loopback.contains(&interface) && (host.interfaces.is_empty() || host.interfaces.contains(&interface))
}
