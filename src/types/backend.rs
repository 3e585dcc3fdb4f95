//! Defines the backends that enforce a ban, with their names in the configuration, the ledger, events and metrics, and
//! what nftables and the routes do with packets.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_with::{DeserializeFromStr, SerializeDisplay};

/// A backend: where a ban is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// An element of a set in `table inet portsentry`.
    Nft,
    /// A blackhole, unreachable or prohibit route.
    Route,
    /// A line in hosts.deny, for services that use TCP wrappers (hosts_access(5)).
    HostsDeny,
    /// A command that the administrator configured.
    #[serde(rename = "run")]
    Command,
}

impl Backend {
    /// Every backend, from the one that stops most packets to the one that stops fewest; [`Backends`] prints them in
    /// this order.
    pub const ALL: [Self; 4] = [Self::Nft, Self::Route, Self::HostsDeny, Self::Command];

    /// What the rest of the program needs to know about it, except its work.
    const fn facts(self) -> Facts {
        match self {
            Self::Nft => Facts {
                name: "nft",
                classic_name: "nftables set inet portsentry",
                title: "nftables set",
                place: "the kernel's sets",
                is_slow: false,
            },
            Self::Route => Facts {
                name: "route",
                classic_name: "dropped route",
                title: "route",
                place: "the kernel's routes",
                is_slow: false,
            },
            Self::HostsDeny => Facts {
                name: "hosts-deny",
                classic_name: "wrappers",
                title: "hosts.deny",
                place: "hosts.deny",
                is_slow: true,
            },
            Self::Command => {
                Facts { name: "run", classic_name: "run", title: "command", place: "command", is_slow: true }
            }
        }
    }

    /// The name in the configuration, the ledger, JSON and metrics.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// The name in the classic log: "Host … has been blocked via NAME".
    pub const fn classic_name(self) -> &'static str {
        self.facts().classic_name
    }

    /// The name for readers: what a source is blocked by.
    pub const fn title(self) -> &'static str {
        self.facts().title
    }

    /// Where its bans are, for log lines.
    pub const fn place(self) -> &'static str {
        self.facts().place
    }

    /// True if the slow-backends thread runs it, because it writes files, starts processes or waits.
    pub const fn is_slow(self) -> bool {
        self.facts().is_slow
    }

    /// The names of the slow backends: "hosts-deny and run".
    pub fn slow_names() -> String {
        let slow = Self::ALL.into_iter().filter(|backend| backend.is_slow());
        slow.map(Self::name).collect::<Vec<_>>().join(" and ")
    }
}

struct Facts {
    name: &'static str,
    classic_name: &'static str,
    title: &'static str,
    place: &'static str,
    is_slow: bool,
}

/// The backends that enforce one ban.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, SerializeDisplay, DeserializeFromStr)]
pub struct Backends([bool; Backend::ALL.len()]);

impl Backends {
    pub fn contains(self, backend: Backend) -> bool {
        self.iter().any(|one| one == backend)
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub fn insert(&mut self, backend: Backend) {
        *self = self.and(backend.into());
    }

    /// The union of both sets.
    pub fn and(self, others: Self) -> Self {
        self.iter().chain(others.iter()).collect()
    }

    /// Each backend, in the order of [`Backend::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Backend> {
        Backend::ALL.into_iter().zip(self.0).filter_map(|(backend, is_in)| is_in.then_some(backend))
    }
}

impl FromIterator<Backend> for Backends {
    fn from_iter<T: IntoIterator<Item = Backend>>(backends: T) -> Self {
        let given: Vec<Backend> = backends.into_iter().collect();
        Self(Backend::ALL.map(|backend| given.contains(&backend)))
    }
}

impl From<Backend> for Backends {
    fn from(backend: Backend) -> Self {
        std::iter::once(backend).collect()
    }
}

/// Names separated by blanks: "nft route".
impl fmt::Display for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Backend::name).collect::<Vec<_>>().join(" "))
    }
}

/// Accepts only the output of [`Backends`]' `Display`.
impl FromStr for Backends {
    type Err = ParseBackendsError;

    fn from_str(text: &str) -> Result<Self, ParseBackendsError> {
        let find = |name: &str| Backend::ALL.into_iter().find(|backend| backend.name() == name);
        let backends: Option<Self> = text.split(' ').filter(|name| !name.is_empty()).map(find).collect();
        backends.filter(|backends| backends.to_string() == text).ok_or(ParseBackendsError)
    }
}

/// The error for a text that is not a list of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of backends")]
pub struct ParseBackendsError;

/// How nftables handles packets from blocked sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Drop the packets: the source waits for a reply that never arrives.
    #[default]
    Drop,
    /// Reply as for a closed port, with a TCP reset or an ICMP error, so that an innocent client gives up immediately.
    /// Above a rate that could harm a third party, drop the packets.
    Reject,
}

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
