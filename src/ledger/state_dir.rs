//! Creates the state directory and its files so that no other user can read or change them, and refuses existing ones
//! if another user could. A user with write access to the directory could lift any ban, or redirect the daemon's
//! writes.

use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::LedgerError;

/// The database's name in the state directory.
pub const DATABASE: &str = "ledger.sqlite";

/// Mode bits for writing by others, refused for the directory.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// Mode bits for any access by others, refused for the database.
const ANYTHING_BY_OTHERS: u32 = 0o077;
/// Mode bits that the owner needs.
const OWNER: u32 = 0o600;

/// Suffixes of the files that SQLite keeps beside a database.
const DATABASE_SUFFIXES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Maximum number of quarantined databases, so that a failing disk is not filled with them.
const KEPT_ASIDE: usize = 3;

/// A verified state directory.
#[derive(Clone, Debug)]
pub(super) struct StateDir {
    pub(super) directory: PathBuf,
}

impl StateDir {
    /// Creates `directory` if it is missing; refuses one that another user can write.
    pub(super) fn prepare(directory: &Path) -> Result<Self, LedgerError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        let found = fs::symlink_metadata(directory);
        let found = match (found, made) {
            (Ok(found), _) => found,
            (Err(_), Err(error)) | (Err(error), Ok(())) => {
                return Err(LedgerError::system("create the state directory", directory)(error));
            }
        };
        refuse_link(directory, &found)?;
        if !found.is_dir() {
            return Err(LedgerError::Kind { path: directory.to_owned(), wanted: "directory" });
        }
        refuse_owner(directory, found.uid())?;
        if found.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(LedgerError::Mode { path: directory.to_owned(), mode: found.mode() & 0o7777, wanted: 0o700 });
        }
        // The path to the directory belongs to the administrator and may contain links, which SQLite refuses when it
        // opens the database.
        let directory = directory.canonicalize().map_err(LedgerError::system("find", directory))?;
        Ok(Self { directory })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Creates the database's file if it is missing, so that it never exists with a less strict mode; true if it is
    /// new.
    pub(super) fn claim(&self, name: &str) -> Result<bool, LedgerError> {
        // SQLite opens these by itself, and would wait for ever for the writer of a FIFO.
        for suffix in DATABASE_SUFFIXES {
            check_file(&self.file(&format!("{name}{suffix}")))?;
        }
        let path = self.file(name);
        let Some(found) = check_file(&path)? else {
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            return made.map(|_| true).map_err(LedgerError::system("create", &path));
        };
        let mode = found.mode() & 0o7777;
        if mode & ANYTHING_BY_OTHERS != 0 || mode & OWNER != OWNER {
            return Err(LedgerError::Mode { path, mode, wanted: OWNER });
        }
        Ok(found.len() == 0)
    }

    /// Moves a damaged database out of the way, keeps it for inspection, and returns its new path.
    pub(super) fn quarantine(&self, name: &str) -> Result<PathBuf, LedgerError> {
        let stem = format!("{name}.corrupt-");
        self.prune(&stem)?;
        let mut stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        while self.file(&format!("{stem}{stamp}")).exists() {
            stamp += 1;
        }
        let aside = self.file(&format!("{stem}{stamp}"));
        // The log first: a log without its database could be taken for that of the new one.
        for suffix in DATABASE_SUFFIXES.into_iter().chain([""]) {
            let (from, mut to) = (self.file(&format!("{name}{suffix}")), aside.clone().into_os_string());
            to.push(suffix);
            if_found(fs::rename(&from, &to)).map_err(LedgerError::system("rename", &from))?;
        }
        Ok(aside)
    }

    /// Removes the oldest quarantined database to make room for one more.
    fn prune(&self, stem: &str) -> Result<(), LedgerError> {
        let found = fs::read_dir(&self.directory).map_err(LedgerError::system("read", &self.directory))?;
        let names = found.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut stamps: Vec<u64> = names.filter_map(|name| name.strip_prefix(stem)?.parse().ok()).collect();
        stamps.sort_unstable();
        let surplus = (stamps.len() + 1).saturating_sub(KEPT_ASIDE);
        for stamp in stamps.into_iter().take(surplus) {
            for suffix in DATABASE_SUFFIXES.into_iter().chain([""]) {
                let path = self.file(&format!("{stem}{stamp}{suffix}"));
                if_found(fs::remove_file(&path)).map_err(LedgerError::system("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// The metadata of the file at `path`, which is refused unless it is a regular file of this process's user; `None` if
/// it is missing.
pub(super) fn check_file(path: &Path) -> Result<Option<Metadata>, LedgerError> {
    let found = if_found(fs::symlink_metadata(path)).map_err(LedgerError::system("inspect", path))?;
    if let Some(found) = &found {
        refuse_link(path, found)?;
        if !found.is_file() {
            return Err(LedgerError::Kind { path: path.to_owned(), wanted: "regular file" });
        }
        refuse_owner(path, found.uid())?;
    }
    Ok(found)
}

/// The result of a file operation; `None` if the file is missing.
pub(super) fn if_found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn refuse_link(path: &Path, found: &Metadata) -> Result<(), LedgerError> {
    if found.is_symlink() { Err(LedgerError::Link(path.to_owned())) } else { Ok(()) }
}

fn refuse_owner(path: &Path, owner: u32) -> Result<(), LedgerError> {
    let user = rustix::process::geteuid().as_raw();
    if owner == user { Ok(()) } else { Err(LedgerError::Owner { path: path.to_owned(), owner, user }) }
}
