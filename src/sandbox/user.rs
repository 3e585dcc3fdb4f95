//! Switches from root to the program's own user, if such a user exists and can access what it needs.
//!
//! References: capabilities(7) on changes of the user, and PR_SET_KEEPCAPS in prctl(2).

use std::ffi::CString;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, User, getgrouplist, setgroups, setresgid, setresuid};
use rustix::thread::set_keep_capabilities;

use super::Policy;

/// The program's own user, which its package makes.
pub(super) const NAME: &str = "portsentry";

/// The name of `user`, if it has one.
pub(super) fn name(user: u32) -> Option<String> {
    if user == 0 {
        // Without a question to a name service.
        return Some("root".to_owned());
    }
    User::from_uid(user.into()).ok().flatten().map(|found| found.name)
}

/// Creates `folder` for its owner only; true if it was missing.
pub(super) fn make(folder: &Path) -> io::Result<bool> {
    let mut builder = DirBuilder::new();
    builder.mode(0o750);
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        builder.recursive(true).create(parent)?;
    }
    match builder.recursive(false).create(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The program's own user, with its groups.
pub(super) struct Account {
    user: User,
    groups: Vec<Gid>,
}

impl Account {
    /// The user that a process with `policy` is to become; a sentence where it stays what it is, and `None` where that is
    /// not root.
    pub(super) fn find(policy: &Policy) -> Result<Self, Option<String>> {
        if !rustix::process::geteuid().is_root() {
            return Err(None);
        }
        let user = match (policy.root, User::from_name(NAME)) {
            (Some(why), _) => return Err(Some(why.to_owned())),
            (None, Err(error)) => return Err(Some(format!("the user {NAME} cannot be looked up ({error})"))),
            (None, Ok(None)) => {
                return Err(Some(format!("there is no user {NAME} (the package makes one: sysusers.d)")));
            }
            (None, Ok(Some(user))) => user,
        };
        let name = CString::new(NAME).map_err(|error| error.to_string())?;
        let groups = getgrouplist(&name, user.gid).map_err(unable)?;
        let account = Self { user, groups };
        account.reaches(policy)?;
        Ok(account)
    }

    pub(super) fn uid(&self) -> u32 {
        self.user.uid.as_raw()
    }

    pub(super) fn gid(&self) -> u32 {
        self.user.gid.as_raw()
    }

    /// Whether it has all of `bits` (4 to read, 2 to write, 1 to search).
    pub(super) fn may(&self, found: &Metadata, bits: u32) -> bool {
        may(found, bits, self.uid(), &self.group_ids())
    }

    fn group_ids(&self) -> Vec<u32> {
        self.groups.iter().map(|group| group.as_raw()).collect()
    }

    /// Refuses, with a sentence, where the user could not get at what `policy` names.
    fn reaches(&self, policy: &Policy) -> Result<(), String> {
        for path in policy.own.iter().chain(&policy.write).chain(&policy.settings) {
            if let Some(closed) = closed_to(path, self.uid(), &self.group_ids()) {
                return Err(format!("the user {NAME} cannot reach {} through {}", path.display(), closed.display()));
            }
        }
        for (paths, bit, doing) in [(&policy.settings, 0o4, "read"), (&policy.write, 0o3, "write to")] {
            let closed = |path: &&PathBuf| fs::metadata(path).is_ok_and(|found| !self.may(&found, bit));
            if let Some(path) = paths.iter().find(closed) {
                return Err(format!("the user {NAME} cannot {doing} {}", path.display()));
            }
        }
        Ok(())
    }

    /// Becomes the user. Capabilities stay.
    pub(super) fn enter(&self) -> Result<(), String> {
        let (uid, gid) = (self.user.uid, self.user.gid);
        set_keep_capabilities(true).map_err(|error| format!("the user {NAME} would lose CAP_NET_ADMIN ({error})"))?;
        setgroups(&self.groups).map_err(unable)?;
        setresgid(gid, gid, gid).map_err(unable)?;
        setresuid(uid, uid, uid).map_err(unable)
    }
}

fn unable(error: nix::Error) -> String {
    format!("the user {NAME} cannot be taken on ({error})")
}

/// The first folder on the way to `path` that `user` may not pass.
fn closed_to<'a>(path: &'a Path, user: u32, groups: &[u32]) -> Option<&'a Path> {
    let mut way: Vec<&Path> = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).collect();
    way.reverse();
    way.into_iter().find(|folder| fs::metadata(folder).is_ok_and(|found| !may(&found, 0o1, user, groups)))
}

/// Whether `user` has all of `bits` (4 to read, 2 to write, 1 to search).
fn may(found: &Metadata, bits: u32, user: u32, groups: &[u32]) -> bool {
    let shift = match () {
        () if found.uid() == user => 6,
        () if groups.contains(&found.gid()) => 3,
        () => 0,
    };
    found.mode() >> shift & bits == bits
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_that_is_closed_on_the_way_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (closed, inside) = (folder.path().join("closed"), folder.path().join("closed/state"));
        fs::create_dir_all(&inside).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (mode, found) in [(0o700, true), (0o711, false), (0o755, false)] {
            fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(closed_to(&inside, 4_242, &[4_242]).is_some_and(|path| path == closed), found, "{mode:o}");
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o710)).unwrap();
        let group = fs::metadata(&closed).unwrap().gid();
        assert_eq!(closed_to(&inside, 4_242, &[group]), None);
    }
}
