//! Stores the allow-list: exempt prefixes, each with the reason for its exemption.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::AsView;
use prefix_trie::joint::JointPrefixMap;

use crate::types::BanTarget;

/// The rule that protects an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// An address of this host.
    OwnAddress,
    /// A loopback address; a packet from outside with such a source is forged.
    Loopback,
    /// A gateway of one of this host's routes; blocking it would cut off the network.
    Gateway,
    /// The outer address of the remote end of a tunnel of this host.
    TunnelPeer,
    /// A name server that this host uses.
    Resolver,
    /// The DHCP server that gave this host an address.
    DhcpServer,
    /// The remote end of a login session; blocking it would cut off the administrator.
    Session,
    /// Listed under `[allow]` in the configuration, as a network or in a file.
    Listed,
    /// An address of a host name listed under `[allow]`.
    Named,
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnAddress => "an address of this host",
            Self::Loopback => "a loopback address",
            Self::Gateway => "a gateway of this host",
            Self::TunnelPeer => "the far end of a tunnel of this host",
            Self::Resolver => "a resolver of this host",
            Self::DhcpServer => "a DHCP server of this host",
            Self::Session => "the remote end of a login session",
            Self::Listed => "on the allow-list",
            Self::Named => "the address of a name on the allow-list",
        })
    }
}

/// Prefixes that are never blocked. The most specific entry determines the reason.
#[derive(Clone, Default)]
pub struct AllowList {
    prefixes: JointPrefixMap<IpNet, Protection>,
    /// Link-local addresses of single links, sorted. They are not part of the kernel's allow-list, where they would
    /// apply to every link.
    links: Vec<(BanTarget, Protection)>,
}

impl AllowList {
    /// Creates the list that every host has: loopback.
    pub fn new() -> Self {
        let mut list = Self::default();
        list.insert(Ipv4Net::new_assert([127, 0, 0, 0].into(), 8).into(), Protection::Loopback);
        list.insert(Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128).into(), Protection::Loopback);
        list
    }

    /// Protects `prefix`. If it is protected already, the reason that comes first in [`Protection`] is kept.
    pub fn insert(&mut self, prefix: IpNet, protection: Protection) {
        let prefix = prefix.trunc();
        let kept = self.prefixes.get(&prefix).map_or(protection, |present| protection.min(*present));
        self.prefixes.insert(prefix, kept);
    }

    /// Protects `address`; a link-local address is protected on the link of `interface` only.
    pub fn insert_on(&mut self, address: IpAddr, interface: u32, protection: Protection) {
        let target = BanTarget::on(address, interface);
        if !matches!(target, BanTarget::Link { .. }) {
            return self.insert(address.into(), protection);
        }
        match self.links.binary_search_by_key(&target, |(link, _)| *link) {
            Ok(place) => {
                if let Some((_, present)) = self.links.get_mut(place) {
                    *present = protection.min(*present);
                }
            }
            Err(place) => self.links.insert(place, (target, protection)),
        }
    }

    /// Removes all of `hole` from the list, for every reason of protection, except this host's own addresses.
    /// Addresses around the hole stay protected.
    pub fn except(&mut self, hole: IpNet) {
        let hole = hole.trunc();
        let before = std::mem::take(self);
        let stays =
            |link: &(BanTarget, Protection)| link.1 == Protection::OwnAddress || !hole.contains(&link.0.element());
        self.links = before.links.iter().copied().filter(stays).collect();
        for (network, why) in before.prefixes.iter().map(|(network, why)| (network, *why)) {
            if matches!(why, Protection::OwnAddress | Protection::Loopback) || !overlap(network, hole) {
                self.insert(network, why);
            } else if network.prefix_len() < hole.prefix_len() {
                // Splits the network: first its halves, then the halves of the half that contains the hole, until the
                // hole remains.
                let mut around = network;
                while around.prefix_len() < hole.prefix_len()
                    && let Ok(mut halves) = around.subnets(around.prefix_len() + 1)
                    && let (Some(low), Some(high)) = (halves.next(), halves.next())
                {
                    let (inside, outside) = if low.contains(&hole) { (low, high) } else { (high, low) };
                    self.insert(outside, why);
                    around = inside;
                }
            }
        }
    }

    /// Returns the reason why `address` is protected on any link, if it is.
    pub fn protects(&self, address: IpAddr) -> Option<Protection> {
        self.listed(address).or_else(|| self.on_some_link(address.into()))
    }

    /// Returns the reason why all of `target` is protected and must not be blocked, if it is. One protected address in
    /// a /64 is not enough: the kernel's allow-list accepts its packets despite the ban.
    pub fn protects_target(&self, target: BanTarget) -> Option<Protection> {
        if let BanTarget::Link { address, .. } = target {
            let place = self.links.binary_search_by_key(&target, |(link, _)| *link).ok();
            let on_link = place.and_then(|place| self.links.get(place)).map(|(_, why)| *why);
            return on_link.or_else(|| self.listed(address.into()));
        }
        self.covers(target.network())
    }

    fn on_some_link(&self, network: IpNet) -> Option<Protection> {
        self.links.iter().find(|(link, _)| IpNet::from(link.element()) == network).map(|(_, why)| *why)
    }

    fn listed(&self, address: IpAddr) -> Option<Protection> {
        match address {
            IpAddr::V4(v4) => self.prefixes.t1.get_lpm(&Ipv4Net::from(v4)).map(|(_, why)| *why),
            IpAddr::V6(v6) => self.prefixes.t2.get_lpm(&Ipv6Net::from(v6)).map(|(_, why)| *why),
        }
    }

    /// Returns the reason why all of `network` is protected, if it is.
    pub fn covers(&self, network: IpNet) -> Option<Protection> {
        let listed = self.prefixes.get_lpm(&network).map(|(_, why)| *why);
        listed.or_else(|| self.on_some_link(network))
    }

    /// True if this list protects addresses that `before` does not.
    pub fn protects_more_than(&self, before: &Self) -> bool {
        self.prefixes().any(|prefix| before.covers(prefix).is_none())
            || self.links.iter().any(|(link, _)| before.protects_target(*link).is_none())
    }

    /// True if at least a part of `network` is protected.
    pub fn overlaps(&self, network: IpNet) -> bool {
        // `children` would allocate, and this is between a packet and its ban.
        let contains_prefix = match network {
            IpNet::V4(net) => (&self.prefixes.t1).view_at(&net).is_some(),
            IpNet::V6(net) => (&self.prefixes.t2).view_at(&net).is_some(),
        };
        contains_prefix
            || self.prefixes.get_lpm(&network).is_some()
            || self.links.iter().any(|(link, _)| network.contains(&link.element()))
    }

    /// Number of prefixes listed by the operator, and number of prefixes protected automatically.
    pub fn counts(&self) -> (usize, usize) {
        let listed = |why: &&Protection| matches!(why, Protection::Listed | Protection::Named);
        let listed = self.prefixes.values().filter(listed).count();
        (listed, self.prefixes.len() + self.links.len() - listed)
    }

    /// All protected networks, on any link.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.prefixes().chain(self.links.iter().map(|(link, _)| IpNet::from(link.element())))
    }

    /// Every prefix, for the kernel's `allowed` sets.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.prefixes.keys()
    }
}

/// True if one network contains the other.
pub(super) fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_specific_prefix_gives_reason() {
        let mut list = AllowList::new();
        list.insert("10.0.0.0/8".parse().unwrap(), Protection::Listed);
        list.insert("10.0.0.1/32".parse().unwrap(), Protection::Gateway);
        list.insert("10.0.0.1/32".parse().unwrap(), Protection::Listed);
        let why = |text: &str| list.protects(text.parse().unwrap());
        assert_eq!(why("10.0.0.1"), Some(Protection::Gateway));
        assert_eq!(why("10.0.0.10"), Some(Protection::Listed), "addresses are not compared as text");
        assert_eq!(why("11.0.0.1"), None);
        assert_eq!(why("127.3.2.1"), Some(Protection::Loopback));
        assert_eq!(why("::1"), Some(Protection::Loopback));
        assert_eq!(why("::2"), None);
    }

    #[test]
    fn network_is_covered_only_as_whole() {
        let mut list = AllowList::new();
        list.insert("2001:db8:0:1::7/128".parse().unwrap(), Protection::Named);
        list.insert("2001:db8:1::/48".parse().unwrap(), Protection::Listed);
        list.insert("192.0.2.0/25".parse().unwrap(), Protection::Listed);
        let why = |text: &str| list.covers(text.parse().unwrap());
        assert_eq!(why("2001:db8:0:1::/64"), None, "only one of its addresses is listed");
        assert_eq!(why("2001:db8:1:2::/64"), Some(Protection::Listed));
        assert_eq!(why("192.0.2.7/32"), Some(Protection::Listed));
        assert_eq!(why("192.0.2.0/24"), None);
    }

    #[test]
    fn network_matches_inner_and_outer_networks() {
        let mut list = AllowList::new();
        for prefix in ["203.0.113.77/32", "198.51.100.0/28", "10.0.0.0/8", "2001:db8:1:2::3/128"] {
            list.insert(prefix.parse().unwrap(), Protection::Listed);
        }
        let overlaps = |text: &str| list.overlaps(text.parse().unwrap());
        for text in ["203.0.113.0/24", "203.0.113.76/30", "198.51.100.8/29", "198.51.100.0/24", "10.9.9.0/24"] {
            assert!(overlaps(text), "{text}");
        }
        for text in ["2001:db8:1::/48", "2001:db8:1::/56", "127.0.0.0/24", "::/48"] {
            assert!(overlaps(text), "{text}");
        }
        for text in [
            "203.0.113.80/28",
            "203.0.112.0/24",
            "198.51.100.16/28",
            "11.0.0.0/24",
            "2001:db8:1:100::/56",
            "2001:db8::/48",
        ] {
            assert!(!overlaps(text), "{text}");
        }
    }

    #[test]
    fn gateway_is_protected_only_on_its_link() {
        let [gateway, other]: [IpAddr; 2] = ["fe80::1", "2001:db8::1"].map(|text| text.parse().unwrap());
        let mut list = AllowList::new();
        list.insert_on(gateway, 3, Protection::Gateway);
        list.insert_on(other, 3, Protection::Gateway);
        let on = |list: &AllowList, interface| list.protects_target(BanTarget::on(gateway, interface));
        assert_eq!((on(&list, 3), on(&list, 4)), (Some(Protection::Gateway), None));
        assert_eq!(list.protects(gateway), Some(Protection::Gateway), "an operator names no link");
        assert_eq!(list.covers(gateway.into()), Some(Protection::Gateway));
        assert!(list.overlaps("fe80::/64".parse().unwrap()));
        assert!(list.prefixes().any(|prefix| prefix == other.into()), "a global address has no link");
        assert!(list.prefixes().all(|prefix| prefix != gateway.into()), "the kernel's list has no links");
        assert!(list.protects_more_than(&AllowList::new()) && !list.protects_more_than(&list.clone()));
        list.insert_on(gateway, 3, Protection::OwnAddress);
        list.insert_on(gateway, 4, Protection::Gateway);
        list.except(gateway.into());
        assert_eq!((on(&list, 3), on(&list, 4)), (Some(Protection::OwnAddress), None), "own addresses stay");
        list.insert("fe80::/64".parse().unwrap(), Protection::Listed);
        assert_eq!(on(&list, 4), Some(Protection::Listed), "a network of the operator applies to every link");
    }

    #[test]
    fn all_addresses_can_be_allowed() {
        let mut list = AllowList::new();
        list.insert("0.0.0.0/0".parse().unwrap(), Protection::Listed);
        assert_eq!(list.protects("203.0.113.9".parse().unwrap()), Some(Protection::Listed));
        assert_eq!(list.protects("2001:db8::9".parse().unwrap()), None);
    }

    #[test]
    fn excepted_prefix_keeps_surrounding_addresses() {
        let mut list = AllowList::new();
        list.insert("10.0.0.0/8".parse().unwrap(), Protection::Listed);
        list.insert("10.1.2.3/32".parse().unwrap(), Protection::Gateway);
        list.insert("10.1.2.4/32".parse().unwrap(), Protection::OwnAddress);
        list.insert("2001:db8::/32".parse().unwrap(), Protection::Listed);
        list.except("10.1.2.3/32".parse().unwrap());
        list.except("10.1.2.4/32".parse().unwrap());
        list.except("2001:db8:0:7::/64".parse().unwrap());
        let why = |text: &str| list.protects(text.parse().unwrap());
        assert_eq!(why("10.1.2.3"), None);
        assert_eq!(why("10.1.2.4"), Some(Protection::OwnAddress), "never");
        for around in ["10.0.0.0", "10.1.2.2", "10.1.2.5", "10.255.255.255", "2001:db8:0:6::1", "2001:db8:0:8::1"] {
            assert_eq!(why(around), Some(Protection::Listed), "{around}");
        }
        assert_eq!((why("2001:db8:0:7::1"), why("127.0.0.1")), (None, Some(Protection::Loopback)));
    }
}
