//! Who has been judged already: a source in here is recognised before anything else is looked at, and what it goes on
//! sending is summed up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::key::{Brief, HashKey, Hashed, Key, Track};
use super::strikes::LAST_SECONDS;
use super::table::{Claim, Row, Table};
use crate::types::{BanTarget, Expiry, Tick};

/// What stands against a source.
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
    /// Who is blocked.
    pub subject: BanTarget,
    /// How long the whole of it lasts; `None` where nobody knows, and for one without an end. Kept in steps of 50 ms.
    pub length: Option<Duration>,
    /// What is left of it.
    pub left: Expiry,
}

impl ActiveBan {
    /// The whole of a ban that begins now.
    #[must_use]
    pub fn whole(subject: BanTarget, expiry: Expiry) -> Self {
        let length = match expiry {
            Expiry::Never => None,
            Expiry::After(span) => Some(span),
        };
        Self { subject, length, left: expiry }
    }
}

/// How long repeated packets of one source are summed up before a line says how many there were.
pub(super) const SUMMARY: Duration = Duration::from_secs(60);

/// The first line comes sooner: it shows that the rest of a scan ran into the ban.
const FIRST_SUMMARY: Duration = Duration::from_secs(2);

/// How often at most the kernel is asked whether it still blocks a source that goes on sending: an element can be gone
/// by anybody's hand.
const VERIFY: Duration = Duration::from_secs(1);

/// Slots that are looked at for each subject of a sample: with sixteen at a time, a full round of a table in which 131,072
/// have been blocked takes 32 calls however few still are.
const LOOKED_AT: usize = 256;

/// Sources that wait for their summary at one time. More than these are summed up when they send again.
const PENDING: usize = 1024;

/// What a packet from a judged source amounts to.
pub(super) struct Repeat {
    /// Packets since the last line about this source, where a line is due now.
    pub(super) report: Option<u32>,
    /// The kernel should be asked whether the ban is still in force.
    pub(super) verify: bool,
}

/// What stands against one source: half a cache line, which every packet from a blocked source waits for.
#[derive(Clone)]
#[repr(align(32))]
struct BanEntry {
    key: Brief,
    until: Tick,
    /// How long the ban lasts as a whole; 0 where that is not known.
    length: Tick,
    /// Packets since the last line.
    hits: u32,
    /// When the next line is due.
    next: Tick,
    /// When the kernel was asked last.
    verified: Tick,
    standing: Standing,
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
    };

    fn key(&self) -> Key {
        self.key.key()
    }

    fn give(&mut self, key: Key) {
        *self = Self { key: Brief::of(key), ..Self::EMPTY };
    }
}

const _: () = assert!(size_of::<BanEntry>() == 32);

impl BanEntry {
    /// The ban, if it is one and in force at `now`.
    fn ban(&self, now: Tick) -> Option<ActiveBan> {
        if self.standing != Standing::Blocked || self.until <= now {
            return None;
        }
        let length = Some(self.length).filter(|length| *length != Tick(0)).map(Tick::duration);
        Some(ActiveBan { subject: self.key().subject()?, length, left: self.left(now) })
    }

    fn left(&self, now: Tick) -> Expiry {
        match self.until {
            Tick::NEVER => Expiry::Never,
            until => Expiry::After(until.since(now).duration()),
        }
    }
}

/// The table.
pub(super) struct BanTable {
    entries: Table<BanEntry>,
    /// The slot that is sampled next.
    cursor: usize,
    pending: BinaryHeap<Reverse<(Tick, BanTarget, Track)>>,
}

impl BanTable {
    pub(super) fn new(entries: usize, secret: HashKey) -> Self {
        Self { entries: Table::new(entries, secret), cursor: 0, pending: BinaryHeap::with_capacity(PENDING) }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.used()
    }

    /// Touches the memory of the next sources.
    pub(super) fn prepare(&mut self) {
        self.entries.prepare();
    }

    /// Notes what stands against `key` from `now` on, for `expiry`. A ban in force stays, because who is not known here is not
    /// put back after a flush. Where there is no room beside those, who would be free soonest goes: at worst it is judged
    /// again.
    pub(super) fn set(&mut self, key: Hashed, standing: Standing, expiry: Expiry, now: Tick) {
        self.put(key, standing, expiry, Tick(0), now);
    }

    /// Notes that `ban` stands against `key` from `now` on.
    pub(super) fn block(&mut self, key: Hashed, ban: &ActiveBan, now: Tick) {
        let length = match (ban.length, ban.left) {
            // What is left is never more than the whole.
            (Some(length), Expiry::After(left)) => Tick::of(length.max(left)),
            _ => Tick(0),
        };
        self.put(key, Standing::Blocked, ban.left, length, now);
    }

    fn put(&mut self, key: Hashed, standing: Standing, expiry: Expiry, length: Tick, now: Tick) {
        let stands = |row: &BanEntry| row.standing == Standing::Blocked && row.until > now;
        let (Ok(slot) | Err(Claim { slot, .. })) = self.entries.claim_beside(key, |row| row.until.0, stands);
        if let Some(row) = self.entries.get_mut(slot) {
            let (until, next) = (now.end(expiry), now.plus(Tick::of(FIRST_SUMMARY)));
            *row = BanEntry { key: row.key, until, length, hits: 0, next, verified: now, standing };
        }
    }

    /// What stands against `key` at `now`.
    #[inline]
    pub(super) fn get(&self, key: Hashed, now: Tick) -> Option<(usize, Standing)> {
        let slot = self.entries.find(key)?;
        let row = self.entries.get(slot)?;
        (row.until > now).then_some((slot, row.standing))
    }

    /// Counts one more packet of the source in `slot`.
    pub(super) fn repeat(&mut self, slot: usize, standing: Standing, who: (BanTarget, Track), now: Tick) -> Repeat {
        let Some(row) = self.entries.get_mut(slot) else {
            return Repeat { report: None, verify: false };
        };
        row.hits = row.hits.saturating_add(1);
        let due = now >= row.next;
        let report = due.then(|| std::mem::replace(&mut row.hits, 0));
        if due {
            row.next = now.plus(Tick::of(SUMMARY));
        } else if row.hits == 1 && self.pending.len() < PENDING {
            self.pending.push(Reverse((row.next, who.0, who.1)));
        }
        let verify = standing == Standing::Blocked && now.since(row.verified) >= Tick::of(VERIFY);
        if verify {
            row.verified = now;
        }
        Repeat { report, verify }
    }

    /// A source whose summary is due although it has fallen silent: who, and how many packets.
    pub(super) fn due(&mut self, now: Tick) -> Option<(BanTarget, Standing, u32)> {
        while let Some(Reverse((at, subject, track))) = self.pending.peek().copied() {
            if at > now {
                return None;
            }
            self.pending.pop();
            let key = self.entries.hashed(Key::new(subject, track));
            let Some(row) = self.entries.of_mut(key) else { continue };
            if row.hits > 0 && now >= row.next {
                row.next = now.plus(Tick::of(SUMMARY));
                return Some((subject, row.standing, std::mem::replace(&mut row.hits, 0)));
            }
        }
        None
    }

    /// When the next summary is due, if one is.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.pending.peek().map(|Reverse((at, ..))| *at)
    }

    /// Who is blocked, for how long, and for how much longer.
    pub(super) fn blocked(&self, now: Tick) -> impl Iterator<Item = ActiveBan> + '_ {
        self.entries.iter().filter_map(move |row| row.ban(now))
    }

    /// The ban of `key`.
    pub(super) fn ban_of(&self, key: Hashed, now: Tick) -> Option<ActiveBan> {
        self.entries.of(key)?.ban(now)
    }

    /// Gives `out` the next `n` of those who are blocked, at most; begins where the last call ended, and at the beginning
    /// again after the end. Takes time for `n`, not for the whole table: one that is nearly empty gives fewer.
    pub(super) fn sample(&mut self, now: Tick, n: usize, out: &mut impl FnMut(BanTarget)) {
        let slots = self.entries.begun();
        let mut wanted = if self.entries.used() == 0 { 0 } else { n };
        for _ in 0..n.saturating_mul(LOOKED_AT).min(slots) {
            if wanted == 0 {
                return;
            }
            let slot = if self.cursor < slots { self.cursor } else { 0 };
            self.cursor = slot + 1;
            // Which of two clocks is ahead is no difference between them that matters.
            if let Some(ActiveBan { subject, left, .. }) = self.entries.at(slot).and_then(|row| row.ban(now))
                && !matches!(left, Expiry::After(left) if left <= LAST_SECONDS)
            {
                out(subject);
                wanted -= 1;
            }
        }
    }

    /// For how much longer what stands in `slot` holds at `now`.
    pub(super) fn left(&self, slot: usize, now: Tick) -> Expiry {
        self.entries.get(slot).map_or(Expiry::After(Duration::ZERO), |row| row.left(now))
    }

    /// Takes back what stands against `key`.
    pub(super) fn lift(&mut self, key: Hashed) -> bool {
        self.entries.remove(key).is_some()
    }

    /// Takes back everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.pending.clear();
    }
}
