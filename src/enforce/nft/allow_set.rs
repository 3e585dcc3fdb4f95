//! Writes the prefixes that the rules never drop into the sets `allowed` and `allowed6`: all of them, or only changes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{BlockError, Table};
use crate::netlink::nft::{self, Set};
use crate::netlink::socket::SocketError;

/// The allow-list in the kernel, as far as known.
#[derive(Debug, Default)]
pub(super) struct AllowSet {
    /// `None` if its contents are unknown.
    known: Option<Prefixes>,
}

/// The prefixes in the sets by family: sorted, without overlaps.
#[derive(Debug)]
struct Prefixes([BTreeSet<IpNet>; 2]);

impl Prefixes {
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

impl AllowSet {
    /// Replaces the allow-list with these prefixes in one transaction. While Linux 6.12 or older replaces an interval
    /// set, some packets match neither the old nor the new content (with continuous replacement 57 of 20,000 on 6.1,
    /// and 20 on 6.12).
    ///
    /// # Errors
    /// [`BlockError::Gone`]; [`SocketError::TooBig`] for more than about 50,000 prefixes.
    pub(super) fn replace(&mut self, table: &mut Table, prefixes: &[IpNet]) -> Result<(), BlockError> {
        self.write(table, Prefixes::new(prefixes))
    }

    /// Updates the allow-list after an earlier call: sends only the changes, and nothing if there are none. An address
    /// that is protected before and after is protected at every moment, on any kernel, unless a prefix is replaced with
    /// a part of it. Changes by other programs are kept.
    pub(super) fn follow(&mut self, table: &mut Table, prefixes: &[IpNet]) -> Result<(), BlockError> {
        let wanted = Prefixes::new(prefixes);
        // Unknown until the change has succeeded.
        let Some(known) = self.known.take() else { return self.write(table, wanted) };
        let less = |these: &BTreeSet<IpNet>, those| these.difference(those).copied().collect::<Vec<IpNet>>();
        let families = known.families().zip(wanted.families());
        let changes: Vec<_> =
            families.map(|((set, before), (_, after))| (set, less(before, after), less(after, before))).collect();
        if changes.iter().any(|(_, out, into)| shares_bound(out, into)) {
            return self.write(table, wanted);
        }
        let put = |batch: &mut _| {
            changes.iter().for_each(|(set, out, into)| nft::put_allowed_change(batch, *set, out, into));
        };
        match table.transact(put) {
            Ok(()) => {
                self.known = Some(wanted);
                Ok(())
            }
            // Another program has changed the set.
            Err(SocketError::Refused { .. }) => self.write(table, wanted),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, table: &mut Table, wanted: Prefixes) -> Result<(), BlockError> {
        self.known = None;
        table.send(|batch| {
            for (set, prefixes) in wanted.families() {
                nft::put_allowed(batch, set, &prefixes.iter().copied().collect::<Vec<_>>());
            }
        })?;
        self.known = Some(wanted);
        Ok(())
    }
}

/// True if the lists have a bound in common.
fn shares_bound(these: &[IpNet], those: &[IpNet]) -> bool {
    let bounds = |prefixes: &[IpNet]| -> BTreeSet<Option<IpAddr>> {
        prefixes.iter().flat_map(|prefix| [Some(prefix.network()), nft::next_address(prefix.broadcast())]).collect()
    };
    !bounds(these).is_disjoint(&bounds(those))
}
