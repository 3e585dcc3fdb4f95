//! Converts the times of a capture to the engine's [`Timestamp`]. Captures may come from several interfaces, be merged
//! or be damaged, so their times may step back a little, jump or restart.

use std::time::Duration;

use crate::types::{DAY, MINUTE, Timestamp};

/// Maximum disorder of packets from several interfaces and cores. A larger step back means another clock; the time then
/// continues from there.
const MAX_DISORDER: Duration = MINUTE;

/// Longest gap; a longer one counts as this. No evidence lasts as long, and one damaged time must not use up the 6.8
/// years that the engine can count.
const LARGEST_GAP: Duration = DAY.saturating_mul(60);

/// The clock of a capture.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Option<Duration>,
    now: Duration,
}

impl Clock {
    /// Returns the time of a frame that was captured at `time`. Never decreases.
    pub fn tick(&mut self, time: Duration) -> Timestamp {
        let last = *self.last.get_or_insert(time);
        if time >= last {
            self.now = self.now.saturating_add((time - last).min(LARGEST_GAP));
            self.last = Some(time);
        } else if last - time > MAX_DISORDER {
            self.last = Some(time);
        }
        self.now()
    }

    /// The time of the last frame.
    pub fn now(&self) -> Timestamp {
        Timestamp::at(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(times: &[u64]) -> Vec<u64> {
        let mut clock = Clock::default();
        times.iter().map(|time| clock.tick(Duration::from_secs(*time)).since_origin().as_secs()).collect()
    }

    #[test]
    fn first_frame_is_time_origin() {
        assert_eq!(run(&[1_000, 1_010, 1_009, 1_010, 1_009, 1_010, 1_020]), [0, 10, 10, 10, 10, 10, 20]);
    }

    #[test]
    fn damaged_time_does_not_stop_clock() {
        let gap = LARGEST_GAP.as_secs();
        assert_eq!(run(&[1_000, 4_000_000_000, 1_001, 1_011]), [0, gap, gap, gap + 10]);
        assert_eq!(run(&[1_000, 0, 5]), [0, 0, 5]);
    }
}
