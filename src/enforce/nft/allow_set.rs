//! Whom the rules never drop, to the interval sets `allowed` and `allowed6`: all of them, or only what has changed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::io::Errno;

use super::{BlockError, Nft};
use crate::netlink::nft::{self, Set};
use crate::netlink::socket::SocketError;

/// The prefixes of each family as they stand in the sets: sorted, none part of another.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Protected([BTreeSet<IpNet>; 2]);

impl Protected {
    /// Aggregated, because an interval set refuses a prefix inside another.
    fn of(prefixes: &[IpNet]) -> Self {
        let v4: Vec<Ipv4Net> =
            prefixes.iter().filter_map(|prefix| if let IpNet::V4(v4) = prefix { Some(*v4) } else { None }).collect();
        let v6: Vec<Ipv6Net> =
            prefixes.iter().filter_map(|prefix| if let IpNet::V6(v6) = prefix { Some(*v6) } else { None }).collect();
        Self([
            Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4).collect(),
            Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6).collect(),
        ])
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
        self.replace_protected(Protected::of(prefixes))
    }

    /// The same for whom this socket has protected before: sends only what has changed since, and nothing where nothing has. At no moment
    /// is anybody without protection who has it before and after, on any kernel, but where a prefix becomes a part of itself.
    /// What others made of the sets meanwhile stays.
    ///
    /// # Errors
    /// As [`Nft::protect`].
    pub fn follow_protected(&mut self, prefixes: &[IpNet]) -> Result<(), BlockError> {
        let wanted = Protected::of(prefixes);
        // Unknown again unless it is said below what stands there.
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
            // Somebody else has changed what it was to be applied to.
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
        self.socket
            .transact(&mut self.batch)
            .map_err(|error| if error.is(Errno::NOENT) { BlockError::Gone } else { error.into() })?;
        self.protected = Some(wanted);
        Ok(())
    }
}

/// Whether an end of one of these is where an end of one of those is.
fn touch(these: &[IpNet], those: &[IpNet]) -> bool {
    let bounds = |prefixes: &[IpNet]| -> BTreeSet<Option<IpAddr>> {
        prefixes.iter().flat_map(|prefix| [Some(prefix.network()), nft::after(prefix.broadcast())]).collect()
    };
    !bounds(these).is_disjoint(&bounds(those))
}
