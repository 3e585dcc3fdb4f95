//! Tracks sources that had a connection to a service of this host before their first probe and were never banned. More
//! closed ports are forgiven to them.

use std::time::Duration;

use crate::types::{BanTarget, Tick, Timestamp};

/// The number of distinct ports that is enough for a ban of such a source.
pub const PEER_THRESHOLD: u8 = 8;

/// The peers, sorted, each with the time since which its connection is known. The daemon limits their number.
#[derive(Default)]
pub(super) struct KnownPeers(Vec<(BanTarget, Tick)>);

impl KnownPeers {
    /// Updates the peers with the age of their connections at `now`. A peer that was known before keeps its earlier
    /// time, so that a late message does not make a connection younger.
    pub(super) fn renewed(&self, now: Timestamp, peers: &[(BanTarget, Duration)]) -> Self {
        let since = |peer: BanTarget, age: Duration| {
            let known_since = Timestamp::at(now.since_origin().saturating_sub(age)).tick();
            self.since(peer).map_or(known_since, |before| before.min(known_since))
        };
        let mut peers: Vec<_> = peers.iter().map(|(peer, age)| (*peer, since(*peer, *age))).collect();
        peers.sort_unstable_by_key(|(peer, _)| *peer);
        Self(peers)
    }

    /// The peers whose connection is known since `before`.
    pub(super) fn since_before(&self, before: Tick) -> impl Iterator<Item = BanTarget> + '_ {
        self.0.iter().filter(move |(_, since)| *since <= before).map(|(peer, _)| *peer)
    }

    /// The time since which the connection of `target` is known, to a tick of 50 ms; `None` without a connection.
    pub(super) fn since(&self, target: BanTarget) -> Option<Tick> {
        let place = self.0.binary_search_by_key(&target, |(peer, _)| *peer).ok()?;
        self.0.get(place).map(|(_, since)| *since)
    }
}
