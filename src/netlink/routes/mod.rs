//! Adds, removes and lists blackhole, unreachable and prohibit routes of the table `main`, and looks up the route that
//! the kernel would use, and the bridge port that leads to a neighbour. Makes no decisions and stores nothing.
//!
//! Synchronous, for the thread that blocks: one long-lived socket, with a time limit for lost answers. Only a request
//! that waits for the kernel's routing lock can take longer.
//!
//! References: rtnetlink(7), `linux/rtnetlink.h`, and the kernel's `net/ipv4/fib_trie.c`, `net/ipv6/route.c`.

mod message;
pub mod monitor;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use super::socket::{Socket, SocketError};
use crate::types::RouteKind;
pub(crate) use message::destination;
pub use message::{PROTOCOL, Route};

/// Requests per datagram. Each may cause an answer that counts as less than 1 KiB; the default receive buffer of
/// 212,992 bytes holds them all.
const MAX_REQUESTS: usize = 64;

/// The route by which the kernel sends a packet, or its error: a blackhole or similar route of any program, or no route
/// at all.
pub type RouteLookup = Result<Route, Errno>;

/// True if `lookup` found the route that [`RouteSocket::add`] adds, or one with the same effect on packets.
pub fn is_closed(lookup: &RouteLookup, net: IpNet, wanted: RouteKind) -> bool {
    match (lookup, wanted) {
        (Ok(Route { net: found, kind, protocol, .. }), _) => {
            found.prefix_len() == net.prefix_len() && *protocol == PROTOCOL && *kind == Some(wanted)
        }
        // The kernel's error for a look-up behind a route of this kind.
        (Err(errno), RouteKind::Blackhole) => *errno == Errno::INVAL,
        (Err(errno), RouteKind::Unreachable) => *errno == Errno::HOSTUNREACH,
        (Err(errno), RouteKind::Prohibit) => *errno == Errno::ACCESS,
        (Err(_), RouteKind::Via(_)) => false,
    }
}

/// Failure of a whole request.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error(
        "changing routes needs CAP_NET_ADMIN: run portsentry as root, or under systemd with \
         AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW; in a container, add the capability NET_ADMIN"
    )]
    NotPermitted,
    #[error("the kernel's routing tables: {0}")]
    Socket(#[from] SocketError),
}

/// The kernel's refusal of one change among several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRefusal {
    pub errno: Errno,
    /// The kernel's explanation; empty if it gives none.
    pub text: String,
}

impl fmt::Display for KernelRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() { self.errno.fmt(f) } else { write!(f, "{}: {}", self.errno, self.text) }
    }
}

/// A socket to the routing tables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct RouteSocket {
    socket: Socket,
    requests: Vec<u8>,
}

impl RouteSocket {
    /// Opens the socket. A lack of permission to change routes shows at the first change.
    ///
    /// # Errors
    /// Netlink cannot be opened.
    pub fn open() -> Result<Self, RouteError> {
        Ok(Self { socket: Socket::open_route()?, requests: Vec::new() })
    }

    /// The port id by which the kernel identifies this socket in notifications of its changes.
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    /// Adds routes. `refused` is called with the index of each route that was not added; the error is EEXIST if a route
    /// to the same prefix with the same metric exists.
    ///
    /// # Errors
    /// It is unknown which routes were added.
    pub fn add(
        &mut self,
        routes: &[(IpNet, RouteKind)],
        refused: impl FnMut(usize, KernelRefusal),
    ) -> Result<(), RouteError> {
        self.change(routes, |bytes, (net, kind)| message::put_add(bytes, *net, *kind), refused)
    }

    /// Deletes the own routes to these prefixes, of any kind. `refused` receives ESRCH for a missing route.
    ///
    /// # Errors
    /// It is unknown which routes were deleted.
    pub fn delete(&mut self, nets: &[IpNet], refused: impl FnMut(usize, KernelRefusal)) -> Result<(), RouteError> {
        self.change(nets, |bytes, net| message::put_delete(bytes, *net), refused)
    }

    /// Returns the kernel's treatment of a packet to each of these prefixes, considering all tables and rules; in the
    /// same order.
    ///
    /// # Errors
    /// An answer is missing.
    pub fn look_up(&mut self, nets: &[IpNet]) -> Result<Vec<RouteLookup>, RouteError> {
        let mut lookups = Vec::with_capacity(nets.len());
        for chunk in nets.chunks(MAX_REQUESTS) {
            self.requests.clear();
            chunk.iter().for_each(|net| message::put_look_up(&mut self.requests, *net));
            let start = lookups.len();
            // An unreadable answer is about a route that is not ours.
            lookups.resize(start + chunk.len(), Err(Errno::BADMSG));
            self.socket.each(&mut self.requests, |place, answer| {
                let Some(lookup) = lookups.get_mut(start + place) else { return };
                match answer {
                    Ok(answer) => *lookup = message::read(answer).map_or(*lookup, Ok),
                    Err(error) => *lookup = Err(refusal(error).errno),
                }
            })?;
        }
        Ok(lookups)
    }

    /// Lists all routes of the table `main` with this program's protocol number, each with its kind if [`RouteKind`]
    /// contains it. The kernel walks the whole table for this, so call it only once, at the start.
    ///
    /// # Errors
    /// [`SocketError::Unsteady`] if the table changes faster than it can be read.
    pub fn own(&mut self) -> Result<HashMap<IpNet, Option<RouteKind>>, RouteError> {
        let mut all = HashMap::new();
        for family in message::FAMILIES {
            self.requests.clear();
            message::put_list(&mut self.requests, family);
            let list = self.socket.dump(&mut self.requests, HashMap::new, |list, answer| {
                // An older kernel ignores the filter and lists all routes.
                let own = message::read(answer).filter(message::Route::is_own);
                list.extend(own.map(|route| (route.net, route.kind)));
            });
            match list {
                Ok(list) => all.extend(list),
                // The table does not exist because it never had a route, or the family does not exist.
                Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all)
    }

    /// The port through which `bridge` reaches its neighbour with this address: the index of an interface, `None` if
    /// the kernel has forgotten the neighbour.
    ///
    /// # Errors
    /// Any other failure of a request.
    pub fn bridge_port(&mut self, bridge: u32, address: IpAddr) -> Result<Option<u32>, RouteError> {
        let Some((_, hardware)) = self.neighbour(|bytes| message::put_neighbour(bytes, bridge, address))? else {
            return Ok(None);
        };
        for vlan in message::VLANS {
            let entry = self.neighbour(|bytes| message::put_forwarding(bytes, bridge, &hardware, vlan))?;
            if let Some((port, _)) = entry {
                return Ok(Some(port));
            }
        }
        Ok(None)
    }

    /// The interface and the hardware address of one neighbour; `None` if there is no such neighbour.
    fn neighbour(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Result<Option<(u32, Vec<u8>)>, RouteError> {
        self.requests.clear();
        put(&mut self.requests);
        let mut found = None;
        self.socket.find(&mut self.requests, |answer| found = message::read_neighbour(answer))?;
        Ok(found)
    }

    fn change<T>(
        &mut self,
        items: &[T],
        put: impl Fn(&mut Vec<u8>, &T),
        mut refused: impl FnMut(usize, KernelRefusal),
    ) -> Result<(), RouteError> {
        let mut permitted = true;
        for (chunk, items) in items.chunks(MAX_REQUESTS).enumerate() {
            self.requests.clear();
            items.iter().for_each(|item| put(&mut self.requests, item));
            self.socket.each(&mut self.requests, |place, answer| {
                let Err(error) = answer else { return };
                let refusal = refusal(error);
                permitted &= refusal.errno != Errno::PERM;
                refused(chunk * MAX_REQUESTS + place, refusal);
            })?;
            if !permitted {
                return Err(RouteError::NotPermitted);
            }
        }
        Ok(())
    }
}

fn refusal(error: SocketError) -> KernelRefusal {
    let errno = error.errno().unwrap_or(Errno::IO);
    let text = if let SocketError::Refused { text, .. } = error { text } else { String::new() };
    KernelRefusal { errno, text }
}

/// Runs any datagram through the readers of routes. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(datagram: &[u8]) {
    let known = super::message::Messages(datagram).filter_map(|message| message::read(&message)).count();
    let gone = monitor::read(datagram, 7).len();
    super::message::Messages(datagram).for_each(|message| drop(message::read_neighbour(&message)));
    // A message has a header of 16 bytes and a route header of 12 bytes.
    assert!(known.max(gone) <= datagram.len() / 28);
}
