//! What a ban names, and for how long.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

/// Whom the engine counts and the kernel blocks: one IPv4 address, or an IPv6 /64, because one customer holds a whole
/// /64 and may send from any address in it (RFC 6177). Link-local addresses are the exception: every neighbour lives in
/// fe80::/64, so each stands for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// One IPv4 address.
    V4(Ipv4Addr),
    /// The first address of an IPv6 /64, or one whole link-local address.
    V6(Ipv6Addr),
}

impl Subject {
    /// The subject that `address` belongs to.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) if is_link_local(v6) => Self::V6(v6),
            IpAddr::V6(v6) => Self::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        }
    }

    /// The subject that the kernel's set element `address` stands for: no mask is applied.
    #[must_use]
    pub fn from_element(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) => Self::V6(v6),
        }
    }

    /// The subject that covers `prefix`: an IPv4 address, or the /64 around an IPv6 prefix in it.
    ///
    /// # Errors
    /// A sentence where the prefix is wider than a subject can be.
    pub fn of_prefix(prefix: IpNet) -> Result<Self, String> {
        let narrow = match prefix {
            IpNet::V4(_) => prefix.prefix_len() == 32,
            IpNet::V6(_) => prefix.prefix_len() >= 64,
        };
        if narrow {
            return Ok(Self::of(prefix.addr()));
        }
        Err(format!("{prefix} is wider than one IPv4 address or one IPv6 /64"))
    }

    /// The address that stands in the kernel's set for it.
    #[must_use]
    pub fn element(self) -> IpAddr {
        match self {
            Self::V4(v4) => v4.into(),
            Self::V6(v6) => v6.into(),
        }
    }

    /// Prefix length of what it covers, in bits.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        match self {
            Self::V4(_) => 32,
            Self::V6(v6) if is_link_local(v6) => 128,
            Self::V6(_) => 64,
        }
    }
}

/// In fe80::/64, the only part of fe80::/10 that RFC 4291 gives out.
fn is_link_local(address: Ipv6Addr) -> bool {
    address.to_bits() >> 64 == 0xfe80 << 48
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(v4) => v4.fmt(f),
            Self::V6(v6) => write!(f, "{v6}/{}", self.prefix_len()),
        }
    }
}

/// How long a ban lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Until somebody lifts it.
    Never,
    /// This long; at least one second.
    After(Duration),
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("ever"),
            Self::After(span) => humantime::format_duration(*span).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_source_is_its_slash_64_and_a_link_local_one_is_itself() {
        let of = |text: &str| Subject::of(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(of("fe80::1"), "fe80::1/128");
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn a_day_reads_as_the_classic_line_wants_it() {
        assert_eq!(Expiry::After(Duration::from_secs(86_400)).to_string(), "1day");
        assert_eq!(Expiry::Never.to_string(), "ever");
    }
}
