//! Reads the clock for deadlines: CLOCK_MONOTONIC, which cannot be set. Like the kernel's timers of bans, it stands
//! still while the host is suspended. Also limits wall-clock times to those that can be printed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::types::Timestamp;

/// 9999-12-31T23:59:59Z in seconds since 1970, the last second with a year of four digits.
const LAST_SECOND: u64 = 253_402_300_799;

/// The nearest time that `humantime` can format: years before 1970 and after 9999 make it panic. A ledger or a capture
/// file can contain any time.
pub fn printable_time(time: SystemTime) -> SystemTime {
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(LAST_SECOND))
}

/// Time since boot, without the time in which the host was suspended.
pub fn boot_time() -> Timestamp {
    Timestamp::at(Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default())
}
