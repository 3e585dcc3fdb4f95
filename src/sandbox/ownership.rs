//! Checks whether another user could change files that determine what this program does. A user with write access to a
//! command, to the configuration, or to a directory on the path to either effectively has the permissions of this
//! program.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::user::{NAME, STICKY, user_id};

/// Writable by others, unless the sticky bit restricts changes to the owners of entries.
const OTHERS: u32 = 0o002;
const GROUP: u32 = 0o020;

/// Why a file is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    #[error(
        "{who} can write to {place} and so gain the privileges of portsentry{}; run: chmod {fix} {place}",
        on_the_way(file, place)
    )]
    Writable {
        file: PathBuf,
        /// The writable path: the file, or a directory on the path to it.
        place: PathBuf,
        /// The users with write access.
        who: String,
        /// The mode change that fixes it.
        fix: &'static str,
    },
    #[error(
        "user {owner} owns {place} and could so gain the privileges of portsentry{}; run: chown root {place}",
        on_the_way(file, place)
    )]
    Owner {
        file: PathBuf,
        /// The path that belongs to the other user: the file, or a directory on the path to it.
        place: PathBuf,
        owner: u32,
    },
}

fn on_the_way(file: &Path, place: &Path) -> String {
    if file == place { String::new() } else { format!(" through {}", file.display()) }
}

/// Refuses `file` if a user other than root and the user of this program can change it. A missing file is accepted.
///
/// # Errors
/// The first component of its path, including links, that another user can change.
pub fn only_ours(file: &Path) -> Result<(), Untrusted> {
    let trusted = trusted();
    for place in way_to(file) {
        let Ok(found) = fs::symlink_metadata(&place) else { continue };
        let (file, place) = (file.to_owned(), place);
        if !trusted.contains(&found.uid()) {
            return Err(Untrusted::Owner { file, place, owner: found.uid() });
        }
        if let Some((who, fix)) = writers(&found) {
            return Err(Untrusted::Writable { file, place, who, fix });
        }
    }
    Ok(())
}

/// True if `user` can change the contents of `file`: directly, or through a component of its path.
pub(super) fn belongs_to(user: u32, file: &Path) -> bool {
    way_to(file).iter().any(|place| fs::symlink_metadata(place).is_ok_and(|found| found.uid() == user))
}

/// The file and all directories above it, on the given path and on the resolved one.
fn way_to(file: &Path) -> BTreeSet<PathBuf> {
    // The location of a link matters as much as its destination.
    let paths = [std::path::absolute(file), file.canonicalize()].into_iter().filter_map(io::Result::ok);
    paths.flat_map(|path| path.ancestors().map(Path::to_owned).collect::<Vec<_>>()).collect()
}

/// Users with full permissions in any case: root, the user of this process, the package's user, and the owner of the
/// root directory, which differs from root in a user namespace.
fn trusted() -> Vec<u32> {
    let own = rustix::process::geteuid().as_raw();
    let top = fs::metadata("/").map(|found| found.uid()).ok();
    [0, own].into_iter().chain(top).chain(user_id(NAME)).collect()
}

fn writers(found: &Metadata) -> Option<(String, &'static str)> {
    let mode = found.mode();
    // Data written to a device such as /dev/null is not read back from it.
    let is_device = found.file_type().is_char_device();
    if found.is_symlink() || is_device || (found.is_dir() && mode & STICKY != 0) {
        return None;
    }
    match () {
        () if mode & OTHERS != 0 => Some(("every user".to_owned(), "go-w")),
        // Root's own group is trusted.
        () if mode & GROUP != 0 && found.gid() != 0 => Some((format!("group {}", found.gid()), "g-w")),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(file: &Path) -> String {
        only_ours(file).unwrap_err().to_string()
    }

    #[test]
    fn changeable_file_is_refused_with_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let (directory_path, file) = (directory.path().join("way"), directory.path().join("way/hook"));
        fs::create_dir(&directory_path).unwrap();
        fs::write(&file, "").unwrap();
        set(&directory_path, 0o755);
        set(&file, 0o755);
        only_ours(&file).unwrap();
        set(&file, 0o757);
        assert!(refusal(&file).ends_with(&format!("privileges of portsentry; run: chmod go-w {}", file.display())));
        set(&file, 0o755);
        set(&directory_path, 0o777);
        let warnings = refusal(&file);
        assert!(
            warnings.contains("through ") && warnings.ends_with(&format!("chmod go-w {}", directory_path.display())),
            "{warnings}"
        );
        set(&directory_path, 0o1777);
        only_ours(&file).unwrap();
        set(&directory_path, 0o775);
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: only root gives files away");
        }
        chown(&directory_path, None, Some(4_242)).unwrap();
        assert!(refusal(&file).contains("group 4242 can write to"));
        chown(&directory_path, Some(4_242), Some(0)).unwrap();
        assert!(refusal(&file).contains("user 4242 owns"));
    }

    #[test]
    fn link_and_its_directory_are_both_checked() {
        let directory = tempfile::tempdir().unwrap();
        let [open, good] = ["open", "good"].map(|name| directory.path().join(name));
        [&open, &good].iter().for_each(|path| fs::create_dir(path).unwrap());
        fs::write(good.join("file"), "").unwrap();
        fs::write(open.join("file"), "").unwrap();
        [good.join("file"), open.join("file")].iter().for_each(|path| set(path, 0o644));
        set(&open, 0o777);
        symlink(good.join("file"), open.join("link")).unwrap();
        symlink(open.join("file"), good.join("link")).unwrap();
        only_ours(&good.join("file")).unwrap();
        for link in [open.join("link"), good.join("link")] {
            assert!(refusal(&link).ends_with(&format!("chmod go-w {}", open.display())), "{}", link.display());
        }
    }

    #[test]
    fn missing_file_or_null_device_is_accepted() {
        only_ours(Path::new("/nonexistent/portsentry.toml")).unwrap();
        only_ours(Path::new("/dev/null")).unwrap();
    }
}
