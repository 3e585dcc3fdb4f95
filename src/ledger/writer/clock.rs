//! Detects when the wall clock is set. The ledger uses wall-clock times, because they survive reboots; the kernel's
//! timers use the time since boot. If the two diverge while the program runs, the ends of bans in force must be
//! adjusted.

use std::time::SystemTime;

use crate::clock::boot_time;
use crate::ledger::row::{self, micros};

/// Smaller differences result from the time between the readings of the two clocks. Smaller steps of the clock
/// accumulate until they are detected.
const MIN_STEP: i64 = 500_000;

/// Difference between the wall clock and the time since boot, in microseconds, on which the ends in the ledger are
/// based.
pub(super) struct WallClock {
    ahead: i64,
}

/// A step of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClockStep {
    /// Size in microseconds; negative: back.
    pub(super) by: i64,
    /// Current wall-clock time, in microseconds since 1970.
    now: i64,
}

impl WallClock {
    pub(super) fn new() -> Self {
        Self { ahead: ahead() }
    }

    /// The step that has not been applied yet.
    pub(super) fn step(&self) -> Option<ClockStep> {
        let by = ahead().saturating_sub(self.ahead);
        (by.saturating_abs() >= MIN_STEP).then(|| ClockStep { by, now: micros(SystemTime::now()) })
    }

    /// Records that the ends were adjusted by `step`.
    pub(super) fn follow(&mut self, step: ClockStep) {
        self.ahead = self.ahead.saturating_add(step.by);
    }

    /// The wall-clock time without the steps that were not applied yet.
    pub(super) fn now(&self) -> SystemTime {
        row::time(since_boot().saturating_add(self.ahead))
    }
}

impl ClockStep {
    /// Converts `time`, read before the step, to the clock after it. Changes wait for seconds at most, so a time of the
    /// new clock is at most seconds old.
    pub(super) fn moved(self, time: SystemTime) -> SystemTime {
        let Self { by, now } = self;
        let at = micros(time);
        let is_new = match by > 0 {
            true => at > now.saturating_sub(by).saturating_add(NOTICED_WITHIN),
            false => at <= now && at > now.saturating_sub(NOTICED_WITHIN),
        };
        if is_new { time } else { row::time(at.saturating_add(by)) }
    }
}

/// Maximum time until a step is detected.
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
        let at = |seconds: i64| row::time(seconds * 1_000_000);
        let forward = ClockStep { by: 7_200_000_000, now: 17_200_000_000 };
        assert_eq!(
            [at(9_999), at(9_000), at(17_199)].map(|time| forward.moved(time)),
            [at(17_199), at(16_200), at(17_199)]
        );
        let back = ClockStep { by: -7_200_000_000, now: 10_000_000_000 };
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
        assert!((step.by - 3_600_000_000).abs() < MIN_STEP, "{step:?}");
    }
}
