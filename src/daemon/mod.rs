//! Runs the daemon: opens every component with the configuration, starts the sensor thread, and passes the rest to the
//! event loop, which runs on tokio on one thread.

mod allow_names;
mod allow_sources;
mod allowances;
mod backends;
pub mod background;
mod ban_recorder;
mod command_helper;
mod config_source;
mod control_handler;
mod decoys;
mod error;
mod event_loop;
mod event_sink;
mod file_helper;
mod fleet;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guest_ports;
pub mod helper;
pub mod helper_process;
pub mod host_memory;
mod host_state;
mod ignore_files;
mod known_peers;
mod listers;
mod log_writer;
mod notifier;
mod optional;
mod recent_listeners;
mod reconciler;
mod reverse_dns;
mod ring_size;
mod sandbox_policy;
mod sensor_thread;
mod service_tracker;
mod settling;
mod startup_reconcile;
mod systemd;
mod table_identity;
mod table_monitor;
mod trial;
mod unfounded_bans;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use tokio::sync::oneshot;

use crate::capture::decoy::{DecoyPorts, Decoys, SharedListener};
use crate::capture::live::{Live, Ring};
use crate::clock::boot_time;
use crate::config::{Config, ConfigErrors, LogTarget};
use crate::control::fleet_server::FleetServer;
use crate::control::server::{Access, BoundSocket, ControlError, Server};
use crate::enforce::ExemptPrefixes;
use crate::enforce::nft::{FleetSets, Table};
use crate::enforce::slow_backends::SlowBackends;
use crate::engine::{Engine, HashKey, Settings};
use crate::events::channel;
use crate::events::event::EventKind;
use crate::events::log::{self, LogThread};
use crate::ledger;
use crate::metrics::http::Scrapes;
use crate::netlink::routes::monitor::RouteMonitor;
use crate::netlink::socket::Socket;
use crate::panic_guard;
use crate::sandbox::{self, InstanceLock, Sandbox, check_folders, closed_folders};
use crate::sensor::{KernelPorts, Sensor, SensorCommand};
use crate::types::{BanTarget, Span, Timestamp, shared64};
use backends::{OpenBackends, UsedBackends};
use ban_recorder::{BanRecorder, Memory, Reading};
use command_helper::CommandHelper;
use config_source::ConfigSource;
use control_handler::ControlHandler;
use decoys::FirewallWatch;
use event_loop::{EventLoop, catch_signals};
use event_sink::EventSink;
use file_helper::RootFiles;
use fleet::Fleet;
use guest_ports::GuestPorts;
use host_state::HostState;
use log_writer::LogWriter;
use notifier::Notifier;
use reconciler::Reconciler;
use sensor_thread::{SensorHandle, SensorThread};
use settling::{MAX_SETTLING, Settling};
use startup_reconcile::StartupReconcile;
use systemd::Systemd;
use table_identity::TableIdentity;
use table_monitor::TableMonitor;
use trial::Trial;
use unfounded_bans::UnfoundedBans;

pub use error::DaemonError;

/// Locations of files and sockets.
#[derive(Clone, Debug)]
pub struct Places {
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    /// The configuration file, if it exists.
    pub config: PathBuf,
}

/// Reads the configuration again, including command-line flags.
pub type Reread = Box<dyn Fn() -> Result<Config, ConfigErrors> + Send>;

/// Maximum number of events that wait for the log.
const MAX_EVENTS: usize = 8192;

/// Timeout for the end of the sensor thread.
const SENSOR_TIMEOUT: Duration = Duration::from_millis(800);

/// Resources that must be acquired before privileges are dropped.
struct Privileged {
    instance_lock: InstanceLock,
    sandbox: Sandbox,
    sensor_thread: SensorThread,
    command_helper: Option<CommandHelper>,
    root_files: RootFiles,
    control: Result<BoundSocket, ControlError>,
    /// The socket for the fleet process, whose user is `fleet_user`.
    fleet: Option<Result<BoundSocket, ControlError>>,
    fleet_user: Option<u32>,
    used: UsedBackends,
    firewall_watch: FirewallWatch,
    /// The listener of all decoys, if they share one.
    shared: Option<Result<SharedListener, Errno>>,
}

/// The user of the fleet process.
const FLEET_USER: &str = "portsentry-fleet";

/// Runs until SIGINT or SIGTERM. With `confirm`, blocking ends after that time unless an operator confirms. If
/// `sandboxed`, privileges are dropped permanently.
pub fn run(
    config: Config,
    places: Places,
    (confirm, sandboxed): (Option<Duration>, bool),
    reread: Reread,
) -> Result<(), DaemonError> {
    panic_guard::tell_panics(log::error);
    shared64::set_nat64(&config.nat64);
    config.check_ownership(&places.config)?;
    let instance_lock = InstanceLock::claim()?;
    // Without blocking there is nothing to confirm.
    let confirm = confirm.filter(|_| config.blocks());
    let earlier_bans = !config.blocks() && backends::have_leftovers(&config, &places.state_dir);
    let mut used = UsedBackends::new(&config, earlier_bans, backends::has_entries)?;
    let mut policy = sandbox_policy::of_daemon(&config, &places, &used);
    if sandboxed {
        check_folders(&policy)?;
    }
    // While programs can still be started.
    let command_helper = match used.runs_commands || config.notifies() {
        true => Some(CommandHelper::start(&places.config, sandboxed)?),
        false => None,
    };
    let closed = if sandboxed { closed_folders(&policy) } else { Vec::new() };
    let root_files = RootFiles::start(&config, &places.config, &closed, used.entry_file.as_mut())?;
    policy.write.retain(|folder| !closed.contains(folder));
    let firewall_watch = FirewallWatch::open(&config);
    let shared = config.shares_decoys().then(SharedListener::open);
    // Before a second thread exists. Only root may be able to create the socket in its directory.
    let fleet_user = config.fleet.is_joined().then(|| sandbox::user_id(FLEET_USER)).flatten();
    let bind = || {
        let fleet = config.fleet.is_joined().then(|| BoundSocket::open(&config.fleet.socket, Access::All));
        (BoundSocket::open(&places.socket, Access::Group), fleet)
    };
    let mut sockets = None;
    let mut sandbox = match sandboxed {
        true => Sandbox::enter(&policy, || sockets = Some(bind())),
        false => Sandbox::without(&policy),
    };
    let (control, fleet) = sockets.unwrap_or_else(bind);
    let sensor_thread = SensorThread::start(sandboxed)?;
    if sandboxed {
        sandbox.drop_privileges();
        sandbox.warnings.extend(sandbox_policy::own_commands(&config, used.runs_commands, &sandbox));
    }
    // One thread for blocking calls starts now, and such threads never end: while local users leave no room for another
    // thread, a call waits for an existing one. Without one it would panic.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().thread_keep_alive(Duration::MAX).build();
    let runtime = runtime.map_err(DaemonError::system("start the event loop"))?;
    drop(runtime.spawn_blocking(|| ()));
    let privileged = Privileged {
        instance_lock,
        sandbox,
        sensor_thread,
        command_helper,
        root_files,
        control,
        fleet,
        fleet_user,
        used,
        firewall_watch,
        shared,
    };
    // With `--daemon`, lines to standard error and syslog (the default there) are written directly: standard error is
    // closed once the host is monitored, so that no line may wait until then, and syslog has its own time limit.
    let is_direct = background::is_detached() && config.report.log != LogTarget::Journal;
    let log_thread = (!is_direct).then(LogThread::start).transpose().map_err(DaemonError::system("start a thread"))?;
    let result = runtime.block_on(serve(config, places, privileged, confirm, reread));
    // Neither an unanswered look-up nor an unread log may delay the shutdown.
    runtime.shutdown_background();
    log_thread.into_iter().for_each(LogThread::finish);
    result
}

async fn serve(
    config: Config,
    places: Places,
    privileged: Privileged,
    confirm: Option<Duration>,
    reread: Reread,
) -> Result<(), DaemonError> {
    let Privileged { instance_lock, sandbox, mut command_helper, root_files, used, mut firewall_watch, .. } =
        privileged;
    let signals = catch_signals()?;
    let reading = Reading::start(&places.state_dir, &config).map_err(DaemonError::system("start a thread"))?;
    let (events, received) = channel::bounded(MAX_EVENTS);
    let sensor = SensorHandle::new()?;
    let mut host_state = HostState::open(&config, sensor.clone(), events.clone()).await?;
    let mut log = LogWriter::new(&config, events.clone(), root_files.json_file.clone());
    let helper_warnings = command_helper.iter().flat_map(|helper| &helper.warnings);
    let notes = instance_lock.doubt.iter().chain(&sandbox.warnings).chain(helper_warnings).chain(&root_files.warnings);
    notes.for_each(|text| log.emit(EventKind::Note(text.clone())));
    for warning in control_handler::warnings(&config, &places.config, &host_state.host()) {
        log.emit(EventKind::Note(format!("warning: {warning}")));
    }

    // A missing capability or a busy port is found before anything is changed. Connections to a decoy wait for the
    // sensor from now on.
    let (shared, decoy_rules) = decoys::rules(privileged.shared, &mut firewall_watch, &mut log);
    let cookies = firewall_watch.cookies();
    let decoy_ports = DecoyPorts::from_config(&config);
    let shared = shared.map(|listener| (listener, host_state.host().tcp.anywhere()));
    let mut decoys = Decoys::open(&decoy_ports, shared, &config.tcp.port_banner, cookies.clone())?;
    let (kernel, kernel_failure) = KernelPorts::open()?;
    let live = Live::open(&host_state.wanted.to_filter(), Ring::Usual)?;
    let scrapes = match config.metrics.listen {
        Some(address) => Some(Scrapes::listen(address).await.map_err(|error| DaemonError::Metrics { address, error })?),
        None => None,
    };
    let helper_client =
        command_helper.as_ref().filter(|_| used.runs_commands).map(|helper| helper.helper_client.clone());
    let OpenBackends {
        mut blocker,
        slow_backends,
        new_table,
        table_found,
        trap_banned,
        leftovers,
        route_port,
        messages,
    } = backends::open(
        &config,
        &host_state.host(),
        helper_client,
        &used,
        (&events, &sensor),
        confirm.is_some(),
        decoy_rules,
    )?;
    messages.into_iter().for_each(|kind| log.emit(kind));
    let control = privileged
        .control
        .and_then(Server::serve)
        .map_err(|error| log.emit(EventKind::Error(format!("{error}; the daemon runs without a control socket"))))
        .ok();
    let mut engine = Engine::new(Settings::from_config(&config), hash_key()?);
    let (ban_recorder, memory, messages) = BanRecorder::open(reading, &events, &leftovers, &used.backends);
    let kernel_table = blocker.nft().map(|backend| &mut backend.table);
    let table_monitor = TableMonitor::open(kernel_table, ban_recorder.recorder())?;
    let Memory { mut bans, mut peers, table, booted, .. } = memory;
    // After a reboot another link may have the same index.
    let is_other_link = |target| booted && matches!(target, BanTarget::Link { .. });
    bans.remembered.retain(|one| !is_other_link(one.ban.target));
    peers.retain(|peer| !is_other_link(peer.target));
    let trial = Trial::new(&config, confirm, memory.trial, sensor.clone());
    messages.into_iter().for_each(|kind| log.emit(kind));
    host_state.memory.services.recall(memory.services, ban_recorder.recorder(), SystemTime::now());
    if booted {
        let settles = "this host has just booted: until its services have started, no source is banned";
        log.emit(EventKind::Note(format!("{settles}, for at most {} s", MAX_SETTLING.as_secs())));
        // The sensor's time begins with its start, a moment from now.
        engine.start_settling(Timestamp::at(MAX_SETTLING));
        host_state.memory.settling = Some(Settling::new(boot_time()));
    }
    let listeners = host_state.memory.recent_listeners.recall(memory.listeners, SystemTime::now());
    engine.recall_listeners(Timestamp::default(), &listeners);
    let known_peers = &mut host_state.memory.known_peers;
    known_peers.recall(peers, boot_time(), SystemTime::now());
    engine.know_peers(Timestamp::default(), &known_peers.ages(boot_time()));
    // Before the first packet, so that returning sources are recognised from the start.
    memory.strikes.iter().for_each(|strikes| engine.remember(Timestamp::default(), strikes));
    engine.recall_bans(Timestamp::default(), memory.recent);
    let has_allowances = !memory.allowances.is_empty();
    for allowance in memory.allowances {
        // The ledger stores no more than were accepted.
        let _ = host_state.allow.by_hand.add(allowance, allowances::now());
    }
    // Before a ban of the ledger is restored.
    host_state.renew().await?;
    if has_allowances {
        backends::protect(&mut blocker, &host_state.host()).map_err(DaemonError::Protect)?;
    }
    if let Some(hosts_deny) = used.file_to_clean() {
        log.emit(EventKind::Note(format!(
            "lines of earlier bans are removed from {}, because \"hosts-deny\" is not in block.method",
            hosts_deny.path().display()
        )));
    }
    let users: Vec<u32> = [0, sandbox.uid].into_iter().chain(privileged.fleet_user).collect();
    let fleet = match privileged.fleet.map(|bound| bound.and_then(|bound| FleetServer::serve(bound, &users))) {
        Some(Ok(server)) => {
            // Without a backend, scans are only logged and the sets do not exist.
            let sets = blocker.nft().map_or_else(Table::open, |backend| backend.table.try_clone())?;
            let enforces = trial.only_logs(&config).is_none();
            let mut fleet = Fleet::new(&config.fleet, server, FleetSets(sets), host_state.host(), enforces);
            fleet.recall(ban_recorder.recorder(), &bans.remembered, &memory.fleet_lifts).await;
            Some(fleet)
        }
        Some(Err(error)) => {
            log.emit(EventKind::Error(format!("{error}; the daemon runs without the fleet")));
            None
        }
        None => None,
    };
    if !used.backends.is_empty() {
        let nft = blocker.nft().map(|backend| backend.try_clone()).transpose()?;
        // The commands that it sends stay in the inbox until the sensor runs.
        StartupReconcile {
            sensor: sensor.clone(),
            events: events.clone(),
            recorder: ban_recorder.recorder(),
            has_leftovers: ban_recorder.recorder().is_some(),
            bans,
            backends: used.backends.clone(),
            exempt: ExemptPrefixes::new(host_state.host().allow.networks()),
            table_created: new_table.is_some(),
            table_loaded: table_identity::is_loaded(table.as_deref(), settling::boot_id().as_deref(), table_found),
            table_merged: table_found.is_some_and(|table| table.merged),
            trap_banned,
            marker: places.state_dir.join(ledger::RESTORING),
            config: config.clone(),
            tasks: slow_backends.as_ref().map(SlowBackends::tasks),
            removes_stale_entries: used.file_to_clean().is_some(),
            undoes_commands: used.undoes_commands,
            nft,
        }
        .start()?;
    }
    let uses_nft = blocker.nft().is_some();
    let table_identity = TableIdentity::new(uses_nft.then(Socket::open).transpose()?, settling::boot_id());
    // A listener for all ports needs rules that redirect to it.
    if decoy_rules.is_some() && blocker.nft().is_none_or(|backend| backend.spec.decoys.is_none()) {
        decoys = Decoys::open(&decoy_ports, None, &config.tcp.port_banner, cookies)?;
    }
    decoys::announce(&decoys, &mut log);
    decoys.watch_only(host_state.addresses());
    host_state.decoys = decoys.ports().clone();
    if let Some(error) = kernel_failure {
        let text = format!(
            "cannot read the kernel's connection tracking: {error}; a port that is forwarded by destination NAT \
             counts as closed until it has answered the same source"
        );
        log.emit(EventKind::Note(text));
    }
    let (host, metrics) = (host_state.host(), Arc::clone(&sensor.metrics));
    let mut sensor_loop =
        Sensor::new(live, decoys, engine, host, kernel, blocker, events.clone(), sensor.inbox.clone(), metrics);
    if let Some(left) = trial.log_only_left() {
        sensor_loop.start_trial();
        log.emit(EventKind::Note(format!(
            "the trial continues: scans are only logged for {} more; `portsentry trial --end` resumes blocking",
            Span(left)
        )));
    }
    let (ended, mut end) = oneshot::channel();
    if let Some(table) = new_table {
        table.keep();
    }
    // The receiver is gone only when the event loop has ended.
    let thread = privileged.sensor_thread.run(move || drop(ended.send(sensor_loop.run())));

    if used.backends.iter().any(|backend| !backend.is_slow()) {
        let reconciler = Reconciler::open(sensor.clone(), table_monitor.bulk.clone(), config.clone())?;
        tokio::spawn(reconciler.run());
    }
    if let Some(port_id) = route_port {
        let monitor = RouteMonitor::open(port_id).map_err(DaemonError::system("follow the kernel's routes"))?;
        tokio::spawn(reconciler::follow_routes(sensor.clone(), monitor));
    }
    let notifications = command_helper.as_mut().and_then(|helper| helper.notifications.take());
    let notifier = Notifier::new(&config.notify, notifications, SystemTime::now());
    let systemd = Systemd::new(Arc::clone(&sensor.metrics));
    let handler = ControlHandler {
        config: ConfigSource { current: config, path: places.config, reread },
        trial,
        state_dir: places.state_dir,
        uses_nft,
        host_state,
        sensor: sensor.clone(),
        fleet,
        sink: EventSink { ban_recorder, log, notifier, control, events, last_event: None, lost: 0 },
        sandbox,
        command_helper,
        firewall_watch,
        started: (SystemTime::now(), Instant::now()),
    };
    let mut event_loop = EventLoop {
        handler,
        table_monitor,
        received,
        scrapes,
        systemd,
        instance_lock,
        unfounded_bans: UnfoundedBans::default(),
        guest_ports: GuestPorts::default(),
        table_identity,
    };
    let result = event_loop.run(signals, &mut end).await;
    event_loop.handler.host_state.memory.write(boot_time(), SystemTime::now());
    if let Some(fleet) = &mut event_loop.handler.fleet {
        fleet.write_lifts(true);
    }
    if result.is_ok() {
        sensor.send(SensorCommand::Stop);
        if tokio::time::timeout(SENSOR_TIMEOUT, &mut end).await.is_ok() {
            let _ = thread.join();
        }
    }
    event_loop.close(slow_backends).await;
    result
}

/// A hash key that is unpredictable to sources of packets.
fn hash_key() -> Result<HashKey, DaemonError> {
    let random = || getrandom::u64().map_err(DaemonError::system("get random bytes"));
    Ok(HashKey(random()?, random()?))
}
