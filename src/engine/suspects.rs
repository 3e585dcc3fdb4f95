//! Who touched which ports, and when: the evidence against each source, in a table of fixed size.

use std::time::Duration;

use super::class::{Class, Protocol};
use super::moment::Tick;
use super::table::{Buckets, Claim, HashKey, Key};

/// Distinct ports that are remembered of one source; the largest `scan_trigger` is one less.
pub const EVIDENCE: usize = 16;

/// One touched port: when, which, how. Packed into 64 bits; all zero is an empty place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Evidence(u64);

const VERIFIED: u64 = 0x80;

impl Evidence {
    pub(super) fn new(at: Tick, protocol: Protocol, port: u16, class: Class) -> Self {
        Self(u64::from(at.0) << 32 | u64::from(port) << 16 | (protocol as u64) << 8 | class as u64)
    }

    fn at(self) -> Tick {
        Tick((self.0 >> 32) as u32)
    }

    pub(super) fn port(self) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "bits 16 to 31 are the port")]
        {
            (self.0 >> 16) as u16
        }
    }

    pub(super) fn protocol(self) -> Option<Protocol> {
        let [_, code, ..] = self.0.to_le_bytes();
        Protocol::from_code(code)
    }

    pub(super) fn class(self) -> Option<Class> {
        let [code, ..] = self.0.to_le_bytes();
        Class::from_code(code & 0x7f)
    }

    /// Marks it as checked against the kernel's socket table.
    pub(super) fn verified(self) -> Self {
        Self(self.0 | VERIFIED)
    }

    pub(super) fn is_verified(self) -> bool {
        self.0 & VERIFIED != 0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn is_about(self, protocol: Protocol, port: u16) -> bool {
        self.protocol() == Some(protocol) && self.port() == port
    }

    fn same_port(self, other: Self) -> bool {
        (self.0 ^ other.0) & 0xffff_ff00 == 0
    }

    fn is_conclusive(self) -> bool {
        self.class().is_some_and(Class::is_conclusive)
    }
}

/// What is held against a source after one more probe.
#[derive(Clone, Copy)]
pub(super) struct Tally {
    pub(super) slot: usize,
    /// The port is new for this source within the window.
    pub(super) fresh: bool,
    /// Somebody else's evidence had to go for it.
    pub(super) evicted: bool,
    /// A class is among the evidence that is enough on its own.
    pub(super) conclusive: bool,
    /// Distinct ports within the window.
    pub(super) distinct: u8,
    /// Probes since the first, the same port again included.
    pub(super) probes: u32,
    pub(super) first: Tick,
}

/// What is held against a source, looked at from outside.
pub(super) struct Held {
    pub(super) slot: usize,
    pub(super) distinct: u8,
    pub(super) probes: u32,
    /// How long since the last probe.
    pub(super) silent: Tick,
}

/// The table.
pub(super) struct Suspects {
    keys: Buckets,
    evidence: Vec<[u64; EVIDENCE]>,
    /// First probe, last probe, number of probes, distinct ports.
    meta: Vec<[u32; 4]>,
    window: Tick,
}

impl Suspects {
    pub(super) fn new(sources: usize, window: Duration, secret: HashKey) -> Self {
        let keys = Buckets::new(sources, secret);
        let slots = keys.slots();
        Self { keys, evidence: vec![[0; EVIDENCE]; slots], meta: vec![[0; 4]; slots], window: Tick::of(window) }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.used()
    }

    /// Counts ports for another span from now on.
    pub(super) fn set_window(&mut self, window: Duration) {
        self.window = Tick::of(window);
    }

    /// Adds `new` to what is held against `key`. Where the table is full, the source with the fewest ports and the longest
    /// silence goes; one whose window has passed goes first.
    pub(super) fn observe(&mut self, key: Key, new: Evidence, now: Tick) -> Tally {
        let Self { keys, evidence, meta, window } = self;
        let worth = |slot: usize| match meta.get(slot) {
            Some([_, last, _, distinct]) if now.since(Tick(*last)) <= *window => {
                u64::from(*distinct) << 32 | u64::from(*last)
            }
            _ => 0,
        };
        let (slot, known, evicted) = match keys.claim(key, worth) {
            Ok(slot) => (slot, true, false),
            Err(Claim { slot, evicted }) => (slot, false, evicted),
        };
        let (Some(held), Some(meta)) = (evidence.get_mut(slot), meta.get_mut(slot)) else {
            return Tally { slot, fresh: false, evicted, conclusive: false, distinct: 0, probes: 0, first: now };
        };
        let [first, last, probes, distinct] = meta;
        if !known || now.since(Tick(*last)) > *window {
            *held = [0; EVIDENCE];
            (*first, *probes) = (now.0, 0);
        }
        *last = now.0;
        *probes = probes.saturating_add(1);
        let fresh = remember(held, new, now, *window);
        let inside = held.iter().map(|packed| Evidence(*packed)).filter(|item| !item.is_empty());
        *distinct = u32::try_from(inside.clone().count()).unwrap_or(0);
        Tally {
            slot,
            fresh,
            evicted,
            conclusive: inside.clone().any(Evidence::is_conclusive),
            distinct: u8::try_from(*distinct).unwrap_or(u8::MAX),
            probes: *probes,
            first: Tick(*first),
        }
    }

    /// The evidence in `slot`.
    pub(super) fn evidence(&self, slot: usize) -> impl Iterator<Item = Evidence> + '_ {
        let held = self.evidence.get(slot).into_iter().flatten();
        held.map(|packed| Evidence(*packed)).filter(|item| !item.is_empty())
    }

    /// Marks the evidence about this port as checked.
    pub(super) fn verify(&mut self, slot: usize, checked: Evidence) {
        let held = self.evidence.get_mut(slot).into_iter().flatten();
        held.filter(|packed| Evidence(**packed).same_port(checked))
            .for_each(|packed| *packed = Evidence(*packed).verified().0);
    }

    /// Takes back what is held against `key` about one port, because it turned out to be open.
    pub(super) fn forgive(&mut self, key: Key, protocol: Protocol, port: u16) {
        let Some(slot) = self.keys.find(key) else { return };
        let (Some(held), Some([_, _, _, distinct])) = (self.evidence.get_mut(slot), self.meta.get_mut(slot)) else {
            return;
        };
        let open = Evidence::new(Tick(0), protocol, port, Class::Syn);
        for packed in held.iter_mut() {
            // A NULL or XMAS probe stays one, whatever listens behind the port.
            let item = Evidence(*packed);
            if !item.is_empty() && item.same_port(open) && !item.is_conclusive() {
                *packed = 0;
                *distinct = distinct.saturating_sub(1);
            }
        }
        if held.iter().all(|packed| *packed == 0) {
            self.keys.remove(key);
        }
    }

    /// Forgets `key`.
    pub(super) fn forget(&mut self, key: Key) {
        self.keys.remove(key);
    }

    /// Brings `tally` up to date after some evidence was forgiven.
    pub(super) fn recount(&self, key: Key, tally: &mut Tally, now: Tick) {
        tally.distinct = self.distinct(key, now);
        tally.conclusive = self.evidence(tally.slot).any(Evidence::is_conclusive);
    }

    /// What is held against `key` at `now`; `None` once its window has passed.
    pub(super) fn held(&self, key: Key, now: Tick) -> Option<Held> {
        let slot = self.keys.find(key)?;
        let [_, last, probes, _] = *self.meta.get(slot)?;
        let silent = now.since(Tick(last));
        let distinct = self.distinct(key, now);
        (distinct > 0 && silent <= self.window).then_some(Held { slot, distinct, probes, silent })
    }

    /// How many distinct ports are held against `key` within the window.
    pub(super) fn distinct(&self, key: Key, now: Tick) -> u8 {
        u8::try_from(self.within(key, now).count()).unwrap_or(u8::MAX)
    }

    /// What is held against `key` within the window.
    pub(super) fn within(&self, key: Key, now: Tick) -> impl Iterator<Item = Evidence> + '_ {
        let held = self.keys.find(key).into_iter().flat_map(|slot| self.evidence(slot));
        held.filter(move |item| now.since(item.at()) <= self.window)
    }
}

/// Puts `new` among `held`, drops what is older than `window`; true where its port was not there yet.
fn remember(held: &mut [u64; EVIDENCE], new: Evidence, now: Tick, window: Tick) -> bool {
    let mut place = None;
    let mut oldest = (0, u32::MAX);
    let mut fresh = true;
    for (index, packed) in held.iter_mut().enumerate() {
        let item = Evidence(*packed);
        if item.is_empty() || now.since(item.at()) > window {
            *packed = 0;
            place = place.or(Some(index));
        } else if item.same_port(new) {
            // The later time counts, and of the two classes the one that says more.
            let class = if item.is_conclusive() { item } else { new };
            let checked = item.0 & VERIFIED;
            *packed = new.0 & !0xff | class.0 & 0x7f | checked;
            // What lies behind it may still be too old.
            fresh = false;
        } else if item.at().0 < oldest.1 {
            oldest = (index, item.at().0);
        }
    }
    if fresh && let Some(packed) = held.get_mut(place.unwrap_or(oldest.0)) {
        *packed = new.0;
    }
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::subject::Subject;

    fn table(sources: usize) -> Suspects {
        Suspects::new(sources, Duration::from_secs(10), HashKey(7, 9))
    }

    fn key(n: u32) -> Key {
        Key::new(Subject::V4(n.into()), 0)
    }

    fn syn(at: u32, port: u16) -> Evidence {
        Evidence::new(Tick(at), Protocol::Tcp, port, Class::Syn)
    }

    #[test]
    fn the_same_port_again_is_one_port() {
        let mut suspects = table(8);
        for at in 1..100 {
            let tally = suspects.observe(key(1), syn(at, 23), Tick(at));
            assert_eq!((tally.distinct, tally.fresh, tally.probes), (1, at == 1, at));
        }
    }

    #[test]
    fn a_port_leaves_the_evidence_when_its_window_has_passed() {
        let mut suspects = table(8);
        let ticks = Tick::of(Duration::from_secs(10)).0;
        let _ = suspects.observe(key(1), syn(1, 23), Tick(1));
        assert_eq!(suspects.observe(key(1), syn(ticks, 25), Tick(ticks)).distinct, 2);
        assert_eq!(suspects.observe(key(1), syn(ticks + 2, 26), Tick(ticks + 2)).distinct, 2, "23 is too old");
    }

    #[test]
    fn more_ports_than_there_is_room_push_out_the_oldest() {
        let mut suspects = table(8);
        for port in 1..=40 {
            let _ = suspects.observe(key(1), syn(u32::from(port), port), Tick(u32::from(port)));
        }
        let tally = suspects.observe(key(1), syn(41, 99), Tick(41));
        assert_eq!(usize::from(tally.distinct), EVIDENCE);
        assert!(suspects.evidence(tally.slot).all(|item| item.port() > 25));
    }

    #[test]
    fn what_turned_out_open_is_forgiven_but_an_xmas_probe_is_not() {
        let mut suspects = table(8);
        let _ = suspects.observe(key(1), syn(1, 23), Tick(1));
        suspects.forgive(key(1), Protocol::Tcp, 23);
        assert_eq!((suspects.distinct(key(1), Tick(1)), suspects.len()), (0, 0));
        let xmas = Evidence::new(Tick(2), Protocol::Tcp, 23, Class::Xmas);
        let _ = suspects.observe(key(1), xmas, Tick(2));
        suspects.forgive(key(1), Protocol::Tcp, 23);
        assert_eq!(suspects.distinct(key(1), Tick(2)), 1);
    }

    #[test]
    fn a_full_table_keeps_who_touched_most() {
        let mut suspects = table(8);
        for at in 1..=3 {
            let _ = suspects.observe(key(1), syn(at, u16::try_from(at).unwrap()), Tick(at));
        }
        for n in 2..200 {
            let _ = suspects.observe(key(n), syn(n + 2, 23), Tick(n + 2));
        }
        assert_eq!(suspects.len(), 8);
        assert_eq!(suspects.distinct(key(1), Tick(50)), 3, "two hundred newcomers with one port each do not matter");
    }

    #[test]
    fn evidence_gives_back_what_was_put_in() {
        let item = Evidence::new(Tick(77), Protocol::Udp, 65_535, Class::Udp).verified();
        assert_eq!((item.at(), item.port()), (Tick(77), 65_535));
        assert_eq!((item.protocol(), item.class()), (Some(Protocol::Udp), Some(Class::Udp)));
        assert!(item.is_verified());
    }
}
