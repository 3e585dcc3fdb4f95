//! hosts.deny as the slow backends write it: by this process, or by the one that writes root's files.

use std::io;

use crate::enforce::BanContext;
use crate::enforce::file_helper::FileHelper;
use crate::enforce::hosts_deny::HostsDeny;
use crate::enforce::hosts_deny::file::{LIMIT, Stamp};
use crate::types::BanTarget;

/// The file, and the process that writes it where this one may not.
pub(super) struct DenyFile {
    file: HostsDeny,
    helper: Option<FileHelper>,
}

impl DenyFile {
    pub(super) fn new(file: HostsDeny, helper: Option<FileHelper>) -> Self {
        Self { file, helper }
    }

    /// What differs when another program has written or replaced the file since; `None` where there is none.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.file.stamp()
    }

    /// The targets that have a line now.
    pub(super) fn held(&self) -> io::Result<Vec<BanTarget>> {
        match &self.helper {
            None => self.file.held().map_err(io::Error::other),
            Some(helper) => Ok(helper.read(LIMIT)?.map_or(Vec::new(), |bytes| HostsDeny::held_in(&bytes))),
        }
    }

    /// As [`HostsDeny::apply`]. The other process does not say which lines it has found: all of `remove` have none now.
    pub(super) fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> io::Result<Vec<BanTarget>> {
        match &self.helper {
            None => self.file.apply(add, remove).map_err(io::Error::other),
            Some(helper) => helper.edit(add, remove).map(|()| remove.to_vec()),
        }
    }
}
