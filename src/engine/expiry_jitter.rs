//! Spreads the expiry of bans that begin together. Otherwise a flood of thousands of sources would be admitted again at
//! the same moment, and the kernel would remove all elements at once.

use std::time::Duration;

use super::key::{HashKey, TargetKey};
use crate::types::{MINUTE, Tick};

/// Number of bans per minute that is normal on a busy host; these last exactly as long as configured.
const MAX_UNJITTERED: usize = 32;

/// Jitter as one part of the duration: bans last at most 1/20 longer, short bans above the ceiling at most 1/10
/// shorter.
const LENGTHENING_DIVISOR: u64 = 20;
const SHORTENING_DIVISOR: u64 = 10;

/// Times of the last bans, and the hash key: with a known hash, an attacker could choose addresses whose bans end
/// together.
pub(super) struct ExpiryJitter {
    secret: HashKey,
    recent: [Tick; MAX_UNJITTERED],
    next: usize,
}

impl ExpiryJitter {
    pub(super) fn new(secret: HashKey) -> Self {
        Self { secret, recent: [Tick::default(); MAX_UNJITTERED], next: 0 }
    }

    /// Records one more ban; true if it is one of many.
    pub(super) fn is_one_of_many(&mut self, now: Tick) -> bool {
        let place = self.recent.get_mut(self.next);
        self.next = (self.next + 1) % MAX_UNJITTERED;
        let oldest = place.map_or(Tick::default(), |place| std::mem::replace(place, now));
        oldest != Tick::default() && now.since(oldest) < Tick::ticks(MINUTE)
    }

    /// `span` plus up to 5 %, in whole seconds.
    pub(super) fn longer(&self, span: Duration, key: TargetKey, now: Tick) -> Duration {
        span.saturating_add(self.share(span.as_secs() / LENGTHENING_DIVISOR, key, now))
    }

    /// `span` minus up to 10 %, in whole seconds.
    pub(super) fn shorter(&self, span: Duration, key: TargetKey, now: Tick) -> Duration {
        span.saturating_sub(self.share(span.as_secs() / SHORTENING_DIVISOR, key, now))
    }

    /// A number of seconds from 0 to `max`; always the same for the same ban.
    fn share(&self, max: u64, key: TargetKey, now: Tick) -> Duration {
        let scaled = (u128::from(key.hash_at(self.secret, now)) * (u128::from(max) + 1)) >> 64;
        Duration::from_secs(u64::try_from(scaled).unwrap_or(max))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::engine::key::Hashed;

    #[test]
    fn thirty_third_ban_in_minute_is_spread() {
        let mut spread = ExpiryJitter::new(HashKey(1, 2));
        let second = |n| Tick::ticks(Duration::from_secs(n));
        assert_eq!((0..40).position(|n| spread.is_one_of_many(second(100 + n))), Some(32));
        assert!(!spread.is_one_of_many(second(300)), "a minute later a ban is one of a few again");
        assert!((0..1_000).all(|n| !spread.is_one_of_many(second(1_000 + 2 * n))), "thirty per minute are a few");
    }

    #[test]
    fn expiries_are_spread_evenly_within_range() {
        let spread = ExpiryJitter::new(HashKey(3, 4));
        let key = |n| Hashed::nth(n).key;
        let (day, short) = (Duration::from_secs(86_400), Duration::from_secs(300));
        let longer: Vec<u64> = (0..4_000).map(|n| spread.longer(day, key(n), Tick(9)).as_secs() - 86_400).collect();
        let shorter: HashSet<u64> =
            (0..4_000).map(|n| 300 - spread.shorter(short, key(n), Tick(9)).as_secs()).collect();
        assert!(longer.iter().all(|more| *more <= 4_320));
        for part in 0..10 {
            let there = longer.iter().filter(|more| (part * 432..(part + 1) * 432).contains(*more)).count();
            assert!((320..480).contains(&there), "{there} of 4,000 in part {part} of 10");
        }
        assert_eq!(shorter, (0..=30).collect());
        assert_eq!(
            spread.longer(Duration::from_secs(19), key(1), Tick(1)).as_secs(),
            19,
            "the expiry is too short to spread"
        );
        assert_eq!(spread.longer(Duration::MAX, key(1), Tick(1)), Duration::MAX);
    }

    #[test]
    fn expiry_jitter_depends_on_secret() {
        let ends = |secret: u64, now: u32| {
            ExpiryJitter::new(HashKey(secret, 1)).longer(Duration::from_secs(864_000), Hashed::nth(7).key, Tick(now))
        };
        assert_eq!(ends(1, 5), ends(1, 5));
        assert!((2..12).any(|secret| ends(secret, 5) != ends(1, 5)));
        assert!((6..16).any(|now| ends(1, now) != ends(1, 5)));
    }
}
