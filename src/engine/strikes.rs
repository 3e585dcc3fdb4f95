//! Counts the bans of each target on evidence, so that its next ban lasts longer. Filled by the engine's own bans, and
//! at the start from the ledger.
//!
//! Two kinds of bans do not count. A ban above the ceiling: its evidence may be forged, and a flood of forged packets
//! must not ban an innocent source for a month. A lifted ban: it failed, the port turned out to be open, or an operator
//! removed it as a mistake.
//!
//! Bans on proven evidence are also counted separately: forgeable evidence must not lengthen a ban that may last a
//! month.

use std::time::Duration;

use super::class::Grade;
use super::key::{HashKey, Hashed, TargetKey};
use super::table::{Claim, HashTable, Row};
use crate::config::Escalation;
use crate::types::{BanTarget, Expiry, Tick};

/// With a larger factor, the second ban would already reach the maximum.
const MAX_FACTOR: u32 = 100;

impl Escalation {
    /// Duration of a ban on evidence of this grade after `strikes` earlier bans, if the first one lasts `plain`.
    pub fn expiry(&self, plain: Expiry, strikes: u32, grade: Grade) -> Expiry {
        let Expiry::After(plain) = plain else { return Expiry::Never };
        let times = self.factor.clamp(1, MAX_FACTOR).checked_pow(strikes);
        let grown = times.map_or(Duration::MAX, |times| plain.saturating_mul(times));
        let max = match grade {
            Grade::Proven => self.max,
            // A few forged packets a day must not ban an innocent source for a month.
            Grade::Forgeable => self.max.min(self.max_forgeable),
        };
        Expiry::After(grown.min(max).max(plain))
    }
}

/// The strikes of a target from before the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrikeHistory {
    pub target: BanTarget,
    /// Number of its bans that count.
    pub strikes: u32,
    /// Number of these bans on proven evidence.
    pub proven: u32,
    /// The last of these bans.
    pub last: LastBan,
}

/// The last ban of a target that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastBan {
    /// It ended this long ago.
    Over(Duration),
    /// It is in force for this much longer.
    Lasts(Expiry),
}

/// A ban that disappears this short a time before its end has expired by the kernel's clock and was not lifted.
/// Includes the time that the sensor takes to adopt a full set.
pub(super) const LAST_SECONDS: Duration = Duration::from_secs(10);

/// The bans of one target.
#[derive(Clone)]
#[repr(align(32))]
struct Record {
    key: TargetKey,
    bans: u32,
    /// Number of these bans on proven evidence.
    proven: u32,
    /// End of the last ban.
    until: Tick,
    /// Time at which all of them are forgotten.
    forgotten: Tick,
    /// Start of the last ban while it is in force; otherwise 0.
    since: Tick,
}

impl Row for Record {
    const EMPTY: Self =
        Self { key: TargetKey::NONE, bans: 0, proven: 0, until: Tick(0), forgotten: Tick(0), since: Tick(0) };

    fn key(&self) -> TargetKey {
        self.key
    }

    fn assign(&mut self, key: TargetKey) {
        *self = Self { key, ..Self::EMPTY };
    }
}

/// The bans of each target that count.
pub(super) struct Strikes {
    records: HashTable<Record>,
    forget: Tick,
}

impl Strikes {
    pub(super) fn new(entries: usize, forget: Duration, secret: HashKey) -> Self {
        Self { records: HashTable::new(entries, secret), forget: Tick::ticks(forget) }
    }

    /// Faults in the memory of the next entries.
    pub(super) fn prepare(&mut self) {
        self.records.prepare();
    }

    /// Changes the time after which new records are forgotten; existing ones keep their time.
    pub(super) fn set_forget(&mut self, forget: Duration) {
        self.forget = Tick::ticks(forget);
    }

    /// Number of bans that count against `key` at `now`.
    pub(super) fn count(&self, key: Hashed, now: Tick) -> u32 {
        self.records.row(key).filter(|record| record.forgotten > now).map_or(0, |record| record.bans)
    }

    /// Number of bans on proven evidence that count against `key` at `now`.
    pub(super) fn proven(&self, key: Hashed, now: Tick) -> u32 {
        self.records.row(key).filter(|record| record.forgotten > now).map_or(0, |record| record.proven)
    }

    /// Counts one more ban of `key` on evidence of this grade, from `now` on for `expiry`.
    pub(super) fn record(&mut self, key: Hashed, expiry: Expiry, grade: Grade, now: Tick) {
        let bans = self.count(key, now).saturating_add(1);
        let proven = self.proven(key, now).saturating_add(u32::from(grade == Grade::Proven));
        let until = now.end(expiry);
        let record = Record { key: key.key, bans, proven, until, forgotten: until.plus(self.forget), since: now };
        self.insert(record, key, now);
    }

    /// Records that the last ban of `key` was replaced by one that does not count.
    pub(super) fn supersede(&mut self, key: Hashed) {
        if let Some(record) = self.records.row_mut(key) {
            record.since = Tick(0);
        }
    }

    /// Records that the ban of `key` in force was lifted and no longer counts. A ban that has expired, or is about to,
    /// still counts.
    pub(super) fn take_back(&mut self, key: Hashed, now: Tick) {
        let forgotten_at = now.plus(self.forget);
        let Some(record) = self.records.row_mut(key) else { return };
        let (left, served) = (record.until.since(now), now.since(record.since));
        // A ban of a few seconds that failed is lifted immediately, within its last seconds.
        let is_over = left <= Tick::ticks(LAST_SECONDS) && left <= served;
        if std::mem::take(&mut record.since) == Tick(0) || is_over {
            return;
        }
        record.bans = record.bans.saturating_sub(1);
        // The grade of the ban is not stored: bans without proven evidence are taken back first.
        record.proven = record.proven.min(record.bans);
        // The end of the previous ban is not stored; it was no later than now.
        (record.until, record.forgotten) = (now, forgotten_at.min(record.forgotten));
        if record.bans == 0 {
            self.records.remove(key);
        }
    }

    /// Adds the strikes of the last run; a ban counted before this call remains the latest.
    pub(super) fn remember(&mut self, key: Hashed, (strikes, proven): (u32, u32), last: LastBan, now: Tick) {
        if self.count(key, now) > 0
            && let Some(record) = self.records.row_mut(key)
        {
            record.bans = record.bans.saturating_add(strikes);
            record.proven = record.proven.saturating_add(proven);
            return;
        }
        let (until, since, forgotten) = match last {
            LastBan::Over(ago) => (Tick(0), Tick(0), now.plus(self.forget.since(Tick::ticks(ago)))),
            LastBan::Lasts(left) => (now.end(left), now, now.end(left).plus(self.forget)),
        };
        if strikes > 0 && forgotten > now {
            let proven = proven.min(strikes);
            self.insert(Record { key: key.key, bans: strikes, proven, until, forgotten, since }, key, now);
        }
    }

    /// A full bucket evicts the target with the fewest bans, and among equals the one that would be forgotten first. So
    /// a flood of new targets does not evict repeat offenders.
    fn insert(&mut self, record: Record, key: Hashed, now: Tick) {
        let worth = |record: &Record| match record.forgotten > now {
            true => u64::from(record.bans) << 32 | u64::from(record.forgotten.0),
            false => 0,
        };
        let (Ok(slot) | Err(Claim { slot, .. })) = self.records.claim(key, |occupant| worth(occupant.row));
        if let Some(place) = self.records.get_mut(slot) {
            *place = record;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::HOUR;

    fn table(entries: usize) -> Strikes {
        Strikes::new(entries, 10 * HOUR, Hashed::SECRET)
    }

    fn at(hours: u32) -> Tick {
        Tick::ticks(hours * HOUR).plus(Tick(1))
    }

    #[test]
    fn each_ban_is_longer_up_to_maximum() {
        let day = 24 * HOUR;
        let days = |factor, strikes| {
            let escalation = Escalation { factor, ..Escalation::default() };
            escalation.expiry(Expiry::After(day), strikes, Grade::Proven).seconds().map(|seconds| seconds / 86_400)
        };
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, u32::MAX].map(|n| days(2, n)), [1, 2, 4, 8, 16, 30, 30, 30, 30].map(Some));
        assert_eq!([0, 1, 2, u32::MAX].map(|n| days(1, n)), [Some(1); 4], "a factor of one has no effect");
        assert_eq!([0, 1].map(|n| days(0, n)), [Some(1); 2], "no factor shortens a ban");
        assert_eq!([0, 1].map(|n| days(100, n)), [Some(1), Some(30)]);
        let forgeable = |n| Escalation::default().expiry(Expiry::After(day), n, Grade::Forgeable);
        assert_eq!([1, 2, 3, 9].map(forgeable), [2, 4, 4, 4].map(|days| Expiry::After(days * day)));
    }

    #[test]
    fn escalation_never_shortens_or_overflows() {
        let escalation = Escalation { factor: 3, max: HOUR, ..Escalation::default() };
        assert_eq!(escalation.expiry(Expiry::After(2 * HOUR), 5, Grade::Proven), Expiry::After(2 * HOUR));
        assert_eq!(escalation.expiry(Expiry::Never, 5, Grade::Proven), Expiry::Never);
        let endless = Escalation { max: Duration::MAX, ..escalation };
        assert_eq!(endless.expiry(Expiry::After(HOUR), 40, Grade::Proven), Expiry::After(Duration::MAX), "no overflow");
    }

    #[test]
    fn strikes_are_forgotten_after_configured_time() {
        let mut strikes = table(8);
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(0));
        strikes.record(Hashed::nth(1), Expiry::After(2 * HOUR), Grade::Forgeable, at(3));
        assert_eq!(strikes.count(Hashed::nth(1), Tick(at(15).0 - 1)), 2, "after five hours and ten");
        assert_eq!(strikes.count(Hashed::nth(1), at(15)), 0);
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(16));
        assert_eq!(strikes.count(Hashed::nth(1), at(16)), 1, "the count restarts");
    }

    #[test]
    fn only_lifted_bans_are_not_strikes() {
        let mut strikes = table(8);
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(0));
        strikes.record(Hashed::nth(1), Expiry::After(2 * HOUR), Grade::Forgeable, at(2));
        strikes.take_back(Hashed::nth(1), at(3));
        assert_eq!(strikes.count(Hashed::nth(1), at(3)), 1, "the first one was not lifted");
        strikes.take_back(Hashed::nth(1), at(3));
        assert_eq!(strikes.count(Hashed::nth(1), at(3)), 1, "and is not lifted now");
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(4));
        strikes.take_back(Hashed::nth(1), Tick(at(5).0 - 100));
        assert_eq!(strikes.count(Hashed::nth(1), at(5)), 2, "five seconds before its end it counts as expired");
        strikes.record(Hashed::nth(2), Expiry::After(Duration::from_secs(2)), Grade::Forgeable, at(5));
        strikes.take_back(Hashed::nth(2), at(5));
        assert_eq!(strikes.count(Hashed::nth(2), at(5)), 0, "a short ban that failed was not in force");
    }

    #[test]
    fn proven_strikes_are_counted_separately() {
        let mut strikes = table(8);
        let proven = |strikes: &Strikes| (strikes.count(Hashed::nth(1), at(3)), strikes.proven(Hashed::nth(1), at(3)));
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(0));
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Proven, at(1));
        assert_eq!(proven(&strikes), (2, 1));
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(3));
        strikes.take_back(Hashed::nth(1), at(3));
        assert_eq!(proven(&strikes), (2, 1));
        strikes.remember(Hashed::nth(1), (4, 3), LastBan::Over(HOUR), at(3));
        assert_eq!(proven(&strikes), (6, 4));
    }

    #[test]
    fn uncounted_ban_keeps_earlier_strikes() {
        let mut strikes = table(8);
        strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(0));
        strikes.supersede(Hashed::nth(1));
        strikes.take_back(Hashed::nth(1), at(0));
        assert_eq!(strikes.count(Hashed::nth(1), at(0)), 1);
    }

    #[test]
    fn remembered_strikes_expire() {
        let mut strikes = table(8);
        strikes.remember(Hashed::nth(1), (3, 0), LastBan::Over(9 * HOUR), at(0));
        strikes.remember(Hashed::nth(2), (2, 0), LastBan::Over(10 * HOUR), at(0));
        strikes.remember(Hashed::nth(3), (1, 0), LastBan::Lasts(Expiry::Never), at(0));
        strikes.remember(Hashed::nth(4), (4, 0), LastBan::Lasts(Expiry::After(HOUR)), at(0));
        let counts = |strikes: &Strikes, now| [1, 2, 3, 4].map(|n| strikes.count(Hashed::nth(n), now));
        assert_eq!(counts(&strikes, at(0)), [3, 0, 1, 4]);
        assert_eq!(counts(&strikes, Tick(at(1).0 + 1)), [0, 0, 1, 4]);
        assert_eq!(counts(&strikes, Tick(at(11).0 + 1)), [0, 0, 1, 0]);
        strikes.take_back(Hashed::nth(3), at(12));
        assert_eq!(strikes.count(Hashed::nth(3), at(12)), 0, "a ban in force can still be lifted");
        strikes.record(Hashed::nth(5), Expiry::After(HOUR), Grade::Forgeable, at(12));
        strikes.remember(Hashed::nth(5), (6, 0), LastBan::Over(HOUR), at(12));
        assert_eq!(strikes.count(Hashed::nth(5), at(12)), 7);
    }

    #[test]
    fn full_table_keeps_repeated_sources() {
        let mut strikes = table(8);
        (0..2).for_each(|_| strikes.record(Hashed::nth(1), Expiry::After(HOUR), Grade::Forgeable, at(0)));
        for n in 2..1_000 {
            strikes.record(Hashed::nth(n), Expiry::After(HOUR), Grade::Forgeable, at(1));
        }
        assert_eq!(strikes.count(Hashed::nth(1), at(1)), 2);
        strikes.record(Hashed::nth(1_000), Expiry::After(HOUR), Grade::Forgeable, at(12));
        strikes.record(Hashed::nth(1_001), Expiry::After(HOUR), Grade::Forgeable, at(13));
        assert_eq!(
            (strikes.count(Hashed::nth(1), at(1)), strikes.count(Hashed::nth(1_001), at(13))),
            (0, 1),
            "until it is forgotten"
        );
    }
}
