//! Stores banned and log-only sources. The engine recognises their packets before any other inspection, counts them,
//! and reports the counts as summaries.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::class::Grade;
use super::key::{Brief, HashKey, Hashed, TargetKey};
use super::strikes::LAST_SECONDS;
use super::table::{Claim, HashTable, Row};
use crate::types::{BanTarget, Expiry, Protocol, Response, Tick};

/// A ban that the kernel should enforce now. `length` and `left` together restore it exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveBan {
    pub target: BanTarget,
    /// Duration of the whole ban; `None` if unknown or if the ban never expires. Stored in steps of 50 ms.
    pub length: Option<Duration>,
    /// Grade of the evidence; `None` without evidence or if unknown.
    pub grade: Option<Grade>,
    pub left: Expiry,
}

impl ActiveBan {
    /// A ban that begins now.
    pub fn new(target: BanTarget, expiry: Expiry) -> Self {
        Self { target, length: expiry.span(), grade: None, left: expiry }
    }
}

/// Interval between two summaries of the repeated packets of one source.
pub(super) const SUMMARY: Duration = Duration::from_secs(60);

/// Delay of the first summary. It is shorter, to show that the rest of a scan was blocked.
const FIRST_SUMMARY: Duration = Duration::from_secs(2);

/// Minimum interval between two checks that the kernel still blocks a source that keeps sending. An administrator or
/// another program may have removed the element.
const VERIFY_INTERVAL: Duration = Duration::from_secs(1);

/// Slots inspected per requested target of a sample: with 16 targets per call, a full round over 131,072 rows takes 32
/// calls, even if few rows are still bans.
const INSPECTED: usize = 256;

/// Maximum number of rows that are counted for every request, in about 10 µs. A larger table is counted once per tick,
/// so that requests cannot delay packets.
const MAX_COUNTED: usize = 8_192;

/// Maximum number of sources that wait for a summary. Further sources are summarised at their next packet.
const MAX_PENDING: usize = 1024;

/// State of one source. Fits in half a cache line, because every packet from a blocked source loads it.
#[derive(Clone)]
#[repr(align(32))]
struct BanEntry {
    key: Brief,
    until: Tick,
    /// Duration of the whole ban; 0 if unknown.
    length: Tick,
    /// Packets since the last summary.
    hits: u32,
    /// When the next summary is due.
    next: Tick,
    /// Time of the last check in the kernel.
    verified: Tick,
    grade: Option<Grade>,
}

impl Row for BanEntry {
    const EMPTY: Self = Self {
        key: Brief::NONE,
        until: Tick(0),
        length: Tick(0),
        hits: 0,
        next: Tick(0),
        verified: Tick(0),
        grade: None,
    };

    fn key(&self) -> TargetKey {
        self.key.key()
    }

    fn assign(&mut self, key: TargetKey) {
        *self = Self { key: Brief::from_key(key), ..Self::EMPTY };
    }
}

const _: () = assert!(size_of::<BanEntry>() == 32);

impl BanEntry {
    /// The ban, if this entry is a ban in force at `now`.
    fn ban(&self, now: Tick) -> Option<ActiveBan> {
        if !self.is_ban(now) {
            return None;
        }
        let length = Some(self.length).filter(|length| *length != Tick(0)).map(Tick::duration);
        Some(ActiveBan { target: self.key().target()?, length, grade: self.grade, left: self.left(now) })
    }

    /// True for a ban in force at `now`.
    fn is_ban(&self, now: Tick) -> bool {
        self.key.blocks() && self.until > now
    }

    fn left(&self, now: Tick) -> Expiry {
        match self.until {
            Tick::NEVER => Expiry::Never,
            until => Expiry::After(until.since(now).duration()),
        }
    }
}

/// A source that waits for a summary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pending {
    at: Tick,
    target: BanTarget,
    response: Response,
    /// The protocol of the first packet that the summary counts.
    protocol: Option<Protocol>,
}

/// Bans and log-only sources, each with its expiry.
pub(super) struct BanTable {
    entries: HashTable<BanEntry>,
    /// Unexpired bans on forgeable evidence.
    forgeable: u32,
    /// Their expiry times, including those of some bans that were lifted or replaced since. Holds up to twice the
    /// maximum number of bans.
    ends: BinaryHeap<Reverse<(Tick, TargetKey)>>,
    /// Slot where the next sample begins.
    cursor: usize,
    /// The last count of the bans in force, and its time.
    counted: (Tick, usize),
    pending: BinaryHeap<Reverse<Pending>>,
}

impl BanTable {
    pub(super) fn new(capacity: usize, max_forgeable: u32, secret: HashKey) -> Self {
        let ends = usize::try_from(max_forgeable).unwrap_or(usize::MAX).min(capacity).saturating_mul(2) + 2;
        Self {
            entries: HashTable::with_spare_index(capacity, secret),
            forgeable: 0,
            ends: BinaryHeap::with_capacity(ends),
            cursor: 0,
            counted: (Tick(0), 0),
            pending: BinaryHeap::with_capacity(MAX_PENDING),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.used()
    }

    /// Faults in the memory of the next entries.
    pub(super) fn prepare(&mut self) {
        self.entries.prepare();
    }

    /// Records that the source of `key` is only logged, from `now` on for `expiry`.
    pub(super) fn log_only(&mut self, key: Hashed, expiry: Expiry, now: Tick) {
        self.insert(key, None, expiry, Tick(0), now);
    }

    /// Adds `ban` for `key`, in force from `now` on.
    pub(super) fn block(&mut self, key: Hashed, ban: &ActiveBan, now: Tick) {
        let length = match (ban.length, ban.left) {
            // The remaining time never exceeds the whole duration.
            (Some(length), Expiry::After(left)) => Tick::ticks(length.max(left)),
            _ => Tick(0),
        };
        self.insert(key, ban.grade, ban.left, length, now);
    }

    /// Entries are evicted only from a full table: expired and log-only ones first. A ban in force is evicted only if
    /// all inspected rows are bans in force; the one that ends soonest goes first. Such a ban stays in the kernel, but
    /// is not restored after a flush, and its source is judged again.
    fn insert(&mut self, key: Hashed, grade: Option<Grade>, expiry: Expiry, length: Tick, now: Tick) {
        self.expire(now);
        self.count_off(key);
        let claim = self.entries.claim_beside(key, |row| row.until.0, |row| row.is_ban(now));
        let (Ok(slot) | Err(Claim { slot, .. })) = claim;
        if let Some(row) = self.entries.get_mut(slot) {
            let (until, next) = (now.end(expiry), now.plus(Tick::ticks(FIRST_SUMMARY)));
            *row = BanEntry { key: row.key, until, length, hits: 0, next, verified: now, grade };
            if grade == Some(Grade::Forgeable) {
                self.forgeable += 1;
                self.note_end(until, key.key);
            }
        }
    }

    /// The number of bans in force on forgeable evidence.
    pub(super) fn forgeable(&mut self, now: Tick) -> u32 {
        self.expire(now);
        self.forgeable
    }

    /// Removes expired bans from the count of forgeable ones.
    fn expire(&mut self, now: Tick) {
        while let Some(Reverse((until, key))) = self.ends.peek().copied() {
            if until > now {
                return;
            }
            self.ends.pop();
            let key = self.entries.hashed(key);
            if self.entries.row(key).is_some_and(|row| row.until == until) {
                self.count_off(key);
            }
        }
    }

    /// Removes the entry of `key` from the count of forgeable bans, if it is one.
    fn count_off(&mut self, key: Hashed) {
        if let Some(row) = self.entries.row_mut(key)
            && row.grade.take_if(|grade| *grade == Grade::Forgeable).is_some()
        {
            self.forgeable = self.forgeable.saturating_sub(1);
        }
    }

    /// Records the expiry time of the ban of `key`. If the heap is full, the times of bans that no longer exist are
    /// dropped; at least half of them are, so this is rare.
    fn note_end(&mut self, until: Tick, key: TargetKey) {
        if self.ends.len() == self.ends.capacity() {
            let entries = &self.entries;
            self.ends.retain(|Reverse((end, key))| {
                let row = entries.row(entries.hashed(*key));
                row.is_some_and(|row| row.until == *end && row.grade == Some(Grade::Forgeable))
            });
            // The table may have evicted some bans.
            self.forgeable = u32::try_from(self.ends.len()).unwrap_or(u32::MAX).saturating_add(1);
        }
        self.ends.push(Reverse((until, key)));
    }

    /// The slot of `key`, if a decision about it is in force at `now`.
    #[inline]
    pub(super) fn get(&self, key: Hashed, now: Tick) -> Option<usize> {
        let slot = self.entries.find(key)?;
        (self.entries.get(slot)?.until > now).then_some(slot)
    }

    /// Counts one more packet of the source in `slot`. Returns the number of packets since the last summary, if a
    /// summary is due now, and whether the caller should check that the ban is still in the kernel.
    pub(super) fn repeat(
        &mut self,
        slot: usize,
        (target, response, protocol): (BanTarget, Response, Option<Protocol>),
        now: Tick,
    ) -> (Option<u32>, bool) {
        let Some(row) = self.entries.get_mut(slot) else { return (None, false) };
        row.hits = row.hits.saturating_add(1);
        let due = now >= row.next;
        let report = due.then(|| std::mem::replace(&mut row.hits, 0));
        if due {
            row.next = now.plus(Tick::ticks(SUMMARY));
        } else if row.hits == 1 && self.pending.len() < MAX_PENDING {
            self.pending.push(Reverse(Pending { at: row.next, target, response, protocol }));
        }
        let verify = response == Response::Block && now.since(row.verified) >= Tick::ticks(VERIFY_INTERVAL);
        if verify {
            row.verified = now;
        }
        (report, verify)
    }

    /// Returns a due summary of a source that has stopped sending: its target, decision, protocol and number of
    /// packets.
    pub(super) fn due(&mut self, now: Tick) -> Option<(BanTarget, Response, Option<Protocol>, u32)> {
        while let Some(Reverse(Pending { at, target, response, protocol })) = self.pending.peek().copied() {
            if at > now {
                return None;
            }
            self.pending.pop();
            let key = self.entries.hashed(TargetKey::new(target, response));
            let Some(row) = self.entries.row_mut(key) else { continue };
            if row.hits > 0 && now >= row.next {
                row.next = now.plus(Tick::ticks(SUMMARY));
                return Some((target, response, protocol, std::mem::replace(&mut row.hits, 0)));
            }
        }
        None
    }

    /// Time of the next summary of a silent source.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.pending.peek().map(|Reverse(pending)| pending.at)
    }

    /// All bans in force at `now`.
    pub(super) fn blocked(&self, now: Tick) -> impl Iterator<Item = ActiveBan> + '_ {
        self.entries.iter().filter_map(move |row| row.ban(now))
    }

    /// The number of bans in force at `now`; for a large table the number at an earlier time in the same tick.
    pub(super) fn count(&mut self, now: Tick) -> usize {
        if self.entries.begun() <= MAX_COUNTED || self.counted.0 != now {
            self.counted = (now, self.entries.iter().filter(|row| row.is_ban(now)).count());
        }
        self.counted.1
    }

    /// The ban of `key`, if it is in force at `now`.
    pub(super) fn ban_of(&self, key: Hashed, now: Tick) -> Option<ActiveBan> {
        self.entries.row(key)?.ban(now)
    }

    /// Passes at most `n` banned targets to `out`, starting where the last call ended and wrapping around after the
    /// last slot. The run time is proportional to `n`, not to the table size; a nearly empty table therefore yields
    /// fewer targets.
    pub(super) fn sample(&mut self, now: Tick, n: usize, out: &mut impl FnMut(BanTarget)) {
        let slots = self.entries.begun();
        let mut wanted = if self.entries.used() == 0 { 0 } else { n };
        for _ in 0..n.saturating_mul(INSPECTED).min(slots) {
            if wanted == 0 {
                return;
            }
            let slot = if self.cursor < slots { self.cursor } else { 0 };
            self.cursor = slot + 1;
            // A ban about to expire may already be gone by the kernel's clock.
            if let Some(ActiveBan { target, left, .. }) = self.entries.at(slot).and_then(|row| row.ban(now))
                && !matches!(left, Expiry::After(left) if left <= LAST_SECONDS)
            {
                out(target);
                wanted -= 1;
            }
        }
    }

    /// The remaining time of the entry in `slot` at `now`.
    pub(super) fn left(&self, slot: usize, now: Tick) -> Expiry {
        self.entries.get(slot).map_or(Expiry::After(Duration::ZERO), |row| row.left(now))
    }

    /// Removes the entry of `key`; false if there is none.
    pub(super) fn lift(&mut self, key: Hashed) -> bool {
        self.count_off(key);
        self.entries.remove(key).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.forgeable = 0;
        self.ends.clear();
        self.pending.clear();
    }
}
