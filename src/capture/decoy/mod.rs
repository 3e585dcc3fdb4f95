//! Opens the decoy listeners of connect mode, and turns each accepted connection or received datagram into an
//! [`Observation`]. Decoys serve nothing. No byte of a connection is read. No datagram is answered, because its source
//! may be forged and the answer would reach the host with that address.
//!
//! TCP has transparent listeners for all ports; kernel rules redirect connections to them that no service accepts. For
//! UDP, and on kernels without nft_tproxy, each port has its own socket, for IPv4 and IPv6 together if the host has
//! IPv6. A port that another program has bound is left to that program.
//!
//! References: epoll(7), and accept(2) on errors.

mod cookies;
mod ports;
mod socket;

use std::collections::HashSet;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Instant, SystemTime};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketAddrAny, SocketFlags, acceptfrom_with, getsockname, send};

use crate::engine::{Class, Observation, is_unicast};
use crate::types::{PortSet, Protocol};
use cookies::Handshakes;
pub use cookies::SynCookies;
pub use ports::{DecoyError, DecoyPorts, make_room};
pub use socket::SharedListener;

/// Maximum number of connections and datagrams per turn. At about 30 µs each, captured packets wait at most half a
/// millisecond.
const MAX_PER_TURN: usize = 16;

struct Decoy {
    socket: OwnedFd,
    protocol: Protocol,
    /// `None` for the listener of all ports.
    port: Option<u16>,
}

/// The open decoys. The descriptor is readable while a connection or datagram waits.
pub struct Decoys {
    epoll: OwnedFd,
    sockets: Vec<Decoy>,
    open: DecoyPorts,
    busy: DecoyPorts,
    banner: Vec<u8>,
    watched: Option<HashSet<IpAddr>>,
    handshakes: Handshakes,
}

impl Decoys {
    /// Opens the ports `wanted`. After it returns, the kernel completes connections to them. `banner` is sent on each
    /// TCP connection. With a listener for all TCP ports, the ports of `in_use` are left to their services. `cookies`
    /// shows which connections prove their source.
    ///
    /// # Errors
    /// If a port is refused for another reason than being in use, or if no port of a protocol is left.
    pub fn open(
        wanted: &DecoyPorts,
        shared: Option<(SharedListener, PortSet)>,
        banner: &str,
        cookies: SynCookies,
    ) -> Result<Self, DecoyError> {
        let mut decoys = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: Vec::new(),
            open: DecoyPorts::default(),
            busy: DecoyPorts::default(),
            banner: banner.as_bytes().to_vec(),
            watched: None,
            handshakes: Handshakes::new(cookies),
        };
        let tcp = if shared.is_some() { 0 } else { wanted.tcp.len() };
        let ports = u64::from(tcp) + u64::from(wanted.udp.len());
        if ports > 0 {
            make_room(ports)?;
        }
        match shared {
            Some((listener, in_use)) => decoys.share(listener, &wanted.tcp, &in_use)?,
            None => decoys.open_all(Protocol::Tcp, &wanted.tcp)?,
        }
        decoys.open_all(Protocol::Udp, &wanted.udp)?;
        Ok(decoys)
    }

    /// Uses one listener for the connections to all ports of `wanted` except those of `in_use`.
    fn share(&mut self, listener: SharedListener, wanted: &PortSet, in_use: &PortSet) -> Result<(), DecoyError> {
        self.open.tcp = wanted.without(in_use);
        self.busy.tcp = wanted.without(&self.open.tcp);
        if self.open.tcp.is_empty() {
            return Err(DecoyError::AllBusy { protocol: Protocol::Tcp, ports: wanted.clone() });
        }
        self.open.shared = Some(listener.ports);
        for socket in listener.sockets {
            self.add(socket, Protocol::Tcp, None)?;
        }
        Ok(())
    }

    fn add(&mut self, socket: OwnedFd, protocol: Protocol, port: Option<u16>) -> Result<(), DecoyError> {
        let data = epoll::EventData::new_u64(self.sockets.len() as u64);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
        self.sockets.push(Decoy { socket, protocol, port });
        Ok(())
    }

    fn open_all(&mut self, protocol: Protocol, ports: &PortSet) -> Result<(), DecoyError> {
        let mut denied = PortSet::new();
        for port in ports.iter() {
            match socket::open(protocol, port) {
                Ok(socket) => {
                    self.add(socket, protocol, Some(port))?;
                    self.open.ports_mut(protocol).insert(port);
                }
                Err(Errno::ADDRINUSE) => self.busy.ports_mut(protocol).insert(port),
                Err(Errno::ACCESS) => denied.insert(port),
                Err(error) => return Err(DecoyError::Open { protocol, port, error }),
            }
        }
        if !denied.is_empty() {
            return Err(DecoyError::Permission { protocol, ports: denied });
        }
        if self.open.ports_mut(protocol).is_empty() && !ports.is_empty() {
            return Err(DecoyError::AllBusy { protocol, ports: ports.clone() });
        }
        Ok(())
    }

    pub fn ports(&self) -> &DecoyPorts {
        &self.open
    }

    /// A sentence about the ports that other programs hold; `None` if there are none.
    pub fn busy(&self) -> Option<String> {
        let lists = self.busy.each().into_iter().filter(|(_, ports)| !ports.is_empty());
        let lists: Vec<_> = lists.map(|(protocol, ports)| format!("{} {ports}", protocol.name())).collect();
        let lists = (!lists.is_empty()).then(|| lists.join(" and "))?;
        Some(format!("no decoy is opened on ports that are in use: {lists}; these services are not affected"))
    }

    /// Restricts the decoys to connections to these addresses of this host; `None`: all addresses.
    pub fn watch_only(&mut self, addresses: Option<HashSet<IpAddr>>) {
        self.watched = addresses;
    }

    /// Accepts some of the waiting connections and datagrams, a fair share from each port, and passes each observation
    /// and its time to `each`. A connection that may have been completed with a guessed SYN cookie counts as a SYN.
    ///
    /// # Errors
    /// If the system has no resources for another connection. The caller should wait before the next call.
    pub fn drain(&mut self, mut each: impl FnMut(Observation, SystemTime)) -> Result<(), Errno> {
        let Self { epoll, sockets, banner, watched, handshakes, .. } = self;
        let mut places = [MaybeUninit::uninit(); MAX_PER_TURN];
        let (ready, _) = match epoll::wait(&*epoll, &mut places, Some(&Timespec::default())) {
            Err(Errno::INTR) => return Ok(()),
            result => result?,
        };
        let share = MAX_PER_TURN / ready.len().max(1);
        let mut taken = [None; MAX_PER_TURN];
        let mut rest = taken.iter_mut();
        let mut result = Ok(());
        'turn: for event in ready.iter() {
            let data = event.data;
            let Some(decoy) = usize::try_from(data.u64()).ok().and_then(|index| sockets.get(index)) else { continue };
            for place in rest.by_ref().take(share) {
                match decoy.accept_next(banner) {
                    Ok(Some(observation)) => *place = Some((observation, SystemTime::now())),
                    Ok(None) => break,
                    Err(error) => {
                        result = Err(error);
                        break 'turn;
                    }
                }
            }
        }
        let is_handshake = |observation: &Observation| observation.class == Class::Connect;
        let is_empty = || {
            let mut place = [MaybeUninit::uninit(); 1];
            epoll::wait(&*epoll, &mut place, Some(&Timespec::default())).is_ok_and(|(ready, _)| ready.is_empty())
        };
        let forgeable = taken.iter().flatten().any(|(observation, _)| is_handshake(observation))
            && handshakes.may_be_forged(Instant::now(), is_empty);
        for (mut observation, time) in taken.into_iter().flatten() {
            if forgeable && is_handshake(&observation) {
                observation.class = Class::Syn;
            }
            // A datagram from 0.0.0.0 comes from a host that requests its address (DHCP); no host has another address
            // of 0.0.0.0/8.
            if is_unicast(observation.source)
                && watched.as_ref().is_none_or(|all| all.contains(&observation.destination))
            {
                each(observation, time);
            }
        }
        result
    }
}

impl AsFd for Decoys {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Decoy {
    /// The next connection or datagram; `None` if none waits.
    fn accept_next(&self, banner: &[u8]) -> Result<Option<Observation>, Errno> {
        let taken = match self.protocol {
            Protocol::Udp => self.receive(),
            _ => self.accept(banner),
        };
        match taken {
            Ok(observation) => Ok(observation),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => Err(error),
            // EAGAIN, or a connection that was aborted while it waited (accept(2), "Error handling").
            Err(_) => Ok(None),
        }
    }

    fn accept(&self, banner: &[u8]) -> Result<Option<Observation>, Errno> {
        let (connection, peer) = acceptfrom_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        if !banner.is_empty() {
            // Best effort: only as much as the first window accepts is sent, without waiting.
            let _ = send(&connection, banner, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        let local = address(Some(getsockname(&connection)?));
        // No rule leads to a loopback address. A local program connected directly to the listener of all ports.
        let local = local.filter(|local| self.port.is_some() || !local.ip().is_loopback());
        Ok(self.observation(address(peer), local, 0, Class::Connect))
    }

    fn receive(&self) -> Result<Option<Observation>, Errno> {
        // The contents are irrelevant; the kernel truncates the datagram.
        let mut byte = [0_u8; 1];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut room = cmsg_space!([u8; size_of::<[u32; 5]>()]);
        let socket = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(socket, &mut parts, Some(&mut room), MsgFlags::MSG_DONTWAIT);
        let message = message.map_err(socket::errno)?;
        let peer = message.address.as_ref().and_then(internet);
        // Without this control message the destination is unknown. A broadcast is not a probe.
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
        let local = self.port.map(|port| SocketAddr::new(destination, port));
        Ok(self.observation(peer, local, interface, Class::Udp))
    }

    fn observation(
        &self,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
        interface: u32,
        class: Class,
    ) -> Option<Observation> {
        let (peer, local) = (peer?, local?);
        Some(Observation {
            interface,
            bridge_port: 0,
            source: peer.ip(),
            source_port: peer.port(),
            destination: local.ip(),
            protocol: self.protocol,
            port: local.port(),
            class,
            fragmented: false,
            unverified: false,
            decoy: true,
        })
    }
}

/// An internet address. An IPv4-mapped IPv6 address of a dual-stack socket becomes an IPv4 address.
fn address(any: Option<SocketAddrAny>) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(any?).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The same for an address in the form of recvmsg(2).
fn internet(any: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = any.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    let v6 = || any.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().to_canonical(), v6.port()));
    v4.or_else(v6)
}
