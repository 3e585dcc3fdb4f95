//! A model of the table `inet portsentry` with its trap, as nft/portsentry-trap.nft and nft/portsentry-trap-udp.nft specify it:
//! the sets with their sizes, timeouts and limits, and the rules in their order. tests/trap/model.rs holds it against the
//! kernel on the same packets.
//!
//! References: the kernel's net/netfilter/nft_dynset.c (an existing element is not refreshed by `add`), nft_limit.c (a bucket
//! that begins full), nft_set_hash.c (expired elements do not match).

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use portsentry::enforce::nft::{RulesetSpec, TRAP_BURST, Trap};
use portsentry::types::{BanTarget, Expiry, PortSet, Protocol, Timestamp};
use portsentry::wire::{Delivery, Packet, TcpFlags, Transport};

/// The expression `limit rate over`: a token bucket that begins full.
#[derive(Clone, Copy, Debug)]
struct Limit {
    /// The time that one packet costs.
    cost: Duration,
    most: Duration,
    tokens: Duration,
    last: Timestamp,
}

impl Limit {
    fn new(packets: u32, per: Duration, burst: u32, now: Timestamp) -> Self {
        let cost = per / packets.max(1);
        Self { cost, most: cost * burst, tokens: cost * burst, last: now }
    }

    /// Counts a packet; true if it is over the limit.
    fn is_over(&mut self, now: Timestamp) -> bool {
        let tokens = (self.tokens + now.since(self.last)).min(self.most);
        self.last = now;
        let over = tokens < self.cost;
        self.tokens = if over { tokens } else { tokens - self.cost };
        over
    }
}

#[derive(Clone, Copy)]
struct Element {
    /// `None`: no timeout.
    expires: Option<Timestamp>,
    limit: Option<Limit>,
}

impl Element {
    fn is_live(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|at| at > now)
    }
}

/// A hash set of the table whose elements have timeouts.
struct TimedSet<K> {
    size: usize,
    elements: HashMap<K, Element>,
}

impl<K: Copy + Eq + Hash> TimedSet<K> {
    fn new(size: usize) -> Self {
        Self { size, elements: HashMap::new() }
    }

    fn contains(&self, now: Timestamp, key: K) -> bool {
        self.elements.get(&key).is_some_and(|element| element.is_live(now))
    }

    /// The rule statement `add @set { key timeout … }`: keeps an element that is there. `None` where the set is full, which
    /// ends the rule.
    fn add(&mut self, now: Timestamp, key: K, timeout: Expiry) -> Option<&mut Element> {
        let fresh = Element { expires: end(now, timeout), limit: None };
        if !self.contains(now, key) {
            if self.elements.len() >= self.size {
                // The kernel collects expired elements within a second or so.
                self.elements.retain(|_, element| element.is_live(now));
            }
            if self.elements.len() >= self.size {
                return None;
            }
            self.elements.insert(key, fresh);
        }
        self.elements.get_mut(&key)
    }

    /// Sets the element whatever was there, as the daemon does.
    fn replace(&mut self, now: Timestamp, key: K, timeout: Expiry) {
        self.elements.remove(&key);
        self.add(now, key, timeout);
    }

    fn live(&self, now: Timestamp) -> Vec<K>
    where
        K: Ord,
    {
        let mut keys: Vec<K> =
            self.elements.iter().filter(|(_, element)| element.is_live(now)).map(|(key, _)| *key).collect();
        keys.sort();
        keys
    }
}

fn end(now: Timestamp, timeout: Expiry) -> Option<Timestamp> {
    match timeout {
        Expiry::Never => None,
        Expiry::After(span) => Some(now.after(span)),
    }
}

/// The sets of one address family.
struct Family {
    blocked: TimedSet<BanTarget>,
    touched: TimedSet<(BanTarget, u16)>,
    touched_udp: TimedSet<(BanTarget, u16)>,
    suspects: TimedSet<BanTarget>,
    caught: TimedSet<BanTarget>,
}

/// What the firewall made of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    Passed,
    /// Its source was in `blocked`.
    Blocked,
    /// The trap put its source into `blocked`, and dropped it.
    Trapped,
}

/// What the rules ask the host for.
pub trait HostState {
    /// `socket`: there is one for this packet.
    fn has_socket(&self, packet: &Packet) -> bool;
    /// Destination NAT takes the packet away before the trap.
    fn is_published(&self, packet: &Packet) -> bool;
    /// `fib … type local`.
    fn is_local(&self, address: IpAddr) -> bool;
}

/// Rules of the trap that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct KernelRules {
    /// The rules `socket transparent …`.
    pub socket: bool,
    /// The set `touched`: the same port counts once.
    pub touched: bool,
    /// The set `asked`: answers to datagrams do not count.
    pub asked: bool,
}

impl Default for KernelRules {
    fn default() -> Self {
        Self { socket: true, touched: true, asked: true }
    }
}

pub struct Kernel {
    trap: Option<Trap>,
    rules: KernelRules,
    allowed: Vec<IpNet>,
    trapped: PortSet,
    trapped_udp: PortSet,
    asked: TimedSet<u16>,
    v4: Family,
    v6: Family,
    ceiling: Limit,
}

/// How long an element of `asked` lasts.
const ASKED: Duration = Duration::from_secs(120);
const WEEK: Duration = Duration::from_secs(604_800);

impl Kernel {
    #[must_use]
    pub fn new(now: Timestamp, spec: &RulesetSpec, rules: KernelRules) -> Self {
        let blocked = usize::try_from(spec.size).unwrap_or(usize::MAX);
        // Sizes as in src/netlink/nft/set.rs.
        let family = |touched, touched_udp, suspects| Family {
            blocked: TimedSet::new(blocked),
            touched: TimedSet::new(touched),
            touched_udp: TimedSet::new(touched_udp),
            suspects: TimedSet::new(suspects),
            caught: TimedSet::new(TRAP_BURST as usize),
        };
        // The configuration has bans a minute.
        let most = spec.trap.map_or(1, |trap| trap.ceiling.packets());
        Self {
            trap: spec.trap,
            rules,
            allowed: Vec::new(),
            trapped: PortSet::new(),
            trapped_udp: PortSet::new(),
            asked: TimedSet::new(65_536),
            v4: family(131_072, 65_536, 65_536),
            v6: family(65_536, 32_768, 32_768),
            ceiling: Limit::new(most, Duration::from_secs(60), most.min(TRAP_BURST), now),
        }
    }

    /// Sets `trapped`, or `trapped_udp`.
    pub fn arm(&mut self, protocol: Protocol, ports: PortSet) {
        match protocol {
            Protocol::Udp => self.trapped_udp = ports,
            _ => self.trapped = ports,
        }
    }

    /// True if the port is in `trapped`, or in `trapped_udp`.
    #[must_use]
    pub fn traps(&self, protocol: Protocol, port: u16) -> bool {
        if protocol == Protocol::Udp { self.trapped_udp.contains(port) } else { self.trapped.contains(port) }
    }

    pub fn allow(&mut self, networks: Vec<IpNet>) {
        self.allowed = networks;
    }

    fn family(&mut self, address: IpAddr) -> &mut Family {
        if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|network| network.contains(&address))
    }

    /// The chains `prerouting` and `trap`.
    pub fn input(&mut self, now: Timestamp, packet: &Packet, host: &impl HostState) -> Passage {
        let source = packet.source;
        if self.is_allowed(source) {
            return Passage::Passed;
        }
        let target = target(source);
        let blocked = &self.family(source).blocked;
        if blocked.contains(now, target) || blocked.contains(now, BanTarget::from_element(source)) {
            return Passage::Blocked;
        }
        let Some(trap) = self.trap else { return Passage::Passed };
        let (protocol, port) = match packet.transport {
            Transport::Tcp { destination_port, flags, .. }
                if trap.tcp && is_new(flags) && self.trapped.contains(destination_port) =>
            {
                (Protocol::Tcp, destination_port)
            }
            Transport::Udp { destination_port, .. }
                if trap.udp
                    && self.trapped_udp.contains(destination_port)
                    && !(self.rules.asked && self.asked.contains(now, destination_port)) =>
            {
                (Protocol::Udp, destination_port)
            }
            _ => return Passage::Passed,
        };
        if packet.delivery != Delivery::Host
            || host.is_published(packet)
            || !host.is_local(packet.destination)
            || host.is_local(source)
            || is_link_local(source)
            || self.rules.socket && host.has_socket(packet)
        {
            return Passage::Passed;
        }
        if trap.forgiven > 0 && !self.count(now, source, (protocol, port), &trap) {
            return Passage::Passed;
        }
        self.ban(now, source, &trap)
    }

    /// Counts a probe; true if it is one too many.
    fn count(&mut self, now: Timestamp, source: IpAddr, (protocol, port): (Protocol, u16), trap: &Trap) -> bool {
        let (window, once) = (Expiry::After(trap.window), self.rules.touched);
        let target = target(source);
        let family = self.family(source);
        let touched = if protocol == Protocol::Udp { &mut family.touched_udp } else { &mut family.touched };
        if once && touched.contains(now, (target, port)) {
            return false;
        }
        if touched.add(now, (target, port), window).is_none() {
            return false;
        }
        let Some(suspect) = family.suspects.add(now, target, window) else { return false };
        suspect.limit.get_or_insert_with(|| Limit::new(1, WEEK, trap.forgiven.into(), now)).is_over(now)
    }

    /// The chain `trap_ban`.
    fn ban(&mut self, now: Timestamp, source: IpAddr, trap: &Trap) -> Passage {
        if self.ceiling.is_over(now) {
            return Passage::Passed;
        }
        let target = target(source);
        let family = self.family(source);
        if family.caught.add(now, target, trap.expiry).is_none()
            || family.blocked.add(now, target, trap.expiry).is_none()
        {
            return Passage::Passed;
        }
        Passage::Trapped
    }

    /// The chain `trap_asked`.
    pub fn output(&mut self, now: Timestamp, packet: &Packet) {
        if let Transport::Udp { source_port, .. } = packet.transport
            && self.trap.is_some_and(|trap| trap.udp)
            && self.trapped_udp.contains(source_port)
        {
            self.asked.replace(now, source_port, Expiry::After(ASKED));
        }
    }

    /// The daemon blocks `target`.
    pub fn block(&mut self, now: Timestamp, target: BanTarget, expiry: Expiry) {
        self.family(target.element()).blocked.replace(now, target, expiry);
    }

    /// The daemon lifts the ban of `target`.
    pub fn lift(&mut self, target: BanTarget) {
        self.family(target.element()).blocked.elements.remove(&target);
    }

    /// The daemon has the trap count these from zero.
    pub fn forget(&mut self, targets: &HashSet<BanTarget>) {
        for family in [&mut self.v4, &mut self.v6] {
            for target in targets {
                family.suspects.elements.remove(target);
            }
            family.touched.elements.retain(|(source, _), _| !targets.contains(source));
            family.touched_udp.elements.retain(|(source, _), _| !targets.contains(source));
        }
    }

    /// The daemon makes room in `caught`.
    pub fn release(&mut self, targets: &HashSet<BanTarget>) {
        for family in [&mut self.v4, &mut self.v6] {
            family.caught.elements.retain(|target, _| !targets.contains(target));
        }
    }

    /// Ports that the trap forgives.
    #[must_use]
    pub fn forgiven(&self) -> usize {
        self.trap.map_or(0, |trap| trap.forgiven.into())
    }

    #[must_use]
    pub fn is_blocked(&self, now: Timestamp, target: BanTarget) -> bool {
        let family = if target.element().is_ipv4() { &self.v4 } else { &self.v6 };
        family.blocked.contains(now, target)
    }

    /// The sources in `caught` and `caught6`.
    #[must_use]
    pub fn caught(&self, now: Timestamp) -> Vec<BanTarget> {
        [&self.v4, &self.v6].map(|family| family.caught.live(now)).concat()
    }

    /// Every ban, to be kept over a reboot.
    #[must_use]
    pub fn bans(&self, now: Timestamp) -> Vec<(BanTarget, Expiry)> {
        let live = |family: &Family| {
            let left = |target: &BanTarget| match family.blocked.elements[target].expires {
                None => Expiry::Never,
                Some(at) => Expiry::After(at.since(now)),
            };
            family.blocked.live(now).into_iter().map(|target| (target, left(&target))).collect::<Vec<_>>()
        };
        [live(&self.v4), live(&self.v6)].concat()
    }

    /// The contents of a set, as addresses with a port where the set has one, in order; for comparisons.
    #[must_use]
    pub fn set(&self, now: Timestamp, name: &str) -> Vec<(IpAddr, Option<u16>)> {
        let family = if name.ends_with('6') { &self.v6 } else { &self.v4 };
        let sources = |set: &TimedSet<BanTarget>| set.live(now).iter().map(|target| (target.element(), None)).collect();
        let ports = |set: &TimedSet<(BanTarget, u16)>| {
            set.live(now).iter().map(|(target, port)| (target.element(), Some(*port))).collect()
        };
        match name.trim_end_matches('6') {
            "blocked" => sources(&family.blocked),
            "suspects" => sources(&family.suspects),
            "caught" => sources(&family.caught),
            "touched" => ports(&family.touched),
            "touched_udp" => ports(&family.touched_udp),
            _ => Vec::new(),
        }
    }
}

/// `tcp flags & (fin | syn | rst | ack) == syn`.
fn is_new(flags: TcpFlags) -> bool {
    flags.0 & (TcpFlags::FIN | TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK) == TcpFlags::SYN
}

/// The key of the sets: the address, or the /64 around it, link-local addresses included.
fn target(source: IpAddr) -> BanTarget {
    match source {
        IpAddr::V4(v4) => BanTarget::V4(v4),
        IpAddr::V6(v6) => BanTarget::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

fn is_link_local(source: IpAddr) -> bool {
    matches!(source, IpAddr::V6(v6) if v6.to_bits() >> 64 == 0xfe80 << 48)
}
