//! Stores the ports that each source probed, with their times, in a table of fixed size.

use std::time::Duration;

use super::class::{Class, Grade};
use super::evidence::{Evidence, MAX_EVIDENCE, Ports};
use super::key::{HashKey, Hashed, TargetKey};
use super::table::{Claim, HashTable, OLDEST, Occupant, Row};
use crate::types::{Protocol, Tick};

/// The pace of a scanner is halved after each period of this length.
const PACE_PERIOD: Duration = Duration::from_secs(8);

/// How fast a source probes new ports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    ports: u16,
    /// Time of the last probe.
    pub(super) at: Tick,
}

impl Pace {
    /// Number of new ports, halved after each [`PACE_PERIOD`]. Each probe that hides its port counts as a new port.
    pub(super) fn ports(self, now: Tick) -> u16 {
        let period = Tick::ticks(PACE_PERIOD).0;
        self.ports.checked_shr((now.0 / period).saturating_sub(self.at.0 / period)).unwrap_or(0)
    }
}

/// A summary of the evidence against a source; `distinct` and `conclusive` count only what is within the window.
#[derive(Clone, Copy)]
pub(super) struct SourceSummary {
    pub(super) slot: usize,
    /// Distinct ports.
    pub(super) distinct: u8,
    /// True if the evidence includes a class that is enough on its own.
    pub(super) conclusive: bool,
    /// True if the ceilings withheld a ban of the source.
    pub(super) withheld: bool,
    /// Probes since the first, including repeated ports.
    pub(super) probes: u32,
    /// Time of the first probe.
    pub(super) first: Tick,
    /// Time of the last probe.
    pub(super) last: Tick,
}

/// The evidence against one source. The header shares a cache line with the first ports.
#[derive(Clone)]
#[repr(align(32))]
struct SourceEntry {
    key: TargetKey,
    first: Tick,
    last: Tick,
    /// At most [`u16::MAX`].
    probes: u16,
    /// See [`Pace`].
    new_ports: u16,
    /// Distinct ports as of the last probe: the number of valid elements of `evidence`; the others are stale.
    distinct: u8,
    /// The first probed address, folded; 0: not recorded yet.
    home: u16,
    /// True if the ceilings withheld a ban of this source.
    withheld: bool,
    evidence: [Evidence; MAX_EVIDENCE],
}

impl Row for SourceEntry {
    const EMPTY: Self = Self {
        key: TargetKey::NONE,
        first: Tick(0),
        last: Tick(0),
        probes: 0,
        new_ports: 0,
        distinct: 0,
        home: 0,
        withheld: false,
        evidence: [Evidence::NONE; MAX_EVIDENCE],
    };

    fn key(&self) -> TargetKey {
        self.key
    }

    fn assign(&mut self, key: TargetKey) {
        self.key = key;
        self.clear();
    }
}

impl SourceEntry {
    fn items(&self) -> &[Evidence] {
        self.evidence.get(..usize::from(self.distinct)).unwrap_or_default()
    }

    fn items_mut(&mut self) -> &mut [Evidence] {
        self.evidence.get_mut(..usize::from(self.distinct)).unwrap_or_default()
    }

    /// Drops all evidence. The next probe is the first.
    fn clear(&mut self) {
        (self.probes, self.new_ports, self.distinct, self.home, self.withheld) = (0, 0, 0, 0, false);
    }

    fn pace(&self) -> Pace {
        Pace { ports: self.new_ports, at: self.last }
    }

    /// A summary of this entry in `slot`; `evidence` is the part of it within the window.
    #[inline]
    fn summary(&self, slot: usize, mut evidence: impl Iterator<Item = Evidence> + Clone) -> SourceSummary {
        SourceSummary {
            slot,
            distinct: u8::try_from(evidence.clone().count()).unwrap_or(u8::MAX),
            conclusive: evidence.any(Evidence::is_conclusive),
            withheld: self.withheld,
            probes: self.probes.into(),
            first: self.first,
            last: self.last,
        }
    }

    /// The value of this entry compared with entries of other sources, for eviction.
    fn rank(&self) -> u8 {
        self.distinct.saturating_sub(1)
    }

    /// Drops the evidence for which `old` holds; the rest keeps its order.
    fn drop_where(&mut self, old: impl Fn(&Evidence) -> bool) {
        if !self.items().iter().any(&old) {
            return;
        }
        let before = self.evidence;
        let kept = before.iter().take(usize::from(self.distinct)).filter(|item| !old(item));
        let places = self.evidence.iter_mut().zip(kept);
        self.distinct = places.map(|(place, item)| *place = *item).fold(0, |count, ()| count + 1);
    }

    /// Adds `new` and drops evidence older than `window`; true if its port is new.
    fn add(&mut self, new: Evidence, now: Tick, window: Tick) -> bool {
        self.drop_where(|item| now.since(item.at()) > window);
        if let Some(item) = self.items_mut().iter_mut().find(|item| item.same_port(new)) {
            *item = item.renewed(new);
            return false;
        }
        if let Some(place) = self.evidence.get_mut(usize::from(self.distinct)) {
            *place = new;
            self.distinct += 1;
        } else if let Some(oldest) = self.evidence.iter_mut().min_by_key(|item| item.at()) {
            *oldest = new;
        }
        true
    }
}

/// The evidence against each source within the window.
pub(super) struct SourceTable {
    sources: HashTable<SourceEntry>,
    window: Tick,
    /// Number of sources whose evidence was evicted because the table was full.
    pub(super) evicted: u64,
}

impl SourceTable {
    pub(super) fn new(sources: usize, window: Duration, secret: HashKey) -> Self {
        Self { sources: HashTable::new(sources, secret), window: Tick::ticks(window), evicted: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.sources.used()
    }

    /// Faults in the memory of the next entries.
    pub(super) fn prepare(&mut self) {
        self.sources.prepare();
    }

    /// Changes the window from now on.
    pub(super) fn set_window(&mut self, window: Duration) {
        self.window = Tick::ticks(window);
    }

    /// Adds `new` to the evidence against `key`. A full bucket evicts a source whose window has passed; if there is
    /// none, the source with the fewest ports, and among equals the one that has been silent for the longest time.
    /// Returns the evidence against `key`, and true if the port is new within the window.
    pub(super) fn add(&mut self, key: Hashed, new: Evidence, now: Tick) -> (SourceSummary, bool) {
        let Self { sources, window, evicted: all_evicted } = self;
        let silent = |source: &SourceEntry| now.since(source.last) > *window;
        let worth = |occupant: Occupant<'_, SourceEntry>| match occupant.age {
            // If the window of any entry has passed, that of the oldest has: no other row needs to be read.
            OLDEST if silent(occupant.row) => 0,
            age => (u64::from(occupant.rank) + 1) << 8 | (OLDEST - age) as u64,
        };
        let slot = match sources.claim(key, worth) {
            Ok(slot) => slot,
            Err(Claim { slot, evicted }) => {
                *all_evicted += u64::from(evicted);
                slot
            }
        };
        let Some(source) = sources.get_mut(slot) else {
            return (SourceEntry::EMPTY.summary(slot, std::iter::empty()), false);
        };
        if source.probes == 0 || silent(source) {
            source.first = now;
            source.clear();
        }
        source.new_ports = source.pace().ports(now);
        source.last = now;
        source.probes = source.probes.saturating_add(1);
        let fresh = source.add(new, now, *window);
        source.new_ports = source.new_ports.saturating_add(u16::from(fresh || new.hides_port()));
        let (summary, rank) = (source.summary(slot, source.items().iter().copied()), source.rank());
        sources.rank(key, slot, rank);
        (summary, fresh)
    }

    pub(super) fn evidence(&self, slot: usize) -> impl Iterator<Item = Evidence> + Clone + '_ {
        self.sources.at(slot).map(SourceEntry::items).unwrap_or_default().iter().copied()
    }

    /// Time between the first and the last probe of the evidence in `slot`.
    pub(super) fn span(&self, slot: usize) -> Tick {
        let times = || self.evidence(slot).map(Evidence::at);
        times().max().unwrap_or(Tick(0)).since(times().min().unwrap_or(Tick(0)))
    }

    /// The evidence in `slot` that is within the window at `now`.
    pub(super) fn recent_evidence(&self, slot: usize, now: Tick) -> impl Iterator<Item = Evidence> + Clone + '_ {
        self.evidence(slot).filter(move |item| now.since(item.at()) <= self.window)
    }

    /// How fast the source in `slot` probes new ports.
    pub(super) fn pace(&self, slot: usize, now: Tick) -> Pace {
        self.sources.at(slot).map_or(Pace { ports: 0, at: now }, SourceEntry::pace)
    }

    /// The number of probes of the source in `slot`, at most [`u16::MAX`].
    pub(super) fn probes(&self, slot: usize) -> u32 {
        self.sources.at(slot).map_or(0, |source| source.probes.into())
    }

    /// Records that the ban of the source in `slot` is withheld; true the first time.
    pub(super) fn withhold(&mut self, slot: usize) -> bool {
        self.sources.get_mut(slot).is_some_and(|source| !std::mem::replace(&mut source.withheld, true))
    }

    /// Marks the evidence about this port as verified.
    pub(super) fn verify(&mut self, slot: usize, checked: Evidence) {
        let items = self.sources.get_mut(slot).map(SourceEntry::items_mut).unwrap_or_default();
        items.iter_mut().filter(|item| item.same_port(checked)).for_each(|item| *item = item.looked_up());
    }

    /// Removes the evidence against `key` about one port that turned out to be open.
    pub(super) fn withdraw_evidence(&mut self, key: Hashed, protocol: Protocol, port: u16) {
        let Some(slot) = self.sources.find(key) else { return };
        let Some(source) = self.sources.get_mut(slot) else { return };
        let open = Evidence::new(Tick(0), protocol, port, Class::Syn);
        // A NULL or XMAS probe remains evidence, even if the port is open.
        source.drop_where(|item| item.same_port(open) && !item.is_conclusive());
        let (left, rank) = (source.distinct, source.rank());
        if left == 0 {
            self.sources.remove(key);
        } else {
            self.sources.rank(key, slot, rank);
        }
    }

    /// Removes all evidence against `key`.
    pub(super) fn forget(&mut self, key: Hashed) {
        self.sources.remove(key);
    }

    /// True if the source in `slot` probed another address (folded) before `address`.
    pub(super) fn is_elsewhere(&mut self, slot: usize, address: u16) -> bool {
        let Some(source) = self.sources.get_mut(slot) else { return false };
        if source.home == 0 {
            source.home = address.max(1);
        }
        source.home != address.max(1)
    }

    /// The ports of the evidence in `slot`, including evidence that has left the window since the last probe.
    pub(super) fn ports(&self, slot: usize) -> Ports {
        Ports::collect(self.evidence(slot).filter_map(|item| Some((item.protocol()?, item.port(), item.class()?))))
    }

    /// Grade of the evidence in `slot`, if `forgiven` ports are forgiven to its source.
    pub(super) fn grade(&self, slot: usize, forgiven: u8) -> Grade {
        Grade::from_classes(self.evidence(slot).filter_map(Evidence::class), forgiven)
    }

    /// A summary of the evidence in `slot` at `now`; `None` if nothing is left of it.
    pub(super) fn summary(&self, slot: usize, now: Tick) -> Option<SourceSummary> {
        let summary = self.sources.at(slot)?.summary(slot, self.recent_evidence(slot, now));
        (summary.distinct > 0).then_some(summary)
    }

    /// A summary of the evidence against `key` at `now`; `None` if its window has passed.
    pub(super) fn summary_of(&self, key: Hashed, now: Tick) -> Option<SourceSummary> {
        self.summary(self.sources.find(key)?, now).filter(|summary| now.since(summary.last) <= self.window)
    }

    /// The evidence against `key` within the window.
    pub(super) fn within(&self, key: Hashed, now: Tick) -> impl Iterator<Item = Evidence> + '_ {
        self.sources.find(key).into_iter().flat_map(move |slot| self.recent_evidence(slot, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sources: usize) -> SourceTable {
        SourceTable::new(sources, Duration::from_secs(10), Hashed::SECRET)
    }

    fn syn(at: u32, port: u16) -> Evidence {
        Evidence::new(Tick(at), Protocol::Tcp, port, Class::Syn)
    }

    /// The number of distinct ports of source 1 within the window.
    fn distinct(suspects: &SourceTable, now: Tick) -> usize {
        suspects.within(Hashed::nth(1), now).count()
    }

    #[test]
    fn repeated_port_counts_once() {
        let mut suspects = table(8);
        for at in 1..100 {
            let (summary, fresh) = suspects.add(Hashed::nth(1), syn(at, 23), Tick(at));
            assert_eq!((summary.distinct, fresh, summary.probes), (1, at == 1, at));
        }
    }

    #[test]
    fn port_leaves_evidence_after_window() {
        let mut suspects = table(8);
        let ticks = Tick::ticks(Duration::from_secs(10)).0;
        let _ = suspects.add(Hashed::nth(1), syn(1, 23), Tick(1));
        assert_eq!(suspects.add(Hashed::nth(1), syn(ticks, 25), Tick(ticks)).0.distinct, 2);
        assert_eq!(
            suspects.add(Hashed::nth(1), syn(ticks + 2, 26), Tick(ticks + 2)).0.distinct,
            2,
            "the probe of 23 is too old"
        );
    }

    #[test]
    fn new_ports_displace_oldest() {
        let mut suspects = table(8);
        for port in 1..=40 {
            let _ = suspects.add(Hashed::nth(1), syn(u32::from(port), port), Tick(u32::from(port)));
        }
        let (summary, _) = suspects.add(Hashed::nth(1), syn(41, 99), Tick(41));
        assert_eq!(usize::from(summary.distinct), MAX_EVIDENCE);
        assert!(suspects.evidence(summary.slot).all(|item| item.port() > 25));
    }

    #[test]
    fn xmas_probe_of_open_port_remains_evidence() {
        let mut suspects = table(8);
        let _ = suspects.add(Hashed::nth(1), syn(1, 23), Tick(1));
        suspects.withdraw_evidence(Hashed::nth(1), Protocol::Tcp, 23);
        assert_eq!((distinct(&suspects, Tick(1)), suspects.len()), (0, 0));
        let xmas = Evidence::new(Tick(2), Protocol::Tcp, 23, Class::Xmas);
        let _ = suspects.add(Hashed::nth(1), xmas, Tick(2));
        suspects.withdraw_evidence(Hashed::nth(1), Protocol::Tcp, 23);
        assert_eq!(distinct(&suspects, Tick(2)), 1);
    }

    #[test]
    fn full_table_keeps_sources_with_most_ports() {
        let mut suspects = table(8);
        for at in 1..=3 {
            let _ = suspects.add(Hashed::nth(1), syn(at, u16::try_from(at).unwrap()), Tick(at));
        }
        for n in 2..200 {
            let _ = suspects.add(Hashed::nth(n), syn(n + 2, 23), Tick(n + 2));
        }
        assert_eq!(suspects.len(), 8);
        assert_eq!(distinct(&suspects, Tick(50)), 3, "two hundred new sources with one port each evict no such source");
    }

    #[test]
    fn pace_halves_every_period() {
        let mut sources = table(8);
        let second = |n: u32| Tick::ticks(Duration::from_secs(n.into()));
        let slot = (1..=40).map(|port| sources.add(Hashed::nth(1), syn(second(80).0, port), second(80)).0.slot).last();
        let pace = sources.pace(slot.unwrap(), second(80));
        assert_eq!([80, 87, 88, 96, 128, 80_000].map(|n| pace.ports(second(n))), [40, 40, 20, 10, 0, 0]);
        let _ = sources.add(Hashed::nth(1), syn(second(81).0, 40), second(81));
        assert_eq!(sources.pace(slot.unwrap(), second(81)).ports(second(81)), 40, "a repeated port is not new");
        let hidden = Evidence::new(second(82), Protocol::Tcp, 0, Class::Fragment);
        for _ in 0..5 {
            let _ = sources.add(Hashed::nth(1), hidden, second(82));
        }
        assert_eq!(sources.pace(slot.unwrap(), second(82)).ports(second(82)), 45, "each may be for another port");
    }
}
