//! The file with an entry per ban: hosts.deny, which the daemon or its file helper reads and writes. The slow-backends
//! thread adds expiry, retries, and restoring entries that another program removed.

use std::io;

use super::BanContext;
use super::file_helper::FileHelper;
use super::hosts_deny::{HostsDeny, MAX_FILE_LEN};
use crate::types::BanTarget;

/// A file with an entry for each ban. Errors are texts with a remedy.
#[derive(Clone, Debug)]
pub struct EntryFile {
    pub hosts_deny: HostsDeny,
    /// Set if the daemon cannot write the file itself.
    pub helper: Option<FileHelper>,
}

impl From<HostsDeny> for EntryFile {
    fn from(hosts_deny: HostsDeny) -> Self {
        Self { hosts_deny, helper: None }
    }
}

impl EntryFile {
    /// The warning at the start, if entries cannot be written now. The file helper reports its own.
    pub fn warning(&self) -> Option<String> {
        if self.helper.is_some() { None } else { self.hosts_deny.warning() }
    }

    /// The targets that have an entry now; empty if the file does not exist.
    pub fn targets(&self) -> io::Result<Vec<BanTarget>> {
        match &self.helper {
            Some(helper) => Ok(helper.read(MAX_FILE_LEN)?.map_or(Vec::new(), |bytes| HostsDeny::targets_in(&bytes))),
            None => self.hosts_deny.targets().map_err(io::Error::other),
        }
    }

    /// Adds entries for `add` and removes those of `remove`, all or none of them. No target gets a second entry, and
    /// targets without one are skipped. Returns the targets whose entries were removed, or all of `remove`.
    pub fn apply(&self, add: &[BanContext], remove: &[BanTarget]) -> io::Result<Vec<BanTarget>> {
        match &self.helper {
            Some(helper) => helper.edit(add, remove).map(|()| remove.to_vec()),
            None => self.hosts_deny.apply(add, remove).map_err(io::Error::other),
        }
    }
}
