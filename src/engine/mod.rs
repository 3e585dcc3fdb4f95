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
mod decide;
mod distributed_scan;
mod evidence;
mod exempt;
mod expiry_jitter;
mod explain;
mod host;
mod host_ports;
mod key;
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
mod threshold;
mod verdict;
mod waiting;

use std::net::IpAddr;
use std::time::Duration;

pub use acceptance::is_unicast;
pub use allow::{AllowList, Protection};
pub use ban_table::ActiveBan;
pub use bans::CAPPED_BAN;
pub use ceiling::RecentBans;
pub use class::{Class, Grade};
pub use distributed_scan::DistributedScan;
pub use evidence::{MAX_EVIDENCE, Ports};
pub use explain::{Explanation, Suspicion, explain};
pub use host::{Host, Link, LinkId, Local, ReversePath};
pub use host_ports::HostPorts;
pub use key::HashKey;
pub use listeners::{Listeners, Service, ServiceMemory};
pub use observation::Observation;
pub use port_lookup::{NoLookup, PortLookup, PortUse};
pub use prefix_bans::MaxPrefix;
pub use recent_ports::{MAX_PUBLISHED, RECENT_USE};
pub use related_ports::RelatedPorts;
pub use settings::{Counters, ProtocolSettings, Settings};
pub use strikes::{LastBan, StrikeHistory};
pub use threshold::{Bounds, PEER_THRESHOLD};
pub use verdict::{Ban, EngineNotice, Exempt, IgnoreReason, Probe, Repeated, Verdict};

pub use crate::config::Escalation;
use crate::types::{BanTarget, Protocol, Response, Timestamp, TokenBucket};
use bans::Bans;
use distributed_scan::DistributedScans;
use exempt::ExemptSources;
use key::{Hashed, TargetKey};
use recent_ports::RecentPorts;
use sources::SourceTable;
use threshold::Threshold;
use waiting::{Candidates, SettlingQueue};

/// Socket look-ups per second that verify fresh probes. Each takes a few microseconds. Above this rate evidence is only
/// verified before a ban.
const LOOKUPS_PER_SECOND: u32 = 1_000;

/// Minimum age of a connection before its peer is added to the kernel's trap, so that short visits do not change the
/// set.
const PEER_SETTLED: Duration = Duration::from_secs(2);

pub struct Engine {
    settings: Settings,
    secret: HashKey,
    sources: SourceTable,
    bans: Bans,
    recent_ports: RecentPorts,
    threshold: Threshold,
    distributed_scans: DistributedScans,
    exempt: ExemptSources,
    settling: SettlingQueue,
    candidates: Candidates,
    lookups: TokenBucket,
    /// Evidence refuted by the look-ups of the last packet.
    withdrawn: Vec<(Protocol, u16)>,
    latest: Timestamp,
    /// Only `packets`, `probes` and `withheld`; the components count the others.
    counters: Counters,
}

impl Engine {
    /// Creates an engine with empty tables. `secret` must be unpredictable to attackers.
    pub fn new(settings: Settings, secret: HashKey) -> Self {
        Self {
            secret,
            sources: SourceTable::new(settings.max_sources, settings.window, secret),
            bans: Bans::new(&settings, secret),
            recent_ports: RecentPorts::new(secret),
            threshold: Threshold::new(settings.scan_trigger),
            distributed_scans: DistributedScans::new(),
            exempt: ExemptSources::new(),
            settling: SettlingQueue::default(),
            candidates: Candidates::new(),
            lookups: TokenBucket::new(LOOKUPS_PER_SECOND, Duration::from_secs(1)),
            withdrawn: Vec::with_capacity(MAX_EVIDENCE),
            latest: Timestamp::default(),
            counters: Counters::default(),
            settings,
        }
    }

    /// Replaces the built-in limits. For simulations.
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.threshold.bounds = bounds;
        self.recent_ports.remember_for(bounds.recent);
        self
    }

    /// Applies new settings. The table sizes stay as they are; a ban in force keeps its end.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.sources.set_window(settings.window);
        self.bans.reconfigure(&settings);
        self.threshold.forgiven = settings.scan_trigger;
        // The former candidates are judged by the new settings at their next probe.
        self.candidates = Candidates::new();
        let (max_sources, max_judged) = (self.settings.max_sources, self.settings.max_judged);
        self.settings = Settings { max_sources, max_judged, ..settings };
    }

    /// Stops blocking: further scans are only logged. Existing bans stay in force.
    pub fn log_only(&mut self) {
        self.settings.tcp.response = Response::Log;
        self.settings.udp.response = Response::Log;
    }

    /// Ports of the last packet's source that counted as evidence and turned out to be in use.
    pub fn withdrawn_ports(&self) -> &[(Protocol, u16)] {
        &self.withdrawn
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
        self.bans.get(target, self.latest.max(now).tick())
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
    pub fn remember(&mut self, now: Timestamp, history: &StrikeHistory) {
        let now = self.clock(now);
        self.bans.remember(history, now.tick());
    }

    /// Counts bans from before the start towards the ceilings; call it once.
    pub fn restore_bans(&mut self, now: Timestamp, recent: RecentBans) {
        let now = self.clock(now);
        self.bans.ceilings.restore(now, recent);
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
    pub fn adopt_capped(&mut self, now: Timestamp, target: BanTarget) -> bool {
        let now = self.clock(now);
        self.bans.adopt_capped(target, now)
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
        recent_ports.listeners_changed((old, new), |protocol, port| settings.monitors_port(protocol, port), now.tick());
    }

    /// Records ports that were open before the start. Each counts as open for the given time, at most two minutes.
    pub fn restore_listeners(&mut self, now: Timestamp, listeners: &[(Service, Duration)]) {
        let now = self.clock(now);
        for (service, left) in listeners {
            if self.settings.monitors_port(service.protocol, service.port) {
                self.recent_ports.served(*service, now.tick(), *left);
            }
        }
    }

    /// The ports of `host` at `now`, for the kernel's trap and for the decoys.
    pub fn ports<'a>(&'a self, now: Timestamp, host: &'a Host) -> HostPorts<'a> {
        let Self { settings, recent_ports, .. } = self;
        HostPorts { settings, recent_ports, host, now: self.latest.max(now).tick(), is_settling: self.is_settling(now) }
    }

    /// True if `target` has probed more ports than are forgiven, but is not banned because they are related. Used for
    /// the kernel's trap, which counts each of them.
    pub fn is_tolerated_related(&self, now: Timestamp, target: BanTarget, host: &Host) -> bool {
        let (Self { sources, threshold, .. }, now) = (self, self.latest.max(now).tick());
        let summary = sources.summary_of(self.key_of(target, Response::Block), now);
        summary.is_some_and(|summary| {
            summary.distinct > threshold.forgiven
                && threshold.counting(summary.slot, sources, host, now) <= threshold.forgiven
        })
    }

    /// True if `target` has probed enough ports for a ban, but the ceilings had no room. Used to review bans of the
    /// kernel's trap, which learns of a reached ceiling with a delay.
    pub fn is_withheld(&self, now: Timestamp, target: BanTarget) -> bool {
        let summary = self.sources.summary_of(self.key_of(target, Response::Block), self.latest.max(now).tick());
        summary.is_some_and(|summary| summary.withheld && summary.distinct > self.threshold.forgiven)
    }

    /// True if `target` is connected to a service of this host and has probed too few ports for a ban of a connected
    /// source. Used for the kernel's trap, which counts ports independently of the engine.
    pub fn is_tolerated_peer(&self, now: Timestamp, target: BanTarget, host: &Host) -> bool {
        let (Self { sources, threshold, .. }, now) = (self, self.latest.max(now).tick());
        let summary = sources.summary_of(self.key_of(target, Response::Block), now);
        let counting = summary.map_or(0, |summary| threshold.counting(summary.slot, sources, host, now));
        let first = summary.map_or(now, |summary| summary.first);
        counting < threshold.bounds.peer_threshold && threshold.forgives_more(target, first, &self.bans, now)
    }

    /// The sources for which [`Engine::is_tolerated_peer`] holds and whose connection is older than [`PEER_SETTLED`].
    pub fn tolerated_peers<'a>(&'a self, now: Timestamp, host: &'a Host) -> impl Iterator<Item = BanTarget> + 'a {
        let settled = Timestamp::at(self.latest.max(now).since_origin().saturating_sub(PEER_SETTLED)).tick();
        self.threshold.connected_before(settled).filter(move |peer| self.is_tolerated_peer(now, *peer, host))
    }

    /// Replaces the sources that are known to be connected to a service of this host, each with the age of its
    /// connection.
    pub fn set_peers(&mut self, now: Timestamp, peers: &[(BanTarget, Duration)]) {
        let now = self.clock(now);
        self.threshold.set_peers(now, peers);
    }

    /// Bans no source until `until`, or until [`Engine::end_settling`].
    pub fn start_settling(&mut self, until: Timestamp) {
        self.settling = SettlingQueue::start(until);
    }

    /// Ends settling, because this host's services have started.
    pub fn end_settling(&mut self) {
        self.settling.end();
    }

    /// True while no source is banned.
    pub fn is_settling(&self, now: Timestamp) -> bool {
        self.settling.is_current(self.latest.max(now))
    }

    /// Returns the next notice that was not caused by a single packet. Call it until `None`, after packets and when
    /// [`Engine::wake`] is due.
    pub fn notice(&mut self, now: Timestamp) -> Option<EngineNotice> {
        let now = self.clock(now);
        let capped = self.bans.capped_notice(now);
        capped.or_else(|| self.distributed_scans.found.pop_front().map(EngineNotice::DistributedScan)).or_else(|| {
            let (target, response, protocol, packets) = self.bans.table.due(now.tick())?;
            Some(EngineNotice::Repeated { target, response, protocol, packets })
        })
    }

    /// Time at which [`Engine::notice`] must be called even without a packet; `None` if nothing is pending.
    pub fn wake(&self) -> Option<Timestamp> {
        let (settling, candidates) = (self.settling.next_due(self.latest), self.candidates.next_due());
        [self.bans.next_due(), settling, candidates].into_iter().flatten().min()
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        let Bans { repeated, imposed: bans, capped_total: capped, .. } = self.bans;
        let (evicted, lookups) = (self.sources.evicted, self.recent_ports.lookups);
        Counters { repeated, bans, capped, evicted, lookups, ..self.counters }
    }

    /// Current number of sources with evidence, and of sources with a verdict.
    pub fn tracked(&self) -> (usize, usize) {
        (self.sources.len(), self.bans.table.len())
    }

    /// Pre-faults the memory that the next sources will need. Call this repeatedly while the sensor is idle.
    pub fn prepare(&mut self) {
        self.sources.prepare();
        self.bans.prepare();
    }

    /// The key of the evidence against `target` that leads to `response`.
    fn key_of(&self, target: BanTarget, response: Response) -> Hashed {
        TargetKey::new(target, response).under(self.secret)
    }

    /// Sets the engine's time to `now`, unless it is later already; returns it.
    pub(crate) fn clock(&mut self, now: Timestamp) -> Timestamp {
        self.latest = self.latest.max(now);
        self.latest
    }
}
