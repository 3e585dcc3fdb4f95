//! Sends one request to sock_diag and receives its answer on the long-lived socket of a [`SockDiag`]. The caller
//! interprets the sockets in the answer.

use std::io;
use std::time::Instant;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};
use nix::libc::MSG_TRUNC;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::reply::{self, Progress, Record};
use super::{SockDiag, SockDiagError, TIMEOUT};
use crate::types::Protocol;

/// The kernel fills at most 32 KiB per datagram of a dump (`net/netlink/af_netlink.c`); twice that is sufficient.
pub(super) const BUFFER: usize = 64 * 1024;

impl SockDiag {
    /// Sends one message, about sockets of `protocol`, and passes every socket of the answer to `keep`. An error number
    /// from the kernel is [`SockDiagError::Refused`]; its meaning depends on the message.
    pub(super) fn exchange<M>(
        &mut self,
        protocol: Protocol,
        message: M,
        flags: u16,
        keep: &mut impl FnMut(Record),
    ) -> Result<(), SockDiagError>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => connect()?,
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        self.request.clear();
        self.request.resize(message.buffer_len(), 0);
        message.serialize(&mut self.request);
        socket.send_to(&self.request, &NetlinkAddress::new(0, 0), 0).map_err(SockDiagError::Send)?;

        let begin = Instant::now();
        let outcome = loop {
            receive(&socket, &mut self.answer)?;
            match reply::read(&self.answer, self.sequence, keep).map_err(SockDiagError::Malformed)? {
                // The rest of the answer ends with the socket.
                Progress::More if begin.elapsed() >= self.limit => {
                    return Err(SockDiagError::Late(protocol, self.limit));
                }
                Progress::More => {}
                Progress::Complete => break Ok(()),
                Progress::Refused(error) => break Err(SockDiagError::Refused(protocol, error)),
            }
        };
        self.socket = Some(socket);
        outcome
    }
}

/// A request for sockets in one of `states`.
pub(super) fn request(protocol: u8, states: u32, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(states),
        socket_id,
    })
}

pub(super) fn connect() -> Result<Socket, SockDiagError> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(SockDiagError::Open)?;
    socket.bind_auto().map_err(SockDiagError::Open)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT)).map_err(|error| SockDiagError::Open(error.into()))?;
    Ok(socket)
}

/// Reads one datagram from the kernel into `answer`. Datagrams of other processes, which may send to a netlink socket
/// too, are skipped.
fn receive(socket: &Socket, answer: &mut Vec<u8>) -> Result<(), SockDiagError> {
    loop {
        answer.clear();
        match socket.recv_from(answer, MSG_TRUNC) {
            Ok((_, sender)) if sender.port_number() != 0 => {}
            Ok((length, _)) if length > answer.len() => return Err(SockDiagError::Malformed("a datagram over 64 KiB")),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(SockDiagError::Timeout),
            Err(error) => return Err(SockDiagError::Receive(error)),
        }
    }
}
