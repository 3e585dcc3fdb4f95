//! Defines the tasks and limits of the slow-backends thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::enforce::{BanContext, ExemptPrefixes};
use crate::types::{Backend, Backends, Backoff, BanTarget, Expiry};

/// Maximum number of tasks in the queue: those that arrive while a file is synced to the disk. A [`LazyQueue`] takes
/// 256 fewer while its first part is empty.
///
/// [`LazyQueue`]: crate::lazy_queue::LazyQueue
pub(super) const MAX_TASKS: usize = MAX_NEW_BANS + 512;

/// Maximum number of tasks in the queue to which another ban is added. The rest of the room is for releases, which
/// would otherwise be lost in a burst of bans.
pub(super) const MAX_NEW_BANS: usize = 4_096;

/// Maximum number of bans: the default size of the kernel's sets.
pub(in crate::enforce) const MAX_BANS: usize = 131_072;

/// Delay between attempts: 1 s, 2 s, 4 s and so on, at most 5 min.
pub(in crate::enforce) const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

/// A task of the thread.
#[derive(Clone, Debug)]
pub enum Task {
    /// A ban is about to begin: runs the command, then reports [`super::BackendEvent::Ready`], at the latest when the
    /// command's time limit is over, so that many simultaneous sources cannot delay a block. The command does not run
    /// again for the block that follows: leave [`Backend::Command`] out of its backends.
    Before { context: BanContext },
    /// A ban has begun.
    Block {
        context: BanContext,
        /// The backends in order: each begins when the previous one has ended, with or without success.
        backends: Arc<[Backend]>,
    },
    /// A ban from before the start that has no entry yet. Ignored if the target was banned in the meantime.
    BlockUnknown { context: BanContext, backends: Arc<[Backend]> },
    /// Bans have expired or were lifted.
    Release { targets: Vec<BanTarget> },
    /// All bans that were in force before the start. Entries of other targets are removed. Missing entries were removed
    /// on purpose and are not restored.
    Adopt { bans: Vec<Adopted> },
    /// Bans that ended before the start, and whose command has to be undone. A target that was banned again is left
    /// alone.
    Undo { bans: Vec<BanContext> },
}

/// A ban from before the start.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub context: BanContext,
    /// The backends of this thread that enforce it from now on.
    pub backends: Backends,
    /// The backends that enforced it before, as far as the ledger says.
    pub done: Backends,
    pub left: Expiry,
}

/// The prefixes that the thread leaves alone. Not a task, because a full queue must not keep them from the thread.
pub(super) type SharedExempt = watch::Sender<Arc<ExemptPrefixes>>;
