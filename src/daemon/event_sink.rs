//! Passes events on: to the ledger, the log, digests, and the operators that watch. Owns the control socket, because the same
//! clients ask and watch.

use std::future::pending;

use super::ban_recorder::BanRecorder;
use super::log_writer::LogWriter;
use super::notifier::Notifier;
use crate::control::server::{IncomingRequest, Server};
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};

pub(super) struct EventSink {
    pub(super) ban_recorder: BanRecorder,
    pub(super) log: LogWriter,
    pub(super) notifier: Notifier,
    /// `None` where the socket cannot be opened.
    control: Option<Server>,
    /// For other threads and tasks: what is sent here comes back through the event loop.
    pub(super) events: Sender,
    pub(super) last_event: Option<Event>,
    /// Events that came faster than they could be logged.
    pub(super) lost: u64,
}

impl EventSink {
    pub(super) fn new(
        ban_recorder: BanRecorder,
        log: LogWriter,
        notifier: Notifier,
        control: Option<Server>,
        events: Sender,
    ) -> Self {
        Self { ban_recorder, log, notifier, control, events, last_event: None, lost: 0 }
    }

    /// Passes on that `kind` happens now, on no interface.
    pub(super) fn emit(&mut self, kind: EventKind) {
        self.dispatch(&Event::now(kind), |_| None);
    }

    /// Passes `event` on; `interface` names the interface of an index.
    pub(super) fn dispatch(&mut self, event: &Event, interface: impl Fn(u32) -> Option<String>) {
        let begins = self.ban_recorder.record(event, interface);
        self.notifier.add(event, begins);
        self.log.write(event);
        if let Some(control) = &self.control {
            control.publish(event);
        }
        self.last_event = Some(event.clone());
    }

    /// Reports that so many more events were lost, and what the log left out in the last minute.
    pub(super) fn report_lost(&mut self, lost: u64) {
        self.log.turn_minute();
        self.lost += lost;
        self.notifier.lose(lost);
        if let Some(kind) = self.log.count_lost(lost) {
            self.emit(kind);
        }
    }

    /// Sends the last digest, if there is one that an operator is to get.
    pub(super) async fn send_last_digest(&mut self) {
        if let Some(kind) = self.notifier.finish().await {
            self.emit(kind);
        }
    }

    /// Waits for the next request of an operator; meanwhile writes the lines that have waited for a name, and sends digests.
    /// Safe to cancel.
    pub(super) async fn next_request(&mut self) -> IncomingRequest {
        loop {
            tokio::select! {
                request = next_request(&mut self.control) => return request,
                () = self.log.named() => {}
                kind = self.notifier.turn() => kind.into_iter().for_each(|kind| self.emit(kind)),
            }
        }
    }

    /// Brings everything to the disk, and ends.
    pub(super) fn close(mut self, lost: u64) {
        if let Some(what) = std::mem::take(&mut self.ban_recorder).close() {
            self.log.write(&Event::now(what));
        }
        self.report_lost(lost);
        self.log.write(&Event::now(EventKind::Stopped));
    }
}

/// The next request; never, where there is no socket.
async fn next_request(control: &mut Option<Server>) -> IncomingRequest {
    match control {
        Some(control) => control.next_request().await,
        None => pending().await,
    }
}
