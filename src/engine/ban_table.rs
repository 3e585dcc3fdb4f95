//! The table of sources that are banned, or only logged: the engine recognises their packets before it inspects anything
//! else, counts them, and reports the count as a summary.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::grade::Grade;
use super::key::{Brief, HashKey, Hashed, Key, Track};
use super::strikes::LAST_SECONDS;
use super::table::{Claim, Row, Table};
use crate::types::{BanTarget, Expiry, Tick};

/// What the engine has decided about a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The kernel blocks it.
    Blocked,
    /// It would be blocked, but its protocol is only logged.
    Logged,
}

/// A ban that the kernel is to enforce now. Both times together put it back exactly as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveBan {
    /// The target of the ban.
    pub target: BanTarget,
    /// The duration of the whole ban; `None` where it is unknown, and for a ban without an end. Stored in steps of 50 ms.
    pub length: Option<Duration>,
    /// How far its evidence can be trusted; `None` without evidence, or where that is not known.
    pub grade: Option<Grade>,
    /// The remaining time.
    pub left: Expiry,
}

impl ActiveBan {
    /// The whole of a ban that begins now.
    #[must_use]
    pub fn whole(target: BanTarget, expiry: Expiry) -> Self {
        let length = match expiry {
            Expiry::Never => None,
            Expiry::After(span) => Some(span),
        };
        Self { target, length, grade: None, left: expiry }
    }
}

/// The interval between two summaries of the repeated packets of one source.
pub(super) const SUMMARY: Duration = Duration::from_secs(60);

/// The first summary comes sooner: it shows that the rest of a scan ran into the ban.
const FIRST_SUMMARY: Duration = Duration::from_secs(2);

/// The shortest interval between two checks that the kernel still blocks a source that goes on sending: any administrator
/// or program can have removed the element.
const VERIFY: Duration = Duration::from_secs(1);

/// Slots that are inspected for each target of a sample: with sixteen at a time, a full round of a table of 131,072 rows
/// takes 32 calls, however few of them are still bans.
const INSPECTED: usize = 256;

/// Sources that can wait for a summary at one time. The summary of any more comes with their next packet.
const MAX_PENDING: usize = 1024;

/// The result of one more packet from a source in the table.
pub(super) struct Repeat {
    /// Packets since the last summary, where a summary is due now.
    pub(super) report: Option<u32>,
    /// The caller should check that the ban is still in the kernel.
    pub(super) verify: bool,
}

/// The state of one source: half a cache line, which every packet from a blocked source has to load.
#[derive(Clone)]
#[repr(align(32))]
struct BanEntry {
    key: Brief,
    until: Tick,
    /// The duration of the whole ban; 0 where it is unknown.
    length: Tick,
    /// Packets since the last summary.
    hits: u32,
    /// When the next summary is due.
    next: Tick,
    /// When the kernel was last asked about the ban.
    verified: Tick,
    standing: Standing,
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
        standing: Standing::Logged,
        grade: None,
    };

    fn key(&self) -> Key {
        self.key.key()
    }

    fn give(&mut self, key: Key) {
        *self = Self { key: Brief::from_key(key), ..Self::EMPTY };
    }
}

const _: () = assert!(size_of::<BanEntry>() == 32);

impl BanEntry {
    /// The ban, if the entry is one that is in force at `now`.
    fn ban(&self, now: Tick) -> Option<ActiveBan> {
        if self.standing != Standing::Blocked || self.until <= now {
            return None;
        }
        let length = Some(self.length).filter(|length| *length != Tick(0)).map(Tick::duration);
        Some(ActiveBan { target: self.key().target()?, length, grade: self.grade, left: self.left(now) })
    }

    fn left(&self, now: Tick) -> Expiry {
        match self.until {
            Tick::NEVER => Expiry::Never,
            until => Expiry::After(until.since(now).duration()),
        }
    }
}

/// Bans and logged sources, each with its expiry.
pub(super) struct BanTable {
    entries: Table<BanEntry>,
    /// Entries of bans on forgeable evidence that have not expired.
    forgeable: u32,
    /// When each of them ends; also of some that were lifted or replaced since. Twice as large as there may be bans.
    ends: BinaryHeap<Reverse<(Tick, Key)>>,
    /// The slot where the next sample begins.
    cursor: usize,
    pending: BinaryHeap<Reverse<(Tick, BanTarget, Track)>>,
}

impl BanTable {
    pub(super) fn new(capacity: usize, max_forgeable: u32, secret: HashKey) -> Self {
        let ends = usize::try_from(max_forgeable).unwrap_or(usize::MAX).min(capacity).saturating_mul(2) + 2;
        Self {
            entries: Table::with_spare_index(capacity, secret),
            forgeable: 0,
            ends: BinaryHeap::with_capacity(ends),
            cursor: 0,
            pending: BinaryHeap::with_capacity(MAX_PENDING),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.used()
    }

    /// Touches the memory of the next entries.
    pub(super) fn prepare(&mut self) {
        self.entries.prepare();
    }

    /// Sets the decision about `key` from `now` on, for `expiry`. No entry is evicted before the table is full. Then expired
    /// and logged ones go first, and a ban in force only where all inspected rows are bans in force, the one that ends soonest
    /// first: it stays in the kernel, but is not put back after a flush, and its source is judged again.
    pub(super) fn set(&mut self, key: Hashed, standing: Standing, expiry: Expiry, now: Tick) {
        self.insert(key, (standing, None), expiry, Tick(0), now);
    }

    /// Adds `ban` for `key`, in force from `now` on.
    pub(super) fn block(&mut self, key: Hashed, ban: &ActiveBan, now: Tick) {
        let length = match (ban.length, ban.left) {
            // The remaining time is never longer than the whole.
            (Some(length), Expiry::After(left)) => Tick::of(length.max(left)),
            _ => Tick(0),
        };
        self.insert(key, (Standing::Blocked, ban.grade), ban.left, length, now);
    }

    fn insert(
        &mut self,
        key: Hashed,
        (standing, grade): (Standing, Option<Grade>),
        expiry: Expiry,
        length: Tick,
        now: Tick,
    ) {
        self.expire(now);
        self.count_off(key);
        let stands = |row: &BanEntry| row.standing == Standing::Blocked && row.until > now;
        let (Ok(slot) | Err(Claim { slot, .. })) = self.entries.claim_beside(key, |row| row.until.0, stands);
        if let Some(row) = self.entries.get_mut(slot) {
            let (until, next) = (now.end(expiry), now.plus(Tick::of(FIRST_SUMMARY)));
            *row = BanEntry { key: row.key, until, length, hits: 0, next, verified: now, standing, grade };
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

    /// Counts the forgeable bans off that have ended.
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

    /// Counts the entry of `key` off, if it is one of a forgeable ban.
    fn count_off(&mut self, key: Hashed) {
        if let Some(row) = self.entries.row_mut(key)
            && row.grade.take_if(|grade| *grade == Grade::Forgeable).is_some()
        {
            self.forgeable = self.forgeable.saturating_sub(1);
        }
    }

    /// Notes when the ban of `key` ends. Where there is no room, the ends of bans that are no more are dropped: at least half of
    /// them, so that this is rare.
    fn note_end(&mut self, until: Tick, key: Key) {
        if self.ends.len() == self.ends.capacity() {
            let entries = &self.entries;
            self.ends.retain(|Reverse((end, key))| {
                let row = entries.row(entries.hashed(*key));
                row.is_some_and(|row| row.until == *end && row.grade == Some(Grade::Forgeable))
            });
            // The table may have evicted some.
            self.forgeable = u32::try_from(self.ends.len()).unwrap_or(u32::MAX).saturating_add(1);
        }
        self.ends.push(Reverse((until, key)));
    }

    /// The slot of `key` and the decision about it, where that is in force at `now`.
    #[inline]
    pub(super) fn get(&self, key: Hashed, now: Tick) -> Option<(usize, Standing)> {
        let slot = self.entries.find(key)?;
        let row = self.entries.get(slot)?;
        (row.until > now).then_some((slot, row.standing))
    }

    /// Counts one more packet of the source in `slot`.
    pub(super) fn repeat(&mut self, slot: usize, standing: Standing, source: (BanTarget, Track), now: Tick) -> Repeat {
        let Some(row) = self.entries.get_mut(slot) else {
            return Repeat { report: None, verify: false };
        };
        row.hits = row.hits.saturating_add(1);
        let due = now >= row.next;
        let report = due.then(|| std::mem::replace(&mut row.hits, 0));
        if due {
            row.next = now.plus(Tick::of(SUMMARY));
        } else if row.hits == 1 && self.pending.len() < MAX_PENDING {
            self.pending.push(Reverse((row.next, source.0, source.1)));
        }
        let verify = standing == Standing::Blocked && now.since(row.verified) >= Tick::of(VERIFY);
        if verify {
            row.verified = now;
        }
        Repeat { report, verify }
    }

    /// The next summary that is due of a source that has stopped sending: the source and its number of packets.
    pub(super) fn due(&mut self, now: Tick) -> Option<(BanTarget, Standing, u32)> {
        while let Some(Reverse((at, target, track))) = self.pending.peek().copied() {
            if at > now {
                return None;
            }
            self.pending.pop();
            let key = self.entries.hashed(Key::new(target, track));
            let Some(row) = self.entries.row_mut(key) else { continue };
            if row.hits > 0 && now >= row.next {
                row.next = now.plus(Tick::of(SUMMARY));
                return Some((target, row.standing, std::mem::replace(&mut row.hits, 0)));
            }
        }
        None
    }

    /// When the next summary of a silent source is due.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.pending.peek().map(|Reverse((at, ..))| *at)
    }

    /// All bans that are in force at `now`.
    pub(super) fn blocked(&self, now: Tick) -> impl Iterator<Item = ActiveBan> + '_ {
        self.entries.iter().filter_map(move |row| row.ban(now))
    }

    /// The ban of `key`, if it is in force at `now`.
    pub(super) fn ban_of(&self, key: Hashed, now: Tick) -> Option<ActiveBan> {
        self.entries.row(key)?.ban(now)
    }

    /// Passes at most `n` banned targets to `out`, beginning where the last call ended, and at the first slot again after the
    /// last. Takes time in proportion to `n`, not to the table, so that a nearly empty table yields fewer.
    pub(super) fn sample(&mut self, now: Tick, n: usize, out: &mut impl FnMut(BanTarget)) {
        let slots = self.entries.begun();
        let mut wanted = if self.entries.used() == 0 { 0 } else { n };
        for _ in 0..n.saturating_mul(INSPECTED).min(slots) {
            if wanted == 0 {
                return;
            }
            let slot = if self.cursor < slots { self.cursor } else { 0 };
            self.cursor = slot + 1;
            // Bans about to expire may be gone already by the kernel's clock.
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

    /// Removes the entry of `key`; false where there is none.
    pub(super) fn lift(&mut self, key: Hashed) -> bool {
        self.count_off(key);
        self.entries.remove(key).is_some()
    }

    /// Removes all entries.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.forgeable = 0;
        self.ends.clear();
        self.pending.clear();
    }
}
