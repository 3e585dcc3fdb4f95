//! Implements [`BanBackend`] for the nftables sets and the ruleset around them.

use super::{BlockError, Nft, Repaired, RulesetError, RulesetSpec, Trap};
use crate::enforce::{BanBackend, BanContext, Gone, Refused};
use crate::engine::ActiveBan;
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

/// The sets, and the desired ruleset.
#[derive(Debug)]
pub struct NftBackend {
    pub nft: Nft,
    pub spec: RulesetSpec,
    /// The elements of one transaction. The buffer is kept, so that a ban does not allocate.
    elements: Vec<(BanTarget, Expiry)>,
}

impl NftBackend {
    pub fn new(nft: Nft, spec: RulesetSpec) -> Self {
        Self { nft, spec, elements: Vec::with_capacity(64) }
    }

    /// The sets and the rules of the kernel's trap, if the table has one.
    pub fn trap(&mut self) -> Option<(&mut Nft, Trap)> {
        Some((&mut self.nft, self.spec.trap?))
    }

    /// Repairs the table.
    ///
    /// # Errors
    /// See [`Nft::repair`].
    pub fn repair(&mut self) -> Result<Repaired, RulesetError> {
        self.nft.repair(&self.spec)
    }

    /// Replaces the rules of the table and keeps its sets.
    ///
    /// # Errors
    /// See [`Nft::repair`].
    pub fn replace_rules(&mut self, wanted: RulesetSpec) -> Result<(), RulesetError> {
        let wide = self.spec.wide || wanted.wide;
        // The decoy listener does not change with the configuration.
        self.spec = RulesetSpec { wide, decoys: self.spec.decoys, ..wanted };
        self.repair().map(|_| ())
    }

    /// Removes the element of exactly `target`; false if there was none.
    ///
    /// # Errors
    /// The sets cannot be read or changed.
    pub fn remove(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        let found = match self.nft.table.has(target) {
            Err(BlockError::Gone) => false,
            found => found?,
        };
        if found {
            self.nft.lift(&[target])?;
        }
        Ok(found)
    }

    /// Adds the sets for prefixes to the table if one of `targets` needs them.
    fn ensure_prefix_sets(&mut self, mut targets: impl Iterator<Item = BanTarget>) -> Result<(), Gone> {
        if self.spec.wide || !targets.any(|target| matches!(target, BanTarget::Prefix(_))) {
            return Ok(());
        }
        self.spec.wide = true;
        // The bans run into the same error, and it is reported with them.
        if matches!(self.repair(), Ok(Repaired::Created)) { Err(Gone) } else { Ok(()) }
    }
}

impl BanBackend for NftBackend {
    fn block(&mut self, bans: &[BanContext], _now: Timestamp) -> Result<Vec<Refused>, Gone> {
        self.ensure_prefix_sets(bans.iter().map(|ban| ban.target))?;
        self.elements.clear();
        self.elements.extend(bans.iter().map(|ban| (ban.target, ban.expiry)));
        let targets = bans.iter().map(|ban| ban.target);
        BlockError::refusals(self.nft.block(&self.elements), Backend::Nft, targets)
    }

    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String> {
        match self.nft.lift(targets) {
            Ok(()) | Err(BlockError::Gone) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn put_back(&mut self, bans: &[ActiveBan], _now: Timestamp) -> Result<Vec<Refused>, Gone> {
        self.ensure_prefix_sets(bans.iter().map(|ban| ban.target))?;
        let elements: Vec<_> = bans.iter().map(|ban| (ban.target, ban.length, ban.left)).collect();
        let targets = bans.iter().map(|ban| ban.target);
        BlockError::refusals(self.nft.put_back(&elements), Backend::Nft, targets)
    }

    fn missing(&mut self, targets: &[BanTarget]) -> Vec<BanTarget> {
        self.nft.table.missing(targets).unwrap_or_default()
    }
}
