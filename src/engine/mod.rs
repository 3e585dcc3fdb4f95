//! Packets to verdicts: who scans this host, and who only looks so. Pure: no I/O, no clock, no randomness; time and hash
//! keys come in, the same input gives the same output. After [`Engine::new`] nothing here allocates.
//!
//! A packet counts against its source only if all of this holds: it is unicast to an address of this host; the port is
//! monitored; nothing listens there now, and nothing did a moment ago; it answers nothing that this host began; the
//! source is not this host and not protected. A flag combination that no TCP stack sends is enough on its own; anything
//! else needs distinct ports within a window.

mod allow;
mod ban_table;
mod bans;
mod class;
mod closed;
mod decide;
mod distributed_scan;
mod exempt;
mod expiry_jitter;
mod explain;
mod host;
mod key;
mod observation;
mod prefix_bans;
mod recent_ports;
mod reconfigure;
mod settings;
mod sources;
mod strikes;
mod table;
#[cfg(test)]
mod tests;
mod token_bucket;
mod verdict;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use allow::{AllowList, Protection};
pub use ban_table::{ActiveBan, Standing};
pub use class::Class;
pub use distributed_scan::DistributedScan;
pub use explain::{Explanation, Suspicion};
pub use host::{Host, Listeners, Local};
pub use key::HashKey;
pub use observation::Observation;
pub use prefix_bans::MaxPrefix;
pub use recent_ports::RECENT;
pub use settings::{Counters, Response, Settings, Watch};
pub use sources::EVIDENCE;
pub use strikes::{Escalation, LastBan, StrikeHistory};
pub use verdict::{Ban, Exempt, IgnoreReason, Notice, Ports, Probe, Repeated, Verdict};

use crate::types::{BanTarget, Protocol, Timestamp};
use crate::wire::{Delivery, Packet};
use ban_table::{BanTable, SUMMARY};
use distributed_scan::DistributedScans;
use exempt::ExemptSources;
use expiry_jitter::ExpiryJitter;
use key::{Hashed, Key};
use observation::{OwnUse, is_not_unicast, is_unicast, own_use};
use prefix_bans::PrefixBans;
use recent_ports::RecentPorts;
use sources::SourceTable;
use strikes::Strikes;
use token_bucket::TokenBucket;

/// How long a ban above the ceiling lasts at most.
pub const CAPPED_BAN: Duration = Duration::from_secs(300);

/// Look-ups in the kernel's socket table to confirm a fresh probe, a second. Each takes a few microseconds; above this
/// only what is about to be condemned is confirmed.
const LOOKUPS_PER_SECOND: u32 = 1_000;

/// Questions to the kernel, a second, whether it still blocks a source that goes on sending. Many blocked sources at once
/// must not cost more than that; each has its turn within the next seconds.
const VERIFIED_PER_SECOND: u32 = 500;

/// The lane of sources that are blocked, that of sources that are only logged, and that of sources of which somebody is told:
/// what counts in one does not in the others, so that UDP, which only logs until asked, cannot help to block anybody.
const BLOCKING: u8 = 0;
const LOGGING: u8 = 1;
const TELLING: u8 = 2;

/// The truth about a port at this moment, from the kernel's socket table. Asked before a source is condemned, because a
/// snapshot of the listeners is always a little old.
pub trait PortLookup {
    /// True where a packet of `protocol` from `source` to `destination` that came in on `interface` (0: not known) finds a
    /// listener or a connection.
    fn in_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr, interface: u32) -> bool;
}

/// An oracle that knows no more than the snapshot does, for captures.
pub struct NoLookup;

impl PortLookup for NoLookup {
    fn in_use(&mut self, _: Protocol, _: SocketAddr, _: SocketAddr, _: u32) -> bool {
        false
    }
}

/// The detector.
pub struct Engine {
    settings: Settings,
    secret: HashKey,
    suspects: SourceTable,
    judged: BanTable,
    strikes: Strikes,
    spread: ExpiryJitter,
    networks: PrefixBans,
    memory: RecentPorts,
    sweeps: DistributedScans,
    spared: ExemptSources,
    ceiling: TokenBucket,
    lookups: TokenBucket,
    verifications: TokenBucket,
    notices: VecDeque<Notice>,
    capped: u32,
    capped_since: Option<Timestamp>,
    latest: Timestamp,
    counters: Counters,
}

impl Engine {
    /// An engine with empty tables. `secret` must be unknown to strangers.
    #[must_use]
    pub fn new(settings: Settings, secret: HashKey) -> Self {
        Self {
            secret,
            suspects: SourceTable::new(settings.max_sources, settings.window, secret),
            judged: BanTable::new(settings.max_judged, secret),
            strikes: Strikes::new(settings.max_judged, settings.escalate.forget, secret),
            spread: ExpiryJitter::new(secret),
            networks: PrefixBans::new(settings.widest, settings.max_judged, settings.window, secret),
            memory: RecentPorts::new(),
            sweeps: DistributedScans::new(),
            spared: ExemptSources::new(),
            ceiling: TokenBucket::new(settings.max_new_bans_per_minute, Duration::from_secs(60)),
            lookups: TokenBucket::new(LOOKUPS_PER_SECOND, Duration::from_secs(1)),
            verifications: TokenBucket::new(VERIFIED_PER_SECOND, Duration::from_secs(1)),
            notices: VecDeque::with_capacity(16),
            capped: 0,
            capped_since: None,
            latest: Timestamp::default(),
            counters: Counters::default(),
            settings,
        }
    }

    /// Judges one packet. `now` never runs backwards here: an earlier moment counts as the latest one.
    pub fn observe(&mut self, now: Timestamp, packet: &Packet, host: &Host, oracle: &mut impl PortLookup) -> Verdict {
        let now = self.clock(now);
        self.counters.packets += 1;
        if packet.interface != 0 && !is_watched(packet.interface, host) {
            return Verdict::Ignored(IgnoreReason::OtherInterface);
        }
        if packet.delivery == Delivery::Outgoing {
            self.learn(now, packet, host);
            return Verdict::Ignored(IgnoreReason::Own);
        }
        let known = self.named(BanTarget::of(packet.source), BLOCKING);
        if let Some(repeated) = self.recognise(now, packet.source, known, host) {
            return Verdict::Repeated(repeated);
        }
        let Some(mut sighting) = Observation::of(packet) else {
            return Verdict::Ignored(IgnoreReason::NoRequest);
        };
        // Sockets that are bound to an interface are bound to the bridge.
        sighting.interface = host.bridge(packet.interface).unwrap_or(packet.interface);
        if is_not_unicast(packet, host) {
            return Verdict::Ignored(IgnoreReason::NotUnicast);
        }
        self.judge(now, sighting, known, host, oracle)
    }

    /// Judges a connection or datagram that a decoy listener accepted: whatever else touched its port found nobody. The
    /// oracle is asked about other evidence, and must say of a decoy's port that it is not in use.
    pub fn observe_decoy(
        &mut self,
        now: Timestamp,
        sighting: Observation,
        host: &Host,
        oracle: &mut impl PortLookup,
    ) -> Verdict {
        let now = self.clock(now);
        self.counters.packets += 1;
        let known = self.named(BanTarget::of(sighting.source), BLOCKING);
        if let Some(repeated) = self.recognise(now, sighting.source, known, host) {
            return Verdict::Repeated(repeated);
        }
        if !is_unicast(sighting.destination) || !host.local.contains(sighting.destination) {
            return Verdict::Ignored(IgnoreReason::NotUnicast);
        }
        self.count(now, sighting, known, host, oracle)
    }

    /// The host's snapshot is about to change from `old` to `new`.
    pub fn host_changed(&mut self, now: Timestamp, old: &Host, new: &Host) {
        let now = self.clock(now);
        self.memory.listeners_changed(old, new, now.tick());
    }

    /// What there is to say without a packet's cause. Call until `None`, after packets and when [`Engine::wake`] is due.
    pub fn notice(&mut self, now: Timestamp) -> Option<Notice> {
        let now = self.clock(now);
        if let Some(since) = self.capped_since
            && now.since(since) >= SUMMARY
        {
            self.capped_since = None;
            return Some(Notice::Capped { bans: std::mem::take(&mut self.capped) });
        }
        self.notices.pop_front().or_else(|| {
            let (subject, standing, packets) = self.judged.due(now.tick())?;
            Some(Notice::Repeated { subject, standing, packets })
        })
    }

    /// When [`Engine::notice`] is worth calling again without a packet; `None` while there is nothing to wait for.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        let summary = self.judged.next_due().map(|tick| Timestamp::at(tick.duration()));
        let capped = self.capped_since.map(|since| since.after(SUMMARY));
        summary.into_iter().chain(capped).min()
    }

    /// What has been counted since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Sources with evidence against them, and judged ones, as the tables hold them now.
    #[must_use]
    pub fn tracked(&self) -> (usize, usize) {
        (self.suspects.len(), self.judged.len())
    }

    /// Touches the memory that the next sources will need, so that this is done before their packets come. To be called when
    /// there is time, again and again.
    pub fn prepare(&mut self) {
        self.suspects.prepare();
        self.judged.prepare();
        self.strikes.prepare();
    }

    /// The key of `subject` in a lane.
    fn named(&self, subject: BanTarget, lane: u8) -> Hashed {
        Key::new(subject, lane).under(self.secret)
    }

    fn clock(&mut self, now: Timestamp) -> Timestamp {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// An own packet shows that its port is in use.
    fn learn(&mut self, now: Timestamp, packet: &Packet, host: &Host) {
        if !host.local.is_exact() || !host.local.contains(packet.source) {
            return;
        }
        let Some((protocol, port, use_)) = own_use(packet) else { return };
        match use_ {
            OwnUse::Answered if !host.listens(protocol, packet.source, port) => {
                self.memory.published(port, now.tick());
                // Whoever was answered was no prober of this port.
                let peer = self.named(BanTarget::of(packet.destination), self.lane(protocol));
                self.suspects.forgive(peer, protocol, port);
            }
            OwnUse::Answered => {}
            OwnUse::Originated => self.memory.used(protocol, port, now.tick()),
        }
    }

    /// A source that is judged already, unless it is one that the kernel lets pass all the same.
    #[inline]
    fn recognise(&mut self, now: Timestamp, source: IpAddr, known: Hashed, host: &Host) -> Option<Repeated> {
        let (subject, slot, standing) = match self.judged.get(known, now.tick()) {
            Some((slot, standing)) => (BanTarget::of(source), slot, standing),
            None if self.networks.are_free(now.tick()) => return None,
            None => self.recognise_network(now, source)?,
        };
        if host.allow.protects(source).is_some() || host.local.is_exact() && host.local.contains(source) {
            return None;
        }
        Some(self.repeat(now, slot, standing, source, subject, BLOCKING))
    }

    /// The blocked network that `source` is in. Apart, so that who has none pays nothing for it.
    #[cold]
    fn recognise_network(&self, now: Timestamp, source: IpAddr) -> Option<(BanTarget, usize, Standing)> {
        self.networks.around(source).map(BanTarget::Prefix).find_map(|network| {
            let (slot, standing) = self.judged.get(self.named(network, BLOCKING), now.tick())?;
            Some((network, slot, standing))
        })
    }

    fn repeat(
        &mut self,
        now: Timestamp,
        slot: usize,
        standing: Standing,
        source: IpAddr,
        subject: BanTarget,
        lane: u8,
    ) -> Repeated {
        self.counters.repeated += 1;
        let repeat = self.judged.repeat(slot, standing, (subject, lane), now.tick());
        let verify = repeat.verify && self.verifications.take(now);
        Repeated { source, subject, standing, report: repeat.report, verify }
    }

    fn lane(&self, protocol: Protocol) -> u8 {
        let watch = match protocol {
            Protocol::Tcp | Protocol::Sctp => &self.settings.tcp,
            Protocol::Udp | Protocol::Icmp => &self.settings.udp,
        };
        match watch.response {
            Response::Block => BLOCKING,
            Response::Log => LOGGING,
            Response::Tell => TELLING,
        }
    }
}

fn is_watched(interface: u32, host: &Host) -> bool {
    !host.loopback.contains(&interface) && (host.interfaces.is_empty() || host.interfaces.contains(&interface))
}
