//! Defines the interface between the slow-backends thread and a backend that it runs.

use super::ban_queue::{BanQueue, QueuedBan};
use super::events::BackendEvent;
use crate::types::{BanTarget, Timestamp};

/// A backend that queues its work: `begin` and `end` return at once, and `run_due` does the work.
pub(super) trait SlowBackend {
    /// Queues the work that begins `ban`; false if it is dropped, so that the ban continues with its next backend.
    fn begin(&mut self, ban: &mut QueuedBan) -> bool;

    /// Queues the work that ends `ban`; `None` if the queue has no ban of `target`. An earlier run may have left one.
    fn end(&mut self, target: BanTarget, ban: Option<&QueuedBan>);

    /// Does the work that is due. Returns the targets of `bans` that this backend has now tried to block for the first
    /// time, with or without success; they continue with their next backend.
    fn run_due(&mut self, now: Timestamp, bans: &mut BanQueue, report: &mut dyn FnMut(BackendEvent)) -> Vec<BanTarget>;

    /// Time at which the backend has work to do or something to check, unless something wakes the thread earlier.
    fn next_due(&self, bans: &BanQueue) -> Option<Timestamp>;
}
