//! Remembers the ports of services that this host runs, whether or not they are up at the moment. During a boot, a
//! restart or maintenance their clients keep connecting and are not scanners.

use std::net::IpAddr;

use super::listeners::Listeners;
use crate::types::{PortSet, Protocol};

/// A port of this host on which a program has listened for a long time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service {
    /// TCP or UDP.
    pub protocol: Protocol,
    pub port: u16,
    /// The address on which it listens; the unspecified address stands for every address of its family.
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
            let listeners = match protocol {
                Protocol::Tcp => &mut memory.tcp,
                Protocol::Udp => &mut memory.udp,
                Protocol::Sctp | Protocol::Icmp => continue,
            };
            match address {
                IpAddr::V4(v4) if v4.is_unspecified() => listeners.insert_any_v4(port),
                IpAddr::V6(v6) if v6.is_unspecified() => listeners.insert_any_v6(port),
                one => listeners.insert_at(one, port),
            }
        }
        memory
    }
}
