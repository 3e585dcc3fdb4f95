//! Writes bans of whole networks as intervals into the sets `blocked_nets` and `blocked_nets6`. They are few
//! and never urgent, so each is a separate transaction.
//!
//! Such a set refuses overlapping intervals. Of two overlapping networks, one always contains the other.

use std::time::Duration;

use rustix::io::Errno;

use super::{BlockError, Failed, Failure, Table};
use crate::engine::ActiveBan;
use crate::netlink::nft::{self, Batch, KernelFeatures, Set};
use crate::netlink::socket::SocketError;
use crate::types::{BanTarget, Expiry, Prefix};

/// Blocks these networks, the widest first; returns the failed ones.
pub(super) fn block(table: &mut Table, bans: &[ActiveBan]) -> Result<Vec<Failed>, BlockError> {
    let mut bans = bans.to_vec();
    bans.sort_by_key(|ban| ban.target.prefix_len());
    let mut failed = Vec::new();
    for ban in &bans {
        let Some(network) = as_prefix(ban.target) else { continue };
        failed.extend(block_one(table, network, ban)?.map(|reason| Failed { target: ban.target, reason }));
    }
    Ok(failed)
}

fn block_one(table: &mut Table, network: Prefix, ban: &ActiveBan) -> Result<Option<Failure>, BlockError> {
    let mut answer = Ok(());
    let (mut inside, mut there) = (Vec::new(), false);
    for _ in 0..MAX_ATTEMPTS {
        answer = table.transact(|batch| {
            inside.iter().for_each(|other| put_lift(batch, *other));
            let put = if there { nft::put_prefix_ban } else { nft::put_new_prefix_ban };
            put(batch, ban);
        });
        match &answer {
            Ok(()) => return Ok(None),
            Err(SocketError::Refused { errno: Errno::EXIST | Errno::NOENT, .. }) => {}
            Err(_) => break,
        }
        // Another network overlaps it, or did until it expired: read the current networks.
        let held = table.networks()?.ok_or(BlockError::Gone)?;
        let held = || held.iter().filter_map(|(target, other_left)| Some((as_prefix(*target)?, *other_left)));
        if let Some((around, other_left)) = held().find(|(other, _)| contains(*other, network) && *other != network) {
            return Ok(
                (!outlasts(other_left, ban.left)).then_some(Failure::Inside { around: BanTarget::Prefix(around) })
            );
        }
        there = held().any(|(other, _)| other == network);
        let others = held().map(|(other, _)| other);
        inside = others.filter(|other| contains(network, *other) && *other != network).collect();
    }
    match answer {
        Err(SocketError::Refused { errno: Errno::NFILE, .. }) => {
            let set = Set::for_target(ban.target);
            Ok(Some(Failure::Full { set: set.name(), size: table.size(set)? }))
        }
        Err(error @ SocketError::Refused { .. }) => Ok(Some(error.into())),
        done => Ok(done.map(|()| None)?),
    }
}

/// Lifts the bans of exactly these networks; returns the failed ones.
pub(super) fn lift(table: &mut Table, targets: &[BanTarget]) -> Result<Vec<Failed>, BlockError> {
    let mut failed = Vec::new();
    for target in targets.iter().copied() {
        let Some(network) = as_prefix(target) else { continue };
        match table.transact(|batch| put_lift(batch, network)) {
            Ok(()) => {}
            // The ban or the set does not exist.
            Err(error) if error.is(Errno::NOENT) => {}
            Err(error @ SocketError::Refused { .. }) => failed.push(Failed { target, reason: error.into() }),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(failed)
}

/// Appends the deletion of a ban of `network`, which fails if there is no ban of exactly this network.
fn put_lift(batch: &mut Batch, network: Prefix) {
    nft::put_lift(batch, KernelFeatures::default(), BanTarget::Prefix(network));
}

fn as_prefix(target: BanTarget) -> Option<Prefix> {
    if let BanTarget::Prefix(wide) = target { Some(wide) } else { None }
}

fn contains(outer: Prefix, inner: Prefix) -> bool {
    outer.network().contains(&inner.network())
}

/// True if the remaining time `left` covers `wanted`, allowing for the clock's progress in the meantime.
fn outlasts(left: Expiry, wanted: Expiry) -> bool {
    match (left, wanted) {
        (Expiry::Never, _) => true,
        (Expiry::After(_), Expiry::Never) => false,
        (Expiry::After(left), Expiry::After(wanted)) => left + MAX_DRIFT >= wanted,
    }
}

/// Of two bans restored together, the first has lost a few milliseconds when the second is compared with it.
const MAX_DRIFT: Duration = Duration::from_secs(2);

/// Maximum number of attempts while overlapping bans expire or are changed by others.
const MAX_ATTEMPTS: u32 = 4;
