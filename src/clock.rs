//! Reads the clock for deadlines: CLOCK_BOOTTIME, which includes suspended time and cannot be set.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::types::Timestamp;

/// 9999-12-31T23:59:59Z in seconds since 1970, the last second with a year of four digits.
pub const LAST_SECOND: u64 = 253_402_300_799;

/// Time since boot.
#[must_use]
pub fn boot_time() -> Timestamp {
    Timestamp::at(Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default())
}
