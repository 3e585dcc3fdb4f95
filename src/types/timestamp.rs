//! The engine's time: the duration since an origin that the caller chose. The engine never reads a clock.

use std::time::Duration;

use crate::types::Expiry;

/// A point in time, as the span since the caller's origin. The live sensor gives CLOCK_BOOTTIME since its start, so that
/// setting the clock neither stretches nor shortens a window; a replay gives the capture's own clock since its first packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// The origin.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The moment `since` after the origin.
    #[must_use]
    pub fn at(since: Duration) -> Self {
        Self(since)
    }

    /// How long since the origin.
    #[must_use]
    pub fn since_origin(self) -> Duration {
        self.0
    }

    /// The moment `span` later; saturates.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// Time from `earlier` to this moment; zero where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment in ticks, for the tables.
    pub(crate) fn tick(self) -> Tick {
        Tick::of(self.0).max(Tick(1))
    }
}

/// The moment so many seconds after the origin.
#[cfg(test)]
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::at(Duration::from_secs(seconds))
}

/// A moment or a span in units of 50 ms, which hold 6.8 years in 32 bits: that is what an entry of a table has room for.
/// Zero means "never" in a table, so a moment is at least 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(pub(crate) u32);

impl Tick {
    const MILLIS: u128 = 50;

    /// The end of what has none.
    pub(crate) const NEVER: Self = Self(u32::MAX);

    /// A span in ticks, rounded up so that no window comes out shorter than it was set; saturates.
    pub(crate) fn of(span: Duration) -> Self {
        Self(u32::try_from(span.as_millis().div_ceil(Self::MILLIS)).unwrap_or(u32::MAX))
    }

    pub(crate) fn plus(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// When what begins now and lasts for `expiry` is over; [`Tick::NEVER`] only where it never is.
    pub(crate) fn end(self, expiry: Expiry) -> Self {
        match expiry {
            Expiry::Never => Self::NEVER,
            Expiry::After(span) => Self(self.plus(Self::of(span)).0.min(Self::NEVER.0 - 1)),
        }
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * 50)
    }
}
