//! Writes hosts.deny through the file helper, for a daemon that cannot write it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::FileHelper;
use crate::enforce::hosts_deny::{HostsDeny, MAX_FILE_LEN};
use crate::enforce::{BanContext, EntryStore};
use crate::types::{Backend, BanTarget};

/// hosts.deny, which the helper reads and writes.
#[derive(Debug)]
pub struct HelperFile {
    file: Arc<dyn EntryStore>,
    helper: FileHelper,
}

impl HelperFile {
    pub fn new(file: Arc<dyn EntryStore>, helper: FileHelper) -> Self {
        Self { file, helper }
    }
}

impl EntryStore for HelperFile {
    fn backend(&self) -> Backend {
        self.file.backend()
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn describe(&self) -> String {
        self.file.describe()
    }

    fn entry(&self, case: &BanContext) -> String {
        self.file.entry(case)
    }

    /// The helper does its own check.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    fn held(&self) -> io::Result<Vec<BanTarget>> {
        Ok(self.helper.read(MAX_FILE_LEN)?.map_or(Vec::new(), |bytes| HostsDeny::held_in(&bytes)))
    }

    fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> io::Result<Vec<BanTarget>> {
        self.helper.edit(add, remove).map(|()| remove.to_vec())
    }
}
