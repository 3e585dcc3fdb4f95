//! Distinguishes the table that the daemon left from one loaded from a file: `nft list ruleset` saves the table with
//! its elements, and a loaded file contains outdated bans.

use crate::enforce::nft::Nft;
use crate::ledger::{Change, Recorder};

/// The identity of the daemon's table in the ledger.
pub(super) struct TableIdentity {
    /// `None` if nft is not a backend.
    nft: Option<Nft>,
    boot: Option<String>,
    recorded: Option<String>,
}

impl TableIdentity {
    /// `boot` is the kernel's identifier of this boot, if it has one.
    pub(super) fn new(nft: Option<Nft>, boot: Option<String>) -> Self {
        Self { nft, boot, recorded: None }
    }

    /// Records the current table if it is a new one, for example after a repair.
    pub(super) fn record(&mut self, recorder: Option<&Recorder>) {
        let Some(handle) = self.nft.as_mut().and_then(|nft| nft.table_handle().ok().flatten()) else { return };
        let id = Some(identity(self.boot.as_deref(), handle));
        if id == self.recorded {
            return;
        }
        if let Some((recorder, id)) = recorder.zip(id)
            && recorder.send(Change::Table(id.clone()))
        {
            self.recorded = Some(id);
        }
    }
}

/// True if the table with handle `found` is not the table `last` of the ledger, and was therefore loaded from a file.
/// False if the ledger has no record.
pub(super) fn is_loaded(last: Option<&str>, boot: Option<&str>, found: Option<u64>) -> bool {
    last.zip(found).is_some_and(|(last, found)| last != identity(boot, found))
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
        let is_loaded = |boot, found| is_loaded(Some(&last), boot, found);
        assert!(!is_loaded(Some("a"), Some(7)));
        assert!(is_loaded(Some("a"), Some(9)), "flushed and loaded");
        assert!(is_loaded(Some("b"), Some(7)), "loaded at boot");
        assert!(!is_loaded(Some("b"), None), "there is none");
        assert!(!super::is_loaded(None, Some("a"), Some(7)), "a new ledger");
    }
}
