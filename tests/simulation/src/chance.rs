//! Provides seeded randomness. Every actor has a generator derived from the seed, a name and an index, so that its
//! behaviour does not depend on the draws of other actors.

use std::hash::Hasher as _;
use std::time::Duration;

use siphasher::sip::SipHasher13;

/// A random generator with the draws that actors need.
pub struct Chance(fastrand::Rng);

impl Chance {
    /// Creates the generator of the actor `name` number `index` under `seed`.
    #[must_use]
    pub fn new(seed: u64, name: &str, index: u64) -> Self {
        let mut hasher = SipHasher13::new_with_keys(seed, index);
        hasher.write(name.as_bytes());
        Self(fastrand::Rng::with_seed(hasher.finish()))
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: u32) -> u32 {
        self.0.u32(0..end.max(1))
    }

    /// One of `items`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.0.usize(0..items.len())]
    }

    /// True with this probability.
    pub fn is(&mut self, probability: f64) -> bool {
        self.0.f64() < probability
    }

    /// A time between `least` and `most`, evenly distributed.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.0.f64())
    }

    /// The time until the next of independent events with the average interval `mean`.
    pub fn after(&mut self, mean: Duration) -> Duration {
        // 1 - f64 is never zero.
        mean.mul_f64(-(1.0 - self.0.f64()).ln())
    }

    /// A port that Linux gives to clients by default (net.ipv4.ip_local_port_range).
    pub fn client_port(&mut self) -> u16 {
        self.0.u16(32_768..=60_999)
    }

    /// Any port except 0.
    pub fn port(&mut self) -> u16 {
        self.0.u16(1..)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        self.0.shuffle(items);
    }

    /// The key of the engine's hash tables.
    pub fn key(&mut self) -> (u64, u64) {
        (self.0.u64(..), self.0.u64(..))
    }
}

pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

pub const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3_600)
}

pub const fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}
