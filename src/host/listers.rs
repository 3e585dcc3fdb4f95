//! Lists addresses and sockets on separate threads, so that neither the event loop nor the start waits for the kernel.
//! A host on the link can make a list of routes take seconds by flooding router advertisements, and any local user a
//! list of sockets by opening many on one port.

use std::future::pending;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::network::{HostError, HostReader, NetworkReading};
use super::resolv_conf::ResolverFiles;
use crate::netlink::conntrack::Conntrack;
use crate::netlink::sock_diag::{Connection, Listener, MAX_DUMP, SockDiag, SockDiagError, TABLES};
use crate::panic_guard;

/// Reads addresses, routes and links.
pub struct NetworkLister {
    requests: Sender<()>,
    readings: Receiver<Result<NetworkReading, HostError>>,
}

impl NetworkLister {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// The thread or its runtime cannot be created.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, mut requested) = channel(1);
        let (found, readings) = channel(1);
        let mut reader = HostReader::default();
        let work = move || {
            while requested.blocking_recv().is_some() {
                let reading = runtime.block_on(reader.read(&ResolverFiles::default()));
                if found.blocking_send(reading).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("network".to_owned()).spawn(|| panic_guard::restart_on_panic(work))?;
        Ok(Self { requests, readings })
    }

    /// Requests a reading. If one is under way, another follows, because the first may have missed the change.
    pub fn request(&self) {
        // A full queue holds a request already.
        let _ = self.requests.try_send(());
    }

    /// Waits for the next reading. Cancel safe.
    pub async fn next(&mut self) -> Result<NetworkReading, HostError> {
        // The thread ends only when this receiver is dropped.
        match self.readings.recv().await {
            Some(reading) => reading,
            None => pending().await,
        }
    }
}

/// Minimum interval between two listings of listeners. If a service starts in between, the exact look-up finds it
/// before its clients are judged.
const LISTENERS_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum interval between two listings of connections.
const CONNECTIONS_INTERVAL: Duration = Duration::from_secs(2);

/// Minimum interval between two listings of connections through destination NAT. The kernel keeps their entries for two
/// minutes after their end, or for ten seconds after a reset.
const PUBLISHED_INTERVAL: Duration = Duration::from_secs(10);

/// Listing takes at most 1/`LOAD_DIVISOR` of the thread's time, regardless of the number of sockets.
const LOAD_DIVISOR: u32 = 50;

/// Maximum number of connections examined.
const MAX_CONNECTIONS: usize = 65_536;

/// A list from the thread.
pub enum SocketList {
    Listeners(Result<Listing, SockDiagError>),
    Connections(Result<Vec<Connection>, String>),
    /// Connections that destination NAT leads elsewhere.
    Published(Result<Vec<Connection>, String>),
}

/// The listeners of this host.
#[derive(Debug, Default)]
pub struct Listing {
    /// Sorted, without duplicates.
    pub listeners: Vec<Listener>,
    /// One error for each table that exceeded its time limit. Of such a table, `listeners` contains the listeners found
    /// in time and those of its last complete list.
    pub late: Vec<SockDiagError>,
}

impl Listing {
    /// Lists the listeners without a thread. A table that exceeds its time limit may lack some.
    ///
    /// # Errors
    /// The socket cannot be opened, or the kernel refuses a list.
    pub fn read() -> Result<Self, SockDiagError> {
        Tables::new(SockDiag::open()?, None, MAX_DUMP).listeners()
    }
}

/// Receives the lists of the thread.
pub struct SocketLister(Receiver<SocketList>);

impl SocketLister {
    /// Starts the thread, in the network namespace of the caller. Without `conntrack`, connections through destination
    /// NAT are not listed.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(sockets: SockDiag, conntrack: Option<Conntrack>) -> io::Result<Self> {
        let (lists, received) = channel(1);
        let mut tables = Tables::new(sockets, conntrack, MAX_DUMP);
        let work = move || tables.run(&lists);
        thread::Builder::new().name("sockets".to_owned()).spawn(|| panic_guard::restart_on_panic(work))?;
        Ok(Self(received))
    }

    /// Waits for the next list. Cancel safe.
    pub async fn next(&mut self) -> SocketList {
        // The thread ends only when this receiver is dropped.
        match self.0.recv().await {
            Some(listed) => listed,
            None => pending().await,
        }
    }
}

struct Tables {
    sockets: SockDiag,
    conntrack: Option<Conntrack>,
    /// The last complete list of each table, for a later list that is cut off.
    last: [Vec<Listener>; TABLES.len()],
}

impl Tables {
    fn new(mut sockets: SockDiag, conntrack: Option<Conntrack>, limit: Duration) -> Self {
        sockets.limit(limit);
        Self { sockets, conntrack, last: Default::default() }
    }

    /// Runs until the receiver is dropped.
    fn run(&mut self, lists: &Sender<SocketList>) {
        let [mut listeners_due, mut connections_due, mut published_due] =
            [Duration::ZERO, CONNECTIONS_INTERVAL, PUBLISHED_INTERVAL].map(|after| Instant::now() + after);
        loop {
            let next = listeners_due.min(connections_due).min(published_due);
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let begin = Instant::now();
            let (listed, due, interval) = if listeners_due == next {
                (SocketList::Listeners(self.listeners()), &mut listeners_due, LISTENERS_INTERVAL)
            } else if connections_due == next {
                let connections = self.sockets.connections(MAX_CONNECTIONS);
                (
                    SocketList::Connections(connections.map_err(|error| error.to_string())),
                    &mut connections_due,
                    CONNECTIONS_INTERVAL,
                )
            } else {
                let published =
                    self.conntrack.as_mut().map_or(Ok(Vec::new()), |table| table.published(MAX_CONNECTIONS));
                (
                    SocketList::Published(published.map_err(|error| error.to_string())),
                    &mut published_due,
                    PUBLISHED_INTERVAL,
                )
            };
            *due = begin + interval.max(begin.elapsed() * LOAD_DIVISOR);
            if lists.blocking_send(listed).is_err() {
                return;
            }
        }
    }

    fn listeners(&mut self) -> Result<Listing, SockDiagError> {
        let mut listing = Listing::default();
        for (table, last) in TABLES.into_iter().zip(&mut self.last) {
            let mut found = Vec::new();
            match self.sockets.list(table, &mut found) {
                Ok(()) => last.clone_from(&found),
                Err(error @ SockDiagError::Late(..)) => {
                    listing.listeners.extend_from_slice(last);
                    listing.late.push(error);
                }
                Err(error) => return Err(error),
            }
            listing.listeners.append(&mut found);
        }
        listing.listeners.sort_unstable();
        listing.listeners.dedup();
        Ok(listing)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;
    use crate::netlink::sock_diag::Bound;
    use crate::types::Protocol;

    fn udp(listing: &Listing, port: u16) -> bool {
        let bound = Bound::One(Ipv4Addr::LOCALHOST.into());
        let is_it = |one: &Listener| (one.protocol, one.port, one.bound) == (Protocol::Udp, port, bound);
        listing.listeners.iter().any(is_it)
    }

    #[test]
    fn late_table_keeps_its_last_list() {
        let [early, _later] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut tables = Tables::new(SockDiag::open().unwrap(), None, Duration::from_secs(60));
        let listing = tables.listeners().unwrap();
        assert!(listing.late.is_empty() && udp(&listing, early.local_addr().unwrap().port()));
        let port = early.local_addr().unwrap().port();
        drop(early);
        tables.sockets.limit(Duration::ZERO);
        for _ in 0..3 {
            let listing = tables.listeners().unwrap();
            assert!(matches!(listing.late.last(), Some(SockDiagError::Late(Protocol::Udp, _))));
            assert!(udp(&listing, port), "the last complete list stays in force while the next ones are late");
            assert!(listing.listeners.is_sorted_by(|one, next| one < next), "each once");
        }
        tables.sockets.limit(Duration::from_secs(60));
        // A process that another test has just started may hold the socket for a moment.
        netns_lab::eventually("the next list is complete again", || {
            let listing = tables.listeners().unwrap();
            assert!(listing.late.is_empty());
            !udp(&listing, port)
        });
    }

    #[test]
    fn both_kinds_of_lists_arrive() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut lister = SocketLister::start(SockDiag::open().unwrap(), None).unwrap();
        let mut kinds = [0, 0];
        while kinds.contains(&0) {
            match runtime.block_on(lister.next()) {
                SocketList::Listeners(listing) => kinds[0] += usize::from(listing.is_ok()),
                SocketList::Connections(connections) => kinds[1] += usize::from(connections.is_ok()),
                SocketList::Published(_) => {}
            }
        }
    }
}
