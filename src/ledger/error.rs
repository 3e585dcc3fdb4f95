//! Defines the errors of the ledger, with their remedies.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Error, ErrorCode};

use crate::types::printable::masked;

/// Why the ledger cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// It is behind a symbolic link, which another user could redirect.
    #[error("{0} is a symbolic link; replace it with a directory, or name its target with --state-dir")]
    Link(PathBuf),
    #[error("{path} is not a {wanted}; move it away")]
    Kind { path: PathBuf, wanted: &'static str },
    #[error(
        "{path} belongs to user {owner}, but portsentry runs as user {user}; check its contents and change its owner with chown"
    )]
    Owner {
        path: PathBuf,
        owner: u32,
        /// The user of this process.
        user: u32,
    },
    /// Its permissions are too open, or exclude the owner.
    #[error("{path} has mode {mode:04o}, but the ledger needs {wanted:04o}; run: chmod {wanted:04o} {path}")]
    Mode { path: PathBuf, mode: u32, wanted: u32 },
    #[error("cannot {doing} {path}: {error}")]
    System { doing: &'static str, path: PathBuf, error: io::Error },
    /// The state directory was replaced while the program runs, and the sandbox permits only the one of the start.
    #[error("cannot {doing} {path}: {error}, for example because its directory was replaced; restart portsentry")]
    Replaced { doing: &'static str, path: PathBuf, error: io::Error },
    #[error(
        "{path} was written by a newer portsentry (format {found}, this version reads formats up to {known}); \
         install the newer version again, or move the file away"
    )]
    Newer {
        path: PathBuf,
        found: i64,
        /// The newest supported format.
        known: i64,
    },
    /// The file system does not support it safely.
    #[error("the file system of {0} does not support SQLite's shared memory; put the state directory on a local disk")]
    FileSystem(PathBuf),
    /// The file is not a ledger, or is damaged.
    #[error("{path} is damaged: {}", one_line(damage))]
    Damaged { path: PathBuf, damage: String },
    #[error(
        "there is no ledger in {0}; portsentry creates it at its start, or logs why it cannot; --state-dir names another directory"
    )]
    Absent(PathBuf),
    #[error("this user cannot read {0}; run this with sudo, or as the user of portsentry")]
    Forbidden(PathBuf),
    /// A copy without the index of its log, which a reader must not create.
    #[error("{0}-wal contains the last bans, but {0}-shm is missing; copy all three files, or start portsentry once")]
    Incomplete(PathBuf),
    /// The daemon is started and stopped faster than its ledger can be read.
    #[error("{0} kept changing while it was read; try again")]
    Changing(PathBuf),
    #[error("cannot {doing} {path}: {}", one_line(error))]
    Database { doing: &'static str, path: PathBuf, error: rusqlite::Error },
}

impl LedgerError {
    pub(crate) fn system(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { doing, path: path.to_owned(), error }
    }

    /// Names the remedy for a directory that was replaced after the start.
    pub(super) fn while_running(self) -> Self {
        match self {
            Self::System { doing, path, error } if error.kind() == io::ErrorKind::PermissionDenied => {
                Self::Replaced { doing, path, error }
            }
            other => other,
        }
    }

    pub(super) fn database(doing: &'static str, path: &Path) -> impl FnOnce(rusqlite::Error) -> Self {
        move |error| Self::Database { doing, path: path.to_owned(), error }
    }

    /// True if the file can no longer be trusted and must be replaced.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Database { error, .. } => is_damage(error),
            _ => false,
        }
    }
}

/// SQLite quotes the file in its messages, and another program may have written the file.
fn one_line(text: &impl ToString) -> String {
    masked(&text.to_string(), ' ').collect()
}

/// All statements of the ledger are fixed and correct, so an error about a table or a constraint is caused by the file.
pub(super) fn is_damage(error: &Error) -> bool {
    let codes = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase, ErrorCode::ConstraintViolation];
    matches!(error, Error::SqlInputError { .. }) || error.sqlite_error_code().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_directory_needs_restart() {
        let refused = |kind: io::ErrorKind| {
            LedgerError::system("create", Path::new("/state"))(kind.into()).while_running().to_string()
        };
        assert!(refused(io::ErrorKind::PermissionDenied).ends_with("; restart portsentry"), "the sandbox denies it");
        assert!(!refused(io::ErrorKind::StorageFull).contains("restart"), "the next attempt can succeed");
    }

    #[test]
    fn damaged_file_cannot_control_terminal() {
        let damage = "malformed database schema (ban) - near \"\u{1b}]0;x\u{7}\nattackalert\": syntax error".to_owned();
        let error = LedgerError::Damaged { path: "/ledger.sqlite".into(), damage };
        let expected =
            "/ledger.sqlite is damaged: malformed database schema (ban) - near \" ]0;x  attackalert\": syntax error";
        assert_eq!(error.to_string(), expected);
    }
}
