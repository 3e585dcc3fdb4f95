//! The way in to the writer: a queue that nobody ever waits for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;

use crate::lazy_queue::LazyQueue;
use crate::ledger::{Change, Ledger};

/// Changes that wait for the thread at one time: what arrives while one transaction is written.
const QUEUE: usize = 8_192;

/// Questions that wait for the thread at one time.
const QUESTIONS: usize = 64;

/// Takes changes for the thread. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Thread,
}

/// A question that the thread answers.
pub(super) type Question = Box<dyn FnOnce(&Ledger) + Send>;

/// What the thread shares with those who have something for it.
pub(super) struct Shared {
    pub(super) queue: LazyQueue<Change>,
    pub(super) questions: ArrayQueue<Question>,
    pub(super) dropped: AtomicU64,
    pub(super) written: AtomicU64,
    /// When to give up, once the thread is to end.
    stop: OnceLock<Instant>,
}

impl Default for Shared {
    fn default() -> Self {
        let (dropped, written) = (AtomicU64::new(0), AtomicU64::new(0));
        let questions = ArrayQueue::new(QUESTIONS);
        Self { queue: LazyQueue::new(QUEUE), questions, dropped, written, stop: OnceLock::new() }
    }
}

impl Shared {
    /// When the thread is to give up, if it is to end.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.stop.get().copied()
    }
}

impl Recorder {
    pub(super) fn new(shared: Arc<Shared>, thread: Thread) -> Self {
        Self { shared, thread }
    }

    /// Has the thread end once all is written, or at `deadline`.
    pub(super) fn stop(&self, deadline: Instant) {
        // Once is enough.
        let _ = self.shared.stop.set(deadline);
        self.thread.unpark();
    }

    /// Hands `change` over and never waits; false where there was no room and it is lost, and counted.
    pub fn put(&self, change: Change) -> bool {
        let put = self.shared.queue.push(change).is_ok();
        if put {
            self.thread.unpark();
        } else {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        put
    }

    /// Hands `change` over, and waits while there is no room; at most some seconds, then it is lost, and counted. For
    /// many changes at a time, on a thread that may wait.
    pub fn put_patiently(&self, change: Change) {
        for _ in 0..1_000 {
            if self.shared.queue.len() < QUEUE / 2 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        self.put(change);
    }

    /// Has `question` look into the ledger, behind all changes before it; false where there are too many already. A question
    /// that cannot be asked, because there is no ledger just now, is dropped.
    pub fn ask(&self, question: impl FnOnce(&Ledger) + Send + 'static) -> bool {
        let asked = self.shared.questions.push(Box::new(question)).is_ok();
        self.thread.unpark();
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
        self.shared.dropped.load(Ordering::Relaxed)
    }
}
