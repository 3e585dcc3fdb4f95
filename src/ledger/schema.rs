//! Opens a file as a ledger: sets the options of SQLite, checks that the file is a ledger, and migrates it to the
//! current format. A damaged file is reported as damaged; the caller decides about it.
//!
//! <https://sqlite.org/pragma.html>, <https://sqlite.org/wal.html>, <https://sqlite.org/security.html>.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Error, ErrorCode, OpenFlags, TransactionBehavior};

use super::error::{LedgerError, is_damage};

/// Maximum time for which a write waits for another program that locks the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// "psen": distinguishes a ledger from other SQLite databases.
pub(super) const APPLICATION: i64 = 0x7073_656e;

/// Size to which the log is truncated after its contents have been written into the database.
const LOG_KEPT: i64 = 4 << 20;

/// Page cache in KiB: the indices of 100,000 bans, so that their random order causes no reads.
const CACHE: i64 = 16 << 10;

/// Derives the grade of bans that were written before the column existed: if decoys were used, their connections were
/// the only TCP probes, possibly combined with probes of other protocols.
macro_rules! evidence_before {
    () => {
        "CASE WHEN author != 'detector' THEN NULL
        WHEN class = 'connect' AND NOT (ports LIKE '%udp/%' OR ports LIKE '%sctp/%' OR ports LIKE '%icmp/%')
        THEN 'proven' ELSE 'forgeable' END"
    };
}

/// The current format.
pub(super) const VERSION: i64 = 11;

/// Step N converts format N to N + 1. A released step is never changed.
const MIGRATIONS: [&str; 11] = [
    "
    CREATE TABLE ban (
        id INTEGER PRIMARY KEY,
        subject TEXT NOT NULL,        -- 192.0.2.7, 2001:db8:1:2::/64
        source TEXT NOT NULL,         -- the address that sent the deciding probe
        since INTEGER NOT NULL,       -- microseconds since 1970, as all times here
        until INTEGER,                -- NULL: never
        class TEXT,
        ports TEXT NOT NULL,          -- tcp/23 tcp/8080
        probes INTEGER NOT NULL,
        interface TEXT,
        strikes INTEGER NOT NULL,     -- bans of the subject before this one
        method TEXT NOT NULL,
        author TEXT NOT NULL,
        ended INTEGER,                -- NULL: its end is not recorded
        ending TEXT,                  -- expired, lifted, replaced
        lifted_by TEXT
    ) STRICT;
    CREATE INDEX ban_subject ON ban (subject);
    CREATE INDEX ban_open ON ban (until) WHERE ended IS NULL;
    CREATE INDEX ban_ended ON ban (ended) WHERE ended IS NOT NULL;
",
    // Earlier formats did not store which bans were above the ceiling. These lasted at most five minutes. So other bans
    // of this length do not count as strikes either, which does no harm.
    "
    ALTER TABLE ban ADD COLUMN capped INTEGER NOT NULL DEFAULT 0;  -- 1: above the ceiling, does not count as a strike
    UPDATE ban SET capped = 1 WHERE author = 'detector' AND until - since <= 300000000;
",
    "
    ALTER TABLE ban ADD COLUMN note TEXT;  -- what its author said
",
    concat!(
        "ALTER TABLE ban ADD COLUMN evidence TEXT;  -- forgeable, proven; NULL: none
        UPDATE ban SET evidence = ",
        evidence_before!(),
        ";"
    ),
    "
    CREATE TABLE service (
        protocol TEXT NOT NULL,       -- tcp, udp
        port INTEGER NOT NULL,
        address TEXT NOT NULL,        -- 0.0.0.0 and :: stand for every address of their family
        served INTEGER NOT NULL,      -- when it was last seen to be served
        PRIMARY KEY (protocol, port, address)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE boot (id TEXT NOT NULL) STRICT;  -- the boot in which the ledger was last opened
",
    "
    CREATE TABLE logged (              -- sources that would have been banned
        subject TEXT PRIMARY KEY,
        source TEXT NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        times INTEGER NOT NULL,
        class TEXT NOT NULL,
        ports TEXT NOT NULL,
        probes INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE INDEX logged_last ON logged (last);
",
    "
    CREATE TABLE trial (until INTEGER NOT NULL) STRICT;  -- at most one row
",
    "
    CREATE TABLE allowance (
        network TEXT PRIMARY KEY,
        since INTEGER NOT NULL,
        until INTEGER,                 -- NULL: until it is revoked
        author TEXT NOT NULL
    ) STRICT;
",
    "
    CREATE TABLE listener (            -- ports that were open lately
        protocol TEXT NOT NULL,
        port INTEGER NOT NULL,
        address TEXT NOT NULL,
        gone INTEGER,                  -- NULL: it is open
        PRIMARY KEY (protocol, port, address)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE kernel_table (id TEXT NOT NULL) STRICT;  -- boot and number of the kernel's table, which no file has
",
    "
    CREATE TABLE fleet_lift (          -- targets whose bans by the fleet operators have lifted
        target TEXT PRIMARY KEY,
        until INTEGER NOT NULL,
        author TEXT NOT NULL           -- host, fleet
    ) STRICT;
",
    "
    ALTER TABLE ban ADD COLUMN guest_port TEXT;  -- index and name of the bridge port of a guest
    ALTER TABLE ban ADD COLUMN undo INTEGER NOT NULL DEFAULT 0;  -- 1: the expiry command has to undo its command
    CREATE INDEX ban_undo ON ban (subject) WHERE undo = 1 AND ended IS NOT NULL;
    CREATE TABLE known_peer (          -- sources with a connection to a service, now or lately
        target TEXT PRIMARY KEY,
        since INTEGER NOT NULL,        -- start of the first connection
        last INTEGER NOT NULL          -- when it last had a connection
    ) STRICT;
",
];

/// First format with the grade of a ban.
const WITH_EVIDENCE: i64 = 4;

/// First format with the sources that would have been banned.
pub(super) const WITH_LOGGED: i64 = 6;

/// First format with the bridge port of a guest.
const WITH_GUEST_PORT: i64 = 11;

/// First format that records which commands have to be undone.
pub(super) const WITH_UNDO: i64 = 11;

/// The columns of `wanted` in a ledger of format `version`, which a reader must not migrate.
pub(super) fn columns(wanted: &str, version: i64) -> String {
    let mut columns = wanted.to_owned();
    if version < WITH_EVIDENCE {
        columns = columns.replace("evidence", evidence_before!());
    }
    if version < WITH_GUEST_PORT {
        columns = columns.replace("guest_port", "NULL");
    }
    columns
}

/// Opens the database at `path`, which exists and may be empty. Every statement of `used` must match its tables.
pub(super) fn connect<'a>(path: &Path, used: impl IntoIterator<Item = &'a str>) -> Result<Connection, LedgerError> {
    let classify = |error| classify(path, error);
    let mut connection = open(path).map_err(classify)?;
    if let Some(damage) = inspect(&connection).map_err(classify)? {
        return Err(LedgerError::Damaged { path: path.to_owned(), damage });
    }
    let found: i64 = pragma(&connection, "user_version").map_err(classify)?;
    refuse_newer(path, found)?;
    bring_up(&mut connection, found).map_err(classify)?;
    // A table with the right name but other columns is detected now instead of at the first ban.
    used.into_iter().try_for_each(|sql| connection.prepare(sql).map(drop)).map_err(classify)?;
    let mode: String = pragma(&connection, "journal_mode").map_err(classify)?;
    if mode == "wal" { Ok(connection) } else { Err(LedgerError::FileSystem(path.to_owned())) }
}

/// Refuses format `found` if a later release has written it.
pub(super) fn refuse_newer(path: &Path, found: i64) -> Result<(), LedgerError> {
    if found > VERSION { Err(LedgerError::Newer { path: path.to_owned(), found, known: VERSION }) } else { Ok(()) }
}

fn open(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags)?;
    harden(&connection)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_KEPT, |_| Ok(()))?;
    // A power failure may lose the last bans, never the file; the kernel's set is lost then too.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// Options of every connection, for writing or reading.
pub(super) fn harden(connection: &Connection) -> Result<(), Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // The schema on disk is untrusted data: it must not call functions, and no statement may modify it directly.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // Nothing is written outside of the state directory.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -CACHE)?;
    Ok(())
}

/// Returns a description of the damage, if there is any.
fn inspect(connection: &Connection) -> Result<Option<String>, Error> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Ok(Some(verdict));
    }
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let application: i64 = pragma(connection, "application_id")?;
    if tables > 0 && application != APPLICATION {
        return Ok(Some("the file is the database of another program".to_owned()));
    }
    Ok(None)
}

fn bring_up(connection: &mut Connection, found: i64) -> Result<(), Error> {
    let done = usize::try_from(found).unwrap_or_default();
    for (version, step) in (1_i64..).zip(MIGRATIONS).skip(done) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

pub(super) fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> Result<T, Error> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// Converts an error while opening, when more errors indicate a damaged file than later: for example a header that says
/// "read-only" or "format 9".
pub(super) fn classify(path: &Path, error: Error) -> LedgerError {
    let odd = match &error {
        Error::SqliteFailure(code, _) => matches!(code.code, ErrorCode::Unknown | ErrorCode::ReadOnly),
        Error::InvalidColumnType(..) | Error::FromSqlConversionFailure(..) | Error::Utf8Error(..) => true,
        _ => false,
    };
    if odd || is_damage(&error) {
        // Without the statement, which is long and does not help an operator.
        let damage = match error {
            Error::SqlInputError { msg, .. } => msg,
            error => error.to_string(),
        };
        LedgerError::Damaged { path: path.to_owned(), damage }
    } else {
        LedgerError::database("open", path)(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ledger_has_newest_format() {
        let mut connection = Connection::open_in_memory().unwrap();
        bring_up(&mut connection, 0).unwrap();
        assert_eq!(pragma::<i64>(&connection, "user_version").unwrap(), VERSION);
        assert_eq!(pragma::<i64>(&connection, "application_id").unwrap(), APPLICATION);
        assert_eq!(inspect(&connection).unwrap(), None);
        bring_up(&mut connection, VERSION).unwrap();
    }

    #[test]
    fn first_format_ledger_distinguishes_short_bans() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(MIGRATIONS[0]).unwrap();
        let minutes = |minutes: i64| minutes * 60_000_000;
        for (author, until) in [
            ("detector", Some(minutes(5))),
            ("detector", Some(minutes(6))),
            ("detector", None),
            ("operator", Some(minutes(1))),
        ] {
            let sql = "INSERT INTO ban (subject, source, since, until, ports, probes, strikes, method, author)
                       VALUES ('192.0.2.7', '192.0.2.7', 0, ?, '', 0, 0, 'nft', ?)";
            connection.execute(sql, (until, author)).unwrap();
        }
        bring_up(&mut connection, 1).unwrap();
        let mut statement = connection.prepare("SELECT capped FROM ban ORDER BY id").unwrap();
        let capped: Vec<bool> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert_eq!(capped, [true, false, false, false]);
    }
}
