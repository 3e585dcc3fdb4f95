//! Writes bans of whole networks as intervals into the sets `blocked_nets` and `blocked_nets6`, and reads them back.
//! They are few and never urgent, so each is a separate transaction.
//!
//! Such a set refuses overlapping intervals. Of two overlapping networks, one always contains the other.

use std::time::Duration;

use rustix::io::Errno;

use super::{BlockError, Bound, Failed, Failure, Nft};
use crate::netlink::nft::{self, Batch, KernelFeatures, Remaining, RestoredBan, Set};
use crate::netlink::socket::SocketError;
use crate::types::{BanTarget, Expiry, Prefix};

impl Nft {
    /// Blocks these networks, the widest first; returns the failed ones.
    pub(super) fn block_networks(&mut self, bans: &[RestoredBan]) -> Result<Vec<Failed>, BlockError> {
        let mut bans = bans.to_vec();
        bans.sort_by_key(|(target, ..)| target.prefix_len());
        let mut failed = Vec::new();
        for (target, length, left) in bans {
            let BanTarget::Prefix(network) = target else { continue };
            if let Err(reason) = self.block_network(network, length, left)? {
                failed.push(Failed { target, reason });
            }
        }
        Ok(failed)
    }

    fn block_network(
        &mut self,
        network: Prefix,
        length: Option<Duration>,
        left: Expiry,
    ) -> Result<Result<(), Failure>, BlockError> {
        let mut answer = Ok(());
        let (mut inside, mut there) = (Vec::new(), false);
        for _ in 0..MAX_ATTEMPTS {
            self.batch.clear();
            inside.iter().for_each(|other| put_lift(&mut self.batch, *other));
            let put = if there { nft::put_network } else { nft::put_new_network };
            put(&mut self.batch, (BanTarget::Prefix(network), length, left));
            answer = self.socket.transact(&mut self.batch);
            match &answer {
                Ok(()) => return Ok(Ok(())),
                Err(SocketError::Refused { errno: Errno::EXIST | Errno::NOENT, .. }) => {}
                Err(_) => break,
            }
            // Another network overlaps it, or did until it expired: read the current networks.
            let held = self.networks()?.ok_or(BlockError::Gone)?;
            let held = || held.iter().filter_map(|(target, remaining)| Some((as_wide(*target)?, *remaining)));
            if let Some((around, remaining)) = held().find(|(other, _)| contains(*other, network) && *other != network)
            {
                let enough = lasts(remaining, left);
                return Ok(if enough { Ok(()) } else { Err(Failure::Inside { around: BanTarget::Prefix(around) }) });
            }
            there = held().any(|(other, _)| other == network);
            let others = held().map(|(other, _)| other);
            inside = others.filter(|other| contains(network, *other) && *other != network).collect();
        }
        match answer {
            Err(SocketError::Refused { errno: Errno::NFILE, .. }) => {
                let set = Set::for_target(BanTarget::Prefix(network));
                Ok(Err(Failure::Full { set: set.name(), size: self.size(set)? }))
            }
            Err(error @ SocketError::Refused { .. }) => Ok(Err(error.into())),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(Ok(())),
        }
    }

    /// Lifts the bans of exactly these networks; returns the failed ones.
    pub(super) fn lift_networks(&mut self, targets: &[BanTarget]) -> Result<Vec<Failed>, BlockError> {
        let mut failed = Vec::new();
        for target in targets {
            let Some(network) = as_wide(*target) else { continue };
            self.batch.clear();
            put_lift(&mut self.batch, network);
            match self.socket.transact(&mut self.batch) {
                Ok(()) => {}
                // The ban or the set does not exist.
                Err(error) if error.is(Errno::NOENT) => {}
                Err(error @ SocketError::Refused { .. }) => {
                    failed.push(Failed { target: *target, reason: error.into() });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(failed)
    }

    /// Returns the first bound of the interval that contains all of `network`, if there is one.
    pub(super) fn interval_of(&mut self, network: Prefix) -> Result<Option<Bound>, BlockError> {
        let set = Set::for_target(BanTarget::Prefix(network));
        let first = self.find(set, network.network().network())?;
        // The network is blocked if its first and its last address are in the same interval.
        let last = self.find(set, network.network().broadcast())?;
        Ok(first.zip(last).filter(|(first, last)| first.address == last.address).map(|(first, _)| first))
    }

    /// True if a ban of exactly `target` is in force, which can be lifted.
    pub fn has(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        match as_wide(target) {
            Some(_) => Ok(self.networks()?.is_some_and(|held| held.iter().any(|(one, _)| *one == target))),
            None => self.holds(target).map(|held| held.is_some()),
        }
    }

    /// All networks that the kernel blocks; `None` if the table has no sets for them.
    pub(super) fn networks(&mut self) -> Result<Option<Vec<(BanTarget, Remaining)>>, BlockError> {
        let mut all = Vec::new();
        for set in [Set::BlockedNets, Set::BlockedNets6] {
            match self.read_set(set, Vec::new, |bounds, bound| bounds.push(bound)) {
                Ok(bounds) => all.extend(nft::networks(bounds)),
                Err(BlockError::Gone) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(all))
    }
}

/// Appends the deletion of a ban of `network`, which fails if there is no ban of exactly this network.
fn put_lift(batch: &mut Batch, network: Prefix) {
    nft::put_lift(batch, KernelFeatures::oldest(), BanTarget::Prefix(network));
}

pub(super) fn as_wide(target: BanTarget) -> Option<Prefix> {
    if let BanTarget::Prefix(wide) = target { Some(wide) } else { None }
}

fn contains(outer: Prefix, inner: Prefix) -> bool {
    outer.network().contains(&inner.network())
}

/// True if the remaining time covers `wanted`, allowing for the clock's progress in the meantime.
fn lasts(remaining: Remaining, wanted: Expiry) -> bool {
    match (remaining, wanted) {
        (None, _) => true,
        (Some(_), Expiry::Never) => false,
        (Some(remaining), Expiry::After(wanted)) => remaining + SLACK >= wanted,
    }
}

/// Of two bans restored together, the first has lost a few milliseconds when the second is compared with it.
const SLACK: Duration = Duration::from_secs(2);

/// Maximum number of attempts while overlapping bans expire or are changed by others.
const MAX_ATTEMPTS: u32 = 4;
