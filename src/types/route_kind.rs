//! Defines the kinds of blocking routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

/// How packets to a blocked prefix are handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// Blackhole: packets are dropped silently (EINVAL for a local sender).
    #[default]
    Blackhole,
    /// Unreachable: the sender gets an error that the host is unreachable (EHOSTUNREACH).
    Unreachable,
    /// Prohibit: the sender gets an error that the destination is prohibited (EACCES).
    Prohibit,
    /// Via a nonexistent gateway in a directly connected network. The route disappears when its interface goes down.
    #[serde(skip)]
    Via(IpAddr),
}

impl RouteKind {
    /// The kind of route to add for `net`. A gateway of the other family cannot be used, so a blackhole replaces it: a
    /// ban without effect in one of the families would be worse.
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
