//! Bans to strikes: how often each subject was banned in a way that makes its next ban longer. The engine counts by the
//! same rules while it runs, and starts from what is found here.

use std::time::{Duration, SystemTime};

use rusqlite::{Row, named_params};

use super::row::{self, micros};
use super::{Found, Ledger, LedgerError, collect};
use crate::engine::subject::{Expiry, Subject};
use crate::engine::{LastBan, Struck};

/// A strike was on evidence, not above the ceiling, and nobody lifted it. It counts until it has been over for as long as
/// strikes are remembered, so that a long ban cannot be forgotten while it still lasts.
const IS_STRIKE: &str = "author = 'detector' AND NOT capped AND ending IS NOT 'lifted'
    AND (ended IS NULL AND until IS NULL OR coalesce(ended, until) > :since)";

pub(super) fn of_one() -> String {
    format!("SELECT count(*) FROM ban WHERE subject = :subject AND {IS_STRIKE}")
}

/// All rows in the order in which they lie there: through the index of subjects it would take half as long again.
pub(super) fn of_all() -> String {
    format!(
        "SELECT subject, count(*), max(CASE WHEN ended IS NULL THEN coalesce(until, {NEVER}) ELSE ended END) AS last
        FROM ban NOT INDEXED WHERE {IS_STRIKE} GROUP BY subject ORDER BY last DESC LIMIT :limit"
    )
}

/// The end of a ban that has none, after all others.
const NEVER: i64 = i64::MAX;

impl Ledger {
    /// How many strikes `subject` has: bans on evidence that at `now` last or have been over for less than `forget`, but
    /// for those above the ceiling and those that somebody lifted.
    pub fn strikes(&self, subject: Subject, forget: Duration, now: SystemTime) -> Result<u32, LedgerError> {
        let since = now.checked_sub(forget).map_or(i64::MIN, micros);
        let values = named_params! {":subject": subject.to_string(), ":since": since};
        let strikes: Result<i64, _> = self.connection.query_row(&of_one(), values, |row| row.get(0));
        let strikes = strikes.map_err(LedgerError::database("read", &self.path()))?;
        Ok(u32::try_from(strikes).unwrap_or(u32::MAX))
    }

    /// The strikes of everybody who has any, as [`Ledger::strikes`] counts them, for the engine's start: whose last ban
    /// ended last comes first, `limit` of them at most.
    pub fn strikes_all(&self, forget: Duration, now: SystemTime, limit: usize) -> Result<Found<Struck>, LedgerError> {
        let since = now.checked_sub(forget).map_or(i64::MIN, micros);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let values = named_params! {":since": since, ":limit": limit};
        let statement = self.connection.prepare(&of_all());
        let found = statement.and_then(|mut statement| collect(&mut statement, values, |row| struck(row, now)));
        found.map_err(LedgerError::database("read", &self.path()))
    }
}

fn struck(row: &Row<'_>, now: SystemTime) -> Option<Struck> {
    let last = match row.get(2).ok()? {
        NEVER => LastBan::Lasts(Expiry::Never),
        end => match now.duration_since(row::time(end)?) {
            Ok(ago) => LastBan::Over(ago),
            Err(ahead) => LastBan::Lasts(Expiry::After(ahead.duration())),
        },
    };
    let strikes = u32::try_from(row.get::<_, i64>(1).ok()?).ok()?;
    Some(Struck { subject: row::subject(row.get_ref(0).ok()?.as_str().ok()?)?, strikes, last })
}
