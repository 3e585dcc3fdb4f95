//! Keeps the sources that are judged without a new packet: those that waited while this host settled, and those whose
//! bans the ceilings withheld.
//!
//! After a boot the services of this host start one by one, and no source is banned before all have started. Probes are
//! counted meanwhile, and each source with enough evidence is judged again afterwards.
//!
//! The sources whose bans were withheld compete for the next bans. A flood of forged packets must not use up the bans
//! of a minute just because its packets come first. So the last ban goes to the fastest scanner.

use std::collections::VecDeque;
use std::time::Duration;

use super::class::Grade;
use super::key::Hashed;
use super::observation::Observation;
use super::sources::Pace;
use crate::types::{Tick, Timestamp};

/// Maximum number of sources that wait to be judged again. Further sources are judged at their next probe.
const MAX_PENDING: usize = 1_024;

/// The sources that wait until this host has settled.
#[derive(Default)]
pub(super) struct SettlingQueue {
    /// `None` if settling is not active.
    until: Option<Timestamp>,
    /// The last probe of each waiting source.
    waiting: VecDeque<Observation>,
}

impl SettlingQueue {
    pub(super) fn is_current(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Starts settling, at most until `until`.
    pub(super) fn start(until: Timestamp) -> Self {
        Self { until: Some(until), waiting: VecDeque::with_capacity(MAX_PENDING) }
    }

    /// Ends settling; waiting sources are judged again.
    pub(super) fn end(&mut self) {
        self.until = None;
    }

    /// Makes the source of `probe` wait, if there is room.
    pub(super) fn wait(&mut self, probe: Observation) {
        if self.waiting.len() < self.waiting.capacity() {
            self.waiting.push_back(probe);
        }
    }

    /// Takes the last probe of the next waiting source. If there is none, frees the memory, which is no longer needed.
    pub(super) fn take_next(&mut self) -> Option<Observation> {
        let probe = self.waiting.pop_front();
        if probe.is_none() {
            *self = Self::default();
        }
        probe
    }

    /// Time at which the next source may be judged again.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.filter(|until| *until > now).or_else(|| (!self.waiting.is_empty()).then_some(now))
    }
}

/// Maximum number of candidates. A flood fills the list with its fastest sources.
const MAX_CANDIDATES: usize = 16;

/// A candidate that sends nothing for this time leaves the list: the flood may be over.
const MAX_SILENCE: Duration = Duration::from_secs(10);

/// Time between two attempts to ban the fastest candidate.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(250);

/// A source with enough evidence whose ban was withheld.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) key: Hashed,
    grade: Grade,
    pace: Pace,
    pub(super) observation: Observation,
}

pub(super) struct Candidates {
    entries: Vec<Candidate>,
    /// Time of the next attempt to ban the fastest candidate.
    pub(super) retry_at: Timestamp,
}

impl Candidates {
    pub(super) fn new() -> Self {
        Self { entries: Vec::with_capacity(MAX_CANDIDATES), retry_at: Timestamp::ZERO }
    }

    /// Records that the ban of the source of `observation` was withheld. A full list drops its slowest candidate.
    pub(super) fn enter(&mut self, key: Hashed, grade: Grade, pace: Pace, observation: Observation) {
        let candidate = Candidate { key, grade, pace, observation };
        let now = pace.at;
        if let Some(known) = self.entries.iter_mut().find(|known| known.key.key == key.key) {
            // The capture shows a packet of a guest on the bridge port first, then on the bridge.
            let (last, new) = (known.observation, candidate.observation);
            *known = candidate;
            if new.bridge_port == 0 && new.interface == last.interface {
                known.observation.bridge_port = last.bridge_port;
            }
        } else if self.entries.len() < MAX_CANDIDATES {
            self.entries.push(candidate);
        } else if let Some(slowest) = self.entries.iter_mut().min_by_key(|known| known.pace.ports(now))
            && slowest.pace.ports(now) < pace.ports(now)
        {
            *slowest = candidate;
        }
    }

    pub(super) fn remove(&mut self, key: Hashed) {
        self.entries.retain(|known| known.key.key != key.key);
    }

    /// True if no candidate with evidence of this grade is faster.
    pub(super) fn is_fastest(&self, grade: Grade, pace: Pace) -> bool {
        let now = pace.at;
        let mut rivals = self.entries.iter().filter(|known| known.grade == grade && known.is_active(now));
        rivals.all(|rival| rival.pace.ports(now) <= pace.ports(now))
    }

    pub(super) fn fastest(&mut self, grade: Grade, now: Tick) -> Option<Candidate> {
        self.entries.retain(|known| known.is_active(now));
        let candidates = self.entries.iter().filter(|known| known.grade == grade);
        candidates.max_by_key(|known| known.pace.ports(now)).copied()
    }

    /// Time of the next attempt to ban the fastest candidate.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        (!self.entries.is_empty()).then_some(self.retry_at)
    }
}

impl Candidate {
    fn is_active(&self, now: Tick) -> bool {
        now.since(self.pace.at) <= Tick::ticks(MAX_SILENCE)
    }
}
