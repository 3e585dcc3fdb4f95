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
    pub(super) allowed: Set,
    pub(super) blocked: Set,
    pub(super) networks: Set,
    /// Sources and the ports that they probed.
    pub(super) probed_tcp: Set,
    pub(super) probed_udp: Set,
    pub(super) suspects: Set,
    /// Connected sources, and those of them that probed a port.
    pub(super) peers: Set,
    pub(super) peer_suspects: Set,
    pub(super) trap_banned: Set,
    /// Peers that a trapped port has answered.
    pub(super) answered: Set,
    pub(super) held: Set,
    pub(super) held_ports: Set,
    pub(super) hold_counts: Set,
    pub(super) hold_recent: Set,
    pub(super) service_ports: Set,
    pub(super) service_clients: Set,
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
    allowed: Set::Allowed,
    blocked: Set::Blocked,
    networks: Set::BlockedNets,
    probed_tcp: Set::Probed,
    probed_udp: Set::TouchedUdp,
    suspects: Set::Suspects,
    peers: Set::Peers,
    peer_suspects: Set::PeerSuspects,
    trap_banned: Set::TrapBanned,
    answered: Set::Answered,
    held: Set::Held,
    held_ports: Set::HeldPorts,
    hold_counts: Set::HoldCounts,
    hold_recent: Set::HoldRecent,
    service_ports: Set::ServicePorts,
    service_clients: Set::ServiceClients,
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
    allowed: Set::Allowed6,
    blocked: Set::Blocked6,
    networks: Set::BlockedNets6,
    probed_tcp: Set::Probed6,
    probed_udp: Set::TouchedUdp6,
    suspects: Set::Suspects6,
    peers: Set::Peers6,
    peer_suspects: Set::PeerSuspects6,
    trap_banned: Set::TrapBanned6,
    answered: Set::Answered6,
    held: Set::Held6,
    held_ports: Set::HeldPorts6,
    hold_counts: Set::HoldCounts6,
    hold_recent: Set::HoldRecent6,
    service_ports: Set::ServicePorts6,
    service_clients: Set::ServiceClients6,
};

/// Addresses of fe80::/64, each of which counts as a separate source.
pub(super) const LINK_LOCAL: Family = Family { target: "ip6 saddr", is_masked: false, ..V6 };
