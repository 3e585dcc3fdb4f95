//! What this host is, kept current: addresses, routes, resolvers, listeners and whom the operator allows to snapshots for
//! the sensor, and to the filter that follows from them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::DaemonError;
use super::allow_names::AllowNames;
use super::ignore_files::IgnoreFiles;
use super::ring_size::RingSizer;
use super::temporary_allow::TemporaryAllow;
use crate::capture::decoy::DecoyPorts;
use crate::capture::filter::Wanted;
use crate::capture::live::{Live, Ring};
use crate::config::Config;
use crate::engine::{AllowList, Host, Listeners, Local, Protection};
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};
use crate::host::dhcp_leases::LeaseFiles;
use crate::host::file_watch::FileWatch;
use crate::host::network::{self, HostFacts, Watcher};
use crate::host::resolv_conf::ResolverFiles;
use crate::host::sessions::SessionFiles;
use crate::netlink::sock_diag::{Bound, Listener, Protocol, SockDiag};
use crate::sensor::{SensorCommand, SensorMetrics};
use crate::types::PortSet;

/// Follows the host.
pub(super) struct HostState {
    config: Config,
    allowance: TemporaryAllow,
    ignored: IgnoreFiles,
    names: AllowNames,
    events: Sender,
    /// What there is to say of names and files, once the snapshot shows it.
    unsaid: Vec<EventKind>,
    watcher: Watcher,
    resolvers: FileWatch<ResolverFiles>,
    sessions: FileWatch<SessionFiles>,
    leases: FileWatch<LeaseFiles>,
    sockets: SockDiag,
    facts: HostFacts,
    listeners: Vec<Listener>,
    decoys: DecoyPorts,
    host: Arc<Host>,
    wanted: Wanted,
    room: RingSizer,
    /// Something has changed that the snapshot does not show yet.
    stale: bool,
    ticks: u32,
}

/// All is read again after so many ticks: a session that was killed leaves its record behind without a change to any file.
const REREAD: u32 = 300;

impl HostState {
    /// Reads everything once.
    pub(super) async fn open(config: &Config, events: Sender) -> Result<Self, DaemonError> {
        // The watcher first: what changes while the rest is read is noticed.
        let watcher = Watcher::open()?;
        let facts = network::read(&ResolverFiles::default()).await?;
        let mut sockets = SockDiag::open()?;
        let listeners = sockets.listeners()?;
        named_are_there(config, &facts)?;
        let ignored = IgnoreFiles::open(&config.allow)?;
        let now = Instant::now();
        let mut names = AllowNames::new(&config.allow.names, now);
        // Nobody waits for them: a name server that is down must not keep the host unwatched.
        names.tick(now, false);
        let decoys = DecoyPorts::default();
        let host = Arc::new(snapshot(config, &allowed(config, &ignored, &names), &facts, &listeners));
        let wanted = wanted(config, &host);
        let resolvers = FileWatch::new(ResolverFiles::default());
        let (sessions, leases) = (FileWatch::new(SessionFiles::default()), FileWatch::new(LeaseFiles::default()));
        let config = config.clone();
        Ok(Self {
            config,
            allowance: TemporaryAllow::default(),
            ignored,
            names,
            events,
            unsaid: Vec::new(),
            watcher,
            resolvers,
            sessions,
            leases,
            sockets,
            facts,
            listeners,
            decoys,
            host,
            wanted,
            room: RingSizer::new(now),
            stale: false,
            ticks: 0,
        })
    }

    /// The name of the interface with this index.
    pub(super) fn interface(&self, index: u32) -> Option<String> {
        self.facts.interfaces.iter().find(|one| one.index == index).map(|one| one.name.clone())
    }

    /// The snapshot that holds now.
    pub(super) fn host(&self) -> Arc<Host> {
        Arc::clone(&self.host)
    }

    /// Allows `network` for a while, or until the program ends; what the sensor must know of it.
    pub(super) async fn allow(&mut self, network: IpNet, span: Option<Duration>) -> Result<Vec<SensorCommand>, String> {
        self.allowance.add(network, span, Instant::now())?;
        self.refresh().await.map_err(|error| error.to_string())
    }

    /// Takes `network` out of whatever protects it, until it is allowed or unblocked; what the sensor must know of it.
    pub(super) async fn force(&mut self, network: IpNet, span: Option<Duration>) -> Result<Vec<SensorCommand>, String> {
        self.allowance.force(network, span, Instant::now())?;
        self.refresh().await.map_err(|error| error.to_string())
    }

    /// Takes back what an operator said of `network`, `None`: of all; what the sensor must know of it.
    pub(super) async fn unforce(&mut self, network: Option<IpNet>) -> Result<Vec<SensorCommand>, String> {
        let forgotten = match network {
            Some(network) => self.allowance.forget_forced(network),
            None => self.allowance.forget_all_forced(),
        };
        if !forgotten {
            return Ok(Vec::new());
        }
        self.refresh().await.map_err(|error| error.to_string())
    }

    /// Goes on with other settings; what the sensor must know of it. Where an error comes back, the old ones hold.
    pub(super) async fn reconfigure(&mut self, config: &Config) -> Result<Vec<SensorCommand>, DaemonError> {
        named_are_there(config, &self.facts)?;
        let ignored = IgnoreFiles::open(&config.allow)?;
        if config.allow.names != self.config.allow.names {
            self.names = AllowNames::new(&config.allow.names, Instant::now());
            self.names.tick(Instant::now(), false);
        }
        self.ignored = ignored;
        self.config = config.clone();
        self.stale = true;
        self.catch_up().await
    }

    /// From now on `decoys` are no listeners: they are the program's own.
    pub(super) fn except(&mut self, decoys: DecoyPorts) {
        self.decoys = decoys;
    }

    /// The own addresses at which connections count; `None` where the settings name no interface: all of them.
    pub(super) fn addresses(&self) -> Option<HashSet<IpAddr>> {
        let watched = named(&self.config, &self.facts);
        let on_watched = self.facts.addresses.iter().filter(|(index, _)| watched.contains(index));
        (!self.config.interfaces.is_empty()).then(|| on_watched.map(|(_, address)| address.addr()).collect())
    }

    /// The filter that holds now.
    pub(super) fn filter(&self) -> String {
        self.wanted.to_filter()
    }

    /// Waits until addresses, routes or interfaces change, or a name has been looked up; what the sensor must know of it.
    /// Safe to cancel.
    pub(super) async fn changed(&mut self) -> Result<Vec<SensorCommand>, DaemonError> {
        // Noted, because whoever waits here may turn to something else before all of it is read: then the next tick does it.
        tokio::select! {
            changed = self.watcher.changed() => {
                changed?;
                self.stale = true;
            }
            changed = self.names.answered() => {
                self.stale |= changed;
                self.unsaid.extend(self.names.said());
            }
        }
        self.settle().await
    }

    /// Catches up where something has changed. What there is to say comes after it: who is said to be protected is.
    async fn settle(&mut self) -> Result<Vec<SensorCommand>, DaemonError> {
        let orders = if self.stale { self.catch_up().await? } else { Vec::new() };
        self.unsaid.drain(..).for_each(|what| self.events.send(Event::now(what)));
        Ok(orders)
    }

    async fn catch_up(&mut self) -> Result<Vec<SensorCommand>, DaemonError> {
        self.facts = network::read(&ResolverFiles::default()).await?;
        let orders = self.refresh().await?;
        self.stale = false;
        Ok(orders)
    }

    /// Reads the listeners again, and resolvers, sessions, leases and ignore files where they changed; has names looked up.
    pub(super) async fn tick(&mut self) -> Result<Vec<SensorCommand>, DaemonError> {
        let mut listeners = self.sockets.listeners()?;
        listeners.retain(|one| !is_decoy(&self.decoys, one));
        // All of them are asked: each remembers what it has seen.
        let resolvers = self.resolvers.poll();
        let names = self.names.tick(Instant::now(), resolvers);
        let (ignored, said) = self.ignored.tick();
        self.unsaid.extend(said.into_iter().chain(self.names.said()));
        let changes = [resolvers, names, ignored, self.sessions.poll(), self.leases.poll()];
        self.ticks = (self.ticks + 1) % REREAD;
        self.stale |= self.allowance.expire(Instant::now());
        self.stale |= changes.contains(&true) || listeners != self.listeners || self.ticks == 0;
        self.listeners = listeners;
        self.settle().await
    }

    async fn refresh(&mut self) -> Result<Vec<SensorCommand>, DaemonError> {
        let mut allowed = allowed(&self.config, &self.ignored, &self.names);
        allowed.extend(self.allowance.networks().map(|network| (network, Protection::Listed)));
        let mut host = snapshot(&self.config, &allowed, &self.facts, &self.listeners);
        self.allowance.forced().for_each(|network| host.allow.except(network));
        let host = Arc::new(host);
        let wanted = wanted(&self.config, &host);
        self.host = Arc::clone(&host);
        let mut orders = vec![SensorCommand::Host(host), SensorCommand::Addresses(self.addresses())];
        if wanted != self.wanted {
            orders.push(SensorCommand::Capture(capture(&wanted, self.room.ring()).await?));
            self.wanted = wanted;
        }
        Ok(orders)
    }

    /// The sensor says that packets come fast.
    pub(super) fn crowded(&mut self) {
        self.room.crowded(Instant::now());
    }

    /// Gives the capture more room where packets come fast, by what the sensor has counted, and less when they do no longer.
    pub(super) async fn ensure_prefix_sets(&mut self, metrics: &SensorMetrics) -> Option<SensorCommand> {
        let now = Instant::now();
        let ring = self.room.look(now, metrics.frames.get(), metrics.dropped.get())?;
        match capture(&self.wanted, ring).await {
            Ok(live) => {
                self.room.has(ring);
                Some(SensorCommand::Capture(live))
            }
            Err(error) => {
                self.room.refused(now);
                self.unsaid.push(EventKind::Error(format!(
                    "a flood begins or is over, and the capture cannot get a ring of another size: {error}; it keeps the one that it has"
                )));
                None
            }
        }
    }
}

/// Another capture. Compiling its filter takes some 50 ms: on a thread of its own, while the old one goes on.
async fn capture(wanted: &Wanted, ring: Ring) -> Result<Live, DaemonError> {
    let filter = wanted.to_filter();
    let opened = tokio::task::spawn_blocking(move || Live::open(&filter, ring)).await;
    Ok(opened.map_err(|_| DaemonError::SensorGone)??)
}

/// Sees to it that there is every interface that the settings name.
fn named_are_there(config: &Config, facts: &HostFacts) -> Result<(), DaemonError> {
    let missing = |name: &&String| facts.interfaces.iter().all(|one| one.name != **name);
    match config.interfaces.iter().find(missing) {
        None => Ok(()),
        Some(name) => {
            // A container may have given one a name that drives a terminal.
            let names: Vec<_> = facts.interfaces.iter().map(|one| one.name.escape_debug().to_string()).collect();
            Err(DaemonError::NoInterface { name: name.clone(), present: names.join(", ") })
        }
    }
}

/// Whom the operator allows, each with why.
fn allowed(config: &Config, ignored: &IgnoreFiles, names: &AllowNames) -> Vec<(IpNet, Protection)> {
    let listed = config.allow.networks.iter().copied().chain(ignored.networks());
    let named = names.addresses().map(|address| (IpNet::from(address), Protection::Named));
    listed.map(|network| (network, Protection::Listed)).chain(named).collect()
}

/// The engine's view of the host.
pub(crate) fn snapshot(
    config: &Config,
    allowed: &[(IpNet, Protection)],
    facts: &HostFacts,
    listeners: &[Listener],
) -> Host {
    let mut allow = AllowList::new();
    for (_, address) in &facts.addresses {
        allow.insert(IpNet::from(address.addr()), Protection::OwnAddress);
    }
    facts.gateways.iter().for_each(|address| allow.insert(IpNet::from(*address), Protection::Gateway));
    facts.resolvers.iter().for_each(|address| allow.insert(IpNet::from(*address), Protection::Resolver));
    let mut protect = |addresses: Vec<IpAddr>, protection| {
        addresses.into_iter().for_each(|address| allow.insert(IpNet::from(address), protection));
    };
    protect(LeaseFiles::default().read(), Protection::DhcpServer);
    protect(SessionFiles::default().read(), Protection::Session);
    allowed.iter().for_each(|(network, why)| allow.insert(*network, *why));

    let mut host = Host::new(Local::Addresses(facts.addresses.iter().map(|(_, address)| address.addr()).collect()));
    host.allow = allow;
    host.networks = facts.addresses.iter().map(|(_, address)| address.trunc()).collect();
    host.loopback = facts.interfaces.iter().filter(|one| one.loopback).map(|one| one.index).collect();
    host.interfaces = named(config, facts);
    host.bridge_ports = facts.interfaces.iter().filter_map(|one| Some((one.index, one.bridge?))).collect();
    host.ephemeral = ephemeral();
    for listener in listeners {
        let of = if listener.protocol == Protocol::Tcp { &mut host.tcp } else { &mut host.udp };
        open(of, listener);
    }
    host
}

/// Nobody else can listen on a port that a decoy holds on every address.
fn is_decoy(decoys: &DecoyPorts, listener: &Listener) -> bool {
    match listener.protocol {
        Protocol::Tcp => decoys.tcp.contains(listener.port),
        Protocol::Udp => decoys.udp.contains(listener.port),
    }
}

fn open(listeners: &mut Listeners, listener: &Listener) {
    let port = listener.port;
    if matches!(listener.bound, Bound::AnyV4 | Bound::Any) {
        listeners.insert_any_v4(port);
    }
    match listener.bound {
        Bound::AnyV6 | Bound::Any => listeners.insert_any_v6(port),
        Bound::One(address) => listeners.insert_at(address, port),
        Bound::AnyV4 => {}
    }
}

/// Indexes of the interfaces that the settings name. One that has gone gives none, and is there again when it comes back
/// under its name; where all have gone, an index that no interface has keeps the others out.
fn named(config: &Config, facts: &HostFacts) -> Vec<u32> {
    let known = facts.interfaces.iter().filter(|one| config.interfaces.contains(&one.name));
    let mut indexes: Vec<u32> = known.map(|one| one.index).collect();
    // What comes to a bridge comes in at one of its ports, and may be dropped there.
    let ports = facts.interfaces.iter().filter(|one| one.bridge.is_some_and(|bridge| indexes.contains(&bridge)));
    let ports: Vec<u32> = ports.map(|one| one.index).filter(|index| !indexes.contains(index)).collect();
    indexes.extend(ports);
    if indexes.is_empty() && !config.interfaces.is_empty() { vec![u32::MAX >> 1] } else { indexes }
}

/// The packets that are worth looking at on such a host. What listens on every address is left out: nothing sent there
/// is ever evidence, and it may be a busy service.
pub(crate) fn wanted(config: &Config, host: &Host) -> Wanted {
    let settings = super::settings(config);
    Wanted {
        tcp: settings.tcp.ports.without(&host.tcp.everywhere()),
        udp: settings.udp.ports.without(&host.udp.everywhere()),
        ephemeral: host.ephemeral.clone(),
        sctp: settings.sctp,
        icmp: settings.icmp,
        interfaces: host.interfaces.clone(),
        without: host.loopback.clone(),
    }
}

/// The ports that the kernel gives to connections of this host; Linux's default where it does not say.
fn ephemeral() -> PortSet {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first..=last).collect(),
        _ => (32_768..=60_999).collect(),
    }
}
