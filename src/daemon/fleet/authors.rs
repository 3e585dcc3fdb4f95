//! Tracks the authors of reports: the number of targets that each has reported, and which authors are ignored for
//! exceeding their limit.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::verdict::ReportRefusal;
use crate::types::{HOUR, Timestamp};

/// Time for which an author above its limit is ignored.
const IGNORED_TIME: Duration = HOUR;

/// Maximum number of known authors: more than the largest fleet has.
const MAX_AUTHORS: usize = 16_384;

/// Additional hourly quotas that are accepted at the start, because reports are valid for four hours.
const BACKLOG_HOURS: u32 = 3;

/// State of the connection, which determines how far an author may exceed its hourly quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionPhase {
    /// The first complete scan since the start has not ended, so existing reports are accepted.
    Starting,
    /// The connection was lost, and no complete scan has ended since. An author above its quota is not ignored; its
    /// excess reports count later.
    CatchingUp,
    Steady,
}

/// Counts units taken within the last hour, with a resolution of a minute.
#[derive(Clone, Debug, Default)]
pub(super) struct HourCount {
    /// The minutes of the last hour in which units were taken, oldest first, each with their number.
    minutes: VecDeque<(u64, u32)>,
    /// Units that may still be taken above the limit in [`ConnectionPhase::Starting`].
    backlog: u32,
}

impl HourCount {
    /// A counter with a backlog for `limit` units per hour.
    pub(super) fn new(limit: u32) -> Self {
        Self { minutes: VecDeque::new(), backlog: limit.saturating_mul(BACKLOG_HOURS) }
    }

    /// Takes one unit, unless `limit` units were taken within the last hour and no backlog is left.
    pub(super) fn admit(&mut self, now: Timestamp, limit: u32, phase: ConnectionPhase) -> bool {
        let minute = self.expire_minutes(now);
        if self.minutes.iter().map(|(_, count)| u64::from(*count)).sum::<u64>() >= u64::from(limit) {
            let is_backlog = phase == ConnectionPhase::Starting && self.backlog > 0;
            self.backlog -= u32::from(is_backlog);
            return is_backlog;
        }
        match self.minutes.back_mut() {
            Some((last, count)) if *last == minute => *count += 1,
            _ => self.minutes.push_back((minute, 1)),
        }
        true
    }

    /// True if no unit was taken within the last hour.
    pub(super) fn is_empty(&mut self, now: Timestamp) -> bool {
        self.expire_minutes(now);
        self.minutes.is_empty()
    }

    /// Drops the minutes that have been over for an hour; returns the current one.
    fn expire_minutes(&mut self, now: Timestamp) -> u64 {
        let minute = now.since_origin().as_secs() / 60;
        while self.minutes.front().is_some_and(|(first, _)| first + 60 < minute) {
            self.minutes.pop_front();
        }
        minute
    }
}

#[derive(Default)]
struct Author {
    hour: HourCount,
    ignored_until: Timestamp,
    /// Time at which the author was last above its limit.
    above_limit: Option<Timestamp>,
    /// Number of its reports that were refused because of the limit.
    excess: u64,
    named: Option<Timestamp>,
}

impl Author {
    fn refuse(&mut self, now: Timestamp, refusal: ReportRefusal) -> ReportRefusal {
        self.above_limit = Some(now);
        self.excess = self.excess.saturating_add(1);
        refusal
    }

    fn is_above_limit(&self, now: Timestamp) -> bool {
        self.above_limit.is_some_and(|at| now.since(at) < IGNORED_TIME)
    }

    fn to_ignored(&self, now: Timestamp, name: &Arc<str>) -> Ignored {
        Ignored { author: Arc::clone(name), for_s: self.ignored_until.since(now).as_secs(), excess: self.excess }
    }
}

/// An author above its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    pub(super) author: Arc<str>,
    /// Seconds for which the author is ignored; 0 if its excess reports count later.
    pub(super) for_s: u64,
    pub(super) excess: u64,
}

#[derive(Default)]
pub(super) struct Authors(HashMap<Arc<str>, Author>);

impl Authors {
    /// Charges `author` for a target that it has not reported before.
    pub(super) fn charge(
        &mut self,
        now: Timestamp,
        author: &Arc<str>,
        limit: u32,
        phase: ConnectionPhase,
    ) -> Result<Arc<str>, ReportRefusal> {
        let is_full = self.0.len() >= MAX_AUTHORS;
        let entry = self.0.entry(Arc::clone(author));
        let name = Arc::clone(entry.key());
        let found = match entry {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => return Err(ReportRefusal::TableFull),
            Entry::Vacant(new) => new.insert(Author { hour: HourCount::new(limit), ..Author::default() }),
        };
        if found.ignored_until > now {
            return Err(found.refuse(now, ReportRefusal::AuthorIgnored));
        }
        if found.hour.admit(now, limit, phase) {
            return Ok(name);
        }
        if phase != ConnectionPhase::Steady {
            return Err(found.refuse(now, ReportRefusal::AuthorFull));
        }
        found.ignored_until = now.after(IGNORED_TIME);
        found.named = None;
        Err(found.refuse(now, ReportRefusal::AuthorIgnored))
    }

    /// True while `author` is ignored.
    pub(super) fn is_ignored(&self, now: Timestamp, author: &Arc<str>) -> bool {
        self.0.get(author).is_some_and(|author| author.ignored_until > now)
    }

    /// Drops authors without a report in force.
    pub(super) fn expire(&mut self, now: Timestamp, phase: ConnectionPhase) {
        // The map and each report hold a reference to the name.
        self.0.retain(|name, author| {
            phase == ConnectionPhase::Starting
                || Arc::strong_count(name) > 1
                || author.is_above_limit(now)
                || !author.hour.is_empty(now)
        });
    }

    /// The authors above their limit.
    pub(super) fn ignored(&self, now: Timestamp) -> impl Iterator<Item = Ignored> + '_ {
        let above = self.0.iter().filter(move |(_, author)| author.is_above_limit(now));
        above.map(move |(name, author)| author.to_ignored(now, name))
    }

    /// The authors that have newly exceeded their limit; each is returned once an hour.
    pub(super) fn newly_above_limit(&mut self, now: Timestamp) -> Vec<Ignored> {
        let is_new = |author: &Author| author.named.is_none_or(|named| now.since(named) >= IGNORED_TIME);
        let new = self.0.iter_mut().filter(|(_, author)| author.is_above_limit(now) && is_new(author));
        new.map(|(name, author)| {
            author.named = Some(now);
            author.to_ignored(now, name)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::at;

    #[test]
    fn hourly_limit_renews_after_an_hour() {
        let mut count = HourCount::new(0);
        assert_eq!((0..100).filter(|_| count.admit(at(100), 30, ConnectionPhase::Steady)).count(), 30);
        assert!(!count.admit(at(3_699), 30, ConnectionPhase::Steady), "an hour has not passed");
        assert_eq!((0..100).filter(|_| count.admit(at(3_780), 30, ConnectionPhase::Steady)).count(), 30);
        assert!(!count.is_empty(at(3_780)) && count.is_empty(at(1_000_000)));
    }

    proptest! {
        #[test]
        fn no_hour_exceeds_its_limit(steps in prop::collection::vec((0_u64..900, 0_usize..12), 1..80)) {
            let (mut count, mut now, mut taken) = (HourCount::new(0), 0, Vec::new());
            for (wait, attempts) in steps {
                now += wait;
                (0..attempts).filter(|_| count.admit(at(now), 10, ConnectionPhase::Steady)).for_each(|_| taken.push(now));
            }
            for end in &taken {
                let within = taken.iter().filter(|one| **one <= *end && end - **one < 3_600).count();
                prop_assert!(within <= 10, "{within} within an hour of {end}");
            }
        }
    }
}
