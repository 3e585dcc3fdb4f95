//! Informs the kernel's trap about connected sources, to which more closed ports are forgiven.

use std::collections::HashSet;

use super::observer::Observer;
use crate::enforce::nft::{BlockError, Nft};
use crate::types::{BanTarget, Timestamp};

/// Maximum number of sources added or removed per round, about 0.3 ms; the rest follows in later rounds.
const MAX_CHANGES: usize = 128;

#[derive(Default)]
pub(super) struct TrapPeers {
    /// Sources in the kernel's set; `None` if unknown.
    known: Option<HashSet<BanTarget>>,
}

impl TrapPeers {
    /// Marks the contents of the kernel's sets as unknown, because others may have changed them.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    /// Updates the kernel's set with the sources that `observer` forgives more ports, as far as one round allows.
    pub(super) fn update(&mut self, now: Timestamp, nft: &mut Nft, observer: &Observer) -> Result<(), BlockError> {
        let wanted: HashSet<BanTarget> = observer.engine.forgiven_peers(now).collect();
        let mut known = match self.known.take() {
            Some(known) => known,
            None => {
                nft.clear_peers()?;
                HashSet::new()
            }
        };
        let out: Vec<BanTarget> = known.difference(&wanted).copied().take(MAX_CHANGES).collect();
        let into: Vec<BanTarget> = wanted.difference(&known).copied().take(MAX_CHANGES).collect();
        if !(out.is_empty() && into.is_empty()) {
            nft.change_peers(&out, &into)?;
            out.iter().for_each(|peer| _ = known.remove(peer));
            known.extend(into);
        }
        self.known = Some(known);
        Ok(())
    }
}
