//! Writes hosts.deny for the slow backends: in this process, or through the file helper.

use std::io;

use crate::enforce::BanContext;
use crate::enforce::file_helper::FileHelper;
use crate::enforce::hosts_deny::HostsDeny;
use crate::enforce::hosts_deny::file::{LIMIT, Stamp};
use crate::types::BanTarget;

/// The file, and the helper that writes it if this process cannot.
pub(super) struct DenyFile {
    file: HostsDeny,
    helper: Option<FileHelper>,
}

impl DenyFile {
    pub(super) fn new(file: HostsDeny, helper: Option<FileHelper>) -> Self {
        Self { file, helper }
    }

    /// A value that changes when another program writes or replaces the file; `None` if it does not exist.
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

    /// As [`HostsDeny::apply`]. The helper does not report the removed lines, so all of `remove` are returned.
    pub(super) fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> io::Result<Vec<BanTarget>> {
        match &self.helper {
            None => self.file.apply(add, remove).map_err(io::Error::other),
            Some(helper) => helper.edit(add, remove).map(|()| remove.to_vec()),
        }
    }
}
