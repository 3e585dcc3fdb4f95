//! Writes the bans of the fleet to the kernel's sets, and schedules filling them again after the table has changed or
//! could not be written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::enforce::nft::{BlockError, FleetSets};
use crate::events::event::EventKind;
use crate::types::{BanTarget, Expiry};

/// Delay before the sets are filled again after the table changed or could not be written.
pub(super) const REFILL_DELAY: Duration = Duration::from_millis(50);
const REFILL_BACKOFF: Duration = Duration::from_secs(5);

pub(super) struct KernelSets {
    sets: FleetSets,
    /// True if the sets contain the bans.
    is_filled: bool,
    refill_at: Option<Instant>,
    last_error: Option<String>,
}

impl KernelSets {
    pub(super) fn new(sets: FleetSets) -> Self {
        Self { sets, is_filled: false, refill_at: None, last_error: None }
    }

    pub(super) fn is_filled(&self) -> bool {
        self.is_filled
    }

    /// Time at which the sets have to be filled again, if any.
    pub(super) fn refill_at(&self) -> Option<Instant> {
        self.refill_at
    }

    /// Schedules filling the sets again, or emptying them.
    pub(super) fn refill_after(&mut self, delay: Duration) {
        self.refill_at = Some(Instant::now() + delay);
    }

    /// Keeps the present contents of the sets and returns them; `None` if they cannot be read.
    pub(super) fn adopt(&mut self) -> Option<Vec<(BanTarget, Expiry)>> {
        self.is_filled = true;
        self.sets.elements().ok()
    }

    /// Adds `bans` to the sets, or extends them.
    pub(super) fn block(&mut self, bans: &[(BanTarget, Expiry)]) {
        let done = self.sets.block(bans);
        self.note(done);
    }

    /// Removes the bans of `targets`.
    pub(super) fn lift(&mut self, targets: &[BanTarget]) {
        if self.is_filled {
            let done = self.sets.lift(targets);
            self.note(done);
        }
    }

    /// Empties the sets.
    pub(super) fn clear(&mut self) {
        let done = self.sets.clear();
        self.note(done);
    }

    /// Leaves the contents of the sets as they are until they are filled again.
    pub(super) fn leave(&mut self) {
        (self.is_filled, self.refill_at) = (false, None);
    }

    /// Replaces the contents of the sets with `bans`, because loading a saved ruleset restores outdated ones.
    pub(super) fn fill(&mut self, bans: &BTreeMap<BanTarget, Expiry>) {
        (self.is_filled, self.refill_at) = (true, None);
        let done = self.replace(bans);
        self.note(done);
    }

    fn replace(&mut self, bans: &BTreeMap<BanTarget, Expiry>) -> Result<(), BlockError> {
        let found = self.sets.elements()?;
        let stale: Vec<_> =
            found.into_iter().map(|(target, _)| target).filter(|target| !bans.contains_key(target)).collect();
        self.sets.lift(&stale)?;
        self.sets.block(&bans.iter().map(|(target, expiry)| (*target, *expiry)).collect::<Vec<_>>())
    }

    /// Schedules another fill if the last change failed.
    fn note(&mut self, done: Result<(), BlockError>) {
        let (error, delay) = match done {
            Ok(()) => return,
            // The sensor will create the table again soon.
            Err(BlockError::Gone) => (None, REFILL_DELAY * 4),
            Err(error) => (Some(error.to_string()), REFILL_BACKOFF),
        };
        self.last_error = error.or(self.last_error.take());
        self.refill_after(delay);
    }

    /// Takes the last error.
    pub(super) fn take_error(&mut self) -> Option<EventKind> {
        let error = self.last_error.take()?;
        Some(EventKind::Error(format!("fleet: cannot change the kernel's sets: {error}; retrying")))
    }
}
