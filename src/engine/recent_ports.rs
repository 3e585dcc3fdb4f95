//! Remembers which ports were in use recently. A late client of a service that has just stopped, or a late answer to a
//! socket that has just closed, is not a probe. Records come only from the kernel's view of this host's own sockets and
//! translations, for one address, protocol and port, and for a limited time. Ports are looked up in the kernel before
//! they count as evidence, and when packets leave from an own address.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::host::Host;
use super::key::HashKey;
use super::listeners::{Service, unspecified};
use super::observation::Observation;
use super::port_lookup::{PortLookup, PortUse};
use super::verdict::IgnoreReason;
use crate::types::{PortSet, Protocol, Tick, Timestamp, TokenBucket};
use crate::wire::{Packet, TcpFlags, Transport};

/// Time for which a port counts as open after its listener has closed, or after this host has sent from it. TIME_WAIT
/// is 60 s on Linux, a resolver's last retry comes within 30 s, and clients of a restarting service return within a
/// minute; this is twice the maximum.
pub const RECENT_USE: Duration = Duration::from_secs(120);

/// Time for which a port counts as open after destination NAT forwarded a connection to its service, which appears in
/// no socket table.
const PUBLISHED: Duration = Duration::from_secs(24 * 3600);

/// Maximum number of such ports. A rule that redirects every port of some clients publishes nothing to other sources,
/// but those clients could record a port with each connection.
pub const MAX_PUBLISHED: usize = 64;

/// Socket look-ups per second caused by packets that leave from an own address. Such a packet proves nothing, because
/// it may have been forwarded. Above this rate a port is only looked up before it counts against a source.
const HINTS_PER_SECOND: u32 = 500;

/// The recently used ports. Two tables ensure that flows, which other hosts can create in any number, do not evict
/// services.
pub(super) struct RecentPorts {
    /// Stopped services, and services published by DNAT.
    services: PortTable,
    /// Ports from which this host has sent.
    own_use: PortTable,
    /// [`RECENT_USE`].
    span: Duration,
    hints: TokenBucket,
    /// Number of look-ups before evidence counted.
    pub(super) lookups: u64,
}

impl RecentPorts {
    pub(super) fn new(secret: HashKey) -> Self {
        Self {
            services: PortTable::new(secret),
            own_use: PortTable::new(secret),
            span: RECENT_USE,
            hints: TokenBucket::new(HINTS_PER_SECOND, Duration::from_secs(1)),
            lookups: 0,
        }
    }

    pub(super) fn remember_for(&mut self, span: Duration) {
        self.span = span;
    }

    /// True if `own` was in use recently, for any peer or for `peer`.
    fn was_in_use(&self, own: Service, peer: IpAddr, now: Tick) -> bool {
        let Self { services, own_use, .. } = self;
        let anywhere = || Service { address: unspecified(own.address), ..own };
        services.has(own.port, now) && (services.until(own, None) > now || services.until(anywhere(), None) > now)
            || own_use.has(own.port, now) && (own_use.until(own, None) > now || own_use.until(own, Some(peer)) > now)
    }

    /// Returns the reason why `observation` is not evidence, if this host uses its port.
    #[inline]
    pub(super) fn use_of(&self, observation: &Observation, host: &Host, now: Tick) -> Option<IgnoreReason> {
        let Observation { destination, protocol, port, .. } = *observation;
        // Also for flags that no TCP stack sends: the segments of a real connection may be mangled on the way. Also for
        // decoys: a service may have started since, and its first clients must not count.
        if host.listens(protocol, destination, port, observation.interface) {
            return Some(IgnoreReason::Open);
        }
        let own = Service { address: destination, protocol, port };
        if self.was_in_use(own, observation.source, now) {
            return Some(IgnoreReason::RecentlyOpen);
        }
        host.services.contains(protocol, destination, port).then_some(IgnoreReason::RememberedService)
    }

    /// True if a port of this host is in use now, regardless of its state when the source of `observation` probed it.
    /// The evidence stores only the port, so a listener on any address of this host counts; everything else is checked
    /// for the destination of `observation`.
    pub(super) fn is_served(
        &mut self,
        observation: &Observation,
        (protocol, port): (Protocol, u16),
        host: &Host,
        lookup: &mut impl PortLookup,
        now: Tick,
    ) -> bool {
        let Some(listeners) = host.listeners(protocol) else { return false };
        let own = Service { address: observation.destination, protocol, port };
        listeners.is_open_anywhere(port)
            || host.services.contains(protocol, observation.destination, port)
            || self.was_in_use(own, observation.source, now)
            || self.look_up(observation, (protocol, port), lookup, now)
    }

    /// Asks the kernel whether a port at the destination of `observation` is in use, and records the result.
    pub(super) fn look_up(
        &mut self,
        observation: &Observation,
        (protocol, port): (Protocol, u16),
        lookup: &mut impl PortLookup,
        now: Tick,
    ) -> bool {
        self.lookups += 1;
        let source = SocketAddr::new(observation.source, observation.source_port);
        let destination = SocketAddr::new(observation.destination, port);
        let found = lookup.port_use(protocol, source, destination, observation.interface);
        let own = Service { address: observation.destination, protocol, port };
        self.record(found, own, observation.source, now);
        !matches!(found, PortUse::Closed | PortUse::Unknown)
    }

    /// Looks up the source port of an outgoing packet, and records the result. The packet itself proves nothing:
    /// traffic between guests of a bridge and forwarded traffic leave in the same way, with any source. Returns the
    /// port if it is in use and the packet may answer a request. Only `watched` ports are looked up.
    pub(super) fn learn(
        &mut self,
        now: Timestamp,
        packet: &Packet,
        host: &Host,
        watched: impl Fn(Protocol, u16) -> bool,
        lookup: &mut impl PortLookup,
    ) -> Option<Service> {
        if !host.local.is_exact() || !host.local.contains(packet.source) {
            return None;
        }
        // A SYN/ACK or a datagram may answer a client. A reset means that the port is closed.
        let (protocol, port, peer_port, may_answer) = match packet.transport {
            Transport::Tcp { source_port, destination_port, flags, .. } if !flags.has(TcpFlags::RST) => {
                (Protocol::Tcp, source_port, destination_port, flags.has(TcpFlags::SYN | TcpFlags::ACK))
            }
            Transport::Udp { source_port, destination_port } => (Protocol::Udp, source_port, destination_port, true),
            _ => return None,
        };
        let interface = host.receiver(packet.interface);
        if !watched(protocol, port) || host.listens(protocol, packet.source, port, interface) {
            return None;
        }
        let (own, peer) = (Service { address: packet.source, protocol, port }, packet.destination);
        // While a record is valid for at least half of the span, no new look-up is needed.
        if !self.was_in_use(own, peer, now.tick().plus(Tick::ticks(self.span / 2))) {
            if !self.hints.try_take(now) {
                return None;
            }
            let [own_end, peer_end] = [(own.address, port), (peer, peer_port)].map(SocketAddr::from);
            let found = match lookup.port_use(protocol, peer_end, own_end, interface) {
                PortUse::Published { established } => PortUse::Published { established: established || may_answer },
                // The kernel gives no better information than the packet, which may be forged. Therefore the port
                // counts as used for this peer only.
                PortUse::Unknown if may_answer => PortUse::Flow,
                found => found,
            };
            if !self.record(found, own, peer, now.tick()) {
                return None;
            }
        }
        may_answer.then_some(own)
    }

    /// The ports recently in use for any peer, at any address.
    pub(super) fn ports(&self, protocol: Protocol, now: Tick) -> PortSet {
        let entries = self.services.entries.iter().chain(&self.own_use.entries);
        let for_all = entries.filter(|entry| entry.until > now && entry.peer.is_none());
        for_all.filter(|entry| entry.own.protocol == protocol).map(|entry| entry.own.port).collect()
    }

    /// Records what a look-up found about a flow between `own` and `peer`. False if nothing is recorded, so that the
    /// next flow is looked up again.
    fn record(&mut self, found: PortUse, own: Service, peer: IpAddr, now: Tick) -> bool {
        match found {
            PortUse::Open => self.used(own, now),
            PortUse::Flow => self.used_with(own, peer, now),
            PortUse::Published { established: true } => self.published(own, peer, now),
            PortUse::Published { .. } | PortUse::Translated | PortUse::Closed | PortUse::Unknown => return false,
        }
        true
    }

    /// Records that a socket on `own` accepted packets from any peer.
    fn used(&mut self, own: Service, now: Tick) {
        self.own_use.insert(own, None, now, Tick::ticks(self.span));
    }

    /// Records that a flow between `own` and `peer` was in use.
    fn used_with(&mut self, own: Service, peer: IpAddr, now: Tick) {
        self.own_use.insert(own, Some(peer), now, Tick::ticks(self.span));
    }

    /// Records that destination NAT forwarded a flow of `peer` from `own` to a service. Above [`MAX_PUBLISHED`] ports,
    /// only `peer` is excused.
    fn published(&mut self, own: Service, peer: IpAddr, now: Tick) {
        if self.published_ports(now).filter(|known| *known != own).count() < MAX_PUBLISHED {
            self.services.insert(own, None, now, Tick::ticks(PUBLISHED));
        } else {
            self.used_with(own, peer, now);
        }
    }

    /// The ports that destination NAT published within the last day.
    pub(super) fn published_ports(&self, now: Tick) -> impl Iterator<Item = Service> + '_ {
        let longest_other = now.plus(Tick::ticks(self.span));
        self.services.entries.iter().filter(move |entry| entry.until > longest_other).map(|entry| entry.own)
    }

    /// Records that `own` had a service until recently, and that its clients may still connect for `left`.
    pub(super) fn served(&mut self, own: Service, now: Tick, left: Duration) {
        self.services.insert(own, None, now, Tick::ticks(left.min(RECENT_USE)));
    }

    /// Records a change of the listeners: closed ones were open until now. Only `watched` ports are recorded.
    pub(super) fn listeners_changed(
        &mut self,
        (old, new): (&Host, &Host),
        watched: impl Fn(Protocol, u16) -> bool,
        now: Tick,
    ) {
        let span = Tick::ticks(self.span);
        for (protocol, before, after) in [(Protocol::Tcp, &old.tcp, &new.tcp), (Protocol::Udp, &old.udp, &new.udp)] {
            for (address, port) in before.gone(after).filter(|(_, port)| watched(protocol, *port)) {
                self.services.insert(Service { address, protocol, port }, None, now, span);
            }
            // A port with a listener was not published by DNAT, so its long expiry is shortened. No expiry is extended
            // here, because a port open on one address must not look open on the others.
            let limit = now.plus(span);
            let listens = |RecentUse { own, until, .. }: &&mut RecentUse| {
                *until > limit && own.protocol == protocol && after.contains(own.address, own.port)
            };
            self.services.entries.iter_mut().filter(listens).for_each(|entry| entry.until = limit);
        }
    }
}

/// A port table of fixed size. A full bucket evicts the entry that would expire first.
struct PortTable {
    entries: Vec<RecentUse>,
    /// The latest end of any record of a port, at the port's number modulo the length. Most probed ports have none, and
    /// need no hash.
    ends: Vec<Tick>,
    secret: HashKey,
}

#[derive(Clone, Copy)]
struct RecentUse {
    own: Service,
    /// The only peer with which the port was used; `None`: any.
    peer: Option<IpAddr>,
    /// [`Tick`] 0 if the entry is free.
    until: Tick,
}

/// Entries per bucket. With 512 buckets the table holds 4,096 ports; the built-in lists of monitored ports have about a
/// thousand.
const WAYS: usize = 8;
const BUCKETS: usize = 512;
const CAPACITY: usize = WAYS * BUCKETS;

impl PortTable {
    fn new(secret: HashKey) -> Self {
        let own = Service { address: Ipv4Addr::UNSPECIFIED.into(), protocol: Protocol::Tcp, port: 0 };
        let free = RecentUse { own, peer: None, until: Tick(0) };
        Self { entries: vec![free; CAPACITY], ends: vec![Tick(0); CAPACITY], secret }
    }

    /// The first entry of the bucket.
    fn bucket(&self, own: Service, peer: Option<IpAddr>) -> usize {
        let mut hasher = SipHasher13::new_with_keys(self.secret.0, self.secret.1);
        let mut write = |address: IpAddr| match address {
            IpAddr::V4(v4) => hasher.write_u32(v4.to_bits()),
            IpAddr::V6(v6) => hasher.write_u128(v6.to_bits()),
        };
        write(own.address);
        peer.into_iter().for_each(write);
        hasher.write_u32(u32::from(own.port) << 8 | own.protocol as u32);
        usize::try_from(hasher.finish() % BUCKETS as u64).unwrap_or(0) * WAYS
    }

    /// False if no record of `port` is valid at `now`.
    #[inline]
    fn has(&self, port: u16, now: Tick) -> bool {
        self.ends.get(usize::from(port) % CAPACITY).is_some_and(|end| *end > now)
    }

    /// Time until which the port counts as open; [`Tick`] 0 if it is not recorded.
    fn until(&self, own: Service, peer: Option<IpAddr>) -> Tick {
        let bucket = self.entries.iter().skip(self.bucket(own, peer)).take(WAYS);
        let same = bucket.filter(|entry| entry.own == own && entry.peer == peer);
        same.map(|entry| entry.until).max().unwrap_or_default()
    }

    fn insert(&mut self, own: Service, peer: Option<IpAddr>, now: Tick, span: Tick) {
        let bucket = self.bucket(own, peer);
        let until = now.plus(span);
        let ways = || bucket..bucket + WAYS;
        let Some(entries) = self.entries.get_mut(ways()) else { return };
        let known = entries.iter().position(|entry| entry.own == own && entry.peer == peer);
        let place = known.or_else(|| (0..WAYS).min_by_key(|way| entries.get(*way).map(|entry| entry.until)));
        if let Some(entry) = place.and_then(|place| entries.get_mut(place)) {
            let until = if known.is_some() { until.max(entry.until) } else { until };
            *entry = RecentUse { own, peer, until };
            self.ends.get_mut(usize::from(own.port) % CAPACITY).into_iter().for_each(|end| *end = until.max(*end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(port: u16) -> Service {
        Service { address: "192.0.2.1".parse().unwrap(), protocol: Protocol::Udp, port }
    }

    fn peer(n: u32) -> IpAddr {
        IpAddr::from((0x0b00_0000 + n).to_be_bytes())
    }

    #[test]
    fn remote_flows_evict_no_service() {
        let mut recent = RecentPorts::new(HashKey(1, 2));
        let now = Tick(20);
        (1..=100).for_each(|port| recent.served(own(port), now, RECENT_USE));
        (0..200_000).for_each(|n| recent.used_with(own(u16::try_from(1_000 + n % 50_000).unwrap()), peer(n), now));
        assert!((1..=100).all(|port| recent.was_in_use(own(port), peer(0), now)), "all services are still remembered");
        assert_eq!(recent.ports(Protocol::Udp, now).to_string(), "1-100", "a flow opens its port only to its peer");
        assert!(recent.own_use.entries.len() == CAPACITY, "the table does not grow");
    }

    #[test]
    fn published_ports_are_bounded() {
        let mut recent = RecentPorts::new(HashKey(1, 2));
        let now = Tick(20);
        (1..=1_000).for_each(|port| recent.published(own(port), peer(7), now));
        assert_eq!(recent.published_ports(now).count(), MAX_PUBLISHED);
        assert_eq!(recent.ports(Protocol::Udp, now).to_string(), "1-64");
        assert!((1..=64).all(|port| recent.was_in_use(own(port), peer(8), now)));
        assert!(
            (65..=1_000).all(|port| !recent.was_in_use(own(port), peer(8), now)),
            "one client's redirection opens no more"
        );
        assert!(recent.was_in_use(own(1_000), peer(7), now), "its own flow is excused");
        (1..=64).for_each(|port| recent.published(own(port), peer(8), now.plus(Tick(1))));
        assert!(recent.was_in_use(own(1), peer(9), now.plus(Tick::ticks(PUBLISHED))), "a known record is renewed");
    }

    #[test]
    fn ports_that_share_an_end_are_distinct() {
        let mut recent = RecentPorts::new(HashKey(1, 2));
        let (first, second) = (own(7), own(7 + u16::try_from(CAPACITY).unwrap()));
        recent.used(first, Tick(1));
        recent.used(second, Tick(100));
        let end = Tick(1).plus(Tick::ticks(RECENT_USE));
        assert!(recent.was_in_use(first, peer(1), Tick(2)) && recent.was_in_use(second, peer(1), Tick(100)));
        assert!(!recent.was_in_use(first, peer(1), end) && recent.was_in_use(second, peer(1), end));
    }

    #[test]
    fn full_bucket_evicts_earliest_end() {
        let mut table = PortTable::new(HashKey(1, 2));
        let bucket = table.bucket(own(1), None);
        let ports: Vec<u16> = (1..).filter(|port| table.bucket(own(*port), None) == bucket).take(WAYS + 1).collect();
        for (age, port) in (1..).zip(&ports) {
            table.insert(own(*port), None, Tick(age), Tick(100));
        }
        let [first, rest @ ..] = ports.as_slice() else { panic!("no ports") };
        assert_eq!(table.until(own(*first), None), Tick(0));
        assert!(rest.iter().all(|port| table.until(own(*port), None) > Tick(100)));
    }

    #[test]
    fn flow_counts_only_for_its_peer() {
        let mut recent = RecentPorts::new(HashKey(1, 2));
        recent.used_with(own(7), peer(1), Tick(1));
        let elsewhere = Service { address: "192.0.2.2".parse().unwrap(), ..own(7) };
        let other_protocol = Service { protocol: Protocol::Tcp, ..own(7) };
        assert!(recent.was_in_use(own(7), peer(1), Tick(1)));
        assert!(!recent.was_in_use(own(7), peer(2), Tick(1)));
        assert!(
            !recent.was_in_use(elsewhere, peer(1), Tick(1)) && !recent.was_in_use(other_protocol, peer(1), Tick(1))
        );
        assert!(!recent.was_in_use(own(7), peer(1), Tick(1).plus(Tick::ticks(RECENT_USE))));
    }
}
