//! Owns the components of the daemon that control requests and the event loop share, and does what concerns several of
//! them: reloading the configuration, ending a trial, and lifting bans.

use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use tokio::sync::oneshot::{self, Receiver};

use super::ban_recorder::lifted;
use super::command_helper::CommandHelper;
use super::config_source::{ConfigSource, summary};
use super::decoys::FirewallWatch;
use super::event_sink::EventSink;
use super::fleet::Fleet;
use super::host_state::HostState;
use super::sensor_thread::SensorHandle;
use super::systemd;
use super::trial::Trial;
use crate::control::protocol::{Answer, ErrorKind, Failure, Reloaded, Reply};
use crate::events::event::EventKind;
use crate::sandbox::Sandbox;
use crate::sensor::SensorRequest;
use crate::types::BanTarget;

pub(super) struct Components {
    pub(super) config: ConfigSource,
    pub(super) trial: Trial,
    pub(super) state_dir: PathBuf,
    /// True if the nftables backend is open.
    pub(super) uses_nft: bool,
    pub(super) host_state: HostState,
    pub(super) sensor: SensorHandle,
    /// `None` if this host is not in a fleet.
    pub(super) fleet: Option<Fleet>,
    pub(super) sink: EventSink,
    pub(super) sandbox: Sandbox,
    pub(super) command_helper: Option<CommandHelper>,
    pub(super) firewall_watch: FirewallWatch,
    /// Start time of the daemon by both clocks.
    pub(super) started: (SystemTime, Instant),
}

impl Components {
    /// True if sources are blocked.
    pub(super) fn enforces(&self) -> bool {
        self.trial.only_logs(&self.config.current).is_none()
    }

    /// The fleet, with the current state of the daemon; `None` if this host is not in a fleet.
    pub(super) fn fleet(&mut self) -> Option<&mut Fleet> {
        let (host, enforces) = (self.host_state.host(), self.enforces());
        let fleet = self.fleet.as_mut()?;
        fleet.update(host, enforces);
        Some(fleet)
    }

    /// Runs `act` on the fleet and emits the resulting events.
    pub(super) fn with_fleet(&mut self, act: impl FnOnce(&mut Fleet) -> Vec<EventKind>) {
        let events = self.fleet().map(act);
        events.into_iter().flatten().for_each(|kind| self.sink.emit(kind));
    }

    /// Lifts the bans of `targets`, or all bans if `None`, and records it in the ledger; the answer is their number.
    pub(super) fn lift_bans(&self, targets: Option<Vec<BanTarget>>, by: String) -> Receiver<Result<usize, String>> {
        let lifting = self.sensor.ask(|answer| SensorRequest::Unblock { targets, by: by.clone(), answer });
        let (finished, done) = oneshot::channel();
        let (recorder, events) = (self.sink.ban_recorder.recorder(), self.sink.events.clone());
        tokio::spawn(async move {
            let Ok(result) = lifting.await else { return };
            let result = result.map(|targets| {
                let count = targets.len();
                if count > 1 {
                    // One line per ban would fill the log. A single ban has its usual event.
                    events.emit(EventKind::Note(format!("bans lifted by {by}: {count}")));
                    let at = SystemTime::now();
                    let changes = targets.into_iter().map(move |target| lifted(target, &by, at));
                    tokio::task::spawn_blocking(move || changes.for_each(|change| recorder.write_blocking(change)));
                }
                count
            });
            let _ = finished.send(result);
        });
        done
    }

    /// Reads the configuration again, requested by `by`.
    pub(super) async fn reload(&mut self, by: &str) -> Reply {
        systemd::reloading();
        let result = self.replace_config().await;
        self.sink.emit(match &result {
            Ok(reloaded) => EventKind::Note(format!("{by}: {}", summary(reloaded))),
            Err(error) => {
                EventKind::Error(format!("the new configuration is refused, the old one stays in force: {error}"))
            }
        });
        systemd::ready("watching");
        result.map(Answer::Reloaded).map_err(|error| Failure::new(ErrorKind::Configuration, error))
    }

    /// Replaces the configuration in force.
    ///
    /// # Errors
    /// Why the configuration in force is kept.
    async fn replace_config(&mut self) -> Result<Reloaded, String> {
        let (config, reloaded) = self.config.read(&self.sandbox, self.sink.notifier.can_notify())?;
        self.host_state.reconfigure(&config).await.map_err(|error| error.to_string())?;
        self.trial.reconfigure(&self.config.current, &config);
        self.sink.log.reconfigure(&config);
        self.sink.notifier.reconfigure(&config.notify);
        if let Some(fleet) = &mut self.fleet {
            fleet.reconfigure(&config.fleet);
        }
        self.config.current = config;
        Ok(reloaded)
    }

    /// Ends an expired trial.
    pub(super) async fn end_trial(&mut self) {
        if self.trial.end(&self.config.current, &mut self.sink).await {
            drop(self.lift_bans(None, "the end of the trial".to_owned()));
        }
    }
}
