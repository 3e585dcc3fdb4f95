//! The trait of backends that keep one entry per ban in a file, such as hosts.deny. The slow-backends thread adds
//! expiry, retries, and restoring entries that another program removed.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::BanContext;
use crate::types::{Backend, BanTarget};

/// A file with an entry for each ban. Errors are texts with a remedy.
pub trait EntryStore: fmt::Debug + Send + Sync {
    fn backend(&self) -> Backend;

    /// The file, in a directory that must be writable.
    fn path(&self) -> &Path;

    /// What it writes where.
    fn describe(&self) -> String;

    /// The entry for `case`, as reported in its event.
    fn entry(&self, case: &BanContext) -> String;

    /// Checks that entries can be written, as far as possible without writing.
    fn check(&self) -> io::Result<()>;

    /// The targets that have an entry now; empty if the file does not exist.
    fn held(&self) -> io::Result<Vec<BanTarget>>;

    /// Adds entries for `add` and removes those of `remove`, all or none of them. No target gets a second entry, and
    /// targets without one are skipped. Returns the targets whose entries were removed, or all of `remove`.
    fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> io::Result<Vec<BanTarget>>;

    /// A value that changes when the file is written or replaced; `None` if it does not exist.
    fn stamp(&self) -> Option<Stamp> {
        Stamp::new(self.path())
    }
}

/// Attributes that change when a file is written or replaced, or its permissions change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    place: (u64, u64),
    pub(super) access: (u32, u32, u32),
    changed: (i64, i64, i64, i64),
}

impl Stamp {
    /// The stamp of the current file; `None` if it does not exist.
    pub(super) fn new(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().map(|found| Self::from_metadata(&found))
    }

    pub(super) fn from_metadata(found: &Metadata) -> Self {
        Self {
            place: (found.dev(), found.ino()),
            access: (found.uid(), found.gid(), found.mode()),
            changed: (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()),
        }
    }
}
