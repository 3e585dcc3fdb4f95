//! Defines the differences between the rules for IPv4 and IPv6.

use super::set::Set;

pub(super) struct Family {
    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    pub(super) number: u8,
    /// Name of its header in nft syntax.
    pub(super) name: &'static str,
    /// Text of the source expression that is counted and blocked.
    pub(super) target: &'static str,
    pub(super) source_offset: u32,
    pub(super) destination_offset: u32,
    pub(super) source_length: u32,
    /// True if sources are counted and blocked by the first address of their /64.
    pub(super) is_masked: bool,
    /// The four-byte register that follows a source in NFT_REG_1.
    pub(super) next_register: u32,
}

pub(super) const V4: Family = Family {
    number: 2,
    name: "ip",
    target: "ip saddr",
    source_offset: 12,
    destination_offset: 16,
    source_length: 4,
    is_masked: false,
    // NFT_REG32_01.
    next_register: 9,
};

pub(super) const V6: Family = Family {
    number: 10,
    name: "ip6",
    target: "ip6 saddr & ffff:ffff:ffff:ffff::",
    source_offset: 8,
    destination_offset: 24,
    source_length: 16,
    is_masked: true,
    // NFT_REG_2.
    next_register: 2,
};

/// Addresses of fe80::/64, each of which counts as a separate source.
pub(super) const LINK_LOCAL: Family = Family { target: "ip6 saddr", is_masked: false, ..V6 };

impl Family {
    /// The set for this family: `v4`, or its IPv6 counterpart.
    pub(super) fn set(&self, v4: Set) -> Set {
        if self.number == V4.number { v4 } else { v4.for_ipv6() }
    }
}
