//! Errors of the ledger, with their remedies.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Error, ErrorCode};

/// Why the ledger cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It lies behind a symbolic link, which another user may point elsewhere.
    #[error("{0} is a symbolic link; put the real one in its place, or name the state directory that it points to")]
    Link(PathBuf),
    /// It is not what stands there.
    #[error("{path} is no {wanted}; move it away")]
    Kind {
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
    },
    /// It belongs to another user.
    #[error(
        "{path} belongs to user {owner}, but portsentry runs as user {user}; chown it, after a look at what is in it"
    )]
    Owner {
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Its permissions let others in, or the owner not.
    #[error("{path} has mode {mode:04o}, which is not safe for the ledger; run: chmod {wanted:04o} {path}")]
    Mode {
        path: PathBuf,
        /// What it has.
        mode: u32,
        /// What it should have.
        wanted: u32,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {error}")]
    System { doing: &'static str, path: PathBuf, error: io::Error },
    /// A later release has written it.
    #[error(
        "{path} has format {found}, and this portsentry knows formats up to {known}; install the newer portsentry again, \
         or move the file away"
    )]
    Newer {
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// The file system cannot hold it safely.
    #[error("{0} lies on a file system without shared memory for its log; put the state directory on a local disk")]
    FileSystem(PathBuf),
    /// What is in it is not a ledger, or no more.
    #[error("{path} is damaged: {damage}")]
    Damaged { path: PathBuf, damage: String },
    /// There is none, or the program has not come to fill it.
    #[error("there is no ledger in {0}; portsentry makes it when it starts, and --state-dir names another directory")]
    Absent(PathBuf),
    /// It is not for this user.
    #[error("{0} may not be read by this user; run this as root, or as the user that portsentry runs as")]
    Forbidden(PathBuf),
    /// A copy without the index of its log, which a reader may not make.
    #[error("{0}-wal holds the last bans, but {0}-shm is missing; copy all three files, or start portsentry once")]
    Incomplete(PathBuf),
    /// The program is started and ended faster than its ledger can be read.
    #[error("{0} was changed again and again while it was read; try again")]
    Changing(PathBuf),
    /// The database refused something.
    #[error("cannot {doing} {path}: {error}")]
    Database { doing: &'static str, path: PathBuf, error: rusqlite::Error },
}

impl LedgerError {
    pub(crate) fn system(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::System { doing, path, error }
    }

    pub(super) fn database(doing: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Database { doing, path, error }
    }

    /// The file is not to be trusted any more: only a new one helps.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Database { error, .. } => is_damage(error),
            _ => false,
        }
    }
}

/// All statements of the ledger are fixed and right for it, so one that a table or a constraint does not fit tells of the
/// file.
pub(super) fn is_damage(error: &Error) -> bool {
    let codes = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase, ErrorCode::ConstraintViolation];
    matches!(error, Error::SqlInputError { .. }) || error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
}
