//! Later and later, while something fails: 1 s, 2 s, 4 s and so on, 5 min at most.

use std::time::Duration;

const MAX_DELAY: Duration = Duration::from_secs(300);

/// The pause after failure number `attempt`, from 1 on.
pub(super) fn after(attempt: u32) -> Duration {
    let doubled = 2_u64.checked_pow(attempt.saturating_sub(1)).map_or(MAX_DELAY, Duration::from_secs);
    doubled.min(MAX_DELAY)
}

/// When to try again, by the time since boot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    /// Failures one after another.
    pub(super) failures: u32,
    last: Duration,
    until: Duration,
}

impl Backoff {
    /// Notes a failure at `now`; how long to wait.
    pub(super) fn extend(&mut self, now: Duration) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let pause = after(self.failures);
        self.last = now;
        self.until = now.saturating_add(pause);
        pause
    }

    /// Something new has come: it is tried soon, though the others have to wait.
    pub(super) fn shorten(&mut self) {
        self.until = self.until.min(self.last.saturating_add(after(1)));
    }

    /// Nothing is waited for any more.
    pub(super) fn end(&mut self) {
        self.until = Duration::ZERO;
    }

    pub(super) fn until(&self) -> Duration {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes_and_no_further() {
        let pauses: Vec<u64> = (1..=11).map(|attempt| after(attempt).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!((after(0).as_secs(), after(u32::MAX).as_secs()), (1, 300));
    }

    #[test]
    fn something_new_waits_a_second_after_the_last_failure_at_most() {
        let (mut pause, at) = (Backoff::default(), Duration::from_secs);
        for second in [10, 20, 30, 40] {
            pause.extend(at(second));
        }
        assert_eq!(pause.until(), at(48));
        pause.shorten();
        assert_eq!((pause.until(), pause.failures), (at(41), 4));
        assert_eq!(pause.extend(at(41)), at(16));
    }
}
