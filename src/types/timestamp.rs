//! Defines the engine's time, the duration since an origin that the caller chooses, and the duration of a ban. The
//! engine never reads a clock.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3_600);
pub const DAY: Duration = Duration::from_secs(86_400);

/// A point in time, as the duration since the caller's origin. The live sensor uses CLOCK_MONOTONIC since its start, so
/// that setting the clock does not change the length of a window. A replay uses the time of the capture since its first
/// packet. Saturates after 584 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    nanoseconds: u64,
}

impl Timestamp {
    /// The origin.
    pub const ZERO: Self = Self { nanoseconds: 0 };

    /// The point in time `since` after the origin.
    pub fn at(since: Duration) -> Self {
        Self { nanoseconds: nanoseconds(since) }
    }

    pub fn since_origin(self) -> Duration {
        Duration::from_nanos(self.nanoseconds)
    }

    /// The point in time `span` later; saturates.
    pub fn after(self, span: Duration) -> Self {
        Self { nanoseconds: self.nanoseconds.saturating_add(nanoseconds(span)) }
    }

    /// The duration from `earlier` to this point in time; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.nanoseconds.saturating_sub(earlier.nanoseconds))
    }

    /// The point in time in ticks, for the tables.
    pub(crate) fn tick(self) -> Tick {
        let ticks = self.nanoseconds.div_ceil(Tick::NANOSECONDS);
        Tick(u32::try_from(ticks).unwrap_or(u32::MAX)).max(Tick(1))
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The point in time this many seconds after the origin.
#[cfg(test)]
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::at(Duration::from_secs(seconds))
}

/// A point in time or a duration in units of 50 ms, so that 32 bits in a table entry hold 6.8 years. Zero means "never"
/// in a table, so a point in time is at least 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(pub(crate) u32);

impl Tick {
    const MILLIS: u32 = 50;
    const PER_SECOND: u64 = 1_000 / Self::MILLIS as u64;
    const NANOSECONDS: u64 = Self::MILLIS as u64 * 1_000_000;

    /// The end of a ban without end.
    pub(crate) const NEVER: Self = Self(u32::MAX);

    /// A duration in ticks; saturates. It is rounded up, so that no window is shorter than configured.
    pub(crate) fn ticks(span: Duration) -> Self {
        let fraction = span.subsec_millis().div_ceil(Self::MILLIS);
        let ticks = span.as_secs().saturating_mul(Self::PER_SECOND).saturating_add(fraction.into());
        Self(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    pub(crate) fn plus(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// The end of a ban that begins at `self` and lasts for `expiry`; [`Tick::NEVER`] only for a ban without end.
    pub(crate) fn end(self, expiry: Expiry) -> Self {
        match expiry {
            Expiry::Never => Self::NEVER,
            Expiry::After(span) => Self(self.plus(Self::ticks(span)).0.min(Self::NEVER.0 - 1)),
        }
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * 50)
    }
}

/// How long a ban lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expiry {
    /// Until an operator lifts the ban.
    Never,
    /// For this duration, at least one second.
    After(Duration),
}

impl Expiry {
    /// The duration; `None` if there is no end.
    pub fn span(self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::After(span) => Some(span),
        }
    }

    /// True if both have the same end, up to `tolerance`.
    pub fn is_about(self, other: Self, tolerance: Duration) -> bool {
        match (self, other) {
            (Self::After(one), Self::After(other)) => one.abs_diff(other) <= tolerance,
            (one, other) => one == other,
        }
    }

    /// The duration in seconds; `None` if there is no end.
    pub fn seconds(self) -> Option<u64> {
        self.span().map(|span| span.as_secs())
    }
}

impl From<Option<Duration>> for Expiry {
    fn from(span: Option<Duration>) -> Self {
        span.map_or(Self::Never, Self::After)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("ever"),
            Self::After(span) => humantime::format_duration(*span).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_rounded_up_and_bounded() {
        for (millis, ticks) in [(0, 0), (1, 1), (50, 1), (51, 2), (999, 20), (1_000, 20), (1_001, 21), (60_000, 1_200)]
        {
            assert_eq!(Tick::ticks(Duration::from_millis(millis)), Tick(ticks), "{millis} ms");
        }
        assert_eq!(Tick::ticks(Duration::MAX), Tick(u32::MAX));
    }

    #[test]
    fn day_has_format_of_classic_line() {
        assert_eq!(Expiry::After(Duration::from_secs(86_400)).to_string(), "1day");
        assert_eq!(Expiry::Never.to_string(), "ever");
    }
}
