//! Events from the sensor to the shell: bounded, without a lock on the sensor's side and with one allocation in its life. When it is full,
//! events are dropped and counted; a packet never waits for a log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::event::Event;
use crate::backlog::Backlog;

struct Shared {
    events: Backlog<Event>,
    dropped: AtomicU64,
    arrived: Notify,
}

/// The sensor's end.
#[derive(Clone)]
pub struct Sender(Arc<Shared>);

/// The shell's end.
pub struct Receiver(Arc<Shared>);

/// A queue that holds `length` events.
#[must_use]
pub fn bounded(length: usize) -> (Sender, Receiver) {
    let shared = Arc::new(Shared { events: Backlog::new(length), dropped: AtomicU64::new(0), arrived: Notify::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// Hands `event` over, or counts it as dropped.
    pub fn send(&self, event: Event) {
        if self.0.events.push(event).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.0.arrived.notify_one();
    }
}

impl Receiver {
    /// The next event, as soon as there is one. Safe to cancel.
    pub async fn receive(&self) -> Event {
        loop {
            if let Some(event) = self.0.events.pop() {
                return event;
            }
            self.0.arrived.notified().await;
        }
    }

    /// The next event, if there is one.
    #[must_use]
    pub fn poll(&self) -> Option<Event> {
        self.0.events.pop()
    }

    /// How many events were dropped since the last call.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::event::What;

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (sender, receiver) = bounded(2);
        (0..5).for_each(|_| sender.send(Event::now(What::Started)));
        assert!(receiver.poll().is_some() && receiver.poll().is_some() && receiver.poll().is_none());
        assert_eq!((receiver.dropped(), receiver.dropped()), (3, 0));
    }
}
