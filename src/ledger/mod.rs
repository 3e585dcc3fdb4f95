//! Stores bans in a database, so that they survive the process and a reboot: target, reason, begin, end and count. The
//! kernel's set enforces the bans, the ledger remembers them. Nothing here blocks a source, queries the kernel, or
//! reads a clock to decide whether a ban has ended: `now` is an argument.
//!
//! [`Ledger`] is the database, one transaction per call; [`Writer`] is a thread around it, for callers that must
//! not wait for a disk; [`Reader`] reads it from another process; [`LegacyFiles`] writes the two text files of
//! classic PortSentry. `docs/ledger.md` describes the files for operators.

mod ban;
mod decisions;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod legacy_files;
mod logged;
mod pages;
mod reader;
mod row;
mod schema;
mod services;
mod state_dir;
mod statements;
mod strikes;
mod writer;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, Params, Row, Statement, ToSql, TransactionBehavior, named_params};

pub use crate::types::{Backend, Backends};
pub use crate::worker::Stopped;
pub use ban::{
    Allowance, Author, BanRecord, BanSummary, Change, Ended, Ending, Entry, FleetLift, KnownPeer, LiftedBy, Logged,
};
pub use error::LedgerError;
pub use legacy_files::{BLOCKED, HISTORY, LegacyFiles};
pub use pages::{Page, Position};
pub use reader::Reader;
pub use row::{author_from_key, author_key};
pub use strikes::LoadedState;
pub use writer::{Recorder, Writer, WriterEvent};

use crate::types::BanTarget;
use row::micros;
use state_dir::StateDir;
use statements::Statements;

/// Default directory of the ledger.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/portsentry";

/// The database's name in the state directory.
pub const DATABASE: &str = "ledger.sqlite";

/// Marker file that exists while bans are restored after a reboot.
pub const RESTORING: &str = "restoring";

/// The files that the daemon creates in the state directory; `*` matches suffixes added by SQLite, a rewrite, a
/// rotation or a repair.
pub const OWN_FILES: [&str; 9] = [
    DATABASE,
    "ledger.sqlite-*",
    "ledger.sqlite.corrupt-*",
    HISTORY,
    "portsentry.history.*",
    "portsentry.history-*",
    BLOCKED,
    "portsentry.blocked.new",
    RESTORING,
];

/// The bans, in a separate directory.
pub struct Ledger {
    connection: Connection,
    place: StateDir,
    /// Device and inode of the database.
    file: (u64, u64),
    retention: Retention,
    undoes_commands: bool,
    /// Number of bans written since the rows were last counted.
    uncounted: u64,
}

/// Result of opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The ledger is new.
    Fresh,
    Existing,
    /// A damaged ledger was moved aside, and a new one was created.
    Rebuilt {
        /// The new path of the damaged ledger.
        aside: PathBuf,
        /// Description of the damage.
        damage: String,
    },
}

/// Limits on stored past bans. Open bans are always kept; the kernel's set sizes limit their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Maximum number of bans. Beyond it, those that ended first are deleted, at most [`SLACK`] too late.
    pub rows: u64,
    /// Time for which a ban is kept after its end.
    pub age: Duration,
}

impl Default for Retention {
    /// 400,000 bans (about 100 MB) and two years.
    fn default() -> Self {
        Self { rows: 400_000, age: Duration::from_secs(2 * 365 * 86_400) }
    }
}

/// Number of bans that may be written before the rows are counted again, which reads a whole index.
pub const SLACK: u64 = 10_000;

/// The read items, and the number of unreadable rows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Found<T> {
    pub items: Vec<T>,
    /// Number of invalid rows, which were skipped: written by another program or a failing disk.
    pub unreadable: u64,
}

const EXPIRE: &str = "
    UPDATE ban SET ended = until, ending = 'expired'
    WHERE ended IS NULL AND until IS NOT NULL AND until <= :now
    RETURNING subject";

/// Moves the ends of bans in force when the clock is set. Times at the limits of the range are not changed.
const STEP: &str = "
    UPDATE ban SET
        since = CASE WHEN since BETWEEN -:bound AND :bound THEN since + :by ELSE since END,
        until = CASE WHEN until BETWEEN -:bound AND :bound THEN until + :by ELSE until END
    WHERE ended IS NULL";

/// A ban that began in the future, by a clock that was ahead, begins now.
const BEGIN: &str = "
    UPDATE ban SET until = until - (since - :now), since = :now
    WHERE ended IS NULL AND since > :now AND :now > 0";

/// Times beyond this limit, about 70,000 years from 1970, are not changed, so that the sum does not overflow.
const BOUND: i64 = 1 << 61;

/// Bans in force whose command ran before there was an expiry command, or before the ledger recorded it.
const OWE_UNDO: &str =
    "UPDATE ban SET undo = 1 WHERE ended IS NULL AND undo = 0 AND ' ' || method || ' ' LIKE '% run %'";

/// The bans whose commands have to be undone: they have ended, and their target has not been banned again.
const UNDO_DUE: &str = "
    FROM ban INDEXED BY ban_undo WHERE undo = 1 AND ended IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM ban AS newer WHERE newer.subject = ban.subject AND newer.ended IS NULL)";

const FORGET: &str = "DELETE FROM ban WHERE ended IS NOT NULL AND ended < :before";

const PRUNE: &str = "
    DELETE FROM ban WHERE id IN (
        SELECT id FROM ban WHERE ended IS NOT NULL ORDER BY ended LIMIT max((SELECT count(*) FROM ban) - :rows, 0))";

fn select(columns: &str, which: &str) -> String {
    format!("SELECT {columns} FROM ban {which}")
}

/// The last such ban of each target.
fn undo_due() -> String {
    format!("SELECT {}, max(id) AS last {UNDO_DUE} GROUP BY subject ORDER BY last LIMIT :most", row::IN_FORCE)
}

fn count_undo_due() -> String {
    format!("SELECT count(DISTINCT subject) {UNDO_DUE}")
}

/// Uses the index of open bans: there may be many times as many past ones.
const ACTIVE: &str = "INDEXED BY ban_open WHERE ended IS NULL AND (until IS NULL OR until > :now) ORDER BY until, id";
const OF: &str = "WHERE subject = :subject ORDER BY id";

impl Ledger {
    /// Opens the ledger in `directory`, and creates missing parts: the directory with mode 0700, the database with
    /// 0600. A damaged database is moved aside and a new one created. Refuses a directory or file that is a symbolic
    /// link, belongs to another user or is accessible to others.
    pub fn open(directory: &Path) -> Result<(Self, Opened), LedgerError> {
        let place = StateDir::prepare(directory)?;
        let fresh = place.claim(DATABASE)?;
        let (connection, opened) = match connect(&place) {
            Ok(connection) => (connection, if fresh { Opened::Fresh } else { Opened::Existing }),
            Err(error) if error.is_damage() => {
                let aside = place.quarantine(DATABASE)?;
                place.claim(DATABASE)?;
                (connect(&place)?, Opened::Rebuilt { aside, damage: error.to_string() })
            }
            Err(error) => return Err(error),
        };
        let path = place.file(DATABASE);
        let found = std::fs::symlink_metadata(&path).map_err(LedgerError::system("inspect", &path))?;
        let file = (found.dev(), found.ino());
        // Old rows of the last process are counted with the first bans of this one.
        let retention = Retention::default();
        Ok((Self { connection, place, file, retention, undoes_commands: false, uncounted: SLACK }, opened))
    }

    /// Keeps more or less of the past than [`Retention::default`].
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Records which commands have to be undone, because there is an expiry command.
    pub fn undoing_commands(mut self, undoes_commands: bool) -> Self {
        self.undoes_commands = undoes_commands;
        self
    }

    /// Path of the database.
    pub fn path(&self) -> PathBuf {
        self.place.file(DATABASE)
    }

    /// Moves a damaged database aside, and returns its new path. [`Ledger::open`] then creates a new one.
    pub fn quarantine(self) -> Result<PathBuf, LedgerError> {
        // Closed first, because closing removes the log by name, which must not be that of the next database.
        drop(self.connection);
        self.place.quarantine(DATABASE)
    }

    /// False if the database's file was removed or replaced: writes would be lost.
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(self.path()).is_ok_and(|found| (found.dev(), found.ino()) == self.file)
    }

    /// Writes bans that have come into force, in one transaction. A ban replaces an earlier one of the same target.
    pub fn record(&mut self, bans: &[BanRecord]) -> Result<(), LedgerError> {
        self.transact(|statements| bans.iter().try_for_each(|ban| statements.record(ban)))
    }

    /// Records the end of the ban of `target`; false if it had none.
    pub fn ended(&mut self, target: BanTarget, how: Ending, at: SystemTime) -> Result<bool, LedgerError> {
        self.transact(|statements| statements.end(target, &Ended { how, at }))
    }

    /// Writes `changes` in order, in one transaction.
    pub fn write<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) -> Result<(), LedgerError> {
        self.transact(|statements| changes.into_iter().try_for_each(|change| statements.write(change)))
    }

    /// Marks the bans that have ended at `now`, returns their targets, and deletes bans beyond the retention time.
    pub fn expire(&mut self, now: SystemTime) -> Result<Found<BanTarget>, LedgerError> {
        let before = now.checked_sub(self.retention.age).map_or(i64::MIN, micros);
        let found = (|| {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found = collect(&mut transaction.prepare(EXPIRE)?, named_params! {":now": micros(now)}, |row| {
                row::target(row::text(row, 0)?)
            })?;
            transaction.execute(FORGET, named_params! {":before": before})?;
            let before = now.checked_sub(logged::KEPT).map_or(i64::MIN, micros);
            transaction.execute(logged::FORGET, named_params! {":before": before})?;
            transaction.commit()?;
            Ok(found)
        })();
        found.map_err(LedgerError::database("write to", &self.path()))
    }

    /// Applies a step of the clock in microseconds: bans in force keep their remaining time.
    pub fn clock_was_set(&mut self, by: i64) -> Result<(), LedgerError> {
        let values = named_params! {":by": by.clamp(-BOUND, BOUND), ":bound": BOUND};
        let mut steps = std::iter::once(STEP).chain(decisions::STEPS);
        let result = steps.try_for_each(|step| self.connection.execute(step, values).map(drop));
        result.map_err(LedgerError::database("write to", &self.path()))
    }

    /// Moves begins of bans that are after `now` to `now`, because these bans would last longer than their duration.
    /// For a start, whose clock may be behind that of the last run. Call [`Ledger::undoing_commands`] before.
    pub fn begin(&mut self, now: SystemTime) -> Result<(), LedgerError> {
        let values = named_params! {":now": micros(now)};
        let result = self.connection.execute(BEGIN, values);
        let result = result.and_then(|_| self.connection.execute(decisions::FORGET, values));
        let result = match self.undoes_commands {
            true => result.and_then(|_| self.connection.execute(OWE_UNDO, [])),
            false => result,
        };
        result.map(drop).map_err(LedgerError::database("write to", &self.path()))
    }

    /// The bans in force at `now`: permanent ones, then the others in order of their ends.
    pub fn active(&self, now: SystemTime) -> Result<Found<Entry>, LedgerError> {
        self.query(&select(row::COLUMNS, ACTIVE), named_params! {":now": micros(now)}, row::entry)
    }

    /// The same with only the data that a list needs: a third of the work.
    pub fn in_force(&self, now: SystemTime) -> Result<Found<BanSummary>, LedgerError> {
        self.query(&select(row::IN_FORCE, ACTIVE), named_params! {":now": micros(now)}, row::in_force)
    }

    /// All stored bans of `target`, oldest first. For an address pass [`BanTarget::containing`].
    pub fn bans_of(&self, target: BanTarget) -> Result<Found<Entry>, LedgerError> {
        self.query(&select(row::COLUMNS, OF), named_params! {":subject": target.to_string()}, row::entry)
    }

    /// The last ended ban of each target whose command has to be undone, at most `most`, and the number of the others.
    pub fn undo_due(&self, most: usize) -> Result<(Found<BanSummary>, u64), LedgerError> {
        let found = self.first(&undo_due(), most, row::in_force)?;
        let read = found.items.len() as u64 + found.unreadable;
        if read < most as u64 {
            return Ok((found, 0));
        }
        let all = self.connection.query_row(&count_undo_due(), [], |row| row.get::<_, i64>(0));
        let all = all.map_err(LedgerError::database("read", &self.path()))?;
        Ok((found, u64::try_from(all).unwrap_or_default().saturating_sub(read)))
    }

    /// Runs a query that is limited by its parameter `:most`.
    fn first<T>(&self, sql: &str, most: usize, parse: impl Fn(&Row<'_>) -> Option<T>) -> Result<Found<T>, LedgerError> {
        self.query(sql, named_params! {":most": i64::try_from(most).unwrap_or(i64::MAX)}, parse)
    }

    fn query<T>(
        &self,
        sql: &str,
        values: &[(&str, &dyn ToSql)],
        parse: impl Fn(&Row<'_>) -> Option<T>,
    ) -> Result<Found<T>, LedgerError> {
        let statement = self.connection.prepare(sql);
        let found = statement.and_then(|mut statement| collect(&mut statement, values, parse));
        found.map_err(LedgerError::database("read", &self.path()))
    }

    /// Runs one transaction, which also deletes rows above the limit.
    fn transact<T>(&mut self, work: impl FnOnce(&mut Statements<'_>) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        let result = (|| {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut statements = Statements::prepare(&transaction, self.undoes_commands)?;
            let result = work(&mut statements)?;
            let uncounted = self.uncounted + statements.recorded;
            drop(statements);
            if uncounted >= SLACK {
                let rows = i64::try_from(self.retention.rows).unwrap_or(i64::MAX);
                transaction.execute(PRUNE, named_params! {":rows": rows})?;
                transaction.execute(logged::PRUNE, named_params! {":kept": logged::MAX_ROWS})?;
            }
            transaction.commit()?;
            self.uncounted = if uncounted >= SLACK { 0 } else { uncounted };
            Ok(result)
        })();
        result.map_err(LedgerError::database("write to", &self.path()))
    }
}

fn connect(place: &StateDir) -> Result<Connection, LedgerError> {
    let own = [EXPIRE, STEP, BEGIN, FORGET, PRUNE, OWE_UNDO];
    let fixed = [&own[..], &statements::USED, &decisions::used(), &logged::USED, &services::used()].concat();
    let entries = [ACTIVE, OF, pages::SAME, pages::LATER].map(|which| select(row::COLUMNS, which));
    let others = [select(row::IN_FORCE, ACTIVE), strikes::of_all(), undo_due(), count_undo_due()];
    let used: Vec<&str> = fixed.into_iter().chain(entries.iter().chain(&others).map(String::as_str)).collect();
    schema::connect(&place.file(DATABASE), &used)
}

fn collect<T>(
    statement: &mut Statement<'_>,
    values: &[(&str, &dyn ToSql)],
    parse: impl Fn(&Row<'_>) -> Option<T>,
) -> rusqlite::Result<Found<T>> {
    let mut found = Found { items: Vec::new(), unreadable: 0 };
    let mut rows = statement.query(values)?;
    while let Some(row) = rows.next()? {
        match parse(row) {
            Some(item) => found.items.push(item),
            None => found.unreadable += 1,
        }
    }
    Ok(found)
}

/// Replaces the rows of a table with `rows`, using a statement that deletes all and one that inserts a row.
fn replace<R: Params>(
    connection: &Connection,
    [delete, insert]: [&str; 2],
    rows: impl IntoIterator<Item = R>,
) -> rusqlite::Result<()> {
    connection.execute(delete, [])?;
    let mut insert = connection.prepare(insert)?;
    rows.into_iter().try_for_each(|row| insert.execute(row).map(drop))
}
