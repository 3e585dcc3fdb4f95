//! Reports the events and metrics of the sensor. Events go into a bounded queue. Waking the reader of the queue takes
//! longer than judging a packet, so the sensor wakes it only when no packet is waiting.

use std::cell::Cell;
use std::sync::Arc;
use std::time::SystemTime;

use super::metrics::SensorMetrics;
use crate::enforce::Refused;
use crate::engine::{Ban, Protection};
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};
use crate::types::{Backend, BanTarget};

impl From<&Refused> for EventKind {
    fn from(refused: &Refused) -> Self {
        Self::BlockFailed { target: refused.target, reason: refused.reason.clone(), backend: refused.backend }
    }
}

/// The sending end of the event queue, and the metrics.
pub(super) struct Reporter {
    events: Sender,
    /// True if the queue holds events for which the reader has not been woken.
    pending: Cell<bool>,
    pub(super) metrics: Arc<SensorMetrics>,
}

impl Reporter {
    pub(super) fn new(events: Sender, metrics: Arc<SensorMetrics>) -> Self {
        Self { events, pending: Cell::new(false), metrics }
    }

    pub(super) fn emit(&self, kind: EventKind) {
        self.emit_event(Event::now(kind));
    }

    /// Queues `event`; the reader is woken later by [`Reporter::wake_reader`].
    pub(super) fn emit_event(&self, event: Event) {
        self.events.push(event);
        self.pending.set(true);
    }

    pub(super) fn emit_note(&self, text: impl Into<String>) {
        self.emit(EventKind::Note(text.into()));
    }

    pub(super) fn error(&self, text: impl Into<String>) {
        self.emit(EventKind::Error(text.into()));
    }

    pub(super) fn emit_blocked(&self, ban: &Ban, backend: Backend, seen: SystemTime, applied: SystemTime) {
        self.metrics.blocked(backend, ban.probe.observation.class, ban.grade);
        let reaction = applied.duration_since(seen).unwrap_or_default();
        let kind = EventKind::Blocked { ban: *ban, reaction, backend };
        self.emit_event(Event { time: seen, kind });
    }

    pub(super) fn emit_refused(&self, time: SystemTime, refused: &Refused) {
        self.metrics.failed(refused.backend);
        self.emit_event(Event { time, kind: refused.into() });
    }

    pub(super) fn emit_unblocked(&self, target: BanTarget, by: impl Into<String>) {
        self.emit(EventKind::Unblocked { target, by: by.into() });
    }

    /// Reports that `target` was unblocked because it is exempt.
    pub(super) fn emit_exempt(&self, target: BanTarget, protection: Protection) {
        match protection {
            Protection::Listed | Protection::Named => self.emit_unblocked(target, "the allow-list"),
            other => self.emit_unblocked(target, format!("portsentry, because it is {other}")),
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.get()
    }

    /// Wakes the reader if events are pending.
    pub(super) fn wake_reader(&self) {
        if self.pending.take() {
            self.events.wake();
        }
    }
}
