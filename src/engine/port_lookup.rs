//! The interface to kernel state about a packet: the socket and translation tables, and checksum offload.

use std::net::SocketAddr;

use crate::types::Protocol;
use crate::wire::Packet;

/// The kernel's answer about the port of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// No socket and no translation receives the packet.
    Closed,
    /// No socket receives the packet, and translations and sent packets are not available.
    Unknown,
    /// A socket owns the flow of the packet. The port may be closed to all other sources.
    Flow,
    /// The kernel translates the flow of the packet for another host. The port may be closed to all other sources.
    Translated,
    /// A socket accepts packets from any source.
    Open,
    /// Destination NAT forwards the packet to a service.
    Published {
        /// The service has answered more than once.
        established: bool,
    },
}

/// Looks up kernel state before a packet counts as evidence. A snapshot of the listeners is always slightly out of
/// date, and the captured bytes do not show checksum offload.
pub trait PortLookup {
    /// Returns the use of the port by a packet of `protocol` from `source` to `destination` on `interface` (0:
    /// unknown).
    fn port_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr, interface: u32) -> PortUse;

    /// True if the kernel verifies the checksum of `packet`, which is wrong, and so drops the packet. False if the
    /// kernel accepts it unverified, or if that is unknown. Called only for packets from interfaces without a wire.
    fn verifies_checksum(&mut self, _packet: &Packet) -> bool {
        false
    }
}

/// A look-up that always fails, for captures: only the snapshot of the listeners counts.
pub struct NoLookup;

impl PortLookup for NoLookup {
    fn port_use(&mut self, _: Protocol, _: SocketAddr, _: SocketAddr, _: u32) -> PortUse {
        PortUse::Closed
    }
}
