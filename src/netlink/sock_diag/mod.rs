//! Reads the kernel's socket tables over NETLINK_SOCK_DIAG: a dump of all listeners, and an exact look-up of the socket
//! that would receive a packet. Does not bind any socket.
//!
//! Synchronous, for the sensor thread: one long-lived socket, replies matched by sequence number, every wait limited. A
//! socket belongs to the network namespace of the thread that opened it.
//!
//! A dump walks the kernel's table bucket by bucket, so a listener that appears meanwhile may be missed or reported
//! twice. Call [`SockDiag::owner`] before a closed port counts as evidence.
//!
//! References: sock_diag(7), `linux/inet_diag.h`, and the kernel's `net/ipv4/inet_diag.c` and `udp_diag.c`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow::{Break, Continue};
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED,
    TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_LISTEN, TCP_TIME_WAIT,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use rustix::io::Errno;

mod destroy;
mod reply;

pub use destroy::{DestroyedCount, end_connections};
use reply::Record;

use super::socket::{Socket, SocketError};
use crate::types::Protocol;

/// The protocol number, and the state of a socket that receives packets from any sender; `None` for protocols that are
/// not supported here. UDP excludes UDP-Lite; each MPTCP listener has a TCP socket on its port.
fn transport(protocol: Protocol) -> Option<(u8, u8)> {
    match protocol {
        Protocol::Tcp => Some((IPPROTO_TCP, TCP_LISTEN)),
        Protocol::Udp => Some((IPPROTO_UDP, TCP_CLOSE)),
        Protocol::Sctp | Protocol::Icmp => None,
    }
}

/// The addresses of this host on which a socket listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bound {
    /// Every IPv4 address (0.0.0.0).
    AnyV4,
    /// Every IPv6 address and no IPv4 one (:: with IPV6_V6ONLY).
    AnyV6,
    /// Every address of both families (::, dual-stack).
    Any,
    /// One address. An IPv4-mapped address is stored as IPv4, because its packets arrive as IPv4.
    One(IpAddr),
}

impl Bound {
    /// The address passed to bind(2): 0.0.0.0 for every IPv4 address, and :: for every IPv6 address or, dual-stack, for
    /// every address.
    pub fn address(self) -> IpAddr {
        match self {
            Self::One(address) => address,
            Self::AnyV4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::AnyV6 | Self::Any => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The addresses, of which the unspecified one stands for all of its family.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let v4 = (self == Self::Any).then_some(Ipv4Addr::UNSPECIFIED.into());
        v4.into_iter().chain([self.address()])
    }
}

/// A listening TCP socket, or a UDP socket that is bound and not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listener {
    /// TCP or UDP.
    pub protocol: Protocol,
    pub port: u16,
    /// The addresses on which it listens.
    pub bound: Bound,
    /// Index of the only interface from which it receives packets (SO_BINDTODEVICE); 0: all interfaces.
    pub interface: u32,
    /// User id of the socket's owner.
    pub user: u32,
}

/// A TCP connection whose handshake was completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The local address. IPv4-mapped addresses are stored as IPv4, also for the peer.
    pub address: IpAddr,
    pub port: u16,
    pub peer: IpAddr,
    /// Index of the interface to which it is bound, as is always the case for a link-local peer; otherwise 0.
    pub interface: u32,
    /// True if destination NAT leads it elsewhere. Address and port are those before the translation.
    pub is_published: bool,
}

/// The socket that would receive a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Owner {
    /// No socket: the port is closed.
    None,
    /// A listening TCP socket, or an unconnected UDP one.
    Listener,
    /// A socket connected to this very peer: in any state, including TIME-WAIT and half-open.
    Flow,
}

/// Why the kernel's socket tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    #[error(
        "cannot open a sock_diag netlink socket: {0}; the kernel needs CONFIG_INET_DIAG and, in a sandbox, AF_NETLINK"
    )]
    Open(#[source] io::Error),
    #[error("the kernel does not list {} sockets over sock_diag; run: modprobe -a inet_diag tcp_diag udp_diag", .0.name())]
    Missing(Protocol),
    #[error("sockets of {} are not looked up over sock_diag", .0.name())]
    Unsupported(Protocol),
    #[error("cannot ask the kernel for sockets over sock_diag: {0}")]
    Socket(#[from] SocketError),
    #[error(
        "listing {} sockets takes longer than {} s, which happens with very many sockets on one port; see: ss -anp \
         --{}",
        .0.name(), .1.as_secs(), .0.name().to_lowercase()
    )]
    Late(Protocol, Duration),
    #[error("the kernel refused to show {} sockets over sock_diag: {}", .0.name(), .1)]
    Refused(Protocol, #[source] Errno),
    #[error(
        "the kernel cannot end connections over sock_diag ({0}); it needs CONFIG_INET_DIAG_DESTROY, and portsentry needs CAP_NET_ADMIN"
    )]
    NoDestroy(#[source] Errno),
    #[error("{0} and {1} are of different families: write two IPv4 or two IPv6 addresses")]
    MixedFamilies(IpAddr, IpAddr),
}

/// The states of a connection whose handshake was completed.
const CONNECTED: [u8; 7] =
    [TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_LAST_ACK, TCP_TIME_WAIT];

/// Maximum wait for one datagram of an answer. The kernel answers in microseconds, and the sensor must not hang.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Time limit for a list that no local user may delay ([`SockDiag::limit`]). The kernel lists a million sockets in a
/// fraction of it. If most sockets are on one port, it starts again at the first of them for each datagram.
pub const MAX_DUMP: Duration = Duration::from_secs(2);

/// The tables of listeners, each with the unspecified address of its family.
pub const TABLES: [(Protocol, IpAddr); 4] = [
    (Protocol::Tcp, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    (Protocol::Tcp, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    (Protocol::Udp, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    (Protocol::Udp, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
];

/// INET_DIAG_NOCOOKIE: matches any socket.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The kernel's socket tables, accessed through one netlink socket.
pub struct SockDiag {
    /// `None` after a failure: the old socket would still deliver the rest of a broken answer.
    socket: Option<Socket>,
    request: Vec<u8>,
    /// The maximum time for a whole answer.
    limit: Duration,
}

impl SockDiag {
    /// Opens a socket in the network namespace of the calling thread, and checks that the kernel shows TCP and UDP
    /// sockets.
    ///
    /// # Errors
    ///
    /// Netlink cannot be opened, or the kernel lacks the diag modules. Without them every look-up would find no socket,
    /// and every client of this host would look like a scanner.
    pub fn open() -> Result<Self, SockDiagError> {
        let mut diag = Self { socket: Some(connect()?), request: Vec::new(), limit: Duration::MAX };
        // Requests sockets in no state, so that the answer is empty, regardless of the number of sockets.
        TABLES.into_iter().try_for_each(|table| diag.dump(table, 0, &mut |_| {}))?;
        Ok(diag)
    }

    /// From now on a list that takes longer than `limit` is [`SockDiagError::Late`]. Without a limit any local user can
    /// make one take minutes: the kernel's time for many sockets on one port grows with the square of their number.
    pub fn limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Lists every listening TCP socket and every bound, unconnected UDP socket of both address families; sorted,
    /// without duplicates.
    ///
    /// # Errors
    ///
    /// The kernel does not answer, refuses, or sends an unreadable answer. An incomplete list is never returned.
    pub fn listeners(&mut self) -> Result<Vec<Listener>, SockDiagError> {
        let mut listeners = Vec::new();
        TABLES.into_iter().try_for_each(|table| self.list(table, &mut listeners))?;
        listeners.sort_unstable();
        listeners.dedup();
        Ok(listeners)
    }

    /// Adds the listeners of one of [`TABLES`]. Those that arrive before an error are added.
    ///
    /// # Errors
    ///
    /// As for [`SockDiag::listeners`].
    pub fn list(&mut self, table: (Protocol, IpAddr), listeners: &mut Vec<Listener>) -> Result<(), SockDiagError> {
        let (protocol, _) = table;
        let (_, listening) = transport(protocol).ok_or(SockDiagError::Unsupported(protocol))?;
        self.dump(table, 1 << listening, &mut |record| listeners.extend(listener(protocol, listening, &record)))
    }

    /// Passes all sockets in `states` of one table to `keep`.
    fn dump(
        &mut self,
        (protocol, any): (Protocol, IpAddr),
        states: u32,
        keep: &mut impl FnMut(Record),
    ) -> Result<(), SockDiagError> {
        let (number, _) = transport(protocol).ok_or(SockDiagError::Unsupported(protocol))?;
        let id = SocketId { source_address: any, destination_address: any, ..SocketId::new_v4() };
        self.exchange(protocol, request(number, states, id), NLM_F_DUMP, keep).map_err(|error| match error {
            SockDiagError::Refused(_, Errno::NOENT) => SockDiagError::Missing(protocol),
            error => error,
        })
    }

    /// Passes all TCP sockets in `states` of both address families to `keep`.
    fn dump_tcp(&mut self, states: &[u8], mut keep: impl FnMut(Record)) -> Result<(), SockDiagError> {
        let mask = states.iter().fold(0, |mask, state| mask | 1 << state);
        let mut keep = |record: Record| {
            if states.contains(&record.state) {
                keep(record);
            }
        };
        let mut tables = TABLES.into_iter().filter(|(protocol, _)| *protocol == Protocol::Tcp);
        tables.try_for_each(|table| self.dump(table, mask, &mut keep))
    }

    /// Lists at most `most` TCP connections of both address families whose handshake was completed, including those
    /// that are closing or were closed within the last minute (TIME_WAIT).
    ///
    /// # Errors
    ///
    /// As for [`SockDiag::listeners`].
    pub fn connections(&mut self, most: usize) -> Result<Vec<Connection>, SockDiagError> {
        let mut connections = Vec::new();
        self.dump_tcp(&CONNECTED, |record| {
            if connections.len() < most {
                let SocketId { source_port: port, interface_id: interface, .. } = record.id;
                let [address, peer] =
                    [record.id.source_address, record.id.destination_address].map(|one| one.to_canonical());
                connections.push(Connection { address, port, peer, interface, is_published: false });
            }
        })?;
        Ok(connections)
    }

    /// Returns the socket that would receive a packet from `source` to `destination` on `interface`: the kernel's own
    /// exact look-up, without a dump. IPv4-mapped addresses are looked up as IPv4.
    ///
    /// With `interface` 0 (unknown), sockets bound to a device and those on link-local addresses are not found; in that
    /// case search [`SockDiag::listeners`] for the port too. For a VRF, pass the index of the VRF device.
    ///
    /// # Errors
    ///
    /// As for [`SockDiag::listeners`]; also if the two addresses are of different families or the protocol is neither
    /// TCP nor UDP. An error does not mean [`Owner::None`].
    pub fn owner(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        interface: u32,
    ) -> Result<Owner, SockDiagError> {
        let (number, listening) = transport(protocol).ok_or(SockDiagError::Unsupported(protocol))?;
        let local = (destination.ip().to_canonical(), destination.port());
        let remote = (source.ip().to_canonical(), source.port());
        if local.0.is_ipv4() != remote.0.is_ipv4() {
            return Err(SockDiagError::MixedFamilies(remote.0, local.0));
        }
        // For TCP "source" means the local end. For UDP it is reversed "for historical reasons" (the kernel's
        // udp_dump_one()); a dump shows the local end first for both.
        let (first, second) = match protocol {
            Protocol::Udp => (remote, local),
            _ => (local, remote),
        };
        let id = SocketId {
            source_address: first.0,
            source_port: first.1,
            destination_address: second.0,
            destination_port: second.1,
            interface_id: interface,
            cookie: NO_COOKIE,
        };
        let mut owner = Owner::None;
        let mut keep = |record: Record| {
            owner = if record.state == listening { Owner::Listener } else { Owner::Flow };
        };
        match self.exchange(protocol, request(number, u32::MAX, id), 0, &mut keep) {
            Err(SockDiagError::Refused(_, Errno::NOENT)) => Ok(Owner::None),
            answered => answered.map(|()| owner),
        }
    }

    /// Sends one message, about sockets of `protocol`, and passes every socket of the answer to `keep`. An error number
    /// from the kernel is [`SockDiagError::Refused`]; its meaning depends on the message.
    fn exchange<M>(
        &mut self,
        protocol: Protocol,
        message: M,
        flags: u16,
        keep: &mut impl FnMut(Record),
    ) -> Result<(), SockDiagError>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let mut socket = self.socket.take().map_or_else(connect, Ok)?;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        self.request.clear();
        self.request.resize(message.buffer_len(), 0);
        message.serialize(&mut self.request);
        let begin = Instant::now();
        let refused = socket.answers(&mut self.request, |message| match reply::read(message, keep) {
            // The rest of the answer ends with the socket.
            Continue(()) if begin.elapsed() >= self.limit => Break(Err(SockDiagError::Late(protocol, self.limit))),
            state => state.map_break(|end| end.map_err(|why| SocketError::Malformed(why).into())),
        })??;
        self.socket = Some(socket);
        refused.map_or(Ok(()), |errno| Err(SockDiagError::Refused(protocol, errno)))
    }
}

/// A request for sockets in one of `states`.
fn request(protocol: u8, states: u32, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family: if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::from_bits_retain(states),
        socket_id,
    })
}

fn connect() -> Result<Socket, SockDiagError> {
    Socket::open_sock_diag(REPLY_TIMEOUT).map_err(SockDiagError::Open)
}

/// The listener in a record of a dump; `None` if it is in another state than requested.
fn listener(protocol: Protocol, listening: u8, record: &Record) -> Option<Listener> {
    if record.state != listening {
        return None;
    }
    let bound = match record.id.source_address {
        IpAddr::V4(address) if address.is_unspecified() => Bound::AnyV4,
        IpAddr::V6(address) if address.is_unspecified() && record.v6_only => Bound::AnyV6,
        IpAddr::V6(address) if address.is_unspecified() => Bound::Any,
        address => Bound::One(address.to_canonical()),
    };
    let SocketId { source_port: port, interface_id: interface, .. } = record.id;
    Some(Listener { protocol, port, bound, interface, user: record.user })
}

/// Runs any datagram through the reader of sockets. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(datagram: &[u8]) {
    use super::socket::read_answers;

    for sequence in 0..4 {
        let mut records = 0;
        let _ = read_answers(datagram, sequence, 0, &mut |_, message| reply::read(message, &mut |_| records += 1));
        // A message has a header of 16 bytes and a socket record of 72 bytes.
        assert!(records <= datagram.len() / 88);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_diag_module_differs_from_empty_table() {
        let mut diag = SockDiag::open().unwrap();
        // For experiments (RFC 3692); 255 would be raw sockets, for which some kernels have a module.
        let nobodys = 254;
        let request = request(nobodys, u32::MAX, SocketId::new_v4());
        let answer = diag.exchange(Protocol::Tcp, request, NLM_F_DUMP, &mut |_| {});
        assert!(matches!(answer, Err(SockDiagError::Refused(_, Errno::NOENT))));
        assert!(diag.listeners().is_ok(), "the socket still works after an error of the kernel");
    }

    #[test]
    fn mixed_address_families_are_an_error() {
        let mut diag = SockDiag::open().unwrap();
        let (v4, v6) = ("192.0.2.1:1".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap());
        assert!(matches!(diag.owner(Protocol::Tcp, v4, v6, 0), Err(SockDiagError::MixedFamilies(..))));
    }

    #[test]
    fn lost_socket_is_reopened() {
        let mut diag = SockDiag::open().unwrap();
        diag.socket = None;
        assert!(diag.listeners().is_ok());
        assert!(diag.socket.is_some());
    }
}
