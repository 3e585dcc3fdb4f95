//! Stores bans in a database, so that they survive the process and a reboot: target, reason, begin, end and count. The
//! kernel's set enforces the bans, the ledger remembers them. Nothing here blocks a source, queries the kernel, or
//! reads a clock to decide whether a ban has ended: `now` is an argument.
//!
//! [`Ledger`] owns the connection and writes, one transaction per call; [`Writer`] is a thread around it, for callers
//! that must not wait for a disk; [`Reader`] reads the bans, in the daemon or in another process. Each other table has
//! a module, which reads it through a [`Reader`]. [`LegacyFiles`] writes the two text files of classic PortSentry.
//! `docs/ledger.md` describes the files for operators.

mod ban;
pub mod decisions;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod legacy_files;
pub mod logged;
mod reader;
mod row;
mod rows;
mod schema;
pub mod services;
mod state_dir;
mod statements;
mod strikes;
mod writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, TransactionBehavior, named_params};

pub use crate::types::{Backend, Backends};
pub use crate::worker::Stopped;
pub use ban::{
    Allowance, BanAuthor, BanRecord, BanSummary, EndRecord, Ending, FleetLift, KnownPeer, LedgerChange, LedgerEntry,
    LiftedBy, Logged, Page, PageCursor,
};
pub use error::LedgerError;
pub use legacy_files::{BLOCKED, HISTORY, LegacyFiles};
pub use reader::Reader;
pub use rows::{Rows, unreadable_note};
pub use state_dir::DATABASE;
pub use strikes::LoadedState;
pub use writer::{Recorder, Writer, WriterEvent};

use crate::file::FileId;
use crate::types::BanTarget;
use row::micros;
use state_dir::StateDir;
use statements::Statements;

/// Default directory of the ledger.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/portsentry";

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

/// Times beyond this limit, about 70,000 years from 1970, are not changed, so that the sum does not overflow.
const MAX_TIME: i64 = 1 << 61;

/// The bans, in a separate directory.
pub struct Ledger {
    reader: Reader,
    state_dir: StateDir,
    /// The identity of the database.
    file: FileId,
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
    /// Maximum number of bans. Beyond it, those that ended first are deleted, after at most [`RECOUNT_INTERVAL`]
    /// further bans.
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
pub const RECOUNT_INTERVAL: u64 = 10_000;

impl Ledger {
    /// Opens the ledger in `directory`, and creates missing parts: the directory with mode 0700, the database with
    /// 0600. A damaged database is moved aside and a new one created. Refuses a directory or file that is a symbolic
    /// link, belongs to another user or is accessible to others.
    pub fn open(directory: &Path) -> Result<(Self, Opened), LedgerError> {
        let state_dir = StateDir::prepare(directory)?;
        let fresh = state_dir.claim(DATABASE)?;
        let (reader, opened) = match connect(&state_dir) {
            Ok(reader) => (reader, if fresh { Opened::Fresh } else { Opened::Existing }),
            Err(error) if error.is_damage() => {
                let aside = state_dir.quarantine(DATABASE)?;
                state_dir.claim(DATABASE)?;
                (connect(&state_dir)?, Opened::Rebuilt { aside, damage: error.to_string() })
            }
            Err(error) => return Err(error),
        };
        let path = &reader.path;
        let found = std::fs::symlink_metadata(path).map_err(LedgerError::system("inspect", path))?;
        let file = FileId::from(&found);
        // Old rows of the last process are counted with the first bans of this one.
        let retention = Retention::default();
        Ok((Self { reader, state_dir, file, retention, undoes_commands: false, uncounted: RECOUNT_INTERVAL }, opened))
    }

    /// Sets the limits on past bans.
    pub fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Records which commands have to be undone, because there is an expiry command.
    pub fn undoing_commands(mut self, undoes_commands: bool) -> Self {
        self.undoes_commands = undoes_commands;
        self
    }

    /// Reads this ledger through the same connection.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Moves a damaged database aside, and returns its new path. [`Ledger::open`] then creates a new one.
    pub fn quarantine(self) -> Result<PathBuf, LedgerError> {
        // Closed first, because closing removes the log by name, which must not be that of the next database.
        drop(self.reader);
        self.state_dir.quarantine(DATABASE)
    }

    /// False if the database's file was removed or replaced: writes would be lost.
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.reader.path).is_ok_and(|found| FileId::from(&found) == self.file)
    }

    /// Writes bans that have come into force, in one transaction. A ban replaces an earlier one of the same target.
    pub fn record(&mut self, bans: &[BanRecord]) -> Result<(), LedgerError> {
        self.transact(|statements| bans.iter().try_for_each(|ban| statements.record(ban)))
    }

    /// Records the end of the ban of `target`; false if it had none.
    pub fn ended(&mut self, target: BanTarget, how: Ending, at: SystemTime) -> Result<bool, LedgerError> {
        self.transact(|statements| statements.end(target, &EndRecord { how, at }))
    }

    /// Writes `changes` in order, in one transaction.
    pub fn write<'a>(&mut self, changes: impl IntoIterator<Item = &'a LedgerChange>) -> Result<(), LedgerError> {
        self.transact(|statements| changes.into_iter().try_for_each(|change| statements.write(change)))
    }

    /// Marks the bans that have ended at `now`, returns their targets, and deletes bans beyond the retention time.
    pub fn expire(&mut self, now: SystemTime) -> Result<Rows<BanTarget>, LedgerError> {
        let before = now.checked_sub(self.retention.age).map_or(i64::MIN, micros);
        self.change(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let found = statements::expire(&transaction, now)?;
            transaction.execute(statements::FORGET, named_params! {":before": before})?;
            let before = now.checked_sub(logged::RETENTION).map_or(i64::MIN, micros);
            transaction.execute(logged::FORGET, named_params! {":before": before})?;
            transaction.commit()?;
            Ok(found)
        })
    }

    /// Applies a step of the clock in microseconds: bans in force keep their remaining time.
    pub fn clock_was_set(&mut self, by: i64) -> Result<(), LedgerError> {
        let values = named_params! {":by": by.clamp(-MAX_TIME, MAX_TIME), ":bound": MAX_TIME};
        let mut steps = std::iter::once(statements::SHIFT_TIMES).chain(decisions::SHIFT_TIMES);
        self.change(|connection| steps.try_for_each(|step| connection.execute(step, values).map(drop)))
    }

    /// Moves begins of bans that are after `now` to `now`, because these bans would last longer than their duration.
    /// For a start, whose clock may be behind that of the last run. Call [`Ledger::undoing_commands`] before.
    pub fn begin(&mut self, now: SystemTime) -> Result<(), LedgerError> {
        let (values, undoes_commands) = (named_params! {":now": micros(now)}, self.undoes_commands);
        self.change(|connection| {
            connection.execute(statements::BEGIN, values)?;
            connection.execute(decisions::FORGET, values)?;
            if undoes_commands {
                connection.execute(statements::OWE_UNDO, [])?;
            }
            Ok(())
        })
    }

    /// Records `id` as the current boot, and returns the one in which the ledger was last opened; `None` for a new
    /// ledger.
    pub fn enter_boot(&mut self, id: &str) -> Result<Option<String>, LedgerError> {
        self.change(|connection| services::enter_boot(connection, id))
    }

    /// Runs one transaction, which also deletes rows above the limit.
    fn transact<T>(&mut self, work: impl FnOnce(&mut Statements<'_>) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        let Self { undoes_commands, uncounted, retention, .. } = *self;
        let (result, uncounted) = self.change(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut statements = Statements::prepare(&transaction, undoes_commands)?;
            let result = work(&mut statements)?;
            let mut uncounted = uncounted + statements.recorded;
            drop(statements);
            if uncounted >= RECOUNT_INTERVAL {
                let rows = i64::try_from(retention.rows).unwrap_or(i64::MAX);
                transaction.execute(statements::PRUNE, named_params! {":rows": rows})?;
                transaction.execute(logged::PRUNE, named_params! {":kept": logged::MAX_ROWS})?;
                uncounted = 0;
            }
            transaction.commit()?;
            Ok((result, uncounted))
        })?;
        self.uncounted = uncounted;
        Ok(result)
    }

    /// Runs `work` on the connection; an error names the database.
    fn change<T>(&mut self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        work(&mut self.reader.connection).map_err(LedgerError::database("write to", &self.reader.path))
    }
}

fn connect(state_dir: &StateDir) -> Result<Reader, LedgerError> {
    let fixed = [&statements::USED[..], &decisions::used(), &logged::USED, &services::used()].concat();
    let (reading, strikes) = (reader::used(), strikes::of_all());
    let used = fixed.into_iter().chain(reading.iter().chain([&strikes]).map(String::as_str));
    let path = state_dir.file(DATABASE);
    let connection = schema::connect(&path, used)?;
    Ok(Reader { connection, path, version: schema::VERSION })
}
