//! Tracks the other authors: the sequence numbers of their notices, and the authors whose reports are ignored.

use std::collections::HashMap;
use std::time::Duration;

use super::key::FleetAuthor;
use super::protocol::{IgnoredAuthor, MAX_IGNORED};
use crate::types::{HOUR, LineLimiter, Timestamp, TokenBucket};

/// Maximum number of tracked authors. Notices of further authors are read, but gaps in them are not detected.
const MAX_AUTHORS: usize = 16_384;

/// Maximum number of notices of one author that are read per minute. An honest host has fewer reports in an hour.
const MAX_NOTICES_PER_MINUTE: u32 = 600;

/// Maximum number of scans per hour because of gaps in the sequence numbers of one author.
const MAX_GAPS_PER_HOUR: u32 = 4;

/// Maximum number of keys of one author that are read in one scan.
const MAX_KEYS_PER_SCAN: u32 = 10_000;

/// Maximum number of log lines about all authors per hour: a hostile server can invent any number of authors.
const MAX_LINES_PER_HOUR: u32 = 64;

/// Maximum number of reasons that are kept for one author. Further reasons are not named until an earlier one is an
/// hour old.
const MAX_REASONS: usize = 4;

struct KnownAuthor {
    /// Sequence number of the last notice.
    sequence: Option<u64>,
    notices: TokenBucket,
    gaps: TokenBucket,
    /// Number of keys found by the current scan.
    scanned: u32,
    /// Why data of this author was ignored, at most [`MAX_REASONS`], the oldest first.
    blames: Vec<Blame>,
}

struct Blame {
    reason: String,
    /// When the log last gave this reason.
    logged: Option<Timestamp>,
    last: Timestamp,
    times: u64,
}

/// How to handle a notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoticeOrder {
    /// The sequence number is the expected one.
    Next,
    /// Notices were missed, or the author has restarted.
    Gap,
    /// The author sends too many notices.
    TooMany,
}

pub(super) struct KnownAuthors {
    known: HashMap<FleetAuthor, KnownAuthor>,
    /// Limits the lines about invalid data on the server.
    pub(super) lines: LineLimiter,
}

impl Default for KnownAuthors {
    fn default() -> Self {
        Self { known: HashMap::new(), lines: LineLimiter::new(MAX_LINES_PER_HOUR, HOUR) }
    }
}

impl KnownAuthors {
    /// Records a notice with this sequence number; returns how to handle it.
    pub(super) fn record_notice(&mut self, author: &FleetAuthor, sequence: u64, now: Timestamp) -> NoticeOrder {
        let Some(known) = entry(&mut self.known, author) else { return NoticeOrder::Next };
        if !known.notices.try_take(now) {
            return NoticeOrder::TooMany;
        }
        let last = known.sequence.replace(sequence);
        let is_next = last.is_none_or(|last| last.wrapping_add(1) == sequence);
        if is_next || !known.gaps.try_take(now) { NoticeOrder::Next } else { NoticeOrder::Gap }
    }

    /// Forgets the sequence numbers. Notices may have been missed, so a scan follows.
    pub(super) fn forget_sequences(&mut self) {
        self.known.values_mut().for_each(|known| known.sequence = None);
    }

    /// Resets the counters at the start of a scan.
    pub(super) fn begin_scan(&mut self) {
        self.known.values_mut().for_each(|known| known.scanned = 0);
    }

    /// False if the current scan has found too many keys of this author.
    pub(super) fn admit_scanned(&mut self, author: &FleetAuthor) -> bool {
        let Some(known) = entry(&mut self.known, author) else { return true };
        known.scanned = known.scanned.saturating_add(1);
        known.scanned <= MAX_KEYS_PER_SCAN
    }

    /// Records that data of this author is ignored. Returns true if this should be logged: once an hour for each
    /// reason, and a limited number of times for all authors.
    pub(super) fn blame(&mut self, author: &FleetAuthor, reason: &str, now: Timestamp) -> bool {
        let Some(KnownAuthor { blames, .. }) = entry(&mut self.known, author) else { return false };
        if !blames.iter().any(|blame| blame.reason == reason) {
            blames.retain(|blame| now.since(blame.last) < HOUR);
            if blames.len() < MAX_REASONS {
                blames.push(Blame { reason: reason.to_owned(), logged: None, last: now, times: 0 });
            }
        }
        let Some(blame) = blames.iter_mut().find(|blame| blame.reason == reason) else { return false };
        blame.times = blame.times.saturating_add(1);
        blame.last = now;
        if blame.logged.is_some_and(|logged| now.since(logged) < HOUR) {
            return false;
        }
        let has_line = self.lines.admit(now);
        if has_line {
            blame.logged = Some(now);
        }
        has_line
    }

    /// Authors whose data was ignored within the last hour, with the reasons.
    pub(super) fn ignored(&self, now: Timestamp) -> Vec<IgnoredAuthor> {
        let mut found: Vec<_> = self
            .known
            .iter()
            .filter_map(|(author, known)| {
                let FleetAuthor::Host(host) = author else { return None };
                let recent = known.blames.iter().filter(|blame| now.since(blame.last) < HOUR);
                let reasons: Vec<_> = recent.map(|blame| format!("{} ({}×)", blame.reason, blame.times)).collect();
                let author = host.as_str().to_owned();
                (!reasons.is_empty()).then(|| IgnoredAuthor { author, reason: reasons.join("; ") })
            })
            .collect();
        found.sort_by(|one, other| one.author.cmp(&other.author));
        found.truncate(MAX_IGNORED);
        found
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

/// The entry of `author`, a new one if there is room.
fn entry<'a>(known: &'a mut HashMap<FleetAuthor, KnownAuthor>, author: &FleetAuthor) -> Option<&'a mut KnownAuthor> {
    if !known.contains_key(author) && known.len() >= MAX_AUTHORS {
        return None;
    }
    Some(known.entry(author.clone()).or_insert_with(|| KnownAuthor {
        sequence: None,
        notices: TokenBucket::new(MAX_NOTICES_PER_MINUTE, Duration::from_secs(60)),
        gaps: TokenBucket::new(MAX_GAPS_PER_HOUR, HOUR),
        scanned: 0,
        blames: Vec::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::key::HostName;
    use super::*;
    use crate::types::at;

    fn host(name: &str) -> FleetAuthor {
        FleetAuthor::Host(HostName::parse(name).unwrap())
    }

    #[test]
    fn sequence_gaps_cause_bounded_scans() {
        let mut authors = KnownAuthors::default();
        let a = host("a");
        assert_eq!(
            authors.record_notice(&a, 100, at(1)),
            NoticeOrder::Next,
            "the first number implies no earlier ones"
        );
        assert_eq!(authors.record_notice(&a, 101, at(1)), NoticeOrder::Next);
        assert_eq!(authors.record_notice(&a, 103, at(1)), NoticeOrder::Gap);
        assert_eq!(authors.record_notice(&a, 7, at(1)), NoticeOrder::Gap, "the author has restarted");
        let gaps = (0..100).filter(|n| authors.record_notice(&a, 2 * n, at(1)) == NoticeOrder::Gap).count();
        assert_eq!(gaps, 2, "an author causes {MAX_GAPS_PER_HOUR} scans per hour");
        assert_eq!(authors.record_notice(&host("b"), 5, at(1)), NoticeOrder::Next);
        assert_eq!(
            authors.record_notice(&host("b"), 9, at(1)),
            NoticeOrder::Gap,
            "other authors are not limited by it"
        );
    }

    #[test]
    fn flood_of_one_author_is_limited() {
        let mut authors = KnownAuthors::default();
        let read =
            (0..100_000).filter(|n| authors.record_notice(&host("a"), *n, at(1)) != NoticeOrder::TooMany).count();
        assert_eq!(read, 600);
        assert_eq!((0..20_000).filter(|_| authors.admit_scanned(&host("a"))).count(), 10_000);
        authors.begin_scan();
        assert!(authors.admit_scanned(&host("a")));
    }

    #[test]
    fn authors_above_limit_are_not_kept() {
        let mut authors = KnownAuthors::default();
        for number in 0..20_000 {
            authors.record_notice(&host(&format!("h{number}")), 1, at(1));
        }
        assert_eq!(authors.len(), MAX_AUTHORS);
    }

    #[test]
    fn invented_authors_share_hourly_lines() {
        let mut authors = KnownAuthors::default();
        let lines = |authors: &mut KnownAuthors, from: u32, second| {
            let blamed = |n: &u32| authors.blame(&host(&format!("h{n}")), "a notice is unreadable", at(second));
            (from..from + 10_000).filter(blamed).count()
        };
        assert_eq!(lines(&mut authors, 0, 1), 64, "the number of authors does not multiply the lines");
        assert!(authors.lines.is_exhausted() && !authors.lines.admit(at(2)));
        assert_eq!(lines(&mut authors, 0, 3_000), 0);
        assert_eq!(authors.ignored(at(3_000)).len(), MAX_IGNORED, "they are still shown to operators");
        assert_eq!(lines(&mut authors, 0, 3_601), 64, "an author without a line is logged when there is room again");
    }

    #[test]
    fn author_is_named_once_an_hour() {
        let mut authors = KnownAuthors::default();
        let named = (0..7_200).filter(|second| authors.blame(&host("a"), "a key has no end", at(*second))).count();
        assert_eq!(named, 2);
        let ignored = authors.ignored(at(7_200));
        assert_eq!((ignored[0].author.as_str(), ignored.len()), ("a", 1));
        assert!(authors.ignored(at(20_000)).is_empty());
        let turns = (0..100).filter(|n| authors.blame(&host("a"), ["one", "other"][n % 2], at(20_000))).count();
        assert_eq!(turns, 2, "two alternating reasons do not log a line per key");
        let many = (0..100).filter(|n| authors.blame(&host("a"), &format!("reason {n}"), at(20_000))).count();
        assert_eq!(many, MAX_REASONS - 2, "an author that invents reasons fills neither log nor memory");
        assert_eq!(authors.ignored(at(20_000))[0].reason, "one (50×); other (50×); reason 0 (1×); reason 1 (1×)");
    }
}
