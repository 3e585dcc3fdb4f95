//! Formats the state of the fleet for operators and the log.

use super::Fleet;
use super::acceptance::ReportedTarget;
use crate::clock::boot_time;
use crate::control::fleet_info::{
    FleetBan, FleetBanState, FleetBans, FleetReportInfo, FleetStatus, MAX_FLEET_BANS, MAX_FLEET_REPORTS,
};
use crate::fleet::protocol::{IgnoredAuthor, MAX_IGNORED};
use crate::types::{BanTarget, Timestamp, counted};

impl Fleet {
    pub(in crate::daemon) fn status(&self) -> FleetStatus {
        let (bans, waiting) = self.acceptance.counts();
        let (link, reason) = self.link.status();
        let limit = self.config.accept.max_per_author_per_hour;
        let above = self.acceptance.authors.ignored(boot_time()).map(|one| {
            let excess = counted(one.excess, "report");
            let effect = match one.for_s {
                0 => format!("{excess} postponed"),
                left => format!("ignored for {left} s more, {excess} ignored"),
            };
            let reason = format!("reported more than {limit} targets in an hour; {effect}");
            IgnoredAuthor { author: one.author.to_string(), reason }
        });
        let faulty = self.faulty.iter();
        FleetStatus {
            name: self.config.name.clone(),
            host: self.config.host.clone(),
            shadow: self.is_shadow(),
            link,
            reason,
            bans,
            waiting,
            accepted: self.accepted,
            refused: self.refused,
            ignored: above.chain(faulty).chain(self.link.ignored.iter().cloned()).take(MAX_IGNORED).collect(),
        }
    }

    /// The reports of other hosts about `target`.
    pub(in crate::daemon) fn explain(&self, target: BanTarget) -> Option<FleetBan> {
        let now = boot_time();
        if let Some(until) = self.acceptance.lifts.until(target) {
            return Some(FleetBan {
                target,
                state: FleetBanState::Lifted,
                left_s: Some(until.since(now).as_secs()),
                lacking: 0,
                reports: Vec::new(),
                more: 0,
            });
        }
        let entry = self.acceptance.entry(target)?;
        Some(self.describe(now, target, entry))
    }

    /// The reports of other hosts about the targets after `last`.
    pub(in crate::daemon) fn list(&self, last: Option<BanTarget>) -> FleetBans {
        let now = boot_time();
        let mut entries = self.acceptance.entries(last);
        let bans = entries.by_ref().take(MAX_FLEET_BANS);
        let bans = bans.map(|(target, entry)| self.describe(now, target, entry)).collect();
        FleetBans { joined: true, bans, more: entries.next().is_some() }
    }

    pub(super) fn describe(&self, now: Timestamp, target: BanTarget, entry: &ReportedTarget) -> FleetBan {
        let left = entry.until.filter(|until| *until > now).map(|until| until.since(now).as_secs());
        let reports = entry.reports.iter().take(MAX_FLEET_REPORTS).map(|report| FleetReportInfo {
            author: report.author.to_string(),
            evidence: report.grade,
            distinct_ports: report.distinct_ports,
            class: report.class,
            left_s: report.until.since(now).as_secs(),
        });
        FleetBan {
            target,
            state: match (left, self.is_shadow()) {
                (None, _) => FleetBanState::Waiting,
                (Some(_), true) => FleetBanState::WouldBeBlocked,
                (Some(_), false) => FleetBanState::Blocked,
            },
            left_s: left,
            lacking: self.acceptance.lacking(now, entry),
            reports: reports.collect(),
            more: entry.reports.len().saturating_sub(MAX_FLEET_REPORTS),
        }
    }
}
