//! Reads the bans in force in pages. The cost of a page does not depend on the number of bans, or of rows.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::SystemTime;

use rusqlite::named_params;

use super::ban::Entry;
use super::row::{self, micros};
use super::{Ledger, LedgerError, select};

/// A place in the order of the pages: permanent bans, then the others by their ends. Bans with the same end are in the
/// order in which they were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// End of the ban in microseconds; `None`: permanent.
    until: Option<i64>,
    id: i64,
}

/// Bans in order, each with its position; `None` for an invalid row.
pub type Page = Vec<(Position, Option<Entry>)>;

/// The further bans with the same end. Separate from [`LATER`], because SQLite compares `(until, id)` with a row value
/// only by `until` in the index.
pub(super) const SAME: &str =
    "INDEXED BY ban_open WHERE ended IS NULL AND until IS :until AND id > :id ORDER BY id LIMIT :most";
pub(super) const LATER: &str =
    "INDEXED BY ban_open WHERE ended IS NULL AND until > :until ORDER BY until, id LIMIT :most";

impl Ledger {
    /// At most `most` bans in force at `now`: the first ones, or those after the position of an earlier page.
    pub fn page(&self, after: Option<Position>, most: usize, now: SystemTime) -> Result<Page, LedgerError> {
        let Position { until, id } = after.unwrap_or(Position { until: None, id: i64::MIN });
        let now = micros(now);
        let limit = |bans: &Page| i64::try_from(most.saturating_sub(bans.len())).unwrap_or(i64::MAX);
        let read = |found: &rusqlite::Row<'_>| {
            let position = Position { until: found.get(3).ok()?, id: found.get(18).ok()? };
            Some((position, row::entry(found)))
        };
        let mut bans = Page::new();
        if until.is_none_or(|until| until > now) {
            let values = named_params! {":until": until, ":id": id, ":most": limit(&bans)};
            bans.extend(self.query(&select(row::COLUMNS, SAME), values, read)?.items);
        }
        let begin = until.map_or(now, |until| until.max(now));
        let values = named_params! {":until": begin, ":most": limit(&bans)};
        bans.extend(self.query(&select(row::COLUMNS, LATER), values, read)?.items);
        Ok(bans)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Some(until) => write!(f, "{until}.{}", self.id),
            None => write!(f, "never.{}", self.id),
        }
    }
}

impl FromStr for Position {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (until, id) = text.split_once('.').unwrap_or((text, ""));
        let until = if until == "never" { None } else { Some(until.parse()?) };
        Ok(Self { until, id: id.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_reads_back_as_written() {
        for (until, id) in [(None, 1), (Some(0), i64::MAX), (Some(1_795_242_733_123_456), 7), (Some(-1), -1)] {
            let position = Position { until, id };
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        for wrong in ["", ".", "never", "never.", "1.", ".1", "1.2.3", "1.x", "192.0.2.7", "99999999999999999999.1"] {
            assert!(wrong.parse::<Position>().is_err(), "{wrong:?}");
        }
    }
}
