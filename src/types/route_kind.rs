//! Kinds of blocking routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

/// Treatment of packets to a blocked prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// Blackhole: packets are dropped silently (EINVAL for a local sender).
    #[default]
    Blackhole,
    /// Unreachable: the sender is informed that the host is unreachable (EHOSTUNREACH).
    Unreachable,
    /// Prohibit: the sender is informed that the destination is forbidden (EACCES).
    Prohibit,
    /// Via a gateway that does not exist, in a directly connected network. Disappears when its interface goes down.
    #[serde(skip)]
    Via(IpAddr),
}

impl RouteKind {
    /// The kind of route added for `net`. A gateway of the other family cannot be used for it, so a blackhole replaces
    /// it: a ban without effect in one of the families would be worse.
    #[must_use]
    pub fn toward(self, net: IpNet) -> Self {
        match self {
            Self::Via(gateway) if gateway.is_ipv4() != net.addr().is_ipv4() => Self::Blackhole,
            kind => kind,
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Prohibit => f.write_str("prohibit"),
            Self::Via(gateway) => write!(f, "via {gateway}"),
        }
    }
}
