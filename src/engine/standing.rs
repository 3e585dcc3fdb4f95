//! Who has been judged already: a source in here is recognised before anything else is looked at, and what it goes on
//! sending is summed up.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::moment::Tick;
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

/// How long repeated packets of one source are summed up before a line says how many there were.
pub(super) const SUMMARY: Duration = Duration::from_secs(60);

/// The first line comes sooner: it shows that the rest of a scan ran into the ban.
const FIRST_SUMMARY: Duration = Duration::from_secs(2);

/// How often at most the kernel is asked whether it still blocks a source that goes on sending: an element can be gone
/// by anybody's hand.
const VERIFY: Duration = Duration::from_secs(1);

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
    pending: BinaryHeap<Reverse<(Tick, Subject, u8)>>,
}

const BLOCKED: u32 = 1;
const LOGGED: u32 = 2;

impl Judged {
    pub(super) fn new(entries: usize, secret: HashKey) -> Self {
        let keys = Buckets::new(entries, secret);
        let slots = keys.slots();
        Self { keys, state: vec![[0; 5]; slots], pending: BinaryHeap::with_capacity(PENDING) }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.used()
    }

    /// Notes what stands against `key` from `now` on. Where the table is full, who would be free soonest goes: at worst it
    /// is judged again.
    pub(super) fn set(&mut self, key: Key, standing: Standing, expiry: Expiry, now: Tick) {
        let state = &self.state;
        let worth = |slot: usize| state.get(slot).map_or(0, |[until, ..]| u64::from(*until));
        let (Ok(slot) | Err(Claim { slot, .. })) = self.keys.claim(key, worth);
        let code = match standing {
            Standing::Blocked => BLOCKED,
            Standing::Logged => LOGGED,
        };
        if let Some(state) = self.state.get_mut(slot) {
            *state = [now.end(expiry).0, code, 0, now.plus(Tick::of(FIRST_SUMMARY)).0, now.0];
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

    /// Who is blocked, and for how much longer.
    pub(super) fn blocked(&self, now: Tick) -> impl Iterator<Item = (Subject, Expiry)> + '_ {
        self.keys.iter().filter_map(move |(slot, key)| match self.state.get(slot)? {
            [u32::MAX, BLOCKED, ..] => Some((key.subject()?, Expiry::Never)),
            [until, BLOCKED, ..] if *until > now.0 => {
                Some((key.subject()?, Expiry::After(Tick(*until).since(now).duration())))
            }
            _ => None,
        })
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
