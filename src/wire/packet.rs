//! Defines the decoded packet and its parts.

use std::fmt;
use std::net::IpAddr;

use super::checksum::LazyChecksum;

/// The link type of a frame. The numbers in parentheses are the pcap DLT/LINKTYPE values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    /// Ethernet II, with 802.1Q/802.1ad tags (1).
    Ethernet,
    /// Linux cooked capture, version 1 (113).
    Sll,
    /// Linux cooked capture, version 2 (276).
    Sll2,
    /// An IPv4 or IPv6 header without a link-layer header (DLT 12 and 14 on some systems, LINKTYPE 101, 228, 229).
    Raw,
    /// BSD loopback: a 4 byte address family in host order of the capturing machine (0), or network order (108).
    Null,
}

impl LinkType {
    /// The link type for a pcap DLT or LINKTYPE number; `None` if it is not supported.
    pub fn from_dlt(dlt: i32) -> Option<Self> {
        match dlt {
            0 | 108 => Some(Self::Null),
            1 => Some(Self::Ethernet),
            12 | 14 | 101 | 228 | 229 => Some(Self::Raw),
            113 => Some(Self::Sll),
            276 => Some(Self::Sll2),
            _ => None,
        }
    }
}

/// The recipient of the frame according to the link layer. Ethernet alone cannot distinguish "to us" from "to another
/// host seen in promiscuous mode": except for group addresses, the result is [`Delivery::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To this host (PACKET_HOST).
    Host,
    /// To every host on the link (PACKET_BROADCAST, or an all-ones destination address).
    Broadcast,
    /// To a group on the link (PACKET_MULTICAST, or the group bit of the destination address).
    Multicast,
    /// To another host (PACKET_OTHERHOST).
    OtherHost,
    /// Sent by this host (PACKET_OUTGOING).
    Outgoing,
    /// The link layer does not contain this information.
    Unknown,
}

/// The flags of a TCP header with the reserved bits: the low 12 bits of bytes 12 and 13.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u16);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u16 = 0x001;
    /// Synchronise sequence numbers.
    pub const SYN: u16 = 0x002;
    /// Reset the connection.
    pub const RST: u16 = 0x004;
    /// Push.
    pub const PSH: u16 = 0x008;
    /// Acknowledgement field significant.
    pub const ACK: u16 = 0x010;
    /// Urgent pointer significant.
    pub const URG: u16 = 0x020;
    /// ECN echo (RFC 3168).
    pub const ECE: u16 = 0x040;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u16 = 0x080;
    /// Accurate ECN (RFC 9768), once the nonce sum.
    pub const AE: u16 = 0x100;
    /// The three bits that RFC 9293 still reserves.
    pub const RESERVED: u16 = 0xe00;

    /// True if every bit of `bits` is set.
    pub fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR", "AE"].into_iter().enumerate();
        let set = names.filter(|(bit, _)| self.0 & 1 << bit != 0).map(|(_, name)| name.to_owned());
        let reserved = Some((self.0 & Self::RESERVED) >> 9).filter(|bits| *bits != 0).map(|bits| format!("R{bits:x}"));
        let shown: Vec<String> = set.chain(reserved).collect();
        f.write_str(if shown.is_empty() { "none".to_owned() } else { shown.join("|") }.as_str())
    }
}

/// The transport header of a packet, as far as a port-scan detector needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP header, at least up to its flags.
    Tcp {
        source_port: u16,
        destination_port: u16,
        flags: TcpFlags,
        /// Bytes after the TCP header, computed from the lengths in the headers, not from the captured length.
        payload: u16,
    },
    Udp {
        source_port: u16,
        destination_port: u16,
    },
    /// An SCTP common header and the type of its first chunk.
    Sctp {
        source_port: u16,
        destination_port: u16,
        /// Type of the first chunk; 1 is INIT (RFC 9260).
        chunk: u8,
    },
    /// ICMP (IPv4) or ICMPv6 (IPv6).
    Icmp {
        kind: u8,
        code: u8,
    },
    /// A first fragment that ends before the TCP flags, inside another transport header, or inside the chain of IPv6
    /// extension headers. No stack sends such a fragment (RFC 1858, RFC 7112).
    TinyFragment {
        /// Source and destination port, if the fragment contains them.
        ports: Option<(u16, u16)>,
    },
    /// More than 288 bytes of IPv6 options and routing headers before the transport header, or more than four VLAN tags
    /// with number 0 before the IP header. Hosts accept chains of any length. Stacks and the networks between them use
    /// a few dozen bytes, and most routers drop longer chains (RFC 9098).
    HiddenHeader,
    /// A TCP fragment at offset 1 (8 bytes in), which overlaps the flags of the first one (RFC 3128).
    OverlappingFragment,
    /// Any other later fragment. It has no ports, and the first fragment has already been judged.
    LaterFragment {
        /// IP protocol number.
        protocol: u8,
    },
    /// Another protocol.
    Other {
        /// IP protocol number.
        protocol: u8,
    },
}

/// One decoded packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The source address as claimed by the packet. IPv4-mapped IPv6 addresses stay IPv6.
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The recipient according to the link layer.
    pub delivery: Delivery,
    /// Index of the interface if the link layer contains it (SLL2), otherwise 0.
    pub interface: u32,
    pub checksum: LazyChecksum<'a>,
    /// True for the first fragment of a datagram. False for an atomic fragment (RFC 6946), which is a whole datagram.
    pub fragmented: bool,
    pub transport: Transport,
}
