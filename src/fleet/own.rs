//! Tracks the reports of this host: which of its bans are on the server, and which must be written or renewed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::key::{FleetAuthor, HostName, ValkeyKey};
use super::protocol::{MAX_REMAINING, OwnBanEvent};
use super::report::BanReport;
use crate::engine::{Class, Grade};
use crate::types::{BanTarget, Timestamp};

/// Maximum number of tracked bans; further ones are not reported.
const MAX_OWN: usize = 65_536;

/// Maximum number of reports in one message to the server.
const MAX_BATCH: usize = 64;

/// Period of the hourly limit. It is longer than an hour, because other hosts count in whole minutes and from the arrival
/// of a report, and ignore a host that exceeds the limit.
const LIMIT_PERIOD: Duration = Duration::from_secs(65 * 60);

/// Time within which the daemon reports all bans in force after it is connected.
const CONFIRM_TIME: Duration = Duration::from_secs(30);

struct OwnReport {
    report: BanReport,
    /// When the ban ends.
    ends: Timestamp,
    /// When the key has to be written again; `None` until it is written for the first time.
    renew: Option<Timestamp>,
    /// When the daemon last reported the ban.
    named: Timestamp,
}

/// All reports of this host.
pub(super) struct OwnReports {
    pub(super) author: FleetAuthor,
    reports: BTreeMap<BanTarget, OwnReport>,
    /// Targets whose first report is not written yet.
    pending: VecDeque<BanTarget>,
    /// Targets whose keys are to be deleted.
    withdrawn: Vec<BanTarget>,
    /// Times of the new reports within [`LIMIT_PERIOD`], oldest first.
    made: VecDeque<Timestamp>,
    /// Maximum number of new reports in [`LIMIT_PERIOD`].
    limit: usize,
    sequence: u64,
    /// When the daemon began to report all bans in force.
    connected: Option<Timestamp>,
}

impl OwnReports {
    /// Starts without reports. The sequence number of the first notice is one above `sequence`.
    pub(super) fn new(host: HostName, limit: u32, sequence: u64) -> Self {
        Self {
            author: FleetAuthor::Host(host),
            reports: BTreeMap::new(),
            pending: VecDeque::new(),
            withdrawn: Vec::new(),
            made: VecDeque::new(),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            sequence,
            connected: None,
        }
    }

    /// Called when the daemon begins to report all bans in force. Bans that it does not report have ended.
    pub(super) fn connected(&mut self, now: Timestamp) {
        self.connected = Some(now);
    }

    /// Applies a change of the daemon's own bans.
    pub(super) fn apply(&mut self, event: &OwnBanEvent, now: Timestamp) {
        match event {
            OwnBanEvent::Ban { target, remaining_s, grade, distinct_ports, class } => {
                let left = remaining_s.map_or(Duration::MAX, Duration::from_secs);
                self.ban(*target, (*grade, *distinct_ports, *class), left, now);
            }
            OwnBanEvent::Lift { target } => self.remove(*target),
            OwnBanEvent::Lost { .. } => {}
        }
    }

    fn ban(&mut self, target: BanTarget, (grade, ports, class): (Grade, u32, Class), left: Duration, now: Timestamp) {
        if target.is_prefix() || left.is_zero() {
            return;
        }
        let (ends, sequence) = (now.after(left), self.sequence);
        if let Some(known) = self.reports.get_mut(&target) {
            (known.ends, known.named) = (ends, now);
            // Better evidence is reported again; the same evidence is not.
            if (known.report.grade, grade) == (Grade::Forgeable, Grade::Proven) {
                known.report = BanReport { class, ports, grade, sequence };
                self.pending.push_back(target);
            }
            return;
        }
        if self.reports.len() < MAX_OWN {
            let report = BanReport { class, ports, grade, sequence };
            self.reports.insert(target, OwnReport { report, ends, renew: None, named: now });
            self.pending.push_back(target);
        }
    }

    fn remove(&mut self, target: BanTarget) {
        if self.reports.remove(&target).is_some_and(|known| known.renew.is_some()) {
            self.withdrawn.push(target);
        }
    }

    /// Returns the reports that are due to be written, with new sequence numbers. Each counts against the hourly limit.
    /// Call [`OwnReports::written`] once the server has stored them, otherwise [`OwnReports::put_back`].
    pub(super) fn take_pending(&mut self, now: Timestamp) -> Vec<(ValkeyKey, BanReport, Duration)> {
        let ended = self.made.partition_point(|at| now.since(*at) >= LIMIT_PERIOD);
        self.made.drain(..ended);
        let mut batch = Vec::new();
        while batch.len() < MAX_BATCH && self.made.len() < self.limit {
            // Proven evidence first, because most hosts of a fleet act on it.
            let proven =
                |target: &BanTarget| self.reports.get(target).is_some_and(|known| known.report.grade == Grade::Proven);
            let place = self.pending.iter().position(proven).unwrap_or(0);
            let Some(target) = self.pending.remove(place) else { break };
            let Some(known) = self.reports.get_mut(&target).filter(|known| known.ends > now) else { continue };
            self.sequence = self.sequence.wrapping_add(1);
            known.report.sequence = self.sequence;
            if known.renew.is_none() {
                self.made.push_back(now);
            }
            batch.push((ValkeyKey { author: self.author.clone(), target }, known.report, left(known.ends, now)));
        }
        batch
    }

    /// Records that the server has stored these reports.
    pub(super) fn written(&mut self, batch: &[(ValkeyKey, BanReport, Duration)], now: Timestamp) {
        for (key, _, left) in batch {
            if let Some(known) = self.reports.get_mut(&key.target) {
                known.renew = Some(now.after(*left / 2));
            }
        }
    }

    /// Queues these reports again after the server did not store them.
    pub(super) fn put_back(&mut self, batch: &[(ValkeyKey, BanReport, Duration)]) {
        for (key, ..) in batch.iter().rev() {
            self.pending.push_front(key.target);
        }
    }

    /// True if a report is pending and the hourly limit permits it.
    pub(super) fn has_pending(&self, now: Timestamp) -> bool {
        let has_room =
            self.made.len() < self.limit || self.made.front().is_some_and(|at| now.since(*at) >= LIMIT_PERIOD);
        !self.pending.is_empty() && has_room
    }

    /// The next batch of keys to delete.
    pub(super) fn take_withdrawn(&mut self) -> Vec<ValkeyKey> {
        let rest = self.withdrawn.len().saturating_sub(MAX_BATCH);
        let targets = self.withdrawn.split_off(rest);
        targets.into_iter().map(|target| ValkeyKey { author: self.author.clone(), target }).collect()
    }

    pub(super) fn has_withdrawn(&self) -> bool {
        !self.withdrawn.is_empty()
    }

    /// The reports that are due to be written again: half of their time is over, or the server has lost them.
    pub(super) fn renewals(&self, now: Timestamp) -> Vec<(ValkeyKey, BanReport, Duration)> {
        let due = self.reports.iter().filter(|(_, known)| known.renew.is_some_and(|at| at <= now) && known.ends > now);
        let report = |(target, known): (&BanTarget, &OwnReport)| {
            (ValkeyKey { author: self.author.clone(), target: *target }, known.report, left(known.ends, now))
        };
        due.take(MAX_BATCH).map(report).collect()
    }

    /// Schedules every key to be written again, because the server may have lost them all.
    pub(super) fn renew_all(&mut self, now: Timestamp) {
        for known in self.reports.values_mut() {
            known.renew = known.renew.map(|_| now);
        }
    }

    /// Schedules these keys to be written again.
    pub(super) fn renew(&mut self, keys: &[ValkeyKey], now: Timestamp) {
        for key in keys {
            if let Some(known) = self.reports.get_mut(&key.target) {
                known.renew = Some(now);
            }
        }
    }

    /// The next batch of keys after `last` that the server should have.
    pub(super) fn some_written(&self, last: Option<BanTarget>) -> Vec<ValkeyKey> {
        let later = self
            .reports
            .range((last.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded), std::ops::Bound::Unbounded));
        let written = later.filter(|(_, known)| known.renew.is_some()).take(MAX_BATCH);
        written.map(|(target, _)| ValkeyKey { author: self.author.clone(), target: *target }).collect()
    }

    /// Drops the bans that have ended, and those that the daemon no longer reports.
    pub(super) fn expire(&mut self, now: Timestamp) {
        let since = self.connected.take_if(|since| now.since(*since) >= CONFIRM_TIME);
        self.reports.retain(|target, known| {
            let unnamed = since.is_some_and(|since| known.named < since);
            if unnamed && known.renew.is_some() {
                self.withdrawn.push(*target);
            }
            !unnamed && known.ends > now
        });
        self.pending.retain(|target| self.reports.contains_key(target));
    }
}

fn left(ends: Timestamp, now: Timestamp) -> Duration {
    ends.since(now).min(MAX_REMAINING)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    fn ban(target: &str, grade: Grade, remaining_s: Option<u64>) -> OwnBanEvent {
        let class = if grade == Grade::Proven { Class::Connect } else { Class::Syn };
        OwnBanEvent::Ban { target: target.parse().unwrap(), remaining_s, grade, distinct_ports: 5, class }
    }

    fn reports(limit: u32) -> OwnReports {
        OwnReports::new(HostName::parse("a").unwrap(), limit, 7)
    }

    fn targets(batch: &[(ValkeyKey, BanReport, Duration)]) -> Vec<String> {
        batch.iter().map(|(key, ..)| key.target.to_string()).collect()
    }

    #[test]
    fn ban_is_reported_once_and_renewed() {
        let mut own = reports(30);
        own.apply(&ban("203.0.113.7", Grade::Proven, Some(86_400)), at(1));
        own.apply(&ban("203.0.113.7", Grade::Proven, Some(86_400)), at(2));
        let batch = own.take_pending(at(2));
        assert_eq!(
            (targets(&batch), batch[0].1.sequence, batch[0].2),
            (vec!["203.0.113.7".to_owned()], 8, MAX_REMAINING)
        );
        own.written(&batch, at(2));
        assert!(!own.has_pending(at(3)) && own.renewals(at(3)).is_empty());
        assert_eq!(own.renewals(at(2 + 7_200)).len(), 1, "after half of four hours");
        own.renew_all(at(10));
        assert_eq!(own.renewals(at(10))[0].1.sequence, 8, "a renewal has the same number");
        own.expire(at(86_500));
        assert_eq!((own.reports.len(), own.has_withdrawn()), (0, false), "its key expires by itself");
    }

    #[test]
    fn networks_and_ended_bans_are_not_reported() {
        let mut own = reports(30);
        own.apply(&ban("203.0.113.0/24", Grade::Proven, None), at(1));
        own.apply(&ban("203.0.113.7", Grade::Proven, Some(0)), at(1));
        own.apply(&ban("203.0.113.8", Grade::Proven, Some(5)), at(1));
        assert!(own.take_pending(at(7)).is_empty());
    }

    #[test]
    fn reports_above_hourly_limit_wait_proven_first() {
        let mut own = reports(2);
        for (host, grade) in [(1, Grade::Forgeable), (2, Grade::Forgeable), (3, Grade::Proven)] {
            own.apply(&ban(&format!("203.0.113.{host}"), grade, None), at(1));
        }
        let batch = own.take_pending(at(1));
        assert_eq!(targets(&batch), ["203.0.113.3", "203.0.113.1"]);
        own.put_back(&batch[1..]);
        own.written(&batch[..1], at(1));
        assert!(!own.has_pending(at(3_900)) && own.has_pending(at(3_901)));
        assert_eq!(targets(&own.take_pending(at(3_901))), ["203.0.113.1", "203.0.113.2"]);
    }

    #[test]
    fn better_evidence_is_reported_again() {
        let mut own = reports(1);
        own.apply(&ban("203.0.113.7", Grade::Forgeable, None), at(1));
        let batch = own.take_pending(at(1));
        own.written(&batch, at(1));
        own.apply(&ban("203.0.113.7", Grade::Proven, None), at(2));
        assert!(own.take_pending(at(2)).is_empty(), "the limit of the hour is reached");
        let batch = own.take_pending(at(3_902));
        assert_eq!((batch.len(), batch[0].1.grade), (1, Grade::Proven));
    }

    #[test]
    fn lifted_and_unnamed_bans_are_withdrawn() {
        let mut own = reports(30);
        for host in 1..=3 {
            own.apply(&ban(&format!("203.0.113.{host}"), Grade::Proven, None), at(1));
        }
        let batch = own.take_pending(at(1));
        own.written(&batch, at(1));
        own.apply(&OwnBanEvent::Lift { target: "203.0.113.1".parse().unwrap() }, at(2));
        assert_eq!(own.take_withdrawn().len(), 1);
        own.connected(at(100));
        own.apply(&ban("203.0.113.2", Grade::Proven, None), at(101));
        own.expire(at(120));
        assert!(!own.has_withdrawn(), "the daemon may still list the ban");
        own.expire(at(131));
        assert_eq!(own.take_withdrawn()[0].target.to_string(), "203.0.113.3");
    }
}
