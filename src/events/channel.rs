//! Passes events from the sensor to the event loop through a bounded queue: lock-free on the sensor's side, with a
//! single allocation. A full queue drops and counts events; a packet never waits for a log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::event::{Event, EventKind};
use crate::lazy_queue::LazyQueue;

struct Shared {
    events: LazyQueue<Event>,
    /// Maximum number of attacker-driven events in the queue.
    attacker_driven: usize,
    dropped: AtomicU64,
    arrived: Notify,
}

/// The sensor's end.
#[derive(Clone)]
pub struct Sender(Arc<Shared>);

/// The event loop's end.
pub struct Receiver(Arc<Shared>);

/// Creates a queue for `length` events.
pub fn bounded(length: usize) -> (Sender, Receiver) {
    // A flood of probes must not displace bans: a quarter of the queue is reserved for events that are not
    // attacker-driven.
    let (events, attacker_driven) = (LazyQueue::new(length), length - length / 4);
    let shared = Arc::new(Shared { events, attacker_driven, dropped: AtomicU64::new(0), arrived: Notify::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// Queues `event`, or counts it as dropped, and wakes the event loop.
    pub fn send(&self, event: Event) {
        self.push(event);
        self.wake();
    }

    /// Queues an event of now.
    pub fn emit(&self, kind: EventKind) {
        self.send(Event::now(kind));
    }

    /// Queues `event` without the wake-up, which is a system call.
    pub fn push(&self, event: Event) {
        let no_room = event.kind.is_attacker_driven() && self.0.events.len() >= self.0.attacker_driven;
        if no_room || self.0.events.push(event).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes the event loop.
    pub fn wake(&self) {
        self.0.arrived.notify_one();
    }
}

impl Receiver {
    /// Returns the next event as soon as there is one. Cancel safe.
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

    /// Number of events dropped since the last call.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Response;

    #[test]
    fn full_queue_drops_and_counts() {
        let (sender, receiver) = bounded(2);
        (0..5).for_each(|_| sender.send(Event::now(EventKind::Started)));
        assert!(receiver.poll().is_some() && receiver.poll().is_some() && receiver.poll().is_none());
        assert_eq!((receiver.dropped(), receiver.dropped()), (3, 0));
    }

    #[test]
    fn attacker_events_leave_room() {
        let (sender, receiver) = bounded(8);
        let target = "192.0.2.7".parse().unwrap();
        let flood =
            || Event::now(EventKind::Repeated { target, response: Response::Block, protocol: None, packets: 1 });
        (0..20).for_each(|_| sender.send(flood()));
        assert_eq!(receiver.dropped(), 14);
        (0..3).for_each(|_| sender.send(Event::now(EventKind::Started)));
        assert_eq!(receiver.dropped(), 1, "the reserved room is limited as well");
        let taken: Vec<_> = std::iter::from_fn(|| receiver.poll()).collect();
        assert_eq!(taken.iter().filter(|event| matches!(event.kind, EventKind::Started)).count(), 2);
    }
}
