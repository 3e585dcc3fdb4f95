//! Reads what this host is like: addresses, routes and links, sockets, and the files of resolvers, leases and sessions.
//! While something cannot be read, the last reading stays in use.

use std::collections::BTreeMap;
use std::mem::take;

use super::error::DaemonError;
use crate::capture::decoy::DecoyPorts;
use crate::events::channel::Sender;
use crate::events::event::EventKind;
use crate::host::dhcp_leases::LeaseFiles;
use crate::host::file_watch::FileWatch;
use crate::host::listers::{Listing, NetworkLister, SocketList, SocketLister};
use crate::host::network::{HostError, HostFacts, NetworkReading, Watcher};
use crate::host::resolv_conf::ResolverFiles;
use crate::host::sessions::SessionFiles;
use crate::netlink::conntrack::Conntrack;
use crate::netlink::sock_diag::{Connection, Listener, SockDiag};
use crate::types::update;

/// Number of ticks after which everything is read again: a killed session leaves its record without a change to any
/// file.
const REREAD_TICKS: u32 = 300;

pub(super) struct HostReadings {
    watcher: Watcher,
    network: NetworkLister,
    facts: HostFacts,
    /// Error of the last attempt to read addresses, routes and links; meanwhile older facts apply.
    pub(super) unread: Option<String>,
    /// True if the next tick requests another reading.
    is_reading_owed: bool,
    resolvers: FileWatch<ResolverFiles>,
    peers: FileWatch<(SessionFiles, LeaseFiles)>,
    sockets: SocketLister,
    listeners: Vec<Listener>,
    /// True if the listeners changed since the last tick.
    listeners_changed: bool,
    /// Ports of the decoys. Their sockets belong to this program and do not count as listeners.
    decoys: DecoyPorts,
    /// The error of each list that could not be read completely.
    unlisted: BTreeMap<&'static str, Option<String>>,
    events: Sender,
    ticks: u32,
}

/// What [`HostReadings::changed`] has read.
#[derive(Default)]
pub(super) struct Change {
    /// True if the snapshot has to be created anew.
    pub(super) is_new: bool,
    /// The current connections, if they were listed.
    pub(super) connections: Option<Vec<Connection>>,
}

impl HostReadings {
    /// Starts the threads that read, and waits for their first readings.
    pub(super) async fn open(events: Sender) -> Result<Self, DaemonError> {
        // Watches are installed first, so that changes during the initial reads are noticed.
        let watcher = Watcher::open()?;
        let resolvers = FileWatch::new(ResolverFiles::default());
        let peers = FileWatch::new((SessionFiles::default(), LeaseFiles::default()));
        let mut network = NetworkLister::start().map_err(DaemonError::system("start a thread"))?;
        network.request();
        let NetworkReading { facts, late, is_owed } = network.next().await?;
        // If the kernel has no connection tracking, the sensor reports it.
        let sockets = SocketLister::start(SockDiag::open()?, Conntrack::open().ok())
            .map_err(DaemonError::system("start a thread"))?;
        let mut readings = Self {
            watcher,
            network,
            facts,
            unread: None,
            is_reading_owed: is_owed,
            resolvers,
            peers,
            sockets,
            listeners: Vec::new(),
            listeners_changed: false,
            decoys: DecoyPorts::default(),
            unlisted: BTreeMap::new(),
            events,
            ticks: 0,
        };
        readings.report_list("IPv6 routes", late.map(|error| error.to_string()));
        Ok(readings)
    }

    /// Waits for the first list of listeners. If a table takes too long, only a part of it is known.
    pub(super) async fn list_listeners(&mut self) -> Result<(), DaemonError> {
        // Listeners are listed first.
        if let SocketList::Listeners(listing) = self.sockets.next().await {
            let Listing { listeners, late } = listing?;
            self.listeners_changed = !listeners.is_empty();
            self.listeners = listeners;
            self.report_list("listeners", late.last().map(|error| error.to_string()));
        }
        Ok(())
    }

    pub(super) fn facts(&self) -> &HostFacts {
        &self.facts
    }

    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// No longer counts sockets on `decoys` as listeners.
    pub(super) fn exclude(&mut self, decoys: DecoyPorts) {
        self.decoys = decoys;
    }

    /// Requests another reading of addresses, routes and links.
    pub(super) fn request_network(&self) {
        self.network.request();
    }

    /// Waits until addresses, routes or interfaces change, or have been read, or sockets have been listed. Cancel safe.
    pub(super) async fn changed(&mut self) -> Result<Change, DaemonError> {
        tokio::select! {
            changed = self.watcher.changed() => {
                changed?;
                self.network.request();
                Ok(Change::default())
            }
            reading = self.network.next() => Ok(Change { is_new: self.take_network(reading), connections: None }),
            listed = self.sockets.next() => {
                let connections = self.take_sockets(listed);
                Ok(Change { is_new: self.listeners_changed, connections })
            }
        }
    }

    /// Applies a reading of addresses, routes and links; true if they have changed.
    fn take_network(&mut self, reading: Result<NetworkReading, HostError>) -> bool {
        match reading {
            Ok(NetworkReading { facts, late, is_owed }) => {
                let has_changed = update(&mut self.facts, facts);
                self.unread = None;
                self.is_reading_owed |= is_owed;
                self.report_list("IPv6 routes", late.map(|error| error.to_string()));
                has_changed
            }
            Err(error) => {
                self.unread = Some(error.to_string());
                self.is_reading_owed = true;
                false
            }
        }
    }

    /// Applies a list of sockets; returns the connections if it is one of them.
    fn take_sockets(&mut self, listed: SocketList) -> Option<Vec<Connection>> {
        let (name, listed) = match listed {
            SocketList::Listeners(Ok(Listing { mut listeners, late })) => {
                listeners.retain(|one| !is_decoy(&self.decoys, one));
                self.listeners_changed |= update(&mut self.listeners, listeners);
                self.report_list("listeners", late.last().map(|error| error.to_string()));
                return None;
            }
            SocketList::Listeners(Err(error)) => ("listeners", Err(error.to_string())),
            SocketList::Connections(connections) => ("connections", connections),
            SocketList::Published(connections) => ("connections through NAT", connections),
        };
        self.report_list(name, listed.as_ref().err().cloned());
        listed.ok()
    }

    /// Reports once that a list cannot be read, and once that it can be read again. Meanwhile the last list stays in
    /// use.
    fn report_list(&mut self, name: &'static str, error: Option<String>) {
        if update(self.unlisted.entry(name).or_default(), error.clone()) {
            self.events.emit(match error {
                Some(error) => EventKind::Error(format!("{error}; retrying, the last list is used")),
                None => EventKind::Note(format!("the {name} of this host can be listed again")),
            });
        }
    }

    /// Polls the files: whether those of the resolvers have changed, and whether those of sessions and leases have.
    pub(super) fn poll_files(&mut self) -> (bool, bool) {
        // Both are polled, because each keeps its own state.
        (self.resolvers.poll(), self.peers.poll())
    }

    /// Requests a reading of addresses, routes and links if that is due; true if everything is read again.
    pub(super) fn tick(&mut self, resolvers_changed: bool) -> bool {
        self.ticks = (self.ticks + 1) % REREAD_TICKS;
        let is_owed = take(&mut self.is_reading_owed);
        let has_changed_settings = self.ticks.is_multiple_of(5) && self.facts.has_changed_settings();
        if resolvers_changed || self.ticks == 0 || is_owed || has_changed_settings {
            self.network.request();
        }
        self.ticks == 0
    }

    /// True if the listeners have changed since the last call.
    pub(super) fn take_listeners_changed(&mut self) -> bool {
        take(&mut self.listeners_changed)
    }
}

/// True for a socket of the decoys.
fn is_decoy(decoys: &DecoyPorts, listener: &Listener) -> bool {
    decoys.holds(listener.protocol, listener.bound.address(), listener.port)
}
