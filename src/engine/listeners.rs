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

    /// True if a packet to `address` and `port` reaches a listener.
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
        ports
    }

    /// True where `port` is open on any address but loopback.
    pub(super) fn is_open_anywhere(&self, port: u16) -> bool {
        let at = |(address, open): &(IpAddr, u16)| *open == port && !address.is_loopback();
        self.any_v4.contains(port) || self.any_v6.contains(port) || self.at.iter().any(at)
    }

    /// The ports that were open to outside here and are not, or not as widely, in `later`; those of a wildcard with the
    /// unspecified address of its family.
    pub(super) fn gone(&self, later: &Self) -> impl Iterator<Item = (IpAddr, u16)> + use<> {
        let any = [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), self.any_v4.without(&later.any_v4)),
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), self.any_v6.without(&later.any_v6)),
        ];
        let mut gone: Vec<_> = self.at.difference(&later.at).filter(|(at, _)| !at.is_loopback()).copied().collect();
        gone.extend(any.iter().flat_map(|(address, ports)| ports.iter().map(|port| (*address, port))));
        gone.into_iter()
    }

    /// How many (address, port) pairs are held one by one.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.at.len()
    }
}
