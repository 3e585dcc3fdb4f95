//! Stores the listening ports of programs on this host, by address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::PortSet;

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
    /// Adds a listener on every IPv4 address.
    pub fn insert_any_v4(&mut self, port: u16) {
        self.any_v4.insert(port);
    }

    /// Adds a listener on every IPv6 address.
    pub fn insert_any_v6(&mut self, port: u16) {
        self.any_v6.insert(port);
    }

    /// Adds a listener on one address. A listener on a loopback address is not reachable for other hosts and does not
    /// match other addresses.
    pub fn insert_at(&mut self, address: IpAddr, port: u16) {
        self.at.insert((address, port));
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
