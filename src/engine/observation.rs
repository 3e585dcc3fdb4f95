//! Derives from a packet the evidence that it would be if its port were closed. Depends on the packet alone.

use std::net::IpAddr;

use super::class::Class;
use crate::types::Protocol;
use crate::wire::{Packet, Transport};

/// An incoming packet or a connection to a decoy, in the form that the engine judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Source address of the packet; may be forged.
    pub source: IpAddr,
    /// Source port; 0 if there is none.
    pub source_port: u16,
    pub destination: IpAddr,
    /// Index of the incoming interface; 0 if unknown.
    pub interface: u32,
    /// If the interface is a bridge, the index of the port through which the frame came; otherwise, or if unknown, 0.
    pub bridge_port: u32,
    pub protocol: Protocol,
    /// Destination port. For ICMP the type of the message; 0 if a fragment hides it.
    pub port: u16,
    pub class: Class,
    pub fragmented: bool,
    /// Its TCP flags may be damaged: the checksum covers bytes that were not captured, or is wrong. Such flags are
    /// never enough on their own.
    pub unverified: bool,
    /// True if a decoy listener accepted it.
    pub decoy: bool,
}

/// The protocol of any packet, also of one that is not evidence; `None` if it belongs to no protocol that can be
/// monitored.
pub(super) fn protocol_of(transport: &Transport) -> Option<Protocol> {
    match transport {
        Transport::Tcp { .. } | Transport::TinyFragment { .. } | Transport::OverlappingFragment => Some(Protocol::Tcp),
        Transport::LaterFragment { protocol: 6 } => Some(Protocol::Tcp),
        Transport::Udp { .. } | Transport::LaterFragment { protocol: 17 } => Some(Protocol::Udp),
        Transport::Sctp { .. } => Some(Protocol::Sctp),
        Transport::Icmp { .. } => Some(Protocol::Icmp),
        Transport::HiddenHeader | Transport::LaterFragment { .. } | Transport::Other { .. } => None,
    }
}

/// The port number of evidence whose port a fragment hides.
const HIDDEN_PORT: u16 = 0;

impl Observation {
    /// Returns the evidence that `packet` would be if its checksums were verified; `None` for an answer, a later
    /// fragment, or a packet without ports.
    #[inline]
    pub fn from_packet(packet: &Packet) -> Option<Self> {
        let (protocol, source_port, port, class) = match packet.transport {
            Transport::Tcp { source_port, destination_port, flags, .. } => {
                (Protocol::Tcp, source_port, destination_port, Class::of_tcp(flags)?)
            }
            Transport::Udp { source_port, destination_port } => {
                (Protocol::Udp, source_port, destination_port, Class::Udp)
            }
            Transport::Sctp { source_port, destination_port, chunk: 1 } => {
                (Protocol::Sctp, source_port, destination_port, Class::Sctp)
            }
            Transport::Icmp { kind, .. } if is_request(packet.source, kind) => {
                (Protocol::Icmp, 0, u16::from(kind), Class::Icmp)
            }
            Transport::TinyFragment { ports } => {
                let (source_port, port) = ports.unwrap_or((0, HIDDEN_PORT));
                (Protocol::Tcp, source_port, port, Class::Fragment)
            }
            Transport::OverlappingFragment | Transport::HiddenHeader => {
                (Protocol::Tcp, 0, HIDDEN_PORT, Class::Fragment)
            }
            _ => return None,
        };
        Some(Self {
            source: packet.source,
            source_port,
            destination: packet.destination,
            interface: packet.interface,
            bridge_port: 0,
            protocol,
            port,
            class,
            fragmented: packet.fragmented || class == Class::Fragment,
            unverified: false,
            decoy: false,
        })
    }

    /// True if a fragment hides the port.
    pub fn hides_port(&self) -> bool {
        self.port == HIDDEN_PORT && self.class == Class::Fragment
    }

    /// The number that counts as its port. ICMP has no ports. Instead, the number of distinct own addresses probed
    /// counts, so the address takes the place of the port.
    pub(super) fn counted_port(&self) -> u16 {
        match self.destination {
            _ if self.protocol != Protocol::Icmp => self.port,
            IpAddr::V4(v4) => {
                let [.., a, b] = v4.octets();
                u16::from_be_bytes([a, b])
            }
            IpAddr::V6(v6) => {
                let [.., last] = v6.segments();
                last
            }
        }
    }
}

/// Echo, timestamp, information and address mask requests (RFC 792, RFC 950); for IPv6 echo and node information
/// (RFC 4443, RFC 4620).
fn is_request(source: IpAddr, kind: u8) -> bool {
    if source.is_ipv4() { matches!(kind, 8 | 13 | 15 | 17) } else { matches!(kind, 128 | 139) }
}
