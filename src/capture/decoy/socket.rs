//! Opens the sockets of decoys: one for each port, or one transparent listener for all ports of TCP.
//!
//! References: ip(7) on IP_TRANSPARENT, ipv6(7) on IPV6_V6ONLY, tcp(7) on TCP_USER_TIMEOUT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{IpTransparent, Ipv4PacketInfo, Ipv6RecvPacketInfo};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt};

use super::ports::SharedPorts;
use crate::types::Protocol;

/// Maximum number of connections per port that wait to be accepted. Above it the kernel drops SYNs, so remote hosts
/// cannot use more memory.
const BACKLOG: i32 = 128;

/// The same for a listener of all ports: the kernel's maximum for a listener (net.core.somaxconn). Above this number of
/// half-open connections, of about 300 bytes each, the kernel sends SYN cookies. A completed connection that waits
/// takes 2.4 kB.
const SHARED_BACKLOG: i32 = 4_096;

/// Listeners of all ports for each version of IP. Each has a separate queue; the kernel chooses one by a keyed hash of
/// source address and port. The more there are, the larger must be a flood that makes the kernel send SYN cookies, by
/// which a scanner can tell decoys from services.
const SHARED_LISTENERS: usize = 4;

/// How long a closed connection is kept if its peer acknowledges nothing, in milliseconds. A banned peer never does.
const UNACKNOWLEDGED_FOR: u32 = 10_000;

/// Bytes per port for datagrams that wait: about a dozen small ones. With the system's default, remote hosts could fill
/// 200 KB per port.
const DATAGRAMS: usize = 8 << 10;

/// Listeners that accept connections to any address and port, if kernel rules redirect them there. They are bound to
/// loopback addresses, so that other hosts cannot reach them directly. All listeners of one version of IP have the same
/// port, which the kernel assigned.
#[derive(Debug)]
pub struct SharedListener {
    pub(super) sockets: Vec<OwnedFd>,
    /// The ports that the listener itself is bound to.
    pub ports: SharedPorts,
}

impl SharedListener {
    /// Opens the listeners, with IPv6 if the host has it. The sandbox would not permit it.
    ///
    /// # Errors
    /// [`Errno::PERM`] without CAP_NET_ADMIN, and any other error of the kernel.
    pub fn open() -> Result<Self, Errno> {
        let (mut sockets, v4_port) = transparent(Ipv4Addr::LOCALHOST.into())?;
        let v6_port = match transparent(Ipv6Addr::LOCALHOST.into()) {
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => None,
            opened => {
                let (v6, port) = opened?;
                sockets.extend(v6);
                Some(port)
            }
        };
        Ok(Self { sockets, ports: SharedPorts { v4: v4_port, v6: v6_port } })
    }
}

/// Transparent listeners at a loopback address, with their common port.
fn transparent(address: IpAddr) -> Result<(Vec<OwnedFd>, u16), Errno> {
    let first = transparent_at(SocketAddr::new(address, 0))?;
    let bound = SocketAddr::try_from(getsockname(&first)?).map_err(|_| Errno::AFNOSUPPORT)?;
    let others = (1..SHARED_LISTENERS).map(|_| transparent_at(bound));
    Ok(([Ok(first)].into_iter().chain(others).collect::<Result<_, _>>()?, bound.port()))
}

fn transparent_at(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // The kernel uses the same flag for both versions of IP.
    setsockopt(&socket, IpTransparent, &true).map_err(errno)?;
    // A closing connection keeps the port that the client addressed, and must not prevent a service from binding it.
    // Services also set this option for themselves.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    sockopt::set_tcp_user_timeout(&socket, UNACKNOWLEDGED_FOR)?;
    bind(&socket, &address)?;
    listen(&socket, SHARED_BACKLOG)?;
    Ok(socket)
}

pub(super) fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

/// A listener for both families, or for IPv4 only if the host has no IPv6.
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
        // Independent of net.ipv6.bindv6only.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    if protocol == Protocol::Udp {
        // Without SO_REUSEADDR: on a UDP port, a decoy and a service that also sets it could take each other's
        // datagrams.
        sockopt::set_socket_recv_buffer_size(&socket, DATAGRAMS)?;
        let asked = match address {
            IpAddr::V4(_) => setsockopt(&socket, Ipv4PacketInfo, &true),
            IpAddr::V6(_) => setsockopt(&socket, Ipv6RecvPacketInfo, &true),
        };
        asked.map_err(errno)?;
    } else {
        // Connections in TIME-WAIT from an earlier run must not make the port appear in use.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    if protocol != Protocol::Udp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}
