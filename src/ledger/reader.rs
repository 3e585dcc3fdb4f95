//! Reads the bans in the ledger: in the daemon through the connection of a [`super::Ledger`], in another process with
//! [`Reader::read`], whether or not the daemon runs. [`Reader::read`] creates, repairs and changes nothing, not even
//! the index of the write-ahead log, so that read permission on the files suffices. It reports damage and does not
//! repair it.
//!
//! For another process there are two cases, because a database in WAL mode consists of several files
//! (<https://sqlite.org/wal.html#read_only_databases>). If there is a log, its index is mapped read-only: SQLite uses
//! the writer's index, or builds its own in memory. If there is none, the file is complete and is read as immutable;
//! the reader checks whether it changed meanwhile, and if so reads it again.
//!
//! [`Reader::read`] must not be used in a process that has a [`super::Ledger`] open: SQLite keeps one index of a log
//! per process, and an index mapped read-only would make the writer fail.

use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, Error, OpenFlags, Row, ToSql, ffi, named_params};

use super::ban::{BanSummary, LedgerEntry, Page, PageCursor};
use super::error::LedgerError;
use super::row::{self, micros};
use super::rows::Rows;
use super::schema::{self, classify, pragma};
use super::state_dir::{DATABASE, if_found};
use crate::file::FileStamp;
use crate::types::BanTarget;

/// Time limit and delay for retries while the daemon starts, ends or empties its log.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// How often the files are looked at before an index counts as missing.
const MAX_LOOKS: u32 = 10;
const LOOK_DELAY: Duration = Duration::from_millis(20);

/// Uses the index of open bans: there may be many times as many past ones.
const ACTIVE: &str = "INDEXED BY ban_open WHERE ended IS NULL AND (until IS NULL OR until > :now) ORDER BY until, id";

const OF: &str = "WHERE subject = :subject ORDER BY id";

/// Groups the bans by target, in order, so that callers can summarise one target at a time.
const EACH: &str = "INDEXED BY ban_subject ORDER BY subject, id";

/// The further bans with the same end. Separate from [`LATER`], because SQLite compares `(until, id)` with a row value
/// only by `until` in the index.
const SAME: &str = "INDEXED BY ban_open WHERE ended IS NULL AND until IS :until AND id > :id ORDER BY id LIMIT :most";
const LATER: &str = "INDEXED BY ban_open WHERE ended IS NULL AND until > :until ORDER BY until, id LIMIT :most";

/// The bans whose commands have to be undone: they have ended, and their target has not been banned again.
const UNDO_DUE: &str = "
    FROM ban INDEXED BY ban_undo WHERE undo = 1 AND ended IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM ban AS newer WHERE newer.subject = ban.subject AND newer.ended IS NULL)";

/// Two queries, so that each uses an index.
const HAS_TO_UNDO: &str = "
    SELECT EXISTS (SELECT 1 FROM ban WHERE undo = 1 AND ended IS NOT NULL)
    OR EXISTS (SELECT 1 FROM ban INDEXED BY ban_open WHERE undo = 1 AND ended IS NULL)";

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

/// The statements that a ledger of the newest format needs for reading bans.
pub(super) fn used() -> Vec<String> {
    let entries = [ACTIVE, OF, SAME, LATER].map(|which| select(row::COLUMNS, which));
    entries.into_iter().chain([select(row::IN_FORCE, ACTIVE), undo_due(), count_undo_due()]).collect()
}

/// A connection to the ledger for reading.
pub struct Reader {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    /// The format of the ledger, which may be older if no daemon has opened it since an upgrade.
    pub(super) version: i64,
}

impl Reader {
    /// Runs `work` on the ledger in `directory` as of one moment. If the ledger has changed meanwhile, `work` is called
    /// again and only its last result counts.
    ///
    /// # Errors
    /// The error of `work`, or the reason why the ledger cannot be read, with a remedy.
    pub fn read<T>(directory: &Path, mut work: impl FnMut(&Self) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let directory = directory.canonicalize().map_err(|error| refused(directory, directory, error))?;
        let path = directory.join(DATABASE);
        let start = Instant::now();
        loop {
            let mode = ReadMode::to(&directory, &path)?;
            let result = Self::open(&directory, &path, mode).and_then(|reader| work(&reader));
            let (passing, is_over) = (result.as_ref().is_err_and(is_passing), start.elapsed() >= BUSY_TIMEOUT);
            // A result that was read together with the log is always consistent. An error counts only if the files did
            // not change, because the change may have caused it.
            let steady = mode == ReadMode::Log && result.is_ok() || ReadMode::to(&directory, &path)? == mode;
            match result {
                result if steady && (is_over || !passing) => return result,
                _ if is_over => return Err(LedgerError::Changing(path)),
                _ => thread::sleep(RETRY_DELAY),
            }
        }
    }

    fn open(directory: &Path, path: &Path, mode: ReadMode) -> Result<Self, LedgerError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW
            | OpenFlags::SQLITE_OPEN_EXRESCODE;
        let refuse = |error| open_error(path, error);
        let connection = Connection::open_with_flags(uri(path, mode), flags).map_err(refuse)?;
        schema::harden(&connection).map_err(refuse)?;
        connection.pragma_update(None, "query_only", true).map_err(refuse)?;
        // The transaction makes all following reads consistent.
        connection.execute_batch("BEGIN").map_err(refuse)?;
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        let tables = tables.map_err(refuse)?;
        let application: i64 = pragma(&connection, "application_id").map_err(refuse)?;
        let version = pragma(&connection, "user_version").map_err(refuse)?;
        if tables == 0 {
            return Err(LedgerError::Absent(directory.to_owned()));
        }
        if application != schema::APPLICATION {
            let damage = "the file is the database of another program".to_owned();
            return Err(LedgerError::Damaged { path: path.to_owned(), damage });
        }
        schema::refuse_newer(path, version)?;
        let reader = Self { connection, path: path.to_owned(), version };
        for which in [ACTIVE, OF, EACH] {
            reader.connection.prepare(&reader.select(row::COLUMNS, which)).map_err(refuse)?;
        }
        Ok(reader)
    }

    /// The bans in force at `now`: permanent ones, then the others in order of their ends.
    pub fn active(&self, now: SystemTime) -> Result<Rows<LedgerEntry>, LedgerError> {
        self.query(&self.select(row::COLUMNS, ACTIVE), named_params! {":now": micros(now)}, row::entry)
    }

    /// The same with only the data that a list needs: a third of the work.
    pub fn in_force(&self, now: SystemTime) -> Result<Rows<BanSummary>, LedgerError> {
        self.query(&self.select(row::IN_FORCE, ACTIVE), named_params! {":now": micros(now)}, row::in_force)
    }

    /// All stored bans of `target`, oldest first. For an address pass [`BanTarget::containing`].
    pub fn bans_of(&self, target: BanTarget) -> Result<Rows<LedgerEntry>, LedgerError> {
        self.query(&self.select(row::COLUMNS, OF), named_params! {":subject": target.to_string()}, row::entry)
    }

    /// Passes every ban to `visit` without storing them: targets in no particular order, the bans of each together and
    /// oldest first. Returns the number of invalid rows.
    pub fn each(&self, visit: impl FnMut(LedgerEntry)) -> Result<u64, LedgerError> {
        self.run(|connection| visit_rows(connection, &self.select(row::COLUMNS, EACH), &[], row::entry, visit))
    }

    /// At most `most` bans in force at `now`: the first ones, or those after the position of an earlier page. The cost
    /// does not depend on the number of bans, or of rows.
    pub fn page(&self, after: Option<PageCursor>, most: usize, now: SystemTime) -> Result<Page, LedgerError> {
        let PageCursor { until, id } = after.unwrap_or(PageCursor { until: None, id: i64::MIN });
        let now = micros(now);
        let limit = |bans: &Page| i64::try_from(most.saturating_sub(bans.len())).unwrap_or(i64::MAX);
        let read = |found: &Row<'_>| {
            let position = PageCursor { until: found.get(row::UNTIL).ok()?, id: found.get(row::ID).ok()? };
            Some((position, row::entry(found)))
        };
        let mut bans = Page::new();
        if until.is_none_or(|until| until > now) {
            let values = named_params! {":until": until, ":id": id, ":most": limit(&bans)};
            bans.extend(self.query(&self.select(row::COLUMNS, SAME), values, read)?.items);
        }
        let begin = until.map_or(now, |until| until.max(now));
        let values = named_params! {":until": begin, ":most": limit(&bans)};
        bans.extend(self.query(&self.select(row::COLUMNS, LATER), values, read)?.items);
        Ok(bans)
    }

    /// The last ended ban of each target whose command has to be undone, at most `most`, and the number of the others.
    pub fn undo_due(&self, most: usize) -> Result<(Rows<BanSummary>, u64), LedgerError> {
        let found = self.first(&undo_due(), most, row::in_force)?;
        let read = found.items.len() as u64 + found.unreadable;
        if read < most as u64 {
            return Ok((found, 0));
        }
        let all = self.run(|connection| connection.query_row(&count_undo_due(), [], |row| row.get::<_, i64>(0)))?;
        Ok((found, u64::try_from(all).unwrap_or_default().saturating_sub(read)))
    }

    /// True if commands have to be undone, now or when their bans end.
    pub fn has_to_undo(&self) -> Result<bool, LedgerError> {
        if self.version < schema::WITH_UNDO {
            return Ok(false);
        }
        self.run(|connection| connection.query_row(HAS_TO_UNDO, [], |row| row.get(0)))
    }

    /// The query of `columns` for the format of this ledger.
    fn select(&self, columns: &str, which: &str) -> String {
        select(&schema::columns(columns, self.version), which)
    }

    /// Runs a query that is limited by its parameter `:most`.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        most: usize,
        parse: impl Fn(&Row<'_>) -> Option<T>,
    ) -> Result<Rows<T>, LedgerError> {
        self.query(sql, named_params! {":most": i64::try_from(most).unwrap_or(i64::MAX)}, parse)
    }

    pub(super) fn query<T>(
        &self,
        sql: &str,
        values: &[(&str, &dyn ToSql)],
        parse: impl Fn(&Row<'_>) -> Option<T>,
    ) -> Result<Rows<T>, LedgerError> {
        self.run(|connection| collect(connection, sql, values, parse))
    }

    /// Runs `work` on the connection; an error names the database.
    pub(super) fn run<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, LedgerError> {
        work(&self.connection).map_err(LedgerError::database("read", &self.path))
    }
}

/// The rows of a query that `parse` accepts.
pub(super) fn collect<T>(
    connection: &Connection,
    sql: &str,
    values: &[(&str, &dyn ToSql)],
    parse: impl Fn(&Row<'_>) -> Option<T>,
) -> rusqlite::Result<Rows<T>> {
    let mut items = Vec::new();
    let unreadable = visit_rows(connection, sql, values, parse, |item| items.push(item))?;
    Ok(Rows { items, unreadable })
}

/// Passes the rows of a query to `visit`; returns the number of those that `parse` refuses.
fn visit_rows<T>(
    connection: &Connection,
    sql: &str,
    values: &[(&str, &dyn ToSql)],
    parse: impl Fn(&Row<'_>) -> Option<T>,
    mut visit: impl FnMut(T),
) -> rusqlite::Result<u64> {
    let mut unreadable = 0;
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query(values)?;
    while let Some(row) = rows.next()? {
        match parse(row) {
            Some(item) => visit(item),
            None => unreadable += 1,
        }
    }
    Ok(unreadable)
}

/// How the database is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadMode {
    /// Together with its log.
    Log,
    /// Alone, as long as it does not change.
    Alone(FileStamp),
}

impl ReadMode {
    fn to(directory: &Path, path: &Path) -> Result<Self, LedgerError> {
        let found = fs::symlink_metadata(path).map_err(|error| refused(directory, path, error))?;
        if found.is_symlink() {
            return Err(LedgerError::Link(path.to_owned()));
        }
        if !found.is_file() {
            // Opening a pipe would block forever.
            return Err(LedgerError::Kind { path: path.to_owned(), wanted: "regular file" });
        }
        let has_log = || beside(path, "-wal").map(|log| log.is_some_and(|log| log.len() > 0));
        let refuse = |error| refused(directory, path, error);
        // A writer that has just ended removes both; one that has just started creates the index first. Several looks,
        // because one writer can end and the next one start between two of them.
        let mut looks = 0;
        while has_log().map_err(refuse)? {
            if beside(path, "-shm").map_err(refuse)?.is_some() {
                return Ok(Self::Log);
            }
            looks += 1;
            if looks == MAX_LOOKS {
                return Err(LedgerError::Incomplete(path.to_owned()));
            }
            thread::sleep(LOOK_DELAY);
        }
        Ok(Self::Alone(FileStamp::from(&found)))
    }
}

/// Metadata of the file with the database's name and `suffix`.
fn beside(path: &Path, suffix: &str) -> io::Result<Option<Metadata>> {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    if_found(fs::symlink_metadata(name))
}

/// The database's name as an SQLite URI (<https://sqlite.org/uri.html>), with all special bytes percent-encoded.
fn uri(path: &Path, mode: ReadMode) -> String {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        // Writing to a string cannot fail.
        let _ = match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.write_char(char::from(*byte)),
            byte => write!(uri, "%{byte:02X}"),
        };
    }
    uri.push_str(match mode {
        ReadMode::Log => "?mode=ro&readonly_shm=1",
        ReadMode::Alone(..) => "?mode=ro&immutable=1",
    });
    uri
}

fn refused(directory: &Path, path: &Path, error: io::Error) -> LedgerError {
    match error.kind() {
        io::ErrorKind::NotFound => LedgerError::Absent(directory.to_owned()),
        io::ErrorKind::PermissionDenied => LedgerError::Forbidden(path.to_owned()),
        _ => LedgerError::system("inspect", path)(error),
    }
}

fn open_error(path: &Path, error: Error) -> LedgerError {
    match code(&error) {
        // All other possible causes have been checked.
        Some(code) if code & 0xff == ffi::SQLITE_CANTOPEN => LedgerError::Forbidden(path.to_owned()),
        Some(_) if is_passing_code(&error) => LedgerError::database("read", path)(error),
        _ => classify(path, error),
    }
}

/// True while the daemon is starting: the log's index is incomplete, or has no read mark yet.
fn is_passing(error: &LedgerError) -> bool {
    matches!(error, LedgerError::Database { error, .. } if is_passing_code(error))
}

fn is_passing_code(error: &Error) -> bool {
    let passing = [ffi::SQLITE_READONLY_CANTINIT, ffi::SQLITE_READONLY_RECOVERY];
    code(error).is_some_and(|code| passing.contains(&code) || code & 0xff == ffi::SQLITE_BUSY)
}

fn code(error: &Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_escaped_in_uri() {
        let path = Path::new("/var/a b?mode=rw#%2f&c=é/ledger.sqlite");
        assert_eq!(
            uri(path, ReadMode::Log),
            "file:/var/a%20b%3Fmode%3Drw%23%252f%26c%3D%C3%A9/ledger.sqlite?mode=ro&readonly_shm=1"
        );
    }
}
