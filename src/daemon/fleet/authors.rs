//! Tracks the authors of reports: the number of targets that each has reported, and which authors are ignored for
//! exceeding their limit.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use super::pace::HourCount;
use super::verdict::Refusal;
use crate::types::Timestamp;

/// Time for which an author above its limit is ignored.
const IGNORED_TIME: Duration = Duration::from_secs(3_600);

/// Maximum number of known authors: more than the largest fleet has.
const MAX_AUTHORS: usize = 16_384;

/// Additional hourly quotas that are accepted at the start, because reports are valid for four hours.
pub(super) const BACKLOG_HOURS: u32 = 3;

/// State of the connection, which determines how far an author may exceed its hourly quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first complete scan since the start has not ended, so existing reports are accepted.
    Starting,
    /// The connection was lost, and no complete scan has ended since. An author above its quota is not ignored; its
    /// excess reports count later.
    CatchingUp,
    Steady,
}

#[derive(Default)]
struct Author {
    hour: HourCount,
    backlog: u32,
    ignored_until: Timestamp,
    /// Time at which the author was last above its limit.
    above_limit: Option<Timestamp>,
    /// Number of its reports that were refused because of the limit.
    excess: u64,
    named: Option<Timestamp>,
}

impl Author {
    fn refuse(&mut self, now: Timestamp, refusal: Refusal) -> Refusal {
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
        phase: Phase,
    ) -> Result<Arc<str>, Refusal> {
        let is_full = self.0.len() >= MAX_AUTHORS;
        let entry = self.0.entry(Arc::clone(author));
        let name = Arc::clone(entry.key());
        let found = match entry {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if is_full => return Err(Refusal::TableFull),
            Entry::Vacant(new) => {
                new.insert(Author { backlog: limit.saturating_mul(BACKLOG_HOURS), ..Author::default() })
            }
        };
        if found.ignored_until > now {
            return Err(found.refuse(now, Refusal::AuthorIgnored));
        }
        if found.hour.admit(now, limit) || take_backlog(phase, &mut found.backlog) {
            return Ok(name);
        }
        if phase != Phase::Steady {
            return Err(found.refuse(now, Refusal::AuthorFull));
        }
        found.ignored_until = now.after(IGNORED_TIME);
        found.named = None;
        Err(found.refuse(now, Refusal::AuthorIgnored))
    }

    /// True while `author` is ignored.
    pub(super) fn is_ignored(&self, now: Timestamp, author: &Arc<str>) -> bool {
        self.0.get(author).is_some_and(|author| author.ignored_until > now)
    }

    /// Drops authors without a report in force.
    pub(super) fn expire(&mut self, now: Timestamp, phase: Phase) {
        // The map and each report hold a reference to the name.
        self.0.retain(|name, author| {
            phase == Phase::Starting
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

/// Takes one unit of the backlog quota.
pub(super) fn take_backlog(phase: Phase, backlog: &mut u32) -> bool {
    if phase != Phase::Starting || *backlog == 0 {
        return false;
    }
    *backlog -= 1;
    true
}
