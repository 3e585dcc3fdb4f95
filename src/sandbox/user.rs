//! Root to the program's own user, where there is one that can reach what it needs.
//!
//! Read with: capabilities(7) on changes of the user, and PR_SET_KEEPCAPS in prctl(2).

use std::ffi::CString;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use nix::unistd::{User, getgrouplist, setgroups, setresgid, setresuid};
use rustix::thread::set_keep_capabilities;

use super::Policy;

/// The program's own user, which its package makes.
pub(super) const NAME: &str = "portsentry";

/// Files of a folder that are given to the user; there are a handful.
const FILES: usize = 256;

/// The name of `user`, if it has one.
pub(super) fn name(user: u32) -> Option<String> {
    if user == 0 {
        // Without a question to a name service.
        return Some("root".to_owned());
    }
    User::from_uid(user.into()).ok().flatten().map(|found| found.name)
}

/// Makes `folder` for nobody but its owner.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(folder)
}

/// Becomes the own user where this is root, and says where it stays root. Capabilities stay.
pub(super) fn switch(policy: &Policy, warnings: &mut Vec<String>) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let stays = match (policy.root, User::from_name(NAME)) {
        (Some(why), _) => why.to_owned(),
        (None, Err(error)) => format!("the user {NAME} cannot be looked up ({error})"),
        (None, Ok(None)) => format!("there is no user {NAME} (the package makes one: sysusers.d)"),
        (None, Ok(Some(user))) => match become_user(policy, &user) {
            Ok(()) => return,
            Err(why) => why,
        },
    };
    warnings.push(format!("it stays root, without root's rights: {stays}"));
}

fn become_user(policy: &Policy, user: &User) -> Result<(), String> {
    let (uid, gid) = (user.uid, user.gid);
    let unable = |error: nix::Error| format!("the user {NAME} cannot be taken on ({error})");
    let name = CString::new(NAME).map_err(|error| error.to_string())?;
    let groups = getgrouplist(&name, gid).map_err(unable)?;
    let ids: Vec<u32> = groups.iter().map(|group| group.as_raw()).collect();
    for path in policy.own.iter().chain(&policy.write).chain(&policy.settings) {
        if let Some(closed) = closed_to(path, uid.as_raw(), &ids) {
            return Err(format!("the user {NAME} cannot reach {} through {}", path.display(), closed.display()));
        }
    }
    for (paths, bit, doing) in [(&policy.settings, 0o4, "read"), (&policy.write, 0o3, "write to")] {
        let closed = |path: &&PathBuf| fs::metadata(path).is_ok_and(|found| !may(&found, bit, uid.as_raw(), &ids));
        if let Some(path) = paths.iter().find(closed) {
            return Err(format!("the user {NAME} cannot {doing} {}", path.display()));
        }
    }
    for folder in &policy.own {
        give(folder, uid.as_raw(), gid.as_raw())
            .map_err(|error| format!("{} cannot be given to the user {NAME} ({error})", folder.display()))?;
    }
    set_keep_capabilities(true).map_err(|error| format!("the user {NAME} would lose CAP_NET_ADMIN ({error})"))?;
    setgroups(&groups).map_err(unable)?;
    setresgid(gid, gid, gid).map_err(unable)?;
    setresuid(uid, uid, uid).map_err(unable)
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

/// Gives `folder` and the files in it to the user, where they were root's; nothing is followed, and what is somebody
/// else's stays, and is refused by whoever opens it.
fn give(folder: &Path, user: u32, group: u32) -> io::Result<()> {
    let roots = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.uid() == 0 && !found.is_symlink());
    let found = fs::symlink_metadata(folder)?;
    // One that others share, /run or /tmp, is not taken from them.
    if found.is_dir()
        && found.uid() == 0
        && found.mode() & 0o022 == 0
        && !SHARED.iter().any(|one| folder == Path::new(one))
    {
        let inside = fs::read_dir(folder)?.take(FILES).filter_map(Result::ok).map(|entry| entry.path());
        for path in inside.filter(|path| roots(path) && fs::symlink_metadata(path).is_ok_and(|found| found.is_file())) {
            lchown(path, Some(user), Some(group))?;
        }
        lchown(folder, Some(user), Some(group))?;
    }
    Ok(())
}

/// Folders that are never one program's own.
const SHARED: [&str; 8] = ["/", "/run", "/var/run", "/tmp", "/var/lib", "/var/tmp", "/etc", "/root"];

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
