//! Decides whether a source has probed more ports than are forgiven to it. Related ports count as one. More ports are
//! forgiven to a source that had a connection to a service of this host before its first probe and was never banned.

use std::time::Duration;

use super::bans::Bans;
use super::host::Host;
use super::recent_ports::RECENT_USE;
use super::related_ports::{MAX_EXTRA, MAX_UNRELATED};
use super::sources::{SourceSummary, SourceTable};
use crate::types::{BanTarget, Tick, Timestamp};

/// The number of distinct ports that is enough for a ban of a connected source.
pub const PEER_THRESHOLD: u8 = 8;

/// Limits of the rules that excuse probes. The built-in values apply; the simulation varies one at a time to show that
/// each is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Time for which a port counts as open after it was in use; at most 68 years.
    pub recent: Duration,
    /// Maximum number of a source's ports that are forgiven because they are related to others.
    pub related: u8,
    /// Maximum number of unrelated ports with which every group of related ports of a source counts as one port. With
    /// more, or with `None`, only served groups do.
    pub unrelated: Option<u8>,
    /// Number of counting ports that is enough for a ban of a connected source; related ports count as one.
    pub peer_threshold: u8,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { recent: RECENT_USE, related: MAX_EXTRA, unrelated: Some(MAX_UNRELATED), peer_threshold: PEER_THRESHOLD }
    }
}

pub(super) struct Threshold {
    /// Number of forgiven distinct ports.
    pub(super) forgiven: u8,
    pub(super) bounds: Bounds,
    /// The connected sources, sorted, each with the time since which its connection is known. The daemon limits their
    /// number.
    peers: Vec<(BanTarget, Tick)>,
}

impl Threshold {
    pub(super) fn new(forgiven: u8) -> Self {
        Self { forgiven, bounds: Bounds::default(), peers: Vec::new() }
    }

    /// Replaces the connected sources; each comes with the age of its connection at `now`. A source that was known
    /// before keeps its earlier time, so that a late message does not make a connection younger.
    pub(super) fn set_peers(&mut self, now: Timestamp, peers: &[(BanTarget, Duration)]) {
        let since = |peer: BanTarget, age: Duration| {
            let known_since = Timestamp::at(now.since_origin().saturating_sub(age)).tick();
            self.connected_since(peer).map_or(known_since, |before| before.min(known_since))
        };
        let mut peers: Vec<_> = peers.iter().map(|(peer, age)| (*peer, since(*peer, *age))).collect();
        peers.sort_unstable_by_key(|(peer, _)| *peer);
        self.peers = peers;
    }

    /// The sources whose connection has been known since `before` or longer.
    pub(super) fn connected_before(&self, before: Tick) -> impl Iterator<Item = BanTarget> + '_ {
        self.peers.iter().filter(move |(_, since)| *since <= before).map(|(peer, _)| *peer)
    }

    /// The time since which the connection of `target` has been known, with a resolution of 50 ms; `None` without a
    /// connection.
    pub(super) fn connected_since(&self, target: BanTarget) -> Option<Tick> {
        let place = self.peers.binary_search_by_key(&target, |(peer, _)| *peer).ok()?;
        self.peers.get(place).map(|(_, since)| *since)
    }

    /// True if the ports of `summary` exceed the number that is forgiven to its source, `target`.
    #[inline]
    pub(super) fn is_exceeded(
        &self,
        target: BanTarget,
        summary: &SourceSummary,
        sources: &SourceTable,
        (bans, host): (&Bans, &Host),
        now: Tick,
    ) -> bool {
        if summary.distinct <= self.forgiven {
            return false;
        }
        let counting = self.counting(summary.slot, sources, host, now);
        counting > self.forgiven
            && (counting >= self.bounds.peer_threshold || !self.forgives_more(target, summary.first, bans, now))
    }

    /// Number of ports in `slot` that count; related ports, which one client tries together, count as one.
    pub(super) fn counting(&self, slot: usize, sources: &SourceTable, host: &Host, now: Tick) -> u8 {
        host.related.counting(sources.recent_evidence(slot, now), self.bounds.related, self.bounds.unrelated)
    }

    /// True if a connection to a service of this host lets `target`, whose first probe came at `first`, probe fewer
    /// than [`Bounds::peer_threshold`] ports without a ban.
    pub(super) fn forgives_more(&self, target: BanTarget, first: Tick, bans: &Bans, now: Tick) -> bool {
        self.connected_since(target).is_some_and(|since| since <= first) && bans.strikes_of(target, now) == 0
    }
}
