//! Stores the sources that probed enough for a ban while their protocol was only logged: one row per source, with count
//! and times.

use std::time::Duration;

use rusqlite::{Error, Row, Statement, named_params};

use super::ban::Logged;
use super::error::LedgerError;
use super::reader::Reader;
use super::row::{self, micros, time};
use super::rows::Rows;
use super::schema::WITH_LOGGED;
use crate::types::DAY;

/// Maximum number of rows. Beyond it, those with the oldest last scan are deleted.
pub(super) const MAX_ROWS: u32 = 50_000;

/// Time for which a row is kept after the last scan of its source.
pub(super) const RETENTION: Duration = DAY.saturating_mul(90);

const ALL: &str = "
    SELECT subject, source, first, last, times, class, ports, probes, reason
    FROM logged ORDER BY last DESC, subject";

pub(super) const UPSERT: &str = "
    INSERT INTO logged (subject, source, first, last, times, class, ports, probes, reason)
    VALUES (:subject, :source, :at, :at, 1, :class, :ports, :probes, :reason)
    ON CONFLICT (subject) DO UPDATE SET
        source = excluded.source, last = excluded.last, times = times + 1, class = excluded.class,
        ports = excluded.ports, probes = excluded.probes, reason = excluded.reason";

pub(super) const FORGET: &str = "DELETE FROM logged WHERE last < :before";

/// Deletes the rows above [`MAX_ROWS`].
pub(super) const PRUNE: &str = "
    DELETE FROM logged WHERE subject IN (SELECT subject FROM logged ORDER BY last DESC LIMIT -1 OFFSET :kept)";

pub(super) const USED: [&str; 4] = [ALL, UPSERT, FORGET, PRUNE];

/// Executes [`UPSERT`] for `logged`.
pub(super) fn write(logged: &Logged, upsert: &mut Statement<'_>) -> Result<(), Error> {
    let values = named_params! {
        ":subject": logged.target.to_string(),
        ":source": logged.source.to_string(),
        ":at": micros(logged.last),
        ":class": logged.class.key(),
        ":ports": row::ports_text(&logged.ports),
        ":probes": logged.probes,
        ":reason": logged.reason,
    };
    upsert.execute(values).map(drop)
}

/// All sources that would have been banned if their protocol were not only logged, newest first. Empty for a ledger of
/// an earlier format.
pub fn all(ledger: &Reader) -> Result<Rows<Logged>, LedgerError> {
    if ledger.version < WITH_LOGGED {
        return Ok(Rows { items: Vec::new(), unreadable: 0 });
    }
    ledger.query(ALL, &[], read)
}

/// The row, if it is valid.
fn read(found: &Row<'_>) -> Option<Logged> {
    Some(Logged {
        target: row::parsed(found, 0)?,
        source: row::parsed(found, 1)?,
        first: time(found.get(2).ok()?),
        last: time(found.get(3).ok()?),
        times: found.get(4).ok()?,
        class: row::parsed(found, 5)?,
        ports: row::ports(row::text(found, 6)?)?,
        probes: found.get(7).ok()?,
        reason: found.get(8).ok()?,
    })
}
