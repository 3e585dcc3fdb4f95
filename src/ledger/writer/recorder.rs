//! Sends changes and queries to the writer without waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot::{self, Receiver};

use crate::ledger::{Change, Ledger};
use crate::worker::Handle;

/// Maximum number of queued changes: those that arrive while one transaction is written.
pub(super) const QUEUE: usize = 8_192;

/// Maximum number of queued queries.
pub(super) const QUESTIONS: usize = 64;

/// Sends changes to the thread. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    pub(super) changes: Handle<Change>,
    pub(super) shared: Arc<Shared>,
}

/// A query that the thread answers.
pub(super) type Question = Box<dyn FnOnce(&Ledger) + Send>;

/// State shared between the thread and recorders, in addition to the queue of changes.
pub(super) struct Shared {
    pub(super) questions: ArrayQueue<Question>,
    pub(super) written: AtomicU64,
}

impl Recorder {
    /// Sends `change` and never waits; false if the queue is full: the change is then lost and counted.
    pub fn send(&self, change: Change) -> bool {
        self.changes.send(change).is_ok()
    }

    /// True if most of the queue is free.
    pub fn has_room(&self) -> bool {
        self.changes.inbox().len() < QUEUE / 4
    }

    /// Sends `change`, and waits up to a few seconds for room; after that it is lost and counted. For many changes at a
    /// time, on a thread that may wait.
    pub fn put_patiently(&self, change: Change) {
        for _ in 0..1_000 {
            if self.has_room() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.send(change);
    }

    /// Runs `question` on the ledger after all changes that were sent before it. The answer is an error if too many
    /// queries are queued, or if there is no ledger now.
    pub fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Ledger) -> T + Send + 'static) -> Receiver<T> {
        let (sent, answer) = oneshot::channel();
        // A query that is dropped closes the channel.
        drop(self.shared.questions.push(Box::new(move |ledger| drop(sent.send(question(ledger))))));
        self.changes.wake();
        answer
    }

    /// Changes that are in the database.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Changes that are lost because there was no room.
    pub fn dropped(&self) -> u64 {
        self.changes.inbox().refused()
    }
}
