//! Stores the ports that each source probed, with their times, in a table of fixed size.

use std::time::Duration;

use super::class::Class;
use super::key::{HashKey, Hashed, Key};
use super::table::{Claim, OLDEST, Occupant, Row, Table};
use crate::types::{Protocol, Tick};

/// Distinct ports stored per source; the maximum of `scan_trigger` is one less.
pub const EVIDENCE: usize = 16;

/// One probed port: time, protocol, port and class, packed into 64 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Evidence(u64);

/// The pace of a scanner is halved after each period of this length.
const PACE_PERIOD: Duration = Duration::from_secs(8);

const VERIFIED: u64 = 0x80;
/// Its checksum could not be verified, so that its flags may be damaged.
const UNPROVEN: u64 = 0x40;
const CLASS: u8 = 0x3f;

impl Evidence {
    pub(super) fn new(at: Tick, protocol: Protocol, port: u16, class: Class) -> Self {
        Self(u64::from(at.0) << 32 | u64::from(port) << 16 | (protocol as u64) << 8 | class as u64)
    }

    pub(super) fn at(self) -> Tick {
        Tick((self.0 >> 32) as u32)
    }

    pub(super) fn port(self) -> u16 {
        let [_, _, low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    pub(super) fn protocol(self) -> Option<Protocol> {
        let [_, code, ..] = self.0.to_le_bytes();
        Protocol::from_code(code)
    }

    pub(super) fn class(self) -> Option<Class> {
        let [code, ..] = self.0.to_le_bytes();
        Class::from_code(code & CLASS)
    }

    /// Marks it as not enough for a ban on its own, regardless of its class.
    pub(super) fn unproven(self) -> Self {
        Self(self.0 | UNPROVEN)
    }

    /// Marks it as checked against the kernel's socket table.
    pub(super) fn verified(self) -> Self {
        Self(self.0 | VERIFIED)
    }

    pub(super) fn is_verified(self) -> bool {
        self.0 & VERIFIED != 0
    }

    pub(super) fn is_about(self, protocol: Protocol, port: u16) -> bool {
        self.protocol() == Some(protocol) && self.port() == port
    }

    /// True for a TCP segment whose port is hidden by fragmentation or by long extension headers.
    pub(super) fn hides_port(self) -> bool {
        self.port() == 0 && self.class() == Some(Class::Fragment)
    }

    fn same_port(self, other: Self) -> bool {
        (self.0 ^ other.0) & 0xffff_ff00 == 0
    }

    pub(super) fn is_conclusive(self) -> bool {
        self.0 & UNPROVEN == 0 && self.class().is_some_and(Class::is_conclusive)
    }
}

/// The evidence against a source after one more probe.
#[derive(Clone, Copy)]
pub(super) struct ProbeCount {
    pub(super) slot: usize,
    /// True if the port is new for this source within the window.
    pub(super) fresh: bool,
    /// True if the evidence of another source was evicted for it.
    pub(super) evicted: bool,
    /// True if the evidence includes a class that is enough on its own.
    pub(super) conclusive: bool,
    /// Distinct ports within the window.
    pub(super) distinct: u8,
    /// Probes since the first, including repeated ports.
    pub(super) probes: u32,
    pub(super) first: Tick,
}

/// How fast a source probes new ports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    ports: u16,
    /// Time of the last probe.
    pub(super) at: Tick,
}

impl Pace {
    /// New ports within the last seconds, of which older ones count less. Probes that hide their port are new.
    pub(super) fn ports(self, now: Tick) -> u16 {
        let period = Tick::ticks(PACE_PERIOD).0;
        self.ports.checked_shr((now.0 / period).saturating_sub(self.at.0 / period)).unwrap_or(0)
    }
}

/// A summary of the evidence against a source, for queries.
pub(super) struct SourceSummary {
    pub(super) slot: usize,
    pub(super) distinct: u8,
    pub(super) probes: u32,
    pub(super) first: Tick,
    /// Time since the last probe.
    pub(super) silent: Tick,
    /// True if the ceilings withheld a ban of the source.
    pub(super) withheld: bool,
}

/// The evidence against one source. The header shares a cache line with the first ports.
#[derive(Clone)]
#[repr(align(32))]
struct SourceEntry {
    key: Key,
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
    evidence: [Evidence; EVIDENCE],
}

impl Row for SourceEntry {
    const EMPTY: Self = Self {
        key: Key::NONE,
        first: Tick(0),
        last: Tick(0),
        probes: 0,
        new_ports: 0,
        distinct: 0,
        home: 0,
        withheld: false,
        evidence: [Evidence(0); EVIDENCE],
    };

    fn key(&self) -> Key {
        self.key
    }

    fn give(&mut self, key: Key) {
        self.key = key;
        self.clear();
    }
}

impl SourceEntry {
    fn held(&self) -> &[Evidence] {
        self.evidence.get(..usize::from(self.distinct)).unwrap_or_default()
    }

    fn held_mut(&mut self) -> &mut [Evidence] {
        self.evidence.get_mut(..usize::from(self.distinct)).unwrap_or_default()
    }

    /// Drops all evidence. The next probe is the first.
    fn clear(&mut self) {
        (self.probes, self.new_ports, self.distinct, self.home, self.withheld) = (0, 0, 0, 0, false);
    }

    fn pace(&self) -> Pace {
        Pace { ports: self.new_ports, at: self.last }
    }

    /// The value of this entry compared with entries of other sources, for eviction.
    fn rank(&self) -> u8 {
        self.distinct.saturating_sub(1)
    }

    /// Drops the evidence for which `old` holds; the rest keeps its order.
    fn drop_where(&mut self, old: impl Fn(&Evidence) -> bool) {
        if !self.held().iter().any(&old) {
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
        if let Some(item) = self.held_mut().iter_mut().find(|item| item.same_port(new)) {
            // The later time counts, and the conclusive one of the two classes.
            let class = if item.is_conclusive() { *item } else { new };
            let checked = item.0 & VERIFIED;
            item.0 = new.0 & !0xff | class.0 & 0x7f | checked;
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
    sources: Table<SourceEntry>,
    window: Tick,
}

impl SourceTable {
    pub(super) fn new(sources: usize, window: Duration, secret: HashKey) -> Self {
        Self { sources: Table::new(sources, secret), window: Tick::ticks(window) }
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
    pub(super) fn observe(&mut self, key: Hashed, new: Evidence, now: Tick) -> ProbeCount {
        let Self { sources, window } = self;
        let silent = |source: &SourceEntry| now.since(source.last) > *window;
        let worth = |occupant: Occupant<'_, SourceEntry>| match occupant.age {
            // If the window of any entry has passed, that of the oldest has: no other row needs to be read.
            OLDEST if silent(occupant.row) => 0,
            age => (u64::from(occupant.rank) + 1) << 8 | (OLDEST - age) as u64,
        };
        let (slot, evicted) = match sources.claim(key, worth) {
            Ok(slot) => (slot, false),
            Err(Claim { slot, evicted }) => (slot, evicted),
        };
        let Some(source) = sources.get_mut(slot) else {
            return ProbeCount { slot, fresh: false, evicted, conclusive: false, distinct: 0, probes: 0, first: now };
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
        let conclusive = source.held().iter().any(|item| item.is_conclusive());
        let distinct = source.distinct;
        let (probes, first) = (source.probes.into(), source.first);
        let tally = ProbeCount { slot, fresh, evicted, conclusive, distinct, probes, first };
        let rank = source.rank();
        sources.rank(key, slot, rank);
        tally
    }

    pub(super) fn evidence(&self, slot: usize) -> impl Iterator<Item = Evidence> + Clone + '_ {
        self.sources.at(slot).map(SourceEntry::held).unwrap_or_default().iter().copied()
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
        let held = self.sources.get_mut(slot).map(SourceEntry::held_mut).unwrap_or_default();
        held.iter_mut().filter(|item| item.same_port(checked)).for_each(|item| *item = item.verified());
    }

    /// Removes the evidence against `key` about one port that turned out to be open.
    pub(super) fn forgive(&mut self, key: Hashed, protocol: Protocol, port: u16) {
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

    /// Updates `tally` after some evidence was removed.
    pub(super) fn recount(&self, key: Hashed, tally: &mut ProbeCount, now: Tick) {
        tally.distinct = self.distinct(key, now);
        tally.conclusive = self.within(key, now).any(Evidence::is_conclusive);
    }

    /// A summary of the evidence against `key` at `now`; `None` if its window has passed.
    pub(super) fn held(&self, key: Hashed, now: Tick) -> Option<SourceSummary> {
        let slot = self.sources.find(key)?;
        let source = self.sources.get(slot)?;
        let silent = now.since(source.last);
        let distinct = self.distinct(key, now);
        (distinct > 0 && silent <= self.window).then_some(SourceSummary {
            slot,
            distinct,
            probes: source.probes.into(),
            first: source.first,
            silent,
            withheld: source.withheld,
        })
    }

    /// The number of distinct ports that `key` probed within the window.
    pub(super) fn distinct(&self, key: Hashed, now: Tick) -> u8 {
        u8::try_from(self.within(key, now).count()).unwrap_or(u8::MAX)
    }

    /// The evidence against `key` within the window.
    pub(super) fn within(&self, key: Hashed, now: Tick) -> impl Iterator<Item = Evidence> + '_ {
        let held = self.sources.row(key).map(SourceEntry::held).unwrap_or_default();
        held.iter().copied().filter(move |item| now.since(item.at()) <= self.window)
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

    #[test]
    fn repeated_port_counts_once() {
        let mut suspects = table(8);
        for at in 1..100 {
            let tally = suspects.observe(Hashed::nth(1), syn(at, 23), Tick(at));
            assert_eq!((tally.distinct, tally.fresh, tally.probes), (1, at == 1, at));
        }
    }

    #[test]
    fn port_leaves_evidence_after_window() {
        let mut suspects = table(8);
        let ticks = Tick::ticks(Duration::from_secs(10)).0;
        let _ = suspects.observe(Hashed::nth(1), syn(1, 23), Tick(1));
        assert_eq!(suspects.observe(Hashed::nth(1), syn(ticks, 25), Tick(ticks)).distinct, 2);
        assert_eq!(
            suspects.observe(Hashed::nth(1), syn(ticks + 2, 26), Tick(ticks + 2)).distinct,
            2,
            "the probe of 23 is too old"
        );
    }

    #[test]
    fn new_ports_displace_oldest() {
        let mut suspects = table(8);
        for port in 1..=40 {
            let _ = suspects.observe(Hashed::nth(1), syn(u32::from(port), port), Tick(u32::from(port)));
        }
        let tally = suspects.observe(Hashed::nth(1), syn(41, 99), Tick(41));
        assert_eq!(usize::from(tally.distinct), EVIDENCE);
        assert!(suspects.evidence(tally.slot).all(|item| item.port() > 25));
    }

    #[test]
    fn xmas_probe_of_open_port_remains_evidence() {
        let mut suspects = table(8);
        let _ = suspects.observe(Hashed::nth(1), syn(1, 23), Tick(1));
        suspects.forgive(Hashed::nth(1), Protocol::Tcp, 23);
        assert_eq!((suspects.distinct(Hashed::nth(1), Tick(1)), suspects.len()), (0, 0));
        let xmas = Evidence::new(Tick(2), Protocol::Tcp, 23, Class::Xmas);
        let _ = suspects.observe(Hashed::nth(1), xmas, Tick(2));
        suspects.forgive(Hashed::nth(1), Protocol::Tcp, 23);
        assert_eq!(suspects.distinct(Hashed::nth(1), Tick(2)), 1);
    }

    #[test]
    fn full_table_keeps_sources_with_most_ports() {
        let mut suspects = table(8);
        for at in 1..=3 {
            let _ = suspects.observe(Hashed::nth(1), syn(at, u16::try_from(at).unwrap()), Tick(at));
        }
        for n in 2..200 {
            let _ = suspects.observe(Hashed::nth(n), syn(n + 2, 23), Tick(n + 2));
        }
        assert_eq!(suspects.len(), 8);
        assert_eq!(
            suspects.distinct(Hashed::nth(1), Tick(50)),
            3,
            "two hundred new sources with one port each evict no such source"
        );
    }

    #[test]
    fn pace_halves_every_period() {
        let mut sources = table(8);
        let second = |n: u32| Tick::ticks(Duration::from_secs(n.into()));
        let slot =
            (1..=40).map(|port| sources.observe(Hashed::nth(1), syn(second(80).0, port), second(80)).slot).last();
        let pace = sources.pace(slot.unwrap(), second(80));
        assert_eq!([80, 87, 88, 96, 128, 80_000].map(|n| pace.ports(second(n))), [40, 40, 20, 10, 0, 0]);
        let _ = sources.observe(Hashed::nth(1), syn(second(81).0, 40), second(81));
        assert_eq!(sources.pace(slot.unwrap(), second(81)).ports(second(81)), 40, "a repeated port is not new");
        let hidden = Evidence::new(second(82), Protocol::Tcp, 0, Class::Fragment);
        for _ in 0..5 {
            let _ = sources.observe(Hashed::nth(1), hidden, second(82));
        }
        assert_eq!(sources.pace(slot.unwrap(), second(82)).ports(second(82)), 45, "each may be for another port");
    }

    #[test]
    fn evidence_reads_back_unchanged() {
        let item = Evidence::new(Tick(77), Protocol::Udp, 65_535, Class::Udp).verified();
        assert_eq!((item.at(), item.port()), (Tick(77), 65_535));
        assert_eq!((item.protocol(), item.class()), (Some(Protocol::Udp), Some(Class::Udp)));
        assert!(item.is_verified());
    }
}
