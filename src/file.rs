//! Opens regular files, reads files up to a size limit, and compares their identity and stat(2) data to detect that one
//! was replaced or changed.

use std::fs::{File, Metadata};
use std::io::{self, Read};
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

/// Opens a regular file. Others are refused: opening a FIFO would block until it has a writer.
pub fn open_regular(path: &Path) -> io::Result<File> {
    match path.metadata()?.is_file() {
        true => File::open(path),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// Reads a file to its end, but at most `limit` bytes.
pub fn read_up_to(file: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The directory of `path`; `None` for `/` and for a bare file name.
pub fn directory(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}
