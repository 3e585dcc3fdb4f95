//! Owns the state of the current trial. Derives from it whether sources are blocked, and the ruleset of the sensor.
//! `--confirm` starts a trial that blocks, and blocking ends unless an operator confirms in time. `portsentry trial`
//! starts one in which scans are only logged for a while; a restart does not end it.

use std::time::{Duration, Instant, SystemTime};

use super::event_sink::EventSink;
use super::optional::deadline_reached;
use super::sensor_thread::SensorHandle;
use crate::clock::WallTime;
use crate::config::Config;
use crate::control::protocol::{Answer, Failure, Reply, TrialState};
use crate::enforce::nft::RulesetSpec;
use crate::engine::Settings;
use crate::events::event::EventKind;
use crate::ledger::LedgerChange;
use crate::sensor::SensorCommand;
use crate::types::DAY;

/// Maximum duration of a log-only trial: a forgotten trial must not leave a host unprotected permanently.
const MAX_TRIAL: Duration = DAY.saturating_mul(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TrialPhase {
    None,
    /// Sources are blocked until this time, and afterwards only if an operator confirms. No source is held.
    Unconfirmed(Instant),
    /// No operator confirmed in time.
    Expired,
    /// Scans are only logged until this time.
    LogOnly(Instant),
}

impl TrialPhase {
    /// The phase of `--confirm` with this span, or of a log-only trial that continues until `until`.
    fn new(confirm: Option<Duration>, until: Option<SystemTime>) -> Self {
        let left = until.and_then(|until| until.duration_since(SystemTime::now()).ok());
        match (left, confirm) {
            (Some(left), _) => Self::log_only(left),
            (None, Some(span)) => Instant::now().checked_add(span).map_or(Self::None, Self::Unconfirmed),
            (None, None) => Self::None,
        }
    }

    fn log_only(span: Duration) -> Self {
        Self::LogOnly(Instant::now() + span.min(MAX_TRIAL))
    }
}

pub(super) struct Trial {
    phase: TrialPhase,
    /// False after a start with `--confirm`, until an operator confirms or resumes blocking. While false, no source is
    /// held.
    holds: bool,
    sensor: SensorHandle,
}

impl Trial {
    /// Starts the trial of `--confirm` with this span, or continues a log-only trial that ends at `until`. The backends
    /// were opened with the ruleset of `config`; if `confirm` is given, without the hold.
    pub(super) fn new(
        config: &Config,
        confirm: Option<Duration>,
        until: Option<SystemTime>,
        sensor: SensorHandle,
    ) -> Self {
        let (phase, holds) = (TrialPhase::new(confirm, until.filter(|_| config.blocks())), confirm.is_none());
        Self { phase, holds, sensor }
    }

    fn ends(&self) -> Option<Instant> {
        match self.phase {
            TrialPhase::Unconfirmed(ends) | TrialPhase::LogOnly(ends) => Some(ends),
            TrialPhase::None | TrialPhase::Expired => None,
        }
    }

    /// Remaining time; `None` if there is no trial or it is over.
    pub(super) fn left(&self) -> Option<Duration> {
        self.ends().map(|ends| ends.saturating_duration_since(Instant::now()))
    }

    /// Remaining time of a log-only trial.
    pub(super) fn log_only_left(&self) -> Option<Duration> {
        self.left().filter(|_| matches!(self.phase, TrialPhase::LogOnly(_)))
    }

    /// Waits until the trial is over; never returns if there is none. Cancel safe.
    pub(super) async fn expired(&self) {
        deadline_reached(self.ends()).await;
    }

    /// Returns the reason if sources are not blocked, and what to do about it.
    pub(super) fn only_logs(&self, config: &Config) -> Option<&'static str> {
        match self.phase {
            _ if !config.blocks() => Some(
                "of block = false under [tcp] and [udp], or of --log-only; `portsentry check` shows the configuration",
            ),
            TrialPhase::LogOnly(_) => Some("a trial is running; `portsentry trial --end` resumes blocking"),
            TrialPhase::Expired => Some("--confirm was not confirmed in time; restart portsentry to block again"),
            TrialPhase::None | TrialPhase::Unconfirmed(_) => None,
        }
    }

    /// The duration of a hold in the kernel and the window of the trap; `None` if no source is held.
    pub(super) fn hold(&self, config: &Config) -> Option<(Duration, Duration)> {
        let trap = self.ruleset(config).trap.filter(|_| self.only_logs(config).is_none())?;
        Some((trap.hold?, trap.window))
    }

    /// The ruleset that the kernel should have.
    fn ruleset(&self, config: &Config) -> RulesetSpec {
        let ruleset = RulesetSpec::from_config(config);
        if self.holds { ruleset } else { ruleset.without_hold() }
    }

    /// Sends the sensor the ruleset of `config` if it differs from that of `old`. After an expired trial, disables
    /// blocking again.
    pub(super) fn reconfigure(&self, old: &Config, config: &Config) {
        self.replace_ruleset(self.ruleset(old), config);
        if self.phase == TrialPhase::Expired {
            self.sensor.send(SensorCommand::LogOnly);
        }
    }

    /// Sends the sensor the ruleset of `config` if it differs from `old`.
    fn replace_ruleset(&self, old: RulesetSpec, config: &Config) {
        let ruleset = self.ruleset(config);
        if ruleset != old {
            self.sensor.send(SensorCommand::Ruleset(Box::new(ruleset)));
        }
    }

    /// Ends the trial: sources are blocked, and from now on also held.
    fn resume(&mut self, config: &Config) {
        let old = self.ruleset(config);
        (self.phase, self.holds) = (TrialPhase::None, true);
        self.replace_ruleset(old, config);
    }

    /// Confirms the trial of `--confirm`: blocking continues.
    pub(super) fn confirm(&mut self, by: &str, config: &Config, sink: &mut EventSink) -> Reply {
        let refusal = match self.phase {
            TrialPhase::Unconfirmed(_) => None,
            TrialPhase::Expired => {
                Some("refused: --confirm has timed out and blocking has stopped; restart portsentry to try again")
            }
            TrialPhase::LogOnly(_) => Some(
                "refused: scans are only logged, so there is no blocking to confirm; `portsentry trial --end` resumes \
                 blocking",
            ),
            TrialPhase::None => Some("refused: portsentry was started without --confirm, or is already confirmed"),
        };
        refusal.map(Failure::refused).map_or(Ok(()), Err)?;
        self.resume(config);
        sink.emit(EventKind::Note(format!("{by} has confirmed the trial: blocking continues")));
        Ok(Answer::Confirmed {})
    }

    /// Starts a log-only trial of length `span`, or with `end` resumes blocking.
    pub(super) async fn request(
        &mut self,
        by: &str,
        (span, end): (Option<Duration>, bool),
        config: &Config,
        sink: &mut EventSink,
    ) -> Reply {
        let span = match (span, end) {
            (Some(span), false) => span,
            (None, true) => {
                let TrialPhase::LogOnly(_) = self.phase else {
                    return Err(Failure::refused("refused: no trial is running; `portsentry trial 1h` starts one"));
                };
                self.end_log_only(by, config, sink).await;
                return Ok(Answer::Trial(TrialState { until: None }));
            }
            _ => return Err(Failure::usage("give a duration, or --end to end the trial")),
        };
        if span > MAX_TRIAL {
            return Err(Failure::usage(
                "a trial lasts at most 30 days; to log for longer, set block = false in the configuration",
            ));
        }
        let refusal = match self.phase {
            TrialPhase::None | TrialPhase::LogOnly(_) if config.blocks() => None,
            TrialPhase::None | TrialPhase::LogOnly(_) => {
                Some("refused: the configuration only logs scans, so there is no blocking to suspend")
            }
            TrialPhase::Expired => Some(
                "refused: --confirm has timed out and blocking has already stopped; restart portsentry to block again",
            ),
            TrialPhase::Unconfirmed(_) => {
                Some("refused: the trial of --confirm is running; run `portsentry confirm` first")
            }
        };
        refusal.map(Failure::refused).map_or(Ok(()), Err)?;
        self.phase = TrialPhase::log_only(span);
        self.sensor.send_waiting(SensorCommand::StartTrial).await;
        let until = SystemTime::now() + span;
        sink.ban_recorder.write(LedgerChange::Trial { until: Some(until) });
        sink.emit(EventKind::Note(format!(
            "{by} has started a trial: until {} scans are only logged. Bans in force stay; `portsentry trial \
             --end` resumes blocking",
            WallTime(until).without_fraction()
        )));
        Ok(Answer::Trial(TrialState { until: Some(WallTime(until)) }))
    }

    async fn end_log_only(&mut self, by: &str, config: &Config, sink: &mut EventSink) {
        let settings = Settings::from_config(config);
        self.sensor.send_waiting(SensorCommand::EndTrial(Box::new(settings))).await;
        // A pending `--confirm` no longer has a meaning.
        self.resume(config);
        sink.ban_recorder.write(LedgerChange::Trial { until: None });
        sink.emit(EventKind::Note(format!("the trial has ended ({by}): scans are blocked again")));
    }

    /// Ends an expired trial; true if it was not confirmed. Then the operator may be locked out, and all bans must be
    /// lifted.
    pub(super) async fn end(&mut self, config: &Config, sink: &mut EventSink) -> bool {
        if let TrialPhase::LogOnly(_) = self.phase {
            self.end_log_only("it has expired", config, sink).await;
            return false;
        }
        self.phase = TrialPhase::Expired;
        sink.emit(EventKind::Note(
            "`portsentry confirm` was not run in time: all bans are lifted, and scans are only logged from now on; \
             restart portsentry to block again"
                .to_owned(),
        ));
        self.sensor.send(SensorCommand::LogOnly);
        true
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::types::MINUTE;

    #[test]
    fn remembered_trial_continues_after_restart() {
        let until = |left| Some(SystemTime::now() + left);
        let trial = |confirm, until| Trial::new(&Config::default(), confirm, until, SensorHandle::new().unwrap());
        let goes_on = trial(Some(MINUTE), until(MINUTE));
        assert!(goes_on.log_only_left().unwrap() <= MINUTE, "{:?}", goes_on.phase);
        let past = SystemTime::now() - MINUTE;
        assert_eq!(trial(None, Some(past)).phase, TrialPhase::None, "the trial ended while the program was down");
        let far = trial(None, until(MAX_TRIAL * 10));
        assert!(far.left().unwrap() <= MAX_TRIAL, "a wrong clock does not extend a trial");
        assert_eq!(trial(Some(MINUTE), None).only_logs(&Config::default()), None);
    }

    #[test]
    fn unchanged_configuration_replaces_no_ruleset() {
        let (config, until) = (Config::default(), Some(SystemTime::now() + MINUTE));
        for (confirm, until) in [(None, None), (Some(MINUTE), None), (None, until), (Some(MINUTE), until)] {
            let trial = Trial::new(&config, confirm, until, SensorHandle::new().unwrap());
            let before = trial.ruleset(&config);
            assert_eq!(before.trap.and_then(|trap| trap.hold).is_some(), confirm.is_none());
            trial.reconfigure(&config, &config);
            let sent = poll(&mut [PollFd::new(&trial.sensor.inbox, PollFlags::IN)], Some(&Timespec::default()));
            assert_eq!((sent, trial.ruleset(&config)), (Ok(0), before), "{confirm:?} {until:?}");
        }
    }
}
