//! The ports that programs on this host listen on, by address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::types::PortSet;

/// The ports of one protocol that are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    any_v4: PortSet,
    any_v6: PortSet,
    at: HashSet<(IpAddr, u16)>,
    /// With the index of the only interface, or VRF, that the listener takes packets from (SO_BINDTODEVICE). A wildcard has the
    /// unspecified address of its family.
    on: HashSet<(u32, IpAddr, u16)>,
}

impl Listeners {
    /// A listener on every IPv4 address.
    pub fn insert_any_v4(&mut self, port: u16) {
        self.any_v4.insert(port);
    }

    /// A listener on every IPv6 address.
    pub fn insert_any_v6(&mut self, port: u16) {
        self.any_v6.insert(port);
    }

    /// A listener on one address. One on a loopback address opens nothing to other hosts, and is ignored by look-ups
    /// for other addresses.
    pub fn insert_at(&mut self, address: IpAddr, port: u16) {
        self.at.insert((address, port));
    }

    /// A listener that takes packets from one interface, or of the interfaces of one VRF, alone. With the unspecified address it
    /// listens on all of that family.
    pub fn insert_on(&mut self, interface: u32, address: IpAddr, port: u16) {
        self.on.insert((interface, address, port));
    }

    /// True where a packet to `address` and `port` finds a listener on one of these interfaces; with none of them, on any.
    #[must_use]
    pub fn contains_on(&self, interfaces: &[u32], address: IpAddr, port: u16) -> bool {
        if self.contains(address, port) {
            return true;
        }
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
        let is_at = |at: IpAddr| at == address || at == any;
        match interfaces {
            [] => self.on.iter().any(|(_, at, open)| *open == port && is_at(*at)),
            _ => interfaces.iter().any(|on| [address, any].into_iter().any(|at| self.on.contains(&(*on, at, port)))),
        }
    }

    /// True if a packet to `address` and `port` reaches a listener, whatever interface it comes in on.
    #[must_use]
    pub fn contains(&self, address: IpAddr, port: u16) -> bool {
        let any = if address.is_ipv4() { &self.any_v4 } else { &self.any_v6 };
        any.contains(port) || (!self.at.is_empty() && self.at.contains(&(address, port)))
    }

    /// The ports that are open on all addresses of both families: nothing on them is ever evidence.
    #[must_use]
    pub fn everywhere(&self) -> PortSet {
        self.any_v4.iter().filter(|port| self.any_v6.contains(*port)).collect()
    }

    /// The ports that are open on any address.
    #[must_use]
    pub fn anywhere(&self) -> PortSet {
        let mut ports = self.any_v4.with(&self.any_v6);
        self.at.iter().filter(|(address, _)| !address.is_loopback()).for_each(|(_, port)| ports.insert(*port));
        self.on.iter().for_each(|(.., port)| ports.insert(*port));
        ports
    }

    /// True where `port` is open on any address but loopback.
    pub(super) fn is_open_anywhere(&self, port: u16) -> bool {
        let at = |(address, open): &(IpAddr, u16)| *open == port && !address.is_loopback();
        self.any_v4.contains(port)
            || self.any_v6.contains(port)
            || self.at.iter().any(at)
            || self.on.iter().any(|(.., open)| *open == port)
    }

    /// The ports that were open to outside here and are not, or not as widely, in `later`; those of a wildcard with the
    /// unspecified address of its family.
    pub(super) fn gone(&self, later: &Self) -> impl Iterator<Item = (IpAddr, u16)> + use<> {
        let any = [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), self.any_v4.without(&later.any_v4)),
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), self.any_v6.without(&later.any_v6)),
        ];
        let mut gone: Vec<_> = self.at.difference(&later.at).filter(|(at, _)| !at.is_loopback()).copied().collect();
        // For as long as it counts as open a moment ago, it does so on every interface.
        gone.extend(self.on.difference(&later.on).map(|(_, address, port)| (*address, *port)));
        gone.extend(any.iter().flat_map(|(address, ports)| ports.iter().map(|port| (*address, port))));
        gone.into_iter()
    }

    /// How many (address, port) pairs are held one by one.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.at.len() + self.on.len()
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
