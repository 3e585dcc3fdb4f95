//! Tracks exempt sources that probe this host. Each is reported once and summarised afterwards, so that the operator is
//! informed and the log does not fill.

use std::net::IpAddr;

use super::ban_table::SUMMARY;
use crate::types::Timestamp;

/// Maximum number of exempt sources that are summarised at one time.
const MAX_EXEMPT: usize = 64;

#[derive(Clone, Copy)]
struct ExemptSource {
    address: IpAddr,
    probes: u32,
    reported: Timestamp,
}

/// The exempt sources, oldest first.
pub(super) struct ExemptSources(Vec<ExemptSource>);

impl ExemptSources {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MAX_EXEMPT))
    }

    /// Counts one more probe by `address`; returns the number of probes since the last report if a report is due. A
    /// full list drops the oldest source, which is then reported again at its next probe.
    pub(super) fn count(&mut self, now: Timestamp, address: IpAddr) -> Option<u32> {
        let Some(entry) = self.0.iter_mut().find(|entry| entry.address == address) else {
            if self.0.len() == MAX_EXEMPT {
                self.0.remove(0);
            }
            self.0.push(ExemptSource { address, probes: 0, reported: now });
            return Some(1);
        };
        entry.probes = entry.probes.saturating_add(1);
        (now.since(entry.reported) >= SUMMARY).then(|| {
            entry.reported = now;
            std::mem::replace(&mut entry.probes, 0)
        })
    }
}
