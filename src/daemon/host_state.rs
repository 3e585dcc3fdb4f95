//! Maintains the snapshot of this host from its readings, the allow-list, and the daemon's memory of its services.
//! Changes are sent to the sensor as a new snapshot, and a new capture if the filter changes.

use std::collections::HashSet;
use std::mem::{replace, take};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::allow_sources::AllowSources;
use super::allowances::now;
use super::error::DaemonError;
use super::host_memory::{HostMemory, HostRecords, Served, ServiceState};
use super::host_readings::{Change, HostReadings};
use super::host_snapshot::HostSnapshot;
use super::sensor_thread::SensorHandle;
use crate::capture::decoy::Decoys;
use crate::capture::filter::Wanted;
use crate::clock::boot_time;
use crate::config::Config;
use crate::engine::{Engine, Host, Settings};
use crate::events::channel::Sender;
use crate::events::event::EventKind;
use crate::host::service_ports::{PortRanges, listening};
use crate::host::snapshot::{
    ephemeral_ports, first_unprivileged_port, missing_interfaces, snapshot, watched_interfaces,
};
use crate::ledger::{Allowance, Recorder};
use crate::sensor::{SensorCommand, SensorMessage};
use crate::types::{Protocol, update};

pub(super) struct HostState {
    interfaces: Vec<String>,
    settings: Settings,
    readings: HostReadings,
    /// The error of the last report.
    reported: Option<String>,
    /// `net.ipv4.ip_unprivileged_port_start` at the last tick.
    first_unprivileged: u16,
    allow: AllowSources,
    memory: HostMemory,
    snapshot: HostSnapshot,
    /// True if a change is not part of the snapshot yet.
    stale: bool,
    sensor: SensorHandle,
    events: Sender,
}

impl HostState {
    pub(super) async fn open(config: &Config, sensor: SensorHandle, events: Sender) -> Result<Self, DaemonError> {
        let mut readings = HostReadings::open(events.clone()).await?;
        missing_interfaces(&config.interfaces, readings.facts()).next().map_or(Ok(()), Err)?;
        let allow = AllowSources::open(&config.allow)?;
        let settings = Settings::from_config(config);
        readings.list_listeners().await?;
        let host = snapshot(&config.interfaces, &allow.networks(), readings.facts(), readings.listeners());
        Ok(Self {
            interfaces: config.interfaces.clone(),
            snapshot: HostSnapshot::new(&settings, host),
            settings,
            readings,
            reported: None,
            first_unprivileged: first_unprivileged_port(),
            allow,
            memory: HostMemory::default(),
            stale: false,
            sensor,
            events,
        })
    }

    /// Restores what the ledger keeps about this host, also for `engine`. Later changes go to `recorder`. The
    /// snapshot contains it after [`HostState::renew`].
    pub(super) fn restore(
        &mut self,
        records: HostRecords,
        allowances: Vec<Allowance>,
        recorder: Recorder,
        engine: &mut Engine,
    ) {
        self.memory.restore(records, recorder, engine);
        for allowance in allowances {
            // The ledger stores no more than were accepted.
            let _ = self.allow.overrides.add(allowance, now());
        }
    }

    pub(super) fn host(&self) -> Arc<Host> {
        Arc::clone(&self.snapshot.host)
    }

    /// What the capture has to see.
    pub(super) fn wanted(&self) -> &Wanted {
        &self.snapshot.wanted
    }

    /// The sources of allowed addresses, for display.
    pub(super) fn allow_sources(&self) -> &AllowSources {
        &self.allow
    }

    /// The remembered services, sorted.
    pub(super) fn services(&self) -> Vec<ServiceState> {
        self.memory.services.states()
    }

    /// The ports of this host's services, if a service was newly remembered, started to listen, or is served again
    /// since the last call.
    pub(super) fn take_served_again(&mut self) -> Option<Served> {
        if !take(&mut self.memory.served_again) {
            return None;
        }
        let host = &self.snapshot.host;
        let ranges = PortRanges { ephemeral: &host.ephemeral, first_unprivileged: self.first_unprivileged };
        let listening = listening(self.readings.listeners(), ranges);
        Some(Served { remembered: host.services.clone(), listening })
    }

    /// Restricts `decoys` to the addresses on which connections count, and no longer counts their sockets as listeners.
    pub(super) fn exclude_decoys(&mut self, decoys: &mut Decoys) {
        decoys.watch_only(self.addresses());
        self.readings.exclude(decoys.ports().clone());
    }

    /// Allows a network.
    ///
    /// # Errors
    /// There are too many entries, or the snapshot cannot be renewed.
    pub(super) async fn allow(&mut self, allowance: Allowance) -> Result<(), String> {
        self.allow.overrides.add(allowance, now())?;
        self.renew_waiting().await.map_err(|error| error.to_string())
    }

    /// Revokes the allowance of exactly `network`; false if there is none.
    pub(super) async fn disallow(&mut self, network: IpNet) -> Result<bool, DaemonError> {
        let is_revoked = self.allow.overrides.remove(network);
        if is_revoked {
            self.renew_waiting().await?;
        }
        Ok(is_revoked)
    }

    /// Removes the protection of `network` for `span`, or without a limit.
    ///
    /// # Errors
    /// As for [`HostState::allow`].
    pub(super) async fn force(&mut self, network: IpNet, span: Option<Duration>) -> Result<(), String> {
        self.allow.overrides.force(network, span, now())?;
        self.renew().await.map_err(|error| error.to_string())
    }

    /// Protects `network` again, or with `None` all networks that were forced.
    pub(super) async fn unforce(&mut self, network: Option<IpNet>) -> Result<(), DaemonError> {
        match self.allow.overrides.unforce(network) {
            true => self.renew().await,
            false => Ok(()),
        }
    }

    /// Forgets the services on `port`; returns their number. A running service is remembered again when it has lasted.
    pub(super) async fn forget_service(&mut self, port: u16, protocol: Option<Protocol>) -> Result<usize, DaemonError> {
        let forgotten = self.memory.services.forget(port, protocol);
        self.renew().await?;
        Ok(forgotten)
    }

    /// Applies another configuration, and sends its engine settings and the new snapshot to the sensor.
    ///
    /// # Errors
    /// An interface is missing, a file of the allow-list cannot be read, or the new capture cannot be opened. The old
    /// configuration then stays in force.
    pub(super) async fn reconfigure(&mut self, config: &Config) -> Result<(), DaemonError> {
        missing_interfaces(&config.interfaces, self.readings.facts()).next().map_or(Ok(()), Err)?;
        let replaced = (
            self.allow.reconfigure(&config.allow)?,
            replace(&mut self.interfaces, config.interfaces.clone()),
            replace(&mut self.settings, Settings::from_config(config)),
        );
        let messages = match self.refresh().await {
            Ok(messages) => messages,
            Err(error) => {
                let (allow, interfaces, settings) = replaced;
                self.allow.restore(allow);
                (self.interfaces, self.settings) = (interfaces, settings);
                return Err(error);
            }
        };
        self.readings.request_network();
        // The settings before the snapshot: a newly monitored port must not be judged by the old snapshot.
        self.sensor.send(SensorCommand::Settings(Box::new(self.settings.clone())));
        self.sensor.send_all(messages);
        Ok(())
    }

    /// Creates the snapshot anew and sends it to the sensor.
    pub(super) async fn renew(&mut self) -> Result<(), DaemonError> {
        let messages = self.refresh().await?;
        self.sensor.send_all(messages);
        Ok(())
    }

    /// As [`HostState::renew`]; waits while the sensor's inbox is full.
    async fn renew_waiting(&mut self) -> Result<(), DaemonError> {
        for message in self.refresh().await? {
            self.sensor.send_waiting(message).await;
        }
        Ok(())
    }

    /// The own addresses on which connections count; `None` (all) if no interface is configured.
    fn addresses(&self) -> Option<HashSet<IpAddr>> {
        let watched = watched_interfaces(&self.interfaces, self.readings.facts());
        let on_watched = self.readings.facts().addresses.iter().filter(|(index, _)| watched.contains(index));
        (!self.interfaces.is_empty()).then(|| on_watched.map(|(_, address)| address.addr()).collect())
    }

    /// Waits until addresses, routes or interfaces change, a name has been looked up, or sockets have been listed, and
    /// informs the sensor. Cancel safe.
    pub(super) async fn changed(&mut self) -> Result<(), DaemonError> {
        // Recorded in `stale`, because the caller may cancel before everything is read; then the next tick continues.
        tokio::select! {
            change = self.readings.changed() => {
                let Change { is_new, connections } = change?;
                self.stale |= is_new;
                if let Some(connections) = connections {
                    self.memory.observe_connections(boot_time(), &connections, &self.snapshot.host);
                }
            }
            changed = self.allow.name_answered() => self.stale |= changed,
        }
        self.update().await
    }

    /// Returns an event if reading the state of this host begins to fail, fails with another error, or works again;
    /// otherwise `None`, because each tick retries.
    pub(super) fn report(&mut self, result: Result<(), DaemonError>) -> Option<EventKind> {
        // If both reads fail, the same error is reported each time, so that the two do not alternate in the log.
        let error = self.readings.unread.clone().or_else(|| result.err().map(|error| error.to_string()));
        update(&mut self.reported, error).then(|| match &self.reported {
            Some(error) => EventKind::Error(format!("{error}; retrying, the last known state is used")),
            None => EventKind::Note("this host's addresses, routes and services can be read again".to_owned()),
        })
    }

    /// Reads changed files again, and requests new readings from the threads.
    pub(super) async fn tick(&mut self) -> Result<(), DaemonError> {
        let (resolvers_changed, peers_changed) = self.readings.poll_files();
        let allow_changed = self.allow.tick(Instant::now(), resolvers_changed);
        let reads_all = self.readings.tick(resolvers_changed);
        let (now, host) = (boot_time(), &self.snapshot.host);
        let ranges = PortRanges { ephemeral: &host.ephemeral, first_unprivileged: self.first_unprivileged };
        let services_changed = self.memory.observe(now, SystemTime::now(), self.readings.listeners(), ranges);
        self.first_unprivileged = first_unprivileged_port();
        let ports_moved = ephemeral_ports() != host.ephemeral;
        self.stale |= peers_changed || allow_changed || services_changed || ports_moved || reads_all;
        let listeners_changed = self.readings.take_listeners_changed();
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
        self.allow.messages.drain(..).for_each(|kind| self.events.emit(kind));
        Ok(())
    }

    /// Creates the snapshot anew; returns the messages for the sensor.
    async fn refresh(&mut self) -> Result<Vec<SensorMessage>, DaemonError> {
        let networks = self.allow.networks();
        let mut host = snapshot(&self.interfaces, &networks, self.readings.facts(), self.readings.listeners());
        self.allow.overrides.forced().for_each(|network| host.allow.except(network));
        host.services = self.memory.services.memory();
        host.find_related();
        let live = self.snapshot.replace(&self.settings, host).await?;
        self.stale = false;
        let mut messages = vec![SensorCommand::Host(self.host()).into(), SensorMessage::Addresses(self.addresses())];
        messages.extend(live.map(SensorMessage::Capture));
        Ok(messages)
    }

    /// Adapts the size of the capture's ring buffer to the packet rate.
    pub(super) async fn resize_ring(&mut self) {
        self.snapshot.resize_ring(&self.sensor, &self.events).await;
    }

    /// Enlarges the capture's ring buffer, because the sensor reports a high packet rate.
    pub(super) async fn follow_flood(&mut self) {
        self.snapshot.flood_begins();
        self.resize_ring().await;
    }

    /// Writes the memory of this host to the ledger at the end of the run.
    pub(super) fn write_memory(&mut self) {
        self.memory.write(boot_time(), SystemTime::now());
    }
}
