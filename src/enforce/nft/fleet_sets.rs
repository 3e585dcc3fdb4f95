//! Writes the bans that other hosts have reported into the sets `fleet` and `fleet6`, through a separate socket and
//! outside of the sensor thread.

use super::{BlockError, Table};
use crate::netlink::nft::{self, BANS_A_MESSAGE, Set};
use crate::types::{BanTarget, Expiry};

const SETS: [Set; 2] = [Set::Fleet, Set::Fleet6];

/// The fleet's sets. Each target is an address or a /64.
#[derive(Debug)]
pub struct FleetSets(pub Table);

impl FleetSets {
    /// Blocks these targets, each from now on for its expiry, even if it is already blocked. No target occurs twice.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the table or a set is missing; other kernel errors. Some targets are then not blocked.
    pub fn block(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<(), BlockError> {
        let kernel = self.0.kernel();
        for set in SETS {
            let of_family = |(target, _): &&(BanTarget, _)| target.element().is_ipv4() == (set == Set::Fleet);
            let bans: Vec<_> = bans.iter().filter(of_family).copied().collect();
            for bans in bans.chunks(BANS_A_MESSAGE) {
                self.0.send(|batch| nft::put_bans_in(batch, kernel, set, bans))?;
            }
        }
        Ok(())
    }

    /// Lifts the bans of these targets; targets without a ban are skipped.
    ///
    /// # Errors
    /// As for [`FleetSets::block`].
    pub fn lift(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        self.0.remove_from(SETS, targets)
    }

    /// Empties the sets, if they exist.
    ///
    /// # Errors
    /// Kernel errors. The sets then keep their elements.
    pub fn clear(&mut self) -> Result<(), BlockError> {
        match self.0.send(|batch| SETS.into_iter().for_each(|set| nft::put_flush(batch, set))) {
            Err(BlockError::Gone) => Ok(()),
            done => done,
        }
    }

    /// The elements with their remaining times.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the sets do not exist.
    pub fn elements(&mut self) -> Result<Vec<(BanTarget, Expiry)>, BlockError> {
        self.0.timed_elements(&SETS)
    }
}
