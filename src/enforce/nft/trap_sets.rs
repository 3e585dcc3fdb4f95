//! Fills the sets of the trap with the ports to monitor, and reads or clears the kernel's counts and bans in them.

use std::time::Duration;

use super::{BlockError, Table};
use crate::netlink::nft::{self, Set, SetElement, Trap, TrapContents};
use crate::types::BanTarget;

/// Fill level of the trap's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapUsage {
    /// Probed ports of sources, of both families and protocols. Expired ones count until the kernel removes them.
    pub probed: u32,
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

/// Sets the ports that the trap monitors.
///
/// # Errors
/// [`BlockError::Gone`] if the table has no trap for one of the protocols; nothing is changed then.
pub fn arm(table: &mut Table, contents: TrapContents<'_>) -> Result<(), BlockError> {
    table.send(|batch| nft::put_trapped(batch, contents))
}

/// Sources that the trap has blocked and that [`forget`] has not removed.
pub fn trap_banned(table: &mut Table) -> Result<Vec<BanTarget>, BlockError> {
    let mut all = Vec::new();
    for set in [Set::TrapBanned, Set::TrapBanned6] {
        let take = |found: &mut Vec<_>, element: SetElement| found.push(BanTarget::from_element(element.address));
        all.extend(table.read_set(set, Vec::new, take)?);
    }
    Ok(all)
}

/// Resets the trap's counts of these targets, which are single sources, and removes them from the set of sources that
/// it has blocked, so that it can block others. Missing ones are skipped.
pub fn forget(table: &mut Table, targets: &[BanTarget]) -> Result<(), BlockError> {
    let pairs =
        [[Set::Suspects, Set::Suspects6], [Set::PeerSuspects, Set::PeerSuspects6], [Set::TrapBanned, Set::TrapBanned6]];
    // If a set is full, a kernel without DESTROYSETELEM refuses its change; the others are still changed.
    pairs.into_iter().map(|sets| table.remove_from(sets, targets)).fold(Ok(()), Result::and)
}

/// Removes all connected sources from the trap.
pub fn clear_peers(table: &mut Table) -> Result<(), BlockError> {
    table.send(|batch| [Set::Peers, Set::Peers6].into_iter().for_each(|set| nft::put_flush(batch, set)))
}

/// Changes the connected sources of the trap; at most [`nft::BANS_A_MESSAGE`] in each list.
///
/// # Errors
/// [`BlockError::Gone`] if one of `out` does not exist or the table is missing; nothing is changed then.
pub fn change_peers(table: &mut Table, out: &[BanTarget], into: &[BanTarget]) -> Result<(), BlockError> {
    table.send(|batch| nft::put_peers(batch, out, into))
}

/// Resets the counts of all sources in `trap`.
pub fn forget_all_sources(table: &mut Table, trap: Trap) -> Result<(), BlockError> {
    table.send(|batch| Set::trap_memory(trap).for_each(|set| nft::put_flush(batch, set)))
}

/// Counters of the hold rules, which the table must have.
pub fn hold_counts(table: &mut Table) -> Result<HoldCounts, BlockError> {
    Ok(HoldCounts { dropped: table.counted(nft::TRAP_HELD)?, full: table.counted(nft::TRAP_FULL)? })
}

/// Counters of the decoy rules, which the table must have.
pub fn decoy_counts(table: &mut Table) -> Result<DecoyCounts, BlockError> {
    Ok(DecoyCounts { syns: table.counted(nft::DECOY_TAKE)?, answers: table.counted(nft::DECOY_ANSWERED)? })
}

/// Hold state of `target`; not held if the table has no such rules.
pub fn hold(table: &mut Table, target: BanTarget) -> Result<Hold, BlockError> {
    let sets = match target {
        BanTarget::V4(_) => [Set::Held, Set::HoldCounts, Set::HoldRecent],
        BanTarget::V6(_) | BanTarget::Link { .. } => [Set::Held6, Set::HoldCounts6, Set::HoldRecent6],
        BanTarget::Prefix(_) => return Ok(Hold::default()),
    };
    let mut find = |set| match table.find(set, target.element()) {
        Err(BlockError::Gone) => Ok(None),
        found => found,
    };
    let [held, counted, recent] = [find(sets[0])?, find(sets[1])?, find(sets[2])?];
    let remembered = counted.or(recent).and_then(|element| element.left.span());
    Ok(Hold { now: held.is_some(), remembered })
}

/// Fill level of the memory of `trap`, if the kernel reports it (since Linux 6.15).
pub fn usage(table: &mut Table, trap: Trap) -> Result<Option<TrapUsage>, BlockError> {
    let mut usage = TrapUsage::default();
    for set in Set::trap_memory(trap) {
        let sum = match set {
            Set::Suspects | Set::Suspects6 | Set::PeerSuspects | Set::PeerSuspects6 => &mut usage.suspects,
            Set::TrapBanned | Set::TrapBanned6 => continue,
            _ => &mut usage.probed,
        };
        match nft::set_count(&mut table.socket, set).map_err(BlockError::in_table)? {
            Some(count) => *sum = sum.saturating_add(count),
            None => return Ok(None),
        }
    }
    Ok(Some(usage))
}
