//! Keeps every backend except nftables from affecting exempt prefixes. In nftables, the set `allowed` lets the exempt
//! addresses of a banned prefix pass. A route, a line of hosts.deny and a command affect the whole prefix, so these
//! backends refuse a ban that overlaps an exempt prefix. Connections of exempt addresses are not ended.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::types::BanTarget;

/// A ban that only nftables can enforce, because it overlaps this exempt prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it overlaps {0}, which must stay reachable; only the backend nft can block the rest of it")]
pub struct Overlap(pub IpNet);

/// Sorted, without overlaps.
#[derive(Clone, Debug, Default)]
pub struct ExemptPrefixes(Vec<IpNet>);

impl ExemptPrefixes {
    pub fn new(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let mut all = IpNet::aggregate(&prefixes.into_iter().collect());
        all.sort_unstable_by_key(IpNet::network);
        Self(all)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.overlapping(address.into()).is_some()
    }

    /// Checks that a ban of `target` affects no exempt address.
    ///
    /// # Errors
    /// The first exempt prefix that it would affect.
    pub fn check(&self, target: BanTarget) -> Result<(), Overlap> {
        self.overlapping(target.network()).map_or(Ok(()), |exempt| Err(Overlap(exempt)))
    }

    /// The first exempt prefix that overlaps `net`: it contains `net`, or is inside it.
    pub(super) fn overlapping(&self, net: IpNet) -> Option<IpNet> {
        let first = self.0.partition_point(|one| one.broadcast() < net.network());
        self.0.get(first).copied().filter(|one| one.network() <= net.broadcast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn prefix_overlaps_inner_and_outer_prefix() {
        let exempt = ExemptPrefixes::new([net("192.0.2.1/32"), net("10.0.0.0/8"), net("2001:db8::53/128")]);
        assert_eq!(exempt.overlapping(net("192.0.2.1/32")), Some(net("192.0.2.1/32")));
        assert_eq!(exempt.overlapping(net("192.0.2.2/32")), None);
        assert_eq!(exempt.overlapping(net("10.9.8.7/32")), Some(net("10.0.0.0/8")));
        assert_eq!(exempt.overlapping(net("2001:db8::/64")), Some(net("2001:db8::53/128")));
        assert_eq!(exempt.overlapping(net("2001:db8:0:1::/64")), None);
    }

    proptest! {
        #[test]
        fn search_agrees_with_linear_scan(
            prefixes in prop::collection::vec((any::<u8>(), 26_u8..=32), 0..8),
            (end, length) in (any::<u8>(), 26_u8..=32),
        ) {
            let net = |end: u8, length| IpNet::V4(Ipv4Net::new_assert([192, 0, 2, end].into(), length).trunc());
            let prefixes: Vec<_> = prefixes.into_iter().map(|(end, length)| net(end, length)).collect();
            let prefix = net(end, length);
            let one_by_one = prefixes.iter().any(|one| one.contains(&prefix) || prefix.contains(one));
            prop_assert_eq!(ExemptPrefixes::new(prefixes).overlapping(prefix).is_some(), one_by_one);
        }
    }
}
