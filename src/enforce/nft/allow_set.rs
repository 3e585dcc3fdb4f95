//! Writes the prefixes that the rules never drop into the sets `allowed` and `allowed6`: all of them, or only changes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{BlockError, Nft};
use crate::netlink::nft::{self, Set};
use crate::netlink::socket::SocketError;

/// The prefixes in the sets by family: sorted, without overlaps.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Protected([BTreeSet<IpNet>; 2]);

impl Protected {
    /// Aggregated, because an interval set refuses a prefix inside another.
    fn new(prefixes: &[IpNet]) -> Self {
        let all = IpNet::aggregate(&prefixes.to_vec());
        let (v4, v6) = all.into_iter().partition(|prefix| matches!(prefix, IpNet::V4(_)));
        Self([v4, v6])
    }

    fn families(&self) -> impl Iterator<Item = (Set, &BTreeSet<IpNet>)> {
        [Set::Allowed, Set::Allowed6].into_iter().zip(&self.0)
    }
}

impl Nft {
    /// Replaces the allow-list with these prefixes in one transaction. While Linux 6.1 or older replaces an interval
    /// set, some packets match neither the old nor the new content (57 of 20,000 with continuous replacement).
    ///
    /// # Errors
    /// [`BlockError::Gone`]; [`SocketError::TooBig`] for more than about 50,000 prefixes.
    pub fn protect(&mut self, prefixes: &[IpNet]) -> Result<(), BlockError> {
        self.replace_protected(Protected::new(prefixes))
    }

    /// Updates the allow-list after an earlier call: sends only the changes, and nothing if there are none. An address
    /// that is protected before and after is protected at every moment, on any kernel, unless a prefix is replaced with
    /// a part of it. Changes by other programs are kept.
    pub fn follow_protected(&mut self, prefixes: &[IpNet]) -> Result<(), BlockError> {
        let wanted = Protected::new(prefixes);
        // Unknown until the change has succeeded.
        let Some(known) = self.protected.take() else { return self.replace_protected(wanted) };
        self.batch.clear();
        let mut clear = true;
        for ((set, before), (_, after)) in known.families().zip(wanted.families()) {
            let out: Vec<IpNet> = before.difference(after).copied().collect();
            let into: Vec<IpNet> = after.difference(before).copied().collect();
            clear &= !touch(&out, &into);
            nft::put_protected_change(&mut self.batch, set, &out, &into);
        }
        if !clear {
            return self.replace_protected(wanted);
        }
        match self.socket.transact(&mut self.batch) {
            Ok(()) => {
                self.protected = Some(wanted);
                Ok(())
            }
            // Another program has changed the set.
            Err(SocketError::Refused { .. }) => self.replace_protected(wanted),
            Err(error) => Err(error.into()),
        }
    }

    fn replace_protected(&mut self, wanted: Protected) -> Result<(), BlockError> {
        self.protected = None;
        self.batch.clear();
        for (set, prefixes) in wanted.families() {
            nft::put_protected(&mut self.batch, set, &prefixes.iter().copied().collect::<Vec<_>>());
        }
        self.send_batch()?;
        self.protected = Some(wanted);
        Ok(())
    }
}

/// True if the lists have a bound in common.
fn touch(these: &[IpNet], those: &[IpNet]) -> bool {
    let bounds = |prefixes: &[IpNet]| -> BTreeSet<Option<IpAddr>> {
        prefixes.iter().flat_map(|prefix| [Some(prefix.network()), nft::next_address(prefix.broadcast())]).collect()
    };
    !bounds(these).is_disjoint(&bounds(those))
}
