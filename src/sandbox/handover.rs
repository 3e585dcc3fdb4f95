//! Gives folders and files that root created for the daemon to the daemon's user, also those of an earlier run under
//! another user. Every check and every change of owner uses an open descriptor, so that replacing a path by a link in
//! between gives nothing away.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::User;
use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, Uid, chownat, openat};
use rustix::io::Errno;

use super::Policy;
use super::dynamic_user;
use super::name_service::looked_up;
use super::user::{Account, NAME};

/// Folders that belong to the system with all that is below them, beside those at the top of the tree and in `/var`.
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

/// The folder that fsck keeps at the top of a file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Why the daemon does not start with a folder of `--state-dir` or `--socket`.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Other programs rely on it.
    #[error(
        "refused to give {} to {account}: it is a system folder; name a folder of portsentry's own with --state-dir, --socket or fleet.socket",
        folder.display()
    )]
    SystemFolder {
        /// The folder.
        folder: PathBuf,
        /// The user that the daemon would become.
        account: String,
    },
    /// Files of others would be given away, or be at the mercy of the folder's new owner.
    #[error(
        "refused to give {} to {account}: it holds {entry:?}, which is no file of portsentry's; name a new or an empty folder \
         with --state-dir, --socket or fleet.socket",
        folder.display()
    )]
    ForeignEntry {
        /// The folder.
        folder: PathBuf,
        /// The user that the daemon would become.
        account: String,
        /// What it holds.
        entry: OsString,
    },
    /// The operating system refused something.
    #[error("cannot look into {}: {error}; name another folder with --state-dir, --socket or fleet.socket", folder.display())]
    System {
        /// The folder.
        folder: PathBuf,
        error: io::Error,
    },
}

/// A folder of the daemon's, held open.
struct Folder {
    open: File,
    /// It is not the account's yet, and is to be given away as well as its files.
    is_given: bool,
}

/// Refuses a folder of `policy` that could not be given to `account`. Changes nothing.
pub(super) fn check(policy: &Policy, account: &Account) -> Result<(), HandoverError> {
    let refused =
        |path: &PathBuf| inspect(path, policy, account, &[]).err().filter(|_| !policy.stays_roots(path, account));
    policy.own.iter().find_map(refused).map_or(Ok(()), Err)
}

/// The folders among [`Policy::write`] in which `account` could not make and replace files. One that is missing is made for
/// it, and one of its own is given to it.
pub(super) fn closed(policy: &Policy, account: &Account) -> Vec<PathBuf> {
    let is_given =
        |path: &PathBuf| policy.own.contains(path) && matches!(inspect(path, policy, account, &[]), Ok(Some(_)));
    let is_closed =
        |path: &&PathBuf| path.metadata().is_ok_and(|found| !account.can_replace(&found)) && !is_given(path);
    policy.write.iter().filter(is_closed).cloned().collect()
}

/// Own folders and files that `account` needs for itself, and that belong to another user who keeps them; with their owner.
pub(super) fn foreign(policy: &Policy, account: &Account) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for path in &policy.own {
        let Ok(folder) = path.metadata() else { continue };
        match inspect(path, policy, account, &[]) {
            Ok(None) if !policy.is_of_socket(path) && folder.uid() != account.uid() => {
                found.push((path.clone(), folder.uid()));
            }
            Ok(Some(open)) => {
                // What cannot be read is found by the start.
                let _ = open.each_entry(|name, _, entry| {
                    let owner = entry.uid();
                    if policy.is_own_file(name, entry) && owner != account.uid() && !is_to_give(owner, account) {
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

/// Gives the own folders of `policy` to `account`, and the own files in them. A folder that is among those just `made` may
/// lie in a system folder.
pub(super) fn give(policy: &Policy, account: &Account, made: &[PathBuf]) -> Result<(), HandoverError> {
    for path in &policy.own {
        let folder = match inspect(path, policy, account, made) {
            Ok(Some(folder)) => folder,
            Ok(None) => continue,
            Err(_) if policy.stays_roots(path, account) => continue,
            Err(error) => return Err(error),
        };
        let system = |error: Errno| HandoverError::System { folder: path.clone(), error: error.into() };
        folder
            .each_entry(|name, entry, found| {
                if policy.is_own_file(name, found) && found.nlink() == 1 && is_to_give(found.uid(), account) {
                    change_owner(entry, account)?;
                }
                Ok(true)
            })
            .map_err(system)?;
        if folder.is_given {
            change_owner(&folder.open, account).map_err(system)?;
        }
    }
    // The folder of a log, say, that was not there.
    for path in made.iter().filter(|made| policy.write.contains(made)) {
        if let Some(folder) = inspect(path, policy, account, made)?.filter(|folder| folder.is_given) {
            change_owner(&folder.open, account)
                .map_err(|error| HandoverError::System { folder: path.clone(), error: error.into() })?;
        }
    }
    give_socket(policy, account);
    Ok(())
}

/// Gives the control socket to `account` where its folder is not given, so that this one can remove it as far as the folder
/// allows that.
fn give_socket(policy: &Policy, account: &Account) {
    let Some(path) = &policy.own_socket else { return };
    let Ok(open) = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) else { return };
    let open = File::from(open);
    let is_roots = |found: Metadata| found.file_type().is_socket() && found.nlink() == 1 && found.uid() == 0;
    if open.metadata().is_ok_and(is_roots) {
        // Where it fails the socket stays root's, and works all the same.
        let _ = change_owner(&open, account);
    }
}

/// Opens `path`; `None` where there is nothing to be given: it is missing, a link, another user's, or `account` may write
/// there without.
fn inspect(path: &Path, policy: &Policy, account: &Account, made: &[PathBuf]) -> Result<Option<Folder>, HandoverError> {
    let system = |error: io::Error| HandoverError::System { folder: path.to_owned(), error };
    // Without a slash at the end, which would follow a link.
    let plain: PathBuf = path.components().collect();
    let open = match openat(CWD, &plain, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(open) => File::from(open),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(system(error.into())),
    };
    let found = open.metadata().map_err(system)?;
    if found.uid() == account.uid() {
        return Ok(Some(Folder { open, is_given: false }));
    }
    if !is_to_give(found.uid(), account) || account.may(&found, 0o3) {
        return Ok(None);
    }
    if !made.iter().any(|made| made == path) && is_system(path, &found).map_err(system)? {
        return Err(HandoverError::SystemFolder { folder: path.to_owned(), account: account.to_string() });
    }
    let folder = Folder { open, is_given: true };
    let mut foreign = None;
    let own: Vec<(u64, u64)> = policy.own.iter().filter_map(|path| path.metadata().ok()).map(|own| id(&own)).collect();
    folder
        .each_entry(|name, _, found| {
            let is_own = match found.is_dir() {
                true => name == LOST_AND_FOUND || own.contains(&id(found)),
                // A second name of a file may be one that another program relies on.
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
            Err(HandoverError::ForeignEntry { folder: path.to_owned(), account: account.to_string(), entry })
        }
        // One that others may write to is shared with them.
        None => Ok((found.mode() & 0o022 == 0).then_some(folder)),
    }
}

impl Folder {
    /// Calls `act` with each entry, opened without following it, until it answers false.
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
    /// True for a file that the daemon itself makes: by its name and its kind.
    fn is_own_file(&self, name: &OsStr, found: &Metadata) -> bool {
        let kind = found.file_type();
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.as_bytes().starts_with(start.as_bytes()),
            None => name == pattern.as_str(),
        };
        (kind.is_file() && self.own_files.iter().any(named))
            || (kind.is_socket()
                && [&self.own_socket, &self.shared_socket]
                    .into_iter()
                    .flatten()
                    .any(|own| own.file_name() == Some(name)))
    }

    /// True for the folder of the control socket.
    fn is_of_socket(&self, folder: &Path) -> bool {
        self.own_socket.as_deref().and_then(Path::parent) == Some(folder)
    }

    /// True for a folder that need not be given away: root makes the control socket in it. Where the package has made a user,
    /// the folder of the socket is to be that user's own, and another one is refused.
    fn stays_roots(&self, folder: &Path, account: &Account) -> bool {
        account.is_dynamic() && self.is_of_socket(folder) && self.own.first().is_none_or(|state| state != folder)
    }
}

/// True for an owner whose folders and files may be given to `account`: root, and what an earlier run may have been. A number
/// that a process has now is not among those.
fn is_to_give(owner: u32, account: &Account) -> bool {
    let is_package = || matches!(looked_up(User::from_name(NAME)), Ok(Some(user)) if user.uid.as_raw() == owner);
    owner != account.uid() && (owner == 0 || is_package() || dynamic_user::is_unused(owner))
}

fn id(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Of a descriptor that stands for a file and not for its content (`O_PATH`) too, so that no file is opened for it.
fn change_owner(open: &File, account: &Account) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(account.uid()), Gid::from_raw(account.gid()));
    chownat(open, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// True where `path`, which was `found` open, is a folder that is never one program's own, wherever links lead to it.
fn is_system(path: &Path, found: &Metadata) -> io::Result<bool> {
    let real = path.canonicalize()?;
    if id(&real.metadata()?) != id(found) {
        return Err(io::Error::other("it was replaced meanwhile"));
    }
    let is_below = SYSTEM.iter().any(|folder| real.starts_with(folder));
    Ok(is_below || real.components().count() <= 2 || real.parent() == Some(Path::new("/var")))
}
