//! Reads the clock for deadlines: CLOCK_BOOTTIME, which includes suspended time and cannot be set.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::types::Timestamp;

/// Time since boot.
#[must_use]
pub fn boot_time() -> Timestamp {
    Timestamp::at(Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default())
}
