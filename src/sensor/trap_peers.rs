//! Keeps the kernel's trap informed of connected sources, which are forgiven more ports than others.

use std::collections::HashSet;

use super::observer::Observer;
use crate::enforce::nft::{BlockError, Nft};
use crate::types::{BanTarget, Timestamp};

/// Sources that are added or removed in one round, some 0.3 ms; the rest follows in the next rounds.
const MAX_CHANGES: usize = 128;

#[derive(Default)]
pub(super) struct TrapPeers {
    /// Those that the kernel knows; `None` where that is not known.
    known: Option<HashSet<BanTarget>>,
}

impl TrapPeers {
    /// The kernel's sets may have been changed by others.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    /// Has the kernel know the sources that `observer` forgives more, as far as one round allows.
    pub(super) fn update(&mut self, now: Timestamp, nft: &mut Nft, observer: &Observer) -> Result<(), BlockError> {
        let wanted: HashSet<BanTarget> = observer.engine().forgiven_peers(now).collect();
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
