//! Adapts the engine to the simulation; no other file uses `portsentry::engine`. It builds the engine's snapshot of the
//! host, drives the engine as the sensor does, and can switch off single rules by withholding their input.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use portsentry::config::{AckPolicy, Config};
use portsentry::enforce::nft::{RulesetSpec, TRAP_BURST, Trap};
use portsentry::engine::{
    ActiveBan, Ban, Bounds, Engine, EngineNotice, HashKey, Host, Local, NoLookup, PortLookup, PortUse, Protection,
    RelatedPorts, Service, ServiceMemory, Settings, StrikeHistory, Verdict,
};
pub use portsentry::engine::{CAPPED_BAN, IgnoreReason, RECENT_USE as MEMORY};
use portsentry::sensor::trap_review::{Counting, Review, TrapReview};
use portsentry::types::{BanTarget, Expiry, PortSet, Protocol, Response, Timestamp};
use portsentry::wire::Packet;

use crate::host::{Bind, HostModel};

/// Rules of the engine and of the sensor that can be switched off, and thresholds and limits that can be changed. The
/// default is the built-in configuration.
#[derive(Clone, Copy, Debug)]
pub struct EngineRules {
    /// Ports of recently stopped services and of outgoing traffic do not count.
    pub recent_ports: bool,
    /// The kernel's socket table can refute evidence.
    pub socket_lookup: bool,
    /// Open ports do not count.
    pub listeners: bool,
    /// Ports of related services count as one.
    pub related_ports: bool,
    /// Bans by the trap for probes that the sensor did not count are lifted instead of shortened.
    pub trap_excuses: bool,
    /// The local network is on the allow-list (`allow.networks`).
    pub allows_lan: bool,
    pub bounds: Bounds,
    pub scan_trigger: Option<u8>,
    pub window: Option<Duration>,
    /// Maximum number of new bans on forgeable evidence per minute.
    pub max_new_bans_per_minute: Option<u32>,
    /// Maximum number of such bans in force at one time.
    pub max_forgeable_bans: Option<u32>,
    /// A source with an earlier ban is forgiven no more ports when it connects.
    pub strikes: bool,
    /// ACK and FIN/ACK segments count like SYNs (`detect.ack = "ban"`).
    pub ack_bans: bool,
    /// Datagrams ban, and the kernel's trap counts them (`udp.block = true`, `trap.udp = true`).
    pub udp_bans: bool,
}

impl Default for EngineRules {
    fn default() -> Self {
        Self {
            recent_ports: true,
            socket_lookup: true,
            listeners: true,
            related_ports: true,
            trap_excuses: true,
            allows_lan: false,
            bounds: Bounds::default(),
            scan_trigger: None,
            window: None,
            max_new_bans_per_minute: None,
            max_forgeable_bans: None,
            strikes: true,
            ack_bans: false,
            udp_bans: false,
        }
    }
}

/// The built-in configuration with the changes in `rules`: settings of the engine and of the kernel's table.
#[must_use]
pub fn settings(rules: &EngineRules) -> (Settings, RulesetSpec) {
    let mut config = Config::default();
    if let Some(trigger) = rules.scan_trigger {
        config.detect.scan_trigger = trigger;
    }
    if let Some(window) = rules.window {
        config.detect.window = window;
    }
    if let Some(most) = rules.max_new_bans_per_minute {
        config.block.max_new_bans_per_minute = most;
    }
    if let Some(most) = rules.max_forgeable_bans {
        config.block.max_forgeable_bans = most;
    }
    if !rules.strikes {
        config.escalate.forget = Duration::ZERO;
    }
    if rules.ack_bans {
        config.detect.ack = AckPolicy::Ban;
    }
    if rules.udp_bans {
        (config.udp.block, config.trap.udp) = (Response::Block, true);
    }
    (Settings::from_config(&config), RulesetSpec::from_config(&config))
}

/// The engine's verdict on a packet.
#[derive(Clone, Debug)]
pub enum PacketVerdict {
    /// No evidence, with the engine's reason.
    Ignored(IgnoreReason),
    /// Evidence, with the number of distinct ports so far.
    Probe(u8),
    /// The source is exempt.
    Exempt,
    /// The source is already banned.
    Repeated,
    Ban {
        target: BanTarget,
        expiry: Expiry,
        /// The ports of the evidence as text.
        ports: String,
        ban: Box<Ban>,
    },
    /// Enough evidence, but its protocol is only logged.
    LogOnly,
}

impl PacketVerdict {
    /// The source that is banned.
    #[must_use]
    pub fn target(&self) -> Option<BanTarget> {
        match self {
            Self::Ban { target, .. } => Some(*target),
            _ => None,
        }
    }

    fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Ignored(reason) => Self::Ignored(reason),
            Verdict::Probe(probe) => Self::Probe(probe.distinct),
            Verdict::Exempt(_) => Self::Exempt,
            Verdict::Repeated(_) => Self::Repeated,
            Verdict::LogOnly(_) => Self::LogOnly,
            Verdict::Block(ban) => {
                let ports = ban.ports.iter().map(|(protocol, port, class)| format!("{protocol:?} {port} ({class})"));
                let ports = ports.collect::<Vec<_>>().join(", ");
                Self::Ban { target: ban.probe.target, expiry: ban.expiry, ports, ban: Box::new(ban) }
            }
        }
    }
}

pub struct Detector {
    engine: Engine,
    host: Host,
    rules: EngineRules,
    review: TrapReview,
}

/// The receiver of a packet in the modelled kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    Nothing,
    Socket,
    /// A socket of a flow. The port may be closed to other sources.
    Flow,
    /// A service behind destination NAT.
    Published,
}

struct Lookup<F>(F);

impl<F: FnMut(Protocol, SocketAddr, SocketAddr) -> Taker> PortLookup for Lookup<F> {
    fn port_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr, _: u32) -> PortUse {
        match (self.0)(protocol, source, destination) {
            Taker::Nothing => PortUse::Closed,
            Taker::Socket => PortUse::Open,
            Taker::Flow => PortUse::Flow,
            Taker::Published => PortUse::Published { established: true },
        }
    }
}

impl Detector {
    /// Creates an engine that starts now on `model`, with the services that the daemon remembers.
    #[must_use]
    pub fn new(rules: EngineRules, key: (u64, u64), model: &HostModel, services: ServiceMemory) -> Self {
        let key = HashKey(key.0, key.1);
        let unrelated = rules.bounds.unrelated.filter(|_| rules.related_ports);
        let engine = Engine::new(settings(&rules).0, key).with_bounds(Bounds { unrelated, ..rules.bounds });
        let ephemeral = model.ephemeral.clone().collect();
        Self { engine, host: snapshot(model, &rules, ephemeral, services), rules, review: TrapReview::new(key) }
    }

    /// Judges a packet. `taker` looks up its receiver in the host's kernel, and `watches` contains the ports of the
    /// trap.
    pub fn observe(
        &mut self,
        now: Timestamp,
        packet: &Packet,
        taker: impl FnMut(Protocol, SocketAddr, SocketAddr) -> Taker,
        watches: impl Fn((Protocol, u16)) -> bool,
    ) -> PacketVerdict {
        let verdict = if self.rules.socket_lookup {
            self.engine.observe(now, packet, &self.host, &mut Lookup(taker))
        } else {
            self.engine.observe(now, packet, &self.host, &mut NoLookup)
        };
        if self.rules.trap_excuses {
            self.review.excuse(now, packet, verdict, self.engine.withdrawn_ports(), watches);
        }
        PacketVerdict::of(verdict)
    }

    /// Returns the verdict on the next source that waited while the host settled.
    pub fn judge_waiting(
        &mut self,
        now: Timestamp,
        taker: impl FnMut(Protocol, SocketAddr, SocketAddr) -> Taker,
    ) -> Option<PacketVerdict> {
        self.engine.judge_waiting(now, &self.host, &mut Lookup(taker)).map(PacketVerdict::of)
    }

    /// Suspends bans until the given time.
    pub fn settle(&mut self, until: Timestamp) {
        self.engine.start_settling(until);
    }

    pub fn end_settling(&mut self) {
        self.engine.end_settling();
    }

    #[must_use]
    pub fn is_settling(&self, now: Timestamp) -> bool {
        self.engine.is_settling(now)
    }

    pub fn set_peers(&mut self, now: Timestamp, peers: &[(BanTarget, Duration)]) {
        self.engine.set_peers(now, peers);
    }

    /// Counts ports as open that were open before the start.
    pub fn restore_listeners(&mut self, now: Timestamp, listeners: &[(Service, Duration)]) {
        if self.rules.recent_ports {
            self.engine.restore_listeners(now, listeners);
        }
    }

    /// Restores the strikes of a source.
    pub fn remember(&mut self, now: Timestamp, history: &StrikeHistory) {
        self.engine.remember(now, history);
    }

    /// The sources that the trap treats as connected.
    pub fn tolerated_peers(&self, now: Timestamp) -> impl Iterator<Item = BanTarget> + '_ {
        self.engine.tolerated_peers(now, &self.host)
    }

    /// The ports that destination NAT publishes, as far as connections have revealed them.
    #[must_use]
    pub fn published(&self, now: Timestamp) -> Vec<Service> {
        self.engine.published(now).collect()
    }

    /// The engine's snapshot of the host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Compares the trap's bans with the engine's own verdicts.
    pub fn review(&mut self, now: Timestamp, caught: &[BanTarget], trap: &Trap) -> Review {
        let counting = Counting { forgiven: trap.forgiven, window: trap.window };
        self.review.review(now, caught.iter().copied(), (counting, false), &self.engine, &self.host)
    }

    /// Records that `target` was unblocked.
    pub fn lift(&mut self, target: BanTarget) {
        self.engine.lift(target);
    }

    /// True if a distributed scan must be reported now.
    pub fn reports_distributed_scan(&mut self, now: Timestamp) -> bool {
        let notices = std::iter::from_fn(|| self.engine.notice(now));
        notices.filter(|notice| matches!(notice, EngineNotice::DistributedScan(_))).count() > 0
    }

    /// Passes a packet that the host sends to the engine.
    pub fn sent(
        &mut self,
        now: Timestamp,
        packet: &Packet,
        taker: impl FnMut(Protocol, SocketAddr, SocketAddr) -> Taker,
    ) {
        if self.rules.recent_ports {
            let _ = self.engine.observe(now, packet, &self.host, &mut Lookup(taker));
        }
    }

    /// Updates the engine's snapshot of the host after the daemon has read the listeners.
    pub fn host_changed(&mut self, now: Timestamp, model: &HostModel, services: ServiceMemory) {
        let new = snapshot(model, &self.rules, self.host.ephemeral.clone(), services);
        if self.rules.recent_ports {
            self.engine.host_changed(now, &self.host, &new);
        }
        self.host = new;
    }

    /// The ports with which the daemon arms the trap.
    #[must_use]
    pub fn closed(&self, now: Timestamp, protocol: Protocol) -> PortSet {
        self.engine.ports(now, &self.host).closed(protocol)
    }

    /// The related ports that only hold their source.
    #[must_use]
    pub fn related(&self, now: Timestamp) -> PortSet {
        self.engine.ports(now, &self.host).related()
    }

    /// The networks that the kernel never drops.
    #[must_use]
    pub fn allowed(&self) -> Vec<IpNet> {
        self.host.allow.prefixes().collect()
    }

    #[must_use]
    pub fn is_blocked(&self, now: Timestamp, target: BanTarget) -> bool {
        self.engine.is_blocked(now, target)
    }

    /// True if the ceilings permit the bans that the kernel's trap can make at once.
    pub fn has_room(&mut self, now: Timestamp) -> bool {
        self.engine.has_room_for(now, TRAP_BURST)
    }

    /// Adopts a ban of the trap that is shortened; false if it is lifted instead, because there were too many.
    #[must_use]
    pub fn adopt_capped(&mut self, now: Timestamp, target: BanTarget) -> bool {
        self.engine.adopt_capped(now, target)
    }

    /// Adopts a ban from the kernel.
    pub fn adopt(&mut self, now: Timestamp, target: BanTarget, left: Expiry) {
        self.engine.adopt(now, &ActiveBan { target, length: None, grade: None, left });
    }
}

/// Builds the host's snapshot as the daemon would read it.
fn snapshot(model: &HostModel, rules: &EngineRules, ephemeral: PortSet, services: ServiceMemory) -> Host {
    let mut host = Host::new(Local::own(model.addresses()));
    host.ephemeral = ephemeral;
    for network in model.protected() {
        host.allow.insert(network, Protection::Gateway);
    }
    if rules.allows_lan {
        host.allow.insert(model.lan(), Protection::Listed);
    }
    for service in model.running().filter(|service| rules.listeners && service.bind != Bind::Published) {
        let listeners = if service.protocol == Protocol::Udp { &mut host.udp } else { &mut host.tcp };
        listeners.insert([0; 4].into(), service.port);
        if service.bind == Bind::Everywhere {
            listeners.insert([0; 16].into(), service.port);
        }
    }
    host.services = services;
    host.find_related();
    if !rules.related_ports {
        host.related = RelatedPorts::default();
    }
    host
}
