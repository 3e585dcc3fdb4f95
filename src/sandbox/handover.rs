//! Gives the daemon's user the directories and files that root created for the daemon, or that belong to the user of an
//! earlier run. Every check and change uses an open descriptor, so that replacing a path with a link in between has no
//! effect.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, Uid, chownat, openat};
use rustix::io::Errno;

use super::dynamic_user;
use super::policy::Policy;
use super::user::{Account, NAME, user_id};
use crate::file::FileId;

/// Directories that belong to the system with all their contents, in addition to top-level ones and those in `/var`.
const SYSTEM: [&str; 13] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run/lock",
    "/run/systemd",
    "/sbin",
    "/sys",
    "/usr",
    "/var/spool",
];

/// The directory that fsck keeps at the top of a file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Why the daemon does not start with a directory of `--state-dir` or `--socket`.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error(
        "refused to change the owner of {} to {account}, because it is a system directory; use a separate directory \
         with --state-dir, --socket or fleet.socket",
        directory.display()
    )]
    SystemDirectory {
        directory: PathBuf,
        /// The user that the daemon would switch to.
        account: String,
    },
    /// The change would give away files of others, or put them under the control of the new owner.
    #[error(
        "refused to change the owner of {} to {account}, because it contains {entry:?}, which is not a file of \
         portsentry; use a new or empty directory with --state-dir, --socket or fleet.socket",
        directory.display()
    )]
    ForeignEntry {
        directory: PathBuf,
        /// The user that the daemon would switch to.
        account: String,
        entry: OsString,
    },
    #[error("cannot read {}: {error}; use another directory with --state-dir, --socket or fleet.socket", directory.display())]
    System { directory: PathBuf, error: io::Error },
}

/// An open directory of the daemon.
struct Directory {
    open: File,
    /// True if the directory itself changes its owner, and not only its files.
    is_given: bool,
}

/// Refuses a directory of `policy` that cannot be given to `account`. Changes nothing.
pub(super) fn check(policy: &Policy, account: &Account) -> Result<(), HandoverError> {
    let refused =
        |path: &PathBuf| inspect(path, policy, account, &[]).err().filter(|_| !policy.stays_roots(path, account));
    policy.own.iter().find_map(refused).map_or(Ok(()), Err)
}

/// The directories in [`Policy::write`] in which `account` cannot create and replace files. A missing directory is
/// created for the account, and an own directory is given to it.
pub(super) fn closed(policy: &Policy, account: &Account) -> Vec<PathBuf> {
    let is_given =
        |path: &PathBuf| policy.own.contains(path) && matches!(inspect(path, policy, account, &[]), Ok(Some(_)));
    let is_closed =
        |path: &&PathBuf| path.metadata().is_ok_and(|found| !account.can_replace(&found)) && !is_given(path);
    policy.write.iter().filter(is_closed).cloned().collect()
}

/// Own directories and files that `account` needs, but that belong to another user and are not given to it, each with
/// its owner.
pub(super) fn foreign(policy: &Policy, account: &Account) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for path in &policy.own {
        let Ok(directory) = path.metadata() else { continue };
        match inspect(path, policy, account, &[]) {
            Ok(None) if !policy.is_of_socket(path) && directory.uid() != account.uid => {
                found.push((path.clone(), directory.uid()));
            }
            Ok(Some(open)) => {
                // The start reports errors of this read.
                let _ = open.each_entry(|name, _, entry| {
                    let owner = entry.uid();
                    if policy.is_own_file(name, entry) && owner != account.uid && !is_to_give(owner, account) {
                        found.push((path.join(name), owner));
                    }
                    Ok(true)
                });
            }
            _ => {}
        }
    }
    found
}

/// Gives the own directories of `policy`, and the own files in them, to `account`. A directory listed in `made` was
/// just created and may be inside a system directory.
pub(super) fn give_away(policy: &Policy, account: &Account, made: &[PathBuf]) -> Result<(), HandoverError> {
    for path in &policy.own {
        let directory = match inspect(path, policy, account, made) {
            Ok(Some(directory)) => directory,
            Ok(None) => continue,
            Err(_) if policy.stays_roots(path, account) => continue,
            Err(error) => return Err(error),
        };
        let system = |error: Errno| HandoverError::System { directory: path.clone(), error: error.into() };
        directory
            .each_entry(|name, entry, found| {
                if policy.is_own_file(name, found) && found.nlink() == 1 && is_to_give(found.uid(), account) {
                    change_owner(entry, account)?;
                }
                Ok(true)
            })
            .map_err(system)?;
        if directory.is_given {
            change_owner(&directory.open, account).map_err(system)?;
        }
    }
    // For example the directory of a log that did not exist.
    for path in made.iter().filter(|made| policy.write.contains(made)) {
        if let Some(directory) = inspect(path, policy, account, made)?.filter(|directory| directory.is_given) {
            change_owner(&directory.open, account)
                .map_err(|error| HandoverError::System { directory: path.clone(), error: error.into() })?;
        }
    }
    give_socket(policy, account);
    Ok(())
}

/// Gives the control socket to `account` if its directory is not given. The account can then remove the socket if the
/// directory permits it.
fn give_socket(policy: &Policy, account: &Account) {
    let Some(path) = &policy.own_socket else { return };
    let Ok(open) = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) else { return };
    let open = File::from(open);
    let is_roots = |found: Metadata| found.file_type().is_socket() && found.nlink() == 1 && found.uid() == 0;
    if open.metadata().is_ok_and(is_roots) {
        // On failure the socket stays with root, and still works.
        let _ = change_owner(&open, account);
    }
}

/// Opens `path`; `None` if nothing is to be given: it is missing, a link or another user's, or `account` can write
/// there anyway.
fn inspect(
    path: &Path,
    policy: &Policy,
    account: &Account,
    made: &[PathBuf],
) -> Result<Option<Directory>, HandoverError> {
    let system = |error: io::Error| HandoverError::System { directory: path.to_owned(), error };
    // Without a trailing slash, which would follow a link.
    let plain: PathBuf = path.components().collect();
    let open = match openat(CWD, &plain, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(open) => File::from(open),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(system(error.into())),
    };
    let found = open.metadata().map_err(system)?;
    if found.uid() == account.uid {
        return Ok(Some(Directory { open, is_given: false }));
    }
    if !is_to_give(found.uid(), account) || account.may(&found, 0o3) {
        return Ok(None);
    }
    if !made.iter().any(|made| made == path) && is_system(path, &found).map_err(system)? {
        return Err(HandoverError::SystemDirectory { directory: path.to_owned(), account: account.to_string() });
    }
    let directory = Directory { open, is_given: true };
    let mut foreign = None;
    let own: Vec<FileId> =
        policy.own.iter().filter_map(|path| path.metadata().ok()).map(|own| FileId::from(&own)).collect();
    directory
        .each_entry(|name, _, found| {
            let is_own = match found.is_dir() {
                true => name == LOST_AND_FOUND || own.contains(&FileId::from(found)),
                // Another program may depend on a second hard link of a file.
                false => policy.is_own_file(name, found) && found.nlink() == 1,
            };
            if !is_own {
                foreign = Some(name.to_owned());
            }
            Ok(is_own)
        })
        .map_err(|error| system(error.into()))?;
    match foreign {
        Some(entry) => {
            Err(HandoverError::ForeignEntry { directory: path.to_owned(), account: account.to_string(), entry })
        }
        // A directory that others can write is shared with them.
        None => Ok((found.mode() & 0o022 == 0).then_some(directory)),
    }
}

impl Directory {
    /// Calls `act` with each entry, opened without following links, until it returns false.
    fn each_entry(&self, mut act: impl FnMut(&OsStr, &File, &Metadata) -> Result<bool, Errno>) -> Result<(), Errno> {
        for entry in Dir::read_from(&self.open)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let open = match openat(&self.open, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            {
                Ok(open) => File::from(open),
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            let found = open.metadata().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            if !act(name, &open, &found)? {
                break;
            }
        }
        Ok(())
    }
}

impl Policy {
    /// True for a file that the daemon creates, by name and type.
    fn is_own_file(&self, name: &OsStr, found: &Metadata) -> bool {
        let kind = found.file_type();
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.as_bytes().starts_with(start.as_bytes()),
            None => name == pattern.as_str(),
        };
        let mut sockets = self.own_socket.iter().chain(&self.shared_socket);
        kind.is_file() && self.own_files.iter().any(named)
            || kind.is_socket() && sockets.any(|own| own.file_name() == Some(name))
    }

    /// True for the directory of the control socket.
    fn is_of_socket(&self, directory: &Path) -> bool {
        self.own_socket.as_deref().and_then(Path::parent) == Some(directory)
    }

    /// True for a directory that need not be given away, because root creates the control socket in it. If the package
    /// has created a user, the socket's directory must be that user's own, and another one is refused.
    fn stays_roots(&self, directory: &Path, account: &Account) -> bool {
        account.is_dynamic() && self.is_of_socket(directory) && self.own.first().is_none_or(|state| state != directory)
    }
}

/// True for an owner whose directories and files may be given to `account`: root, and users of earlier runs. A uid that
/// a process has now is not one of those.
fn is_to_give(owner: u32, account: &Account) -> bool {
    owner != account.uid && (owner == 0 || user_id(NAME) == Some(owner) || dynamic_user::is_unused(owner))
}

/// Also works on a descriptor opened with `O_PATH`, so that the file itself need not be opened.
fn change_owner(open: &File, account: &Account) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    chownat(open, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// True if `path`, opened as `found`, is a directory that never belongs to a single program, after resolving links.
fn is_system(path: &Path, found: &Metadata) -> io::Result<bool> {
    let real = path.canonicalize()?;
    if FileId::from(&real.metadata()?) != FileId::from(found) {
        return Err(io::Error::other("the file was replaced in the meantime"));
    }
    let is_below = SYSTEM.iter().any(|directory| real.starts_with(directory));
    Ok(is_below || real.components().count() <= 2 || real.parent() == Some(Path::new("/var")))
}
