//! Defines the trait of slow backends, which the slow-backends thread runs.

use std::collections::BTreeMap;

use super::ban_queue::{BanQueue, QueuedBan};
use super::events::BackendEvent;
use super::task::Adopted;
use crate::enforce::ExemptPrefixes;
use crate::types::{Backend, BanTarget, Timestamp};

/// Open slow backends.
pub type SlowBackendHandles = Vec<(Backend, Box<dyn SlowBackend>)>;

/// Number of incomplete changes of each slow backend; backends without any are omitted.
pub type Unfinished = BTreeMap<Backend, usize>;

/// A backend that writes files, starts processes or waits. It queues its work: `begin` and `end` return at once, and
/// `run_due` does the work.
pub trait SlowBackend: Send {
    /// The warning at the start, if its work cannot be done now. It is retried.
    fn warning(&self) -> Option<String> {
        None
    }

    /// Takes over the bans in `adopted` that name this backend and affect no `exempt` address. Marks in `bans` what an
    /// earlier run has already done. The thread ends the other bans.
    fn adopt(&mut self, adopted: &[Adopted], bans: &mut BanQueue, exempt: &ExemptPrefixes);

    /// Does the work that must precede the block of `ban`, and reports [`BackendEvent::Ready`] when the block may
    /// proceed.
    fn precede(&mut self, _now: Timestamp, ban: &QueuedBan, report: &mut dyn FnMut(BackendEvent)) {
        report(BackendEvent::Ready { context: ban.context });
    }

    /// Queues the work that begins `ban`; false if it is dropped, so that the ban continues with its next backend.
    fn begin(&mut self, ban: &mut QueuedBan) -> bool;

    /// Queues the work that ends the ban of `target`. `ban` is `None` if it is not in the queue; an earlier run may
    /// still have left an entry.
    fn end(&mut self, target: BanTarget, ban: Option<&QueuedBan>);

    /// Does the work that is due. Returns the targets of `bans` that this backend has now tried to block for the first
    /// time, with or without success; they continue with their next backend.
    fn run_due(&mut self, now: Timestamp, bans: &mut BanQueue, report: &mut dyn FnMut(BackendEvent)) -> Vec<BanTarget>;

    /// Time at which the backend has work to do or something to check, unless something wakes the thread earlier.
    fn next_due(&self, bans: &BanQueue) -> Option<Timestamp>;

    /// Makes all pending changes due, because the program ends.
    fn end_waits(&mut self) {}

    /// True while work is running that the shutdown waits for.
    fn is_working(&self) -> bool {
        false
    }

    /// Ends the work under way, and begins no other.
    fn quit(&mut self) {}

    /// Number of changes that are not completed.
    fn unfinished(&self) -> usize;

    /// Number of changes that were dropped because a queue was full.
    fn lost(&self) -> u64 {
        0
    }
}
