//! Who has been judged already: a source in here is recognised before anything else is looked at, and what it goes on
//! sending is summed up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::moment::Tick;
use super::strikes::LAST_SECONDS;
use super::subject::{Expiry, Subject};
use super::table::{Buckets, Claim, HashKey, Key};

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
pub struct StandingBan {
    /// Who is blocked.
    pub subject: Subject,
    /// How long the whole of it lasts; `None` where nobody knows, and for one without an end. Kept in steps of 50 ms.
    pub length: Option<Duration>,
    /// What is left of it.
    pub left: Expiry,
}

impl StandingBan {
    /// The whole of a ban that begins now.
    #[must_use]
    pub fn whole(subject: Subject, expiry: Expiry) -> Self {
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

/// Slots that are looked at for each subject of a sample: with sixteen at a time, a full round of a table with 131,072
/// slots takes 32 calls however few are blocked.
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

/// The table.
pub(super) struct Judged {
    keys: Buckets,
    /// Until (tick; `u32::MAX` for ever), standing, packets since the last line, next line, last verified.
    state: Vec<[u32; 5]>,
    /// How long each ban lasts as a whole, in ticks; 0 where that is not known. Apart, because no packet needs it.
    lengths: Vec<u32>,
    /// The slot that is sampled next.
    cursor: usize,
    pending: BinaryHeap<Reverse<(Tick, Subject, u8)>>,
}

const BLOCKED: u32 = 1;
const LOGGED: u32 = 2;

impl Judged {
    pub(super) fn new(entries: usize, secret: HashKey) -> Self {
        let keys = Buckets::new(entries, secret);
        let slots = keys.slots();
        let (state, lengths) = (vec![[0; 5]; slots], vec![0; slots]);
        Self { keys, state, lengths, cursor: 0, pending: BinaryHeap::with_capacity(PENDING) }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.used()
    }

    /// Notes what stands against `key` from `now` on, for `expiry`. A ban in force stays, because who is not known here is not
    /// put back after a flush. Where there is no room beside those, who would be free soonest goes: at worst it is judged
    /// again.
    pub(super) fn set(&mut self, key: Key, standing: Standing, expiry: Expiry, now: Tick) {
        let state = &self.state;
        let worth = |slot: usize| state.get(slot).map_or(0, |[until, ..]| u64::from(*until));
        let stands = |slot: usize| matches!(state.get(slot), Some([until, BLOCKED, ..]) if *until > now.0);
        let (Ok(slot) | Err(Claim { slot, .. })) = self.keys.claim_beside(key, worth, stands);
        let code = match standing {
            Standing::Blocked => BLOCKED,
            Standing::Logged => LOGGED,
        };
        if let Some(state) = self.state.get_mut(slot) {
            *state = [now.end(expiry).0, code, 0, now.plus(Tick::of(FIRST_SUMMARY)).0, now.0];
        }
        if let Some(length) = self.lengths.get_mut(slot) {
            *length = 0;
        }
    }

    /// Notes that `ban` stands against `key` from `now` on.
    pub(super) fn block(&mut self, key: Key, ban: &StandingBan, now: Tick) {
        self.set(key, Standing::Blocked, ban.left, now);
        let (StandingBan { length: Some(length), left: Expiry::After(left), .. }, Some(slot)) =
            (ban, self.keys.find(key))
        else {
            return;
        };
        if let Some(held) = self.lengths.get_mut(slot) {
            // What is left is never more than the whole.
            *held = Tick::of(*length.max(left)).0;
        }
    }

    /// What stands against `key` at `now`.
    #[inline]
    pub(super) fn get(&self, key: Key, now: Tick) -> Option<(usize, Standing)> {
        let slot = self.keys.find(key)?;
        match self.state.get(slot)? {
            [until, ..] if *until <= now.0 => None,
            [_, BLOCKED, ..] => Some((slot, Standing::Blocked)),
            [_, LOGGED, ..] => Some((slot, Standing::Logged)),
            _ => None,
        }
    }

    /// Counts one more packet of the source in `slot`.
    pub(super) fn repeat(&mut self, slot: usize, standing: Standing, who: (Subject, u8), now: Tick) -> Repeat {
        let Some([_, _, hits, next, verified]) = self.state.get_mut(slot) else {
            return Repeat { report: None, verify: false };
        };
        *hits = hits.saturating_add(1);
        let due = now.0 >= *next;
        let report = due.then(|| std::mem::replace(hits, 0));
        if due {
            *next = now.plus(Tick::of(SUMMARY)).0;
        } else if *hits == 1 && self.pending.len() < PENDING {
            self.pending.push(Reverse((Tick(*next), who.0, who.1)));
        }
        let verify = standing == Standing::Blocked && now.since(Tick(*verified)) >= Tick::of(VERIFY);
        if verify {
            *verified = now.0;
        }
        Repeat { report, verify }
    }

    /// A source whose summary is due although it has fallen silent: who, and how many packets.
    pub(super) fn due(&mut self, now: Tick) -> Option<(Subject, Standing, u32)> {
        while let Some(Reverse((at, subject, lane))) = self.pending.peek().copied() {
            if at > now {
                return None;
            }
            self.pending.pop();
            let Some(slot) = self.keys.find(Key::new(subject, lane)) else { continue };
            let Some([_, code, hits, next, _]) = self.state.get_mut(slot) else { continue };
            if *hits > 0 && now.0 >= *next {
                *next = now.plus(Tick::of(SUMMARY)).0;
                let standing = if *code == BLOCKED { Standing::Blocked } else { Standing::Logged };
                return Some((subject, standing, std::mem::replace(hits, 0)));
            }
        }
        None
    }

    /// When the next summary is due, if one is.
    pub(super) fn next_due(&self) -> Option<Tick> {
        self.pending.peek().map(|Reverse((at, ..))| *at)
    }

    /// Who is blocked, for how long, and for how much longer.
    pub(super) fn blocked(&self, now: Tick) -> impl Iterator<Item = StandingBan> + '_ {
        self.keys.iter().filter_map(move |(slot, key)| self.ban(slot, key, now))
    }

    /// The ban of `key`.
    pub(super) fn ban_of(&self, key: Key, now: Tick) -> Option<StandingBan> {
        self.ban(self.keys.find(key)?, key, now)
    }

    fn ban(&self, slot: usize, key: Key, now: Tick) -> Option<StandingBan> {
        let left = match self.state.get(slot)? {
            [until, BLOCKED, ..] if Tick(*until) == Tick::NEVER => Expiry::Never,
            [until, BLOCKED, ..] if *until > now.0 => Expiry::After(Tick(*until).since(now).duration()),
            _ => return None,
        };
        let length = self.lengths.get(slot).filter(|length| **length != 0).map(|length| Tick(*length).duration());
        Some(StandingBan { subject: key.subject()?, length, left })
    }

    /// Gives `out` the next `n` of those who are blocked, at most; begins where the last call ended, and at the beginning
    /// again after the end. Takes time for `n`, not for the whole table: one that is nearly empty gives fewer.
    pub(super) fn sample(&mut self, now: Tick, n: usize, out: &mut impl FnMut(Subject)) {
        let slots = self.keys.slots();
        let mut wanted = if self.keys.used() == 0 { 0 } else { n };
        for _ in 0..n.saturating_mul(LOOKED_AT).min(slots) {
            if wanted == 0 {
                return;
            }
            let slot = self.cursor;
            self.cursor = (slot + 1) % slots;
            let ban = self.keys.at(slot).and_then(|key| self.ban(slot, key, now));
            // Which of two clocks is ahead is no difference between them that matters.
            if let Some(StandingBan { subject, left, .. }) = ban
                && !matches!(left, Expiry::After(left) if left <= LAST_SECONDS)
            {
                out(subject);
                wanted -= 1;
            }
        }
    }

    /// For how much longer what stands in `slot` holds at `now`.
    pub(super) fn left(&self, slot: usize, now: Tick) -> Expiry {
        match self.state.get(slot) {
            Some([u32::MAX, ..]) => Expiry::Never,
            Some([until, ..]) => Expiry::After(Tick(*until).since(now).duration()),
            None => Expiry::After(Duration::ZERO),
        }
    }

    /// Takes back what stands against `key`.
    pub(super) fn lift(&mut self, key: Key) -> bool {
        self.keys.remove(key).is_some()
    }

    /// Takes back everything.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.pending.clear();
    }
}
