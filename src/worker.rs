//! Runs a worker thread behind a bounded queue. Producers never wait: items that do not fit are refused and counted.
//! After a panic the work continues with the next item. Waiting for the end of the thread has a time limit, because a
//! disk may hang.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::lazy_queue::LazyQueue;
use crate::panic_guard;

/// Delay between two attempts of [`Handle::send_blocking`].
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// The queue, and the request to stop.
pub struct Inbox<T> {
    queue: LazyQueue<T>,
    refused: AtomicU64,
    stop: OnceLock<Stop>,
}

/// The request to stop, with its time limit.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    at: Instant,
    within: Duration,
}

impl Stop {
    /// The point in time at which this many eighths of the time limit are over.
    pub fn after_eighths(self, eighths: u32) -> Instant {
        self.at.checked_add(self.within.saturating_mul(eighths) / 8).unwrap_or(self.at)
    }
}

impl<T> Inbox<T> {
    /// Removes and returns the oldest item.
    #[must_use]
    pub fn pop(&self) -> Option<T> {
        self.queue.pop()
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Number of items refused because the queue was full, since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The request to stop. If it is read before the queue is emptied, all items that were queued before the request
    /// are processed.
    #[must_use]
    pub fn stop(&self) -> Option<Stop> {
        self.stop.get().copied()
    }
}

/// The producers' side of the queue. Cheap to clone.
pub struct Handle<T> {
    inbox: Arc<Inbox<T>>,
    thread: Thread,
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self { inbox: Arc::clone(&self.inbox), thread: self.thread.clone() }
    }
}

impl<T> Handle<T> {
    /// Appends `item` to the queue and wakes the thread; never waits.
    ///
    /// # Errors
    /// Returns the item, and counts it, if the queue is full.
    pub fn send(&self, item: T) -> Result<(), T> {
        self.send_below(usize::MAX, item)
    }

    /// Like [`Handle::send`], but also refuses `item` if the queue holds `limit` items, which leaves room for others.
    ///
    /// # Errors
    /// As for [`Handle::send`].
    pub fn send_below(&self, limit: usize, item: T) -> Result<(), T> {
        let put = if self.inbox.len() < limit { self.inbox.queue.push(item) } else { Err(item) };
        match put {
            Ok(()) => self.wake(),
            Err(_) => _ = self.inbox.refused.fetch_add(1, Ordering::Relaxed),
        }
        put
    }

    /// Appends `item` to the queue and wakes the thread; blocks the calling thread while the queue is full. The wait does
    /// not count as a refusal, because no item is lost.
    pub fn send_blocking(&self, mut item: T) {
        while let Err(back) = self.inbox.queue.push(item) {
            item = back;
            thread::sleep(RETRY_DELAY);
        }
        self.wake();
    }

    /// Unparks the thread.
    pub fn wake(&self) {
        self.thread.unpark();
    }

    pub fn inbox(&self) -> &Inbox<T> {
        &self.inbox
    }
}

/// The worker thread. It runs until [`Worker::stop`], or until the process ends.
pub struct Worker<T, R> {
    handle: Handle<T>,
    done: Receiver<R>,
}

impl<T: Send + 'static, R: Send + 'static> Worker<T, R> {
    /// Starts a thread with a queue of `length` items. `prepare` builds the work function. That function waits with
    /// [`thread::park`], and returns once [`Inbox::stop`] returns a request.
    ///
    /// # Errors
    /// If the thread cannot be created.
    pub fn start<W>(name: &str, length: usize, prepare: impl FnOnce(Arc<Inbox<T>>) -> W) -> io::Result<Self>
    where
        W: FnMut() -> R + Send + 'static,
    {
        let queue = LazyQueue::new(length);
        let inbox = Arc::new(Inbox { queue, refused: AtomicU64::new(0), stop: OnceLock::new() });
        let (ended, done) = sync_channel(1);
        let work = prepare(Arc::clone(&inbox));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Fails if the receiver was dropped after the time limit.
            let _ = ended.send(panic_guard::restart_on_panic(work));
        })?;
        Ok(Self { handle: Handle { inbox, thread: thread.thread().clone() }, done })
    }

    /// The producers' side of the queue.
    pub fn handle(&self) -> &Handle<T> {
        &self.handle
    }

    /// Requests the thread to stop and waits at most `within` for its result. Returns `None` if the time limit expires.
    #[must_use]
    pub fn stop(&self, within: Duration) -> Option<R> {
        // Only the first request is stored.
        let _ = self.handle.inbox.stop.set(Stop { at: Instant::now(), within });
        self.handle.wake();
        self.done.recv_timeout(within).ok()
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stopped<L> {
    /// All accepted items are done, or were reported as failed.
    Whole,
    /// Some items are left.
    Left(L),
    /// A disk or a command did not return within the time limit. The last items may or may not be done.
    Stuck,
}

impl<L: Default + PartialEq> From<Option<L>> for Stopped<L> {
    fn from(left: Option<L>) -> Self {
        match left {
            Some(left) if left == L::default() => Self::Whole,
            Some(left) => Self::Left(left),
            None => Self::Stuck,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that sums its items, and panics at 13.
    fn adder(length: usize) -> Worker<u32, u32> {
        Worker::start("adder", length, |inbox| {
            let mut sum = 0;
            move || loop {
                let stop = inbox.stop();
                while let Some(number) = inbox.pop() {
                    assert!(number != 13, "thirteen");
                    sum += number;
                }
                match stop {
                    Some(_) => return sum,
                    None => thread::park(),
                }
            }
        })
        .unwrap()
    }

    #[test]
    fn items_before_stop_are_processed() {
        let worker = adder(1_000);
        (0..500).for_each(|_| worker.handle().send(2).unwrap());
        assert_eq!(worker.stop(Duration::from_secs(10)), Some(1_000));
    }

    #[test]
    fn panic_loses_only_current_item() {
        let worker = adder(10);
        [1, 13, 2].into_iter().for_each(|number| worker.handle().send(number).unwrap());
        assert_eq!(worker.stop(Duration::from_secs(10)), Some(3));
    }

    #[test]
    fn full_queue_refuses_and_counts() {
        let (free, wait) = std::sync::mpsc::channel::<()>();
        let worker: Worker<u32, usize> = Worker::start("waits", 2, |inbox| {
            move || {
                let _ = wait.recv();
                inbox.len()
            }
        })
        .unwrap();
        let put = [1, 2, 3, 4].map(|number| worker.handle().send(number));
        assert_eq!(put, [Ok(()), Ok(()), Err(3), Err(4)]);
        assert_eq!((worker.handle().inbox().refused(), worker.stop(Duration::from_millis(10))), (2, None));
        drop(free);
        assert_eq!(worker.stop(Duration::from_secs(10)), Some(2));
    }

    #[test]
    fn blocking_send_waits_without_counting() {
        let (free, wait) = std::sync::mpsc::channel::<()>();
        let worker: Worker<u32, Vec<u32>> = Worker::start("waits", 1, |inbox| {
            move || {
                let _ = wait.recv();
                let mut received = Vec::new();
                while received.len() < 2 {
                    received.extend(inbox.pop());
                }
                received
            }
        })
        .unwrap();
        worker.handle().send(1).unwrap();
        let sender = worker.handle().clone();
        let blocked = thread::spawn(move || sender.send_blocking(2));
        thread::sleep(RETRY_DELAY * 10);
        assert!(!blocked.is_finished(), "the queue is full");
        assert_eq!(worker.handle().inbox().refused(), 0, "no item is lost");
        drop(free);
        blocked.join().unwrap();
        assert_eq!((worker.stop(Duration::from_secs(10)), worker.handle().inbox().refused()), (Some(vec![1, 2]), 0));
    }
}
