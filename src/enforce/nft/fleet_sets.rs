//! Writes the bans that other hosts have reported into the sets `fleet` and `fleet6`, through a separate socket and
//! outside of the sensor thread.

use std::collections::HashMap;

use super::{BlockError, Nft, Remaining};
use crate::netlink::nft::{self, Set};
use crate::types::{BanTarget, Expiry};

const SETS: [Set; 2] = [Set::Fleet, Set::Fleet6];

impl Nft {
    /// Blocks these targets in the fleet's sets, each from now on for its expiry, even if it is already blocked there.
    /// Each target is an address or a /64, and occurs only once.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the table or a set is missing; other kernel errors. Some targets are then not blocked.
    pub fn block_for_fleet(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<(), BlockError> {
        let kernel = self.kernel();
        for set in SETS {
            let of_family = |(target, _): &&(BanTarget, _)| target.element().is_ipv4() == (set == Set::Fleet);
            let bans: Vec<_> = bans.iter().filter(of_family).copied().collect();
            for bans in bans.chunks(nft::BANS_A_MESSAGE) {
                self.batch.clear();
                nft::put_bans_in(&mut self.batch, kernel, set, bans);
                self.send_batch()?;
            }
        }
        Ok(())
    }

    /// Lifts the bans of these targets in the fleet's sets; targets without a ban are skipped.
    ///
    /// # Errors
    /// As for [`Nft::block_for_fleet`].
    pub fn lift_for_fleet(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        self.remove_from(SETS, targets)
    }

    /// Empties the fleet's sets, if they exist.
    ///
    /// # Errors
    /// Kernel errors. The sets then keep their elements.
    pub fn clear_fleet(&mut self) -> Result<(), BlockError> {
        self.batch.clear();
        SETS.into_iter().for_each(|set| nft::put_flush(&mut self.batch, set));
        match self.send_batch() {
            Err(BlockError::Gone) => Ok(()),
            done => done,
        }
    }

    /// The elements of the fleet's sets with their remaining times.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the sets do not exist.
    pub fn fleet_bans(&mut self) -> Result<Vec<(BanTarget, Remaining)>, BlockError> {
        let mut all = Vec::new();
        for set in SETS {
            all.extend(self.read_set(set, HashMap::new, |found, bound| {
                found.insert(BanTarget::from_element(bound.address), bound.remaining);
            })?);
        }
        Ok(all)
    }
}
