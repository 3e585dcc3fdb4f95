//! Runs the event loop: waits for signals, changes of the host and the table, requests of operators and events of the
//! sensor, and passes each to the responsible component. All work that may wait runs here, on one thread.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::background;
use super::command_helper::CommandHelper;
use super::config_source::ConfigSource;
use super::control_handler::{ControlHandler, Uptime};
use super::decoys::FirewallWatch;
use super::error::DaemonError;
use super::event_sink::EventSink;
use super::fleet::{Fleet, FleetWork, Surroundings};
use super::guest_ports::GuestPorts;
use super::host_state::HostState;
use super::optional::or_never;
use super::sensor_handle::SensorHandle;
use super::systemd::{self, Systemd};
use super::table_identity::TableIdentity;
use super::table_monitor::TableMonitor;
use super::trial::Trial;
use super::unban;
use super::unfounded_bans::{Served, UnfoundedBans};
use crate::clock::boot_time;
use crate::control::server::IncomingRequest;
use crate::events::channel::Receiver;
use crate::events::event::{Event, EventKind};
use crate::metrics::http::Scrapes;
use crate::panic_guard;
use crate::sandbox::{InstanceLock, Sandbox};
use crate::sensor::{SensorCommand, SensorError};

/// Interval at which the files of this host are read again, and other periodic work is done.
const TICK: Duration = Duration::from_secs(1);

pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn catch() -> Result<Self, DaemonError> {
        let catch = |kind| signal(kind).map_err(DaemonError::system("catch signals"));
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }
}

/// The components, each of which owns its state.
pub(super) struct EventLoop {
    pub(super) config: ConfigSource,
    pub(super) host_state: HostState,
    pub(super) table_monitor: TableMonitor,
    pub(super) sensor: SensorHandle,
    /// `None` if this host is not in a fleet.
    pub(super) fleet: Option<Fleet>,
    pub(super) sink: EventSink,
    pub(super) received: Receiver,
    pub(super) scrapes: Option<Scrapes>,
    pub(super) systemd: Systemd,
    pub(super) instance_lock: InstanceLock,
    pub(super) sandbox: Sandbox,
    pub(super) command_helper: Option<CommandHelper>,
    pub(super) trial: Trial,
    pub(super) uptime: Uptime,
    pub(super) host_error: HostErrorReport,
    pub(super) unfounded_bans: UnfoundedBans,
    pub(super) guest_ports: GuestPorts,
    pub(super) table_identity: TableIdentity,
    pub(super) firewall_watch: FirewallWatch,
}

enum Next {
    End,
    SensorEnded(DaemonError),
    Reload,
    Event(Event),
    HostChanged(Result<Vec<SensorCommand>, DaemonError>),
    TableChanged(Result<(Vec<SensorCommand>, Vec<EventKind>), DaemonError>),
    Request(IncomingRequest),
    Scrape(oneshot::Sender<String>),
    Fleet(FleetWork),
    TrialExpired,
    FloodBegins,
    Tick,
}

impl EventLoop {
    /// Runs until a signal or the end of the sensor. A panic ends only the current work item.
    pub(super) async fn run(
        &mut self,
        mut signals: Signals,
        end: &mut oneshot::Receiver<Result<(), SensorError>>,
    ) -> Result<(), DaemonError> {
        loop {
            if let Some(result) = panic_guard::catch_panic(self.serve(&mut signals, end)).await {
                return result;
            }
            tokio::time::sleep(panic_guard::RESTART_DELAY).await;
        }
    }

    async fn serve(
        &mut self,
        signals: &mut Signals,
        end: &mut oneshot::Receiver<Result<(), SensorError>>,
    ) -> Result<(), DaemonError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                _ = signals.interrupt.recv() => Next::End,
                _ = signals.terminate.recv() => Next::End,
                _ = signals.hangup.recv() => Next::Reload,
                result = &mut *end => Next::SensorEnded(sensor_error(result)),
                event = self.received.receive() => Next::Event(event),
                changed = self.host_state.changed() => Next::HostChanged(changed),
                changed = self.table_monitor.changed() => Next::TableChanged(changed),
                request = self.sink.next_request() => Next::Request(request),
                place = or_never(self.scrapes.as_mut().map(Scrapes::next)) => Next::Scrape(place),
                work = or_never(self.fleet.as_mut().map(Fleet::next)) => Next::Fleet(work),
                () = self.trial.expired() => Next::TrialExpired,
                () = self.sensor.metrics.flood.notified() => Next::FloodBegins,
                _ = ticks.tick() => Next::Tick,
            };
            match next {
                Next::End => return Ok(()),
                Next::SensorEnded(error) => return Err(error),
                Next::Reload => drop(self.control_handler().reload("SIGHUP").await),
                Next::Event(event) => self.dispatch(&event),
                Next::HostChanged(changed) => self.follow_host(changed),
                Next::TableChanged(changed) => self.follow_table(changed),
                Next::Request(request) => {
                    panic_guard::failpoint("shell");
                    self.control_handler().handle_request(request).await;
                }
                Next::Scrape(place) => self.control_handler().scrape(place),
                Next::Fleet(work) => self.with_fleet(|fleet, surroundings| fleet.work(work, surroundings)),
                Next::TrialExpired => self.end_trial().await,
                Next::FloodBegins => {
                    self.host_state.flood_begins();
                    self.resize_ring().await;
                }
                Next::Tick => self.tick().await,
            }
        }
    }

    fn control_handler(&mut self) -> ControlHandler<'_> {
        ControlHandler {
            config: &mut self.config,
            host_state: &mut self.host_state,
            sensor: &self.sensor,
            fleet: self.fleet.as_mut(),
            sink: &mut self.sink,
            trial: &mut self.trial,
            sandbox: &self.sandbox,
            command_helper: self.command_helper.as_ref(),
            uptime: self.uptime,
            silent_decoys: self.firewall_watch.notice.as_deref(),
        }
    }

    fn dispatch(&mut self, event: &Event) {
        if matches!(event.what, EventKind::Started) {
            systemd::ready("watching");
            background::ready();
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.follow(event);
        }
        let host = self.host_state.host();
        self.sink.dispatch(event, Some(&host));
        self.guest_ports.follow(event, &host);
    }

    async fn tick(&mut self) {
        self.sink.report_lost(self.received.dropped());
        self.instance_lock.hang_up();
        if self.systemd.is_due() {
            self.sensor.send(SensorCommand::Heartbeat);
        }
        self.resize_ring().await;
        let changed = self.host_state.tick().await;
        self.follow_host(changed);
        self.lift_unfounded_bans();
        let recorder = self.sink.ban_recorder.recorder();
        let guest_bans = self.guest_ports.take_found(&self.host_state.host(), recorder.as_ref());
        if !guest_bans.is_empty() {
            self.sensor.send(SensorCommand::FollowGuests(guest_bans));
        }
        self.table_identity.record(recorder.as_ref());
        let (command, notice) = self.firewall_watch.poll(&self.sensor.metrics);
        self.sensor.send_all(command);
        notice.into_iter().for_each(|kind| self.sink.emit(kind));
        self.with_fleet(Fleet::tick);
    }

    /// Runs `act` on the fleet and emits the resulting events.
    fn with_fleet(&mut self, act: impl FnOnce(&mut Fleet, Surroundings<'_>) -> Vec<EventKind>) {
        let Some(fleet) = &mut self.fleet else { return };
        let enforces = self.config.config.blocks() && !self.trial.only_logs();
        let events = act(fleet, Surroundings { host: &self.host_state.host(), enforces });
        events.into_iter().for_each(|kind| self.sink.emit(kind));
    }

    /// Lifts the bans of clients of a service that is remembered from now on, starts to listen, or is served again.
    fn lift_unfounded_bans(&mut self) {
        if let Some(recorder) = self.sink.ban_recorder.recorder()
            && self.unfounded_bans.may_ask(boot_time())
            && self.host_state.memory.take_served_again()
        {
            let services =
                Served { remembered: self.host_state.host().services.clone(), listening: self.host_state.listening() };
            let forgiven = self.config.config.detect.scan_trigger;
            self.unfounded_bans.ask(&recorder, boot_time(), services, forgiven);
        }
        let unfounded = self.unfounded_bans.take_answer();
        if !unfounded.is_empty() {
            let by = "portsentry, because the ports belong to services of this host".to_owned();
            drop(unban::lift(&self.sensor, &self.sink, Some(unfounded), by));
        }
    }

    async fn resize_ring(&mut self) {
        self.sensor.send_all(self.host_state.resize_ring(&self.sensor.metrics).await);
    }

    fn follow_host(&mut self, changed: Result<Vec<SensorCommand>, DaemonError>) {
        // If both reads fail, the same error is reported each time, so that the two do not alternate in the log.
        let unread = self.host_state.unread.clone();
        let error = unread.or_else(|| changed.as_ref().err().map(ToString::to_string));
        if let Some(kind) = self.host_error.update(error) {
            self.sink.emit(kind);
        }
        self.sensor.send_all(changed.into_iter().flatten());
    }

    fn follow_table(&mut self, changed: Result<(Vec<SensorCommand>, Vec<EventKind>), DaemonError>) {
        match changed {
            // Commands first, so that the log reports completed work.
            Ok((commands, events)) => {
                let repairs = |command: &SensorCommand| {
                    matches!(command, SensorCommand::ReinstallTable(_) | SensorCommand::RepairRules(_))
                };
                if let Some(fleet) = self.fleet.as_mut().filter(|_| commands.iter().any(repairs)) {
                    fleet.table_changed();
                }
                self.sensor.send_all(commands);
                for kind in events {
                    // A ban that an operator deleted from the kernel's set.
                    self.dispatch(&Event::now(kind));
                }
            }
            // Failed reads are retried; until then the last state stays in force.
            Err(error) => self.sink.emit(EventKind::Error(error.to_string())),
        }
    }

    /// Ends an expired trial. After `--confirm` without a confirmation, the operator may be locked out.
    async fn end_trial(&mut self) {
        if let Trial::LogOnly(_) = self.trial {
            return self.control_handler().end_log_only("it has expired").await;
        }
        self.trial = Trial::Expired;
        self.sink.emit(EventKind::Note(
            "`portsentry confirm` was not run in time: all bans are lifted, and scans are only logged from now on; \
             restart portsentry to block again"
                .to_owned(),
        ));
        self.sensor.send(SensorCommand::LogOnly);
        drop(unban::lift(&self.sensor, &self.sink, None, "the end of the trial".to_owned()));
    }

    /// Handles the remaining events of the sensor, and sends the last digest.
    pub(super) async fn finish(&mut self) {
        systemd::stopping();
        self.take_in();
        self.sink.send_last_digest().await;
    }

    fn take_in(&mut self) {
        while let Some(event) = self.received.poll() {
            self.dispatch(&event);
        }
    }

    /// Handles the remaining events, and closes all outputs.
    pub(super) fn close(mut self) {
        self.take_in();
        self.sink.close(self.received.dropped());
    }
}

/// Reports a failure to read the host's state once, and its end once, although the read is retried with every tick.
#[derive(Default)]
pub(super) struct HostErrorReport(Option<String>);

impl HostErrorReport {
    /// Returns the event to report, given the current error.
    fn update(&mut self, error: Option<String>) -> Option<EventKind> {
        if error == self.0 {
            return None;
        }
        self.0 = error;
        Some(match &self.0 {
            Some(error) => EventKind::Error(format!("{error}; retrying, the last known state is used")),
            None => EventKind::Note("this host's addresses, routes and services can be read again".to_owned()),
        })
    }
}

fn sensor_error(result: Result<Result<(), SensorError>, oneshot::error::RecvError>) -> DaemonError {
    match result {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => DaemonError::SensorGone,
    }
}
