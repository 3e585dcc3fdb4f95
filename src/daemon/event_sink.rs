//! Distributes events to the ledger, the log, digests, and subscribed operators. Owns the control socket, because the
//! same clients send requests and subscribe.

use super::ban_recorder::BanRecorder;
use super::log_writer::LogWriter;
use super::notifier::Notifier;
use super::optional::or_never;
use crate::clock::boot_time;
use crate::control::server::{IncomingRequest, Server};
use crate::engine::Host;
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};
use crate::types::{LossReport, counted};

pub(super) struct EventSink {
    pub(super) ban_recorder: BanRecorder,
    pub(super) log: LogWriter,
    pub(super) notifier: Notifier,
    /// `None` if the socket could not be opened.
    pub(super) control: Option<Server>,
    /// For other threads and tasks: events sent here return through the event loop.
    pub(super) events: Sender,
    pub(super) last_event: Option<Event>,
    pub(super) lost: LostEvents,
}

/// The events that arrived faster than they could be logged.
#[derive(Default)]
pub(super) struct LostEvents {
    pub(super) total: u64,
    report: LossReport<1>,
}

impl EventSink {
    /// Distributes an event that happens now, without an interface.
    pub(super) fn emit(&mut self, kind: EventKind) {
        self.dispatch(&Event::now(kind), None);
    }

    /// Distributes `event`; `host` names the interface of its packet.
    pub(super) fn dispatch(&mut self, event: &Event, host: Option<&Host>) {
        let begins = self.ban_recorder.record(event, host);
        self.notifier.add(event, begins);
        self.log.write(event);
        if let Some(control) = &self.control {
            control.publish(event);
        }
        self.last_event = Some(event.clone());
    }

    /// Reports the number of lost events, and the lines that the log suppressed in the last minute.
    pub(super) fn report_lost(&mut self, lost: u64) {
        self.log.turn_minute();
        self.lost.total += lost;
        self.notifier.count_dropped(lost);
        if let Some([lost]) = self.lost.report.take([self.lost.total], boot_time()) {
            let lost = counted(lost, "event");
            self.emit(EventKind::Error(format!("{lost} lost, because they came faster than they could be logged")));
        }
    }

    /// Waits for the next request of an operator; meanwhile writes log lines that waited for a name, and sends digests.
    /// Cancel safe.
    pub(super) async fn next_request(&mut self) -> IncomingRequest {
        loop {
            tokio::select! {
                request = or_never(self.control.as_mut().map(Server::next_request)) => return request,
                () = self.log.write_named() => {}
                kind = self.notifier.process_next() => kind.into_iter().for_each(|kind| self.emit(kind)),
            }
        }
    }

    /// Writes all remaining data to the disk, and closes the outputs.
    pub(super) fn close(mut self, lost: u64) {
        if let Some(kind) = std::mem::take(&mut self.ban_recorder).close() {
            self.log.write(&Event::now(kind));
        }
        self.lost.report.expedite();
        self.report_lost(lost);
        self.log.write(&Event::now(EventKind::Stopped));
    }
}
