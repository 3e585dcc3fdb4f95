//! Kinds of blocking routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

/// Where a blocked packet goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouteKind {
    /// Blackhole: packets are dropped silently (EINVAL for a local sender).
    #[default]
    Blackhole,
    /// Unreachable: the sender learns that the host is unreachable (EHOSTUNREACH).
    Unreachable,
    /// Prohibit: the sender learns that it is forbidden (EACCES).
    Prohibit,
    /// To a gateway that does not exist, in a network that this host is connected to. Goes when its interface goes down.
    #[serde(skip)]
    Via(IpAddr),
}

impl RouteKind {
    /// What is laid for `net`: an address of the other family can be no gateway to it, so there it is a blackhole. A ban
    /// that did nothing for one of the families would be worse.
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
