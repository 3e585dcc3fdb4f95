//! Stores the listening ports of programs on this host, by address. Remembers the ports of services that this host
//! runs, whether or not they are up at the moment: during a boot, a restart or maintenance their clients keep
//! connecting and are not scanners.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::{PortSet, Protocol};

/// The ports of one protocol that are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    any_v4: PortSet,
    any_v6: PortSet,
    at: HashSet<(IpAddr, u16)>,
    /// Listeners bound to an interface or VRF (SO_BINDTODEVICE), with its index. A wildcard listener has the
    /// unspecified address of its family.
    on: HashSet<(u32, IpAddr, u16)>,
}

impl Listeners {
    /// Adds a listener on one address, or with the unspecified address on all addresses of that family. A listener on a
    /// loopback address is not reachable for other hosts and does not match other addresses.
    pub fn insert(&mut self, address: IpAddr, port: u16) {
        match address {
            IpAddr::V4(v4) if v4.is_unspecified() => self.any_v4.insert(port),
            IpAddr::V6(v6) if v6.is_unspecified() => self.any_v6.insert(port),
            one => _ = self.at.insert((one, port)),
        }
    }

    /// Adds a listener that only receives packets from one interface, or from the interfaces of one VRF. With the
    /// unspecified address it listens on all addresses of that family.
    pub fn insert_on(&mut self, interface: u32, address: IpAddr, port: u16) {
        self.on.insert((interface, address, port));
    }

    /// True if a listener is bound to an interface or VRF.
    pub(super) fn has_bound(&self) -> bool {
        !self.on.is_empty()
    }

    /// True if a packet to `address` and `port` reaches a listener on one of `interfaces`; on any interface if the list
    /// is empty.
    pub fn contains_on(&self, interfaces: &[u32], address: IpAddr, port: u16) -> bool {
        if self.contains(address, port) {
            return true;
        }
        let any = unspecified(address);
        let is_at = |at: IpAddr| at == address || at == any;
        match interfaces {
            [] => self.on.iter().any(|(_, at, open)| *open == port && is_at(*at)),
            _ => interfaces.iter().any(|on| [address, any].into_iter().any(|at| self.on.contains(&(*on, at, port)))),
        }
    }

    /// True if a packet to `address` and `port` reaches a listener, regardless of its interface.
    pub fn contains(&self, address: IpAddr, port: u16) -> bool {
        let any = if address.is_ipv4() { &self.any_v4 } else { &self.any_v6 };
        any.contains(port) || (!self.at.is_empty() && self.at.contains(&(address, port)))
    }

    /// The ports that are open on all addresses of both families: packets to them are never evidence.
    pub fn everywhere(&self) -> PortSet {
        self.any_v4.iter().filter(|port| self.any_v6.contains(*port)).collect()
    }

    /// The ports that are open on any address.
    pub fn anywhere(&self) -> PortSet {
        let mut ports = self.any_v4.with(&self.any_v6);
        self.at.iter().filter(|(address, _)| !address.is_loopback()).for_each(|(_, port)| ports.insert(*port));
        self.on.iter().for_each(|(.., port)| ports.insert(*port));
        ports
    }

    /// True if `port` is open on any non-loopback address.
    pub(super) fn is_open_anywhere(&self, port: u16) -> bool {
        let at = |(address, open): &(IpAddr, u16)| *open == port && !address.is_loopback();
        self.any_v4.contains(port)
            || self.any_v6.contains(port)
            || self.at.iter().any(at)
            || self.on.iter().any(|(.., open)| *open == port)
    }

    /// The ports that were open to other hosts and are not, or less widely, open in `later`. A wildcard listener has
    /// the unspecified address of its family.
    pub(super) fn gone(&self, later: &Self) -> impl Iterator<Item = (IpAddr, u16)> + use<> {
        let any = [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), self.any_v4.without(&later.any_v4)),
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), self.any_v6.without(&later.any_v6)),
        ];
        let mut gone: Vec<_> = self.at.difference(&later.at).filter(|(at, _)| !at.is_loopback()).copied().collect();
        // A port that is no longer open counts as recently open on every interface.
        gone.extend(self.on.difference(&later.on).map(|(_, address, port)| (*address, *port)));
        gone.extend(any.iter().flat_map(|(address, ports)| ports.iter().map(|port| (*address, port))));
        gone.into_iter()
    }
}

/// The unspecified address of the same family, which stands for all addresses.
pub(super) fn unspecified(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// A port of an address of this host, which a program uses or destination NAT publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    pub protocol: Protocol,
    pub port: u16,
    /// The unspecified address stands for every address of its family.
    pub address: IpAddr,
}

/// The remembered services. The daemon limits their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceMemory {
    tcp: Listeners,
    udp: Listeners,
}

impl ServiceMemory {
    fn listeners(&self, protocol: Protocol) -> Option<&Listeners> {
        match protocol {
            Protocol::Tcp => Some(&self.tcp),
            Protocol::Udp => Some(&self.udp),
            Protocol::Sctp | Protocol::Icmp => None,
        }
    }

    /// True if `port` at `address` belongs to a service of this host.
    pub fn contains(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        self.listeners(protocol).is_some_and(|services| services.contains(address, port))
    }

    /// True if a service on any address of this host uses `port`.
    pub(crate) fn is_remembered_anywhere(&self, protocol: Protocol, port: u16) -> bool {
        self.listeners(protocol).is_some_and(|services| services.is_open_anywhere(port))
    }

    /// The ports of `protocol` that are remembered on any address.
    pub fn ports(&self, protocol: Protocol) -> PortSet {
        self.listeners(protocol).map(Listeners::anywhere).unwrap_or_default()
    }
}

impl FromIterator<Service> for ServiceMemory {
    fn from_iter<T: IntoIterator<Item = Service>>(services: T) -> Self {
        let mut memory = Self::default();
        for Service { protocol, port, address } in services {
            match protocol {
                Protocol::Tcp => memory.tcp.insert(address, port),
                Protocol::Udp => memory.udp.insert(address, port),
                Protocol::Sctp | Protocol::Icmp => {}
            }
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_listener_is_found_on_its_interfaces() {
        let [any, own]: [IpAddr; 2] = ["0.0.0.0", "192.0.2.1"].map(|text| text.parse().unwrap());
        let mut listeners = Listeners::default();
        listeners.insert_on(3, any, 80);
        listeners.insert_on(4, own, 81);
        let open = |interfaces: &[u32], port| listeners.contains_on(interfaces, own, port);
        assert!(open(&[3], 80) && !open(&[4], 80) && open(&[9, 3], 80) && open(&[4], 81) && !open(&[3], 81));
        assert!(open(&[], 80) && open(&[], 81), "the interface is unknown");
        assert!(
            !listeners.contains_on(&[3], "2001:db8::1".parse().unwrap(), 80),
            "the listener is of the other family"
        );
        assert!(!listeners.contains(own, 80) && listeners.is_open_anywhere(80));
        assert!(listeners.anywhere().contains(81) && listeners.everywhere().is_empty());
        assert_eq!(listeners.gone(&Listeners::default()).count(), 2);
    }
}
