//! Tracks the trial that is in force, and handles `trial` and `confirm`. `--confirm` starts a trial that blocks, and
//! blocking ends unless an operator confirms in time. `portsentry trial` starts one in which scans are only logged for
//! a while; a restart does not end it.

use std::time::{Duration, Instant, SystemTime};

use humantime::format_rfc3339_seconds;

use super::{ControlHandler, refused, usage};
use crate::config::parse_span;
use crate::control::protocol::{Answer, Reply, TrialState};
use crate::daemon::optional::deadline_reached;
use crate::enforce::nft::RulesetSpec;
use crate::engine::Settings;
use crate::events::event::EventKind;
use crate::events::json::rfc3339;
use crate::ledger::LedgerChange;
use crate::sensor::SensorCommand;

/// Maximum duration of a log-only trial: a forgotten trial must not leave a host unprotected permanently.
pub(in crate::daemon) const MAX_TRIAL: Duration = Duration::from_secs(30 * 86_400);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) enum Trial {
    #[default]
    None,
    /// Sources are blocked until this time, and afterwards only if an operator confirms.
    Unconfirmed(Instant),
    /// No operator confirmed in time.
    Expired,
    /// Scans are only logged until this time.
    LogOnly(Instant),
}

impl Trial {
    /// Returns the trial of `--confirm` with this span, or continues a log-only trial that ends at `until`.
    pub(in crate::daemon) fn new(confirm: Option<Duration>, until: Option<SystemTime>) -> Self {
        let now = Instant::now();
        let left = until.and_then(|until| until.duration_since(SystemTime::now()).ok());
        match (left, confirm) {
            (Some(left), _) => Self::log_only(left),
            (None, Some(span)) => now.checked_add(span).map_or(Self::None, Self::Unconfirmed),
            (None, None) => Self::None,
        }
    }

    /// Only logs for `span`, at most [`MAX_TRIAL`].
    pub(in crate::daemon) fn log_only(span: Duration) -> Self {
        Self::LogOnly(Instant::now() + span.min(MAX_TRIAL))
    }

    fn ends(&self) -> Option<Instant> {
        match self {
            Self::Unconfirmed(ends) | Self::LogOnly(ends) => Some(*ends),
            Self::None | Self::Expired => None,
        }
    }

    /// Remaining time; `None` if there is no trial or it is over.
    pub(in crate::daemon) fn left(&self) -> Option<Duration> {
        self.ends().map(|ends| ends.saturating_duration_since(Instant::now()))
    }

    /// True if scans are only logged because of the trial.
    pub(in crate::daemon) fn only_logs(&self) -> bool {
        matches!(self, Self::Expired | Self::LogOnly(_))
    }

    /// Waits until the trial is over; never returns if there is none.
    pub(in crate::daemon) async fn expired(&self) {
        deadline_reached(self.ends()).await;
    }
}

impl ControlHandler {
    /// The ruleset that the kernel should have.
    pub(super) fn ruleset(&self) -> RulesetSpec {
        let spec = RulesetSpec::from_config(&self.config);
        if self.on_trial { spec.without_hold() } else { spec }
    }

    /// Duration of a hold in the kernel; `None` if no source is held.
    pub(super) fn hold(&self) -> Option<Duration> {
        self.ruleset().trap.filter(|_| self.enforces())?.hold
    }

    /// Confirms the trial of `--confirm`: blocking continues.
    pub(super) fn confirm(&mut self, by: &str) -> Reply {
        let refusal = match self.trial {
            Trial::Unconfirmed(_) => None,
            Trial::Expired => {
                Some("refused: --confirm has timed out and blocking has stopped; restart portsentry to try again")
            }
            Trial::LogOnly(_) => Some(
                "refused: scans are only logged, so there is no blocking to confirm; `portsentry trial --end` resumes \
                 blocking",
            ),
            Trial::None => Some("refused: portsentry was started without --confirm, or is already confirmed"),
        };
        refusal.map(refused).map_or(Ok(()), Err)?;
        self.trial = Trial::None;
        self.on_trial = false;
        if self.hold().is_some() {
            self.sensor.send(SensorCommand::Ruleset(Box::new(self.ruleset())));
        }
        self.sink.emit(EventKind::Note(format!("{by} has confirmed the trial: blocking continues")));
        Ok(Answer::Confirmed {})
    }

    /// Starts a log-only trial of length `span`, or with `end` resumes blocking.
    pub(super) async fn trial(&mut self, by: &str, span: Option<&str>, end: bool) -> Reply {
        let span = match (span, end) {
            (Some(span), false) => parse_span(span).map_err(usage)?,
            (None, true) => {
                let Trial::LogOnly(_) = self.trial else {
                    return Err(refused("refused: no trial is running; `portsentry trial 1h` starts one"));
                };
                self.end_log_only(by).await;
                return Ok(Answer::Trial(TrialState { until: None }));
            }
            _ => return Err(usage("give a duration, or --end to end the trial")),
        };
        if span > MAX_TRIAL {
            return Err(usage(
                "a trial lasts at most 30 days; to log for longer, set block = false in the configuration",
            ));
        }
        let refusal = match self.trial {
            Trial::None | Trial::LogOnly(_) if self.config.blocks() => None,
            Trial::None | Trial::LogOnly(_) | Trial::Expired => {
                Some("refused: the configuration only logs scans, so there is no blocking to suspend")
            }
            Trial::Unconfirmed(_) => Some("refused: the trial of --confirm is running; run `portsentry confirm` first"),
        };
        refusal.map(refused).map_or(Ok(()), Err)?;
        self.trial = Trial::log_only(span);
        self.sensor.send_waiting(SensorCommand::StartTrial).await;
        let until = SystemTime::now() + span;
        self.sink.ban_recorder.write(LedgerChange::Trial { until: Some(until) });
        self.sink.emit(EventKind::Note(format!(
            "{by} has started a trial: until {} scans are only logged. Bans in force stay; `portsentry trial \
             --end` resumes blocking",
            format_rfc3339_seconds(until)
        )));
        Ok(Answer::Trial(TrialState { until: Some(rfc3339(until)) }))
    }

    async fn end_log_only(&mut self, by: &str) {
        self.trial = Trial::None;
        let settings = Settings::from_config(&self.config);
        self.sensor.send_waiting(SensorCommand::EndTrial(Box::new(settings))).await;
        // A pending `--confirm` no longer has a meaning.
        if std::mem::take(&mut self.on_trial) && self.hold().is_some() {
            self.sensor.send(SensorCommand::Ruleset(Box::new(self.ruleset())));
        }
        self.sink.ban_recorder.write(LedgerChange::Trial { until: None });
        self.sink.emit(EventKind::Note(format!("the trial has ended ({by}): scans are blocked again")));
    }

    /// Ends an expired trial. After `--confirm` without a confirmation, the operator may be locked out.
    pub(in crate::daemon) async fn end_trial(&mut self) {
        if let Trial::LogOnly(_) = self.trial {
            return self.end_log_only("it has expired").await;
        }
        self.trial = Trial::Expired;
        self.sink.emit(EventKind::Note(
            "`portsentry confirm` was not run in time: all bans are lifted, and scans are only logged from now on; \
             restart portsentry to block again"
                .to_owned(),
        ));
        self.sensor.send(SensorCommand::LogOnly);
        drop(self.lift_bans(None, "the end of the trial".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MINUTE;

    #[test]
    fn remembered_trial_continues_after_restart() {
        let until = |left| Some(SystemTime::now() + left);
        let goes_on = Trial::new(Some(MINUTE), until(MINUTE));
        assert!(goes_on.only_logs() && goes_on.left().unwrap() <= MINUTE, "{goes_on:?}");
        let past = SystemTime::now() - MINUTE;
        assert_eq!(Trial::new(None, Some(past)), Trial::None, "the trial ended while the program was down");
        let far = Trial::new(None, until(MAX_TRIAL * 10));
        assert!(far.left().unwrap() <= MAX_TRIAL, "a wrong clock does not extend a trial");
        assert!(!Trial::new(Some(MINUTE), None).only_logs());
    }
}
