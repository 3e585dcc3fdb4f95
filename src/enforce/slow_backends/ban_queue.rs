//! Stores the bans of the slow-backends thread, ordered by their expiry in CLOCK_MONOTONIC.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::task::MAX_BANS;
use crate::enforce::BanContext;
use crate::types::{Backend, Backends, BanTarget, Expiry, Timestamp};

/// A ban that must be undone when it ends.
#[derive(Debug)]
pub struct QueuedBan {
    pub context: BanContext,
    /// Identifier of this ban: results for an earlier ban of the same target are stale.
    pub id: u64,
    /// Backends that have not been processed yet.
    pub(super) steps: VecDeque<Backend>,
    /// The backends that have done something for it, or should have, which its end undoes.
    pub done: Backends,
    until: Option<Timestamp>,
}

impl QueuedBan {
    pub(super) fn new(context: BanContext, done: Backends) -> Self {
        Self { context, id: 0, steps: VecDeque::new(), done, until: None }
    }
}

/// All bans of the thread.
#[derive(Default)]
pub struct BanQueue {
    bans: HashMap<BanTarget, QueuedBan>,
    deadlines: BTreeSet<(Timestamp, BanTarget)>,
    ids: u64,
}

impl BanQueue {
    /// Holds `context` from `now` on for `left`; the state of an earlier ban of the target is kept. `None` if there is
    /// no room.
    pub(in crate::enforce) fn insert(
        &mut self,
        now: Timestamp,
        context: BanContext,
        left: Expiry,
    ) -> Option<&mut QueuedBan> {
        let target = context.target;
        if self.bans.len() >= MAX_BANS && !self.bans.contains_key(&target) {
            return None;
        }
        let until = left.span().map(|span| now.after(span));
        self.ids += 1;
        let id = self.ids;
        let ban = self.bans.entry(target).or_insert_with(|| QueuedBan::new(context, Backends::default()));
        if let Some(old) = ban.until {
            self.deadlines.remove(&(old, target));
        }
        if let Some(until) = until {
            self.deadlines.insert((until, target));
        }
        (ban.context, ban.id, ban.until) = (context, id, until);
        ban.steps.clear();
        Some(ban)
    }

    pub fn get(&self, target: BanTarget) -> Option<&QueuedBan> {
        self.bans.get(&target)
    }

    pub fn get_mut(&mut self, target: BanTarget) -> Option<&mut QueuedBan> {
        self.bans.get_mut(&target)
    }

    /// True if this is the current ban of its target.
    pub fn is_current(&self, target: BanTarget, id: u64) -> bool {
        self.get(target).is_some_and(|ban| ban.id == id)
    }

    pub(super) fn remove(&mut self, target: BanTarget) -> Option<QueuedBan> {
        let ban = self.bans.remove(&target)?;
        if let Some(until) = ban.until {
            self.deadlines.remove(&(until, target));
        }
        Some(ban)
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = BanTarget> + '_ {
        self.bans.keys().copied()
    }

    /// Targets for which `backend` has done something, or should have.
    pub fn done_by(&self, backend: Backend) -> impl Iterator<Item = BanTarget> + '_ {
        self.bans.iter().filter(move |(_, ban)| ban.done.contains(backend)).map(|(target, _)| *target)
    }

    /// A target whose ban has ended at `now`.
    pub(super) fn expired(&self, now: Timestamp) -> Option<BanTarget> {
        self.deadlines.first().filter(|(until, _)| *until <= now).map(|(_, target)| *target)
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|(until, _)| *until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::at;

    fn context(last: u8) -> BanContext {
        BanContext::example([192, 0, 2, last].into())
    }

    const MINUTE: Expiry = Expiry::After(Duration::from_secs(60));

    #[test]
    fn longer_ban_keeps_completed_backends() {
        let mut bans = BanQueue::default();
        let ban = bans.insert(at(100), context(1), MINUTE).unwrap();
        ban.done.insert(Backend::Command);
        ban.steps.push_back(Backend::HostsDeny);
        let first = ban.id;
        let ban = bans.insert(at(130), context(1), MINUTE).unwrap();
        assert!(ban.done.contains(Backend::Command) && ban.steps.is_empty());
        assert!(!bans.is_current(context(1).target, first));
        assert_eq!((bans.expired(at(189)), bans.expired(at(190))), (None, Some(context(1).target)));
        bans.insert(at(131), context(1), Expiry::Never).unwrap();
        assert_eq!((bans.next(), bans.expired(at(u64::MAX))), (None, None));
    }

    #[test]
    fn removed_ban_has_no_deadline() {
        let mut bans = BanQueue::default();
        bans.insert(at(0), context(1), MINUTE).unwrap();
        bans.insert(at(1), context(2), MINUTE).unwrap();
        assert_eq!(bans.next(), Some(at(60)));
        assert!(bans.remove(context(1).target).is_some() && bans.remove(context(1).target).is_none());
        assert_eq!(bans.next(), Some(at(61)));
    }

    #[test]
    fn full_ban_queue_still_extends_bans() {
        let mut bans = BanQueue::default();
        let number = |n: usize| BanContext::example(u32::try_from(n).unwrap().to_be_bytes().into());
        for n in 0..MAX_BANS {
            assert!(bans.insert(Timestamp::ZERO, number(n), MINUTE).is_some());
        }
        assert!(bans.insert(Timestamp::ZERO, number(MAX_BANS), MINUTE).is_none());
        assert!(bans.insert(Timestamp::ZERO, number(7), Expiry::Never).is_some());
    }
}
