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
    /// Peers that have been known for so long at `now`. One that was known before stays known since then: a late message makes
    /// no connection younger.
    pub(super) fn renewed(&self, now: Timestamp, peers: &[(BanTarget, Duration)]) -> Self {
        let since = |peer: BanTarget, age: Duration| {
            let told = Timestamp::at(now.since_origin().saturating_sub(age)).tick();
            self.since(peer).map_or(told, |before| before.min(told))
        };
        let mut peers: Vec<_> = peers.iter().map(|(peer, age)| (*peer, since(*peer, *age))).collect();
        peers.sort_unstable_by_key(|(peer, _)| *peer);
        Self(peers)
    }

    pub(super) fn contains(&self, target: BanTarget) -> bool {
        self.since(target).is_some()
    }

    /// True where `target` was connected before `first`, or in the same twentieth of a second.
    pub(super) fn was_connected(&self, target: BanTarget, first: Tick) -> bool {
        self.since(target).is_some_and(|since| since <= first)
    }

    /// The peers whose connection is known since `before`.
    pub(super) fn since_before(&self, before: Tick) -> impl Iterator<Item = BanTarget> + '_ {
        self.0.iter().filter(move |(_, since)| *since <= before).map(|(peer, _)| *peer)
    }

    fn since(&self, target: BanTarget) -> Option<Tick> {
        let place = self.0.binary_search_by_key(&target, |(peer, _)| *peer).ok()?;
        self.0.get(place).map(|(_, since)| *since)
    }
}
