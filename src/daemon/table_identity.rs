//! Distinguishes the table that the daemon left from one loaded from a file: `nft list ruleset` saves the table with
//! its elements, and a loaded file contains outdated bans. The ledger knows the number that the kernel gave the table.
//! Without a ledger, the table itself shows whether nft created it.

use crate::ledger::{LedgerChange, Recorder};
use crate::netlink::nft::table_handle;
use crate::netlink::socket::Socket;

/// The identity of the daemon's table in the ledger.
pub(super) struct TableIdentity {
    /// `None` if nft is not a backend.
    socket: Option<Socket>,
    boot: Option<String>,
    recorded: Option<String>,
}

impl TableIdentity {
    /// `boot` is the kernel's identifier of this boot, if it has one.
    pub(super) fn new(socket: Option<Socket>, boot: Option<String>) -> Self {
        Self { socket, boot, recorded: None }
    }

    /// Records the current table if it is a new one, for example after a repair.
    pub(super) fn record(&mut self, recorder: &Recorder) {
        let Some(handle) = self.socket.as_mut().and_then(|socket| table_handle(socket).ok().flatten()) else { return };
        let id = identity(self.boot.as_deref(), handle);
        if self.recorded.as_ref() != Some(&id) && recorder.send(LedgerChange::Table(id.clone())) {
            self.recorded = Some(id);
        }
    }
}

/// A table that existed before the start.
#[derive(Clone, Copy)]
pub(super) struct FoundTable {
    pub(super) handle: u64,
    /// True if nft created it.
    pub(super) by_nft: bool,
    /// True if a saved ruleset was loaded into it.
    pub(super) merged: bool,
}

/// Where the kernel's table comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TableOrigin {
    /// This start created it, so all its bans began after the start.
    Created,
    /// It was loaded from a file, with outdated bans in its sets.
    Loaded,
    /// The last daemon left it, and a saved ruleset was loaded into it, with outdated bans and an armed trap.
    Merged,
    /// The last daemon left it, and nothing has loaded a ruleset into it since. Also without the nftables backend.
    Unchanged,
}

/// True if the table `found` is not the table `last` of the ledger, and was therefore loaded from a file. If the ledger
/// has no record, the elements of a table that nft created, or into which it loaded a ruleset, are those of the file; a
/// table that this program created keeps its bans when the ledger is lost.
pub(super) fn is_loaded(last: Option<&str>, boot: Option<&str>, found: Option<FoundTable>) -> bool {
    found.is_some_and(|found| match last {
        Some(last) => last != identity(boot, found.handle),
        None => found.by_nft || found.merged,
    })
}

fn identity(boot: Option<&str>, handle: u64) -> String {
    format!("{} {handle}", boot.unwrap_or("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_from_file_differs_from_own() {
        let last = identity(Some("a"), 7);
        let found = |handle| FoundTable { handle, by_nft: true, merged: true };
        let is_loaded = |boot, found| is_loaded(Some(&last), boot, found);
        assert!(!is_loaded(Some("a"), Some(found(7))), "the ledger knows it, and a file was merged into it");
        assert!(is_loaded(Some("a"), Some(found(9))), "flushed and loaded");
        assert!(is_loaded(Some("b"), Some(found(7))), "loaded at boot");
        assert!(!is_loaded(Some("b"), None), "there is none");
    }

    #[test]
    fn table_shows_its_origin_without_ledger() {
        let found = |by_nft, merged| Some(FoundTable { handle: 7, by_nft, merged });
        assert!(is_loaded(None, Some("a"), found(true, false)));
        assert!(is_loaded(None, Some("a"), found(false, true)));
        assert!(!is_loaded(None, Some("a"), found(false, false)), "the daemon's own table");
    }
}
