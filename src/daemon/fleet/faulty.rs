//! Authors whose reports say what no host of a fleet should: each is named once, and then counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::verdict::Refusal;
use crate::config::parse_fleet_name;
use crate::control::fleet_protocol::IgnoredAuthor;
use crate::events::event::EventKind;
use crate::types::counted;

/// Authors that are named at one time.
const MAX_FAULTY: usize = 64;

/// After this time without such a report an author is named again.
const FORGET: Duration = Duration::from_secs(3_600);

struct Faulty {
    reports: u64,
    reason: Refusal,
    last: Instant,
}

#[derive(Default)]
pub(super) struct FaultyAuthors(BTreeMap<String, Faulty>);

impl FaultyAuthors {
    /// Counts a report by `author` that was refused; a line where that is the first one.
    pub(super) fn note(&mut self, author: &str, reason: Refusal) -> Option<EventKind> {
        if !reason.is_fault() {
            return None;
        }
        let author = parse_fleet_name(author).unwrap_or_else(|_| "a host without a valid name".to_owned());
        let last = Instant::now();
        if let Some(known) = self.0.get_mut(&author) {
            *known = Faulty { reports: known.reports.saturating_add(1), reason, last };
            return None;
        }
        if self.0.len() >= MAX_FAULTY {
            return None;
        }
        let text =
            format!("fleet: a report by {author} is refused: {reason}; `portsentry status` counts those that follow");
        self.0.insert(author, Faulty { reports: 1, reason, last });
        Some(EventKind::Note(text))
    }

    pub(super) fn expire(&mut self) {
        self.0.retain(|_, one| one.last.elapsed() < FORGET);
    }

    /// Each of them, with what was refused last.
    pub(super) fn named(&self) -> impl Iterator<Item = IgnoredAuthor> + '_ {
        self.0.iter().map(|(author, one)| IgnoredAuthor {
            author: author.clone(),
            reason: format!("{} refused: {}", counted(one.reports, "report"), one.reason),
        })
    }
}
