//! The facts about this host that verdicts depend on: addresses, exempt prefixes, listeners. An immutable snapshot
//! that is built elsewhere and replaced as a whole.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use prefix_trie::PrefixMap;

use super::allow::{AllowList, Protection};
use super::listeners::Listeners;
use super::related_ports::RelatedPorts;
use super::service_memory::ServiceMemory;
use crate::types::{BanTarget, PortSet, Protocol};

/// Which addresses are this host's.
#[derive(Clone, Debug)]
pub enum Local {
    /// Exactly these.
    Addresses(HashSet<IpAddr>),
    /// Exactly these, as a running host knows them.
    Own {
        /// Those of its interfaces, and single ones that a route of type `local` gives it.
        addresses: HashSet<IpAddr>,
        /// Whole prefixes that such a route gives it (AnyIP).
        prefixes: Vec<IpNet>,
    },
    /// All in these prefixes, as `replay --local` says.
    Prefixes(Vec<IpNet>),
    /// Every unicast address, for a capture of which nothing is known.
    Any,
}

/// Up to so many addresses are compared one by one.
const FEW: usize = 8;

impl Local {
    /// True where `address` is one of the host's.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Addresses(addresses) => holds(addresses, address),
            Self::Own { addresses, prefixes } => {
                holds(addresses, address) || prefixes.iter().any(|prefix| prefix.contains(&address))
            }
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.contains(&address)),
            Self::Any => true,
        }
    }

    /// True where `network` is known to hold an own address.
    pub(super) fn touches(&self, network: IpNet) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.iter().any(|own| network.contains(own)),
            Self::Prefixes(prefixes) => overlap(prefixes, network),
            Self::Own { addresses, prefixes } => {
                addresses.iter().any(|own| network.contains(own)) || overlap(prefixes, network)
            }
            Self::Any => false,
        }
    }

    /// True where the addresses are known one by one, so that what they send is surely this host's own.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Addresses(_) | Self::Own { .. })
    }
}

/// Asked for every packet: hashing costs more than looking at the few addresses that a host has.
fn holds(addresses: &HashSet<IpAddr>, address: IpAddr) -> bool {
    if addresses.len() <= FEW { addresses.iter().any(|own| *own == address) } else { addresses.contains(&address) }
}

fn overlap(prefixes: &[IpNet], network: IpNet) -> bool {
    prefixes.iter().any(|own| own.contains(&network) || network.contains(own))
}

/// The kernel's strict reverse-path filter (`net.ipv4.conf.*.rp_filter = 1`, RFC 3704): an interface on which it is set
/// takes a packet only where the route back to its source leaves by that interface. Empty, it refuses nothing.
#[derive(Clone, Default)]
pub struct ReversePath {
    strict: Vec<u32>,
    routes: PrefixMap<Ipv4Net, Vec<u32>>,
}

impl ReversePath {
    /// The interfaces by which a route leaves; none where that is not known, which refuses nothing.
    pub fn insert(&mut self, network: Ipv4Net, interfaces: &[u32]) {
        self.routes.insert(network, interfaces.to_vec());
    }

    /// The interfaces on which the filter is strict.
    pub fn set_strict(&mut self, interfaces: Vec<u32>) {
        self.strict = interfaces;
    }

    /// True where the kernel drops what comes from `source` on `interface`.
    #[must_use]
    pub fn refuses(&self, source: IpAddr, interface: u32) -> bool {
        let IpAddr::V4(source) = source else { return false };
        self.strict.contains(&interface)
            && self
                .routes
                .get_lpm(&Ipv4Net::from(source))
                .is_none_or(|(_, back)| !back.is_empty() && !back.contains(&interface))
    }
}

/// The snapshot.
#[derive(Clone)]
pub struct Host {
    /// This host's addresses.
    pub local: Local,
    /// The networks of its addresses, on whose links its neighbours are. The engine does not use them: a backend that blocks by
    /// routes must not cut them off.
    pub networks: Vec<IpNet>,
    pub allow: AllowList,
    /// Its TCP listeners.
    pub tcp: Listeners,
    /// Its UDP sockets.
    pub udp: Listeners,
    /// Services that it runs, whether they are up or not.
    pub services: ServiceMemory,
    /// Groups of ports that belong to its services, as of [`Host::find_related`].
    pub related: RelatedPorts,
    /// The ports that it gives to sockets which ask for none. The engine judges what comes to them as anything else.
    pub ephemeral: PortSet,
    /// Indexes of its loopback interfaces: what they carry is the host talking to itself.
    pub loopback: Vec<u32>,
    /// Indexes of the interfaces that are watched; empty: all of them.
    pub interfaces: Vec<u32>,
    /// Interfaces, by index and name, at which no unicast frame from an own address comes in but by forgery or a loop.
    pub guarded: Vec<(u32, String)>,
    /// Which sources the kernel expects on which interface.
    pub reverse_path: ReversePath,
    /// Indexes of the ports of its bridges that have an address, each with the bridge's. What comes in there for the bridge's own hardware address
    /// is for this host, and the capture calls it another host's.
    pub bridge_ports: Vec<(u32, u32)>,
}

impl Host {
    /// A host that has these addresses, listens nowhere and protects only loopback.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self {
            local,
            networks: Vec::new(),
            allow: AllowList::new(),
            tcp: Listeners::default(),
            udp: Listeners::default(),
            services: ServiceMemory::default(),
            related: RelatedPorts::default(),
            ephemeral: PortSet::new(),
            loopback: Vec::new(),
            interfaces: Vec::new(),
            bridge_ports: Vec::new(),
            guarded: Vec::new(),
            reverse_path: ReversePath::default(),
        }
    }

    /// Finds the groups of ports that belong to its services. To be called when listeners or services have changed.
    pub fn find_related(&mut self) {
        let is_served =
            |port| self.tcp.is_open_anywhere(port) || self.services.is_remembered_anywhere(Protocol::Tcp, port);
        self.related = RelatedPorts::of(is_served);
    }

    /// Why `target` must not be blocked, if all of it is exempt. One exempt address in a /64 is not enough: the kernel's
    /// allow-list lets it pass whatever the ban says.
    #[must_use]
    pub fn exemption(&self, target: BanTarget) -> Option<Protection> {
        self.allow.covers(IpNet::new(target.element(), target.prefix_len()).ok()?)
    }

    /// The bridge whose port this interface is.
    #[must_use]
    pub fn bridge(&self, interface: u32) -> Option<u32> {
        self.bridge_ports.iter().find(|(port, _)| *port == interface).map(|(_, bridge)| *bridge)
    }

    pub(super) fn listens(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp.contains(address, port),
            Protocol::Udp => self.udp.contains(address, port),
            Protocol::Sctp | Protocol::Icmp => false,
        }
    }
}
