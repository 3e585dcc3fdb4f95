//! Protected sources that probe this host: told once, then summed up, so that an operator learns of it and no log fills.

use std::net::IpAddr;

use super::moment::Moment;
use super::standing::SUMMARY;

/// Protected sources whose probes are summed up at one time.
const SPARED: usize = 64;

#[derive(Clone, Copy)]
struct SparedSource {
    address: IpAddr,
    probes: u32,
    reported: Moment,
}

/// Who they are, the oldest first.
pub(super) struct SparedSources(Vec<SparedSource>);

impl SparedSources {
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(SPARED))
    }

    /// One more probe by `address`; how many there were since the last line about it, where a line is due now. Where there
    /// is no room, the oldest is forgotten, and told again at its next probe.
    pub(super) fn observe(&mut self, now: Moment, address: IpAddr) -> Option<u32> {
        let Some(entry) = self.0.iter_mut().find(|entry| entry.address == address) else {
            if self.0.len() == SPARED {
                self.0.remove(0);
            }
            self.0.push(SparedSource { address, probes: 0, reported: now });
            return Some(1);
        };
        entry.probes = entry.probes.saturating_add(1);
        (now.since(entry.reported) >= SUMMARY).then(|| {
            entry.reported = now;
            std::mem::replace(&mut entry.probes, 0)
        })
    }
}
