//! Reduces the kernel's notifications of links, addresses and routes to one signal, "something changed". The details
//! are read again in full, because a notification may be lost.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use netlink_packet_core::{NLM_F_REPLACE, NetlinkBuffer};
use netlink_packet_route::route::{RouteHeader, RouteType};
use nix::libc::{RTM_DELROUTE, RTM_NEWROUTE};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use rtnetlink::sys::{AsyncSocket, TokioSocket};
use rustix::io::Errno;
use tokio::time::{Instant, timeout_at};

use super::error::HostError;
use super::ipsec;
use crate::netlink::socket::listen;

/// Quiet time to wait for: a DHCP client or `ip` makes several changes in a row.
const DEBOUNCE_DELAY: Duration = Duration::from_millis(50);

/// Maximum wait after the first notification, because a routing daemon may never be quiet.
const MAX_WAIT: Duration = Duration::from_millis(500);

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    // Rules and rp_filter determine which packets the reverse-path filter drops.
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv4Netconf,
];

/// Notifications are small; the beginning of a truncated one is sufficient.
const DATAGRAM_BUFFER: usize = 8 * 1024;

/// Reports changes of links, addresses or routes in this network namespace.
///
/// Reads the socket itself, because rtnetlink's connection queues decoded notifications without a limit. Here memory is
/// limited: an overflow of the kernel's buffer (ENOBUFS) counts as a change.
pub struct Watcher {
    socket: TokioSocket,
    /// For IPsec; `None` if the kernel has no IPsec.
    policies: Option<TokioSocket>,
    buffer: Vec<u8>,
    burst: Option<Burst>,
}

/// Changes that were noticed but not reported yet. Kept in the watcher, so that dropping the future loses none.
#[derive(Clone, Copy)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Watcher {
    /// Starts to watch the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// Netlink cannot be opened.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled.
    pub fn open() -> Result<Self, HostError> {
        let socket = listen(NETLINK_ROUTE, GROUPS.map(|group| group as u32)).map_err(HostError::Open)?;
        // Next-hop objects (`ip nexthop`) change the gateway of a route without changing the route. Kernels before 5.3
        // have none and refuse the group.
        let _ = socket.socket_ref().add_membership(MulticastGroup::Nexthop as u32);
        Ok(Self {
            socket,
            policies: listen(NETLINK_XFRM, ipsec::GROUPS).ok(),
            buffer: Vec::with_capacity(DATAGRAM_BUFFER),
            burst: None,
        })
    }

    /// Waits until something has changed and 50 ms have passed without a further change, at most 500 ms after the
    /// first. The caller must then read the host again.
    ///
    /// # Cancel safety
    ///
    /// A noticed change is reported by the next call.
    ///
    /// # Errors
    ///
    /// The socket failed: open another watcher, and read the host.
    pub async fn changed(&mut self) -> Result<(), HostError> {
        loop {
            let Some(burst) = self.burst else {
                self.notification().await?;
                let now = Instant::now();
                self.burst = Some(Burst { first: now, last: now });
                continue;
            };
            let due = (burst.last + DEBOUNCE_DELAY).min(burst.first + MAX_WAIT);
            // Checked first, because with continuous notifications the timeout below would never expire.
            if Instant::now() < due
                && let Ok(noticed) = timeout_at(due, self.notification()).await
            {
                noticed?;
                self.burst = Some(Burst { last: Instant::now(), ..burst });
                continue;
            }
            self.burst = None;
            return Ok(());
        }
    }

    /// Waits for a relevant notification.
    async fn notification(&mut self) -> Result<(), HostError> {
        loop {
            self.buffer.clear();
            let (received, of_policies) = poll_fn(|context| {
                if let Some(policies) = &mut self.policies
                    && let Poll::Ready(received) = policies.poll_recv_from(context, &mut self.buffer)
                {
                    return Poll::Ready((received, true));
                }
                self.socket.poll_recv_from(context, &mut self.buffer).map(|received| (received, false))
            })
            .await;
            match received {
                // Other processes may send to a netlink socket too; the kernel has port id 0.
                Ok(sender) if sender.port_number() == 0 && (of_policies || matters(&self.buffer)) => return Ok(()),
                // Notifications were lost.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => return Ok(()),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(HostError::Watch(error)),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// False for routes without a gateway and without a destination, such as blackholes, of which a blocking program
/// creates hundreds per minute. A route that replaces another one is relevant, because the old one may have had a
/// gateway.
pub(super) fn matters(datagram: &[u8]) -> bool {
    let Ok(message) = NetlinkBuffer::new_checked(datagram) else { return true };
    if !matches!(message.message_type(), RTM_NEWROUTE | RTM_DELROUTE) || message.flags() & NLM_F_REPLACE != 0 {
        return true;
    }
    RouteHeader::parse(message.payload()).map_or(true, |route| {
        !matches!(route.kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit)
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::route::RouteMessage;

    use super::*;

    fn notification(kind: RouteType, flags: u16) -> Vec<u8> {
        let mut route = RouteMessage::default();
        route.header.kind = kind;
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
        message.header.flags = flags;
        message.finalize();
        assert!(matches!(message.payload, NetlinkPayload::InnerMessage(_)));
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn blackhole_counts_only_in_place_of_route() {
        for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit] {
            assert!(!matters(&notification(kind, 0)));
            assert!(matters(&notification(kind, NLM_F_REPLACE)));
        }
        assert!(matters(&notification(RouteType::Unicast, 0)));
        assert!(matters(&notification(RouteType::Local, 0)));
    }

    #[test]
    fn unreadable_notification_counts_as_change() {
        let whole = notification(RouteType::BlackHole, 0);
        for length in 0..whole.len() {
            assert!(matters(&whole[..length]), "{length}");
        }
    }
}
