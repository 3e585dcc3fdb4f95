//! Tracks authors whose reports are invalid. Each is logged once and then counted. Limits of this host that are reached
//! are logged once an hour.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::verdict::ReportRefusal;
use crate::config::parse_fleet_name;
use crate::events::event::EventKind;
use crate::fleet::protocol::IgnoredAuthor;
use crate::types::{HOUR, counted};

/// Maximum number of tracked authors.
const MAX_FAULTY: usize = 64;

/// Time without an invalid report after which an author is logged again.
const FORGET: Duration = HOUR;

struct Faulty {
    reports: u64,
    reason: ReportRefusal,
    last: Instant,
}

#[derive(Default)]
pub(super) struct FaultyAuthors {
    authors: BTreeMap<String, Faulty>,
    /// Limits that were logged, and when.
    limits: Vec<(ReportRefusal, Instant)>,
}

impl FaultyAuthors {
    /// Counts a refused report by `author`. Returns a log line if it is the first one.
    pub(super) fn count(&mut self, author: &str, reason: ReportRefusal) -> Option<EventKind> {
        if reason.is_limit() {
            if self.limits.iter().any(|(known, _)| *known == reason) {
                return None;
            }
            let text = format!("fleet: reports are refused: {reason}; `portsentry status` counts them");
            self.limits.push((reason, Instant::now()));
            return Some(EventKind::Error(text));
        }
        if !reason.is_fault() {
            return None;
        }
        let author = parse_fleet_name(author).unwrap_or_else(|_| "a host with an invalid name".to_owned());
        let last = Instant::now();
        if let Some(known) = self.authors.get_mut(&author) {
            *known = Faulty { reports: known.reports.saturating_add(1), reason, last };
            return None;
        }
        if self.authors.len() >= MAX_FAULTY {
            return None;
        }
        let text = format!(
            "fleet: a report by {author} is refused: {reason}; check portsentry on that host. `portsentry status` \
             counts further refusals"
        );
        self.authors.insert(author, Faulty { reports: 1, reason, last });
        Some(EventKind::Note(text))
    }

    pub(super) fn expire(&mut self) {
        self.authors.retain(|_, one| one.last.elapsed() < FORGET);
        self.limits.retain(|(_, named)| named.elapsed() < FORGET);
    }

    /// The authors, each with its last refusal.
    pub(super) fn iter(&self) -> impl Iterator<Item = IgnoredAuthor> + '_ {
        self.authors.iter().map(|(author, one)| IgnoredAuthor {
            author: author.clone(),
            reason: format!("{} refused: {}", counted(one.reports, "report"), one.reason),
        })
    }
}
