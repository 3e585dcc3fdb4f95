//! The decoy listeners of connect mode. They turn an accepted connection or a received datagram into an
//! [`Observation`] and serve nothing: no byte of a connection is read, and no datagram is answered, because its
//! source may be forged and the answer would reach the host that it names.
//!
//! There is one socket for each port, for IPv4 and IPv6 together where the host has IPv6. A port that another
//! program has bound is left to that program.
//!
//! References: ipv6(7) on IPV6_V6ONLY, epoll(7), setrlimit(2).

use std::collections::HashSet;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

use nix::cmsg_space;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, bind, getsockname, listen, send,
    socket_with, sockopt,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Config, Mode};
use crate::engine::{Class, Observation};
use crate::types::{PortSet, Protocol};

/// Connections and datagrams that one turn takes: at some 30 µs each, packets wait half a millisecond for it at most.
const TURN: usize = 16;

/// Connections that wait to be accepted, a port. Beyond it the kernel drops SYNs: memory that strangers cannot raise.
const BACKLOG: i32 = 128;

/// Bytes of datagrams that wait, a port: a dozen small ones. The system's default would let strangers fill 200 KB a port.
const DATAGRAMS: usize = 8 << 10;

/// Descriptors left for all else: sockets of netlink, capture, log, and the connection that is being accepted.
const RESERVE: u64 = 64;

/// Ports of both protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecoyPorts {
    pub tcp: PortSet,
    pub udp: PortSet,
}

impl DecoyPorts {
    /// The ports that connect mode opens.
    #[must_use]
    pub fn from_config(config: &Config) -> Self {
        let ports = |protocol: &config::Protocol| match protocol.mode {
            Mode::Connect => protocol.watched(),
            Mode::Off | Mode::Stealth | Mode::Advanced => PortSet::new(),
        };
        Self { tcp: ports(&config.tcp), udp: ports(&config.udp) }
    }

    /// True where `port` of `protocol` is among them.
    #[must_use]
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        match protocol {
            Protocol::Tcp => self.tcp.contains(port),
            Protocol::Udp => self.udp.contains(port),
            Protocol::Sctp | Protocol::Icmp => false,
        }
    }

    fn each(&self) -> [(Protocol, &PortSet); 2] {
        [(Protocol::Tcp, &self.tcp), (Protocol::Udp, &self.udp)]
    }

    fn of(&mut self, protocol: Protocol) -> &mut PortSet {
        if protocol == Protocol::Udp { &mut self.udp } else { &mut self.tcp }
    }
}

/// Why the listed ports cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DecoyError {
    /// More ports than descriptors.
    #[error(
        "{ports} decoys need {needed} file descriptors, and the hard limit is {limit}; list fewer ports, or raise it \
         (LimitNOFILE={needed} in the service, ulimit -Hn {needed} in a shell)"
    )]
    Limit {
        /// Ports of both protocols.
        ports: u64,
        /// Descriptors that they need.
        needed: u64,
        /// Descriptors that the process may have.
        limit: u64,
    },
    /// The process may not bind privileged ports.
    #[error(
        "decoys on the {} ports {ports} need CAP_NET_BIND_SERVICE ({}); run as root, give the service \
         AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE, or list only ports from 1024 on",
        protocol.name(),
        Errno::ACCESS
    )]
    Permission { protocol: Protocol, ports: PortSet },
    /// Every listed port is in use.
    #[error(
        "no decoy could be opened: every one of the {} ports {ports} is in use; list others, or use another mode",
        protocol.name()
    )]
    AllBusy { protocol: Protocol, ports: PortSet },
    /// The kernel refused one for another reason.
    #[error("no decoy can be opened on {} port {port}: {error}{}", protocol.name(), remedy(*error))]
    Open {
        /// Its protocol.
        protocol: Protocol,
        port: u16,
        error: Errno,
    },
    /// Epoll is not to be had.
    #[error("the decoys cannot be watched: {0}")]
    Epoll(#[from] Errno),
}

/// What to do where a service may open no Internet socket.
fn remedy(error: Errno) -> &'static str {
    if error == Errno::AFNOSUPPORT {
        "; the service needs its drop-in connect-mode.conf, see the package's examples"
    } else {
        ""
    }
}

struct Decoy {
    socket: OwnedFd,
    protocol: Protocol,
    port: u16,
}

/// The open decoys. Its descriptor is readable while a connection or datagram waits.
pub struct Decoys {
    epoll: OwnedFd,
    sockets: Vec<Decoy>,
    open: DecoyPorts,
    busy: DecoyPorts,
    banner: Vec<u8>,
    watched: Option<HashSet<IpAddr>>,
}

impl Decoys {
    /// Opens `wanted`; from its return on, connections are completed. `banner` is sent on each TCP connection.
    ///
    /// # Errors
    /// Where a port is refused for another reason than that it is in use, and where none of a protocol is left.
    pub fn open(wanted: &DecoyPorts, banner: &str) -> Result<Self, DecoyError> {
        let mut decoys = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: Vec::new(),
            open: DecoyPorts::default(),
            busy: DecoyPorts::default(),
            banner: banner.as_bytes().to_vec(),
            watched: None,
        };
        let ports = u64::from(wanted.tcp.len()) + u64::from(wanted.udp.len());
        if ports > 0 {
            make_room(ports)?;
        }
        for (protocol, ports) in wanted.each() {
            decoys.open_all(protocol, ports)?;
        }
        Ok(decoys)
    }

    fn open_all(&mut self, protocol: Protocol, ports: &PortSet) -> Result<(), DecoyError> {
        let mut denied = PortSet::new();
        for port in ports.iter() {
            match open(protocol, port) {
                Ok(socket) => {
                    let data = epoll::EventData::new_u64(self.sockets.len() as u64);
                    epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
                    self.sockets.push(Decoy { socket, protocol, port });
                    self.open.of(protocol).insert(port);
                }
                Err(Errno::ADDRINUSE) => self.busy.of(protocol).insert(port),
                Err(Errno::ACCESS) => denied.insert(port),
                Err(error) => return Err(DecoyError::Open { protocol, port, error }),
            }
        }
        if !denied.is_empty() {
            return Err(DecoyError::Permission { protocol, ports: denied });
        }
        if self.open.of(protocol).is_empty() && !ports.is_empty() {
            return Err(DecoyError::AllBusy { protocol, ports: ports.clone() });
        }
        Ok(())
    }

    /// The ports that are open.
    #[must_use]
    pub fn ports(&self) -> &DecoyPorts {
        &self.open
    }

    /// A sentence about the ports that others hold; `None` where there are none.
    #[must_use]
    pub fn busy(&self) -> Option<String> {
        let lists = self.busy.each().into_iter().filter(|(_, ports)| !ports.is_empty());
        let lists: Vec<_> = lists.map(|(protocol, ports)| format!("{} {ports}", protocol.name())).collect();
        let sentence = |lists| format!("no decoy on ports that are in use: {lists}; what listens there is left alone");
        (!lists.is_empty()).then(|| sentence(lists.join(" and ")))
    }

    /// From now on only connections to these own addresses count; `None`: to every one.
    pub fn watch_only(&mut self, addresses: Option<HashSet<IpAddr>>) {
        self.watched = addresses;
    }

    /// Takes some of the connections and datagrams that wait, a fair share from each port, and hands over what they are.
    /// Each comes with the time at which it was taken.
    ///
    /// # Errors
    /// Where the system has no room for another connection: the caller should wait a little.
    pub fn drain(&mut self, mut each: impl FnMut(Observation, SystemTime)) -> Result<(), Errno> {
        let Self { epoll, sockets, banner, watched, .. } = self;
        let mut places = [MaybeUninit::uninit(); TURN];
        let (ready, _) = match epoll::wait(epoll, &mut places, Some(&Timespec::default())) {
            Err(Errno::INTR) => return Ok(()),
            result => result?,
        };
        let share = TURN / ready.len().max(1);
        for event in ready.iter() {
            let data = event.data;
            let Some(decoy) = usize::try_from(data.u64()).ok().and_then(|index| sockets.get(index)) else { continue };
            for _ in 0..share {
                let Some(sighting) = decoy.take(banner)? else { break };
                if is_host(sighting.source) && watched.as_ref().is_none_or(|all| all.contains(&sighting.destination)) {
                    each(sighting, SystemTime::now());
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Decoys {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Decoy {
    /// The next connection or datagram; `None` if none waits.
    fn take(&self, banner: &[u8]) -> Result<Option<Observation>, Errno> {
        let taken = match self.protocol {
            Protocol::Udp => self.receive(),
            _ => self.accept(banner),
        };
        match taken {
            Ok(sighting) => Ok(sighting),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => Err(error),
            // EAGAIN, or a connection that was given up while it waited (accept(2), "Error handling").
            Err(_) => Ok(None),
        }
    }

    fn accept(&self, banner: &[u8]) -> Result<Option<Observation>, Errno> {
        let (connection, peer) = acceptfrom_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        if !banner.is_empty() {
            // Best effort: it is sent as far as the first window reaches, without waiting.
            let _ = send(&connection, banner, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        let destination = address(Some(getsockname(&connection)?)).map(|local| local.ip());
        Ok(self.sighting(address(peer), destination, 0, Class::Connect))
    }

    fn receive(&self) -> Result<Option<Observation>, Errno> {
        // What it says is of no interest; the kernel cuts it off.
        let mut byte = [0_u8; 1];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut room = cmsg_space!([u8; size_of::<[u32; 5]>()]);
        let socket = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(socket, &mut parts, Some(&mut room), MsgFlags::MSG_DONTWAIT);
        let message = message.map_err(|error| Errno::from_raw_os_error(error as i32))?;
        let peer = message.address.as_ref().and_then(internet);
        // Without it the destination is unknown, and a broadcast is no probe.
        let sent_to = message.cmsgs().ok().into_iter().flatten().find_map(|part| match part {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some((Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into(), u32::try_from(info.ipi_ifindex).ok()?))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some((Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical(), info.ipi6_ifindex))
            }
            _ => None,
        });
        let Some((destination, interface)) = sent_to else { return Ok(None) };
        Ok(self.sighting(peer, Some(destination), interface, Class::Udp))
    }

    fn sighting(
        &self,
        peer: Option<SocketAddr>,
        destination: Option<IpAddr>,
        interface: u32,
        class: Class,
    ) -> Option<Observation> {
        let (peer, destination) = (peer?, destination?);
        Some(Observation {
            interface,
            source: peer.ip(),
            source_port: peer.port(),
            destination,
            protocol: self.protocol,
            port: self.port,
            class,
            fragmented: false,
            unverified: false,
            decoy: true,
        })
    }
}

/// An internet address; an IPv4 one that a dual-stack socket shows in IPv6's clothes as what it is.
fn address(any: Option<SocketAddrAny>) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(any?).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The same of an address as recvmsg(2) gives it.
fn internet(any: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = any.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    let v6 = || any.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().to_canonical(), v6.port()));
    v4.or_else(v6)
}

/// True for a source that can be blocked. A datagram may come from 0.0.0.0: a host that asks for its address (DHCP).
fn is_host(source: IpAddr) -> bool {
    let broadcast = matches!(source, IpAddr::V4(v4) if v4.is_broadcast());
    !(source.is_unspecified() || source.is_multicast() || broadcast)
}

/// Raises the limit of descriptors as far as it goes.
///
/// # Errors
/// [`DecoyError::Limit`] where that is not enough for decoys on so many ports.
pub fn make_room(ports: u64) -> Result<(), DecoyError> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    let needed = ports + RESERVE;
    match maximum {
        Some(limit) if limit < needed => Err(DecoyError::Limit { ports, needed, limit }),
        _ => Ok(()),
    }
}

/// A listener for both families, or for IPv4 alone where the host has no IPv6.
fn open(protocol: Protocol, port: u16) -> Result<OwnedFd, Errno> {
    match open_at(Ipv6Addr::UNSPECIFIED.into(), protocol, port) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => open_at(Ipv4Addr::UNSPECIFIED.into(), protocol, port),
        result => result,
    }
}

fn open_at(address: IpAddr, protocol: Protocol, port: u16) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let kind = if protocol == Protocol::Udp { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    if protocol == Protocol::Udp {
        // Not SO_REUSEADDR: on a UDP port it would let a decoy and a service that sets it, too, take each other's datagrams.
        sockopt::set_socket_recv_buffer_size(&socket, DATAGRAMS)?;
        let asked = match address {
            IpAddr::V4(_) => setsockopt(&socket, Ipv4PacketInfo, &true),
            IpAddr::V6(_) => setsockopt(&socket, Ipv6RecvPacketInfo, &true),
        };
        asked.map_err(|error| Errno::from_raw_os_error(error as i32))?;
    } else {
        // Connections in TIME-WAIT of an earlier run must not count as a port in use.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    if protocol != Protocol::Udp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}
