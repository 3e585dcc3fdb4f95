//! Tells the table that the daemon left behind from one that a file has made anew: `nft list ruleset` saves the table with its
//! elements, and what is loaded from such a file are bans of the past.

use crate::enforce::nft::Nft;
use crate::ledger::{Change, Recorder};

/// Which table the ledger knows to be the daemon's.
pub(super) struct TableIdentity {
    /// `None` where nftables does not block.
    nft: Option<Nft>,
    boot: Option<String>,
    recorded: Option<String>,
}

impl TableIdentity {
    /// `boot`: the kernel's name for this boot, where it has one.
    pub(super) fn new(nft: Option<Nft>, boot: Option<String>) -> Self {
        Self { nft, boot, recorded: None }
    }

    /// Records the table that is there now, where it is another one. A repair may have made it anew.
    pub(super) fn record(&mut self, recorder: Option<&Recorder>) {
        let Some(handle) = self.nft.as_mut().and_then(|nft| nft.table_handle().ok().flatten()) else { return };
        let id = Some(identity(self.boot.as_deref(), handle));
        if id == self.recorded {
            return;
        }
        if let Some((recorder, id)) = recorder.zip(id)
            && recorder.put(Change::Table(id.clone()))
        {
            self.recorded = Some(id);
        }
    }
}

/// True where the table with the number `found` is not the one that the ledger knew as `last`, and so was made by a file. A
/// ledger that knows of no table says nothing.
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
