//! Packet to observation: what a packet would be evidence of, if its port is closed. Looks at nothing but the packet.

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
    /// Its TCP flags may be damage: the checksum covers more than is at hand. No flags are enough on their own then.
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
            unverified: packet.checksum == Checksum::Unknown && class != Class::Fragment,
            decoy: false,
        })
    }

    /// True where the port is known.
    pub(super) fn has_port(&self) -> bool {
        self.port != HIDDEN || self.class != Class::Fragment
    }
}

/// What an own packet says about the port that it leaves from.
pub(super) enum OwnUse {
    /// A SYN/ACK to this peer: the port is open.
    Answered,
    /// A connection or a datagram of this host's own: answers will come back to the port.
    Originated,
}

/// The port that an own packet leaves from, and what it says about it.
pub(super) fn own_use(packet: &Packet) -> Option<(Protocol, u16, OwnUse)> {
    match packet.transport {
        Transport::Tcp { source_port, flags, .. } if flags.has(TcpFlags::SYN | TcpFlags::ACK) => {
            Some((Protocol::Tcp, source_port, OwnUse::Answered))
        }
        // A reset says that nobody is there. Everything else is a segment of a connection.
        Transport::Tcp { source_port, flags, .. } if !flags.has(TcpFlags::RST) => {
            Some((Protocol::Tcp, source_port, OwnUse::Originated))
        }
        Transport::Udp { source_port, .. } => Some((Protocol::Udp, source_port, OwnUse::Originated)),
        _ => None,
    }
}

/// Echo, timestamp, information and address mask requests (RFC 792, RFC 950); for IPv6 echo and node information
/// (RFC 4443, RFC 4620).
fn is_request(source: IpAddr, kind: u8) -> bool {
    if source.is_ipv4() { matches!(kind, 8 | 13 | 15 | 17) } else { matches!(kind, 128 | 139) }
}
