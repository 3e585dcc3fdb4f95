//! Maintains the snapshot of this host: addresses, routes, resolvers, leases, sessions, listeners and the allow-list.
//! Changes that it finds are sent to the sensor; for changes by operators and reloads, the commands are returned: a new
//! snapshot, and a new capture if the filter changes.

use std::collections::{BTreeMap, HashSet};
use std::mem::{replace, take};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::allow_sources::AllowSources;
use super::error::DaemonError;
use super::host_memory::{self, HostMemory, PortRanges};
use super::listers::{Listed, Listing, NetworkLister, SocketLister};
use super::ring_size::RingSizer;
use super::sensor_thread::SensorHandle;
use crate::capture::decoy::DecoyPorts;
use crate::capture::filter::Wanted;
use crate::capture::live::{Live, Ring};
use crate::clock::boot_time;
use crate::config::Config;
use crate::engine::{Host, ServiceMemory, Settings};
use crate::events::channel::Sender;
use crate::events::event::EventKind;
use crate::host::dhcp_leases::LeaseFiles;
use crate::host::file_watch::FileWatch;
use crate::host::network::{HostError, HostFacts, HostReading, Watcher};
use crate::host::resolv_conf::ResolverFiles;
use crate::host::sessions::SessionFiles;
use crate::host::snapshot::{
    ephemeral_ports, first_unprivileged_port, missing_interfaces, snapshot, watched_interfaces,
};
use crate::netlink::conntrack::Conntrack;
use crate::netlink::sock_diag::{Bound, Connection, Listener, SockDiag};
use crate::sensor::SensorCommand;

/// Number of ticks after which everything is read again: a killed session leaves its record without a change to any
/// file.
const REREAD: u32 = 300;

pub(super) struct HostState {
    interfaces: Vec<String>,
    settings: Settings,
    pub(super) allow: AllowSources,
    sensor: SensorHandle,
    events: Sender,
    watcher: Watcher,
    network: NetworkLister,
    /// Error of the last attempt to read addresses, routes and links; meanwhile older facts apply.
    unread: Option<String>,
    /// The error of the last report.
    reported: Option<String>,
    /// True if the next tick requests another reading.
    is_reading_owed: bool,
    resolvers: FileWatch<ResolverFiles>,
    peers: FileWatch<(SessionFiles, LeaseFiles)>,
    lister: SocketLister,
    /// The lists that could not be read completely, each with its error.
    unlisted: BTreeMap<&'static str, String>,
    facts: HostFacts,
    listeners: Vec<Listener>,
    /// True if the listeners changed since the last tick.
    listeners_changed: bool,
    pub(super) memory: HostMemory,
    /// `net.ipv4.ip_unprivileged_port_start` at the last tick.
    first_unprivileged: u16,
    /// Ports of the decoys. Their sockets belong to this program and do not count as listeners.
    pub(super) decoys: DecoyPorts,
    host: Arc<Host>,
    pub(super) wanted: Wanted,
    pub(super) ring_sizer: RingSizer,
    /// True if a change is not part of the snapshot yet.
    stale: bool,
    ticks: u32,
}

impl HostState {
    pub(super) async fn open(config: &Config, sensor: SensorHandle, events: Sender) -> Result<Self, DaemonError> {
        // Watches are installed first, so that changes during the initial reads are noticed.
        let watcher = Watcher::open()?;
        let resolvers = FileWatch::new(ResolverFiles::default());
        let peers = FileWatch::new((SessionFiles::default(), LeaseFiles::default()));
        let mut network = NetworkLister::start().map_err(DaemonError::system("start a thread"))?;
        network.request();
        let HostReading { facts, late, is_owed } = network.next().await?;
        // If the kernel has no connection tracking, the sensor reports it.
        let mut lister = SocketLister::start(SockDiag::open()?, Conntrack::open().ok())
            .map_err(DaemonError::system("start a thread"))?;
        missing_interfaces(&config.interfaces, &facts).next().map_or(Ok(()), Err)?;
        let allow = AllowSources::open(&config.allow)?;
        let settings = Settings::from_config(config);
        // Listeners are listed first. If a table takes too long, only a part of it is known.
        let listing = match lister.next().await {
            Listed::Listeners(listing) => listing?,
            Listed::Connections(_) | Listed::Published(_) => Listing::default(),
        };
        let host = Arc::new(snapshot(&config.interfaces, &allow.networks(), &facts, &listing.listeners));
        let mut state = Self {
            wanted: Wanted::new(&settings, &host),
            interfaces: config.interfaces.clone(),
            settings,
            allow,
            sensor,
            events,
            watcher,
            network,
            unread: None,
            reported: None,
            is_reading_owed: is_owed,
            resolvers,
            peers,
            lister,
            unlisted: BTreeMap::new(),
            facts,
            listeners_changed: !listing.listeners.is_empty(),
            listeners: listing.listeners,
            memory: HostMemory::default(),
            first_unprivileged: first_unprivileged_port(),
            decoys: DecoyPorts::default(),
            host,
            ring_sizer: RingSizer::new(Instant::now()),
            stale: false,
            ticks: 0,
        };
        state.report_list("IPv6 routes", late.map(|error| error.to_string()));
        state.report_list("listeners", listing.late.map(|error| error.to_string()));
        Ok(state)
    }

    /// The ports on which system programs listen now.
    pub(super) fn listening(&self) -> ServiceMemory {
        let ranges = PortRanges { ephemeral: &self.host.ephemeral, first_unprivileged: self.first_unprivileged };
        host_memory::listening(&self.listeners, ranges)
    }

    pub(super) fn host(&self) -> Arc<Host> {
        Arc::clone(&self.host)
    }

    /// Applies another configuration, and sends `settings` and the new snapshot to the sensor.
    ///
    /// # Errors
    /// If an interface is missing, a file of the allow-list cannot be read, or the new capture cannot be opened. The old
    /// configuration then stays in force.
    pub(super) async fn reconfigure(&mut self, config: &Config, settings: Settings) -> Result<(), DaemonError> {
        missing_interfaces(&config.interfaces, &self.facts).next().map_or(Ok(()), Err)?;
        let replaced = (
            self.allow.reconfigure(&config.allow)?,
            replace(&mut self.interfaces, config.interfaces.clone()),
            replace(&mut self.settings, Settings::from_config(config)),
        );
        let commands = match self.refresh().await {
            Ok(commands) => commands,
            Err(error) => {
                let (allow, interfaces, settings) = replaced;
                self.allow.restore(allow);
                (self.interfaces, self.settings) = (interfaces, settings);
                return Err(error);
            }
        };
        self.network.request();
        // The settings before the snapshot: a newly monitored port must not be judged by the old snapshot.
        self.sensor.send(SensorCommand::Settings(Box::new(settings)));
        self.sensor.send_all(commands);
        Ok(())
    }

    /// Creates the snapshot anew and sends it to the sensor.
    pub(super) async fn renew(&mut self) -> Result<(), DaemonError> {
        let commands = self.refresh().await?;
        self.sensor.send_all(commands);
        Ok(())
    }

    /// As [`HostState::renew`]; waits while the sensor's inbox is full.
    pub(super) async fn renew_waiting(&mut self) -> Result<(), DaemonError> {
        for command in self.refresh().await? {
            self.sensor.send_waiting(command).await;
        }
        Ok(())
    }

    /// The own addresses on which connections count; `None` (all) if no interface is configured.
    pub(super) fn addresses(&self) -> Option<HashSet<IpAddr>> {
        let watched = watched_interfaces(&self.interfaces, &self.facts);
        let on_watched = self.facts.addresses.iter().filter(|(index, _)| watched.contains(index));
        (!self.interfaces.is_empty()).then(|| on_watched.map(|(_, address)| address.addr()).collect())
    }

    /// Waits until addresses, routes or interfaces change, a name has been looked up, or sockets have been listed, and
    /// informs the sensor. Cancel safe.
    pub(super) async fn changed(&mut self) -> Result<(), DaemonError> {
        // Recorded in `stale`, because the caller may cancel before everything is read; then the next tick continues.
        tokio::select! {
            changed = self.watcher.changed() => {
                changed?;
                self.network.request();
            }
            reading = self.network.next() => self.take_reading(reading),
            changed = self.allow.name_answered() => self.stale |= changed,
            listed = self.lister.next() => self.take_sockets(listed),
        }
        self.update().await
    }

    /// Returns an event if reading the state of this host begins to fail, fails with another error, or works again;
    /// otherwise `None`, because each tick retries.
    pub(super) fn report(&mut self, result: Result<(), DaemonError>) -> Option<EventKind> {
        // If both reads fail, the same error is reported each time, so that the two do not alternate in the log.
        let error = self.unread.clone().or_else(|| result.err().map(|error| error.to_string()));
        if error == self.reported {
            return None;
        }
        self.reported = error;
        Some(match &self.reported {
            Some(error) => EventKind::Error(format!("{error}; retrying, the last known state is used")),
            None => EventKind::Note("this host's addresses, routes and services can be read again".to_owned()),
        })
    }

    fn take_reading(&mut self, reading: Result<HostReading, HostError>) {
        match reading {
            Ok(HostReading { facts, late, is_owed }) => {
                self.stale |= facts != self.facts;
                self.facts = facts;
                self.unread = None;
                self.is_reading_owed |= is_owed;
                self.report_list("IPv6 routes", late.map(|error| error.to_string()));
            }
            Err(error) => {
                self.unread = Some(error.to_string());
                self.is_reading_owed = true;
            }
        }
    }

    /// Applies a list of sockets.
    fn take_sockets(&mut self, listed: Listed) {
        let (name, error) = match listed {
            Listed::Listeners(Ok(Listing { mut listeners, late })) => {
                listeners.retain(|one| !is_decoy(&self.decoys, one));
                self.listeners_changed |= listeners != self.listeners;
                self.listeners = listeners;
                ("listeners", late.map(|error| error.to_string()))
            }
            Listed::Listeners(Err(error)) => ("listeners", Some(error.to_string())),
            Listed::Connections(connections) => ("connections", self.take_connections(connections)),
            Listed::Published(connections) => ("connections through NAT", self.take_connections(connections)),
        };
        self.stale |= self.listeners_changed;
        self.report_list(name, error);
    }

    /// Applies a list of connections; returns its error.
    fn take_connections(&mut self, connections: Result<Vec<Connection>, String>) -> Option<String> {
        connections.map(|list| self.memory.observe_connections(boot_time(), &list, &self.host)).err()
    }

    /// Reports once that a list cannot be read, and once that it can be read again. Meanwhile the last list stays in
    /// use.
    fn report_list(&mut self, name: &'static str, error: Option<String>) {
        let last = match &error {
            Some(error) => self.unlisted.insert(name, error.clone()),
            None => self.unlisted.remove(name),
        };
        if error != last {
            self.events.emit(match error {
                Some(error) => EventKind::Error(format!("{error}; retrying, the last list is used")),
                None => EventKind::Note(format!("the {name} of this host can be listed again")),
            });
        }
    }

    /// Reads changed files again, and requests new readings from the threads.
    pub(super) async fn tick(&mut self) -> Result<(), DaemonError> {
        // All of them are polled, because each keeps its own state.
        let resolvers = self.resolvers.poll();
        let changes = [self.peers.poll(), self.allow.tick(Instant::now(), resolvers)];
        self.ticks = (self.ticks + 1) % REREAD;
        let is_owed = take(&mut self.is_reading_owed);
        let has_changed_settings = self.ticks.is_multiple_of(5) && self.facts.has_changed_settings();
        if resolvers || self.ticks == 0 || is_owed || has_changed_settings {
            self.network.request();
        }
        let now = boot_time();
        let ranges = PortRanges { ephemeral: &self.host.ephemeral, first_unprivileged: self.first_unprivileged };
        let services_changed = self.memory.observe(now, SystemTime::now(), &self.listeners, ranges);
        self.first_unprivileged = first_unprivileged_port();
        let ports_moved = ephemeral_ports() != self.host.ephemeral;
        self.stale |= changes.contains(&true) || services_changed || ports_moved || self.ticks == 0;
        let listeners_changed = take(&mut self.listeners_changed);
        self.update().await?;
        self.memory.query_published(now, &self.sensor);
        if self.memory.ends_settling(boot_time(), listeners_changed) {
            let text = "the services of this host have started: sources are banned from now on".to_owned();
            self.events.emit(EventKind::Note(text));
            // Sent after the snapshot in which the services are open.
            self.sensor.send(SensorCommand::EndSettling);
        }
        Ok(())
    }

    /// Updates the snapshot if something has changed. Messages are sent after the snapshot, so that an address is
    /// protected before a message says so.
    async fn update(&mut self) -> Result<(), DaemonError> {
        if self.stale {
            self.renew().await?;
        }
        self.sensor.send_all(self.memory.changed_peers(boot_time()));
        self.allow.take_messages().into_iter().for_each(|kind| self.events.emit(kind));
        Ok(())
    }

    /// Creates the snapshot anew; returns the commands for the sensor.
    async fn refresh(&mut self) -> Result<Vec<SensorCommand>, DaemonError> {
        let mut host = snapshot(&self.interfaces, &self.allow.networks(), &self.facts, &self.listeners);
        self.allow.by_hand.forced().for_each(|network| host.allow.except(network));
        host.services = self.memory.services.memory();
        host.find_related();
        let wanted = Wanted::new(&self.settings, &host);
        // Before the snapshot is replaced: if it fails, the sensor does not get the new one either.
        let live = match wanted != self.wanted {
            true => Some(capture(&wanted, self.ring_sizer.ring).await?),
            false => None,
        };
        self.wanted = wanted;
        self.host = Arc::new(host);
        self.stale = false;
        let mut commands = vec![SensorCommand::Host(self.host()), SensorCommand::Addresses(self.addresses())];
        commands.extend(live.map(SensorCommand::Capture));
        Ok(commands)
    }

    /// Replaces the capture by one with a larger ring buffer while the sensor's counters show a high packet rate, and
    /// by one with the usual ring buffer afterwards.
    pub(super) async fn resize_ring(&mut self) {
        let (now, metrics) = (Instant::now(), &self.sensor.metrics);
        let Some(ring) = self.ring_sizer.wanted(now, metrics.frames.get(), metrics.dropped.get()) else { return };
        match capture(&self.wanted, ring).await {
            Ok(live) => {
                self.ring_sizer.ring = ring;
                self.sensor.send(SensorCommand::Capture(live));
            }
            Err(error) => {
                self.ring_sizer.refused(now);
                self.events.emit(EventKind::Error(format!(
                    "cannot change the size of the capture's ring buffer: {error}; the capture continues with the old one"
                )));
            }
        }
    }
}

/// Opens another capture. Compiling its filter takes about 50 ms and runs on a separate thread, while the old capture
/// continues.
async fn capture(wanted: &Wanted, ring: Ring) -> Result<Live, DaemonError> {
    let filter = wanted.to_filter();
    let opened = tokio::task::spawn_blocking(move || Live::open(&filter, ring)).await;
    Ok(opened.map_err(|_| DaemonError::SensorGone)??)
}

/// True for a socket of the decoys.
fn is_decoy(decoys: &DecoyPorts, listener: &Listener) -> bool {
    let address = match listener.bound {
        Bound::One(address) => address,
        Bound::AnyV4 => Ipv4Addr::UNSPECIFIED.into(),
        Bound::AnyV6 | Bound::Any => Ipv6Addr::UNSPECIFIED.into(),
    };
    decoys.holds(listener.protocol, address, listener.port)
}
