//! What the kernel could not hand over, because the ring was full.

use std::time::Duration;

use crate::capture::live::Live;
use crate::types::Timestamp;

/// How often it is asked.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Packets that were lost, by the captures that there have been.
#[derive(Debug, Default)]
pub(super) struct DropCounter {
    asked: Timestamp,
    /// Of the present capture, when it was asked last.
    before: u32,
    unsaid: u64,
}

impl DropCounter {
    /// How many were lost since the last time that there were any to tell of; nothing where it is too early to ask again.
    pub(super) fn due(&mut self, now: Timestamp, live: &mut Live) -> Option<u64> {
        if now.since(self.asked) < REPORT_INTERVAL {
            return None;
        }
        self.asked = now;
        self.count(live);
        Some(std::mem::take(&mut self.unsaid)).filter(|packets| *packets > 0)
    }

    /// Another capture takes the place of this one; what this one has lost is told of next time.
    pub(super) fn replace(&mut self, live: &mut Live) {
        self.count(live);
        self.before = 0;
    }

    fn count(&mut self, live: &mut Live) {
        // Where it does not say, it does so the next time.
        if let Ok(dropped) = live.dropped() {
            self.unsaid += u64::from(dropped.wrapping_sub(self.before));
            self.before = dropped;
        }
    }
}
