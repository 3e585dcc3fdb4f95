//! How a ban is carried out: the sections `block` and `escalate`.

use crate::types::Backend;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How a ban is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The ways, in their order; at least one, each once.
    pub method: Vec<Backend>,
    /// Ceiling on new bans in a minute, at least 1: what a flood of forged sources can do at most.
    pub max_new_bans_per_minute: u32,
    /// Length of the widest IPv4 prefix that several scanners in it may get blocked: 24 to 30, or 32: none.
    pub widest_ipv4: u8,
    /// Length of the widest IPv6 prefix, likewise: 48, 56 or 64; 64: none.
    pub widest_ipv6: u8,
    /// The nftables way.
    pub nft: NftBlock,
    /// The route way.
    pub route: Route,
    /// The way of TCP wrappers.
    pub hosts_deny: HostsDeny,
    /// The command.
    pub run: Run,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            method: vec![Backend::Nft],
            max_new_bans_per_minute: 600,
            widest_ipv4: 32,
            widest_ipv6: 64,
            nft: NftBlock { action: Action::Drop, log_drops: None, end_connections: true, size: 131_072 },
            route: Route::Blackhole,
            hosts_deny: HostsDeny::default(),
            run: Run::default(),
        }
    }
}

/// Settings of the nftables way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftBlock {
    /// What the rule does with packets of a blocked source.
    pub action: Action,
    /// How many of them the kernel logs; `None`: none.
    pub log_drops: Option<LogRate>,
    /// Whether the connections that a blocked source has with this host are ended, also those to its services.
    pub end_connections: bool,
    /// How many bans each of the two sets holds: 1 to 16,777,216.
    pub size: u32,
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dropped in silence.
    Drop,
    /// Answered with a reset or an ICMP error.
    Reject,
}

/// How many lines the kernel logs: `count` in `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRate {
    /// Lines: 1 to 10,000.
    pub count: u32,
    /// A second, a minute, an hour or a day.
    pub per: Duration,
}

/// As it is written: "3/minute".
impl fmt::Display for LogRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "second",
            60 => "minute",
            3_600 => "hour",
            _ => "day",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// What a blocking route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Drops answers in silence.
    Blackhole,
    /// Answers "host unreachable".
    Unreachable,
    /// Answers "administratively prohibited".
    Prohibit,
    /// Leads to a gateway that does not exist.
    Via(IpAddr),
}

/// The way of TCP wrappers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostsDeny {
    /// The file.
    pub file: PathBuf,
    /// One line, with `$TARGET$` for the source.
    pub line: String,
}

impl Default for HostsDeny {
    fn default() -> Self {
        Self { file: PathBuf::from("/etc/hosts.deny"), line: "ALL: $TARGET$".to_owned() }
    }
}

/// A command to run on a ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Program and arguments when the ban is over; empty: none.
    pub expire_command: Vec<String>,
    /// Run it before the other ways, which wait for its end.
    pub first: bool,
    /// How long it may take: one second to ten minutes.
    pub timeout: Duration,
    /// How many may run at once: 1 to 64.
    pub at_once: u32,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            expire_command: Vec::new(),
            first: false,
            timeout: Duration::from_secs(30),
            at_once: 4,
        }
    }
}

/// Longer bans for who comes back: the n-th ban lasts `factor` times as long as the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Escalate {
    /// 1 to 100; 1: every ban lasts as long as the first.
    pub factor: u32,
    /// The longest that a ban gets by this; one second to ten years.
    pub max: Duration,
    /// How long after its end a ban still counts; one second to ten years.
    pub forget: Duration,
}

impl Default for Escalate {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self { factor: 2, max: days(30), forget: days(90) }
    }
}
