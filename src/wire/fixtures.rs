//! Packets for the unit tests of all modules.

use std::net::IpAddr;

use super::{Checksum, Delivery, Packet, TcpFlags, Transport};

/// A whole packet of which the link layer says nothing.
pub(crate) fn packet(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, transport: Transport) -> Packet {
    Packet {
        source: source.into(),
        destination: destination.into(),
        delivery: Delivery::Unknown,
        interface: 0,
        checksum: Checksum::Good,
        fragmented: false,
        transport,
    }
}

pub(crate) fn tcp(source_port: u16, destination_port: u16, flags: u16) -> Transport {
    Transport::Tcp { source_port, destination_port, flags: TcpFlags(flags), payload: 0 }
}
