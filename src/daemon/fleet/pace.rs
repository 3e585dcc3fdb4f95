//! Counts units taken within the last hour, with a resolution of a minute.

use std::collections::VecDeque;

use crate::types::Timestamp;

/// The minutes of the last hour in which units were taken, oldest first, each with their number.
#[derive(Clone, Debug, Default)]
pub(super) struct HourCount(VecDeque<(u64, u32)>);

impl HourCount {
    /// Takes one unit, unless `limit` units were taken within the last hour.
    pub(super) fn admit(&mut self, now: Timestamp, limit: u32) -> bool {
        let minute = self.turn(now);
        if self.0.iter().map(|(_, count)| u64::from(*count)).sum::<u64>() >= u64::from(limit) {
            return false;
        }
        match self.0.back_mut() {
            Some((last, count)) if *last == minute => *count += 1,
            _ => self.0.push_back((minute, 1)),
        }
        true
    }

    /// True if no unit was taken within the last hour.
    pub(super) fn is_empty(&mut self, now: Timestamp) -> bool {
        self.turn(now);
        self.0.is_empty()
    }

    /// Drops the minutes that have been over for an hour; returns the current one.
    fn turn(&mut self, now: Timestamp) -> u64 {
        let minute = now.since_origin().as_secs() / 60;
        while self.0.front().is_some_and(|(first, _)| first + 60 < minute) {
            self.0.pop_front();
        }
        minute
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::at;

    #[test]
    fn hourly_limit_renews_after_an_hour() {
        let mut count = HourCount::default();
        assert_eq!((0..100).filter(|_| count.admit(at(100), 30)).count(), 30);
        assert!(!count.admit(at(3_699), 30), "an hour has not passed");
        assert_eq!((0..100).filter(|_| count.admit(at(3_780), 30)).count(), 30);
        assert!(!count.is_empty(at(3_780)) && count.is_empty(at(1_000_000)));
    }

    proptest! {
        #[test]
        fn no_hour_exceeds_its_limit(steps in prop::collection::vec((0_u64..900, 0_usize..12), 1..80)) {
            let (mut count, mut now, mut taken) = (HourCount::default(), 0, Vec::new());
            for (wait, attempts) in steps {
                now += wait;
                (0..attempts).filter(|_| count.admit(at(now), 10)).for_each(|_| taken.push(now));
            }
            for end in &taken {
                let within = taken.iter().filter(|one| **one <= *end && end - **one < 3_600).count();
                prop_assert!(within <= 10, "{within} within an hour of {end}");
            }
        }
    }
}
