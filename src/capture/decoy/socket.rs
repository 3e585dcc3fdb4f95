//! The sockets of decoys: one for each port, or one transparent listener for all ports of TCP.
//!
//! Read with: ip(7) on IP_TRANSPARENT, ipv6(7) on IPV6_V6ONLY, tcp(7) on TCP_USER_TIMEOUT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{IpTransparent, Ipv4PacketInfo, Ipv6RecvPacketInfo};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};

use super::ports::SharedPorts;
use crate::types::Protocol;

/// Connections that wait to be accepted, a port. Beyond it the kernel drops SYNs: memory that strangers cannot raise.
const BACKLOG: i32 = 128;

/// The same for the listener of all ports: as many as the kernel lets a listener have (net.core.somaxconn), some 10 MB. From
/// as many half-open connections on it sends SYN cookies.
const SHARED_BACKLOG: i32 = 4_096;

/// How long a closed connection is kept whose peer acknowledges nothing, in milliseconds: a banned one never does.
const UNACKNOWLEDGED_FOR: u32 = 10_000;

/// Bytes of datagrams that wait, a port: a dozen small ones. The system's default would let strangers fill 200 KB a port.
const DATAGRAMS: usize = 8 << 10;

/// A listener that takes connections to any address and port which rules of the kernel hand to it, at loopback addresses so
/// that no other host reaches it by itself. It has ports that the kernel gives to sockets which ask for none.
#[derive(Debug)]
pub struct SharedListener {
    sockets: Vec<OwnedFd>,
    ports: SharedPorts,
}

impl SharedListener {
    /// Opens it, for IPv6 where the host has that.
    ///
    /// # Errors
    /// [`Errno::PERM`] without CAP_NET_ADMIN, and what else the kernel refuses.
    pub fn open() -> Result<Self, Errno> {
        let (v4, v4_port) = transparent(Ipv4Addr::LOCALHOST.into())?;
        let (v6, v6_port) = match transparent(Ipv6Addr::LOCALHOST.into()) {
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => (None, None),
            opened => opened.map(|(socket, port)| (Some(socket), Some(port)))?,
        };
        let sockets = [Some(v4), v6].into_iter().flatten().collect();
        Ok(Self { sockets, ports: SharedPorts { v4: v4_port, v6: v6_port } })
    }

    /// The ports that it has itself.
    #[must_use]
    pub fn ports(&self) -> SharedPorts {
        self.ports
    }

    pub(super) fn into_sockets(self) -> Vec<OwnedFd> {
        self.sockets
    }
}

/// A transparent listener at a loopback address, and its port.
fn transparent(address: IpAddr) -> Result<(OwnedFd, u16), Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // The kernel has one flag for both versions of IP.
    setsockopt(&socket, IpTransparent, &true).map_err(errno)?;
    // What is left of a connection has the port that was asked for, and must not keep a service from it. Services set this, too,
    // for their own sake.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_FOR)?;
    bind(&socket, &SocketAddr::new(address, 0))?;
    listen(&socket, SHARED_BACKLOG)?;
    let port = SocketAddr::try_from(getsockname(&socket)?).map_err(|_| Errno::AFNOSUPPORT)?.port();
    Ok((socket, port))
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

/// A listener for both families, or for IPv4 alone where the host has no IPv6.
pub(super) fn open(protocol: Protocol, port: u16) -> Result<OwnedFd, Errno> {
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
        asked.map_err(errno)?;
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
