//! Sources that have had a connection to a service of this host since before their first probe, and were never banned: more
//! closed ports are forgiven to them.

use std::time::Duration;

use crate::types::{BanTarget, Tick, Timestamp};

/// The number of distinct ports that is enough for a ban of such a source.
pub const PEER_THRESHOLD: u8 = 8;

/// The peers in order, each with the time since when its connection is known. The daemon bounds their number.
#[derive(Default)]
pub(super) struct KnownPeers(Vec<(BanTarget, Tick)>);

impl KnownPeers {
    /// Peers that have been known for so long at `now`.
    pub(super) fn new(now: Timestamp, peers: &[(BanTarget, Duration)]) -> Self {
        let since = |age: Duration| Timestamp::at(now.since_origin().saturating_sub(age)).tick();
        let mut peers: Vec<_> = peers.iter().map(|(peer, age)| (*peer, since(*age))).collect();
        peers.sort_unstable_by_key(|(peer, _)| *peer);
        Self(peers)
    }

    pub(super) fn contains(&self, subject: BanTarget) -> bool {
        self.0.binary_search_by_key(&subject, |(peer, _)| *peer).is_ok()
    }

    /// True where `subject` was connected before `first`, or in the same twentieth of a second.
    pub(super) fn was_connected(&self, subject: BanTarget, first: Tick) -> bool {
        let found = self.0.binary_search_by_key(&subject, |(peer, _)| *peer).ok();
        found.and_then(|place| self.0.get(place)).is_some_and(|(_, since)| *since <= first)
    }
}
