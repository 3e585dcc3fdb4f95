//! Writes the prefixes that the rules never drop into the sets `allowed` and `allowed6`: all of them, or only what has
//! changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{BlockError, Nft};
use crate::netlink::nft::{self, Set};
use crate::netlink::socket::SocketError;

/// The prefixes of each family as they stand in the sets: sorted, none part of another.
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
    /// Makes these prefixes, and no others, the ones that are never dropped. In one transaction; but while Linux 6.1 or older
    /// replaces an interval set, some packets see neither the old nor the new one (57 of 20,000, replaced without a pause).
    ///
    /// # Errors
    /// [`BlockError::Gone`], and [`SocketError::TooBig`] from some 50,000 prefixes on.
    pub fn protect(&mut self, prefixes: &[IpNet]) -> Result<(), BlockError> {
        self.replace_protected(Protected::new(prefixes))
    }

    /// The same after an earlier call: sends only what has changed since, and nothing where nothing has. An address that is
    /// protected before and after is so at every moment, on any kernel, but where a prefix becomes a part of itself. What
    /// other programs made of the sets meanwhile stays.
    pub fn follow_protected(&mut self, prefixes: &[IpNet]) -> Result<(), BlockError> {
        let wanted = Protected::new(prefixes);
        // Unknown again until what stands there is certain.
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
            // Another program has changed what it was to be applied to.
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

/// Whether an end of one of these is where an end of one of those is.
fn touch(these: &[IpNet], those: &[IpNet]) -> bool {
    let bounds = |prefixes: &[IpNet]| -> BTreeSet<Option<IpAddr>> {
        prefixes.iter().flat_map(|prefix| [Some(prefix.network()), nft::next_address(prefix.broadcast())]).collect()
    };
    !bounds(these).is_disjoint(&bounds(those))
}
