//! Defines a ban as the ledger stores it, and its end. Times are wall-clock times, because they must remain valid after
//! a reboot. When the clock is set, the remaining time of a stored ban changes, while the kernel's timers continue; a
//! ban that the kernel still holds is restored with the kernel's remaining time.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::clock::end_time;
use crate::engine::{Ban, Class, Grade, LinkId, Service};
use crate::types::{Backend, Backends, BanTarget, Expiry, Protocol};

/// The origin of a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum BanAuthor {
    /// The engine, on evidence.
    Detector,
    Operator,
    /// The ban was found in a backend but not in the ledger, so its author is unknown.
    Import,
}

impl BanAuthor {
    /// The name in the ledger and in JSON, which also parses.
    pub fn key(self) -> &'static str {
        self.into()
    }

    /// The class of a ban; for a ban without one, a word for its author.
    pub fn label(self, class: Option<Class>) -> &'static str {
        let word = match self {
            Self::Detector => "trap",
            Self::Operator => "by hand",
            Self::Import => "import",
        };
        class.map_or(word, Class::key)
    }
}

/// A ban as the ledger records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanRecord {
    pub target: BanTarget,
    /// Source of the last probe; for an IPv6 target, one of its 2^64 addresses. Without a probe the target's own
    /// address.
    pub source: IpAddr,
    /// Begin of the ban, with microseconds.
    pub since: SystemTime,
    /// End of the ban, with microseconds; `None` if permanent.
    pub until: Option<SystemTime>,
    /// Class of the last probe; `None` if there was no probe, or if only the kernel's trap counted it.
    pub class: Option<Class>,
    /// Grade of the evidence; `None` without evidence.
    pub grade: Option<Grade>,
    /// The probed ports, that of the last probe first.
    pub ports: Vec<(Protocol, u16)>,
    /// Number of probes until the ban, including repetitions.
    pub probes: u32,
    /// Interface of the last probe, if known.
    pub interface: Option<String>,
    /// The bridge port of the target, if it is a guest of this host. The ban ends with it.
    pub guest_port: Option<LinkId>,
    /// The backends that enforce it.
    pub backends: Backends,
    pub author: BanAuthor,
    /// The author's note, if there is one; for a ban of the trap the reason.
    pub note: Option<String>,
    /// True if the ban is short and does not count as a strike: the ceiling was reached, or the kernel's trap made the
    /// ban without a verdict of the engine. Its evidence may be forged.
    pub capped: bool,
}

impl BanRecord {
    /// The engine's `ban`, in force since `at`.
    pub fn from_ban(ban: &Ban, at: SystemTime, interface: Option<&str>, backends: impl Into<Backends>) -> Self {
        let observation = &ban.probe.observation;
        Self {
            source: observation.source,
            class: Some(observation.class),
            grade: Some(ban.grade),
            ports: ports(ban),
            probes: ban.probe.probes,
            interface: interface.map(str::to_owned),
            capped: ban.capped,
            ..Self::wanted_by(BanAuthor::Detector, ban.probe.target, at, ban.expiry, backends)
        }
    }

    /// A ban without evidence that `author` requests from `at` on.
    pub fn wanted_by(
        author: BanAuthor,
        target: BanTarget,
        at: SystemTime,
        expiry: Expiry,
        backends: impl Into<Backends>,
    ) -> Self {
        Self {
            target,
            source: target.element(),
            since: at,
            until: end_time(expiry, at),
            class: None,
            grade: None,
            ports: Vec::new(),
            probes: 0,
            interface: None,
            guest_port: None,
            backends: backends.into(),
            author,
            note: None,
            capped: false,
        }
    }

    /// A ban of the kernel's trap without a verdict of the engine, which is short for this `reason`. `ports` are the
    /// probed ports that are known.
    pub fn by_trap(
        target: BanTarget,
        at: SystemTime,
        expiry: Expiry,
        ports: Vec<(Protocol, u16)>,
        reason: &str,
    ) -> Self {
        let ban = Self::wanted_by(BanAuthor::Detector, target, at, expiry, Backend::Nft);
        Self { grade: Some(Grade::Forgeable), capped: true, ports, note: Some(reason.to_owned()), ..ban }
    }

    /// Remaining time at `now`, at least a second; `None` once it has ended. If the clock is before `since`, the whole
    /// duration remains.
    pub fn left(&self, now: SystemTime) -> Option<Expiry> {
        left(self.since, self.until, now)
    }
}

/// The ports of a ban, the deciding one first.
fn ports(ban: &Ban) -> Vec<(Protocol, u16)> {
    let deciding = (ban.probe.observation.protocol, ban.probe.observation.port);
    let others = ban.ports.iter().map(|(protocol, port, _)| (protocol, port)).filter(|port| *port != deciding);
    std::iter::once(deciding).chain(others).collect()
}

/// The part of a [`BanRecord`] that a start needs: there may be a hundred thousand of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanSummary {
    pub target: BanTarget,
    /// Source of the last probe.
    pub source: IpAddr,
    /// Begin of the ban.
    pub since: SystemTime,
    /// End of the ban; `None`: never.
    pub until: Option<SystemTime>,
    /// The class of the evidence, if there was any.
    pub class: Option<Class>,
    /// Grade of the evidence, if there was any.
    pub grade: Option<Grade>,
    /// Port of the last probe, if there was one.
    pub port: Option<(Protocol, u16)>,
    /// The backends that have enforced it.
    pub backends: Backends,
    /// The bridge port of the target, if it is a guest of this host.
    pub guest_port: Option<LinkId>,
}

impl BanSummary {
    /// As [`BanRecord::left`].
    pub fn left(&self, now: SystemTime) -> Option<Expiry> {
        left(self.since, self.until, now)
    }
}

fn left(since: SystemTime, until: Option<SystemTime>, now: SystemTime) -> Option<Expiry> {
    let Some(until) = until else { return Some(Expiry::Never) };
    let left = until.duration_since(now.max(since)).ok().filter(|left| !left.is_zero())?;
    Some(Expiry::After(left.max(MIN_EXPIRY)))
}

/// Minimum of [`Expiry::After`].
const MIN_EXPIRY: Duration = Duration::from_secs(1);

/// How a ban ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Expired,
    Lifted {
        by: String,
    },
    /// A newer ban of the same target replaced it.
    Replaced,
}

/// End of a ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndRecord {
    pub how: Ending,
    /// When, to the microsecond.
    pub at: SystemTime,
}

/// A stored ban.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    pub ban: BanRecord,
    /// Number of strikes of its target when it began: earlier bans on evidence below the ceiling that were not lifted,
    /// of any age.
    pub strikes: u32,
    /// Its end; `None` while none is recorded, which does not mean that a ban with `until` is in force.
    pub ended: Option<EndRecord>,
}

/// A place in the order of the pages: permanent bans, then the others by their ends. Bans with the same end are in the
/// order in which they were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, SerializeDisplay, DeserializeFromStr)]
pub struct PageCursor {
    /// End of the ban in microseconds; `None`: permanent.
    pub(super) until: Option<i64>,
    pub(super) id: i64,
}

/// Bans in order, each with its position; `None` for an invalid row.
pub type Page = Vec<(PageCursor, Option<LedgerEntry>)>;

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Some(until) => write!(f, "{until}.{}", self.id),
            None => write!(f, "never.{}", self.id),
        }
    }
}

impl FromStr for PageCursor {
    type Err = ParsePageCursorError;

    fn from_str(text: &str) -> Result<Self, ParsePageCursorError> {
        let number = |text: &str| text.parse().map_err(|_| ParsePageCursorError);
        let (until, id) = text.split_once('.').ok_or(ParsePageCursorError)?;
        let until = if until == "never" { None } else { Some(number(until)?) };
        Ok(Self { until, id: number(id)? })
    }
}

/// The error for a text that is not a [`PageCursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`after` is not `next` of an earlier answer")]
pub struct ParsePageCursorError;

/// A source that would have been banned, with the evidence of the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The target that a ban would have had.
    pub target: BanTarget,
    /// Source of the last probe.
    pub source: IpAddr,
    /// When it would have been banned for the first time.
    pub first: SystemTime,
    /// When it would have been banned the last time.
    pub last: SystemTime,
    /// Number of times it would have been banned.
    pub times: u32,
    pub class: Class,
    /// The probed ports, that of the last probe first.
    pub ports: Vec<(Protocol, u16)>,
    pub probes: u32,
    /// The reason as a sentence.
    pub reason: String,
}

impl Logged {
    /// The engine's `ban`, which was not enforced because of `reason`.
    pub fn from_ban(ban: &Ban, at: SystemTime, reason: String) -> Self {
        let observation = &ban.probe.observation;
        Self {
            target: ban.probe.target,
            source: observation.source,
            first: at,
            last: at,
            times: 1,
            class: observation.class,
            ports: ports(ban),
            probes: ban.probe.probes,
            reason,
        }
    }
}

/// A network that an operator has allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub network: IpNet,
    pub since: SystemTime,
    /// `None`: until it is revoked.
    pub until: Option<SystemTime>,
    pub by: String,
}

/// The operator that lifted a ban of the fleet: of this host, or of the whole fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum LiftedBy {
    Host,
    Fleet,
}

/// A target that is not blocked for reports of other hosts, because an operator has lifted its ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetLift {
    pub target: BanTarget,
    pub until: SystemTime,
    pub by: LiftedBy,
}

/// A source that has, or had, a connection to a service of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    pub target: BanTarget,
    /// Start of its first connection.
    pub since: SystemTime,
    /// Last time at which it had a connection.
    pub last: SystemTime,
}

/// A change to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerChange {
    /// All lifts of the fleet's bans. Replaces the stored ones.
    FleetLifts(Vec<FleetLift>),
    /// A ban has come into force. It replaces an earlier one of the same target.
    Banned(BanRecord),
    /// Further backends enforce the ban of the same target that began at the same time. Without such a ban, a new one
    /// is recorded.
    Also(BanRecord),
    /// From now on these backends enforce the ban of `target` that began at `since`, and no others.
    Moved { target: BanTarget, since: SystemTime, backends: Backends },
    /// The ban of `target` that began at `since` ends with this bridge port.
    GuestPort { target: BanTarget, since: SystemTime, port: LinkId },
    /// A source would have been banned, but its protocol is only logged.
    Logged(Logged),
    /// Scans are only logged until `until`; `None`: the trial has ended.
    Trial { until: Option<SystemTime> },
    /// A network is allowed; replaces an earlier allowance of it.
    Allowed(Allowance),
    /// The allowance of this network was revoked or has expired.
    Disallowed { network: IpNet },
    /// A ban has ended.
    Ended {
        target: BanTarget,
        /// A ban that had already expired is recorded as expired, at its own end.
        ended: EndRecord,
    },
    /// At `at` the expiry command has ended for the ban of `target` that began at `since`.
    Undone { target: BanTarget, since: SystemTime, at: SystemTime },
    /// A service is remembered, and was last served at this time.
    Served(Service, SystemTime),
    /// The recently open ports, each with the time at which it closed; `None` if it is open. Replaces the stored list.
    Listeners(Vec<(Service, Option<SystemTime>)>),
    /// All known peers; replaces the stored list.
    KnownPeers(Vec<KnownPeer>),
    /// Identity of the kernel's table: boot and handle.
    Table(String),
    /// A service is no longer remembered.
    ServiceForgotten(Service),
}

impl From<BanRecord> for LedgerChange {
    fn from(ban: BanRecord) -> Self {
        Self::Banned(ban)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_reads_back_as_written() {
        for (until, id) in [(None, 1), (Some(0), i64::MAX), (Some(1_795_242_733_123_456), 7), (Some(-1), -1)] {
            let position = PageCursor { until, id };
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for wrong in ["", ".", "never", "never.", "1.", ".1", "1.2.3", "1.x", "192.0.2.7", "99999999999999999999.1"] {
            assert!(wrong.parse::<PageCursor>().is_err(), "{wrong:?}");
        }
    }
}
