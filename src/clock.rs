//! The clock of everything that has a deadline: CLOCK_BOOTTIME counts suspended time, and nothing can set it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::types::Timestamp;

/// Time since boot.
#[must_use]
pub fn boot_time() -> Timestamp {
    Timestamp::at(Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default())
}
