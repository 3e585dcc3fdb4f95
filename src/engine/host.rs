//! Holds the facts about this host that verdicts depend on: addresses, exempt prefixes, listeners. An immutable
//! snapshot that is built elsewhere and replaced as a whole.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use prefix_trie::PrefixMap;

use super::allow::{self, AllowList, Protection};
use super::listeners::{Listeners, ServiceMemory};
use super::related_ports::RelatedPorts;
use crate::types::{BanTarget, PortSet, Protocol};

/// The addresses of this host.
#[derive(Clone, Debug, Default)]
pub enum Local {
    /// Exactly these addresses.
    Own {
        /// Addresses of its interfaces, and single addresses from routes of type `local`.
        addresses: HashSet<IpAddr>,
        /// Whole prefixes from routes of type `local` (AnyIP).
        prefixes: Vec<IpNet>,
    },
    /// All addresses in these prefixes, from `replay --local`.
    Prefixes(Vec<IpNet>),
    /// Every unicast address, for a capture without further information.
    #[default]
    Any,
}

/// Maximum number of interfaces examined above one interface.
const MAX_NEAR: usize = 16;

/// Maximum nesting depth of masters.
const MAX_DEPTH: usize = 4;

/// Up to this many addresses are compared linearly.
const MAX_LINEAR_SEARCH: usize = 8;

impl Local {
    /// Exactly `addresses`.
    pub fn own(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::Own { addresses: addresses.into_iter().collect(), prefixes: Vec::new() }
    }

    /// True if `address` belongs to the host.
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Own { addresses, prefixes } => {
                holds(addresses, address) || prefixes.iter().any(|prefix| prefix.contains(&address))
            }
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.contains(&address)),
            Self::Any => true,
        }
    }

    /// True if `network` is known to contain an own address.
    pub(super) fn overlaps(&self, network: IpNet) -> bool {
        match self {
            Self::Prefixes(prefixes) => overlap(prefixes, network),
            Self::Own { addresses, prefixes } => {
                addresses.iter().any(|own| network.contains(own)) || overlap(prefixes, network)
            }
            Self::Any => false,
        }
    }

    /// True if the exact addresses are known, so that packets sent from them are certainly this host's own.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Own { .. })
    }
}

/// Called for every packet: with few addresses, a linear search is faster than hashing.
#[inline(always)]
fn holds(addresses: &HashSet<IpAddr>, address: IpAddr) -> bool {
    if addresses.len() <= MAX_LINEAR_SEARCH {
        addresses.iter().any(|own| *own == address)
    } else {
        addresses.contains(&address)
    }
}

fn overlap(prefixes: &[IpNet], network: IpNet) -> bool {
    prefixes.iter().any(|own| allow::overlap(*own, network))
}

/// The kernel's strict reverse-path filter (`net.ipv4.conf.*.rp_filter = 1`, RFC 3704): such an interface accepts a
/// packet only if the route back to its source uses the same interface. An empty value refuses nothing.
#[derive(Clone, Default)]
pub struct ReversePath {
    /// The interfaces on which the filter is strict.
    pub strict: Vec<u32>,
    /// The interfaces through which each route leaves. An empty list means unknown, and refuses nothing.
    pub routes: PrefixMap<Ipv4Net, Vec<u32>>,
}

impl ReversePath {
    /// True if the kernel drops packets from `source` on `interface`.
    #[inline]
    pub fn refuses(&self, source: IpAddr, interface: u32) -> bool {
        let IpAddr::V4(source) = source else { return false };
        self.strict.contains(&interface)
            && self
                .routes
                .get_lpm(&Ipv4Net::from(source))
                .is_none_or(|(_, back)| !back.is_empty() && !back.contains(&interface))
    }
}

/// Maximum length of an interface's name (IFNAMSIZ), with the zero byte at its end.
const MAX_NAME: usize = 16;

/// Identifies an interface: its index or its name alone may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId {
    pub index: u32,
    /// Padded with zero bytes.
    name: [u8; MAX_NAME],
}

impl LinkId {
    pub fn new(index: u32, name: &str) -> Self {
        let mut id = Self { index, name: [0; MAX_NAME] };
        id.name.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        id
    }

    pub fn name(&self) -> &str {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        str::from_utf8(name).unwrap_or_default()
    }
}

/// An interface of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub id: LinkId,
    /// The networks of its bridge, if it is a bridge port: their addresses belong to guests, which are containers and
    /// virtual machines.
    pub guests: Vec<IpNet>,
}

/// The snapshot of the host.
#[derive(Clone, Default)]
pub struct Host {
    pub local: Local,
    /// The networks of its addresses, on whose links its neighbours are. Not used by the engine; the route backend must
    /// not cut them off.
    pub networks: Vec<IpNet>,
    /// Contains this host's own addresses, if they are known exactly.
    pub allow: AllowList,
    pub tcp: Listeners,
    pub udp: Listeners,
    /// Services that it runs, including those that are down at the moment.
    pub services: ServiceMemory,
    /// Groups of ports that belong to its services; computed by [`Host::find_related`].
    pub related: RelatedPorts,
    /// The ephemeral port range. The engine judges packets to these ports like all others.
    pub ephemeral: PortSet,
    /// Indexes of its loopback interfaces, which carry only the host's own traffic.
    pub loopback: Vec<u32>,
    /// Indexes of the monitored interfaces; empty: all of them.
    pub interfaces: Vec<u32>,
    /// Index and name of the interfaces on which a unicast frame from an own address can only be forged or the result
    /// of a loop.
    pub guarded: Vec<(u32, String)>,
    /// Broadcast addresses of its networks, in order.
    pub broadcasts: Vec<Ipv4Addr>,
    /// The interface on which the kernel expects each source.
    pub reverse_path: ReversePath,
    /// Indexes of the ports of bridges that have an address, each with the index of its bridge. A frame on such a port
    /// for the bridge's hardware address is for this host, although the capture marks it as for another host.
    pub bridge_ports: Vec<(u32, u32)>,
    /// All interfaces. Not used by the engine; a guest's ban ends with its bridge port.
    pub links: Vec<Link>,
    /// Indexes of the ports of bridges, bonds and similar devices, each with the index of the master. Packets on the
    /// port belong to the master, and the capture shows them on both.
    pub ports: Vec<(u32, u32)>,
    /// Indexes of the interfaces whose frames a program on the same machine may have sent, in order. The kernel does
    /// not verify packets that such a program marks as not yet summed, and so accepts TCP and UDP with any checksum.
    pub virtual_links: Vec<u32>,
    /// Indexes of the interfaces at which the kernel drops unicast packets in broadcast and multicast frames
    /// (`drop_unicast_in_l2_multicast`), of IPv4 and of IPv6.
    pub frame_filters: [Vec<u32>; 2],
    /// Anycast addresses. A router has one in each of its IPv6 networks, the first address (RFC 4291). The kernel
    /// accepts datagrams for them, but no TCP.
    pub anycast: Vec<IpNet>,
    /// Indexes of interfaces, each with the index of an interface above it whose listeners may receive its packets:
    /// masters, VRFs, VLANs.
    pub uppers: Vec<(u32, u32)>,
}

impl Host {
    /// A host with these addresses, without listeners, that protects only loopback and itself.
    pub fn new(local: Local) -> Self {
        let mut allow = AllowList::new();
        if let Local::Own { addresses, .. } = &local {
            addresses.iter().for_each(|own| allow.insert((*own).into(), Protection::OwnAddress));
        }
        Self { local, allow, ..Self::default() }
    }

    /// Computes the groups of ports that belong to its services. Call it after listeners or services have changed.
    pub fn find_related(&mut self) {
        let is_served =
            |port| self.tcp.is_open_anywhere(port) || self.services.is_remembered_anywhere(Protocol::Tcp, port);
        self.related = RelatedPorts::new(is_served);
    }

    /// Returns the target against which packets from `source` on `interface` count. A capture file does not distinguish
    /// links.
    #[inline]
    pub(super) fn target(&self, source: IpAddr, interface: u32) -> BanTarget {
        match source {
            IpAddr::V4(v4) => BanTarget::V4(v4),
            _ if self.local.is_exact() => BanTarget::on(source, self.link(interface)),
            _ => BanTarget::containing(source),
        }
    }

    /// Returns the reason why packets from `source`, which count against `target`, never lead to a ban, if there is
    /// one.
    #[inline]
    pub(super) fn protection(&self, source: IpAddr, target: BanTarget) -> Option<Protection> {
        if matches!(target, BanTarget::Link { .. }) {
            return self.allow.protects_target(target);
        }
        self.allow.protects(source)
    }

    /// True for the broadcast address of a network on a guarded interface, from which the kernel accepts no packet.
    #[inline]
    pub(super) fn is_broadcast(&self, source: IpAddr, interface: u32) -> bool {
        let IpAddr::V4(source) = source else { return false };
        self.broadcasts.binary_search(&source).is_ok() && self.guarded.iter().any(|(index, _)| *index == interface)
    }

    /// True if the kernel accepts a packet for `address` in a broadcast or multicast frame that came in on `interface`.
    pub(super) fn takes_group_frame(&self, address: IpAddr, interface: u32) -> bool {
        let [v4, v6] = &self.frame_filters;
        let filters = if address.is_ipv4() { v4 } else { v6 };
        self.local.is_exact() && !filters.contains(&interface)
    }

    /// The interfaces of this snapshot that `later` does not have.
    pub fn links_missing_in(&self, later: &Self) -> impl Iterator<Item = LinkId> {
        let there: HashSet<LinkId> = later.links.iter().map(|link| link.id).collect();
        self.links.iter().map(|link| link.id).filter(move |id| !there.contains(id))
    }

    /// The bridge of which `interface` is a port.
    pub fn bridge(&self, interface: u32) -> Option<u32> {
        self.bridge_ports.iter().find(|(port, _)| *port == interface).map(|(_, bridge)| *bridge)
    }

    /// The interface that sockets and neighbours see for packets on `interface`: its bridge if it is a bridge port,
    /// otherwise `interface` itself.
    pub fn receiver(&self, interface: u32) -> u32 {
        self.bridge(interface).unwrap_or(interface)
    }

    /// The bridge port of the guest that is banned with `target`, if the last probe came from `source` through this
    /// port. `None` for a network, which has no single port, and for packets that a router sent through the bridge.
    pub fn guest_port(&self, target: BanTarget, source: IpAddr, port: u32) -> Option<LinkId> {
        let link = self.links.iter().find(|link| link.id.index == port)?;
        let is_guest = link.guests.iter().any(|network| network.contains(&source));
        (is_guest && !target.is_prefix()).then_some(link.id)
    }

    /// The bridges with a guest or network that may have `address`.
    pub fn bridges_around(&self, address: IpAddr) -> impl Iterator<Item = u32> + '_ {
        let around = self.links.iter().filter(move |link| link.guests.iter().any(|network| network.contains(&address)));
        let bridges: BTreeSet<u32> = around.filter_map(|link| self.bridge(link.id.index)).collect();
        bridges.into_iter()
    }

    /// The interface that represents the link of `interface`: the master, if it is a port.
    pub fn link(&self, interface: u32) -> u32 {
        let mut link = interface;
        for _ in 0..MAX_DEPTH {
            let Some((_, master)) = self.ports.iter().find(|(port, _)| *port == link) else { break };
            link = *master;
        }
        link
    }

    /// The interface and those above it, at most [`MAX_NEAR`]. Empty if the interface is unknown (0).
    fn near(&self, interface: u32) -> ([u32; MAX_NEAR], usize) {
        let (mut near, mut length) = ([interface; MAX_NEAR], usize::from(interface != 0));
        let mut next = 0;
        while next < length {
            let lower = near.get(next).copied();
            let above = self.uppers.iter().filter(|(below, _)| Some(*below) == lower);
            for (_, upper) in above {
                if let Some(place) = near.get_mut(length) {
                    *place = *upper;
                    length += 1;
                }
            }
            next += 1;
        }
        (near, length)
    }

    /// The listeners of `protocol`; `None` for SCTP and ICMP, whose listeners are not tracked.
    #[inline]
    pub(super) fn listeners(&self, protocol: Protocol) -> Option<&Listeners> {
        match protocol {
            Protocol::Tcp => Some(&self.tcp),
            Protocol::Udp => Some(&self.udp),
            Protocol::Sctp | Protocol::Icmp => None,
        }
    }

    /// True if a packet to `address` and `port` on `interface` reaches a listener; with interface 0: on any interface.
    pub(super) fn listens(&self, protocol: Protocol, address: IpAddr, port: u16, interface: u32) -> bool {
        let Some(listeners) = self.listeners(protocol) else { return false };
        if !listeners.has_bound() {
            return listeners.contains(address, port);
        }
        let (near, length) = self.near(interface);
        listeners.contains_on(near.get(..length).unwrap_or_default(), address, port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_upper_interfaces_get_packets() {
        let own: IpAddr = "192.0.2.1".parse().unwrap();
        let mut host = Host::new(Local::Own { addresses: [own].into(), prefixes: Vec::new() });
        host.uppers = vec![(2, 5), (5, 7), (7, 2), (3, 5)];
        host.ports = vec![(2, 5), (5, 7)];
        host.tcp.insert_on(7, "0.0.0.0".parse().unwrap(), 80);
        let open = |interface| host.listens(Protocol::Tcp, own, 80, interface);
        assert!(open(2) && open(5) && open(7) && open(3), "through a bond and its VRF");
        assert!(open(0) && !open(9));
        let neighbour: IpAddr = "fe80::9".parse().unwrap();
        assert_eq!(host.target(neighbour, 2), BanTarget::on(neighbour, 7), "the link of a bridge port is its bridge's");
        assert_eq!(host.target(neighbour, 3), BanTarget::on(neighbour, 3));
        host.ports.push((7, 2));
        assert_ne!(host.link(2), 0, "a ring ends");
    }

    #[test]
    fn link_names_have_a_bound() {
        assert_eq!(LinkId::new(7, "veth7").name(), "veth7");
        assert_eq!(LinkId::new(7, "a-name-of-15-by").name(), "a-name-of-15-by");
        assert_eq!(LinkId::new(7, "a name of more than sixteen bytes").name(), "a name of more t");
        assert_eq!(LinkId::new(7, "").name(), "");
    }
}
