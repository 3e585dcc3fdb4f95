//! Defines the numbers of the report and their JSON form: spans in seconds, times in RFC 3339.

use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use serde_with::{As, DisplayFromStr};

use super::calendar::WEEKDAYS;
use super::services;
use crate::clock::WallTime;
use crate::engine::{Class, Grade};
use crate::ledger::BanAuthor;
use crate::types::{Backend, BanTarget, Protocol};

/// The bans that began within a period, added up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReportStats {
    #[serde(serialize_with = "time")]
    pub from: SystemTime,
    /// End of the period: the time at which the report was made.
    #[serde(serialize_with = "time")]
    pub to: SystemTime,
    /// Bans in the ledger, of any time.
    pub kept: u64,
    /// Bans that began within the period. The following fields are about these bans, unless noted otherwise.
    pub bans: u64,
    /// Distinct targets of these bans: IPv4 addresses and, for IPv6, /64 networks.
    pub sources: u64,
    /// Bans in force at the end of the period, whenever they began.
    pub in_force: u64,
    /// Targets that had been banned before, within the period or earlier.
    #[serde(rename = "repeat_offenders")]
    pub repeaters: u64,
    pub probes: u64,
    pub over_time: OverTime,
    /// Bans by class of the deciding probe, highest count first; `None` stands for bans without a probe.
    #[serde(serialize_with = "counts_or_none")]
    pub classes: Vec<(Option<Class>, u64)>,
    /// Bans by grade of their evidence, highest count first; `None` stands for bans without evidence.
    #[serde(serialize_with = "counts_or_none")]
    pub evidence: Vec<(Option<Grade>, u64)>,
    /// Bans by probed port.
    #[serde(serialize_with = "ports")]
    pub ports: Top<((Protocol, u16), u64)>,
    /// Bans by network, /24 of IPv4 and /48 of IPv6.
    pub networks: Top<Network>,
    /// Targets by number of probes of their bans within the period, highest number first.
    pub top_sources: Top<SourceStats>,
    /// Targets that were banned more than once, highest number of bans first.
    pub offenders: Top<Offender>,
    /// The newest bans on evidence, newest first.
    pub recent: Vec<RecentBan>,
    /// The newest bans by operators and by imports, newest first.
    pub by_hand: Vec<RecentBan>,
    /// Bans by weekday, Monday first, and by hour of the day.
    #[serde(serialize_with = "hours")]
    pub hours: [[u64; 24]; 7],
    /// Sources that would have been banned within the period but were only logged, newest first.
    pub would_block: Top<WouldBlock>,
    pub ends: Ends,
    /// Bans by author, highest count first.
    #[serde(serialize_with = "counts")]
    pub authors: Vec<(BanAuthor, u64)>,
    /// Bans by backend, highest count first.
    #[serde(serialize_with = "counts")]
    pub methods: Vec<(Backend, u64)>,
    /// Number of bans that begin after the period because the clock was set back. They are not counted above.
    pub ahead: u64,
    /// Number of unreadable rows of the ledger. They are not counted above.
    pub unreadable: u64,
}

/// Bans in consecutive buckets of equal width.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OverTime {
    #[serde(rename = "bucket_s", serialize_with = "seconds")]
    pub bucket: Duration,
    /// Start and number of bans of every bucket, oldest first. The period cuts off the first and the last bucket.
    #[serde(serialize_with = "buckets")]
    pub bans: Vec<(SystemTime, u64)>,
}

/// The first items of a list, and the number of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Top<T> {
    #[serde(rename = "most")]
    pub items: Vec<T>,
    pub more: u64,
}

/// A network with banned targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    #[serde(rename = "network", serialize_with = "As::<DisplayFromStr>::serialize")]
    pub prefix: IpNet,
    pub bans: u64,
    pub sources: u64,
}

/// A target that was banned more than once, with everything that the ledger keeps about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Offender {
    #[serde(rename = "subject")]
    pub target: BanTarget,
    /// Number of bans, including the latest.
    pub strikes: u64,
    /// Start of the oldest ban in the ledger.
    #[serde(serialize_with = "time")]
    pub first: SystemTime,
    #[serde(serialize_with = "time")]
    pub last: SystemTime,
    /// Total time for which it has been blocked.
    #[serde(rename = "blocked_s", serialize_with = "seconds")]
    pub blocked: Duration,
}

/// A source that would have been banned while its protocol was only logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WouldBlock {
    #[serde(rename = "subject")]
    pub target: BanTarget,
    pub reason: String,
    /// Total number of times that it would have been banned.
    pub times: u32,
    #[serde(serialize_with = "time")]
    pub last: SystemTime,
}

/// A target with its bans within the period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SourceStats {
    #[serde(rename = "subject")]
    pub target: BanTarget,
    pub bans: u64,
    pub probes: u64,
}

/// A single ban within the period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecentBan {
    #[serde(serialize_with = "time")]
    pub since: SystemTime,
    #[serde(rename = "subject")]
    pub target: BanTarget,
    /// `None` for a ban without a probe.
    pub class: Option<Class>,
    pub author: BanAuthor,
    pub note: Option<String>,
    pub in_force: bool,
}

/// Number of bans by the way in which they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ends {
    pub in_force: u64,
    pub expired: u64,
    /// Lifted by an operator.
    pub lifted: u64,
    pub replaced: u64,
}

fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&WallTime(*time).without_fraction())
}

fn seconds<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(span.as_secs())
}

fn counts<K: Serialize, S: Serializer>(counts: &[(K, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(key, bans)| (key, bans)))
}

fn counts_or_none<K: Copy + Into<&'static str>, S: Serializer>(
    counts: &[(Option<K>, u64)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(key, bans)| (key.map_or("none", Into::into), bans)))
}

fn hours<S: Serializer>(hours: &[[u64; 24]; 7], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(WEEKDAYS.iter().map(|day| day.to_ascii_lowercase()).zip(hours))
}

fn buckets<S: Serializer>(buckets: &[(SystemTime, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Bucket {
        #[serde(serialize_with = "time")]
        time: SystemTime,
        bans: u64,
    }
    serializer.collect_seq(buckets.iter().map(|(time, bans)| Bucket { time: *time, bans: *bans }))
}

fn ports<S: Serializer>(ports: &Top<((Protocol, u16), u64)>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Port {
        proto: Protocol,
        port: u16,
        service: Option<&'static str>,
        bans: u64,
    }
    let items = ports.items.iter().map(|((protocol, port), bans)| Port {
        proto: *protocol,
        port: *port,
        service: services::name(*protocol, *port),
        bans: *bans,
    });
    Top { items: items.collect(), more: ports.more }.serialize(serializer)
}
