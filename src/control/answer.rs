//! Defines the answers on the control socket, and their text.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_with::As;

use super::address_info::AddressInfo;
use super::ban_info::BanPage;
use super::fleet_info::FleetBans;
use super::notation::Notation;
use super::status::Status;
use crate::clock::{BanEnd, WallTime};
use crate::ledger::Allowance;
use crate::types::{BanTarget, nullable, plain};

/// The daemon's answer to a successful request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Status(Box<Status>),
    Blocked(Blocked),
    Unblocked(Unblocked),
    Allowed(Allowed),
    Disallowed(Disallowed),
    Allowances(AllowedList),
    Explained(Box<AddressInfo>),
    Bans(BanPage),
    FleetBans(FleetBans),
    ServiceForgotten(ServiceForgotten),
    Reloaded(Reloaded),
    Trial(TrialState),
    Confirmed {},
    Subscribed {},
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    #[serde(rename = "subject")]
    pub target: BanTarget,
    pub expires: BanEnd,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unblocked {
    pub unblocked: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    #[serde(with = "As::<Notation>")]
    pub allowed: IpNet,
    /// Null: until it is revoked.
    #[serde(deserialize_with = "nullable")]
    pub until: Option<WallTime>,
    /// Number of bans that this lifts.
    pub lifted: usize,
    /// Their targets, the first [`MAX_LISTED`].
    pub bans: Vec<BanTarget>,
}

/// Maximum number of bans and allowances in one answer, which must fit into a line.
pub const MAX_LISTED: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disallowed {
    #[serde(with = "As::<Notation>")]
    pub disallowed: IpNet,
    /// The remaining protection, if there is one.
    #[serde(deserialize_with = "nullable")]
    pub still: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedList {
    pub allowed: Vec<AllowedEntry>,
    /// Number of omitted entries.
    pub more: usize,
}

/// A network that an operator or the configuration allows.
#[serde_with::apply(Option => #[serde(deserialize_with = "nullable")])]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedEntry {
    #[serde(with = "As::<Notation>")]
    pub network: IpNet,
    /// The operator, or the key of the configuration.
    pub by: String,
    /// Null for what the configuration allows.
    pub since: Option<WallTime>,
    /// Null: until revoked, or removed from the configuration.
    pub until: Option<WallTime>,
}

impl From<Allowance> for AllowedEntry {
    fn from(Allowance { network, since, until, by }: Allowance) -> Self {
        Self { network, by, since: Some(WallTime(since)), until: until.map(WallTime) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceForgotten {
    /// Number of services, counting each family and address separately.
    pub forgotten: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialState {
    /// End of the log-only trial; null if scans are blocked again.
    #[serde(deserialize_with = "nullable")]
    pub until: Option<WallTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    pub changed: Vec<String>,
    pub needs_restart: Vec<String>,
}

impl Reloaded {
    /// The keys that have changed, and those that take effect after a restart, as the end of a sentence; `None` if
    /// there are none of either.
    pub fn details(&self) -> Option<String> {
        let lists = [("changed", &self.changed), ("takes effect after a restart", &self.needs_restart)];
        let parts: Vec<_> = lists
            .iter()
            .filter(|(_, keys)| !keys.is_empty())
            .map(|(title, keys)| format!("{title}: {}", keys.join(", ")))
            .collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The answer as text; `--json` prints the object itself.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Blocked(Blocked { target, expires: BanEnd(None) }) => {
                writeln!(f, "{target} is blocked until `portsentry unblock {target}`")
            }
            Self::Blocked(Blocked { target, expires: BanEnd(Some(end)) }) => {
                writeln!(f, "{target} is blocked until {}", end.without_fraction())
            }
            Self::Unblocked(Unblocked { unblocked }) => writeln!(f, "bans lifted: {unblocked}"),
            Self::Allowed(Allowed { allowed, until, lifted, bans }) => {
                let allowed = plain(*allowed);
                match until {
                    Some(until) => writeln!(f, "{allowed} is allowed until {}", until.without_fraction())?,
                    None => writeln!(f, "{allowed} is allowed until `portsentry disallow {allowed}`")?,
                }
                if *lifted == 0 {
                    return Ok(());
                }
                let more = lifted.saturating_sub(bans.len());
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let bans: Vec<String> = bans.iter().map(BanTarget::to_string).collect();
                writeln!(f, "bans lifted: {lifted} ({}{more})", bans.join(", "))
            }
            Self::Disallowed(Disallowed { disallowed, still: None }) => {
                writeln!(f, "the allowance of {} is revoked", plain(*disallowed))
            }
            Self::Disallowed(Disallowed { disallowed, still: Some(why) }) => {
                let network = plain(*disallowed);
                writeln!(f, "the allowance of {network} is revoked, but it is still never blocked: it is {why}")
            }
            Self::Allowances(AllowedList { allowed, more }) => {
                if allowed.is_empty() {
                    return writeln!(f, "no address is allowed, by operators or by the configuration");
                }
                let width = allowed.iter().map(|entry| plain(entry.network).len()).max().unwrap_or_default();
                for AllowedEntry { network, by, since, until } in allowed {
                    let until = match (since, until) {
                        (None, _) => String::new(),
                        (_, Some(until)) => format!(", until {}", until.without_fraction()),
                        (_, None) => ", until it is revoked".to_owned(),
                    };
                    writeln!(f, "{:<width$}  by {by}{until}", plain(*network))?;
                }
                if *more > 0 { writeln!(f, "and {more} more from the configuration") } else { Ok(()) }
            }
            Self::Explained(info) => info.fmt(f),
            Self::ServiceForgotten(ServiceForgotten { forgotten }) => writeln!(f, "services forgotten: {forgotten}"),
            Self::Reloaded(reloaded) => match reloaded.details() {
                Some(details) => writeln!(f, "configuration reloaded; {details}"),
                None => writeln!(f, "configuration reloaded: nothing has changed"),
            },
            Self::Trial(TrialState { until: Some(until) }) => writeln!(
                f,
                "scans are only logged until {}; the bans in force stay. `portsentry trial --end` resumes blocking",
                until.without_fraction()
            ),
            Self::Trial(TrialState { until: None }) => writeln!(f, "the trial has ended: scans are blocked again"),
            Self::Confirmed {} => writeln!(f, "confirmed: blocking continues"),
            // `list` formats the first two.
            Self::Bans(_) | Self::FleetBans(_) | Self::Subscribed {} => Ok(()),
        }
    }
}
