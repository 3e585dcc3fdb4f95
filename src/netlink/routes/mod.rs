//! Adds, removes and lists blackhole, unreachable and prohibit routes of the table `main`, and looks up which route
//! the kernel would take. Makes no decisions and stores nothing.
//!
//! Synchronous, for the thread that blocks: one long-lived socket, and a time limit for lost answers. Only a
//! request that the kernel delays because another process holds its routing lock can take longer.
//!
//! References: rtnetlink(7), `linux/rtnetlink.h`, and the kernel's `net/ipv4/fib_trie.c`, `net/ipv6/route.c`.

mod message;
pub mod monitor;

use std::collections::HashMap;
use std::fmt;

use ipnet::IpNet;
use rustix::io::Errno;

use super::socket::{Socket, SocketError};
use crate::types::RouteKind;

/// The routing protocol number that says "portsentry laid this". Ownership is decided by nothing else: what carries it is
/// listed, replaced and removed, what carries another number is never touched.
///
/// The kernel gives no meaning to numbers above 4. The obvious ones are taken: 84 is OVN's, 80 Calico's, 186 to 199 are
/// those of FRR's daemons. 112 is in no list that iproute2, the kernel or FRR keep, and is the letter p.
pub const PROTOCOL: u8 = 112;

/// The metric of IPv6 routes: the lowest that can be asked for, 0 would mean 1024. IPv4 routes are laid without one, which
/// is the lowest there. So no route that another program adds later for the same prefix takes the place of a ban unseen; and with
/// the same metric, the kernel refuses the second one instead of replacing the first.
const METRIC_V6: u32 = 1;

/// Requests in one datagram. Each may bring an answer of less than 1 KiB in the kernel's count; a receive buffer of
/// 212,992 bytes, which needs no privilege, holds them.
const AT_ONCE: usize = 64;

/// The kernel's error for a look-up of an address behind such a route; `None` if it shows the route.
fn errno_of(kind: RouteKind) -> Option<Errno> {
    match kind {
        RouteKind::Blackhole => Some(Errno::INVAL),
        RouteKind::Unreachable => Some(Errno::HOSTUNREACH),
        RouteKind::Prohibit => Some(Errno::ACCESS),
        RouteKind::Via(_) => None,
    }
}

/// What the kernel would do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Send it by this route.
    Route {
        /// Its prefix length, in bits.
        prefix_len: u8,
        protocol: u8,
        /// Its kind; `None` for others than [`RouteKind`] knows.
        kind: Option<RouteKind>,
    },
    /// Refuse it with this error: a blackhole or the like of any program, or no route at all.
    Refused(Errno),
}

impl Way {
    /// True where this is the route that [`RouteSocket::add`] lays, or where a packet fares as it would with it.
    #[must_use]
    pub fn is_closed(self, net: IpNet, wanted: RouteKind) -> bool {
        match self {
            Self::Route { prefix_len, protocol, kind } => {
                prefix_len == net.prefix_len() && protocol == PROTOCOL && kind == Some(wanted)
            }
            Self::Refused(errno) => errno_of(wanted) == Some(errno),
        }
    }
}

/// Why nothing is known about the routes that were asked about.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The process may not change routes.
    #[error(
        "changing routes needs CAP_NET_ADMIN: run portsentry as root, or under systemd with \
         AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW; in a container, add the capability NET_ADMIN"
    )]
    NotPermitted,
    /// The socket failed.
    #[error("the kernel's routing tables: {0}")]
    Socket(#[from] SocketError),
}

/// Why the kernel did not do one thing of many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub errno: Errno,
    /// Its reason in words, where it has any.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() { self.errno.fmt(f) } else { write!(f, "{}: {}", self.errno, self.text) }
    }
}

/// One socket to the routing tables of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
    requests: Vec<u8>,
}

impl RouteSocket {
    /// Opens it. Whether this process may change routes is seen with the first.
    ///
    /// # Errors
    /// Where netlink cannot be opened.
    pub fn open() -> Result<Self, RouteError> {
        Ok(Self { socket: Socket::open_route()?, requests: Vec::new() })
    }

    /// The number by which the kernel names this socket in notifications of what it changed.
    #[must_use]
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Lays routes. `refused` gets the places of those that are not laid, with EEXIST where there is a route to the same
    /// prefix with the same metric.
    ///
    /// # Errors
    /// Where it is not known which of them are laid.
    pub fn add(
        &mut self,
        routes: &[(IpNet, RouteKind)],
        refused: impl FnMut(usize, Refusal),
    ) -> Result<(), RouteError> {
        self.change(routes, |bytes, (net, kind)| message::put_add(bytes, *net, *kind), refused)
    }

    /// Takes away the own routes to these prefixes, of whatever kind. `refused` gets ESRCH where there is none.
    ///
    /// # Errors
    /// Where it is not known which of them are gone.
    pub fn delete(&mut self, nets: &[IpNet], refused: impl FnMut(usize, Refusal)) -> Result<(), RouteError> {
        self.change(nets, |bytes, net| message::put_delete(bytes, *net), refused)
    }

    /// What the kernel would do with a packet to each of these prefixes, all tables and rules considered; in the same order.
    ///
    /// # Errors
    /// Where an answer is missing.
    pub fn look_up(&mut self, nets: &[IpNet]) -> Result<Vec<Way>, RouteError> {
        let mut ways = Vec::with_capacity(nets.len());
        for chunk in nets.chunks(AT_ONCE) {
            self.requests.clear();
            chunk.iter().for_each(|net| message::put_look_up(&mut self.requests, *net));
            let start = ways.len();
            // An answer that cannot be read is about a route that is none of ours.
            ways.resize(start + chunk.len(), Way::Refused(Errno::BADMSG));
            self.socket.each(&mut self.requests, |place, told| {
                let Some(way) = ways.get_mut(start + place) else { return };
                match told {
                    Ok(answer) => *way = message::read(answer).map_or(*way, |route| route.way()),
                    Err(error) => *way = Way::Refused(refusal(error).errno),
                }
            })?;
        }
        Ok(ways)
    }

    /// Every route of the table `main` that is this program's own by its protocol number, with its kind where [`RouteKind`]
    /// knows it. The kernel walks the whole table for this, so ask once, at the start.
    ///
    /// # Errors
    /// [`SocketError::Unsteady`] where the table changes faster than it can be read.
    pub fn own(&mut self) -> Result<HashMap<IpNet, Option<RouteKind>>, RouteError> {
        let mut all = HashMap::new();
        for family in message::FAMILIES {
            self.requests.clear();
            message::put_list(&mut self.requests, family);
            let list = self.socket.dump(&mut self.requests, HashMap::new, |list, answer| {
                // An older kernel lists all there is.
                let own = message::read(answer).filter(message::Route::is_own);
                list.extend(own.map(|route| (route.net, route.kind)));
            });
            match list {
                Ok(list) => all.extend(list),
                // No table yet, because there was never a route in it; or no such family.
                Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }

    fn change<T>(
        &mut self,
        items: &[T],
        put: impl Fn(&mut Vec<u8>, &T),
        mut refused: impl FnMut(usize, Refusal),
    ) -> Result<(), RouteError> {
        let mut permitted = true;
        for (chunk, items) in items.chunks(AT_ONCE).enumerate() {
            self.requests.clear();
            items.iter().for_each(|item| put(&mut self.requests, item));
            self.socket.each(&mut self.requests, |place, told| {
                let Err(error) = told else { return };
                let refusal = refusal(error);
                permitted &= refusal.errno != Errno::PERM;
                refused(chunk * AT_ONCE + place, refusal);
            })?;
            if !permitted {
                return Err(RouteError::NotPermitted);
            }
        }
        Ok(())
    }
}

fn refusal(error: SocketError) -> Refusal {
    let errno = error.errno().unwrap_or(Errno::IO);
    let text = if let SocketError::Refused { text, .. } = error { text } else { String::new() };
    Refusal { errno, text }
}

/// Any datagram through the readers of routes. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(datagram: &[u8]) {
    let routes = super::message::Messages(datagram).filter_map(|message| message::read(&message));
    let known: Vec<_> = routes.map(|route| (route.way(), route.is_own())).collect();
    let gone = monitor::read(datagram, 7).len();
    // A message has a header of 16 bytes and one of 12 for the route.
    assert!(known.len().max(gone) <= datagram.len() / 28);
}
