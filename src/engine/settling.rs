//! Delays bans while the host settles: after a boot its services start one by one, and no source is banned before all
//! have started. Probes are counted meanwhile, and each source with enough evidence is judged again afterwards.

use std::collections::VecDeque;

use super::Observation;
use crate::types::Timestamp;

/// Maximum number of sources that wait to be judged again. Further sources are judged at their next probe.
const MAX_WAITING: usize = 1_024;

pub(super) struct Settling {
    /// `None` if settling is not active.
    until: Option<Timestamp>,
    /// The last probe of each waiting source.
    waiting: VecDeque<Observation>,
}

impl Settling {
    pub(super) fn new() -> Self {
        Self { until: None, waiting: VecDeque::new() }
    }

    pub(super) fn lasts(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Starts settling, at most until `until`.
    pub(super) fn start(until: Timestamp) -> Self {
        Self { until: Some(until), waiting: VecDeque::with_capacity(MAX_WAITING) }
    }

    /// Ends settling; waiting sources are judged again.
    pub(super) fn end(&mut self) {
        self.until = None;
    }

    pub(super) fn next_waiting(&mut self) -> Option<Observation> {
        self.waiting.pop_front()
    }

    /// Makes the source of `probe` wait, if there is room.
    pub(super) fn wait(&mut self, probe: Observation) {
        if self.waiting.len() < self.waiting.capacity() {
            self.waiting.push_back(probe);
        }
    }

    /// Time at which the next source may be judged again.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.filter(|until| *until > now).or_else(|| (!self.waiting.is_empty()).then_some(now))
    }
}
