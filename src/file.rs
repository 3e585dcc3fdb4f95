//! Identifies files: whether two are the same, whether one has changed, and in which directory it is.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device and inode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(u64, u64);

impl From<&Metadata> for FileId {
    fn from(found: &Metadata) -> Self {
        Self(found.dev(), found.ino())
    }
}

/// The stat(2) data that shows a change: rewriting a file changes its times, renaming another file over it changes its
/// identity, and chmod or chown changes its access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    id: FileId,
    length: u64,
    /// Owner, group and mode.
    access: (u32, u32, u32),
    /// Times of the last changes of the content and of the inode, in seconds and nanoseconds.
    changed: [(i64, i64); 2],
}

impl From<&Metadata> for FileStamp {
    fn from(found: &Metadata) -> Self {
        Self {
            id: FileId::from(found),
            length: found.len(),
            access: (found.uid(), found.gid(), found.mode()),
            changed: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
        }
    }
}

/// The directory of `path`; `None` for `/` and for a bare file name.
pub fn directory(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}
