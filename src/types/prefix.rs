//! Defines a network prefix that is wider than one source.

use std::net::IpAddr;

use ipnet::IpNet;

/// A network of several sources: an IPv4 /8 to /31, or an IPv6 /33 to /63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix(IpNet);

impl Prefix {
    /// The network with its host bits cleared; `None` if it is too wide to be banned, or not wider than one source.
    pub fn new(network: IpNet) -> Option<Self> {
        let fits = match network {
            IpNet::V4(v4) => (8..32).contains(&v4.prefix_len()),
            // In the tables, the prefix length alone identifies the address family.
            IpNet::V6(v6) => (33..64).contains(&v6.prefix_len()),
        };
        fits.then(|| Self(network.trunc()))
    }

    /// The network with this prefix length that contains `address`.
    pub fn containing(address: IpAddr, prefix_len: u8) -> Option<Self> {
        Self::new(IpNet::new(address, prefix_len).ok()?)
    }

    /// The network's first address and prefix length.
    pub const fn network(self) -> IpNet {
        self.0
    }

    /// Prefix length in bits.
    pub fn prefix_len(self) -> u8 {
        self.0.prefix_len()
    }
}
