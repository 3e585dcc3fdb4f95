//! Defines the target of a ban: an address, an IPv6 /64, or a wider prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde_with::{DeserializeFromStr, SerializeDisplay};

use super::shared64;

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
}

/// The unit by which the engine counts and the kernel blocks: one IPv4 address, or an IPv6 /64. One customer holds a
/// whole /64, and may send from any address in it (RFC 6177). Exceptions are the /64s that many hosts share, link-local
/// and NAT64 ([`shared64`]), where each address is a separate target. If the operator permits wider bans, a target can
/// also be a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, SerializeDisplay, DeserializeFromStr)]
pub enum BanTarget {
    /// One IPv4 address.
    V4(Ipv4Addr),
    /// The first address of an IPv6 /64, or one address of a shared /64.
    V6(Ipv6Addr),
    /// A network with several sources that reached the threshold.
    Prefix(Prefix),
    /// A link-local address on one link, because another link may have another host with that address (RFC 4007).
    Link {
        /// The address, in fe80::/64.
        address: Ipv6Addr,
        /// Index of the interface, 1 to [`MAX_LINK`].
        interface: u32,
    },
}

/// Maximum interface index for which link-local sources of different links are distinguished: the engine's tables have
/// 12 bits for it. Sources on interfaces with a higher index are counted and blocked on all links together.
pub const MAX_LINK: u32 = 4_095;

impl BanTarget {
    /// The target that contains `address`.
    pub fn containing(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) if shared64::prefix_number(v6).is_some() => Self::V6(v6),
            IpAddr::V6(v6) => Self::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        }
    }

    /// The target that contains `address`, for packets that arrive on `interface`.
    pub fn on(address: IpAddr, interface: u32) -> Self {
        match address {
            IpAddr::V6(address) if shared64::is_link_local(address) && (1..=MAX_LINK).contains(&interface) => {
                Self::Link { address, interface }
            }
            _ => Self::containing(address),
        }
    }

    /// True for a network: a target that is not a single source.
    pub fn is_prefix(self) -> bool {
        matches!(self, Self::Prefix(_))
    }

    /// The same address on all links, for a target of one link. Any other target is returned unchanged.
    pub fn on_every_link(self) -> Self {
        match self {
            Self::Link { address, .. } => Self::V6(address),
            _ => self,
        }
    }

    /// The target of the kernel's set element `address`, without applying a mask.
    pub fn from_element(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) => Self::V6(v6),
        }
    }

    /// The target with its host bits cleared. In a set of IPv6 networks, an element with host bits matches no packet.
    pub fn masked(self) -> Self {
        match self {
            Self::V6(v6) => Self::containing(v6.into()),
            _ => self,
        }
    }

    /// The target that covers `prefix`: an IPv4 address, the /64 that contains an IPv6 prefix, or a network.
    ///
    /// # Errors
    /// A sentence, if `prefix` is wider than a target can be or must not be blocked.
    pub fn from_prefix(prefix: IpNet) -> Result<Self, String> {
        let narrow = match prefix {
            IpNet::V4(_) => prefix.prefix_len() == 32,
            IpNet::V6(_) => prefix.prefix_len() >= 64,
        };
        let wide = Prefix::new(prefix);
        if !narrow && wide.is_none() {
            return Err(format!("{prefix} is too wide to be blocked: an IPv4 /8 or an IPv6 /33 is the widest"));
        }
        // ::1 is excluded here, because loopback is refused later as a protected address.
        if let IpNet::V6(v6) = prefix
            && (v6.contains(&Ipv6Addr::UNSPECIFIED) || narrow && v6.addr().to_bits() >> 64 == 0)
            && !(v6.addr().is_loopback() && v6.prefix_len() == 128)
        {
            let is = if narrow { "is in" } else { "contains" };
            return Err(format!(
                "{prefix} {is} the /64 of the unspecified address (::), the source of duplicate address detection, \
                 which is never blocked"
            ));
        }
        if let IpNet::V6(v6) = prefix
            && shared64::prefix_number(v6.addr()).is_some()
            && narrow
            && (v6.prefix_len() < 128 || is_first(v6.addr()))
        {
            return Err(format!(
                "{prefix} is shared by many hosts (link-local neighbours, or IPv4 hosts behind NAT64); name one \
                 address in it"
            ));
        }
        Ok(wide.filter(|_| !narrow).map_or(Self::containing(prefix.addr()), Self::Prefix))
    }

    /// The target that covers exactly `network`, if there is one.
    pub fn exactly(network: IpNet) -> Option<Self> {
        let found = match (network, network.prefix_len()) {
            (IpNet::V4(_), 32) => Self::containing(network.addr()),
            (IpNet::V6(_), 64 | 128) => Self::from_element(network.addr()),
            _ => Self::Prefix(Prefix::new(network)?),
        };
        Some(found).filter(|found| found.network() == network)
    }

    /// The address of the target's element in the kernel's set.
    pub fn element(self) -> IpAddr {
        match self {
            Self::V4(v4) => v4.into(),
            Self::V6(v6) => v6.into(),
            Self::Prefix(wide) => wide.network().addr(),
            Self::Link { address, .. } => address.into(),
        }
    }

    /// Prefix length of the target, in bits.
    pub fn prefix_len(self) -> u8 {
        match self {
            Self::V4(_) => 32,
            // The daemon masks all other addresses. An element with host bits, added by hand, is a single address for
            // the kernel.
            Self::V6(v6) if !is_first(v6) || shared64::prefix_number(v6).is_some() => 128,
            Self::V6(_) => 64,
            Self::Prefix(wide) => wide.network().prefix_len(),
            Self::Link { .. } => 128,
        }
    }

    /// All addresses of the target.
    pub fn network(self) -> IpNet {
        let address = self.element();
        IpNet::new(address, self.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
    }

    /// True if a ban of this target also bans `address`.
    pub fn covers(self, address: IpAddr) -> bool {
        match self {
            Self::V4(_) | Self::V6(_) => Self::containing(address) == self,
            Self::Prefix(wide) => wide.network().contains(&address),
            Self::Link { address: own, .. } => address == own,
        }
    }
}

/// True for the first address of a /64, whose element in the kernel's set covers the whole /64.
fn is_first(address: Ipv6Addr) -> bool {
    address.to_bits().trailing_zeros() >= 64
}

/// Accepts only the output of [`BanTarget`]'s `Display`: another spelling of the same target is an error.
impl FromStr for BanTarget {
    type Err = ParseBanTargetError;

    fn from_str(text: &str) -> Result<Self, ParseBanTargetError> {
        let parsed = || match text.split_once('%') {
            Some((address, interface)) => Some(Self::on(IpAddr::V6(address.parse().ok()?), interface.parse().ok()?)),
            None => Self::exactly(text.parse().map(IpAddr::into).or_else(|_| text.parse()).ok()?),
        };
        parsed().filter(|target| target.to_string() == text).ok_or(ParseBanTargetError)
    }
}

/// The error for a text that is not a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a target of a ban")]
pub struct ParseBanTargetError;

impl fmt::Display for BanTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(v4) => v4.fmt(f),
            Self::V6(v6) => write!(f, "{v6}/{}", self.prefix_len()),
            Self::Prefix(wide) => wide.network().fmt(f),
            Self::Link { address, interface } => write!(f, "{address}%{interface}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_source_is_its_64_unless_shared() {
        let of = |text: &str| BanTarget::containing(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(of("fe80::1"), "fe80::1/128");
        assert_eq!(of("64:ff9b::cb00:7109"), "64:ff9b::cb00:7109/128", "one IPv4 host behind NAT64");
        assert_eq!(of("64:ff9b:0:1::1"), "64:ff9b:0:1::/64");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn link_local_target_belongs_to_one_link() {
        let on = |text: &str, interface| BanTarget::on(text.parse().unwrap(), interface);
        let [first, second] = [3, MAX_LINK].map(|interface| on("fe80::1", interface));
        assert_ne!(first, second);
        for target in [first, second] {
            assert_eq!(target.to_string().parse(), Ok(target));
            assert_eq!((target.element(), target.prefix_len()), ("fe80::1".parse().unwrap(), 128));
            assert_eq!(target.on_every_link(), BanTarget::containing("fe80::1".parse().unwrap()));
        }
        assert_eq!(first.to_string(), "fe80::1%3");
        for unscoped in [on("fe80::1", 0), on("fe80::1", MAX_LINK + 1), on("2001:db8::1", 3), on("192.0.2.1", 3)] {
            assert!(!unscoped.to_string().contains('%'), "{unscoped}");
        }
        for text in ["fe80::1%0", "fe80::1%03", "fe80::1%4096", "2001:db8::%3", "fe80::1%eth0", "fe80::1%", "%3"] {
            assert!(text.parse::<BanTarget>().is_err(), "{text}");
        }
    }

    #[test]
    fn element_with_host_bits_is_masked() {
        let masked = |text: &str| BanTarget::from_element(text.parse().unwrap()).masked().to_string();
        assert_eq!(masked("2001:db8:1:2::7"), "2001:db8:1:2::/64");
        assert_eq!(masked("2001:db8:1:2::"), "2001:db8:1:2::/64");
        assert_eq!(masked("fe80::7"), "fe80::7/128");
        assert_eq!(masked("192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn network_covers_its_sources() {
        let wide = |text: &str| Prefix::new(text.parse().unwrap()).map(|wide| BanTarget::Prefix(wide).to_string());
        assert_eq!(wide("203.0.113.77/24").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(wide("203.0.113.77/31").as_deref(), Some("203.0.113.76/31"));
        assert_eq!(wide("2001:db8:1:2fff::9/56").as_deref(), Some("2001:db8:1:2f00::/56"));
        assert_eq!(wide("2001:db8:1:2fff::9/48").as_deref(), Some("2001:db8:1::/48"));
        for text in ["0.0.0.0/0", "10.0.0.0/7", "203.0.113.7/32", "::/0", "2001:db8::/32", "fe80::/64"] {
            assert_eq!(wide(text), None, "{text}");
        }
        for text in ["203.0.113.0/24", "192.0.2.7/32", "2001:db8:1:2::/64", "fe80::1/128", "2001:db8::/56"] {
            let target = BanTarget::exactly(text.parse().unwrap()).unwrap();
            assert_eq!(IpNet::new(target.element(), target.prefix_len()), Ok(text.parse().unwrap()));
            assert_eq!(target.to_string().parse(), Ok(target));
        }
        for text in ["2001:db8::/32", "203.0.113.7/24", "0.0.0.0/0"] {
            assert_eq!(BanTarget::exactly(text.parse().unwrap()), None, "{text}");
        }
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let target = BanTarget::Prefix(Prefix::containing(address("203.0.113.77"), 24).unwrap());
        assert_eq!((target.element(), target.prefix_len()), (address("203.0.113.0"), 24));
        assert!(target.covers(address("203.0.113.255")) && !target.covers(address("203.0.114.0")));
        assert!(!target.covers(address("::cb00:7101")));
        for text in ["::/64", "::2/128", "::/48", "fe80::/64", "fe80::/128", "64:ff9b::/96", "64:ff9b::/128"] {
            assert!(BanTarget::from_prefix(text.parse().unwrap()).is_err(), "{text} is never one source");
        }
        let one = BanTarget::containing(address("2001:db8::1"));
        assert!(one.covers(address("2001:db8::ffff")) && !one.covers(address("2001:db8:0:1::")));
    }
}
