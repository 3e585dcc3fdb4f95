//! The authors of reports: how many targets each has brought forward, and which are ignored for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::pace::HourCount;
use super::verdict::Refusal;
use crate::types::Timestamp;

/// For how long an author above its limit is ignored.
const IGNORED_TIME: Duration = Duration::from_secs(3_600);

/// Authors that are known at one time: more than the largest fleet has.
const MAX_AUTHORS: usize = 16_384;

/// How many hours' worth of reports are taken in at the start, beyond that of the hour: reports stand for four hours.
pub(super) const BACKLOG_HOURS: u32 = 3;

/// How far the state of the connection lets an author say more than an hour's worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first complete scan since the start is not over: what stands from before is taken in.
    Starting,
    /// The connection was away, and no complete scan has ended since: an author may have more to say, which counts later.
    CatchingUp,
    Steady,
}

struct Author {
    hour: HourCount,
    backlog: u32,
    ignored_until: Timestamp,
    /// When it was last above its limit.
    above_limit: Option<Timestamp>,
    /// Its reports that were refused for that since it was named.
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
        self.above_limit.is_some_and(|at| now.since(at) < IGNORED_TIME) || self.ignored_until > now
    }

    fn told(&self, now: Timestamp, name: &Arc<str>) -> Ignored {
        Ignored { author: Arc::clone(name), for_s: self.ignored_until.since(now).as_secs(), excess: self.excess }
    }
}

/// An author above its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    pub(super) author: Arc<str>,
    /// For how long it is ignored; 0: its other reports count later.
    pub(super) for_s: u64,
    pub(super) excess: u64,
}

#[derive(Default)]
pub(super) struct Authors(HashMap<Arc<str>, Author>);

impl Authors {
    /// Charges `author` for a target that it has not brought forward before.
    pub(super) fn charge(
        &mut self,
        now: Timestamp,
        author: &Arc<str>,
        limit: u32,
        phase: Phase,
    ) -> Result<Arc<str>, Refusal> {
        if !self.0.contains_key(author) {
            if self.0.len() >= MAX_AUTHORS {
                return Err(Refusal::TableFull);
            }
            let backlog = limit.saturating_mul(BACKLOG_HOURS);
            let new = Author {
                hour: HourCount::default(),
                backlog,
                ignored_until: Timestamp::ZERO,
                above_limit: None,
                excess: 0,
                named: None,
            };
            self.0.insert(Arc::clone(author), new);
        }
        let Some((name, found)) =
            self.0.get_key_value(author).map(|(name, _)| Arc::clone(name)).zip(self.0.get_mut(author))
        else {
            return Err(Refusal::TableFull);
        };
        if found.ignored_until > now {
            return Err(found.refuse(now, Refusal::AuthorIgnored));
        }
        if found.hour.take(now, limit) || take_backlog(phase, &mut found.backlog) {
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

    /// Forgets authors without a report that stands.
    pub(super) fn expire(&mut self, now: Timestamp, phase: Phase) {
        // The map and each report hold a name.
        self.0.retain(|name, author| {
            phase == Phase::Starting
                || Arc::strong_count(name) > 1
                || author.ignored_until > now
                || author.is_above_limit(now)
                || !author.hour.is_empty(now)
        });
    }

    /// The authors that are above their limit.
    pub(super) fn ignored(&self, now: Timestamp) -> impl Iterator<Item = Ignored> + '_ {
        let above = self.0.iter().filter(move |(_, author)| author.is_above_limit(now));
        above.map(move |(name, author)| author.told(now, name))
    }

    /// The authors that have come above their limit, each once an hour.
    pub(super) fn newly_above_limit(&mut self, now: Timestamp) -> Vec<Ignored> {
        let is_new = |author: &Author| author.named.is_none_or(|named| now.since(named) >= IGNORED_TIME);
        let new = self.0.iter_mut().filter(|(_, author)| author.is_above_limit(now) && is_new(author));
        new.map(|(name, author)| {
            author.named = Some(now);
            author.told(now, name)
        })
        .collect()
    }
}

/// Takes one of what may be said beyond the hour's worth.
pub(super) fn take_backlog(phase: Phase, backlog: &mut u32) -> bool {
    if phase != Phase::Starting || *backlog == 0 {
        return false;
    }
    *backlog -= 1;
    true
}
