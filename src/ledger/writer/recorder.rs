//! Sends changes and queries to the writer, without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;

use crate::ledger::{Change, Ledger};
use crate::worker::Handle;

/// Changes that wait for the thread at one time: what arrives while one transaction is written.
pub(super) const QUEUE: usize = 8_192;

/// Questions that wait for the thread at one time.
const QUESTIONS: usize = 64;

/// Sends changes to the thread. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    changes: Handle<Change>,
    shared: Arc<Shared>,
}

/// A question that the thread answers.
pub(super) type Question = Box<dyn FnOnce(&Ledger) + Send>;

/// What the thread shares with recorders beside the queue of changes.
pub(super) struct Shared {
    pub(super) questions: ArrayQueue<Question>,
    pub(super) written: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { questions: ArrayQueue::new(QUESTIONS), written: AtomicU64::new(0) }
    }
}

impl Recorder {
    pub(super) fn new(changes: Handle<Change>, shared: Arc<Shared>) -> Self {
        Self { changes, shared }
    }

    /// Sends `change` and never waits; false where there was no room: the change is lost and counted.
    pub fn put(&self, change: Change) -> bool {
        self.changes.put(change).is_ok()
    }

    /// Sends `change`, and waits up to some seconds for room; then it is lost and counted. For many changes at a time, on a
    /// thread that may wait.
    pub fn put_patiently(&self, change: Change) {
        for _ in 0..1_000 {
            if self.changes.inbox().len() < QUEUE / 2 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.put(change);
    }

    /// Runs `question` on the ledger after all changes that were sent before it; false where too many wait. While there is no
    /// ledger, questions are dropped.
    pub fn ask(&self, question: impl FnOnce(&Ledger) + Send + 'static) -> bool {
        let asked = self.shared.questions.push(Box::new(question)).is_ok();
        self.changes.wake();
        asked
    }

    /// Changes that are in the database.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Changes that are lost because there was no room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.changes.inbox().refused()
    }
}
