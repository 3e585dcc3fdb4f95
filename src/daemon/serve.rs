//! Starts the daemon: opens every component with the configuration, restores the state of earlier runs, and starts the
//! sensor thread. Then runs the event loop, and shuts everything down.

use std::mem::take;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use tokio::sync::oneshot;

use super::backends::{self, OpenBackends, UsedBackends};
use super::ban_recorder::{BanRecorder, EarlierBans, EarlierRuns, Reading};
use super::command_helper::CommandHelper;
use super::components::Components;
use super::config_source::{ConfigSource, Reread, warnings};
use super::decoys::{self, FirewallWatch};
use super::error::DaemonError;
use super::event_loop::{EventLoop, SensorEnd, catch_signals};
use super::event_sink::{EventSink, LostEvents};
use super::file_helper::RootFiles;
use super::fleet::Fleet;
use super::guest_ports::GuestPorts;
use super::host_state::HostState;
use super::log_writer::LogWriter;
use super::notifier::Notifier;
use super::paths::DaemonPaths;
use super::reconciler::{self, Reconciler};
use super::sensor_thread::{SensorHandle, SensorThread};
use super::settling::MAX_SETTLING;
use super::startup_reconcile::StartupReconcile;
use super::systemd::Systemd;
use super::table_identity::{FoundTable, TableIdentity, TableOrigin, is_loaded};
use super::table_monitor::{BulkChanges, TableMonitor};
use super::trial::Trial;
use super::unfounded_bans::UnfoundedBans;
use crate::capture::decoy::{DecoyError, DecoyPorts, Decoys, SharedListener};
use crate::capture::live::{Live, Ring};
use crate::config::Config;
use crate::control::fleet_server::FleetServer;
use crate::control::server::{BoundSocket, ControlError, Server};
use crate::enforce::file_helper::FileHelper;
use crate::enforce::nft::{DecoyRules, FleetSets, RulesetSpec, Table};
use crate::enforce::slow_backends::SlowBackends;
use crate::enforce::{ExemptPrefixes, Helpers, implementation};
use crate::engine::{Engine, HashKey, Settings};
use crate::events::channel::{self, Sender};
use crate::events::event::EventKind;
use crate::host::boot;
use crate::ledger::{self, Recorder};
use crate::metrics::http::Scrapes;
use crate::netlink::routes::monitor::RouteMonitor;
use crate::netlink::socket::{Socket, SocketError};
use crate::sandbox::{InstanceLock, Sandbox};
use crate::sensor::{Blocker, KernelPorts, Sensor, SensorMessage};
use crate::types::{Span, Timestamp};

/// Maximum number of events that wait for the log.
const MAX_EVENTS: usize = 8192;

/// Timeout for the end of the sensor thread.
const SENSOR_TIMEOUT: Duration = Duration::from_millis(800);

/// Resources that must be acquired before privileges are dropped.
pub(super) struct Privileged {
    pub(super) instance_lock: InstanceLock,
    pub(super) sandbox: Sandbox,
    pub(super) sensor_thread: SensorThread,
    pub(super) command_helper: Option<CommandHelper>,
    pub(super) root_files: RootFiles,
    pub(super) control: Result<BoundSocket, ControlError>,
    /// The socket for the fleet process, whose user is `fleet_user`.
    pub(super) fleet: Option<Result<BoundSocket, ControlError>>,
    pub(super) fleet_user: Option<u32>,
    pub(super) used: UsedBackends,
    pub(super) firewall_watch: FirewallWatch,
    /// The listener of all decoys, if they share one.
    pub(super) shared: Option<Result<SharedListener, Errno>>,
}

pub(super) async fn serve(
    config: Config,
    paths: DaemonPaths,
    privileged: Privileged,
    confirm: Option<Duration>,
    reread: Reread,
) -> Result<(), DaemonError> {
    let Privileged { instance_lock, sandbox, command_helper, root_files, used, firewall_watch, .. } = privileged;
    let signals = catch_signals()?;
    let reading = Reading::start(&paths.state_dir, &config).map_err(DaemonError::system("start a thread"))?;
    let (events, received) = channel::bounded(MAX_EVENTS);
    let sensor = SensorHandle::new()?;
    let host_state = HostState::open(&config, sensor.clone(), events.clone()).await?;
    let log = LogWriter::new(&config, events.clone(), root_files.json_file.clone());
    let mut start =
        Start { config, paths, sandbox, command_helper, used, firewall_watch, events, sensor, host_state, log };
    start.log_warnings(&instance_lock, &root_files);
    let capture = start.open_capture(privileged.shared)?;
    let scrapes = match start.config.metrics.listen {
        Some(address) => Some(Scrapes::listen(address).await.map_err(|error| DaemonError::Metrics { address, error })?),
        None => None,
    };
    let mut backends = start.open_backends(capture.decoy_rules, confirm.is_some(), root_files.hosts_deny)?;
    let refused = |error| EventKind::Error(format!("{error}; the daemon runs without a control socket"));
    let control = privileged.control.and_then(Server::serve).map_err(|error| start.log.emit(refused(error))).ok();
    let mut engine = Engine::new(Settings::from_config(&start.config), hash_key()?);
    let (ban_recorder, mut earlier_runs, messages) =
        BanRecorder::open(reading, &start.events, &backends.leftovers, &start.used.backends);
    let kernel_table = backends.blocker.nft().map(|backend| &mut backend.table);
    let table_monitor = TableMonitor::open(kernel_table, ban_recorder.recorder())?;
    let trial = Trial::new(&start.config, confirm, earlier_runs.trial, start.sensor.clone());
    messages.into_iter().for_each(|kind| start.log.emit(kind));
    start.restore(&mut earlier_runs, ban_recorder.recorder(), &mut engine, &mut backends.blocker).await?;
    let mut fleet = match privileged.fleet {
        Some(bound) => start.open_fleet(bound, privileged.fleet_user, &mut backends.blocker, &trial)?,
        None => None,
    };
    if let Some(fleet) = &mut fleet {
        fleet.restore(ban_recorder.recorder(), &earlier_runs.bans.remembered, &earlier_runs.fleet_lifts).await;
    }
    start.reconcile(earlier_runs.bans, earlier_runs.table.as_deref(), ban_recorder.recorder(), &mut backends)?;
    let uses_nft = backends.blocker.nft().is_some();
    let table_identity = TableIdentity::new(uses_nft.then(Socket::open).transpose()?, boot::boot_id());
    let sensor_loop = start.make_sensor(capture, engine, backends.blocker, &trial)?;
    let (ended, mut end) = oneshot::channel();
    if let Some(table) = backends.new_table {
        table.keep();
    }
    // The receiver is gone only when the event loop has ended.
    let thread = privileged.sensor_thread.run(move || drop(ended.send(sensor_loop.run())));
    start.follow_kernel(&table_monitor.bulk, backends.route_port_id)?;

    let Start { config, paths, sandbox, mut command_helper, firewall_watch, events, sensor, host_state, log, .. } =
        start;
    let notifications = command_helper.as_mut().and_then(|helper| helper.notifications.take());
    let notifier = Notifier::new(&config.notify, notifications, SystemTime::now());
    let sink =
        EventSink { ban_recorder, log, notifier, control, events, last_event: None, lost: LostEvents::default() };
    let mut event_loop = EventLoop {
        systemd: Systemd::new(Arc::clone(&sensor.metrics)),
        components: Components {
            config: ConfigSource { current: config, path: paths.config, reread },
            trial,
            state_dir: paths.state_dir,
            uses_nft,
            host_state,
            sensor,
            fleet,
            sink,
            sandbox,
            command_helper,
            firewall_watch,
            started: (SystemTime::now(), Instant::now()),
        },
        table_monitor,
        received,
        scrapes,
        instance_lock,
        unfounded_bans: UnfoundedBans::default(),
        guest_ports: GuestPorts::default(),
        table_identity,
    };
    let result = event_loop.run(signals, &mut end).await;
    shut_down(event_loop, result.is_ok(), (thread, end), backends.slow_backends).await;
    result
}

/// Writes what the next run needs, ends the sensor if it `is_running`, and closes everything else.
async fn shut_down(
    mut event_loop: EventLoop,
    is_running: bool,
    (thread, mut end): (JoinHandle<()>, SensorEnd),
    slow_backends: Option<SlowBackends>,
) {
    let components = &mut event_loop.components;
    components.host_state.write_memory();
    if let Some(fleet) = &mut components.fleet {
        fleet.write_lifts(true);
    }
    if is_running {
        components.sensor.send(SensorMessage::Stop);
        if tokio::time::timeout(SENSOR_TIMEOUT, &mut end).await.is_ok() {
            let _ = thread.join();
        }
    }
    event_loop.close(slow_backends).await;
}

/// What the steps of the start share.
struct Start {
    config: Config,
    paths: DaemonPaths,
    sandbox: Sandbox,
    command_helper: Option<CommandHelper>,
    used: UsedBackends,
    firewall_watch: FirewallWatch,
    events: Sender,
    sensor: SensorHandle,
    host_state: HostState,
    log: LogWriter,
}

/// What the sensor reads from.
struct OpenCapture {
    decoys: Decoys,
    /// The rules that redirect to the listener for all ports, if there is one.
    decoy_rules: Option<DecoyRules>,
    kernel: KernelPorts,
    /// Why the kernel's connection tracking cannot be read.
    kernel_failure: Option<SocketError>,
    live: Live,
}

impl Start {
    fn log_warnings(&mut self, instance_lock: &InstanceLock, root_files: &RootFiles) {
        let helper_warnings = self.command_helper.iter().flat_map(|helper| &helper.warnings);
        let notes =
            instance_lock.doubt.iter().chain(&self.sandbox.warnings).chain(helper_warnings).chain(&root_files.warnings);
        notes.for_each(|text| self.log.emit(EventKind::Note(text.clone())));
        for warning in warnings(&self.config, &self.paths.config, &self.host_state.host()) {
            self.log.emit(EventKind::Note(format!("warning: {warning}")));
        }
    }

    /// Opens the capture and the decoys. A missing capability or a busy port is found before anything is changed.
    /// Connections to a decoy wait for the sensor from now on.
    fn open_capture(&mut self, shared: Option<Result<SharedListener, Errno>>) -> Result<OpenCapture, DaemonError> {
        let (shared, decoy_rules) = decoys::rules(shared, &mut self.firewall_watch, &mut self.log);
        let decoys = self.open_decoys(shared)?;
        let (kernel, kernel_failure) = KernelPorts::open()?;
        let live = Live::open(&self.host_state.wanted().to_filter(), Ring::Usual)?;
        Ok(OpenCapture { decoys, decoy_rules, kernel, kernel_failure, live })
    }

    fn open_decoys(&self, shared: Option<SharedListener>) -> Result<Decoys, DecoyError> {
        let ports = DecoyPorts::from_config(&self.config);
        let shared = shared.map(|listener| (listener, self.host_state.host().tcp.anywhere()));
        Decoys::open(&ports, shared, &self.config.tcp.port_banner, self.firewall_watch.cookies())
    }

    fn open_backends(
        &mut self,
        decoys: Option<DecoyRules>,
        on_trial: bool,
        hosts_deny: Option<FileHelper>,
    ) -> Result<OpenBackends, DaemonError> {
        let mut spec = RulesetSpec { decoys, ..RulesetSpec::from_config(&self.config) };
        if on_trial {
            spec = spec.without_hold();
        }
        let commands = self.command_helper.as_ref().map(|helper| helper.helper_client.clone());
        let mut backends = backends::open(
            &self.config,
            &self.host_state.host(),
            &Helpers { commands, hosts_deny },
            &self.used,
            spec,
            &self.events,
            &self.sensor,
        )?;
        take(&mut backends.messages).into_iter().for_each(|kind| self.log.emit(kind));
        Ok(backends)
    }

    /// Restores the state of earlier runs, and protects the allowed networks before a ban of the ledger is restored.
    async fn restore(
        &mut self,
        earlier_runs: &mut EarlierRuns,
        recorder: Recorder,
        engine: &mut Engine,
        blocker: &mut Blocker,
    ) -> Result<(), DaemonError> {
        if earlier_runs.host.booted {
            let settles = "this host has just booted: until its services have started, no source is banned";
            self.log.emit(EventKind::Note(format!("{settles}, for at most {} s", MAX_SETTLING.as_secs())));
        }
        let allowances = take(&mut earlier_runs.allowances);
        let has_allowances = !allowances.is_empty();
        self.host_state.restore(take(&mut earlier_runs.host), allowances, recorder, engine);
        // Before the first packet, so that returning sources are recognised from the start.
        earlier_runs.strikes.iter().for_each(|strikes| engine.remember(Timestamp::default(), strikes));
        engine.restore_bans(Timestamp::default(), take(&mut earlier_runs.recent));
        self.host_state.renew().await?;
        if has_allowances {
            backends::protect(blocker, &self.host_state.host()).map_err(DaemonError::Protect)?;
        }
        for backend in self.used.ending.iter() {
            if let Some(file) = implementation(backend).file(&self.config) {
                self.log.emit(EventKind::Note(format!(
                    "lines of earlier bans are removed from {}, because \"{}\" is not in block.method",
                    file.display(),
                    backend.name()
                )));
            }
        }
        Ok(())
    }

    /// Opens the socket for the fleet process, whose user is `user`; `None` if that fails.
    fn open_fleet(
        &mut self,
        bound: Result<BoundSocket, ControlError>,
        user: Option<u32>,
        blocker: &mut Blocker,
        trial: &Trial,
    ) -> Result<Option<Fleet>, DaemonError> {
        let users: Vec<u32> = [0, self.sandbox.state.uid].into_iter().chain(user).collect();
        match bound.and_then(|bound| FleetServer::serve(bound, &users)) {
            Ok(server) => {
                // Without a backend, scans are only logged and the sets do not exist.
                let sets = blocker.nft().map_or_else(Table::open, |backend| backend.table.try_clone())?;
                let (host, enforces) = (self.host_state.host(), trial.only_logs(&self.config).is_none());
                Ok(Some(Fleet::new(&self.config.fleet, server, FleetSets(sets), host, enforces)))
            }
            Err(error) => {
                self.log.emit(EventKind::Error(format!("{error}; the daemon runs without the fleet")));
                Ok(None)
            }
        }
    }

    /// Starts to restore `bans`. `last_table` is the identity of the kernel's table when the daemon last ran.
    fn reconcile(
        &self,
        bans: EarlierBans,
        last_table: Option<&str>,
        recorder: Recorder,
        backends: &mut OpenBackends,
    ) -> Result<(), DaemonError> {
        if self.used.backends.is_empty() {
            return Ok(());
        }
        let OpenBackends { blocker, slow_backends, new_table, table_found, trap_banned, .. } = backends;
        let table_origin = match *table_found {
            found if is_loaded(last_table, boot::boot_id().as_deref(), found) => TableOrigin::Loaded,
            _ if new_table.is_some() => TableOrigin::Created,
            Some(FoundTable { merged: true, .. }) => TableOrigin::Merged,
            _ => TableOrigin::Unchanged,
        };
        // The commands that it sends stay in the inbox until the sensor runs.
        StartupReconcile {
            sensor: self.sensor.clone(),
            events: self.events.clone(),
            recorder,
            bans,
            used: self.used.clone(),
            exempt: ExemptPrefixes::new(self.host_state.host().allow.networks()),
            table_origin,
            trap_banned: take(trap_banned),
            marker: self.paths.state_dir.join(ledger::RESTORING),
            config: self.config.clone(),
            tasks: slow_backends.as_ref().map(SlowBackends::tasks),
            nft: blocker.nft().map(|backend| backend.try_clone()).transpose()?,
        }
        .start()
    }

    fn make_sensor(
        &mut self,
        capture: OpenCapture,
        engine: Engine,
        mut blocker: Blocker,
        trial: &Trial,
    ) -> Result<Sensor, DaemonError> {
        let OpenCapture { mut decoys, decoy_rules, kernel, kernel_failure, live } = capture;
        // A listener for all ports needs rules that redirect to it.
        if decoy_rules.is_some() && blocker.nft().is_none_or(|backend| backend.spec().decoys.is_none()) {
            decoys = self.open_decoys(None)?;
        }
        decoys::announce(&decoys, &mut self.log);
        self.host_state.exclude_decoys(&mut decoys);
        if let Some(error) = kernel_failure {
            self.log.emit(EventKind::Note(format!(
                "cannot read the kernel's connection tracking: {error}; a port that is forwarded by destination NAT \
                 counts as closed until it has answered the same source"
            )));
        }
        let (host, sensor) = (self.host_state.host(), self.sensor.clone());
        let events = self.events.clone();
        let mut sensor_loop =
            Sensor::new(live, decoys, engine, host, kernel, blocker, events, sensor.inbox, sensor.metrics);
        if let Some(left) = trial.log_only_left() {
            sensor_loop.start_trial();
            self.log.emit(EventKind::Note(format!(
                "the trial continues: scans are only logged for {} more; `portsentry trial --end` resumes blocking",
                Span(left)
            )));
        }
        Ok(sensor_loop)
    }

    /// Starts to restore the bans that the kernel loses. `bulk` tells when others last made many changes of the table
    /// at once; `route_port_id` is the netlink port through which the route backend makes its own changes.
    fn follow_kernel(&self, bulk: &BulkChanges, route_port_id: Option<u32>) -> Result<(), DaemonError> {
        if self.used.backends.iter().any(|backend| !backend.is_slow()) {
            tokio::spawn(Reconciler::open(self.sensor.clone(), bulk.clone(), self.config.clone())?.run());
        }
        if let Some(port) = route_port_id {
            let monitor = RouteMonitor::open(port).map_err(DaemonError::system("follow the kernel's routes"))?;
            tokio::spawn(reconciler::follow_routes(self.sensor.clone(), monitor));
        }
        Ok(())
    }
}

/// A hash key that is unpredictable to sources of packets.
fn hash_key() -> Result<HashKey, DaemonError> {
    let random = || getrandom::u64().map_err(DaemonError::system("get random bytes"));
    Ok(HashKey(random()?, random()?))
}
