//! Asks the kernel what takes a packet: its socket tables, its connection tracking table for translated flows, and the sets
//! in which rules of the output hook record what this host's own stack has sent from trapped ports.

use std::net::{IpAddr, SocketAddr};

use crate::capture::decoy::DecoyPorts;
use crate::engine::{PortLookup, PortUse};
use crate::netlink::conntrack::{Conntrack, TrackedFlow};
use crate::netlink::nft::{has_answered, has_sent_from};
use crate::netlink::sock_diag::{Owner, SockDiag, SockDiagError};
use crate::netlink::socket::{Socket, SocketError};
use crate::types::Protocol;

/// The kernel's tables, each behind a socket of its own.
pub struct KernelPorts {
    sockets: SockDiag,
    /// `None` where the kernel does not show its flows.
    conntrack: Option<Conntrack>,
    /// For the sets that rules of the output hook fill. `None` where the kernel has no nf_tables.
    table: Option<Socket>,
    request: Vec<u8>,
}

impl KernelPorts {
    /// Opens the sockets in the network namespace of this thread. The second value says why translations cannot be read,
    /// where that is so.
    ///
    /// # Errors
    /// Where the kernel does not show its sockets.
    pub fn open() -> Result<(Self, Option<SocketError>), SockDiagError> {
        let sockets = SockDiag::open()?;
        let (conntrack, failure) = match Conntrack::open() {
            Ok(conntrack) => (Some(conntrack), None),
            Err(error) => (None, Some(error)),
        };
        Ok((Self { sockets, conntrack, table: Socket::open().ok(), request: Vec::with_capacity(128) }, failure))
    }

    /// What the connection tracking table says of a packet that no socket takes.
    fn translated_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> PortUse {
        let Some(conntrack) = &mut self.conntrack else { return PortUse::Unknown };
        match conntrack.flow(protocol, source, destination) {
            Ok(TrackedFlow::Published { assured }) => PortUse::Published { established: assured },
            Ok(TrackedFlow::Expected | TrackedFlow::Translated) => PortUse::Translated,
            // Entries without a translation are no proof: a forwarded packet with any source makes one.
            Ok(TrackedFlow::Untracked | TrackedFlow::New | TrackedFlow::Assured | TrackedFlow::Answer) => {
                PortUse::Closed
            }
            Err(_) => PortUse::Unknown,
        }
    }

    /// What a rule of the output hook has recorded, where neither a socket nor a translation has the flow now.
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

/// The kernel's word on ports, with the decoys' sockets left out, which are no services.
pub(super) struct KernelLookup {
    pub(super) kernel: KernelPorts,
    pub(super) decoys: DecoyPorts,
}

impl PortLookup for KernelLookup {
    fn port_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr, interface: u32) -> PortUse {
        let is_decoy = self.decoys.contains(protocol, destination.port());
        if is_decoy && (protocol != Protocol::Tcp || self.decoys.shared.is_none()) {
            return PortUse::Closed;
        }
        // Of a port without a socket of its own: a flow is the decoys', a listener is not. None has a peer with port 0.
        let peer = if is_decoy { SocketAddr::new(source.ip(), 0) } else { source };
        // A failed look-up leaves the evidence as it is: the snapshot of the listeners was checked before.
        match self.kernel.sockets.owner(protocol, peer, destination, interface) {
            Ok(Owner::Listener) => return PortUse::Open,
            Ok(Owner::Flow) => return PortUse::Flow,
            Ok(Owner::Nobody) | Err(_) => {}
        }
        let translated = self.kernel.translated_use(protocol, source, destination);
        if !matches!(translated, PortUse::Closed | PortUse::Unknown) {
            return translated;
        }
        if is_decoy {
            // What leaves from there is the decoys' own answers.
            return PortUse::Closed;
        }
        match self.kernel.recorded_use(protocol, source.ip(), destination.port()) {
            PortUse::Closed => translated,
            recorded => recorded,
        }
    }
}
