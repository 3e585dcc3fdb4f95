//! Counts the strikes of each target from its stored bans. The engine uses the same rules while it runs, and starts
//! with these counts.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use rusqlite::{Row, named_params};

use super::ban::BanSummary;
use super::error::LedgerError;
use super::reader::Reader;
use super::row::{self, UNTIL, micros};
use crate::engine::{Grade, LastBan, RecentBans, StrikeHistory};
use crate::types::{BanTarget, DAY, Expiry, MINUTE};

/// A strike is a ban on evidence below the ceiling that was not lifted. It counts until it has been over for the
/// configured time, so that a long ban is not forgotten while it lasts.
const IS_STRIKE: &str = "author = 'detector' AND NOT capped AND ending IS NOT 'lifted'
    AND (ended IS NULL AND until IS NULL OR coalesce(ended, until) > :since)";

/// A ban on evidence that counts towards the ceilings of the engine. A begin in the future is that of a wrong clock.
const IS_RECENT: &str = "author = 'detector' AND since <= :now AND (since > :minute OR capped AND since > :day)";

/// Bans in force and bans that count, in storage order: one full scan is cheaper than two, or than index order.
pub(super) fn of_all() -> String {
    format!(
        "SELECT {}, ended IS NULL AND (until IS NULL OR until > :now) AS active, {IS_STRIKE} AS strike, ended,
        {IS_RECENT} AS recent, capped, since > :minute
        FROM ban NOT INDEXED WHERE active OR strike OR recent",
        row::IN_FORCE
    )
}

/// Column indexes in the rows of [`of_all`]: first the columns of [`row::IN_FORCE`], where [`UNTIL`] is defined, then
/// the added ones.
const SUBJECT: usize = 0;
const CLASS: usize = 4;
const GRADE: usize = 6;
const ACTIVE: usize = 9;
const STRIKE: usize = 10;
const ENDED: usize = 11;
const RECENT: usize = 12;
const CAPPED: usize = 13;
const IN_LAST_MINUTE: usize = 14;

/// End of a permanent ban, after all others.
const NEVER: i64 = i64::MAX;

/// The data that a start needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedState {
    /// The bans in force: permanent ones, then the others in order of their ends.
    pub active: Vec<BanSummary>,
    /// Targets that were banned before, those whose last ban ended last first.
    pub histories: Vec<StrikeHistory>,
    /// The bans that count towards the ceilings.
    pub recent: RecentBans,
    /// Number of invalid rows, written by another program or a failing disk.
    pub unreadable: u64,
}

/// Number of strikes, number of proven ones, and the end of the last ban in microseconds.
type StrikeCounts = HashMap<BanTarget, (u32, u32, i64)>;

impl LoadedState {
    /// Reads the bans in force at `now`, ordered as by [`Reader::active`], and the strikes of at most `limit` targets.
    /// Strikes are bans on evidence that are in force at `now` or ended less than `forget` ago, except lifted bans and
    /// bans above a ceiling. Targets are ordered by the end of their last ban, the latest first.
    pub fn read(ledger: &Reader, forget: Duration, now: SystemTime, limit: usize) -> Result<Self, LedgerError> {
        let since = now.checked_sub(forget).map_or(i64::MIN, micros);
        let [minute, day] = [MINUTE, DAY].map(|span| now.checked_sub(span).map_or(i64::MIN, micros));
        let values = named_params! {":since": since, ":now": micros(now), ":minute": minute, ":day": day};
        let (mut state, mut counts) = (Self::default(), StrikeCounts::new());
        ledger.run(|connection| {
            let mut statement = connection.prepare(&of_all())?;
            let mut rows = statement.query(values)?;
            while let Some(row) = rows.next()? {
                state.add_row(row, &mut counts)?;
            }
            Ok(())
        })?;
        state.active.sort_by_key(|ban| ban.until);
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_unstable_by_key(|(_, (.., last))| std::cmp::Reverse(*last));
        counts.truncate(limit);
        let history = |(target, (strikes, proven, end))| {
            let last = last_ban(end, now);
            StrikeHistory { target, strikes, proven, last }
        };
        state.histories = counts.into_iter().map(history).collect();
        Ok(state)
    }

    fn add_row(&mut self, row: &Row<'_>, counts: &mut StrikeCounts) -> rusqlite::Result<()> {
        let (mut readable, mut target) = (true, None);
        if row.get(ACTIVE)? {
            let ban = row::in_force(row);
            target = ban.as_ref().map(|ban| ban.target);
            readable = ban.is_some();
            self.active.extend(ban);
        }
        // The target may be readable even if the rest is not.
        if row.get(STRIKE)? {
            let target = target.or_else(|| row::parsed(row, SUBJECT));
            readable &= target.is_some();
            if let Some(target) = target {
                let (times, proven, last) = counts.entry(target).or_insert((0, 0, i64::MIN));
                let (until, ended): (Option<i64>, Option<i64>) = (row.get(UNTIL)?, row.get(ENDED)?);
                *times = times.saturating_add(1);
                let is_proven = row.get_ref(GRADE)?.as_str().is_ok_and(|grade| grade == Grade::Proven.key());
                *proven = proven.saturating_add(u32::from(is_proven));
                *last = ended.or(until).unwrap_or(NEVER).max(*last);
            }
        }
        if row.get(RECENT)? {
            self.count_recent(row)?;
        }
        self.unreadable += u64::from(!readable);
        Ok(())
    }

    fn count_recent(&mut self, row: &Row<'_>) -> rusqlite::Result<()> {
        let (capped, in_last_minute): (bool, bool) = (row.get(CAPPED)?, row.get(IN_LAST_MINUTE)?);
        let has = |column, key| row.get_ref(column).is_ok_and(|value| value.as_str().ok() == key);
        let recent = &mut self.recent;
        recent.short_daily += u32::from(capped);
        if in_last_minute {
            *match (capped, has(CLASS, None), has(GRADE, Some(Grade::Proven.key()))) {
                // A ban of the trap without a verdict takes a token for a whole ban.
                (true, false, _) => &mut recent.short,
                (true, true, _) | (false, _, false) => &mut recent.forgeable,
                (false, _, true) => &mut recent.proven,
            } += 1;
        }
        Ok(())
    }
}

fn last_ban(end: i64, now: SystemTime) -> LastBan {
    if end == NEVER {
        return LastBan::Lasts(Expiry::Never);
    }
    match now.duration_since(row::time(end)) {
        Ok(ago) => LastBan::Over(ago),
        Err(ahead) => LastBan::Lasts(Expiry::After(ahead.duration())),
    }
}
