//! Decides how this host treats a report of another host, and holds the state of the fleet in tables of limited size.
//! Pure: the time is an argument, and it does no I/O.
//!
//! In doubt the decision favours the target: the report is refused. An address that an operator or the host's network
//! needs is never blocked because of a report.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::authors::{Authors, ConnectionPhase, HourCount};
use super::lifts::Lifts;
use super::verdict::{BanChange, ReportRefusal, ReportVerdict, target};
use crate::config::{FleetAccept, parse_fleet_name};
use crate::engine::{Class, Grade};
use crate::fleet::MIN_PROVEN_PORTS;
use crate::fleet::protocol::{FleetReport, MAX_REMAINING};
use crate::ledger::LiftedBy;
use crate::types::{BanTarget, Expiry, HOUR, MINUTE, Timestamp};

/// Maximum duration of a ban on forgeable evidence, regardless of further reports.
const MAX_FORGEABLE_TIME: Duration = HOUR;

/// Minimum extension of a ban.
const MIN_STEP: Duration = MINUTE;

/// Maximum number of reports stored per target.
const MAX_REPORTS: usize = 64;

/// Maximum number of targets that wait for another author, in addition to the blocked ones.
const MAX_WAITING_TARGETS: usize = 16_384;

/// One author's report about one target.
#[derive(Clone, Debug)]
pub(super) struct AuthorReport {
    pub(super) author: Arc<str>,
    pub(super) grade: Grade,
    pub(super) distinct_ports: u32,
    pub(super) class: Class,
    pub(super) until: Timestamp,
}

impl AuthorReport {
    fn is_proven(&self) -> bool {
        self.grade == Grade::Proven && self.distinct_ports >= u32::from(MIN_PROVEN_PORTS)
    }
}

/// State of one target.
#[derive(Clone, Debug, Default)]
pub(super) struct ReportedTarget {
    /// At most one report per author.
    pub(super) reports: Vec<AuthorReport>,
    /// End of the ban, if the target is blocked.
    pub(super) until: Option<Timestamp>,
    /// Time at which forgeable evidence was first sufficient. It is forgotten with the entry.
    forgeable_since: Option<Timestamp>,
}

pub(super) struct Acceptance {
    /// Other rules apply to later reports; existing bans stay until their end.
    pub(super) rules: FleetAccept,
    /// Name of this host.
    own: String,
    pub(super) authors: Authors,
    targets: BTreeMap<BanTarget, ReportedTarget>,
    pub(super) lifts: Lifts,
    all: HourCount,
    phase: ConnectionPhase,
    /// Number of blocked targets for IPv4 and IPv6.
    blocked: [usize; 2],
}

impl Acceptance {
    pub(super) fn new(rules: FleetAccept, own: String) -> Self {
        Self {
            all: HourCount::new(rules.max_bans_per_hour),
            rules,
            own,
            authors: Authors::default(),
            targets: BTreeMap::new(),
            lifts: Lifts::default(),
            phase: ConnectionPhase::Starting,
            blocked: [0; 2],
        }
    }

    /// Records that the connection was lost.
    pub(super) fn lose_link(&mut self) {
        if self.phase == ConnectionPhase::Steady {
            self.phase = ConnectionPhase::CatchingUp;
        }
    }

    /// Records that a complete scan has ended.
    pub(super) fn end_scan(&mut self) {
        self.phase = ConnectionPhase::Steady;
    }

    /// Judges `report`. `exempt` returns the reason why a network is never blocked, as for this host's own bans.
    pub(super) fn judge_report(
        &mut self,
        now: Timestamp,
        report: &FleetReport,
        exempt: impl Fn(IpNet) -> Option<String>,
    ) -> Result<ReportVerdict, ReportRefusal> {
        let FleetReport { author, remaining_s, grade, distinct_ports, .. } = report;
        parse_fleet_name(author).map_err(|_| ReportRefusal::NoAuthor)?;
        if *author == self.own {
            return Err(ReportRefusal::OwnName);
        }
        let remaining = Duration::from_secs(*remaining_s);
        if remaining.is_zero() {
            return Err(ReportRefusal::NoTime);
        }
        if remaining > MAX_REMAINING {
            return Err(ReportRefusal::TooLong);
        }
        let class: Class = report.class.parse().map_err(|_| ReportRefusal::NoClass)?;
        let (target, network) = target(&report.target).ok_or(ReportRefusal::NoTarget)?;
        if let Some(why) = exempt(network) {
            return Err(ReportRefusal::Exempt(why));
        }
        let until = now.after(remaining);
        if self.lifts.extend_if_lifted(now, target, until) {
            return Err(ReportRefusal::Lifted);
        }
        let mut report = AuthorReport {
            author: author.as_str().into(),
            grade: *grade,
            distinct_ports: *distinct_ports,
            class,
            until,
        };
        if self.rules.forgeable_authors == 0 && !report.is_proven() {
            return Err(if *grade == Grade::Proven { ReportRefusal::TooFewPorts } else { ReportRefusal::Forgeable });
        }
        let known = self.targets.get(&target);
        let place = known.and_then(|entry| entry.reports.iter().position(|one| one.author == report.author));
        if place.is_none() {
            let is_full = match known {
                Some(entry) => entry.reports.len() >= MAX_REPORTS,
                // Both sets, and the targets that wait.
                None => self.targets.len() >= self.max_blocked().saturating_mul(2).saturating_add(MAX_WAITING_TARGETS),
            };
            if is_full {
                return Err(ReportRefusal::TableFull);
            }
            report.author = self.authors.charge(now, &report.author, self.rules.max_per_author_per_hour, self.phase)?;
        } else if self.authors.is_ignored(now, &report.author) {
            return Err(ReportRefusal::AuthorIgnored);
        }
        let entry = self.targets.entry(target).or_default();
        match place.and_then(|place| entry.reports.get_mut(place)) {
            Some(known) => {
                report.author = Arc::clone(&known.author);
                *known = report;
            }
            None => entry.reports.push(report),
        }
        self.decide(now, target)
    }

    /// Maximum number of targets in one set.
    fn max_blocked(&self) -> usize {
        usize::try_from(self.rules.size).unwrap_or(usize::MAX)
    }

    /// Decides about `target` from its reports.
    fn decide(&mut self, now: Timestamp, target: BanTarget) -> Result<ReportVerdict, ReportRefusal> {
        let max_blocked = self.max_blocked();
        let Some(entry) = self.targets.get_mut(&target) else { return Err(ReportRefusal::NoTarget) };
        let (by_proof, by_number, lacking) = support(&self.rules, now, entry);
        let by_number = by_number.map(|until| {
            let since = *entry.forgeable_since.get_or_insert(now);
            until.min(since.after(MAX_FORGEABLE_TIME))
        });
        let supported = by_proof.max(by_number).filter(|until| *until > now);
        let Some(until) = supported else {
            return Ok(match entry.until.filter(|until| *until > now) {
                // The ban was made before a restart, or its reports are no longer renewed.
                Some(until) => ReportVerdict::Blocks { target, until, step: None },
                None if lacking == 0 => return Err(ReportRefusal::HourOver),
                None => ReportVerdict::Waits { authors: u32::try_from(lacking).unwrap_or(u32::MAX) },
            });
        };
        if let Some(before) = entry.until.filter(|before| *before > now) {
            // Each extension changes the kernel's set, so short extensions are skipped.
            if until < before.after(MIN_STEP) {
                return Ok(ReportVerdict::Blocks { target, until: before, step: None });
            }
            entry.until = Some(until);
            return Ok(ReportVerdict::Blocks { target, until, step: Some(BanChange::Longer) });
        }
        let [v4, v6] = &mut self.blocked;
        let blocked = if target.element().is_ipv4() { v4 } else { v6 };
        if *blocked >= max_blocked {
            return Err(ReportRefusal::SetFull);
        }
        if !self.all.admit(now, self.rules.max_bans_per_hour, self.phase) {
            return Err(ReportRefusal::Ceiling);
        }
        if entry.until.replace(until).is_none() {
            *blocked += 1;
        }
        Ok(ReportVerdict::Blocks { target, until, step: Some(BanChange::New) })
    }

    /// Adopts the elements of the kernel's sets at the start; returns those that must be removed.
    pub(super) fn adopt(
        &mut self,
        now: Timestamp,
        found: impl Iterator<Item = (BanTarget, Expiry)>,
        exempt: impl Fn(IpNet) -> Option<String>,
    ) -> Vec<BanTarget> {
        let mut refused = Vec::new();
        for (element, left) in found {
            let left = left.span().filter(|left| *left <= MAX_REMAINING);
            let wanted = target(&element.to_string()).filter(|(_, network)| exempt(*network).is_none());
            match (wanted, left) {
                (Some((target, _)), Some(left)) if target == element && self.lifts.until(target).is_none() => {
                    self.targets.entry(target).or_default().until = Some(now.after(left));
                }
                _ => refused.push(element),
            }
        }
        self.count_blocked();
        refused
    }

    /// Lifts the ban of exactly `target`, which stays lifted as long as reports of it exist. Returns true if it was
    /// blocked.
    pub(super) fn lift(&mut self, now: Timestamp, target: BanTarget, by: LiftedBy) -> bool {
        let entry = self.targets.remove(&target).unwrap_or_default();
        self.count_blocked();
        self.lifts.insert(now, target, by);
        entry.until.is_some_and(|until| until > now)
    }

    /// Lifts all bans in the same way as [`Acceptance::lift`]; returns their number.
    pub(super) fn lift_all(&mut self, now: Timestamp) -> usize {
        let targets: Vec<BanTarget> = self.bans(now).map(|(target, _)| target).collect();
        targets.iter().filter(|target| self.lift(now, **target, LiftedBy::Host)).count()
    }

    /// Drops the bans of targets that have become exempt.
    pub(super) fn drop_exempt(&mut self, exempt: impl Fn(IpNet) -> Option<String>) -> Vec<BanTarget> {
        let is_exempt = |target: &BanTarget| exempt(target.network()).is_some();
        let dropped: Vec<BanTarget> = self.targets.keys().copied().filter(is_exempt).collect();
        dropped.iter().for_each(|target| drop(self.targets.remove(target)));
        self.count_blocked();
        dropped
    }

    pub(super) fn expire(&mut self, now: Timestamp) {
        self.targets.retain(|_, entry| {
            entry.reports.retain(|report| report.until > now);
            entry.until = entry.until.filter(|until| *until > now);
            entry.until.is_some() || !entry.reports.is_empty()
        });
        self.lifts.expire(now);
        self.authors.expire(now, self.phase);
        self.count_blocked();
    }

    fn count_blocked(&mut self) {
        let blocked = self.targets.iter().filter(|(_, entry)| entry.until.is_some());
        self.blocked = blocked.fold([0; 2], |[v4, v6], (target, _)| match target.element() {
            IpAddr::V4(_) => [v4 + 1, v6],
            IpAddr::V6(_) => [v4, v6 + 1],
        });
    }

    /// The blocked targets with their remaining times.
    pub(super) fn bans(&self, now: Timestamp) -> impl Iterator<Item = (BanTarget, Expiry)> + '_ {
        self.targets.iter().filter_map(move |(target, entry)| {
            let left = entry.until?.since(now);
            (left >= Duration::from_secs(1)).then_some((*target, Expiry::After(left)))
        })
    }

    /// The entries after `last`, in order of their targets.
    pub(super) fn entries(&self, last: Option<BanTarget>) -> impl Iterator<Item = (BanTarget, &ReportedTarget)> {
        use std::ops::Bound;
        let start = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.targets.range((start, Bound::Unbounded)).map(|(target, entry)| (*target, entry))
    }

    pub(super) fn entry(&self, target: BanTarget) -> Option<&ReportedTarget> {
        self.targets.get(&target)
    }

    /// Number of authors that are still needed for `entry`; 0 if it is blocked.
    pub(super) fn lacking(&self, now: Timestamp, entry: &ReportedTarget) -> usize {
        if entry.until.is_some_and(|until| until > now) {
            return 0;
        }
        support(&self.rules, now, entry).2
    }

    /// Number of blocked targets, and of targets that wait for another author.
    pub(super) fn counts(&self) -> (usize, usize) {
        let blocked = self.blocked.iter().sum();
        (blocked, self.targets.len().saturating_sub(blocked))
    }
}

/// The times until which proven reports, and reports of any kind, support a ban of `entry`, and the number of authors
/// that are missing for a ban.
fn support(
    rules: &FleetAccept,
    now: Timestamp,
    entry: &ReportedTarget,
) -> (Option<Timestamp>, Option<Timestamp>, usize) {
    let (by_proof, lacking) = supported_until(now, entry, if rules.single { 1 } else { 2 }, AuthorReport::is_proven);
    if rules.forgeable_authors == 0 {
        return (by_proof, None, lacking);
    }
    let wanted = usize::try_from(rules.forgeable_authors).unwrap_or(usize::MAX);
    let (by_number, others) = supported_until(now, entry, wanted, |_| true);
    (by_proof, by_number, lacking.min(others))
}

/// Time until which `wanted` reports support a ban, and the number of reports that are missing.
fn supported_until(
    now: Timestamp,
    entry: &ReportedTarget,
    wanted: usize,
    counts: impl Fn(&AuthorReport) -> bool,
) -> (Option<Timestamp>, usize) {
    let standing = entry.reports.iter().filter(|report| report.until > now && counts(report));
    let mut ends: Vec<Timestamp> = standing.map(|report| report.until).collect();
    ends.sort_unstable_by(|one, other| other.cmp(one));
    (ends.get(wanted.saturating_sub(1)).copied(), wanted.saturating_sub(ends.len()))
}

#[cfg(test)]
mod tests;
