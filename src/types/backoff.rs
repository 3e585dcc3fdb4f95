//! Computes retry delays with backoff: the delay doubles with each failure, up to a limit.

use std::time::Duration;

use super::Timestamp;

/// The time of the next attempt after failures.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    failed_at: Timestamp,
    until: Timestamp,
}

impl Backoff {
    /// A state without failures. The delay after the first failure is `first`; no delay exceeds `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0, failed_at: Timestamp::ZERO, until: Timestamp::ZERO }
    }

    /// The delay after failure number `attempt`, starting at 1.
    pub fn delay(&self, attempt: u32) -> Duration {
        let factor = 2_u32.saturating_pow(attempt.saturating_sub(1));
        self.first.saturating_mul(factor).min(self.longest)
    }

    /// Records a failure at `now`; returns the delay before the next attempt.
    pub fn extend(&mut self, now: Timestamp) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let delay = self.delay(self.failures);
        (self.failed_at, self.until) = (now, now.after(delay));
        delay
    }

    /// Shortens the wait to the first delay, for example because new input arrived. Keeps the number of failures.
    pub fn shorten(&mut self) {
        self.until = self.until.min(self.failed_at.after(self.first));
    }

    /// Ends the wait. Keeps the number of failures.
    pub fn end_wait(&mut self) {
        self.until = Timestamp::ZERO;
    }

    /// Resets the number of failures after a success.
    pub fn reset(&mut self) {
        *self = Self::new(self.first, self.longest);
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// When the next attempt is due; the origin if there is no wait.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// True if an attempt is due.
    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_secs(1), Duration::from_secs(300))
    }

    #[test]
    fn backoff_grows_to_five_minutes() {
        let backoff = backoff();
        let pauses: Vec<u64> = (1..=11).map(|attempt| backoff.delay(attempt).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!((backoff.delay(0).as_secs(), backoff.delay(u32::MAX).as_secs()), (1, 300));
    }

    #[test]
    fn new_attempt_waits_a_second_at_most() {
        let (mut pause, at) = (backoff(), |seconds| Timestamp::at(Duration::from_secs(seconds)));
        for second in [10, 20, 30, 40] {
            pause.extend(at(second));
        }
        assert_eq!(pause.until(), at(48));
        pause.shorten();
        assert_eq!((pause.until(), pause.failures()), (at(41), 4));
        assert_eq!(pause.extend(at(41)), Duration::from_secs(16));
        pause.reset();
        assert!(pause.is_over(at(0)) && pause.extend(at(42)) == Duration::from_secs(1));
    }
}
