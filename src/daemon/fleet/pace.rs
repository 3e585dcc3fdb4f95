//! Counts units taken within the last hour, with a resolution of a minute.

use crate::types::Timestamp;

/// The minutes of an hour, and the current one.
const SLOTS: usize = 61;

/// Number of units taken in each of the last minutes.
#[derive(Clone, Debug)]
pub(super) struct HourCount {
    slots: [u32; SLOTS],
    /// Minute of the last change.
    minute: u64,
}

impl Default for HourCount {
    fn default() -> Self {
        Self { slots: [0; SLOTS], minute: 0 }
    }
}

impl HourCount {
    /// Takes one unit, unless `limit` units were taken within the last hour.
    pub(super) fn admit(&mut self, now: Timestamp, limit: u32) -> bool {
        self.turn(now);
        if self.sum() >= u64::from(limit) {
            return false;
        }
        let slot = slot(self.minute);
        if let Some(count) = self.slots.get_mut(slot) {
            *count += 1;
        }
        true
    }

    /// True if no unit was taken within the last hour.
    pub(super) fn is_empty(&mut self, now: Timestamp) -> bool {
        self.turn(now);
        self.sum() == 0
    }

    fn sum(&self) -> u64 {
        self.slots.iter().map(|count| u64::from(*count)).sum()
    }

    /// Clears the minutes since the last change.
    fn turn(&mut self, now: Timestamp) {
        let minute = now.since_origin().as_secs() / 60;
        let passed = minute.saturating_sub(self.minute).min(SLOTS as u64);
        for later in 1..=passed {
            if let Some(count) = self.slots.get_mut(slot(minute - passed + later)) {
                *count = 0;
            }
        }
        self.minute = self.minute.max(minute);
    }
}

fn slot(minute: u64) -> usize {
    usize::try_from(minute % SLOTS as u64).unwrap_or_default()
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
