//! Simulates the world of one host. A packet passes the model of the kernel first, which accepts or drops it, and then
//! the engine. On a live host, too, the capture sees packets before the firewall drops them.

mod life;
mod record;
mod traffic;
mod upkeep;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portsentry::types::{BanTarget, Protocol, Timestamp};
use portsentry::wire::{Checksum, Delivery, Packet, TcpFlags, Transport};

use crate::Options;
use crate::chance::{Chance, days, hours};
use crate::daemon::Daemon;
use crate::detector::{Detector, settings};
use crate::host::{HostModel, Profile, Reply, TICK};
use crate::kernel::{HostState, Kernel};
use crate::outcome::Outcome;
use crate::queue::{ActorId, Queue};
use crate::replay::Trace;

/// A source or an event, called at its times in the queue until it returns `None`.
pub trait Actor {
    /// Acts now; returns when it acts next.
    fn act(&mut self, world: &mut World) -> Option<Timestamp>;
}

/// The role of an actor in the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A source that must not be banned.
    Honest(&'static str),
    /// A source that should be detected.
    Dishonest(&'static str),
    /// A scanner that the owner of the network operates, and that is not on the allow-list. Its packets are those of a
    /// scan, so that its ban is neither an honest ban nor a success.
    Authorised(&'static str),
    /// Not a source of packets: an action of the host itself, or an actor that only creates others.
    Backstage,
}

/// The record of an actor.
struct Part {
    role: Role,
    banned: bool,
    ports: HashSet<u16>,
    /// The number of its last packet, and whether it sent one while the host was up.
    step: u64,
    met: bool,
    learned: HashSet<u16>,
}

/// A packet from outside: its actor and its number.
#[derive(Clone, Copy)]
struct Sent {
    actor: ActorId,
    role: Role,
    step: u64,
}

/// The ports with which the trap was armed. They are computed only when a packet needs them and they may have changed,
/// because computing them takes most of a run's time.
#[derive(Clone, Copy)]
struct Armed {
    /// The tick for which they were computed.
    at: Timestamp,
    /// True if they have changed since.
    changed: bool,
    /// Time at which the engine forgets a port that was excluded from them.
    stale_at: Timestamp,
    /// How long the engine remembers a port.
    memory: Duration,
}

impl Armed {
    fn never(options: &Options) -> Self {
        let memory = options.engine.bounds.recent;
        Self { at: Timestamp::ZERO, changed: true, stale_at: Timestamp::ZERO, memory }
    }

    /// The engine remembers published ports for a day. If the end is noticed up to an hour late, slightly more is
    /// excused.
    const MAX_ARMED: Duration = hours(1);

    fn is_armed(&self) -> bool {
        self.at != Timestamp::ZERO
    }

    fn change(&mut self, now: Timestamp) {
        self.changed = true;
        self.stale_at = self.stale_at.min(now.after(self.memory + TICK));
    }
}

pub struct World {
    pub now: Timestamp,
    pub host: HostModel,
    kernel: Kernel,
    detector: Detector,
    daemon: Daemon,
    options: Options,
    seed: u64,
    number: u64,
    queue: Queue,
    actors: HashMap<ActorId, Box<dyn Actor>>,
    parts: HashMap<ActorId, Part>,
    /// The actor that is acting.
    current: ActorId,
    next_actor: ActorId,
    /// The honest behaviour that uses an address.
    owners: HashMap<BanTarget, &'static str>,
    /// The dishonest behaviour that uses an address.
    scanners: HashMap<BanTarget, &'static str>,
    addresses: u32,
    /// Number of packets from outside so far.
    step: u64,
    outcome: Outcome,
    /// Time at which the daemon next reviews the trap, if it caught a source.
    review_at: Option<Timestamp>,
    /// The last packet of each source that was caught by the trap or waits for a verdict.
    senders: HashMap<BanTarget, Sent>,
    /// Dishonest sources that have finished undetected, with the numbers of their last packets.
    missed: BTreeMap<ActorId, (&'static str, u64)>,
    /// True while the host settles, or while sources that probed it then wait for a verdict.
    waiting: bool,
    armed: Armed,
    /// The tick at which the trap received the connected sources.
    peers_at: Timestamp,
    pub(crate) trace: Option<Trace>,
    /// True while the host is off.
    pub(crate) down: bool,
}

/// The host as the kernel's rules use it.
struct View<'a>(&'a HostModel, Timestamp);

impl HostState for View<'_> {
    fn has_socket(&self, packet: &Packet) -> bool {
        let (protocol, from, to) = ends(packet);
        self.0.has_socket(self.1, protocol, from, to)
    }

    fn is_published(&self, packet: &Packet) -> bool {
        let (protocol, _, to) = ends(packet);
        self.0.is_published(protocol, to.ip(), to.port())
    }

    fn is_local(&self, address: IpAddr) -> bool {
        self.0.addresses().contains(&address)
    }
}

fn ends(packet: &Packet) -> (Protocol, SocketAddr, SocketAddr) {
    let (protocol, from, to) = match packet.transport {
        Transport::Tcp { source_port, destination_port, .. } => (Protocol::Tcp, source_port, destination_port),
        Transport::Udp { source_port, destination_port } => (Protocol::Udp, source_port, destination_port),
        _ => (Protocol::Icmp, 0, 0),
    };
    (protocol, SocketAddr::new(packet.source, from), SocketAddr::new(packet.destination, to))
}

impl World {
    /// Creates the host `number` of `options` with all its actors.
    #[must_use]
    pub fn new(options: &Options, number: u64) -> Self {
        let profiles = Profile::all();
        let profile = profiles[usize::try_from(number).unwrap_or(0) % profiles.len()].clone();
        let host = HostModel::new(profile);
        let mut chance = Chance::new(options.seed, "host", number);
        let now = Timestamp::at(TICK);
        let seed = u64::from(chance.below(u32::MAX)) << 32 | number;
        let settings = settings(&options.engine);
        let daemon = Daemon::new(now, options.daemon, options.pace, &host, settings.0.scan_trigger);
        let detector = Detector::new(options.engine, chance.key(), &host, daemon.services());
        let mut kernel = Kernel::new(now, &settings.1, options.kernel);
        kernel.allow(detector.allowed());
        Self {
            now,
            host,
            kernel,
            detector,
            daemon,
            options: options.clone(),
            seed,
            number,
            queue: Queue::default(),
            actors: HashMap::new(),
            parts: HashMap::new(),
            current: 0,
            next_actor: 1,
            owners: HashMap::new(),
            scanners: HashMap::new(),
            addresses: 0,
            step: 0,
            outcome: Outcome::default(),
            review_at: None,
            senders: HashMap::new(),
            missed: BTreeMap::new(),
            waiting: false,
            armed: Armed::never(options),
            peers_at: Timestamp::ZERO,
            trace: None,
            down: false,
        }
    }

    /// Simulates the host for `span`. `day` is called after each day.
    pub fn run(mut self, span: Duration, day: &dyn Fn()) -> (Outcome, Option<Trace>) {
        let end = Timestamp::at(TICK).after(span);
        let mut midnight = days(1);
        while let Some((at, actor)) = self.queue.pop_before(end) {
            if at.since_origin() >= midnight {
                midnight += days(1);
                day();
            }
            self.now = at;
            self.current = actor;
            let Some(mut acting) = self.actors.remove(&actor) else { continue };
            match acting.act(&mut self) {
                Some(next) => {
                    self.actors.insert(actor, acting);
                    self.queue.push(next.max(self.now), actor);
                }
                None => self.finish(actor),
            }
            if self.is_replayed() {
                break;
            }
        }
        self.name_missed();
        // Unfinished scans are not counted, like scans that have not begun.
        let mut outcome = Outcome::of_host(span);
        outcome.packets = self.step;
        outcome.add(Outcome { packets: 0, ..self.outcome });
        (outcome, self.trace)
    }

    /// True if a replay has reached its packet, and the source of that packet has its verdict. The verdict comes later
    /// than the packet if the host settles, or if only the trap has banned the source.
    fn is_replayed(&self) -> bool {
        let Some(target) = self.trace.as_ref().and_then(Trace::reached) else { return false };
        let is_caught = || self.kernel.caught(self.now).contains(&target);
        self.detector.is_blocked(self.now, target) || !(self.waiting || self.review_at.is_some() && is_caught())
    }

    fn finish(&mut self, actor: ActorId) {
        let Some(part) = self.parts.remove(&actor) else { return };
        if let Role::Dishonest(behaviour) = part.role {
            // A host that was off during the whole scan could not detect it.
            if !part.met {
                return;
            }
            if !part.banned {
                self.missed.insert(actor, (behaviour, part.step));
            }
            let seen = self.outcome.dishonest.entry(behaviour).or_default();
            seen.sources += 1;
            seen.found += u64::from(part.banned);
            let learned = u32::try_from(part.learned.len()).unwrap_or(u32::MAX);
            let place = seen.ports_learned.partition_point(|other| *other < learned);
            seen.ports_learned.insert(place, learned);
        }
    }
}

/// The interface for actors.
impl World {
    /// Creates the generator of the actor with this name and number.
    #[must_use]
    pub fn chance(&self, name: &str, index: u64) -> Chance {
        Chance::new(self.seed, name, index)
    }

    /// True if arrivals or operations of this name are simulated.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&name)
    }

    /// The factor for the frequency of rare events.
    #[must_use]
    pub fn pace(&self) -> u32 {
        self.options.pace
    }

    /// Adds an actor that first acts at `at`.
    pub fn spawn(&mut self, role: Role, at: Timestamp, actor: impl Actor + 'static) {
        let id = self.next_actor;
        self.next_actor += 1;
        match role {
            Role::Honest(behaviour) => self.outcome.honest.entry(behaviour).or_default().sources += 1,
            Role::Authorised(behaviour) => self.outcome.authorised.entry(behaviour).or_default().sources += 1,
            Role::Dishonest(_) | Role::Backstage => {}
        }
        self.parts.insert(
            id,
            Part { role, banned: false, step: 0, met: false, ports: HashSet::new(), learned: HashSet::new() },
        );
        self.actors.insert(id, Box::new(actor));
        self.queue.push(at, id);
    }

    /// Returns a new pair of addresses: honest sources are in 11.0.0.0/8, others in 12.0.0.0/8, each with a separate
    /// /64.
    pub fn new_addresses(&mut self, role: Role) -> (Ipv4Addr, Ipv6Addr) {
        self.addresses += 1;
        let first = if matches!(role, Role::Honest(_)) { 11 } else { 12 };
        let v4 = Ipv4Addr::from_bits(first << 24 | self.addresses);
        let [high, low] = [first << 8 | self.addresses >> 16, self.addresses & 0xffff];
        let [high, low] = [high, low].map(|group| u16::try_from(group).unwrap_or(u16::MAX));
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, high, low, 0, 0, 0, 9);
        self.own(role, v4.into());
        self.own(role, v6.into());
        (v4, v6)
    }

    /// Records to which source an address belongs.
    pub fn own(&mut self, role: Role, address: IpAddr) {
        match role {
            Role::Honest(behaviour) => self.owners.insert(BanTarget::containing(address), behaviour),
            Role::Dishonest(behaviour) => self.scanners.insert(BanTarget::containing(address), behaviour),
            Role::Authorised(_) | Role::Backstage => None,
        };
    }

    /// An honest source as the victim of a forger, if there is one.
    pub fn some_honest_address(&self, chance: &mut Chance) -> Option<IpAddr> {
        let last = (11 << 24) | (chance.below(self.addresses) + 1);
        let found = (0..64).map(|back| IpAddr::from(Ipv4Addr::from_bits(last - back)));
        found.into_iter().find(|address| self.owners.contains_key(&BanTarget::containing(*address)))
    }

    /// Receives a TCP segment without payload from outside.
    pub fn tcp(&mut self, source: SocketAddr, port: u16, flags: u16) -> Reply {
        self.receive(self.tcp_packet(source, port, flags))
    }

    pub fn syn(&mut self, source: SocketAddr, port: u16) -> Reply {
        self.tcp(source, port, TcpFlags::SYN)
    }

    /// Receives a datagram from outside.
    pub fn udp(&mut self, source: SocketAddr, port: u16) -> Reply {
        self.receive(self.udp_packet(source, port))
    }

    #[must_use]
    pub fn tcp_packet(&self, source: SocketAddr, port: u16, flags: u16) -> Packet<'static> {
        let (source_port, flags) = (source.port(), TcpFlags(flags));
        self.packet(source.ip(), Transport::Tcp { source_port, destination_port: port, flags, payload: 0 })
    }

    #[must_use]
    pub fn udp_packet(&self, source: SocketAddr, port: u16) -> Packet<'static> {
        self.packet(source.ip(), Transport::Udp { source_port: source.port(), destination_port: port })
    }

    /// Builds a packet from `source` to the host's address of the same family.
    #[must_use]
    pub fn packet(&self, source: IpAddr, transport: Transport) -> Packet<'static> {
        Packet {
            source,
            destination: self.host.address_for(source),
            delivery: Delivery::Host,
            interface: 2,
            checksum: Checksum::Good.into(),
            fragmented: false,
            transport,
        }
    }

    /// Sends a packet of the host to `peer`, from a socket that stays open for `keeps`.
    pub fn originate(&mut self, protocol: Protocol, port: u16, peer: SocketAddr, keeps: Duration) {
        let transport = match protocol {
            Protocol::Udp => Transport::Udp { source_port: port, destination_port: peer.port() },
            _ => Transport::Tcp {
                source_port: port,
                destination_port: peer.port(),
                flags: TcpFlags(TcpFlags::SYN),
                payload: 0,
            },
        };
        self.host.open_flow(protocol, port, peer, self.now.after(keeps));
        self.send(peer.ip(), transport);
    }

    /// Opens a connection of `source` to a service. The client keeps it for `keeps`.
    pub fn connect(&mut self, source: SocketAddr, port: u16, keeps: Duration) {
        self.host.connect(source, port, self.now.after(keeps));
        // Connections are listed every two seconds.
        let second = next_tick(self.now);
        let odd = second.since_origin().as_secs() % 2 == 1;
        self.daemon.look_at(if odd { second.after(TICK) } else { second });
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        self.note_at(self.now, text);
    }

    /// Notes an event of the source `target` if it is the one that is replayed.
    fn note_source(&mut self, at: Timestamp, target: BanTarget, text: impl FnOnce() -> String) {
        if self.trace.as_ref().is_some_and(|trace| trace.is_about(target)) {
            self.note_at(at, text);
        }
    }

    fn note_at(&mut self, at: Timestamp, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.note(at, text());
        }
    }
}

/// The first tick of the daemon's clock after `now`.
fn next_tick(now: Timestamp) -> Timestamp {
    Timestamp::at(Duration::from_secs(now.since_origin().as_secs()) + TICK)
}
