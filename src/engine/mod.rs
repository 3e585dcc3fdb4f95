//! Detects scans: turns packets into verdicts on their sources. Pure: no I/O, no clock, no randomness. Time and hash
//! keys are arguments, and the same input gives the same output. Nothing here allocates after [`Engine::new`].
//!
//! A packet counts against its source only if all of this holds: it is unicast to an address of this host; the port is
//! monitored; nothing listens there or did recently; it is not an answer to a flow that this host started; the source
//! is neither this host nor protected. A flag combination that no TCP stack sends is enough for a ban; anything else
//! needs distinct ports within a window.

mod acceptance;
mod allow;
mod ban_table;
mod bans;
mod ceiling;
mod class;
mod closed;
mod decide;
mod distributed_scan;
mod exempt;
mod expiry_jitter;
mod explain;
mod host;
mod key;
mod known_peers;
mod listeners;
mod observation;
mod port_lookup;
mod prefix_bans;
mod recent_ports;
mod related_ports;
mod settings;
mod sources;
mod strikes;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod verdict;
mod waiting;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use acceptance::is_unicast;
pub use allow::{AllowList, Protection};
pub use ban_table::{ActiveBan, Standing};
pub use ceiling::RecentBans;
pub use class::{Class, Grade};
pub use distributed_scan::DistributedScan;
pub use explain::{Explanation, Suspicion};
pub use host::{Host, Link, LinkId, Local, ReversePath};
pub use key::{HashKey, Response};
pub use known_peers::PEER_THRESHOLD;
pub use listeners::{Listeners, Service, ServiceMemory};
pub use observation::Observation;
pub use port_lookup::{NoLookup, PortLookup, PortUse};
pub use prefix_bans::MaxPrefix;
pub use recent_ports::{MAX_PUBLISHED, RECENT};
pub use related_ports::RelatedPorts;
pub use settings::{Bounds, Counters, Settings, Watch};
pub use sources::EVIDENCE;
pub use strikes::{LastBan, StrikeHistory};
pub use verdict::{Ban, Exempt, IgnoreReason, Notice, Ports, Probe, Repeated, Verdict};

pub use crate::config::Escalation;
use crate::types::{BanTarget, Protocol, Timestamp, TokenBucket};
use crate::wire::{Checksum, Delivery, Packet, TcpFlags, Transport};
use bans::Bans;
use distributed_scan::DistributedScans;
use exempt::ExemptSources;
use key::{Hashed, Key};
use known_peers::KnownPeers;
use observation::protocol_of;
use recent_ports::RecentPorts;
use sources::SourceTable;
use waiting::{Candidates, Settling};

/// Maximum duration of a ban above a ceiling.
pub const CAPPED_BAN: Duration = Duration::from_secs(300);

/// Socket look-ups per second that verify fresh probes. Each takes a few microseconds. Above this rate evidence is only
/// verified before a ban.
const LOOKUPS_PER_SECOND: u32 = 1_000;

/// Socket look-ups per second caused by packets that leave from an own address. Such a packet proves nothing, because
/// it may have been forwarded. Above this rate a port is only looked up before it counts against a source.
const HINTS_PER_SECOND: u32 = 500;

/// Set look-ups per second that verify the bans of sources that keep sending. Limits the cost of many blocked sources;
/// each is checked within a few seconds.
const VERIFIED_PER_SECOND: u32 = 500;

pub struct Engine {
    settings: Settings,
    bounds: Bounds,
    secret: HashKey,
    sources: SourceTable,
    bans: Bans,
    recent_ports: RecentPorts,
    distributed_scans: DistributedScans,
    exempt: ExemptSources,
    settling: Settling,
    candidates: Candidates,
    known_peers: KnownPeers,
    lookups: TokenBucket,
    hints: TokenBucket,
    verifications: TokenBucket,
    notices: VecDeque<Notice>,
    /// Evidence refuted by the look-ups of the last packet.
    forgiven: Vec<(Protocol, u16)>,
    latest: Timestamp,
    counters: Counters,
}

impl Engine {
    /// Creates an engine with empty tables. `secret` must be unpredictable to attackers.
    pub fn new(settings: Settings, secret: HashKey) -> Self {
        Self {
            bounds: Bounds::default(),
            secret,
            sources: SourceTable::new(settings.max_sources, settings.window, secret),
            bans: Bans::new(&settings, secret),
            recent_ports: RecentPorts::new(secret),
            distributed_scans: DistributedScans::new(),
            exempt: ExemptSources::new(),
            settling: Settling::new(),
            candidates: Candidates::new(),
            known_peers: KnownPeers::default(),
            lookups: TokenBucket::new(LOOKUPS_PER_SECOND, Duration::from_secs(1)),
            hints: TokenBucket::new(HINTS_PER_SECOND, Duration::from_secs(1)),
            verifications: TokenBucket::new(VERIFIED_PER_SECOND, Duration::from_secs(1)),
            notices: VecDeque::with_capacity(16),
            forgiven: Vec::with_capacity(EVIDENCE),
            latest: Timestamp::default(),
            counters: Counters::default(),
            settings,
        }
    }

    /// Replaces the built-in limits. For simulations.
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self.recent_ports.remember_for(bounds.recent);
        self
    }

    /// Applies new settings. The table sizes stay as they are; a ban in force keeps its end.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.sources.set_window(settings.window);
        self.bans.reconfigure(&settings);
        // Their next probes are judged by the new settings.
        self.candidates = Candidates::new();
        let (max_sources, max_judged) = (self.settings.max_sources, self.settings.max_judged);
        self.settings = Settings { max_sources, max_judged, ..settings };
    }

    /// Stops blocking: further scans are only logged. Existing bans stay in force.
    pub fn log_only(&mut self) {
        self.settings.tcp.response = Response::Log;
        self.settings.udp.response = Response::Log;
    }

    /// Judges one packet. If `now` is earlier than the latest time seen, the latest one is used.
    pub fn observe(&mut self, now: Timestamp, packet: &Packet, host: &Host, lookup: &mut impl PortLookup) -> Verdict {
        let now = self.clock(now);
        self.counters.packets += 1;
        self.forgiven.clear();
        if packet.interface != 0 && !is_watched(packet.interface, host) {
            return Verdict::Ignored(IgnoreReason::OtherInterface);
        }
        if packet.delivery == Delivery::Outgoing {
            self.learn(now, packet, host, lookup);
            return Verdict::Ignored(IgnoreReason::Own);
        }
        // Sockets and neighbours belong to the bridge, not to its port.
        let bridge = host.bridge(packet.interface);
        let interface = bridge.unwrap_or(packet.interface);
        let target = host.target(packet.source, interface);
        let known = self.key_of(target, Response::Block);
        if let Some((target, slot)) = self.recognise(now, packet.source, (target, known), host) {
            let source = (packet.source, protocol_of(&packet.transport));
            return Verdict::Repeated(self.repeat(now, slot, source, (target, Response::Block)));
        }
        // Used in place: a copy could only begin when all its fields have been stored.
        let mut observed = Observation::from_packet(packet);
        let Some(observation) = &mut observed else {
            return Verdict::Ignored(IgnoreReason::NoRequest);
        };
        observation.interface = interface;
        observation.bridge_port = if bridge.is_some() { packet.interface } else { 0 };
        // The next two checks change no state, so that a packet with a wrong checksum has no effect.
        let refusal = acceptance::refusal(packet, interface, host);
        if let Some(reason) = refusal.or_else(|| self.ignored_port(now, observation, host)) {
            return Verdict::Ignored(reason);
        }
        match acceptance::verify(packet, interface, host, lookup) {
            Ok(checksum) => observation.unverified = checksum != Checksum::Good && observation.class != Class::Fragment,
            Err(reason) => return Verdict::Ignored(reason),
        }
        self.judge(now, observation, (target, known), host, lookup)
    }

    /// Judges a connection or datagram that a decoy listener accepted. `lookup` must report a decoy's port as not in
    /// use.
    pub fn observe_decoy(
        &mut self,
        now: Timestamp,
        observation: Observation,
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Verdict {
        let now = self.clock(now);
        self.counters.packets += 1;
        self.forgiven.clear();
        let target = host.target(observation.source, observation.interface);
        let known = self.key_of(target, Response::Block);
        if let Some((target, slot)) = self.recognise(now, observation.source, (target, known), host) {
            let source = (observation.source, Some(observation.protocol));
            return Verdict::Repeated(self.repeat(now, slot, source, (target, Response::Block)));
        }
        if !is_unicast(observation.destination) || !host.local.contains(observation.destination) {
            return Verdict::Ignored(IgnoreReason::NotUnicast);
        }
        if let Some(reason) = self.port_in_use(now, &observation, host) {
            return Verdict::Ignored(reason);
        }
        self.judge(now, &observation, (target, known), host, lookup)
    }

    /// Ports of the last packet's source that counted as evidence and turned out to be in use.
    pub fn forgiven(&self) -> &[(Protocol, u16)] {
        &self.forgiven
    }

    /// The ports that destination NAT publishes, as far as connections within the last day have shown them.
    pub fn published(&self, now: Timestamp) -> impl Iterator<Item = Service> + '_ {
        self.recent_ports.published_ports(self.latest.max(now).tick())
    }

    /// The ports that are evidence against `target`, of protocols that block.
    pub fn evidence(&self, now: Timestamp, target: BanTarget) -> impl Iterator<Item = (Protocol, u16)> + '_ {
        let now = self.latest.max(now).tick();
        let evidence = self.sources.within(self.key_of(target, Response::Block), now);
        evidence.filter_map(|item| Some((item.protocol()?, item.port())))
    }

    /// Records that the kernel no longer blocks `target`: the ban failed, was lifted, or its set was flushed. A
    /// ban lifted before its end does not count as a strike.
    pub fn lift(&mut self, target: BanTarget) -> bool {
        self.bans.lift(target, self.latest.tick())
    }

    /// Records that the kernel no longer blocks any source: its set was flushed or its table removed. Strikes stay.
    pub fn lift_all(&mut self) {
        self.bans.lift_all();
    }

    /// Records that the kernel holds `ban`, added by another program or by an earlier run. False if it is this engine's
    /// own ban, which stays as it is.
    pub fn adopt(&mut self, now: Timestamp, ban: &ActiveBan) -> bool {
        let now = self.clock(now);
        self.bans.adopt(ban, now.tick())
    }

    /// The ban of `target`, if one should be in force.
    pub fn standing_of(&self, now: Timestamp, target: BanTarget) -> Option<ActiveBan> {
        self.bans.of(target, self.latest.max(now).tick())
    }

    /// True if `target` is recognised as blocked.
    pub fn is_blocked(&self, now: Timestamp, target: BanTarget) -> bool {
        self.bans.table.get(self.key_of(target, Response::Block), self.latest.max(now).tick()).is_some()
    }

    /// True if a ban of a network that contains `address` is in force.
    pub fn is_in_blocked_network(&self, now: Timestamp, address: IpAddr) -> bool {
        self.bans.around(address, self.latest.max(now).tick()).is_some()
    }

    /// Adds the ban history of a target from before the start; call it once per target. A full table evicts the target
    /// with the fewest strikes.
    pub fn remember(&mut self, now: Timestamp, struck: &StrikeHistory) {
        let now = self.clock(now);
        self.bans.remember(struck, now.tick());
    }

    /// Counts bans from before the start towards the ceilings; call it once.
    pub fn recall_bans(&mut self, now: Timestamp, recent: RecentBans) {
        let now = self.clock(now);
        self.bans.recall(recent, now);
    }

    /// All bans that the kernel should hold now, to restore them after a flush.
    pub fn bans(&self) -> impl Iterator<Item = ActiveBan> + '_ {
        self.bans.table.blocked(self.latest.tick())
    }

    /// The number of bans that the kernel should hold at `now`. In a large table, bans of the last 50 ms may be
    /// missing.
    pub fn count_bans(&mut self, now: Timestamp) -> usize {
        let now = self.clock(now);
        self.bans.table.count(now.tick())
    }

    /// True if the ceilings have room for `bans` more bans on forgeable evidence, which the kernel makes without the
    /// engine.
    pub fn has_room_for(&mut self, now: Timestamp, bans: u32) -> bool {
        let now = self.clock(now);
        self.bans.has_room_for(bans, now)
    }

    /// Records that the kernel has banned `target` for reasons that this engine does not see. The ban ends after
    /// [`CAPPED_BAN`] and counts as a ban on forgeable evidence. False if there have been too many short bans: then the
    /// caller lifts it.
    #[must_use]
    pub fn adopt_short(&mut self, now: Timestamp, target: BanTarget) -> bool {
        let now = self.clock(now);
        self.bans.adopt_short(target, now)
    }

    /// Passes at most `n` of the targets that the kernel should block now to `out`; successive calls cycle through all
    /// targets, for a continuous, cheap reconciliation. Bans in their last ten seconds are left out; bans that the
    /// caller has not applied yet are included.
    pub fn sample(&mut self, now: Timestamp, out: &mut impl FnMut(BanTarget), n: usize) {
        let now = self.clock(now);
        self.bans.table.sample(now.tick(), n, out);
    }

    /// Called before the host's snapshot changes from `old` to `new`.
    pub fn host_changed(&mut self, now: Timestamp, old: &Host, new: &Host) {
        let now = self.clock(now);
        let Self { settings, recent_ports, .. } = self;
        recent_ports.listeners_changed((old, new), |protocol, port| settings.watches(protocol, port), now.tick());
    }

    /// Records ports that were open before the start. Each counts as open for the given time, at most two minutes.
    pub fn recall_listeners(&mut self, now: Timestamp, listeners: &[(Service, Duration)]) {
        let now = self.clock(now);
        for (service, left) in listeners {
            if self.settings.watches(service.protocol, service.port) {
                self.recent_ports.served(*service, now.tick(), *left);
            }
        }
    }

    /// Replaces the sources that are known to be connected to a service of this host, each with the age of its
    /// connection.
    pub fn know_peers(&mut self, now: Timestamp, peers: &[(BanTarget, Duration)]) {
        let now = self.clock(now);
        self.known_peers = self.known_peers.renewed(now, peers);
    }

    /// Bans no source until `until`, or until [`Engine::end_settling`].
    pub fn start_settling(&mut self, until: Timestamp) {
        self.settling = Settling::start(until);
    }

    /// Ends settling, because this host's services have started.
    pub fn end_settling(&mut self) {
        self.settling.end();
    }

    /// True while no source is banned.
    pub fn is_settling(&self, now: Timestamp) -> bool {
        self.settling.lasts(self.latest.max(now))
    }

    /// Returns the next notice that was not caused by a single packet. Call it until `None`, after packets and when
    /// [`Engine::wake`] is due.
    pub fn notice(&mut self, now: Timestamp) -> Option<Notice> {
        let now = self.clock(now);
        self.bans.capped_notice(now).or_else(|| self.notices.pop_front()).or_else(|| {
            let (target, standing, protocol, packets) = self.bans.table.due(now.tick())?;
            Some(Notice::Repeated { target, standing, protocol, packets })
        })
    }

    /// Time at which [`Engine::notice`] must be called even without a packet; `None` if nothing is pending.
    pub fn wake(&self) -> Option<Timestamp> {
        let (settling, candidates) = (self.settling.next_due(self.latest), self.candidates.next_due());
        [self.bans.next_due(), settling, candidates].into_iter().flatten().min()
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Current number of sources with evidence, and of sources with a verdict.
    pub fn tracked(&self) -> (usize, usize) {
        (self.sources.len(), self.bans.table.len())
    }

    /// Faults in the memory that the next sources will need. Call it repeatedly while the sensor is idle.
    pub fn prepare(&mut self) {
        self.sources.prepare();
        self.bans.prepare();
    }

    /// The key of the evidence against `target` that leads to `response`.
    fn key_of(&self, target: BanTarget, response: Response) -> Hashed {
        Key::new(target, response).under(self.secret)
    }

    /// Sets the engine's time to `now`, unless it is later already; returns it.
    pub(crate) fn clock(&mut self, now: Timestamp) -> Timestamp {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// Looks up the source port of an outgoing packet, and records the result. The packet itself proves nothing:
    /// traffic between guests of a bridge and forwarded traffic leave in the same way, with any source.
    fn learn(&mut self, now: Timestamp, packet: &Packet, host: &Host, lookup: &mut impl PortLookup) {
        if !host.local.is_exact() || !host.local.contains(packet.source) {
            return;
        }
        // A SYN/ACK or a datagram may answer a client. A reset means that the port is closed.
        let (protocol, port, peer_port, may_answer) = match packet.transport {
            Transport::Tcp { source_port, destination_port, flags, .. } if !flags.has(TcpFlags::RST) => {
                (Protocol::Tcp, source_port, destination_port, flags.has(TcpFlags::SYN | TcpFlags::ACK))
            }
            Transport::Udp { source_port, destination_port } => (Protocol::Udp, source_port, destination_port, true),
            _ => return,
        };
        let interface = host.bridge(packet.interface).unwrap_or(packet.interface);
        if !self.settings.watches(protocol, port) || host.listens(protocol, packet.source, port, interface) {
            return;
        }
        let (own, peer) = (Service { address: packet.source, protocol, port }, packet.destination);
        if !self.recent_ports.is_fresh(own, peer, now.tick()) {
            if !self.hints.try_take(now) {
                return;
            }
            let [own_end, peer_end] = [(own.address, port), (peer, peer_port)].map(SocketAddr::from);
            let found = match lookup.port_use(protocol, peer_end, own_end, interface) {
                PortUse::Published { established } => PortUse::Published { established: established || may_answer },
                // The kernel gives no better information than the packet, which may be forged. Therefore the port
                // counts as used for this peer only.
                PortUse::Unknown if may_answer => PortUse::Flow,
                found => found,
            };
            if !self.recent_ports.record(found, own, peer, now.tick()) {
                return;
            }
        }
        if may_answer {
            // The client's request was not a probe of this port.
            let peer = self.key_of(host.target(peer, interface), self.response(protocol));
            self.sources.forgive(peer, protocol, port);
        }
    }

    /// Returns the target and the slot of the ban of `source`, whose packets count against `target`, unless the
    /// kernel's allow-list accepts them.
    #[inline]
    fn recognise(
        &mut self,
        now: Timestamp,
        source: IpAddr,
        (target, known): (BanTarget, Hashed),
        host: &Host,
    ) -> Option<(BanTarget, usize)> {
        let found = match self.bans.table.get(known, now.tick()) {
            Some(slot) => (target, slot),
            None if matches!(target, BanTarget::Link { .. }) => self.recognise_neighbour(now, source, target)?,
            None if self.bans.prefixes.are_free(now.tick()) => return None,
            None => self.bans.around(source, now.tick())?,
        };
        host.protection(source, target).is_none().then_some(found)
    }

    /// A ban by an operator has no link.
    #[cold]
    fn recognise_neighbour(&self, now: Timestamp, source: IpAddr, target: BanTarget) -> Option<(BanTarget, usize)> {
        let every_link = target.on_every_link();
        let held = self.bans.table.get(self.key_of(every_link, Response::Block), now.tick());
        held.map(|slot| (every_link, slot)).or_else(|| self.bans.around(source, now.tick()))
    }

    fn repeat(
        &mut self,
        now: Timestamp,
        slot: usize,
        (source, protocol): (IpAddr, Option<Protocol>),
        (target, response): (BanTarget, Response),
    ) -> Repeated {
        self.counters.repeated += 1;
        let (report, verify) = self.bans.table.repeat(slot, (target, response, protocol), now.tick());
        let verify = verify && self.verifications.try_take(now);
        Repeated { source, target, standing: response.into(), protocol, report, verify }
    }

    /// The response for which a probe of this class counts. Linux answers ACK and FIN/ACK segments identically on open
    /// and closed ports, and late segments of honest peers look the same.
    fn response_to(&self, protocol: Protocol, class: Class) -> Response {
        if class.is_late_segment() && !self.settings.ack_bans { Response::Log } else { self.response(protocol) }
    }

    fn response(&self, protocol: Protocol) -> Response {
        match protocol {
            Protocol::Tcp | Protocol::Sctp => self.settings.tcp.response,
            Protocol::Udp | Protocol::Icmp => self.settings.udp.response,
        }
    }
}

#[inline]
fn is_watched(interface: u32, host: &Host) -> bool {
    !host.loopback.contains(&interface) && (host.interfaces.is_empty() || host.interfaces.contains(&interface))
}
