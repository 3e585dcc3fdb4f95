//! Looks up in the kernel which socket or flow receives a packet. It reads the socket tables, the connection tracking
//! table for translated flows, and the sets in which rules of the output hook record traffic from trapped ports of this
//! host.

use std::net::{IpAddr, SocketAddr};

use crate::capture::checksum_offload::ChecksumOffload;
use crate::capture::decoy::DecoyPorts;
use crate::engine::{PortLookup, PortUse};
use crate::netlink::conntrack::{Conntrack, TrackedFlow};
use crate::netlink::nft::{has_answered, has_sent_from};
use crate::netlink::sock_diag::{Owner, SockDiag, SockDiagError};
use crate::netlink::socket::{Socket, SocketError};
use crate::types::Protocol;
use crate::wire::Packet;

/// Sockets to the kernel tables, one for each table.
pub struct KernelPorts {
    sockets: SockDiag,
    /// `None` if the kernel does not expose its tracked flows.
    conntrack: Option<Conntrack>,
    /// For the sets that rules of the output hook fill. `None` if the kernel has no nf_tables.
    table: Option<Socket>,
    request: Vec<u8>,
}

impl KernelPorts {
    /// Opens the sockets in the network namespace of the calling thread. The second value is the error if translated
    /// flows cannot be read.
    ///
    /// # Errors
    /// The kernel does not expose its sockets (sock_diag).
    pub fn open() -> Result<(Self, Option<SocketError>), SockDiagError> {
        let sockets = SockDiag::open()?;
        let (conntrack, failure) = match Conntrack::open() {
            Ok(conntrack) => (Some(conntrack), None),
            Err(error) => (None, Some(error)),
        };
        Ok((Self { sockets, conntrack, table: Socket::open().ok(), request: Vec::with_capacity(128) }, failure))
    }

    /// Looks up a packet that no socket receives in the connection tracking table.
    fn translated_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> PortUse {
        let Some(conntrack) = &mut self.conntrack else { return PortUse::Unknown };
        match conntrack.flow(protocol, source, destination) {
            Ok(TrackedFlow::Published { assured }) => PortUse::Published { established: assured },
            Ok(TrackedFlow::Expected | TrackedFlow::Translated) => PortUse::Translated,
            // Entries without a translation prove nothing: a forwarded packet with any source creates one.
            Ok(TrackedFlow::Untracked | TrackedFlow::New | TrackedFlow::Assured | TrackedFlow::Answer) => {
                PortUse::Closed
            }
            Err(_) => PortUse::Unknown,
        }
    }

    /// Looks up the records of the output hook, for a port that neither a socket nor a translation uses now.
    fn recorded_use(&mut self, protocol: Protocol, peer: IpAddr, port: u16) -> PortUse {
        let Some(table) = &mut self.table else { return PortUse::Unknown };
        let request = &mut self.request;
        let (recorded, in_use) = match protocol {
            Protocol::Udp => (has_sent_from(table, request, port), PortUse::Open),
            Protocol::Tcp => (has_answered(table, request, peer, port), PortUse::Flow),
            Protocol::Sctp | Protocol::Icmp => return PortUse::Closed,
        };
        match recorded {
            Ok(Some(true)) => in_use,
            Ok(Some(false)) => PortUse::Closed,
            Ok(None) | Err(_) => PortUse::Unknown,
        }
    }
}

/// Port look-up that excludes the sockets of decoys, which are not services.
pub(super) struct KernelLookup {
    pub(super) kernel: KernelPorts,
    pub(super) decoys: DecoyPorts,
    pub(super) checksums: ChecksumOffload,
}

impl PortLookup for KernelLookup {
    fn port_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr, interface: u32) -> PortUse {
        let is_decoy = self.decoys.contains(protocol, destination.port());
        if is_decoy && (protocol != Protocol::Tcp || self.decoys.shared.is_none()) {
            return PortUse::Closed;
        }
        // On a decoy port, a flow belongs to the decoy and a listener does not. Port 0 as peer port matches listeners
        // only.
        let peer = if is_decoy { SocketAddr::new(source.ip(), 0) } else { source };
        // A failed look-up does not change the evidence: the snapshot of the listeners was checked before.
        match self.kernel.sockets.owner(protocol, peer, destination, interface) {
            Ok(Owner::Listener) => return PortUse::Open,
            Ok(Owner::Flow) => return PortUse::Flow,
            Ok(Owner::None) | Err(_) => {}
        }
        let translated = self.kernel.translated_use(protocol, source, destination);
        if !matches!(translated, PortUse::Closed | PortUse::Unknown) {
            return translated;
        }
        if is_decoy {
            // Packets sent from a decoy port are the decoy's own answers.
            return PortUse::Closed;
        }
        match self.kernel.recorded_use(protocol, source.ip(), destination.port()) {
            PortUse::Closed => translated,
            recorded => recorded,
        }
    }

    fn verifies_checksum(&mut self, packet: &Packet) -> bool {
        self.checksums.verifies(packet)
    }
}
