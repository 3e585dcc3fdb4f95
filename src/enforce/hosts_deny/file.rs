//! Replaces a file atomically: a reader sees either the old or the new content. The new file keeps the owner, mode and
//! extended attributes of the old one, including access control lists.

use std::ffi::CString;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{Mode, OFlags, XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

use super::error::{HostsDenyError, MAX_FILE_LEN};
use crate::atomic_file::{AtomicFile, TemporaryName};
use crate::file::{FileStamp, read_up_to};

/// Mode of a new file: readable for every user, as in distributions.
const MODE: u32 = 0o644;

/// The kernel's limits for the attribute names of a file, and for one value (xattr(7)).
const ATTRIBUTES: usize = 64 << 10;

/// The access control list. Without it, the set of users with access would change.
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";

/// Attributes that are only valid for the old content: with an old signature the new file would be unreadable.
const OF_THE_BYTES: [&[u8]; 2] = [b"security.ima", b"security.evm"];

/// A file at the time of reading.
pub(super) struct Old {
    pub(super) bytes: Vec<u8>,
    file: File,
    found: Metadata,
}

/// Opens the file for reading; `None` if it does not exist.
pub(super) fn open(path: &Path) -> Result<Option<File>, HostsDenyError> {
    let system = |doing| HostsDenyError::system(doing, path);
    // Non-blocking, because the path may be a pipe without a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(HostsDenyError::Link(path.to_owned())),
        Err(error) => return Err(system("open")(error.into())),
    };
    match file.metadata().map_err(system("inspect"))?.is_file() {
        true => Ok(Some(file)),
        false => Err(HostsDenyError::Kind(path.to_owned())),
    }
}

/// Reads the file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Old>, HostsDenyError> {
    let system = |doing| HostsDenyError::system(doing, path);
    let Some(file) = open(path)? else { return Ok(None) };
    // Read before the content, so that a concurrent write is detected.
    let found = file.metadata().map_err(system("inspect"))?;
    let bytes = read_up_to(&file, MAX_FILE_LEN + 1).map_err(system("read"))?;
    if u64::try_from(bytes.len()).is_ok_and(|read| read > MAX_FILE_LEN) {
        return Err(HostsDenyError::TooBig(path.to_owned()));
    }
    Ok(Some(Old { bytes, file, found }))
}

/// Replaces `old` with a file of `bytes`; false, without a change, if another program has changed the file in the
/// meantime.
pub(super) fn replace(path: &Path, old: Option<&Old>, bytes: &[u8]) -> Result<bool, HostsDenyError> {
    let fresh = AtomicFile::write(path, TemporaryName::Suffix(".portsentry-new"), 0o600, |file| {
        file.write_all(bytes)?;
        match old {
            Some(old) => keep_access(file, old),
            None => file.set_permissions(Permissions::from_mode(MODE)),
        }
    });
    let fresh = fresh.map_err(HostsDenyError::system("write", path))?;
    // Checked last, to minimise the time until the rename.
    if !is_unchanged(path, old)? {
        return Ok(false);
    }
    fresh.replace().map(|()| true).map_err(HostsDenyError::system("replace", path))
}

/// Also compares the content, because two changes within one tick of the kernel's clock have the same time.
fn is_unchanged(path: &Path, old: Option<&Old>) -> Result<bool, HostsDenyError> {
    Ok(match (read(path)?, old) {
        (Some(now), Some(old)) => FileStamp::from(&now.found) == FileStamp::from(&old.found) && now.bytes == old.bytes,
        (None, None) => true,
        _ => false,
    })
}

/// Copies the permissions of `old` to `file`. The owner first, because a change of owner clears mode bits; the access
/// list last, because its mask is the group bits of the mode.
fn keep_access(file: &File, old: &Old) -> io::Result<()> {
    let (has, wanted) = (file.metadata()?, &old.found);
    if (has.uid(), has.gid()) != (wanted.uid(), wanted.gid()) {
        fchown(file, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    file.set_permissions(Permissions::from_mode(wanted.mode() & 0o7777))?;
    let mut names = vec![0; ATTRIBUTES];
    let length = match flistxattr(&old.file, &mut names) {
        Ok(length) => length,
        // The file system has no attributes.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0; ATTRIBUTES];
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
        if name.is_empty() || OF_THE_BYTES.contains(&name) {
            continue;
        }
        let copied = copy(&old.file, file, &CString::new(name)?, &mut value);
        // The others are labels and notes, which some users cannot set, and which the directory provides anyway.
        if name == ACCESS_LIST {
            copied?;
        }
    }
    Ok(())
}

fn copy(from: &File, to: &File, name: &CString, value: &mut [u8]) -> io::Result<()> {
    let length = fgetxattr(from, name, &mut *value)?;
    fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn concurrently_changed_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts.deny");
        let changes: [(&str, &dyn Fn()); 5] = [
            ("appended to", &|| fs::write(&path, "one\ntwo\n").unwrap()),
            ("overwritten with as many bytes", &|| fs::write(&path, "two\n").unwrap()),
            ("replaced by the same bytes", &|| {
                fs::write(path.with_extension("new"), "one\n").unwrap();
                fs::rename(path.with_extension("new"), &path).unwrap();
            }),
            ("closed to others", &|| fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap()),
            ("removed", &|| fs::remove_file(&path).unwrap()),
        ];
        for (label, change) in changes {
            fs::write(&path, "one\n").unwrap();
            let old = read(&path).unwrap();
            change();
            let now = fs::read(&path).ok();
            assert!(!replace(&path, old.as_ref(), b"ours\n").unwrap(), "{label}");
            assert_eq!(fs::read(&path).ok(), now, "{label}");
            let old = read(&path).unwrap();
            assert!(replace(&path, old.as_ref(), b"ours\n").unwrap(), "{label}: the next attempt reads the file again");
            assert_eq!(fs::read(&path).unwrap(), b"ours\n");
        }
        fs::remove_file(&path).unwrap();
        let none = read(&path).unwrap();
        assert!(none.is_none());
        fs::write(&path, "new\n").unwrap();
        assert!(!replace(&path, None, b"ours\n").unwrap(), "made meanwhile");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
