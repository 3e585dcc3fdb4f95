//! Fills the sets of the trap with the ports to monitor, and reads or clears the kernel's counts and bans in them.

use std::mem;
use std::time::{Duration, Instant};

use super::{BlockError, Nft, Remaining};
use crate::netlink::nft::{self, Bound, Set, Trap, Watched};
use crate::types::{BanTarget, Expiry};

/// Fill level of the trap's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapUsage {
    /// Probed ports of sources, of both families and protocols. Expired ones count until the kernel removes them.
    pub touched: u32,
    /// Sources that probed a port.
    pub suspects: u32,
}

/// Counters of the trap's hold rules since their creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldCounts {
    /// SYNs dropped because their source is held.
    pub dropped: u64,
    /// Packets whose source is not held because a set is full.
    pub full: u64,
}

/// Counters of the decoy rules since their creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoyCounts {
    /// SYNs redirected to the listener.
    pub syns: u64,
    /// SYNs answered by the listener.
    pub answers: u64,
}

/// Hold state of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// True if its SYNs are dropped now.
    pub now: bool,
    /// Remaining time for which its holds are remembered, if it was held within the window.
    pub remembered: Option<Duration>,
}

impl Nft {
    /// Blocks targets that the packet path may already have blocked; a ban of the same length is kept. While an element
    /// of a full set is replaced, the kernel counts it twice, and packets that add an element at that moment exceed the
    /// size (seen on Linux 6.18).
    pub(super) fn block_beside_trap(&mut self, bans: &[(BanTarget, Expiry)]) -> Result<(), BlockError> {
        let mut remaining = mem::take(&mut self.remaining);
        remaining.clear();
        let looked = bans.iter().try_for_each(|(target, expiry)| {
            match self.holds(*target)? {
                Some(left) if is_as_long(left, *expiry) => return Ok(()),
                Some(_) => self.blocked_anew = Some(Instant::now()),
                None => {}
            }
            remaining.push((*target, *expiry));
            Ok(())
        });
        let done = looked.and_then(|()| self.block_all(&remaining)).map_err(|error| match error {
            BlockError::Failed { failed, .. } => BlockError::Failed { asked: bans.len(), failed },
            error => error,
        });
        self.remaining = remaining;
        done
    }

    /// Sets the ports that the trap monitors.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if the table has no trap for one of the protocols; nothing is changed then.
    pub fn arm(&mut self, watched: Watched<'_>) -> Result<(), BlockError> {
        self.batch.clear();
        nft::put_trapped(&mut self.batch, watched);
        self.send_batch()
    }

    /// Sources that the trap has blocked and that were not released.
    pub fn caught(&mut self) -> Result<Vec<BanTarget>, BlockError> {
        let mut all = Vec::new();
        for set in [Set::TrapBanned, Set::TrapBanned6] {
            let take = |found: &mut Vec<_>, bound: Bound| found.push(BanTarget::from_element(bound.address));
            all.extend(self.read_set(set, Vec::new, take)?);
        }
        Ok(all)
    }

    /// Resets the trap's counts of these targets, which are single sources; missing ones are skipped.
    pub fn forget(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        self.remove_from([Set::Suspects, Set::Suspects6], targets)?;
        self.remove_from([Set::PeerSuspects, Set::PeerSuspects6], targets)
    }

    /// Removes these targets from the set of sources that the trap has blocked, so that the trap can block others.
    pub fn release(&mut self, targets: &[BanTarget]) -> Result<(), BlockError> {
        self.remove_from([Set::TrapBanned, Set::TrapBanned6], targets)
    }

    /// Removes these targets, which are single sources, from the set of their family; missing ones are skipped.
    pub(super) fn remove_from(&mut self, sets: [Set; 2], targets: &[BanTarget]) -> Result<(), BlockError> {
        let kernel = self.kernel();
        for targets in targets.chunks(nft::BANS_A_MESSAGE) {
            self.batch.clear();
            for (blocked, set) in [Set::Blocked, Set::Blocked6].into_iter().zip(sets) {
                let of_family = targets.iter().copied().filter(|target| Set::for_target(*target) == blocked);
                let of_family: Vec<BanTarget> = of_family.collect();
                if !of_family.is_empty() {
                    nft::put_forget(&mut self.batch, kernel, set, &of_family);
                }
            }
            if !self.batch.is_empty() {
                self.send_batch()?;
            }
        }
        Ok(())
    }

    /// Removes all connected sources from the trap.
    pub fn clear_peers(&mut self) -> Result<(), BlockError> {
        self.batch.clear();
        [Set::Peers, Set::Peers6].into_iter().for_each(|set| nft::put_flush(&mut self.batch, set));
        self.send_batch()
    }

    /// Changes the connected sources of the trap; at most [`nft::BANS_A_MESSAGE`] in each list.
    ///
    /// # Errors
    /// [`BlockError::Gone`] if one of `out` does not exist or the table is missing; nothing is changed then.
    pub fn change_peers(&mut self, out: &[BanTarget], into: &[BanTarget]) -> Result<(), BlockError> {
        self.batch.clear();
        nft::put_peers(&mut self.batch, out, into);
        self.send_batch()
    }

    /// Resets the counts of all sources in `trap`.
    pub fn forget_all_sources(&mut self, trap: Trap) -> Result<(), BlockError> {
        self.batch.clear();
        Set::trap_memory(trap).for_each(|set| nft::put_flush(&mut self.batch, set));
        self.send_batch()
    }

    /// Counters of the hold rules, which the table must have.
    pub fn hold_counts(&mut self) -> Result<HoldCounts, BlockError> {
        let mut count = |chain| nft::counted_packets(&mut self.socket, chain).map_err(BlockError::in_table);
        Ok(HoldCounts { dropped: count(nft::TRAP_HELD)?, full: count(nft::TRAP_FULL)? })
    }

    /// Counters of the decoy rules, which the table must have.
    pub fn decoy_counts(&mut self) -> Result<DecoyCounts, BlockError> {
        let mut count = |chain| nft::counted_packets(&mut self.socket, chain).map_err(BlockError::in_table);
        Ok(DecoyCounts { syns: count(nft::DECOY_TAKE)?, answers: count(nft::DECOY_ANSWERED)? })
    }

    /// Hold state of `target`; not held if the table has no such rules.
    pub fn hold(&mut self, target: BanTarget) -> Result<Hold, BlockError> {
        let sets = match target {
            BanTarget::V4(_) => [Set::Held, Set::HoldCounts, Set::HoldRecent],
            BanTarget::V6(_) | BanTarget::Link { .. } => [Set::Held6, Set::HoldCounts6, Set::HoldRecent6],
            BanTarget::Prefix(_) => return Ok(Hold::default()),
        };
        let mut find = |set| match self.find(set, target.element()) {
            Err(BlockError::Gone) => Ok(None),
            found => found,
        };
        let [held, counted, recent] = [find(sets[0])?, find(sets[1])?, find(sets[2])?];
        let remembered = counted.or(recent).and_then(|bound: Bound| bound.remaining);
        Ok(Hold { now: held.is_some(), remembered })
    }

    /// Fill level of the memory of `trap`, if the kernel reports it (since Linux 6.15).
    pub fn filling(&mut self, trap: Trap) -> Result<Option<TrapUsage>, BlockError> {
        let mut filling = TrapUsage::default();
        for set in Set::trap_memory(trap) {
            let sum = match set {
                Set::Suspects | Set::Suspects6 | Set::PeerSuspects | Set::PeerSuspects6 => &mut filling.suspects,
                Set::TrapBanned | Set::TrapBanned6 => continue,
                _ => &mut filling.touched,
            };
            match nft::set_count(&mut self.socket, set).map_err(BlockError::in_table)? {
                Some(count) => *sum = sum.saturating_add(count),
                None => return Ok(None),
            }
        }
        Ok(Some(filling))
    }
}

/// True if the remaining time matches a ban that has just begun with this expiry.
fn is_as_long(left: Remaining, expiry: Expiry) -> bool {
    match (left, expiry) {
        (Some(left), Expiry::After(whole)) => whole.abs_diff(left) <= JUST_NOW,
        (None, Expiry::Never) => true,
        _ => false,
    }
}

/// Maximum time between the trap's ban and the sensor's verdict on the same packet, under normal conditions.
const JUST_NOW: Duration = Duration::from_millis(100);
