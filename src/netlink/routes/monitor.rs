//! Reports own routes that other programs delete, from the kernel's notifications. Used by the event loop. The caller
//! decides whether the route is added again or its ban is lifted.
//!
//! The kernel does not report every route that disappears with its interface, and a full socket loses notifications, so
//! the caller lists the routes as well.

use std::collections::VecDeque;
use std::io;

use ipnet::IpNet;
use netlink_packet_core::NetlinkBuffer;
use nix::libc::RTM_DELROUTE;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use rustix::io::Errno;

use super::message;
use crate::netlink::message::Messages;
use crate::netlink::socket::{enlarge_receive_buffer, listen};

/// A deletion of own routes by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteDeletion {
    /// Another program deleted the route to this prefix.
    Route(IpNet),
    /// The kernel deleted a route, or notifications were lost; no program requested it.
    Unsaid,
}

/// Listens in the network namespace in which it was opened.
pub struct RouteMonitor {
    socket: TokioSocket,
    datagram: Vec<u8>,
    /// Port id of the socket that adds and removes own routes.
    own: u32,
    pending: VecDeque<RouteDeletion>,
}

impl RouteMonitor {
    /// Starts to listen to changes by sockets other than the one with port id `own`.
    ///
    /// # Errors
    /// Netlink cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn open(own: u32) -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        let socket = listen(NETLINK_ROUTE, groups.map(|group| group as u32))?;
        enlarge_receive_buffer(socket.socket_ref(), RECEIVE_BUFFER)?;
        Ok(Self { socket, datagram: Vec::with_capacity(DATAGRAM), own, pending: VecDeque::new() })
    }

    /// Waits until another program deletes an own route.
    ///
    /// # Cancel safety
    /// Pending notifications are returned by the next call.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn next(&mut self) -> io::Result<RouteDeletion> {
        loop {
            if let Some(gone) = self.pending.pop_front() {
                return Ok(gone);
            }
            self.datagram.clear();
            match self.socket.recv_from(&mut self.datagram).await {
                // Other processes may send to a netlink socket too; the kernel has port id 0.
                Ok(sender) if sender.port_number() == 0 => self.pending.extend(read(&self.datagram, self.own)),
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NOBUFS) => return Ok(RouteDeletion::Unsaid),
                    Some(Errno::INTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

/// The own routes that a datagram reports as deleted.
pub(super) fn read(datagram: &[u8], own: u32) -> Vec<RouteDeletion> {
    // Each datagram has one notification, so the first sender applies to all of it.
    let Ok(header) = NetlinkBuffer::new_checked(datagram) else { return Vec::new() };
    let by = header.port_number();
    if by == own {
        return Vec::new();
    }
    let removed = Messages(datagram).filter(|message| message.kind == RTM_DELROUTE);
    let routes = removed.filter_map(|message| message::route(message.body)).filter(message::Route::is_own);
    routes.map(|route| if by == 0 { RouteDeletion::Unsaid } else { RouteDeletion::Route(route.net) }).collect()
}

/// Receive buffer, above the system's limit if permitted: `ip route flush proto 112` with a full list causes one
/// notification per route.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Longer than a notification about a blackhole route.
const DATAGRAM: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RouteKind;

    /// A notification about the removed route to `net`, as the kernel writes it for the socket `by`.
    fn notification(net: &str, by: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        message::put_add(&mut bytes, net.parse().unwrap(), RouteKind::Blackhole);
        bytes[4..6].copy_from_slice(&RTM_DELROUTE.to_ne_bytes());
        bytes[12..16].copy_from_slice(&by.to_ne_bytes());
        bytes
    }

    #[test]
    fn removed_own_route_is_reported_with_prefix() {
        let net = "192.0.2.7/32";
        assert_eq!(read(&notification(net, 7), 8), [RouteDeletion::Route(net.parse().unwrap())]);
        assert_eq!(read(&notification(net, 8), 8), [], "this program removed it");
        assert_eq!(read(&notification(net, 0), 8), [RouteDeletion::Unsaid], "no program requested it");
        let mut added = notification(net, 7);
        added[4] = 24;
        assert_eq!(read(&added, 8), []);
        let mut anothers = notification(net, 7);
        anothers[21] = 4;
        assert_eq!(read(&anothers, 8), [], "of another protocol");
        let whole = notification("2001:db8:1:2::/64", 7);
        (0..whole.len()).for_each(|end| drop(read(&whole[..end], 8)));
    }
}
