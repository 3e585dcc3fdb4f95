//! Counts the packets that the kernel dropped because the ring buffer was full.

use std::time::Duration;

use crate::capture::live::Live;
use crate::types::Timestamp;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Drops of the current capture and of earlier ones.
#[derive(Debug, Default)]
pub(super) struct DropCounter {
    read_at: Timestamp,
    /// Value of the current capture's counter at the last reading.
    last: u32,
    unreported: u64,
}

impl DropCounter {
    /// Returns the packets dropped since the last report, if any; reads the counter once per [`REPORT_INTERVAL`].
    pub(super) fn due(&mut self, now: Timestamp, live: &mut Live) -> Option<u64> {
        if now.since(self.read_at) < REPORT_INTERVAL {
            return None;
        }
        self.read_at = now;
        self.read(live);
        Some(std::mem::take(&mut self.unreported)).filter(|packets| *packets > 0)
    }

    /// Reads the counter of a capture that is about to be replaced.
    pub(super) fn replace(&mut self, live: &mut Live) {
        self.read(live);
        self.last = 0;
    }

    fn read(&mut self, live: &mut Live) {
        // After an error, the next reading includes these drops.
        if let Ok(dropped) = live.dropped() {
            self.unreported += u64::from(dropped.wrapping_sub(self.last));
            self.last = dropped;
        }
    }
}
