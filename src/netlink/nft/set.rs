//! The named sets of the table: their names, types and sizes, and the messages that create, delete and ask for one.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rustables::sys;

use super::message::{field, put_request};
use super::spec::{MAX_TRAP_PEERS, RulesetSpec, TRAP_BURST, Trap};
use super::table::TABLE;
use crate::netlink::message::{Attributes, be_u32};
use crate::netlink::socket::{Batch, Socket, SocketError};
use crate::types::BanTarget;

/// A named set of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Blocked IPv4 addresses.
    Blocked,
    /// Blocked IPv6 /64 prefixes, by their first address, and link-local addresses on every link.
    Blocked6,
    /// Blocked link-local addresses, each with the interface.
    BlockedLink,
    /// IPv4 prefixes that are never dropped.
    Allowed,
    /// IPv6 prefixes that are never dropped.
    Allowed6,
    /// Blocked IPv4 networks. Only in a table with [`RulesetSpec::wide`].
    BlockedNets,
    /// Blocked IPv6 networks wider than a /64, likewise.
    BlockedNets6,
    /// IPv4 addresses that are blocked because other hosts have reported them. Only with [`RulesetSpec::fleet`].
    Fleet,
    /// The same for IPv6, by /64.
    Fleet6,
    /// Interfaces at which frames with an own source address are dropped. Only in a table with [`RulesetSpec::own_source`].
    Guarded,
    /// Trapped TCP ports, or those of decoys. This and all below only in a table with [`RulesetSpec::trap`], this one also with
    /// [`RulesetSpec::decoys`].
    Trapped,
    /// Trapped UDP ports. Sets for UDP exist only with [`Trap::udp`], those for TCP alone only with [`Trap::tcp`].
    TrappedUdp,
    /// Interfaces on which probes count, where not all do.
    TrapInterfaces,
    /// Sources and the TCP ports that they probed.
    Probed,
    /// The same for IPv6, by /64.
    Probed6,
    /// Sources and the UDP ports that they probed.
    TouchedUdp,
    /// The same for IPv6, by /64.
    TouchedUdp6,
    /// Trapped UDP ports that this host has sent from a moment ago.
    Outbound,
    /// Peers whose SYN a socket on a trapped TCP port has answered a moment ago, each with the port.
    Answered,
    /// The same for IPv6.
    Answered6,
    /// Sources that probed any port, and how many more they may.
    Suspects,
    /// The same for IPv6, by /64.
    Suspects6,
    /// Sources that are connected to a service of this host, and are forgiven more ports.
    Peers,
    /// The same for IPv6, by /64.
    Peers6,
    /// Those of them that probed any port, and how many more they may.
    PeerSuspects,
    /// The same for IPv6, by /64.
    PeerSuspects6,
    /// Sources that the kernel has blocked by itself, until the sensor has said what it has against them.
    TrapBanned,
    /// The same for IPv6, by /64.
    TrapBanned6,
    /// Held sources: their SYNs are dropped. This and all below only in a table with [`Trap::hold`].
    Held,
    /// The same for IPv6, by /64, and link-local addresses.
    Held6,
    /// Sources and the TCP ports that they probed within the last seconds.
    HeldPorts,
    /// The same for IPv6.
    HeldPorts6,
    /// Sources that were held within the window, and how often they still may be.
    HoldCounts,
    /// The same for IPv6.
    HoldCounts6,
    /// The same within the last seconds, for sources that find no room there.
    HoldRecent,
    /// The same for IPv6.
    HoldRecent6,
}

/// What each set is, in the order in which they are made: name, the part of the table that needs it, key, flags, and size.
///
/// The sizes of the trap's sets bound what a flood of forged sources can take: some 50 MB, and at most half as much again
/// where datagrams count as well, while it lasts and for the window after it. A full set takes no new source, and the sensor
/// still counts.
const DEFINITIONS: [(Set, Definition); 36] = [
    // These two have the size that the configuration says.
    (Set::Blocked, define("blocked", Part::Base, IPV4, TIMED, None)),
    (Set::Blocked6, define("blocked6", Part::Base, IPV6, TIMED, None)),
    (Set::Allowed, define("allowed", Part::Base, IPV4, RANGES, None)),
    (Set::Allowed6, define("allowed6", Part::Base, IPV6, RANGES, None)),
    // Neighbours only.
    (Set::BlockedLink, define("blocked_link", Part::Base, INTERFACE_AND_IPV6, TIMED, Some(8_192))),
    // Bounds of 4,096 networks. To add one takes time with their number, some 0.2 ms here.
    (Set::BlockedNets, define("blocked_nets", Part::Networks, IPV4, RANGES | sys::NFT_SET_TIMEOUT, Some(8_192))),
    (Set::BlockedNets6, define("blocked_nets6", Part::Networks, IPV6, RANGES | sys::NFT_SET_TIMEOUT, Some(8_192))),
    // Of these, too, the configuration says the size: its own, so that reports of others never displace a ban.
    (Set::Fleet, define("fleet", Part::Fleet, IPV4, TIMED, None)),
    (Set::Fleet6, define("fleet6", Part::Fleet, IPV6, TIMED, None)),
    (Set::Guarded, define("guarded_interfaces", Part::OwnSource, INTERFACE, 0, None)),
    (Set::Trapped, define("trapped", Part::Ports, PORT, RANGES, None)),
    (Set::TrappedUdp, define("trapped_udp", Part::TrapUdp, PORT, RANGES, None)),
    // Few, and never with a flag: nft prints none.
    (Set::TrapInterfaces, define("trap_interfaces", Part::Trap, INTERFACE, 0, None)),
    (Set::Probed, define("touched", Part::TrapTcp, IPV4_AND_PORT, TIMED, Some(131_072))),
    (Set::Probed6, define("touched6", Part::TrapTcp, IPV6_AND_PORT, TIMED, Some(65_536))),
    (Set::TouchedUdp, define("touched_udp", Part::TrapUdp, IPV4_AND_PORT, TIMED, Some(65_536))),
    (Set::TouchedUdp6, define("touched_udp6", Part::TrapUdp, IPV6_AND_PORT, TIMED, Some(32_768))),
    // Room for every port.
    (Set::Outbound, define("asked", Part::TrapUdp, PORT, TIMED, Some(65_536))),
    // Only for the second until a new listener is known and its port is trapped no more.
    (Set::Answered, define("answered", Part::TrapTcp, IPV4_AND_PORT, TIMED, Some(8_192))),
    (Set::Answered6, define("answered6", Part::TrapTcp, IPV6_AND_PORT, TIMED, Some(8_192))),
    (Set::Suspects, define("suspects", Part::Trap, IPV4, TIMED, Some(65_536))),
    (Set::Suspects6, define("suspects6", Part::Trap, IPV6, TIMED, Some(32_768))),
    // The daemon fills them, with no flag as above.
    (Set::Peers, define("peers", Part::Trap, IPV4, 0, Some(MAX_TRAP_PEERS))),
    (Set::Peers6, define("peers6", Part::Trap, IPV6, 0, Some(MAX_TRAP_PEERS))),
    (Set::PeerSuspects, define("peer_suspects", Part::Trap, IPV4, TIMED, Some(MAX_TRAP_PEERS))),
    (Set::PeerSuspects6, define("peer_suspects6", Part::Trap, IPV6, TIMED, Some(MAX_TRAP_PEERS))),
    // When it is full, the kernel blocks no source until the sensor has looked and found room under its own ceilings.
    (Set::TrapBanned, define("caught", Part::Trap, IPV4, TIMED, Some(TRAP_BURST))),
    (Set::TrapBanned6, define("caught6", Part::Trap, IPV6, TIMED, Some(TRAP_BURST))),
    // Room for 20,000 new sources a second: of 900 ms until they are cleared away (at most a second later), and of ten seconds.
    (Set::Held, define("held", Part::Hold, IPV4, TIMED, Some(65_536))),
    (Set::Held6, define("held6", Part::Hold, IPV6, TIMED, Some(65_536))),
    (Set::HeldPorts, define("held_ports", Part::Hold, IPV4_AND_PORT, TIMED, Some(262_144))),
    (Set::HeldPorts6, define("held_ports6", Part::Hold, IPV6_AND_PORT, TIMED, Some(262_144))),
    // No size carries a flood for a whole window: the sources without room are counted for ten seconds instead.
    (Set::HoldCounts, define("hold_counts", Part::Hold, IPV4, TIMED, Some(65_536))),
    (Set::HoldCounts6, define("hold_counts6", Part::Hold, IPV6, TIMED, Some(65_536))),
    (Set::HoldRecent, define("hold_recent", Part::Hold, IPV4, TIMED, Some(262_144))),
    (Set::HoldRecent6, define("hold_recent6", Part::Hold, IPV6, TIMED, Some(262_144))),
];

/// The part of a table that needs a set.
#[derive(Clone, Copy)]
enum Part {
    Base,
    Networks,
    Fleet,
    OwnSource,
    /// The ports of a trap for TCP, or of decoys.
    Ports,
    Trap,
    TrapTcp,
    TrapUdp,
    Hold,
}

#[derive(Clone, Copy)]
struct Definition {
    name: &'static str,
    part: Part,
    key: Key,
    flags: u32,
    size: Option<u32>,
}

const fn define(name: &'static str, part: Part, key: Key, flags: u32, size: Option<u32>) -> Definition {
    Definition { name, part, key, flags, size }
}

impl Set {
    fn definition(self) -> Definition {
        let [(_, first), ..] = DEFINITIONS;
        DEFINITIONS.iter().find(|(set, _)| *set == self).map_or(first, |(_, definition)| *definition)
    }

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.definition().name
    }

    /// The set of this name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        DEFINITIONS.iter().find(|(_, definition)| definition.name == name).map(|(set, _)| *set)
    }

    /// The set in which `target` is blocked.
    #[must_use]
    pub const fn for_target(target: BanTarget) -> Self {
        match target {
            BanTarget::V4(_) => Self::Blocked,
            BanTarget::V6(_) => Self::Blocked6,
            BanTarget::Link { .. } => Self::BlockedLink,
            BanTarget::Prefix(wide) => match wide.network() {
                IpNet::V4(_) => Self::BlockedNets,
                IpNet::V6(_) => Self::BlockedNets6,
            },
        }
    }

    /// The set in which `target`, an address or a /64, is blocked for the reports of other hosts.
    #[must_use]
    pub(crate) fn fleet_for_target(target: BanTarget) -> Self {
        if target.element().is_ipv4() { Self::Fleet } else { Self::Fleet6 }
    }

    /// The sets of such a table, in the order in which they are made.
    pub(super) fn all_of(spec: &RulesetSpec) -> impl Iterator<Item = Self> + use<> {
        let spec = *spec;
        let needed = move |part| match part {
            Part::Base => true,
            Part::Networks => spec.wide,
            Part::Fleet => spec.fleet.is_some(),
            Part::OwnSource => spec.own_source,
            Part::Ports => spec.decoys.is_some() || spec.trap.is_some_and(|trap| trap.tcp),
            Part::Trap => spec.trap.is_some(),
            Part::TrapTcp => spec.trap.is_some_and(|trap| trap.tcp),
            Part::TrapUdp => spec.trap.is_some_and(|trap| trap.udp),
            Part::Hold => spec.trap.is_some_and(|trap| trap.hold.is_some()),
        };
        DEFINITIONS.into_iter().filter(move |(_, definition)| needed(definition.part)).map(|(set, _)| set)
    }

    /// The sets in which such a trap remembers probes, sources and its own bans. What bounds the holds is not among them.
    pub(crate) fn trap_memory(trap: Trap) -> impl Iterator<Item = Self> {
        let trap = Trap { hold: None, ..trap };
        let own_use = |set: &Self| matches!(set, Self::Outbound | Self::Answered | Self::Answered6);
        let timed = move |set: &Self| set.definition().flags == TIMED && !own_use(set);
        let sets = Self::all_of(&RulesetSpec { trap: Some(trap), ..RulesetSpec::default() });
        sets.filter(move |set| timed(set) && !matches!(set, Self::Blocked | Self::Blocked6 | Self::BlockedLink))
    }
}

/// Appends the creation of `set`; `id` tells it from others within the transaction.
pub(super) fn put_set(batch: &mut Batch, set: Set, id: u32, spec: &RulesetSpec) {
    let Definition { key: Key(key_type, key_length), flags, size, .. } = set.definition();
    let size = match set {
        Set::Blocked | Set::Blocked6 => Some(spec.size),
        Set::Fleet | Set::Fleet6 => spec.fleet,
        _ => size,
    };
    batch.put(sys::NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL, |fields| {
        put_set_name(fields, set);
        fields.put_u32(sys::NFTA_SET_FLAGS, flags);
        fields.put_u32(sys::NFTA_SET_KEY_TYPE, key_type);
        fields.put_u32(sys::NFTA_SET_KEY_LEN, key_length);
        fields.put_u32(sys::NFTA_SET_ID, id);
        if let Some(size) = size {
            fields.nest(sys::NFTA_SET_DESC, |description| description.put_u32(sys::NFTA_SET_DESC_SIZE, size));
        }
    });
}

/// Appends the deletion of `set`.
pub(super) fn put_set_deletion(batch: &mut Batch, set: Set) {
    batch.put(sys::NFT_MSG_DELSET, 0, |fields| put_set_name(fields, set));
}

pub(super) fn put_set_name(fields: &mut Attributes<'_>, set: Set) {
    fields.put_text(sys::NFTA_SET_TABLE, TABLE);
    fields.put_text(sys::NFTA_SET_NAME, set.name());
}

/// The size of `set` as the kernel has it; ENOENT where it is gone.
pub(crate) fn set_size(socket: &mut Socket, set: Set) -> Result<u32, SocketError> {
    Ok(ask(socket, set, read_size)?.unwrap_or(0))
}

/// How many elements `set` has, with those that are dead and not cleared away; `None` where the kernel does not say.
pub(crate) fn set_count(socket: &mut Socket, set: Set) -> Result<Option<u32>, SocketError> {
    ask(socket, set, |fields| field(fields, NFTA_SET_COUNT).and_then(be_u32))
}

/// The size in the attributes of a set.
pub(super) fn read_size(fields: &[u8]) -> Option<u32> {
    field(field(fields, sys::NFTA_SET_DESC)?, sys::NFTA_SET_DESC_SIZE).and_then(be_u32)
}

fn ask(socket: &mut Socket, set: Set, read: fn(&[u8]) -> Option<u32>) -> Result<Option<u32>, SocketError> {
    let mut request = Vec::new();
    put_request(&mut request, sys::NFT_MSG_GETSET, 0, |fields| put_set_name(fields, set));
    let mut found = None;
    socket.ask(&mut request, |message| found = message.nft().and_then(|(_, fields)| read(fields)))?;
    Ok(found)
}

/// Elements that rules or the daemon add, with a time each.
const TIMED: u32 = sys::NFT_SET_EVAL | sys::NFT_SET_TIMEOUT;
const RANGES: u32 = sys::NFT_SET_INTERVAL;

/// The number of a type and its length. The numbers are those that nft gives to its types ipv4_addr, ipv6_addr, inet_service
/// and iface_index, so that it knows how to print the elements. It joins types by shifting them six bits; in the kernel each
/// part of a joined key fills whole registers of four bytes.
#[derive(Clone, Copy)]
struct Key(u32, u32);

const IPV4: Key = Key(7, 4);
const IPV6: Key = Key(8, 16);
const PORT: Key = Key(13, 2);
const INTERFACE: Key = Key(20, 4);
const INTERFACE_AND_IPV6: Key = Key(20 << 6 | 8, 20);
const IPV4_AND_PORT: Key = Key(7 << 6 | 13, 8);
const IPV6_AND_PORT: Key = Key(8 << 6 | 13, 20);
/// Since Linux 6.15, newer than the headers that rustables is built with may be.
const NFTA_SET_COUNT: u16 = 20;
