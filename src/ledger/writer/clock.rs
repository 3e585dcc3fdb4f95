//! Notices when the wall clock is set. The ledger's times are wall-clock times, because they outlive reboots; the kernel's
//! timers follow the time since boot. Where the two diverge while the program runs, the ends of bans in force have to follow.

use std::time::SystemTime;

use crate::clock::boot_time;
use crate::ledger::row::{self, micros};

/// Smaller differences are the time between two clock readings. Smaller steps add up until they are noticed.
const LEAST: i64 = 500_000;

/// How far the wall clock is ahead of the time since boot, in microseconds, as the ends in the ledger have it.
pub(super) struct WallClock {
    ahead: i64,
}

/// A step of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// By so many microseconds; below 0: back.
    pub(super) by: i64,
    /// What it says now, in microseconds since 1970.
    now: i64,
}

impl WallClock {
    pub(super) fn new() -> Self {
        Self { ahead: ahead() }
    }

    /// The step that has not been followed yet.
    pub(super) fn step(&self) -> Option<Step> {
        let by = ahead().saturating_sub(self.ahead);
        (by.saturating_abs() >= LEAST).then(|| Step { by, now: micros(SystemTime::now()) })
    }

    /// The ends know of `step` now.
    pub(super) fn follow(&mut self, step: Step) {
        self.ahead = self.ahead.saturating_add(step.by);
    }

    /// The wall-clock time without the steps that were not followed yet.
    pub(super) fn now(&self) -> SystemTime {
        row::time(since_boot().saturating_add(self.ahead)).unwrap_or_else(SystemTime::now)
    }
}

impl Step {
    /// Converts `time`, read before the step, to the clock after it. Callers have waited for seconds at most, so that a time
    /// of the new clock is hardly older than now.
    pub(super) fn moved(self, time: SystemTime) -> SystemTime {
        let Self { by, now } = self;
        let at = micros(time);
        let is_new = match by > 0 {
            true => at > now.saturating_sub(by).saturating_add(NOTICED_WITHIN),
            false => at <= now && at > now.saturating_sub(NOTICED_WITHIN),
        };
        if is_new { time } else { row::time(at.saturating_add(by)).unwrap_or(time) }
    }
}

/// A step is noticed within this time.
const NOTICED_WITHIN: i64 = 3_000_000;

fn ahead() -> i64 {
    micros(SystemTime::now()).saturating_sub(since_boot())
}

fn since_boot() -> i64 {
    i64::try_from(boot_time().since_origin().as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_old_clock_times_move() {
        let at = |seconds: i64| row::time(seconds * 1_000_000).unwrap();
        let forward = Step { by: 7_200_000_000, now: 17_200_000_000 };
        assert_eq!(
            [at(9_999), at(9_000), at(17_199)].map(|time| forward.moved(time)),
            [at(17_199), at(16_200), at(17_199)]
        );
        let back = Step { by: -7_200_000_000, now: 10_000_000_000 };
        assert_eq!([at(17_199), at(9_999), at(9_000)].map(|time| back.moved(time)), [at(9_999), at(9_999), at(1_800)]);
    }

    #[test]
    fn unchanged_clock_has_no_step() {
        let clock = WallClock::new();
        assert_eq!(clock.step(), None);
        let apart = clock.now().duration_since(SystemTime::now()).unwrap_or_else(|error| error.duration());
        assert!(apart < Duration::from_secs(1), "{apart:?}");
        let set = WallClock { ahead: clock.ahead - 3_600_000_000 };
        let step = set.step().unwrap();
        assert!((step.by - 3_600_000_000).abs() < LEAST, "{step:?}");
    }
}
