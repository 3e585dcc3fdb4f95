//! Switches from root to the program's own user, or to an unused uid if the host has no such user.
//!
//! References: capabilities(7) on changes of the user, and PR_SET_KEEPCAPS in prctl(2).

use std::ffi::CString;
use std::fmt;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitySet, capabilities, set_keep_capabilities};

use super::dynamic_user::{self, is_mapped, looked_up};
use super::policy::Policy;
use crate::file;

/// The program's own user, created by its package.
pub(super) const NAME: &str = "portsentry";

/// The sticky bit: in a directory that has it, only the owner of a file, the owner of the directory or root can replace
/// the file.
pub(super) const STICKY: u32 = 0o1000;

pub(super) fn name(user: u32) -> Option<String> {
    if user == 0 {
        // Without a name service query.
        return Some("root".to_owned());
    }
    User::from_uid(user.into()).ok().flatten().map(|found| found.name)
}

/// The uid of the user `name`; `None` if it does not exist. Call it before the sandbox closes the user database.
pub fn user_id(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|found| found.uid.as_raw())
}

/// Permits other users to pass through `directory` if this process owns it: they can open accessible files, but not
/// list the directory.
pub(super) fn let_pass(directory: &Path) {
    let Ok(found) = fs::symlink_metadata(directory) else { return };
    if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o001 == 0 {
        // On failure, the fleet process reports that it cannot connect.
        let _ = fs::set_permissions(directory, fs::Permissions::from_mode(found.mode() & 0o7777 | 0o001));
    }
}

/// Creates `directory` for its owner only; true if it was missing.
pub(super) fn make(directory: &Path) -> io::Result<bool> {
    let mut builder = DirBuilder::new();
    builder.mode(0o750);
    if let Some(parent) = file::directory(directory) {
        builder.recursive(true).create(parent)?;
    }
    match builder.recursive(false).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The user that the daemon switches to, with its groups.
pub(super) struct Account {
    name: Option<&'static str>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    groups: Vec<u32>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "the user {name}"),
            None => write!(f, "user {}", self.uid),
        }
    }
}

impl Account {
    /// Finds the user that a process with `policy` switches to: `portsentry`, or an unused uid if the host has no such
    /// user. The error is the reason to stay root, or `None` if the process is not root.
    pub(super) fn find(policy: &Policy) -> Result<Self, Option<String>> {
        if !rustix::process::geteuid().is_root() {
            return Err(None);
        }
        if let Some(why) = policy.root {
            return Err(Some(why.to_owned()));
        }
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
        let missing = needed - capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        if !missing.is_empty() {
            let names: Vec<String> = missing.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
            return Err(Some(format!("portsentry cannot change its user without {}", names.join(", "))));
        }
        let account = match looked_up(User::from_name(NAME)) {
            Ok(Some(user)) if !user.uid.is_root() => Self::from_user(&user)?,
            _ => Self::dynamic(policy).ok_or_else(|| {
                format!("there is no user {NAME} (the package creates it with sysusers.d) and no unused user number")
            })?,
        };
        if !is_mapped(account.uid) {
            return Err(Some(format!("this user namespace does not have {account}")));
        }
        Ok(account)
    }

    fn from_user(user: &User) -> Result<Self, String> {
        let name = CString::new(NAME).map_err(|error| error.to_string())?;
        let groups = getgrouplist(&name, user.gid).map_err(|error| format!("the groups of {NAME}: {error}"))?;
        let groups = groups.iter().map(|group| group.as_raw()).collect();
        Ok(Self { name: Some(NAME), uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups })
    }

    fn dynamic(policy: &Policy) -> Option<Self> {
        let number = dynamic_user::choose(&policy.own)?;
        Some(Self { name: None, uid: number, gid: number, groups: vec![number] })
    }

    /// Root, for a daemon that must stay root.
    pub(super) fn root() -> Self {
        Self { name: Some("root"), uid: 0, gid: 0, groups: vec![0] }
    }

    /// True for a uid without an account.
    pub(super) fn is_dynamic(&self) -> bool {
        self.name.is_none()
    }

    /// True if it has all of `bits` (4 to read, 2 to write, 1 to search).
    pub(super) fn may(&self, found: &Metadata, bits: u32) -> bool {
        let shift = match () {
            () if found.uid() == self.uid => 6,
            () if self.groups.contains(&found.gid()) => 3,
            () => 0,
        };
        found.mode() >> shift & bits == bits
    }

    /// The first directory on the path that it cannot pass.
    fn closed_to<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let mut directories: Vec<&Path> =
            path.ancestors().skip(1).filter(|directory| !directory.as_os_str().is_empty()).collect();
        directories.reverse();
        directories.into_iter().find(|directory| fs::metadata(directory).is_ok_and(|found| !self.may(&found, 0o1)))
    }

    /// Returns a warning if it can access the paths of `policy` only with CAP_DAC_READ_SEARCH, because a directory on
    /// the path or a configuration file is closed to it.
    pub(super) fn is_shut_out(&self, policy: &Policy) -> Option<String> {
        for path in policy.own.iter().chain(&policy.write).chain(&policy.config_files) {
            if let Some(closed) = self.closed_to(path).filter(|closed| !policy.own.iter().any(|own| own == closed)) {
                return Some(format!(
                    "{self} cannot reach {}, because it has no permission on {}",
                    path.display(),
                    closed.display()
                ));
            }
        }
        let unreadable = |path: &&PathBuf| fs::metadata(path).is_ok_and(|found| !self.may(&found, 0o4));
        let path = policy.config_files.iter().find(unreadable)?;
        Some(format!("{self} cannot read {}", path.display()))
    }

    /// True if it can create and replace files in a directory. In a sticky directory, files of others can be neither
    /// replaced nor renamed.
    pub(super) fn can_replace(&self, found: &Metadata) -> bool {
        self.may(found, 0o3) && (found.mode() & STICKY == 0 || found.uid() == self.uid)
    }

    /// Switches to the user. Capabilities are kept.
    pub(super) fn enter(&self) -> Result<(), String> {
        let unable = |error: io::Error| format!("cannot switch to {self} ({error})");
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_keep_capabilities(true).map_err(|error| unable(error.into()))?;
        setgroups(&groups).map_err(|error| unable(error.into()))?;
        setresgid(gid, gid, gid).map_err(|error| unable(error.into()))?;
        setresuid(uid, uid, uid).map_err(|error| unable(error.into()))
    }
}

/// The file, or a directory on its path, that prevents the user of a service, with additional `groups`, from using
/// `file` with all of `bits` (4 to read, 1 to execute). `None` if nothing prevents it, or if there is no such user.
pub fn obstacle_for(user: &str, groups: &[&str], file: &Path, bits: u32) -> Option<PathBuf> {
    let found = looked_up(User::from_name(user)).ok()??;
    let own = getgrouplist(&CString::new(user).ok()?, found.gid).ok()?;
    let others = groups.iter().filter_map(|group| Group::from_name(group).ok()?).map(|group| group.gid);
    let groups = own.into_iter().chain(others).map(Gid::as_raw).collect();
    let account = Account { name: None, uid: found.uid.as_raw(), gid: found.gid.as_raw(), groups };
    let file = file.canonicalize().ok()?;
    let directory = account.closed_to(&file).map(Path::to_owned);
    directory.or_else(|| fs::metadata(&file).is_ok_and(|found| !account.may(&found, bits)).then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_directory_on_path_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let (closed, inside) = (directory.path().join("closed"), directory.path().join("closed/state"));
        fs::create_dir_all(&inside).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let account = |group| Account { name: None, uid: 4_242, gid: group, groups: vec![group] };
        for (mode, found) in [(0o700, true), (0o711, false), (0o755, false)] {
            fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(account(4_242).closed_to(&inside).is_some_and(|path| path == closed), found, "{mode:o}");
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o710)).unwrap();
        let group = fs::metadata(&closed).unwrap().gid();
        assert_eq!(account(group).closed_to(&inside), None);
    }
}
