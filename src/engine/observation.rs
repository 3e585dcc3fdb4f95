//! Derives from a packet what it would be evidence of if its port is closed. Uses nothing but the packet.

use std::net::IpAddr;

use super::class::Class;
use crate::types::Protocol;
use crate::wire::{Checksum, Packet, TcpFlags, Transport};

/// A packet that came in, or a connection to a decoy, as the engine judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The sender, as the packet claims.
    pub source: IpAddr,
    /// Port that it was sent from; 0 where there is none.
    pub source_port: u16,
    /// The address that it is for.
    pub destination: IpAddr,
    /// Index of the interface that it came in on; 0 where that is not known.
    pub interface: u32,
    /// Protocol of the port.
    pub protocol: Protocol,
    /// The port that is touched. For ICMP the message's type; 0 where a fragment hides it.
    pub port: u16,
    /// What kind of probe it is.
    pub class: Class,
    /// It came in a fragment.
    pub fragmented: bool,
    /// Its TCP flags may be damage: the checksum covers more than is at hand, or does not hold. No flags are enough on their own
    /// then.
    pub unverified: bool,
    /// A decoy listener took it.
    pub decoy: bool,
}

/// Port that stands for "the fragment does not say".
const HIDDEN: u16 = 0;

impl Observation {
    /// What `packet` would be evidence of; `None` for an answer, a later fragment, and what carries no ports.
    #[must_use]
    pub fn of(packet: &Packet) -> Option<Self> {
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
                let (source_port, port) = ports.unwrap_or((0, HIDDEN));
                (Protocol::Tcp, source_port, port, Class::Fragment)
            }
            Transport::OverlappingFragment | Transport::HiddenHeader => (Protocol::Tcp, 0, HIDDEN, Class::Fragment),
            _ => return None,
        };
        Some(Self {
            source: packet.source,
            source_port,
            destination: packet.destination,
            interface: packet.interface,
            protocol,
            port,
            class,
            fragmented: packet.fragmented || class == Class::Fragment,
            unverified: packet.checksum != Checksum::Good && class != Class::Fragment,
            decoy: false,
        })
    }

    /// True where the port is known.
    pub(super) fn has_port(&self) -> bool {
        self.port != HIDDEN || self.class != Class::Fragment
    }
}

/// What a packet that leaves from an own address claims about the port that it leaves from.
pub(super) struct OwnUse {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) peer_port: u16,
    /// A SYN/ACK, or a datagram: it may be an answer to a client.
    pub(super) may_answer: bool,
}

/// What `packet` claims; `None` where that is no use of a port. A reset says that the port is closed.
pub(super) fn own_use(packet: &Packet) -> Option<OwnUse> {
    let (protocol, port, peer_port, may_answer) = match packet.transport {
        Transport::Tcp { source_port, destination_port, flags, .. } if !flags.has(TcpFlags::RST) => {
            (Protocol::Tcp, source_port, destination_port, flags.has(TcpFlags::SYN | TcpFlags::ACK))
        }
        Transport::Udp { source_port, destination_port } => (Protocol::Udp, source_port, destination_port, true),
        _ => return None,
    };
    Some(OwnUse { protocol, port, peer_port, may_answer })
}

/// Echo, timestamp, information and address mask requests (RFC 792, RFC 950); for IPv6 echo and node information
/// (RFC 4443, RFC 4620).
fn is_request(source: IpAddr, kind: u8) -> bool {
    if source.is_ipv4() { matches!(kind, 8 | 13 | 15 | 17) } else { matches!(kind, 128 | 139) }
}
