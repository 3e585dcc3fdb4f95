//! The slow half while the program runs: whatever may wait, one thing after the other, on one thread. Signals, the host's
//! changes, the table's changes, operators and the sensor's events all come together here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::ban_recorder::BanRecorder;
use super::command_helper::Commands;
use super::host_state::HostState;
use super::log_writer::LogWriter;
use super::run_state::RunState;
use super::systemd::{self, Systemd};
use super::table_monitor::TableMonitor;
use super::{DaemonError, Reread, system};
use crate::config::{BlockPolicy, Config};
use crate::control::protocol::{Answer, ErrorKind, Failure, Reply};
use crate::control::server::{IncomingRequest, Server};
use crate::events::channel::{Receiver, Sender};
use crate::events::event::{Event, EventKind};
use crate::metrics::http::Scrapes;
use crate::panic_guard;
use crate::sandbox::{InstanceLock, Sandbox};
use crate::sensor::{Inbox, SensorCommand, SensorError};

/// How often the listeners are read again. A service that starts in between is found by the exact look-up before anybody
/// is blamed.
const LISTENERS: Duration = Duration::from_secs(1);

/// The signals that mean something.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Catches them from now on.
    pub(super) fn catch() -> Result<Self, DaemonError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(system("catch SIGINT"))?,
            terminate: signal(SignalKind::terminate()).map_err(system("catch SIGTERM"))?,
            hangup: signal(SignalKind::hangup()).map_err(system("catch SIGHUP"))?,
        })
    }
}

/// All that the slow half has.
pub(super) struct EventLoop {
    pub(super) config: Config,
    pub(super) reread: Reread,
    pub(super) state_dir: PathBuf,
    pub(super) settings: PathBuf,
    pub(super) watch: HostState,
    pub(super) guard: TableMonitor,
    pub(super) record: BanRecorder,
    pub(super) log: LogWriter,
    pub(super) inbox: Inbox,
    pub(super) events: Sender,
    pub(super) received: Receiver,
    pub(super) control: Option<Server>,
    pub(super) scrapes: Option<Scrapes>,
    pub(super) run_state: RunState,
    pub(super) supervisor: Systemd,
    pub(super) alone: InstanceLock,
    pub(super) sandbox: Sandbox,
    /// Who runs commands, where any are run.
    pub(super) commands: Option<Commands>,
    /// Why the host cannot be read at the moment.
    pub(super) trouble: Option<String>,
    /// When the trial ends, unless somebody confirms.
    pub(super) trial: Option<Instant>,
    /// The trial has ended, and nobody is blocked.
    pub(super) logs_only: bool,
}

/// The next thing that there is to do.
enum Next {
    End,
    Gone(DaemonError),
    Reload,
    Event(Event),
    Orders(Result<Vec<SensorCommand>, DaemonError>),
    Table(Result<(Vec<SensorCommand>, Vec<EventKind>), DaemonError>),
    Request(IncomingRequest),
    Scraped(oneshot::Sender<String>),
    TrialOver,
    Named,
    RingSizer,
}

impl EventLoop {
    /// Runs until a signal ends it, or the sensor does. A panic ends only what it was about.
    pub(super) async fn run(
        &mut self,
        mut signals: Signals,
        end: &mut oneshot::Receiver<Result<(), SensorError>>,
    ) -> Result<(), DaemonError> {
        loop {
            if let Some(result) = panic_guard::catch_panic(self.serve(&mut signals, end)).await {
                return result;
            }
            tokio::time::sleep(panic_guard::PAUSE).await;
        }
    }

    async fn serve(
        &mut self,
        signals: &mut Signals,
        end: &mut oneshot::Receiver<Result<(), SensorError>>,
    ) -> Result<(), DaemonError> {
        let mut listeners = tokio::time::interval(LISTENERS);
        listeners.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                _ = signals.interrupt.recv() => Next::End,
                _ = signals.terminate.recv() => Next::End,
                _ = signals.hangup.recv() => Next::Reload,
                result = &mut *end => Next::Gone(gone(result)),
                event = self.received.receive() => Next::Event(event),
                changed = self.watch.changed() => Next::Orders(changed),
                changed = self.guard.changed() => Next::Table(changed),
                request = next_request(&mut self.control) => Next::Request(request),
                place = scraped(&mut self.scrapes) => Next::Scraped(place),
                () = over(self.trial) => Next::TrialOver,
                () = self.log.named() => Next::Named,
                () = self.run_state.metrics.flood.notified() => {
                    self.watch.crowded();
                    Next::RingSizer
                }
                _ = listeners.tick() => {
                    self.say_losses();
                    self.alone.hang_up();
                    if self.supervisor.is_due() {
                        self.deliver(SensorCommand::Heartbeat);
                    }
                    self.ensure_prefix_sets().await;
                    Next::Orders(self.watch.tick().await)
                }
            };
            match next {
                Next::End => return Ok(()),
                Next::Gone(error) => return Err(error),
                Next::Reload => drop(self.reload("SIGHUP").await),
                Next::Event(event) => self.take(&event),
                Next::Orders(changed) => self.follow_host(changed),
                Next::Table(changed) => {
                    // Done first, then said: who reads the line may count on it.
                    let (orders, said) = match changed {
                        Ok((orders, said)) => (Ok(orders), said),
                        Err(error) => (Err(error), Vec::new()),
                    };
                    self.follow(orders);
                    said.into_iter().for_each(|what| self.say(what));
                }
                Next::Request(request) => {
                    panic_guard::failpoint("shell");
                    self.handle_request(request).await;
                }
                Next::Scraped(place) => self.scrape(place),
                Next::TrialOver => self.end_trial(),
                // The lines are written.
                Next::Named => {}
                Next::RingSizer => self.ensure_prefix_sets().await,
            }
        }
    }

    /// Gives the capture the room that it needs.
    async fn ensure_prefix_sets(&mut self) {
        let room = self.watch.ensure_prefix_sets(&self.run_state.metrics).await;
        room.into_iter().for_each(|order| self.deliver(order));
    }

    /// What cannot be read now is tried again with every tick: that is said once, and once that it is over.
    fn follow_host(&mut self, changed: Result<Vec<SensorCommand>, DaemonError>) {
        let trouble = changed.as_ref().err().map(ToString::to_string);
        if trouble != self.trouble {
            self.say(match &trouble {
                Some(error) => {
                    EventKind::Error(format!("{error}; it is tried again, and what was known until now holds"))
                }
                None => EventKind::Note("this host's addresses, routes and services can be read again".to_owned()),
            });
            self.trouble = trouble;
        }
        changed.into_iter().flatten().for_each(|order| self.deliver(order));
    }

    fn follow(&mut self, changed: Result<Vec<SensorCommand>, DaemonError>) {
        match changed {
            Ok(orders) => orders.into_iter().for_each(|order| self.deliver(order)),
            // What cannot be read now is tried again; until then the last state holds.
            Err(error) => self.say(EventKind::Error(error.to_string())),
        }
    }

    /// Puts an order into the sensor's inbox.
    pub(super) fn deliver(&self, order: SensorCommand) {
        // A full inbox means that the sensor has been busy with packets for a thousand orders. The next change repeats what
        // is lost here, because every snapshot is a whole one, and who waits for an answer hears that there is none.
        let _ = self.inbox.put(order);
    }

    /// Has everybody know what happened: the ledger, the log, and who watches.
    fn take(&mut self, event: &Event) {
        if matches!(event.what, EventKind::Started) {
            systemd::ready("watching");
        }
        let watch = &self.watch;
        self.record.note(event, |index| watch.interface(index), &self.config.block.method);
        self.log.write(event);
        if let Some(control) = &self.control {
            control.publish(event);
        }
        self.run_state.last_event = Some(event.clone());
    }

    /// Has everybody know of `what`, now.
    pub(super) fn say(&mut self, what: EventKind) {
        self.take(&Event::now(what));
    }

    /// True where sources are blocked.
    pub(super) fn enforces(&self) -> bool {
        let blocks = [&self.config.tcp, &self.config.udp].into_iter().any(|one| one.block == BlockPolicy::Yes);
        blocks && !self.logs_only
    }

    /// The settings may stay.
    pub(super) fn confirm(&mut self, by: &str) -> Reply {
        if self.logs_only {
            let error = "the trial is over, and nobody is blocked any more: restart it to try again";
            return Err(Failure::new(ErrorKind::Refused, error));
        }
        if self.trial.take().is_none() {
            let error = "there is no trial to end: it runs without --confirm, or is confirmed already";
            return Err(Failure::new(ErrorKind::Refused, error));
        }
        self.say(EventKind::Note(format!("{by} has confirmed: blocking goes on")));
        Ok(Answer::Confirmed {})
    }

    /// Nobody confirmed: whoever started this may be locked out by it.
    fn end_trial(&mut self) {
        self.trial = None;
        self.logs_only = true;
        self.say(EventKind::Note(
            "nobody confirmed in time: all bans are lifted, and from now on scans are only logged".to_owned(),
        ));
        self.deliver(SensorCommand::LogOnly);
        drop(self.lift(None, "the end of the trial".to_owned()));
    }

    fn say_losses(&mut self) {
        self.log.turn_minute();
        let lost = self.received.dropped();
        self.run_state.lost += lost;
        if lost > 0 {
            self.say(EventKind::Error(format!("{lost} events came faster than they could be logged")));
        }
    }

    /// Takes in what the sensor has said until now, and ends.
    pub(super) fn close(mut self) {
        systemd::stopping();
        while let Some(event) = self.received.poll() {
            self.take(&event);
        }
        if let Some(what) = std::mem::take(&mut self.record).close() {
            self.log.write(&Event::now(what));
        }
        self.say_losses();
        self.log.write(&Event::now(EventKind::Stopped));
    }
}

fn gone(result: Result<Result<(), SensorError>, oneshot::error::RecvError>) -> DaemonError {
    match result {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => DaemonError::SensorGone,
    }
}

/// The next request of an operator; never, where there is no socket.
async fn next_request(control: &mut Option<Server>) -> IncomingRequest {
    match control {
        Some(control) => control.next_request().await,
        None => std::future::pending().await,
    }
}

/// The next request for the figures; never, where nobody may ask.
async fn scraped(scrapes: &mut Option<Scrapes>) -> oneshot::Sender<String> {
    match scrapes {
        Some(scrapes) => scrapes.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until then; for ever, where there is no end.
async fn over(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}
