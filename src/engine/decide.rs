//! One probe to a verdict: whether anybody has a reason for it, what it says together with what is held against its source, and
//! whether the kernel knows better.

use std::net::{IpAddr, SocketAddr};

use super::key::{Hashed, Key, fold};
use super::observation::is_unicast;
use super::sources::{EVIDENCE, Evidence, ProbeCount};
use super::{
    BLOCKING, Ban, Class, Engine, Exempt, Host, IgnoreReason, Notice, Observation, PortLookup, Ports, Probe,
    Protection, Verdict,
};
use crate::types::{BanTarget, Protocol, Tick, Timestamp};

/// Closed ports of this many hosts, one each, are a scan of the network. Clients of servers that are down touch a few;
/// scanners touch them all. As many as the table remembers.
const SWEPT_HOSTS: u8 = 16;
const _: () = assert!(SWEPT_HOSTS as usize == EVIDENCE);

impl Engine {
    /// Judges a probe of somebody whom nothing stands against; `known` is his key in the lane that blocks.
    pub(super) fn judge(
        &mut self,
        now: Timestamp,
        sighting: Observation,
        known: Hashed,
        host: &Host,
        oracle: &mut impl PortLookup,
    ) -> Verdict {
        let Observation { destination, protocol, port, .. } = sighting;
        if !is_unicast(sighting.source) {
            return Verdict::Ignored(IgnoreReason::NoSource);
        }
        if !host.local.contains(destination) {
            return Verdict::Ignored(IgnoreReason::NotOurs);
        }
        let monitored = match protocol {
            Protocol::Tcp => self.settings.tcp.ports.contains(port) || self.hides_port(&sighting),
            Protocol::Udp => self.settings.udp.ports.contains(port),
            Protocol::Sctp => self.settings.sctp,
            Protocol::Icmp => self.settings.icmp,
        };
        if !monitored {
            return Verdict::Ignored(IgnoreReason::NotMonitored);
        }
        // This holds for what no stack sends too: the segments of a real connection may be mangled on their way.
        if host.listens(protocol, destination, port) {
            return Verdict::Ignored(IgnoreReason::Open);
        }
        if self.memory.holds(protocol, port, now.tick()) {
            return Verdict::Ignored(IgnoreReason::RecentlyOpen);
        }
        self.count(now, sighting, known, host, oracle)
    }

    fn hides_port(&self, sighting: &Observation) -> bool {
        !sighting.has_port() && !self.settings.tcp.ports.is_empty()
    }

    /// Counts `sighting` against its source, whose key in the lane that blocks is `known`.
    pub(super) fn count(
        &mut self,
        now: Timestamp,
        sighting: Observation,
        known: Hashed,
        host: &Host,
        oracle: &mut impl PortLookup,
    ) -> Verdict {
        let own = host.local.is_exact() && host.local.contains(sighting.source);
        let protection = if own { Some(Protection::OwnAddress) } else { host.allow.protects(sighting.source) };
        if let Some(protection) = protection {
            let report = self.spared.observe(now, sighting.source);
            return Verdict::Exempt(Exempt { sighting, protection, report });
        }
        let subject = BanTarget::of(sighting.source);
        let lane = self.lane(sighting.protocol);
        let key = if lane == BLOCKING { known } else { self.named(subject, lane) };
        if lane != BLOCKING
            && let Some((slot, standing)) = self.judged.get(key, now.tick())
        {
            return Verdict::Repeated(self.repeat(now, slot, standing, sighting.source, subject, lane));
        }
        let port = evidence_port(&sighting);
        let evidence = Evidence::new(now.tick(), sighting.protocol, port, sighting.class);
        // Where the addresses are many hosts', a client that fails at one port here and another there is no scanner.
        let apart = !host.local.is_exact() && sighting.protocol != Protocol::Icmp;
        let held = if apart { key.key.toward(sighting.destination).under(self.secret) } else { key };
        let mut tally = self.suspects.observe(held, evidence, now.tick());
        self.counters.evicted += u64::from(tally.evicted);
        let trigger = self.settings.scan_trigger;
        let enough = |tally: &ProbeCount| tally.conclusive || tally.distinct > trigger;
        let mut condemned = enough(&tally);
        if (condemned || tally.fresh) && !self.confirm(now, held, tally.slot, &sighting, condemned, oracle) {
            // Some of the evidence was none: what is left counts.
            self.suspects.recount(held, &mut tally, now.tick());
            if !self.suspects.evidence(tally.slot).any(|item| item.is_about(sighting.protocol, port)) {
                return Verdict::Ignored(IgnoreReason::Open);
            }
            condemned = enough(&tally);
        }
        self.counters.probes += 1;
        let probe = Probe { sighting, subject, distinct: tally.distinct, probes: tally.probes, fresh: tally.fresh };
        if !condemned {
            // Other segments than these also come from connections that began before the capture did.
            if apart
                && tally.fresh
                && matches!(sighting.class, Class::Syn | Class::Sctp)
                && let Some(first) = self.swept_hosts(now, key.key, &sighting)
            {
                let ports = Ports::collect([(sighting.protocol, sighting.port, sighting.class)].into_iter());
                let ban = Ban { hosts: SWEPT_HOSTS, ..self.ban(probe, ports, first) };
                return self.condemn(now, lane, ban, host);
            }
            if tally.fresh
                && let Some(sweep) = self.sweeps.observe(known.hash, port, now.tick())
                && self.notices.len() < self.notices.capacity()
            {
                self.notices.push_back(Notice::DistributedScan(sweep));
            }
            return Verdict::Probe(probe);
        }
        let items = self.suspects.evidence(tally.slot);
        let ports = Ports::collect(items.filter_map(|item| Some((item.protocol()?, item.port(), item.class()?))));
        self.suspects.forget(held);
        self.condemn(now, lane, self.ban(probe, ports, tally.first), host)
    }

    /// Where the addresses are many hosts', one port each is a scan, too, once it was enough of them: when the first of
    /// [`SWEPT_HOSTS`] was touched.
    fn swept_hosts(&mut self, now: Timestamp, key: Key, sighting: &Observation) -> Option<Tick> {
        let host = Evidence::new(now.tick(), sighting.protocol, fold(sighting.destination), sighting.class);
        let key = key.over_hosts().under(self.secret);
        let tally = self.suspects.observe(key, host, now.tick());
        self.counters.evicted += u64::from(tally.evicted);
        if tally.distinct < SWEPT_HOSTS {
            return None;
        }
        self.suspects.forget(key);
        Some(tally.first)
    }

    fn ban(&self, probe: Probe, ports: Ports, first: Tick) -> Ban {
        let first = Timestamp::at(first.duration());
        Ban { probe, ports, hosts: 1, first, strikes: 0, expiry: self.settings.expiry, capped: false }
    }

    /// Asks the kernel about evidence that nobody has checked: all of it before a source is condemned, and a fresh probe
    /// where the budget allows. False where some of it was none.
    fn confirm(
        &mut self,
        now: Timestamp,
        key: Hashed,
        slot: usize,
        sighting: &Observation,
        all: bool,
        oracle: &mut impl PortLookup,
    ) -> bool {
        if !all && !self.lookups.take(now) {
            return true;
        }
        let mut unchecked = [None; EVIDENCE];
        let items = self.suspects.evidence(slot).filter(|item| !item.is_verified());
        unchecked.iter_mut().zip(items).for_each(|(place, item)| *place = Some(item));
        let mut sound = true;
        for item in unchecked.into_iter().flatten() {
            let (Some(protocol), Some(class)) = (item.protocol(), item.class()) else { continue };
            let real = class == Class::Connect || class.is_conclusive() || item.port() == 0;
            if !real && matches!(protocol, Protocol::Tcp | Protocol::Udp) {
                self.counters.lookups += 1;
                let source = SocketAddr::new(sighting.source, sighting.source_port);
                let destination = SocketAddr::new(sighting.destination, item.port());
                if oracle.in_use(protocol, source, destination, sighting.interface) {
                    self.memory.used(protocol, item.port(), now.tick());
                    self.suspects.forgive(key, protocol, item.port());
                    sound = false;
                    continue;
                }
            }
            self.suspects.verify(slot, item);
        }
        sound
    }
}

/// ICMP has no ports: what counts there is how many own addresses are asked, so the address stands for the port.
fn evidence_port(sighting: &Observation) -> u16 {
    if sighting.protocol != Protocol::Icmp {
        return sighting.port;
    }
    match sighting.destination {
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
