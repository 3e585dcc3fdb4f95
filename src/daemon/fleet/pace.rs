//! Counts units taken within the last hour, with a resolution of a minute.

use std::collections::VecDeque;

use crate::types::Timestamp;

/// Numbers of units taken in the minutes of the last hour.
#[derive(Clone, Debug, Default)]
pub(super) struct HourCount {
    /// Minutes in which a unit was taken, oldest first, each with the number of units.
    minutes: VecDeque<(u64, u32)>,
}

impl HourCount {
    /// Takes one unit, unless `limit` units were taken within the last hour.
    pub(super) fn admit(&mut self, now: Timestamp, limit: u32) -> bool {
        let minute = self.expire(now);
        if self.minutes.iter().map(|(_, taken)| u64::from(*taken)).sum::<u64>() >= u64::from(limit) {
            return false;
        }
        match self.minutes.back_mut() {
            Some((last, taken)) if *last >= minute => *taken += 1,
            _ => self.minutes.push_back((minute, 1)),
        }
        true
    }

    /// True if no unit was taken within the last hour.
    pub(super) fn is_empty(&mut self, now: Timestamp) -> bool {
        self.expire(now);
        self.minutes.is_empty()
    }

    /// Drops the minutes that ended more than an hour ago; returns the current one.
    fn expire(&mut self, now: Timestamp) -> u64 {
        let minute = now.since_origin().as_secs() / 60;
        while self.minutes.front().is_some_and(|(first, _)| first + 60 < minute) {
            self.minutes.pop_front();
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
