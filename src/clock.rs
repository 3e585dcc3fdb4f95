//! Reads the clock for deadlines: CLOCK_MONOTONIC, which cannot be set. Like the kernel's timers of bans, it stands
//! still while the host is suspended. Also defines the text of wall-clock times.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::TimestampError;
use jiff::civil::{DateTime, date};
use rustix::time::{ClockId, clock_gettime};
use serde_with::{DeserializeFromStr, SerializeDisplay};

use crate::types::{Expiry, Timestamp};

/// 9999-12-31T23:59:59Z in seconds since 1970, the last second with a year of four digits.
const LAST_SECOND: u64 = 253_402_300_799;

/// The nearest time that `humantime` can format: years before 1970 and after 9999 make it panic. A ledger or a capture
/// file can contain any time.
pub fn printable_time(time: SystemTime) -> SystemTime {
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(LAST_SECOND))
}

/// The calendar time in UTC, to the second. A time outside of the years 1970 to 9999 is replaced with the nearest one.
pub fn utc(time: SystemTime) -> DateTime {
    let seconds = printable_time(time).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    date(1970, 1, 1).at(0, 0, 0, 0).saturating_add(Duration::from_secs(seconds))
}

/// A wall-clock time, whose text is RFC 3339 in UTC with microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub struct WallTime(pub SystemTime);

impl WallTime {
    /// The text without fractions of a second, for sentences: the remaining time of a ban is not known more precisely.
    pub fn without_fraction(self) -> impl fmt::Display {
        humantime::format_rfc3339_seconds(printable_time(self.0))
    }
}

impl Default for WallTime {
    fn default() -> Self {
        Self(UNIX_EPOCH)
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_micros(printable_time(self.0)).fmt(f)
    }
}

impl FromStr for WallTime {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        humantime::parse_rfc3339(text).map(Self)
    }
}

/// The end of a ban or an allowance that begins at `begin`. A time beyond the clock's range counts as no end.
pub fn end_time(expiry: impl Into<Expiry>, begin: SystemTime) -> Option<SystemTime> {
    begin.checked_add(expiry.into().span()?)
}

/// When a ban ends. `None`, printed as "never": it does not end by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SerializeDisplay, DeserializeFromStr)]
pub struct BanEnd(pub Option<WallTime>);

impl BanEnd {
    const NEVER: &str = "never";

    pub fn new(expiry: Expiry, begin: SystemTime) -> Self {
        end_time(expiry, begin).into()
    }
}

impl From<Option<SystemTime>> for BanEnd {
    fn from(end: Option<SystemTime>) -> Self {
        Self(end.map(WallTime))
    }
}

impl fmt::Display for BanEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(time) => time.fmt(f),
            None => f.write_str(Self::NEVER),
        }
    }
}

impl FromStr for BanEnd {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        if text == Self::NEVER { Ok(Self(None)) } else { text.parse().map(|time| Self(Some(time))) }
    }
}

/// Time since boot, without the time in which the host was suspended.
pub fn boot_time() -> Timestamp {
    Timestamp::at(Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_calendar_are_clamped() {
        let text = |time| WallTime(time).without_fraction().to_string();
        assert_eq!(text(UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00Z");
        assert_eq!(text(UNIX_EPOCH + Duration::from_secs(1 << 50)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn times_beyond_calendar_are_formatted() {
        let years = |count: u64| Duration::from_secs(count * 31_557_600);
        let text = |time| WallTime(time).to_string();
        assert_eq!(text(UNIX_EPOCH - years(292_000)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(text(UNIX_EPOCH + years(292_000)), "9999-12-31T23:59:59.000000Z");
        assert_eq!(text(UNIX_EPOCH + Duration::from_micros(1_795_242_733_123_456)), "2026-11-21T06:32:13.123456Z");
    }
}
