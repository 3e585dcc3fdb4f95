//! Defines the fleet's part of `status`, `list` and `explain`: its connection, and the reports of other hosts.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::format::format_seconds;
use crate::engine::{Class, Grade};
use crate::fleet::protocol::IgnoredAuthor;
use crate::types::{BanTarget, counted, nullable};

/// Maximum number of targets in one answer, which must fit into a line.
pub const MAX_FLEET_BANS: usize = 64;

/// Maximum number of listed reports per target.
pub const MAX_FLEET_REPORTS: usize = 4;

/// The fleet in the answer to `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStatus {
    pub name: String,
    /// Name of this host in the fleet.
    pub host: String,
    /// True if reports are judged, but nothing is blocked for them.
    pub shadow: bool,
    pub link: FleetLink,
    /// The error of the connection.
    #[serde(deserialize_with = "nullable")]
    pub reason: Option<String>,
    /// Number of targets that are blocked, or would be in shadow mode.
    pub bans: usize,
    /// Number of targets that wait for a report of another author.
    pub waiting: usize,
    pub accepted: u64,
    pub refused: u64,
    /// Authors whose reports are ignored, with the reasons.
    pub ignored: Vec<IgnoredAuthor>,
}

/// The connection to the fleet's server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FleetLink {
    #[default]
    Away,
    Connected,
}

/// State of a target that other hosts have reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetBan {
    #[serde(rename = "subject")]
    pub target: BanTarget,
    pub state: FleetBanState,
    /// Remaining seconds for which it is blocked, would be blocked, or stays lifted.
    #[serde(deserialize_with = "nullable")]
    pub left_s: Option<u64>,
    /// Number of authors still needed.
    pub lacking: usize,
    /// The first [`MAX_FLEET_REPORTS`].
    pub reports: Vec<FleetReportInfo>,
    /// Number of further reports.
    pub more: usize,
}

/// State of a target because of the reports of other hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FleetBanState {
    #[default]
    Waiting,
    Blocked,
    /// In shadow mode, and while scans are only logged.
    #[serde(rename = "would be blocked")]
    WouldBeBlocked,
    /// An operator has lifted it.
    Lifted,
}

/// One host's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetReportInfo {
    pub author: String,
    pub evidence: Grade,
    pub distinct_ports: u32,
    pub class: Class,
    pub left_s: u64,
}

/// The answer to `fleet`: the targets after the requested one, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetBans {
    /// False if this host is not in a fleet.
    pub joined: bool,
    /// At most [`MAX_FLEET_BANS`].
    pub bans: Vec<FleetBan>,
    /// True if there are more targets after the last one.
    pub more: bool,
}

impl fmt::Display for FleetBan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `None` only for `Waiting`, whose text has no time.
        let left = format_seconds(self.left_s.unwrap_or_default());
        match self.state {
            FleetBanState::Blocked => write!(f, "blocked, {left} left")?,
            FleetBanState::WouldBeBlocked => write!(f, "would be blocked, {left} left (fleet.shadow)")?,
            FleetBanState::Lifted => write!(f, "lifted by an operator for {left} more")?,
            FleetBanState::Waiting if self.lacking == 0 => {
                f.write_str("not blocked: a ban on forgeable evidence lasts at most an hour, which has passed")?;
            }
            FleetBanState::Waiting => write!(f, "not blocked: further hosts that must report it: {}", self.lacking)?,
        }
        if self.reports.is_empty() {
            return if self.state == FleetBanState::Lifted {
                Ok(())
            } else {
                f.write_str("; the reports date from before a restart")
            };
        }
        let reports: Vec<String> = self.reports.iter().map(ToString::to_string).collect();
        write!(f, "; reported by {}", reports.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

impl fmt::Display for FleetReportInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { author, evidence, distinct_ports, class, left_s } = self;
        let (evidence, ports) = (evidence.key(), counted(*distinct_ports, "port"));
        write!(f, "{author} ({evidence}, {class}, {ports}, {} left)", format_seconds(*left_s))
    }
}

impl fmt::Display for FleetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, host, link, reason, bans, waiting, accepted, refused, .. } = self;
        write!(f, "{name}, as {host}: ")?;
        match (link, reason) {
            (FleetLink::Connected, _) => f.write_str("connected")?,
            (FleetLink::Away, Some(reason)) => write!(f, "ALARM: not connected: {reason}")?,
            (FleetLink::Away, None) => f.write_str("not connected yet")?,
        }
        let verb = if self.shadow { "would be blocked (fleet.shadow)" } else { "blocked" };
        write!(
            f,
            "; {} {verb}, {waiting} waiting for a report of another host; reports: {accepted} counted, {refused} \
             refused",
            counted(*bans, "target")
        )
    }
}
