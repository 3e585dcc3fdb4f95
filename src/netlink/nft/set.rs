//! Defines the named sets of the table: their names, types and sizes, and the messages that create, delete and query
//! them.

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rustables::sys;

use super::message::{field, put_request};
use super::spec::{MAX_TRAP_PEERS, RulesetSpec, TRAP_BURST, Trap};
use super::table::TABLE;
use crate::netlink::message::{Attributes, be_u32};
use crate::netlink::socket::{Batch, Socket, SocketError};
use crate::types::BanTarget;

/// Defines the named sets of the table, in the order of creation: each with its name, owning part of the table, key,
/// flags and size.
macro_rules! sets {
    ($($(#[$note:meta])* $set:ident: $name:literal, $part:ident, $key:ident, $flags:expr, $size:expr;)*) => {
        /// A named set of the table. One whose name ends with a 6 is the same for IPv6, by /64 unless noted otherwise.
        ///
        /// The sizes of the trap's sets limit the memory that a flood of forged sources can use, during the flood and
        /// for the window after it: about 50 MB, or up to 75 MB if datagrams count as well. A full set accepts no new
        /// source; the sensor still counts it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Set {
            $($(#[$note])* $set,)*
        }

        impl Set {
            const ALL: &[Self] = &[$(Self::$set),*];

            const fn definition(self) -> Definition {
                match self {
                    $(Self::$set => Definition {
                        name: $name,
                        part: Part::$part,
                        key: $key,
                        flags: $flags,
                        size: $size,
                    },)*
                }
            }
        }
    };
}

sets! {
    /// Blocked IPv4 addresses. The configuration determines the size.
    Blocked: "blocked", Base, IPV4, TIMED, None;
    /// Blocked IPv6 /64 prefixes, by their first address, and link-local addresses blocked on every link.
    Blocked6: "blocked6", Base, IPV6, TIMED, None;
    /// IPv4 prefixes that are never dropped.
    Allowed: "allowed", Base, IPV4, RANGES, None;
    /// IPv6 prefixes that are never dropped.
    Allowed6: "allowed6", Base, IPV6, RANGES, None;
    /// Blocked link-local addresses, of neighbours only, with their interface.
    BlockedLink: "blocked_link", Base, INTERFACE_AND_IPV6, TIMED, Some(8_192);
    /// Blocked IPv4 networks. The size has room for the bounds of 4,096 networks: the time to add one grows with their
    /// number, about 0.2 ms here.
    BlockedNets: "blocked_nets", Prefixes, IPV4, RANGES | sys::NFT_SET_TIMEOUT, Some(8_192);
    /// Blocked IPv6 networks wider than a /64.
    BlockedNets6: "blocked_nets6", Prefixes, IPV6, RANGES | sys::NFT_SET_TIMEOUT, Some(8_192);
    /// IPv4 addresses blocked because other hosts have reported them. It is a separate set, so that reports of other
    /// hosts never displace a local ban. The configuration determines the size.
    Fleet: "fleet", Fleet, IPV4, TIMED, None;
    Fleet6: "fleet6", Fleet, IPV6, TIMED, None;
    /// Interfaces on which frames with an own source address are dropped.
    Guarded: "guarded_interfaces", OwnSource, INTERFACE, 0, None;
    /// Trapped TCP ports, or those of decoys.
    Trapped: "trapped", Ports, PORT, RANGES, None;
    TrappedUdp: "trapped_udp", TrapUdp, PORT, RANGES, None;
    /// Interfaces on which probes count, if not all do. No flags are needed, and nft(8) prints none for this set.
    TrapInterfaces: "trap_interfaces", Trap, INTERFACE, 0, None;
    /// Sources and the TCP ports that they probed.
    Probed: "touched", TrapTcp, IPV4_AND_PORT, TIMED, Some(131_072);
    Probed6: "touched6", TrapTcp, IPV6_AND_PORT, TIMED, Some(65_536);
    /// Sources and the UDP ports that they probed.
    ProbedUdp: "touched_udp", TrapUdp, IPV4_AND_PORT, TIMED, Some(65_536);
    ProbedUdp6: "touched_udp6", TrapUdp, IPV6_AND_PORT, TIMED, Some(32_768);
    /// Trapped UDP ports from which this host sent recently. Has room for every port.
    Outbound: "asked", TrapUdp, PORT, TIMED, Some(65_536);
    /// Peers whose SYN a socket on a trapped TCP port has answered recently, with the port. Only needed for the second
    /// until a new listener is known and its port has left the trap.
    Answered: "answered", TrapTcp, IPV4_AND_PORT, TIMED, Some(8_192);
    /// By full address, not by /64.
    Answered6: "answered6", TrapTcp, IPV6_AND_PORT, TIMED, Some(8_192);
    /// Sources that probed a port, each with its remaining number of forgiven ports.
    Suspects: "suspects", Trap, IPV4, TIMED, Some(65_536);
    Suspects6: "suspects6", Trap, IPV6, TIMED, Some(32_768);
    /// Sources that are connected to a service of this host, to which more ports are forgiven. Filled by the daemon.
    /// Has no flags, like `trap_interfaces`.
    Peers: "peers", Trap, IPV4, 0, Some(MAX_TRAP_PEERS);
    Peers6: "peers6", Trap, IPV6, 0, Some(MAX_TRAP_PEERS);
    /// Connected sources that probed a port, each with its remaining number of forgiven ports.
    PeerSuspects: "peer_suspects", Trap, IPV4, TIMED, Some(MAX_TRAP_PEERS);
    PeerSuspects6: "peer_suspects6", Trap, IPV6, TIMED, Some(MAX_TRAP_PEERS);
    /// TCP and UDP while the sensor's ceilings have no room: the kernel then blocks no source. Otherwise empty. Filled
    /// by the daemon; no flags either.
    CeilingReached: "ceiling_reached", Trap, TRANSPORT, 0, None;
    /// Sources that the kernel blocked without the sensor, until the sensor has reviewed them. If full, the kernel
    /// blocks no source until then.
    TrapBanned: "caught", Trap, IPV4, TIMED, Some(TRAP_BURST);
    TrapBanned6: "caught6", Trap, IPV6, TIMED, Some(TRAP_BURST);
    /// Trapped TCP ports whose probes hold the source and are not counted, because they are related to a service.
    Related: "related", Hold, PORT, RANGES, None;
    /// TCP ports of services. A source that is not connected is held if it sends SYNs to two of them at once.
    Services: "services", Hold, PORT, RANGES, None;
    /// Held sources, whose SYNs are dropped. Room for 20,000 new sources a second: 900 ms until expiry plus up to a
    /// second until removal, and ten seconds.
    Held: "held", Hold, IPV4, TIMED, Some(65_536);
    /// By /64; link-local sources by full address.
    Held6: "held6", Hold, IPV6, TIMED, Some(65_536);
    /// Sources and the TCP ports that they probed within the last seconds.
    HeldPorts: "held_ports", Hold, IPV4_AND_PORT, TIMED, Some(262_144);
    HeldPorts6: "held_ports6", Hold, IPV6_AND_PORT, TIMED, Some(262_144);
    /// Sources that were held within the window, each with its remaining number of holds. No size suffices for a flood
    /// over a whole window: sources without room are counted for ten seconds instead.
    HoldCounts: "hold_counts", Hold, IPV4, TIMED, Some(65_536);
    HoldCounts6: "hold_counts6", Hold, IPV6, TIMED, Some(65_536);
    /// The same within the last seconds, for sources that do not fit into `hold_counts`.
    HoldRecent: "hold_recent", Hold, IPV4, TIMED, Some(262_144);
    HoldRecent6: "hold_recent6", Hold, IPV6, TIMED, Some(262_144);
    /// Sources that are not connected, with the services to which they sent SYNs within the last 20 ms. Room for 20,000
    /// new clients a second, some of them at several services: the kernel removes expired elements once a second.
    ServicePorts: "service_ports", Hold, IPV4_AND_PORT, TIMED, Some(65_536);
    ServicePorts6: "service_ports6", Hold, IPV6_AND_PORT, TIMED, Some(65_536);
    /// The same sources without ports.
    ServiceClients: "service_clients", Hold, IPV4, TIMED, Some(65_536);
    ServiceClients6: "service_clients6", Hold, IPV6, TIMED, Some(65_536);
}

/// The part of the table to which a set belongs.
#[derive(Clone, Copy)]
enum Part {
    Base,
    /// [`RulesetSpec::prefix_sets`].
    Prefixes,
    /// [`RulesetSpec::fleet`].
    Fleet,
    /// [`RulesetSpec::own_source`].
    OwnSource,
    /// The ports of a trap for TCP, or of decoys.
    Ports,
    /// [`RulesetSpec::trap`].
    Trap,
    /// [`Trap::tcp`].
    TrapTcp,
    /// [`Trap::udp`].
    TrapUdp,
    /// [`Trap::hold`].
    Hold,
}

#[derive(Clone, Copy)]
struct Definition {
    name: &'static str,
    part: Part,
    key: SetKey,
    flags: u32,
    size: Option<u32>,
}

impl Set {
    pub const fn name(self) -> &'static str {
        self.definition().name
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|set| set.name() == name)
    }

    /// The IPv6 counterpart of this IPv4 set, whose name has a 6 appended.
    pub(super) fn for_ipv6(self) -> Self {
        Self::from_name(&format!("{}6", self.name())).unwrap_or(self)
    }

    /// The set in which `target` is blocked.
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

    /// The sets of a table with this spec, in the order of creation.
    pub(super) fn all_of(spec: &RulesetSpec) -> impl Iterator<Item = Self> + use<> {
        let spec = *spec;
        let needed = move |part| match part {
            Part::Base => true,
            Part::Prefixes => spec.prefix_sets,
            Part::Fleet => spec.fleet.is_some(),
            Part::OwnSource => spec.own_source,
            Part::Ports => spec.decoys.is_some() || spec.trap.is_some_and(|trap| trap.tcp),
            Part::Trap => spec.trap.is_some(),
            Part::TrapTcp => spec.trap.is_some_and(|trap| trap.tcp),
            Part::TrapUdp => spec.trap.is_some_and(|trap| trap.udp),
            Part::Hold => spec.trap.is_some_and(|trap| trap.hold.is_some()),
        };
        Self::ALL.iter().copied().filter(move |set| needed(set.definition().part))
    }

    /// The sets in which a trap stores probes, sources and its own bans, without those of holds.
    pub(crate) fn trap_memory(trap: Trap) -> impl Iterator<Item = Self> {
        let trap = Trap { hold: None, ..trap };
        let own_use = |set: &Self| matches!(set, Self::Outbound | Self::Answered | Self::Answered6);
        let timed = move |set: &Self| set.definition().flags == TIMED && !own_use(set);
        let sets = Self::all_of(&RulesetSpec { trap: Some(trap), ..RulesetSpec::default() });
        sets.filter(move |set| timed(set) && !matches!(set, Self::Blocked | Self::Blocked6 | Self::BlockedLink))
    }
}

/// Appends the creation of `set`; `id` identifies it within the transaction.
pub(super) fn put_set(batch: &mut Batch, set: Set, id: u32, spec: &RulesetSpec) {
    let Definition { key, flags, size, .. } = set.definition();
    let SetKey(key_type, key_length) = key;
    let size = match set {
        Set::Blocked | Set::Blocked6 => Some(spec.size),
        Set::Fleet | Set::Fleet6 => spec.fleet,
        _ => size,
    };
    batch.append(sys::NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL, |fields| {
        put_set_name(fields, set);
        fields.put_u32(sys::NFTA_SET_FLAGS, flags);
        fields.put_u32(sys::NFTA_SET_KEY_TYPE, key_type);
        fields.put_u32(sys::NFTA_SET_KEY_LEN, key_length);
        fields.put_u32(sys::NFTA_SET_ID, id);
        if let Some(size) = size {
            fields.nest(sys::NFTA_SET_DESC, |description| description.put_u32(sys::NFTA_SET_DESC_SIZE, size));
        }
        if key == INTERFACE {
            fields.put(sys::NFTA_SET_USERDATA, &HOST_BYTE_ORDER);
        }
    });
}

pub(super) fn put_set_name(fields: &mut Attributes<'_>, set: Set) {
    fields.put_text(sys::NFTA_SET_TABLE, TABLE);
    fields.put_text(sys::NFTA_SET_NAME, set.name());
}

/// Size of `set` in the kernel; ENOENT if it does not exist.
pub(crate) fn set_size(socket: &mut Socket, set: Set) -> Result<u32, SocketError> {
    Ok(ask(socket, set, read_size)?.unwrap_or(0))
}

/// Number of elements in `set`, including expired ones that were not removed yet; `None` if the kernel does not report
/// it.
pub(crate) fn set_count(socket: &mut Socket, set: Set) -> Result<Option<u32>, SocketError> {
    ask(socket, set, |fields| field(fields, NFTA_SET_COUNT).and_then(be_u32))
}

/// True if `nft` created the set `blocked`, and with it the table: nft stores how to print the keys of a set
/// (NFTA_SET_USERDATA), and this program does not.
pub(crate) fn is_created_by_nft(socket: &mut Socket) -> Result<bool, SocketError> {
    let has_userdata = |fields: &[u8]| field(fields, sys::NFTA_SET_USERDATA).map(|_| 1);
    Ok(ask(socket, Set::Blocked, has_userdata)?.is_some())
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

/// Elements with timeouts, added by rules or by the daemon.
const TIMED: u32 = sys::NFT_SET_EVAL | sys::NFT_SET_TIMEOUT;
const RANGES: u32 = sys::NFT_SET_INTERVAL;

/// Type number and length of a key. The numbers are those of the nft types ipv4_addr, ipv6_addr, inet_service and
/// iface_index, so that nft can print the elements. A concatenated type is built by shifting by six bits; in the kernel
/// each part of a concatenated key fills whole registers of four bytes.
#[derive(Clone, Copy, PartialEq)]
struct SetKey(u32, u32);

const IPV4: SetKey = SetKey(7, 4);
const IPV6: SetKey = SetKey(8, 16);
const TRANSPORT: SetKey = SetKey(12, 1);
const PORT: SetKey = SetKey(13, 2);
const INTERFACE: SetKey = SetKey(20, 4);
/// Makes nft list interfaces by name, instead of swapping the bytes of their indexes: NFTNL_UDATA_SET_KEYBYTEORDER, its
/// length, and BYTEORDER_HOST_ENDIAN of nft.
const HOST_BYTE_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1_u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};
const INTERFACE_AND_IPV6: SetKey = SetKey(20 << 6 | 8, 20);
const IPV4_AND_PORT: SetKey = SetKey(7 << 6 | 13, 8);
const IPV6_AND_PORT: SetKey = SetKey(8 << 6 | 13, 20);
/// Since Linux 6.15; may be missing in the headers with which rustables was built.
const NFTA_SET_COUNT: u16 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_counterpart_has_same_name_with_6() {
        let pairs = [
            (Set::Allowed, Set::Allowed6),
            (Set::Blocked, Set::Blocked6),
            (Set::BlockedNets, Set::BlockedNets6),
            (Set::Fleet, Set::Fleet6),
            (Set::Held, Set::Held6),
            (Set::ServicePorts, Set::ServicePorts6),
        ];
        assert_eq!(pairs.map(|(v4, _)| v4.for_ipv6()), pairs.map(|(_, v6)| v6));
        for v6 in Set::ALL.iter().filter(|set| set.name().ends_with('6')) {
            let v4 = Set::from_name(v6.name().trim_end_matches('6'));
            assert_eq!(v4.map(Set::for_ipv6), Some(*v6), "{}", v6.name());
        }
    }
}
