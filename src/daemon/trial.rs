//! The trial that `--confirm` begins: blocking ends at a time, unless an operator confirms before.

use std::time::{Duration, Instant};

use super::deadline;

pub(super) struct Trial {
    ends: Option<Instant>,
    is_over: bool,
}

impl Trial {
    /// Ends after `span`; `None`: there is no trial.
    pub(super) fn new(span: Option<Duration>) -> Self {
        Self { ends: span.and_then(|span| Instant::now().checked_add(span)), is_over: false }
    }

    /// How long an operator has to confirm; `None` where there is nothing to confirm.
    pub(super) fn left(&self) -> Option<Duration> {
        self.ends.map(|ends| ends.saturating_duration_since(Instant::now()))
    }

    /// True where the time is over and nothing is blocked any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Waits until the time is over; for ever, where there is no trial.
    pub(super) async fn expired(&self) {
        deadline::reached(self.ends).await;
    }

    /// Ends it: nothing is blocked from now on.
    pub(super) fn end(&mut self) {
        *self = Self { ends: None, is_over: true };
    }

    /// Ends it: blocking goes on.
    ///
    /// # Errors
    /// Where there is nothing to confirm, or it is too late.
    pub(super) fn confirm(&mut self) -> Result<(), &'static str> {
        if self.is_over {
            return Err("the trial is over, and nobody is blocked any more: restart it to try again");
        }
        let confirmed = self.ends.take().map(|_| ());
        confirmed.ok_or("there is no trial to end: it runs without --confirm, or is confirmed already")
    }
}
