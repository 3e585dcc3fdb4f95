//! Models the table `inet portsentry` with its trap, as nft/portsentry-trap.nft and nft/portsentry-trap-udp.nft specify
//! it: the sets with their sizes, timeouts and limits, and the rules in their order. tests/trap/model.rs compares the
//! model with the kernel on the same packets.
//!
//! References: the kernel's net/netfilter/nft_dynset.c (an existing element is not refreshed by `add`), nft_limit.c (a
//! bucket that is initially full), nft_set_hash.c (expired elements do not match).

mod contents;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use portsentry::enforce::nft::{RulesetSpec, TRAP_BURST, Trap};
use portsentry::engine::PEER_THRESHOLD;
use portsentry::types::{BanTarget, Expiry, PortSet, Protocol, Timestamp};
use portsentry::wire::{Delivery, Packet, TcpFlags, Transport};

use crate::sets::{Limit, TimedSet};

/// The sets of one address family.
struct Family {
    blocked: TimedSet<BanTarget>,
    touched: TimedSet<(BanTarget, u16)>,
    touched_udp: TimedSet<(BanTarget, u16)>,
    suspects: TimedSet<BanTarget>,
    peer_suspects: TimedSet<BanTarget>,
    caught: TimedSet<BanTarget>,
    held: TimedSet<BanTarget>,
    held_ports: TimedSet<(BanTarget, u16)>,
    hold_counts: TimedSet<BanTarget>,
    hold_recent: TimedSet<BanTarget>,
}

/// The firewall's decision about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    Passed,
    /// The source is in `blocked`.
    Blocked,
    /// The trap added the source to `blocked` and dropped the packet.
    Trapped,
    /// A SYN from a source on hold.
    Held,
    /// Flags that no TCP stack sends, to a port of the trap.
    Illegal,
}

/// The state of the host that the rules need.
pub trait HostState {
    /// `socket`: a socket exists for this packet.
    fn has_socket(&self, packet: &Packet) -> bool;
    /// Destination NAT has a rule for the packet, which precedes the trap.
    fn is_published(&self, packet: &Packet) -> bool;
    /// `fib … type local`.
    fn is_local(&self, address: IpAddr) -> bool;
}

/// Rules of the trap that can be switched off.
#[derive(Clone, Copy, Debug)]
pub struct KernelRules {
    /// The rules `socket transparent …`.
    pub socket: bool,
    /// The set `touched`, with which repeated probes of a port count once.
    pub touched: bool,
    /// The set `asked`, with which answers to datagrams do not count.
    pub asked: bool,
    /// A source is put on hold each time it probes a port that is new for it.
    pub hold: bool,
    /// Maximum number of holds per source within a window.
    pub max_holds: u32,
    /// Number of ports that a connected source is forgiven.
    pub peer_forgiven: u8,
}

impl Default for KernelRules {
    fn default() -> Self {
        Self {
            socket: true,
            touched: true,
            asked: true,
            hold: true,
            max_holds: MAX_HOLDS,
            peer_forgiven: PEER_THRESHOLD - 1,
        }
    }
}

pub struct Kernel {
    trap: Option<Trap>,
    rules: KernelRules,
    allowed: Vec<IpNet>,
    trapped: PortSet,
    trapped_udp: PortSet,
    related: PortSet,
    asked: TimedSet<u16>,
    v4: Family,
    v6: Family,
    /// True if the set `ceiling_reached` has its elements.
    ceiling_reached: bool,
    ceiling: Limit,
    /// Connected sources, in the sets `peers` and `peers6`.
    peers: HashSet<BanTarget>,
    /// The source of the latest hold, until it is read.
    began: Option<BanTarget>,
}

/// Maximum number of holds per source within a window (src/netlink/nft/hold_rules.rs).
pub const MAX_HOLDS: u32 = 16;
/// Time for which the hold rules remember a port.
const RECENT: Duration = Duration::from_secs(10);
/// Timeout of an element of `asked`.
const ASKED: Duration = Duration::from_secs(120);
const WEEK: Duration = Duration::from_secs(604_800);

impl Kernel {
    #[must_use]
    pub fn new(now: Timestamp, spec: &RulesetSpec, rules: KernelRules) -> Self {
        let blocked = usize::try_from(spec.size).unwrap_or(usize::MAX);
        // The sizes are those in src/netlink/nft/set.rs.
        let family = |touched, touched_udp, suspects| Family {
            blocked: TimedSet::new(blocked),
            touched: TimedSet::new(touched),
            touched_udp: TimedSet::new(touched_udp),
            suspects: TimedSet::new(suspects),
            peer_suspects: TimedSet::new(4_096),
            caught: TimedSet::new(TRAP_BURST as usize),
            held: TimedSet::new(65_536),
            held_ports: TimedSet::new(262_144),
            hold_counts: TimedSet::new(65_536),
            hold_recent: TimedSet::new(262_144),
        };
        // The configuration counts bans per minute.
        let most = spec.trap.map_or(1, |trap| trap.ceiling.packets());
        Self {
            trap: spec.trap.map(|trap| Trap { hold: trap.hold.filter(|_| rules.hold), ..trap }),
            rules,
            allowed: Vec::new(),
            trapped: PortSet::new(),
            trapped_udp: PortSet::new(),
            related: PortSet::new(),
            asked: TimedSet::new(65_536),
            v4: family(131_072, 65_536, 65_536),
            v6: family(65_536, 32_768, 32_768),
            ceiling_reached: false,
            ceiling: Limit::new(most, Duration::from_secs(60), most.min(TRAP_BURST), now),
            peers: HashSet::new(),
            began: None,
        }
    }

    /// Sets the contents of `trapped` or `trapped_udp`.
    pub fn arm(&mut self, protocol: Protocol, ports: PortSet) {
        match protocol {
            Protocol::Udp => self.trapped_udp = ports,
            _ => self.trapped = ports,
        }
    }

    /// Sets the contents of `related`, which need not be among the ports of [`Kernel::arm`].
    pub fn arm_related(&mut self, ports: PortSet) {
        self.related = ports;
    }

    /// True if the port is in `trapped` and not only related, or in `trapped_udp`.
    #[must_use]
    pub fn traps(&self, protocol: Protocol, port: u16) -> bool {
        if protocol == Protocol::Udp { self.trapped_udp.contains(port) } else { self.trapped.contains(port) }
    }

    /// Fills or empties the set `ceiling_reached`.
    pub fn set_ceiling_reached(&mut self, reached: bool) {
        self.ceiling_reached = reached;
    }

    /// Sets the connected sources of the trap.
    pub fn set_peers(&mut self, peers: impl Iterator<Item = BanTarget>) {
        self.peers = peers.collect();
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
        let unanswered = matches!(packet.transport, Transport::Tcp { flags, .. } if is_unanswered(flags));
        let port = match packet.transport {
            Transport::Tcp { destination_port, .. } => destination_port,
            _ => 0,
        };
        let trapped = self.holds_at(port);
        let is_held =
            |kernel: &mut Self| unanswered && kernel.is_held(now, source) && host.is_local(packet.destination);
        // This rule runs before destination NAT.
        if !trapped && is_held(self) {
            return Passage::Held;
        }
        let passage = self.touch(now, packet, &trap, host);
        if passage == Passage::Passed && trapped && !is_translated(packet, host) && is_held(self) {
            return Passage::Held;
        }
        passage
    }

    /// The rules of the chain `trap` that lead to the chain `trap_touch`, and that chain.
    fn touch(&mut self, now: Timestamp, packet: &Packet, trap: &Trap, host: &impl HostState) -> Passage {
        let source = packet.source;
        let (protocol, port, opening) = match packet.transport {
            Transport::Tcp { destination_port, flags, .. }
                if trap.tcp
                    && self.holds_at(destination_port)
                    && (is_new(flags) || trap.hold.is_some() && is_illegal(flags)) =>
            {
                (Protocol::Tcp, destination_port, is_new(flags))
            }
            Transport::Udp { destination_port, .. }
                if trap.udp
                    && self.trapped_udp.contains(destination_port)
                    && !(self.rules.asked && self.asked.contains(now, destination_port)) =>
            {
                (Protocol::Udp, destination_port, true)
            }
            _ => return Passage::Passed,
        };
        if packet.delivery != Delivery::Host
            || is_translated(packet, host)
            || !host.is_local(packet.destination)
            || host.is_local(source)
            || self.rules.socket && host.has_socket(packet)
        {
            return Passage::Passed;
        }
        if protocol == Protocol::Tcp {
            self.hold(now, source, port, trap);
            if !opening {
                return Passage::Illegal;
            }
            if self.related.contains(port) {
                return Passage::Passed;
            }
        }
        // Neighbours with link-local addresses are held and otherwise left to the daemon.
        if is_link_local(source) || trap.forgiven > 0 && !self.count(now, source, (protocol, port), trap) {
            return Passage::Passed;
        }
        self.ban(now, source, trap)
    }

    fn holds_at(&self, port: u16) -> bool {
        self.trapped.contains(port) || self.related.contains(port)
    }

    /// True if the source is in `held`, or in `held6` by its /64 or, for a link-local source, by its address.
    fn is_held(&self, now: Timestamp, source: IpAddr) -> bool {
        let held = if source.is_ipv4() { &self.v4.held } else { &self.v6.held };
        held.contains(now, held_target(source)) || held.contains(now, target(source))
    }

    /// The chains `trap_hold` and `trap_hold_new`.
    fn hold(&mut self, now: Timestamp, source: IpAddr, port: u16, trap: &Trap) {
        let Some(length) = trap.hold else { return };
        let (target, max_holds) = (held_target(source), self.rules.max_holds);
        let family = self.family(source);
        if family.held_ports.contains(now, (target, port))
            || family.held_ports.add(now, (target, port), Expiry::After(RECENT)).is_none()
            || family.held.contains(now, target)
        {
            return;
        }
        let known = family.hold_counts.update(now, target, Expiry::After(trap.window));
        let counted = match known {
            Some(element) => Some(element),
            None => family.hold_recent.update(now, target, Expiry::After(RECENT)),
        };
        // If both sets are full, the source is not held.
        let Some(element) = counted else { return };
        if element.limit.get_or_insert_with(|| Limit::new(1, WEEK, max_holds, now)).is_over(now) {
            return;
        }
        if family.held.add(now, target, Expiry::After(length)).is_some() {
            self.began = Some(target);
        }
    }

    /// Returns the source that the last packet put on hold, and the length of the hold.
    pub fn take_hold(&mut self) -> Option<(BanTarget, Duration)> {
        let length = self.trap.and_then(|trap| trap.hold)?;
        self.began.take().map(|target| (target, length))
    }

    /// Counts a probe; true if it exceeds the forgiven number.
    fn count(&mut self, now: Timestamp, source: IpAddr, (protocol, port): (Protocol, u16), trap: &Trap) -> bool {
        let (window, once) = (Expiry::After(trap.window), self.rules.touched);
        let target = target(source);
        let is_peer = self.peers.contains(&target);
        let forgiven = if is_peer { trap.forgiven.max(self.rules.peer_forgiven) } else { trap.forgiven };
        let family = self.family(source);
        let touched = if protocol == Protocol::Udp { &mut family.touched_udp } else { &mut family.touched };
        if once && touched.contains(now, (target, port)) {
            return false;
        }
        if touched.add(now, (target, port), window).is_none() {
            return false;
        }
        let counted = if is_peer { &mut family.peer_suspects } else { &mut family.suspects };
        let Some(suspect) = counted.add(now, target, window) else { return false };
        suspect.limit.get_or_insert_with(|| Limit::new(1, WEEK, forgiven.into(), now)).is_over(now)
    }

    /// The chain `trap_ban`.
    fn ban(&mut self, now: Timestamp, source: IpAddr, trap: &Trap) -> Passage {
        let target = target(source);
        if self.ceiling_reached || self.ceiling.is_over(now) {
            return Passage::Passed;
        }
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
}

/// True if destination NAT forwards the packet. Connection tracking calls flags that no stack sends invalid, and NAT
/// leaves such segments alone.
fn is_translated(packet: &Packet, host: &impl HostState) -> bool {
    let is_invalid = matches!(packet.transport, Transport::Tcp { flags, .. } if is_illegal(flags));
    !is_invalid && host.is_published(packet)
}

/// `tcp flags & (fin | syn | rst | ack) == syn`.
fn is_new(flags: TcpFlags) -> bool {
    flags.0 & (TcpFlags::FIN | TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK) == TcpFlags::SYN
}

/// `tcp flags & (rst | ack) == 0`.
fn is_unanswered(flags: TcpFlags) -> bool {
    flags.0 & (TcpFlags::RST | TcpFlags::ACK) == 0
}

/// Flags that no TCP stack sends, to which closed ports do not reply.
fn is_illegal(TcpFlags(flags): TcpFlags) -> bool {
    const FIN_SYN: u16 = TcpFlags::FIN | TcpFlags::SYN;
    const SYN_RST: u16 = TcpFlags::SYN | TcpFlags::RST;
    flags & (SYN_RST | TcpFlags::ACK) == 0 || flags & FIN_SYN == FIN_SYN || flags & SYN_RST == SYN_RST
}

/// The key of the hold sets, in which each link-local address is a separate source.
fn held_target(source: IpAddr) -> BanTarget {
    match source {
        IpAddr::V6(v6) if is_link_local(source) => BanTarget::V6(v6),
        _ => target(source),
    }
}

/// The key of the other sets: the address, or its /64, also for link-local addresses.
fn target(source: IpAddr) -> BanTarget {
    match source {
        IpAddr::V4(v4) => BanTarget::V4(v4),
        IpAddr::V6(v6) => BanTarget::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

fn is_link_local(source: IpAddr) -> bool {
    matches!(source, IpAddr::V6(v6) if v6.to_bits() >> 64 == 0xfe80 << 48)
}
