//! Tracks the trial that is in force. `--confirm` starts a trial that blocks, and blocking ends unless an operator
//! confirms in time. `portsentry trial` starts one in which scans are only logged for a while; a restart does not end
//! it.

use std::time::{Duration, Instant, SystemTime};

use super::optional::deadline_reached;

/// Maximum duration of a log-only trial: a forgotten trial must not leave a host unprotected permanently.
pub(super) const MAX_TRIAL: Duration = Duration::from_secs(30 * 86_400);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Trial {
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
    pub(super) fn new(confirm: Option<Duration>, until: Option<SystemTime>) -> Self {
        let now = Instant::now();
        let left = until.and_then(|until| until.duration_since(SystemTime::now()).ok());
        match (left, confirm) {
            (Some(left), _) => Self::log_only(left),
            (None, Some(span)) => now.checked_add(span).map_or(Self::None, Self::Unconfirmed),
            (None, None) => Self::None,
        }
    }

    /// Only logs for `span`, at most [`MAX_TRIAL`].
    pub(super) fn log_only(span: Duration) -> Self {
        Self::LogOnly(Instant::now() + span.min(MAX_TRIAL))
    }

    fn ends(&self) -> Option<Instant> {
        match self {
            Self::Unconfirmed(ends) | Self::LogOnly(ends) => Some(*ends),
            Self::None | Self::Expired => None,
        }
    }

    /// Remaining time; `None` if there is no trial or it is over.
    pub(super) fn left(&self) -> Option<Duration> {
        self.ends().map(|ends| ends.saturating_duration_since(Instant::now()))
    }

    /// True if scans are only logged because of the trial.
    pub(super) fn only_logs(&self) -> bool {
        matches!(self, Self::Expired | Self::LogOnly(_))
    }

    /// Waits until the trial is over; never returns if there is none.
    pub(super) async fn expired(&self) {
        deadline_reached(self.ends()).await;
    }

    /// Confirms the trial of `--confirm`: blocking continues.
    ///
    /// # Errors
    /// There is nothing to confirm, or it is too late.
    pub(super) fn confirm(&mut self) -> Result<(), &'static str> {
        match self {
            Self::Unconfirmed(_) => {
                *self = Self::None;
                Ok(())
            }
            Self::Expired => {
                Err("refused: --confirm has timed out and blocking has stopped; restart portsentry to try again")
            }
            Self::LogOnly(_) => {
                Err("refused: scans are only logged, so there is no blocking to confirm; `portsentry trial --end` \
                     resumes blocking")
            }
            Self::None => Err("refused: portsentry was started without --confirm, or is already confirmed"),
        }
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
