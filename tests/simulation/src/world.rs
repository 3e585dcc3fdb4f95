//! One host's world: a packet goes through the model of the kernel first, which decides whether it passes, and then through
//! the engine, as on a live host, where the capture sees packets before the firewall drops them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use portsentry::types::{BanTarget, Expiry, Protocol, Timestamp};
use portsentry::wire::{Checksum, Delivery, Packet, TcpFlags, Transport};

use crate::Options;
use crate::chance::{Chance, days, hours};
use crate::detector::{CAPPED_BAN, Detector, IgnoreReason, Judgement, MEMORY, settings};
use crate::host::{HostModel, Profile, Reply, Service, TICK};
use crate::kernel::{HostState, Kernel, Passage};
use crate::outcome::{HonestBan, Outcome};
use crate::queue::{ActorId, Queue};
use crate::replay::Trace;

/// Acts at its times in the queue, until it returns `None`.
pub trait Actor {
    /// Acts now; when it acts next.
    fn act(&mut self, world: &mut World) -> Option<Timestamp>;
}

/// What an actor is to the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A source that must not be banned.
    Honest(&'static str),
    /// A source that should be found.
    Dishonest(&'static str),
    /// No source of packets from outside: the host's own doing, and what only brings other actors into being.
    Backstage,
}

/// What is known of an actor while it acts.
struct Part {
    role: Role,
    banned: bool,
    ports: HashSet<u16>,
    learned: HashSet<u16>,
}

/// Which ports the trap was armed with. They are computed only when a packet asks for them and they may have changed: that is
/// most of a run's work.
struct Armed {
    /// The tick for which they were computed.
    at: Timestamp,
    /// They have changed since.
    changed: bool,
    /// When the engine forgets some of what kept ports out of them.
    stale_at: Timestamp,
}

impl Armed {
    const NEVER: Self = Self { at: Timestamp::ZERO, changed: true, stale_at: Timestamp::ZERO };
    /// The engine remembers published ports for a day: not to notice the end of that for an hour excuses a little more.
    const LONGEST: Duration = hours(1);

    fn change(&mut self, now: Timestamp) {
        self.changed = true;
        self.stale_at = self.stale_at.min(now.after(MEMORY + TICK));
    }
}

/// The program needs so long without a verdict until it lets go what the trap caught (src/sensor/trap.rs).
const UNCONFIRMED_FOR: Duration = Duration::from_secs(2);

pub struct World {
    pub now: Timestamp,
    pub host: HostModel,
    kernel: Kernel,
    detector: Detector,
    options: Options,
    seed: u64,
    number: u64,
    queue: Queue,
    actors: HashMap<ActorId, Box<dyn Actor>>,
    parts: HashMap<ActorId, Part>,
    /// The actor that acts now.
    current: ActorId,
    next_actor: ActorId,
    /// Which honest behaviour an address belongs to.
    owners: HashMap<BanTarget, &'static str>,
    addresses: u32,
    /// Packets from outside so far.
    step: u64,
    outcome: Outcome,
    /// When the daemon reads the listeners next, if they have changed.
    refresh_at: Option<Timestamp>,
    /// When the daemon reviews the trap next, if it caught a source.
    review_at: Option<Timestamp>,
    /// Sources that the trap caught, since when the program has no verdict on them.
    unconfirmed: HashMap<BanTarget, Timestamp>,
    /// Reviewed sources that keep their places in `caught` until the ceilings have room.
    reviewed: HashSet<BanTarget>,
    armed: Armed,
    pub(crate) trace: Option<Trace>,
    /// The host is off.
    down: bool,
}

/// What the rules of the kernel see of the host.
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
    /// The host `number` under `options`, with all of its actors.
    #[must_use]
    pub fn new(options: &Options, number: u64) -> Self {
        let profiles = Profile::all();
        let profile = profiles[usize::try_from(number).unwrap_or(0) % profiles.len()].clone();
        let host = HostModel::new(profile);
        let mut chance = Chance::new(options.seed, "host", number);
        let now = Timestamp::at(TICK);
        let seed = u64::from(chance.below(u32::MAX)) << 32 | number;
        let detector = Detector::new(options.engine, chance.key(), &host);
        let mut kernel = Kernel::new(now, &settings(&options.engine).1, options.kernel);
        kernel.allow(detector.allowed());
        Self {
            now,
            host,
            kernel,
            detector,
            options: options.clone(),
            seed,
            number,
            queue: Queue::default(),
            actors: HashMap::new(),
            parts: HashMap::new(),
            current: 0,
            next_actor: 1,
            owners: HashMap::new(),
            addresses: 0,
            step: 0,
            outcome: Outcome::default(),
            refresh_at: None,
            review_at: None,
            unconfirmed: HashMap::new(),
            reviewed: HashSet::new(),
            armed: Armed::NEVER,
            trace: None,
            down: false,
        }
    }

    /// Lets the host live for `span` from its start; `day` is called after each day of it.
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
            if self.trace.as_ref().is_some_and(Trace::is_over) {
                break;
            }
        }
        // Scans that are under way count no more than those that have not begun.
        let mut outcome = Outcome::of_host(span);
        outcome.packets = self.step;
        outcome.add(Outcome { packets: 0, ..self.outcome });
        (outcome, self.trace)
    }

    fn finish(&mut self, actor: ActorId) {
        let Some(part) = self.parts.remove(&actor) else { return };
        if let Role::Dishonest(behaviour) = part.role {
            let seen = self.outcome.dishonest.entry(behaviour).or_default();
            seen.sources += 1;
            seen.found += u64::from(part.banned);
            let learned = u32::try_from(part.learned.len()).unwrap_or(u32::MAX);
            let place = seen.ports_learned.partition_point(|other| *other < learned);
            seen.ports_learned.insert(place, learned);
        }
    }
}

/// What actors do.
impl World {
    /// A generator of its own for an actor of this name and number.
    #[must_use]
    pub fn chance(&self, name: &str, index: u64) -> Chance {
        Chance::new(self.seed, name, index)
    }

    /// How many times as often events happen.
    #[must_use]
    pub fn pace(&self) -> u32 {
        self.options.pace
    }

    /// Brings an actor into being that first acts at `at`.
    pub fn spawn(&mut self, role: Role, at: Timestamp, actor: impl Actor + 'static) {
        let id = self.next_actor;
        self.next_actor += 1;
        if let Role::Honest(behaviour) = role {
            self.outcome.honest.entry(behaviour).or_default().sources += 1;
        }
        self.parts.insert(id, Part { role, banned: false, ports: HashSet::new(), learned: HashSet::new() });
        self.actors.insert(id, Box::new(actor));
        self.queue.push(at, id);
    }

    /// A new pair of addresses: of honest sources in 11.0.0.0/8, of others in 12.0.0.0/8, each with a /64 of its own.
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

    /// Records that an address belongs to an honest source.
    pub fn own(&mut self, role: Role, address: IpAddr) {
        if let Role::Honest(behaviour) = role {
            self.owners.insert(BanTarget::of(address), behaviour);
        }
    }

    /// An honest source, if there is one: what a forger chooses its victim from.
    pub fn some_honest_address(&self, chance: &mut Chance) -> Option<IpAddr> {
        let last = (11 << 24) | (chance.below(self.addresses) + 1);
        let found = (0..64).map(|back| IpAddr::from(Ipv4Addr::from_bits(last - back)));
        found.into_iter().find(|address| self.owners.contains_key(&BanTarget::of(*address)))
    }

    /// A TCP segment without payload from outside.
    pub fn tcp(&mut self, source: SocketAddr, port: u16, flags: u16) -> Reply {
        self.receive(self.tcp_packet(source, port, flags))
    }

    pub fn syn(&mut self, source: SocketAddr, port: u16) -> Reply {
        self.tcp(source, port, TcpFlags::SYN)
    }

    /// A datagram from outside.
    pub fn udp(&mut self, source: SocketAddr, port: u16) -> Reply {
        self.receive(self.udp_packet(source, port))
    }

    #[must_use]
    pub fn tcp_packet(&self, source: SocketAddr, port: u16, flags: u16) -> Packet {
        let (source_port, flags) = (source.port(), TcpFlags(flags));
        self.packet(source.ip(), Transport::Tcp { source_port, destination_port: port, flags, payload: 0 })
    }

    #[must_use]
    pub fn udp_packet(&self, source: SocketAddr, port: u16) -> Packet {
        self.packet(source.ip(), Transport::Udp { source_port: source.port(), destination_port: port })
    }

    /// A packet from `source` to the host's address of that family.
    #[must_use]
    pub fn packet(&self, source: IpAddr, transport: Transport) -> Packet {
        Packet {
            source,
            destination: self.host.address_for(source),
            delivery: Delivery::Host,
            interface: 2,
            checksum: Checksum::Good,
            fragmented: false,
            transport,
        }
    }

    /// The host sends a packet of its own to `peer`, from a socket that it keeps for `span`.
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

    /// Starts or stops a service.
    pub fn set_up(&mut self, service: Service, up: bool) {
        if self.host.is_up(service.protocol, service.port) == up {
            return;
        }
        self.catch_up();
        self.host.set_up(service, up);
        let tick = next_tick(self.now);
        self.refresh_at.get_or_insert(tick);
        let state = if up { "starts" } else { "stops" };
        self.note(|| format!("the service on {:?} port {} {state}", service.protocol, service.port));
    }

    /// The host goes down: nothing answers and nothing is seen until [`World::boot`].
    pub fn power_off(&mut self) {
        self.catch_up();
        self.down = true;
        self.host.stop_all();
        self.note(|| "the host goes down".to_owned());
    }

    /// The host comes up, with the program and without any service; bans are restored from the ledger.
    pub fn boot(&mut self) {
        self.down = false;
        (self.refresh_at, self.review_at, self.armed) = (None, None, Armed::NEVER);
        self.unconfirmed.clear();
        self.reviewed.clear();
        let bans = self.kernel.bans(self.now);
        let key = Chance::new(self.seed, "boot", self.step).key();
        self.detector = Detector::new(self.options.engine, key, &self.host);
        self.kernel = Kernel::new(self.now, &settings(&self.options.engine).1, self.options.kernel);
        self.kernel.allow(self.detector.allowed());
        for (target, left) in bans {
            self.kernel.block(self.now, target, left);
            self.detector.adopt(self.now, target, left);
        }
        self.note(|| "the host is up, and the program runs".to_owned());
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.note(self.now, text());
        }
    }
}

/// The way of a packet.
impl World {
    /// A packet comes from outside.
    pub fn receive(&mut self, packet: Packet) -> Reply {
        self.step += 1;
        if self.down {
            return Reply::Silence;
        }
        self.catch_up();
        let (protocol, _, to) = ends(&packet);
        if !self.host.is_up(protocol, to.port()) {
            self.arm();
        }
        let (now, part) = (self.now, self.parts.get(&self.current).map_or(Role::Backstage, |part| part.role));
        let passage = self.kernel.input(now, &packet, &View(&self.host, now));
        let host = &self.host;
        let judgement =
            self.detector.observe(now, &packet, |protocol, source, to| host.taker(now, protocol, source, to));
        if matches!(judgement, Judgement::Ignored(IgnoreReason::Open)) && self.kernel.traps(protocol, to.port()) {
            self.armed.change(now);
        }
        if let Some(trace) = &mut self.trace {
            trace.packet(now, self.step, part, &packet, passage, &judgement);
        }
        self.record(part, &packet, to.port(), passage, &judgement);
        if let Judgement::Ban { target, expiry, .. } = judgement {
            self.kernel.block(now, target, expiry);
        }
        if passage != Passage::Passed {
            return Reply::Silence;
        }
        let reply = self.host.answer(now, &packet);
        self.reply(&packet, reply);
        if reply == Reply::SynAck
            && let Some(part) = self.parts.get_mut(&self.current)
        {
            part.learned.insert(to.port());
        }
        reply
    }

    /// The host sends what it answers.
    fn reply(&mut self, packet: &Packet, reply: Reply) {
        let (_, from, to) = ends(packet);
        let tcp = |flags| Transport::Tcp {
            source_port: to.port(),
            destination_port: from.port(),
            flags: TcpFlags(flags),
            payload: 0,
        };
        let transport = match (reply, packet.transport) {
            (Reply::SynAck, _) => tcp(TcpFlags::SYN | TcpFlags::ACK),
            (Reply::Data, Transport::Udp { .. }) => {
                Transport::Udp { source_port: to.port(), destination_port: from.port() }
            }
            (Reply::Data, _) => tcp(TcpFlags::ACK),
            // A reset and an ICMP error teach the engine nothing.
            _ => return,
        };
        self.send(from.ip(), transport);
    }

    fn send(&mut self, peer: IpAddr, transport: Transport) {
        let (source, destination) = (self.host.address_for(peer), peer);
        let packet = Packet { source, destination, delivery: Delivery::Outgoing, ..self.packet(peer, transport) };
        let (protocol, from, _) = ends(&packet);
        // The trap was armed before the engine learns of this.
        if !self.host.is_up(protocol, from.port()) {
            self.arm();
        }
        if self.kernel.traps(protocol, from.port()) {
            self.armed.change(self.now);
        }
        self.kernel.output(self.now, &packet);
        let (now, host) = (self.now, &self.host);
        self.detector.sent(now, &packet, |protocol, source, to| host.taker(now, protocol, source, to));
    }

    /// Does what the daemon has done since the last packet: reads the listeners, and reviews what the trap caught.
    fn catch_up(&mut self) {
        let now = self.now;
        if let Some(at) = self.refresh_at.filter(|at| *at <= now) {
            self.refresh_at = None;
            self.detector.host_changed(at, &self.host);
            self.armed.change(at);
        }
        while let Some(at) = self.review_at.filter(|at| *at <= now) {
            self.review(at);
        }
    }

    /// Arms the trap with the ports that were closed at the last tick.
    fn arm(&mut self) {
        let tick = Timestamp::at(next_tick(self.now).since_origin() - TICK);
        let Armed { at, changed, stale_at } = self.armed;
        if at == tick || !changed && self.now < stale_at {
            return;
        }
        let longest = self.now.after(Armed::LONGEST);
        let stale_at = if stale_at > self.now { stale_at.min(longest) } else { longest };
        self.armed = Armed { at: tick, changed: false, stale_at };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ports = self.detector.closed(self.now, protocol);
            self.kernel.arm(protocol, ports);
        }
    }

    fn review(&mut self, at: Timestamp) {
        self.review_at = None;
        let mut reviewed = HashSet::new();
        let caught: HashSet<_> = self.kernel.caught(at).into_iter().collect();
        self.reviewed.retain(|target| caught.contains(target));
        let mut fresh: Vec<_> = caught.difference(&self.reviewed).copied().collect();
        fresh.sort_unstable();
        for target in fresh {
            let since = *self.unconfirmed.entry(target).or_insert(at);
            if self.detector.is_blocked(at, target) {
                reviewed.insert(target);
            } else if at.since(since) >= UNCONFIRMED_FOR {
                reviewed.insert(target);
                if self.detector.evidence(at, target) > self.kernel.forgiven() {
                    // The ceilings are reached.
                    self.kernel.block(at, target, Expiry::After(CAPPED_BAN));
                    self.detector.adopt_short(at, target);
                    continue;
                }
                self.kernel.lift(target);
                self.outcome.let_go += 1;
                self.note(|| format!("the program lets {target} go: it holds nothing against it"));
            } else {
                self.review_at = Some(at.after(TICK));
            }
        }
        self.kernel.forget(&reviewed);
        self.unconfirmed.retain(|target, _| !reviewed.contains(target));
        self.reviewed.extend(reviewed);
        if self.detector.has_room(at) {
            self.kernel.release(&std::mem::take(&mut self.reviewed));
        } else if !self.reviewed.is_empty() {
            self.review_at.get_or_insert(at.after(TICK));
        }
    }

    fn record(&mut self, role: Role, packet: &Packet, port: u16, passage: Passage, judgement: &Judgement) {
        if passage == Passage::Trapped {
            let tick = next_tick(self.now);
            self.review_at.get_or_insert(tick);
        }
        let banned = matches!(judgement, Judgement::Ban { .. });
        let source = BanTarget::of(packet.source);
        let owner = self.owners.get(&source).copied();
        match role {
            Role::Honest(behaviour) => {
                let seen = self.outcome.honest.entry(behaviour).or_default();
                seen.packets += 1;
                seen.bans += u64::from(banned);
                seen.alarms += u64::from(matches!(judgement, Judgement::LogOnly));
                seen.trapped += u64::from(passage == Passage::Trapped);
                seen.refused += u64::from(passage == Passage::Blocked);
            }
            Role::Dishonest(behaviour) => {
                let seen = self.outcome.dishonest.entry(behaviour).or_default();
                seen.packets += 1;
                let Some(part) = self.parts.get_mut(&self.current) else { return };
                let long = |expiry: &Expiry| !matches!(expiry, Expiry::After(span) if *span <= CAPPED_BAN);
                seen.long_bans += u64::from(matches!(judgement, Judgement::Ban { expiry, .. } if long(expiry)));
                let reported = self.detector.reports_distributed_scan(self.now);
                // What is done in the name of others finds nothing, unless it is all that the source does.
                if !part.banned && (owner.is_none() || behaviour.starts_with("forger")) {
                    part.ports.insert(port);
                    part.banned = banned || reported || passage == Passage::Blocked;
                    if part.banned {
                        let ports = u32::try_from(part.ports.len()).unwrap_or(u32::MAX);
                        let place = seen.ports_before_ban.partition_point(|other| *other < ports);
                        seen.ports_before_ban.insert(place, ports);
                    }
                }
            }
            Role::Backstage => {}
        }
        let Judgement::Ban { target, expiry, ports } = judgement else { return };
        let (behaviour, forged) = match (role, owner) {
            (Role::Honest(behaviour), _) => (behaviour, false),
            (Role::Dishonest(behaviour), Some(_)) => (behaviour, true),
            _ => return,
        };
        self.outcome.honest_bans.push(HonestBan {
            replay: format!("{}:{}:{}:{}", self.options.seed, self.options.pace, self.number, self.step),
            profile: self.host.profile.name,
            behaviour,
            forged,
            target: target.to_string(),
            at: self.now.since_origin().as_secs(),
            lasts: match expiry {
                Expiry::Never => None,
                Expiry::After(span) => Some(span.as_secs()),
            },
            ports: ports.clone(),
        });
    }
}

/// The first tick of the daemon's clock after `now`.
fn next_tick(now: Timestamp) -> Timestamp {
    Timestamp::at(Duration::from_secs(now.since_origin().as_secs()) + TICK)
}
