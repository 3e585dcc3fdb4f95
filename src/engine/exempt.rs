//! Protected sources that probe this host: told once, then summed up, so that an operator learns of it and no log fills.

use std::net::IpAddr;

use super::ban_table::SUMMARY;
use crate::types::Timestamp;

/// Protected sources whose probes are summed up at one time.
const MAX_EXEMPT: usize = 64;

#[derive(Clone, Copy)]
struct ExemptSource {
    address: IpAddr,
    probes: u32,
    reported: Timestamp,
}

/// Who they are, the oldest first.
pub(super) struct ExemptSources(Vec<ExemptSource>);

impl ExemptSources {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(MAX_EXEMPT))
    }

    /// One more probe by `address`; how many there were since the last line about it, where a line is due now. Where there
    /// is no room, the oldest is forgotten, and told again at its next probe.
    pub(super) fn observe(&mut self, now: Timestamp, address: IpAddr) -> Option<u32> {
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
