//! Wiring: settings to a running sensor, and the slow half around it. Everything that may wait (signals, log lines,
//! notifications about addresses and routes, the list of listeners) runs here on tokio, on one thread.

pub(crate) mod allow_names;
pub(crate) mod backends;
mod ban_recorder;
pub mod command_helper;
mod control_handler;
mod event_loop;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod host_state;
mod ignore_files;
mod log_writer;
mod priority;
mod reconciler;
mod reload;
mod reverse_dns;
mod ring_size;
mod run_state;
pub(crate) mod sandbox_policy;
mod sensor_thread;
mod startup_reconcile;
mod systemd;
mod table_monitor;
mod temporary_allow;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::capture::decoy::{DecoyError, DecoyPorts, Decoys};
use crate::capture::live::{CaptureError, Live, Ring};
use crate::config::{BlockPolicy, Config, ConfigErrors, Mode, Protocol};
use crate::control::server::Server;
use crate::enforce::command::RunError;
use crate::enforce::hosts_deny::TemplateError;
use crate::enforce::nft::{BlockError, RulesetError};
use crate::enforce::route::{RouteError, Routes};
use crate::enforce::slow_backends::SlowBackends;
use crate::engine::{Engine, Escalation, HashKey, MaxPrefix, Response, Settings, Watch};
use crate::events::channel;
use crate::events::event::{Event, EventKind};
use crate::host::network::HostError;
use crate::metrics::http::Scrapes;
use crate::netlink::routes::monitor::RouteMonitor;
use crate::netlink::sock_diag::{SockDiag, SockDiagError};
use crate::netlink::socket::SocketError;
use crate::panic_guard;
use crate::sandbox::{InstanceLock, InstanceLockError, Sandbox, Untrusted};
use crate::sensor::{Inbox, Sensor, SensorCommand, SensorError, SensorMetrics};
use crate::types::Timestamp;
use backends::OpenBackends;
use ban_recorder::{BanRecorder, Opening, Reading};
use command_helper::Commands;
use event_loop::{EventLoop, Signals};
use host_state::HostState;
use log_writer::LogWriter;
use reconciler::{Compared, Wanted};
use run_state::RunState;
use sensor_thread::SensorThread;
use startup_reconcile::StartupReconcile;
use systemd::Systemd;
use table_monitor::TableMonitor;

pub use log_writer::target;

/// Events that wait for the log at one time.
const QUEUE: usize = 8192;

/// How long the sensor may take to end.
const GRACE: Duration = Duration::from_millis(800);

/// How long commands and files may take to end.
const HANDS_GRACE: Duration = Duration::from_millis(400);

/// Why the program cannot protect, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A file that the settings name is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// Somebody else could change what it is told to do.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// Another daemon runs.
    #[error(transparent)]
    InstanceLockError(#[from] InstanceLockError),
    /// The host's addresses and routes cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The listeners cannot be read.
    #[error(transparent)]
    Listeners(#[from] SockDiagError),
    /// There is no interface of a name that the settings give.
    #[error("there is no interface {name}; this host has {present}")]
    NoInterface {
        /// The name.
        name: String,
        /// The names that there are.
        present: String,
    },
    /// The kernel has no netfilter netlink.
    #[error(transparent)]
    Netlink(#[from] SocketError),
    /// The ruleset cannot be laid.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
    /// The routing tables cannot be reached.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The line for hosts.deny makes no sense.
    #[error("block.hosts_deny: {0}")]
    HostsDeny(#[from] TemplateError),
    /// The command cannot be run.
    #[error("block.run: {0}")]
    Run(#[from] RunError),
    /// Nobody is there who would run it.
    #[error("{0}")]
    NoSpawner(String),
    /// The kernel's allow-list cannot be set.
    #[error("the kernel's allow-list could not be set: {0}")]
    Protect(BlockError),
    /// Nothing can be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A port of connect mode cannot be opened.
    #[error(transparent)]
    Decoy(#[from] DecoyError),
    /// The figures cannot be given out.
    #[error("cannot listen at {address}, which metrics.listen names: {error}; {}", remedy(error))]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What came back.
        error: io::Error,
    },
    /// The sensor ended by itself.
    #[error("the sensor ended: {0}")]
    Sensor(#[from] SensorError),
    /// The sensor panicked.
    #[error("the sensor ended by a defect of its own, which the log names; the bans stay in the kernel")]
    SensorGone,
    /// The operating system refused something.
    #[error("cannot {doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What came back.
        error: io::Error,
    },
}

/// What to do where an address cannot be listened at.
fn remedy(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) {
        "the service may open no Internet socket: its drop-in internet.conf lets it, see the package's examples"
    } else {
        "choose another port"
    }
}

fn system<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> DaemonError {
    move |error| DaemonError::System { doing, error: error.into() }
}

/// Where the program keeps and offers things.
#[derive(Clone, Debug)]
pub struct Places {
    /// The ledger's directory.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The file that settings are read from, if it exists.
    pub config: PathBuf,
}

/// Reads the settings again, flags included.
pub type Reread = Box<dyn Fn() -> Result<Config, ConfigErrors> + Send>;

/// Runs until SIGINT or SIGTERM. With `confirm` nobody is blocked any more after that time, unless an operator confirms.
/// Where it is to be `sandboxed`, rights are given up for good.
pub fn run(
    config: Config,
    places: Places,
    (confirm, sandboxed): (Option<Duration>, bool),
    reread: Reread,
) -> Result<(), DaemonError> {
    panic_guard::tell_panics();
    sandbox_policy::trusted(&config, &places.config)?;
    let alone = InstanceLock::claim()?;
    // While programs can be started still.
    let commands = match sandbox_policy::runs_commands(&config) {
        true => Some(command_helper::start(&places.config, sandboxed)?),
        false => None,
    };
    // Before there is a second thread.
    let mut sandbox = if sandboxed { Sandbox::enter(&sandbox_policy::of(&config, &places)) } else { Sandbox::now() };
    let stage = SensorThread::build(sandboxed)?;
    if sandboxed {
        sandbox.drop_privileges();
        sandbox.warnings.extend(sandbox_policy::own_commands(&config, &sandbox));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(system("start the event loop"))?;
    let result = runtime.block_on(serve(config, places, (alone, sandbox, stage, commands), confirm, reread));
    // A look-up that no name server answers must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn serve(
    config: Config,
    places: Places,
    (alone, sandbox, stage, commands): (InstanceLock, Sandbox, SensorThread, Option<Commands>),
    confirm: Option<Duration>,
    reread: Reread,
) -> Result<(), DaemonError> {
    let signals = Signals::catch()?;
    let most = usize::try_from(config.block.nft.size).unwrap_or(usize::MAX);
    let reading = backends::blocks(&config)
        .then(|| Reading::start(&places.state_dir, config.escalate.forget, most).map_err(system("start a thread")))
        .transpose()?;
    let (events, received) = channel::bounded(QUEUE);
    let mut watch = HostState::open(&config, events.clone()).await?;
    let inbox = Inbox::new().map_err(system("make an event descriptor"))?;
    let mut log = LogWriter::new(&config.report, events.clone());
    let doubts = alone.doubt().map(str::to_owned).into_iter().chain(sandbox.warnings.iter().cloned());
    let doubts = doubts.chain(commands.iter().flat_map(|commands| commands.said.iter().cloned()));
    doubts.for_each(|text| log.write(&Event::now(EventKind::Note(text))));

    let metrics = Arc::new(SensorMetrics::default());
    let OpenBackends { mut blocker, hands, laid_anew, leftovers, said } =
        backends::open(&config, &watch.host(), commands.as_ref().map(Commands::spawner), (&events, &inbox, &metrics))?;
    said.into_iter().for_each(|what| log.write(&Event::now(what)));
    let control = Server::open(&places.socket);
    let control =
        control.map_err(|error| log.write(&Event::now(EventKind::Error(format!("{error}. It runs without"))))).ok();
    let scrapes = match config.metrics.listen {
        Some(address) => Some(Scrapes::listen(address).await.map_err(|error| DaemonError::Metrics { address, error })?),
        None => None,
    };
    let guard = TableMonitor::over(blocker.nft.as_ref().map(|(nft, _)| nft.port_id()))?;
    if let (Some((nft, _)), Some(hush)) = (&mut blocker.nft, guard.hush()) {
        nft.hush_by(hush);
    }
    let mut record = BanRecorder::default();
    let mut struck = Vec::new();
    if let Some(reading) = reading {
        let opening = BanRecorder::open(reading, &events, &leftovers);
        let Opening { bans: remembered, unheard, strikes, said, .. } = opening;
        record = opening.record;
        struck = strikes;
        said.into_iter().for_each(|what| log.write(&Event::now(what)));
        let nft = blocker.nft.as_ref().map(|(nft, _)| nft.try_clone()).transpose()?;
        // What it orders waits for the sensor.
        StartupReconcile {
            inbox: inbox.clone(),
            events: events.clone(),
            recorder: record.recorder(),
            remembered,
            ways: blocker.ways.clone(),
            unheard,
            laid_anew,
            marker: places.state_dir.join("restoring"),
            expire: config.expire,
            hands: hands.as_ref().map(SlowBackends::orders),
            nft,
        }
        .start()?;
    }
    let uses_nft = blocker.nft.is_some();
    let routes = blocker.routes.as_ref().map(Routes::port_id);
    let live = Live::open(&watch.filter(), Ring::Usual)?;
    // Only now, when nobody is blocked any more whom the allow-list names.
    let mut decoys = Decoys::open(&decoy_ports(&config), &config.tcp.port_banner)?;
    if let Some(busy) = decoys.busy() {
        log.write(&Event::now(EventKind::Note(busy)));
    }
    decoys.watch_only(watch.addresses());
    watch.except(decoys.ports().clone());
    let (sockets, mut engine) = (SockDiag::open()?, Engine::new(settings(&config), secret()?));
    // Before the first packet: whoever comes back in the first moments is to be known.
    struck.iter().for_each(|struck| engine.remember(Timestamp::default(), struck));
    drop(struck);
    let host = watch.host();
    let sensor =
        Sensor::new(live, decoys, engine, host, sockets, blocker, events.clone(), inbox.clone(), Arc::clone(&metrics));
    let (ended, mut end) = oneshot::channel();
    // The receiver is gone only when nobody wants to know any more.
    let thread = stage.enter(move || drop(ended.send(sensor.run())));

    if uses_nft || routes.is_some() {
        let wanted = Wanted { nft: uses_nft, routes: routes.map(|_| backends::kind(&config)) };
        tokio::spawn(reconciler::compare(inbox.clone(), wanted, Compared::open(wanted)?));
    }
    if let Some(port_id) = routes {
        let monitor = RouteMonitor::open(port_id).map_err(system("follow the kernel's routes"))?;
        tokio::spawn(reconciler::follow_routes(inbox.clone(), monitor));
    }
    let mut shell = EventLoop {
        state_dir: places.state_dir,
        settings: places.config,
        trial: confirm.and_then(|span| Instant::now().checked_add(span)),
        supervisor: Systemd::new(Arc::clone(&metrics)),
        run_state: RunState::new(metrics),
        alone,
        sandbox,
        commands,
        config,
        reread,
        watch,
        guard,
        record,
        log,
        inbox,
        events,
        received,
        control,
        scrapes,
        trouble: None,
        logs_only: false,
    };
    let result = shell.run(signals, &mut end).await;
    if result.is_ok() {
        shell.deliver(SensorCommand::Stop);
        if tokio::time::timeout(GRACE, &mut end).await.is_ok() {
            let _ = thread.join();
        }
    }
    if let Some(hands) = hands {
        // What it leaves undone is said by it, or found at the next start.
        let _ = hands.stop(HANDS_GRACE);
    }
    shell.close();
    result
}

/// What the engine is to do, from what the operator wrote.
#[must_use]
pub fn settings(config: &Config) -> Settings {
    let watch = |protocol: &Protocol| Watch {
        // In connect mode only what a decoy accepts is evidence.
        ports: if protocol.mode == Mode::Connect { Default::default() } else { protocol.watched() },
        response: match protocol.block {
            BlockPolicy::Yes => Response::Block,
            BlockPolicy::No => Response::Log,
            BlockPolicy::Run => Response::Tell,
        },
    };
    Settings {
        tcp: watch(&config.tcp),
        udp: watch(&config.udp),
        sctp: config.detect.sctp,
        icmp: config.detect.icmp,
        scan_trigger: config.detect.scan_trigger,
        window: config.detect.window,
        expiry: config.expire,
        escalate: Escalation {
            factor: config.escalate.factor,
            max: config.escalate.max,
            forget: config.escalate.forget,
        },
        widest: MaxPrefix { v4: config.block.widest_ipv4, v6: config.block.widest_ipv6 },
        max_sources: usize::try_from(config.detect.max_sources).unwrap_or(usize::MAX),
        // Four times what one set holds: full sets of both families are half of it, and there no standing ban is ever lost.
        // Whom it does not know is not put back after a flush.
        max_judged: usize::try_from(config.block.nft.size).unwrap_or(usize::MAX).saturating_mul(4),
        max_new_bans_per_minute: config.block.max_new_bans_per_minute,
    }
}

/// The ports that connect mode opens.
fn decoy_ports(config: &Config) -> DecoyPorts {
    let ports = |protocol: &Protocol| match protocol.mode {
        Mode::Connect => protocol.watched(),
        Mode::Off | Mode::Stealth | Mode::Advanced => Default::default(),
    };
    DecoyPorts { tcp: ports(&config.tcp), udp: ports(&config.udp) }
}

/// A key that no stranger knows.
fn secret() -> Result<HashKey, DaemonError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(system("get random bytes"))?;
    let [low, high] = [0, 64].map(|shift| u128::from_ne_bytes(bytes) >> shift & u128::from(u64::MAX));
    Ok(HashKey(u64::try_from(low).unwrap_or(0), u64::try_from(high).unwrap_or(0)))
}
