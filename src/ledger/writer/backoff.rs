//! Later and later, while something fails.

use std::time::{Duration, Instant};

/// The first and the longest wait after a failure.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// When to try again, after failures.
#[derive(Default)]
pub(super) struct Backoff(Option<(Instant, Duration)>);

impl Backoff {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.0.is_none_or(|(until, _)| now >= until)
    }

    pub(super) fn extend(&mut self) {
        let wait = self.0.map_or(PATIENCE.0, |(_, wait)| (wait * 2).min(PATIENCE.1));
        self.0 = Some((Instant::now() + wait, wait));
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.0.map(|(until, _)| until)
    }
}
