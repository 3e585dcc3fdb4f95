//! Runs the event loop: waits for signals, changes of the host and the table, requests of operators and events of the
//! sensor, and passes each to the responsible component. All work that may wait runs here, on one thread.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::background;
use super::components::Components;
use super::control_handler;
use super::error::DaemonError;
use super::fleet::Fleet;
use super::guest_ports::GuestPorts;
use super::optional::or_never;
use super::systemd::{self, Systemd};
use super::table_identity::TableIdentity;
use super::table_monitor::{TableMonitor, repairs_table};
use super::unfounded_bans::UnfoundedBans;
use crate::clock::boot_time;
use crate::enforce::slow_backends::SlowBackends;
use crate::events::channel::Receiver;
use crate::events::event::{Event, EventKind};
use crate::ledger::Recorder;
use crate::metrics::http::Scrapes;
use crate::panic_guard;
use crate::sandbox::InstanceLock;
use crate::sensor::{SensorCommand, SensorError};

/// Interval at which the files of this host are read again, and other periodic work is done.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// Timeout for running commands and file writes at the end.
const SLOW_BACKENDS_TIMEOUT: Duration = Duration::from_millis(400);

/// SIGINT, SIGTERM and SIGHUP.
pub(super) type Signals = [Signal; 3];

pub(super) fn catch_signals() -> Result<Signals, DaemonError> {
    let catch = |kind| signal(kind).map_err(DaemonError::system("catch signals"));
    Ok([catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?])
}

/// Receives the result of the sensor at its end.
pub(super) type SensorEnd = oneshot::Receiver<Result<(), SensorError>>;

/// The sources of work, and the components that only the event loop uses.
pub(super) struct EventLoop {
    pub(super) components: Components,
    pub(super) table_monitor: TableMonitor,
    pub(super) received: Receiver,
    pub(super) scrapes: Option<Scrapes>,
    pub(super) systemd: Systemd,
    pub(super) instance_lock: InstanceLock,
    pub(super) unfounded_bans: UnfoundedBans,
    pub(super) guest_ports: GuestPorts,
    pub(super) table_identity: TableIdentity,
}

impl EventLoop {
    /// Runs until a signal or the end of the sensor. A panic ends only the current work item.
    pub(super) async fn run(&mut self, mut signals: Signals, end: &mut SensorEnd) -> Result<(), DaemonError> {
        loop {
            if let Some(result) = panic_guard::catch_panic(self.serve(&mut signals, end)).await {
                return result;
            }
            tokio::time::sleep(panic_guard::RESTART_DELAY).await;
        }
    }

    async fn serve(
        &mut self,
        [interrupt, terminate, hangup]: &mut Signals,
        end: &mut SensorEnd,
    ) -> Result<(), DaemonError> {
        let mut ticks = tokio::time::interval(TICK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let components = &mut self.components;
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => drop(components.reload("SIGHUP").await),
                result = &mut *end => {
                    return Err(result.ok().and_then(Result::err).map_or(DaemonError::SensorGone, DaemonError::from));
                }
                event = self.received.receive() => self.dispatch(&event),
                changed = components.host_state.changed() => {
                    components.host_state.report(changed).into_iter().for_each(|kind| components.sink.emit(kind));
                }
                changed = self.table_monitor.changed() => self.follow_table(changed),
                request = components.sink.next_request() => {
                    panic_guard::failpoint("event-loop");
                    control_handler::handle(components, request).await;
                }
                place = or_never(self.scrapes.as_mut().map(Scrapes::next)) => control_handler::scrape(components, place),
                work = or_never(components.fleet.as_mut().map(Fleet::next)) => {
                    components.with_fleet(|fleet| fleet.work(work));
                }
                () = components.trial.expired() => components.end_trial().await,
                () = components.sensor.metrics.flood.notified() => {
                    components.host_state.follow_flood().await;
                }
                _ = ticks.tick() => self.tick().await,
            }
        }
    }

    fn dispatch(&mut self, event: &Event) {
        if matches!(event.kind, EventKind::Started) {
            systemd::ready("watching");
            background::ready();
        }
        if let Some(fleet) = &mut self.components.fleet {
            fleet.follow(event);
        }
        let host = self.components.host_state.host();
        self.components.sink.dispatch(event, Some(&host));
        self.guest_ports.follow(event, &host);
    }

    async fn tick(&mut self) {
        let components = &mut self.components;
        components.sink.report_lost(self.received.dropped());
        self.instance_lock.hang_up();
        if self.systemd.is_due() {
            components.sensor.send(SensorCommand::Heartbeat);
        }
        components.host_state.resize_ring().await;
        let changed = components.host_state.tick().await;
        components.host_state.report(changed).into_iter().for_each(|kind| components.sink.emit(kind));
        let recorder = components.sink.ban_recorder.recorder();
        if recorder.is_open() {
            self.lift_unfounded_bans(&recorder);
        }
        let components = &mut self.components;
        let guest_bans = self.guest_ports.take_found(&components.host_state.host(), &recorder);
        if !guest_bans.is_empty() {
            components.sensor.send(SensorCommand::FollowGuests(guest_bans));
        }
        self.table_identity.record(&recorder);
        let (command, notice) = components.firewall_watch.poll(&components.sensor.metrics);
        components.sensor.send_all(command);
        notice.into_iter().for_each(|kind| components.sink.emit(kind));
        components.with_fleet(Fleet::tick);
    }

    /// Lifts the bans of clients of a service that is remembered from now on, starts to listen, or is served again.
    fn lift_unfounded_bans(&mut self, recorder: &Recorder) {
        let components = &mut self.components;
        let now = boot_time();
        if self.unfounded_bans.may_ask(now)
            && let Some(services) = components.host_state.take_served_again()
        {
            self.unfounded_bans.ask(recorder, now, services, components.config.current.detect.scan_trigger);
        }
        let unfounded = self.unfounded_bans.take_answer();
        if !unfounded.is_empty() {
            let by = "portsentry, because the ports belong to services of this host".to_owned();
            drop(components.lift_bans(Some(unfounded), by));
        }
    }

    fn follow_table(&mut self, changed: Result<(Vec<SensorCommand>, Vec<EventKind>), DaemonError>) {
        let components = &mut self.components;
        match changed {
            // Commands first, so that the log reports completed work.
            Ok((commands, events)) => {
                if let Some(fleet) = components.fleet.as_mut().filter(|_| commands.iter().any(repairs_table)) {
                    fleet.table_changed();
                }
                components.sensor.send_all(commands);
                for kind in events {
                    // A ban that an operator deleted from the kernel's set.
                    self.dispatch(&Event::now(kind));
                }
            }
            // Failed reads are retried; until then the last state stays in force.
            Err(error) => components.sink.emit(EventKind::Error(error.to_string())),
        }
    }

    fn take_in(&mut self) {
        while let Some(event) = self.received.poll() {
            self.dispatch(&event);
        }
    }

    /// Handles the remaining events, ends the slow backends, and closes all outputs.
    pub(super) async fn close(mut self, slow_backends: Option<SlowBackends>) {
        systemd::stopping();
        self.take_in();
        // The command helper must still run, because it sends the last digest.
        let event = self.components.sink.notifier.finish().await;
        event.into_iter().for_each(|kind| self.components.sink.emit(kind));
        if let Some(slow_backends) = slow_backends {
            // The thread reports unfinished work itself, or the next start finds it.
            let _ = slow_backends.stop(SLOW_BACKENDS_TIMEOUT);
        }
        self.take_in();
        self.components.sink.close(self.received.dropped());
    }
}
