//! Bans that a way did not take, to be tried again, later and later, until their time would be over.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::engine::Ban;
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

/// Bans that wait for another attempt at one time. Above it the oldest are given up: their sources, should they go on, are
/// judged again.
const MAX_PENDING: usize = 1_024;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);

/// The longest.
const LONGEST: Duration = Duration::from_secs(60);

/// One ban.
#[derive(Clone, Copy)]
pub(super) struct Retry {
    pub(super) ban: Ban,
    pub(super) seen: SystemTime,
    pub(super) way: Backend,
    /// When the ban ends; `None`: never.
    until: Option<Timestamp>,
    next: Timestamp,
    pause: Duration,
}

impl Retry {
    pub(super) fn new(ban: Ban, seen: SystemTime, way: Backend, now: Timestamp) -> Self {
        let until = if let Expiry::After(span) = ban.expiry { Some(now.after(span)) } else { None };
        Self { ban, seen, way, until, next: now.after(FIRST), pause: FIRST }
    }

    /// What is left of the ban; `None` where it is over.
    pub(super) fn left(&self, now: Timestamp) -> Option<Expiry> {
        match self.until {
            None => Some(Expiry::Never),
            Some(until) => Some(until.since(now)).filter(|left| *left >= Duration::from_secs(1)).map(Expiry::After),
        }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Retries(VecDeque<Retry>);

impl Retries {
    /// One more. One of the same source and way takes its place.
    pub(super) fn put(&mut self, retry: Retry) {
        let (subject, way) = (retry.ban.probe.subject, retry.way);
        self.0.retain(|other| (other.ban.probe.subject, other.way) != (subject, way));
        if self.0.len() >= MAX_PENDING {
            self.0.pop_front();
        }
        self.0.push_back(retry);
    }

    /// It failed once more.
    pub(super) fn again(&mut self, mut retry: Retry, now: Timestamp) {
        retry.pause = (retry.pause * 2).min(LONGEST);
        retry.next = now.after(retry.pause);
        self.put(retry);
    }

    /// What kept this way from taking them is over: they are due now.
    pub(super) fn hasten(&mut self, way: Backend) {
        for retry in self.0.iter_mut().filter(|retry| retry.way == way) {
            (retry.next, retry.pause) = (Timestamp::default(), FIRST);
        }
    }

    /// Whom they are about.
    pub(super) fn subjects(&self) -> impl Iterator<Item = BanTarget> + '_ {
        self.0.iter().map(|retry| retry.ban.probe.subject)
    }

    /// Nobody wants them blocked any more.
    pub(super) fn drop(&mut self, gone: impl Fn(&Retry) -> bool) {
        self.0.retain(|retry| !gone(retry));
    }

    /// The next that is due.
    pub(super) fn due(&mut self, now: Timestamp) -> Option<Retry> {
        let place = self.0.iter().position(|retry| retry.next <= now)?;
        self.0.remove(place)
    }

    /// When [`Retries::due`] is worth calling.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.0.iter().map(|retry| retry.next).min()
    }
}
