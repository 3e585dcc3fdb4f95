//! Keeps bans that the engine has decided but that are not in force yet: they wait for the command that must run first,
//! or for a retry of a backend that refused them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use crate::engine::Ban;
use crate::types::{Backend, Backoff, BanTarget, Expiry, Timestamp};

/// Maximum number of bans that wait for a command. Further bans are applied without waiting.
const MAX_AWAITING_COMMAND: usize = 4_096;

/// Maximum number of bans that wait for a retry. Beyond it the oldest are dropped; their sources are judged again if
/// they continue.
const MAX_RETRIES: usize = 1_024;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// A ban that one backend refused.
#[derive(Clone, Copy)]
pub(super) struct Retry {
    pub(super) ban: Ban,
    pub(super) seen: SystemTime,
    pub(super) backend: Backend,
    /// End of the ban; `None` if it never expires.
    until: Option<Timestamp>,
    backoff: Backoff,
}

impl Retry {
    /// Remaining time of the ban; `None` if less than a second.
    pub(super) fn left(&self, now: Timestamp) -> Option<Expiry> {
        match self.until {
            None => Some(Expiry::Never),
            Some(until) => Some(until.since(now)).filter(|left| *left >= Duration::from_secs(1)).map(Expiry::After),
        }
    }
}

#[derive(Default)]
pub(super) struct PendingBans {
    awaiting_command: HashMap<BanTarget, (Ban, SystemTime)>,
    retries: VecDeque<Retry>,
}

impl PendingBans {
    pub(super) fn has_room_for_command(&self) -> bool {
        self.awaiting_command.len() < MAX_AWAITING_COMMAND
    }

    /// Keeps a ban until its command has ended.
    pub(super) fn await_command(&mut self, ban: Ban, seen: SystemTime) {
        self.awaiting_command.insert(ban.probe.target, (ban, seen));
    }

    pub(super) fn awaits_command(&self, target: BanTarget) -> bool {
        self.awaiting_command.contains_key(&target)
    }

    /// True if `backend` does not enforce the ban of `target` yet.
    pub(super) fn is_missing_in(&self, backend: Backend, target: BanTarget) -> bool {
        let is_retry = |retry: &Retry| (retry.backend, retry.ban.probe.target) == (backend, target);
        self.awaits_command(target) || self.retries.iter().any(is_retry)
    }

    /// Removes and returns the ban of `target`, whose command has ended.
    pub(super) fn command_ended(&mut self, target: BanTarget) -> Option<(Ban, SystemTime)> {
        self.awaiting_command.remove(&target)
    }

    /// Schedules the first retry of a ban that `backend` refused.
    pub(super) fn retry(&mut self, ban: Ban, seen: SystemTime, backend: Backend, now: Timestamp) {
        let mut backoff = Backoff::new(FIRST_BACKOFF, MAX_BACKOFF);
        backoff.extend(now);
        let until = ban.expiry.span().map(|span| now.after(span));
        self.push(Retry { ban, seen, backend, until, backoff });
    }

    /// Schedules another retry after twice the last delay.
    pub(super) fn retry_again(&mut self, mut retry: Retry, now: Timestamp) {
        retry.backoff.extend(now);
        self.push(retry);
    }

    fn push(&mut self, retry: Retry) {
        let same = |other: &Retry| (other.ban.probe.target, other.backend) == (retry.ban.probe.target, retry.backend);
        self.retries.retain(|other| !same(other));
        if self.retries.len() >= MAX_RETRIES {
            self.retries.pop_front();
        }
        self.retries.push_back(retry);
    }

    /// Makes all retries of `backend` due immediately, because it works again.
    pub(super) fn expedite(&mut self, backend: Backend) {
        for retry in self.retries.iter_mut().filter(|retry| retry.backend == backend) {
            retry.backoff.reset();
        }
    }

    pub(super) fn due_retry(&mut self, now: Timestamp) -> Option<Retry> {
        let place = self.retries.iter().position(|retry| retry.backoff.is_over(now))?;
        self.retries.remove(place)
    }

    pub(super) fn next_retry(&self) -> Option<Timestamp> {
        self.retries.iter().map(|retry| retry.backoff.until()).min()
    }

    /// The targets of all retries.
    pub(super) fn refused(&self) -> impl Iterator<Item = BanTarget> + '_ {
        self.retries.iter().map(|retry| retry.ban.probe.target)
    }

    /// Drops all; returns the targets that waited for a command and are not in force in any backend.
    pub(super) fn clear(&mut self) -> Vec<BanTarget> {
        self.retries.clear();
        self.awaiting_command.drain().map(|(target, _)| target).collect()
    }

    /// Drops the bans of `targets`, which were removed.
    pub(super) fn remove(&mut self, targets: &[BanTarget]) {
        let removed: HashSet<BanTarget> = targets.iter().copied().collect();
        self.awaiting_command.retain(|target, _| !removed.contains(target));
        self.retries.retain(|retry| !removed.contains(&retry.ban.probe.target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensor::fixtures::ban;
    use crate::types::at;
    use crate::wire::TcpFlags;

    #[test]
    fn refused_ban_is_retried_with_backoff() {
        let (mut pending, ban) = (PendingBans::default(), ban(TcpFlags::SYN));
        pending.retry(ban, SystemTime::UNIX_EPOCH, Backend::Nft, at(10));
        assert!(pending.due_retry(at(10)).is_none());
        let retry = pending.due_retry(at(11)).unwrap();
        pending.retry_again(retry, at(11));
        assert_eq!(pending.next_retry(), Some(at(13)));
        pending.expedite(Backend::Route);
        assert!(pending.due_retry(at(12)).is_none(), "another backend works again");
        pending.expedite(Backend::Nft);
        assert!(pending.due_retry(at(12)).is_some());
    }

    #[test]
    fn removed_ban_is_not_retried() {
        let (mut pending, ban) = (PendingBans::default(), ban(TcpFlags::SYN));
        let target = ban.probe.target;
        pending.retry(ban, SystemTime::UNIX_EPOCH, Backend::Nft, at(10));
        pending.await_command(ban, SystemTime::UNIX_EPOCH);
        assert!(pending.awaits_command(target) && pending.refused().eq([target]));
        pending.remove(&[target]);
        assert!(!pending.awaits_command(target) && pending.next_retry().is_none());
    }
}
