//! Wiring: settings to a running sensor, and the slow half around it. Everything that may wait (signals, log lines,
//! notifications about addresses and routes, the list of listeners) runs here on tokio, on one thread.

mod guard;
mod priority;
mod record;
mod watch;

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::capture::decoy::{DecoyError, DecoyPorts, Decoys};
use crate::capture::live::{CaptureError, Live};
use crate::config::{BlockPolicy, Config, ConfigErrors, Mode, Protocol};
use crate::enforce::nft::{BlockError, Installed, Nft, RulesetError, RulesetSpec};
use crate::engine::subject::{Expiry, Subject};
use crate::engine::{Engine, HashKey, Settings, Watch};
use crate::ledger::Recorder;
use crate::netlink::host::HostError;
use crate::netlink::sock_diag::{SockDiag, SockDiagError};
use crate::netlink::socket::SocketError;
use crate::report::event::{Event, What};
use crate::report::log::Log;
use crate::report::queue::{self, Receiver};
use crate::sensor::{Inbox, Order, Sensor, SensorError};
use guard::Guard;
use record::{Record, reconcile};
use watch::HostWatch;

/// Events that wait for the log at one time.
const QUEUE: usize = 8192;

/// Bans from before the start that the sensor takes over between two looks at the packets.
const ADOPTED_AT_ONCE: usize = 256;

/// Bans from the ledger that go to the kernel between two looks at the packets: some 40 ms.
const RESTORED_AT_ONCE: usize = 10_000;

/// How long the sensor may take to end.
const GRACE: Duration = Duration::from_millis(800);

/// How often the listeners are read again. A service that starts in between is found by the exact look-up before anybody
/// is blamed.
const LISTENERS: Duration = Duration::from_secs(1);

/// Why the program cannot protect, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A file that the settings name is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
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
    /// The kernel's allow-list cannot be set.
    #[error("the kernel's allow-list could not be set: {0}")]
    Protect(BlockError),
    /// Nothing can be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A port of connect mode cannot be opened.
    #[error(transparent)]
    Decoy(#[from] DecoyError),
    /// The sensor ended by itself.
    #[error("the sensor ended: {0}")]
    Sensor(#[from] SensorError),
    /// The sensor panicked.
    #[error("the sensor ended without a reason; the bans stay in the kernel")]
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

fn system<E: Into<io::Error>>(doing: &'static str) -> impl Fn(E) -> DaemonError {
    move |error| DaemonError::System { doing, error: error.into() }
}

/// Runs until SIGINT or SIGTERM. The ledger is kept in `state_dir`.
pub fn run(config: &Config, state_dir: &Path) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("start the event loop"))?.block_on(serve(config, state_dir))
}

async fn serve(config: &Config, state_dir: &Path) -> Result<(), DaemonError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("catch SIGINT"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("catch SIGTERM"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("catch SIGHUP"))?;
    let mut watch = HostWatch::open(config).await?;
    let inbox = Inbox::new().map_err(system("make an event descriptor"))?;
    let (events, received) = queue::bounded(QUEUE);
    let mut log = Log::default();

    let nft = install(config, &watch, &mut log)?;
    let mut record = Record::default();
    let mut remembered = nft.is_some().then(Vec::new);
    if let Some(bans) = &mut remembered {
        let said;
        (record, *bans, said) = Record::open(state_dir, &events);
        said.into_iter().for_each(|what| log.write(&Event::now(what)));
    }
    let mut guard = Guard::over(nft.as_ref().map(|(nft, _)| nft.port_id()))?;
    let live = Live::open(&watch.filter())?;
    // Only now, when nobody is blocked any more whom the allow-list names.
    let mut decoys = Decoys::open(&decoy_ports(config), &config.tcp.port_banner)?;
    if let Some(busy) = decoys.busy() {
        log.write(&Event::now(What::Note(busy)));
    }
    decoys.watch_only(watch.addresses());
    watch.except(decoys.ports().clone());
    let engine = Engine::new(settings(config), secret()?);
    let (host, sockets) = (watch.host(), SockDiag::open()?);
    let sensor = Sensor::new(live, decoys, engine, host, sockets, nft, events.clone(), inbox.clone());
    let (ended, mut end) = oneshot::channel();
    let thread = std::thread::Builder::new().name("sensor".to_owned());
    let thread = thread.spawn(move || {
        // In vain in most containers; the figures of the reaction time show it.
        let _ = priority::raise();
        // The receiver is gone only when nobody wants to know any more.
        let _ = ended.send(sensor.run());
    });
    let thread = thread.map_err(system("start the sensor's thread"))?;
    if let Some(bans) = remembered {
        adopt(inbox.clone(), events.clone(), bans, record.recorder())?;
    }

    let mut listeners = tokio::time::interval(LISTENERS);
    listeners.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let result = loop {
        let changed = tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            _ = hangup.recv() => {
                log.write(&Event::now(What::Note("SIGHUP changes nothing: restart to take new settings over".to_owned())));
                continue;
            }
            result = &mut end => break Err(gone(result)),
            event = received.receive() => {
                record.note(&event, |index| watch.interface(index));
                log.write(&event);
                continue;
            }
            changed = watch.changed() => changed,
            changed = guard.changed() => changed.map(|(orders, said)| {
                for event in said.into_iter().map(Event::now) {
                    record.note(&event, |_| None);
                    log.write(&event);
                }
                orders
            }),
            _ = listeners.tick() => {
                log_losses(&received, &mut log);
                watch.tick().await
            }
        };
        match changed {
            Ok(changes) => changes.into_iter().for_each(|order| deliver(&inbox, order)),
            // What cannot be read now is tried again; until then the last state holds.
            Err(error) => log.write(&Event::now(What::Error(error.to_string()))),
        }
    };

    if result.is_ok() {
        deliver(&inbox, Order::Stop);
        if tokio::time::timeout(GRACE, &mut end).await.is_ok() {
            let _ = thread.join();
        }
    }
    while let Some(event) = received.poll() {
        record.note(&event, |index| watch.interface(index));
        log.write(&event);
    }
    if let Some(what) = record.close() {
        log.write(&Event::now(what));
    }
    log_losses(&received, &mut log);
    log.write(&Event::now(What::Stopped));
    result
}

fn gone(result: Result<Result<(), SensorError>, oneshot::error::RecvError>) -> DaemonError {
    match result {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => DaemonError::SensorGone,
    }
}

fn deliver(inbox: &Inbox, order: Order) {
    // A full inbox means that the sensor has been busy with packets for a thousand orders. The next change repeats what
    // is lost here, because every snapshot is a whole one.
    let _ = inbox.put(order);
}

fn log_losses(received: &Receiver, log: &mut Log) {
    log.turn_minute();
    let lost = received.dropped();
    if lost > 0 {
        log.write(&Event::now(What::Error(format!("{lost} events came faster than they could be logged"))));
    }
}

/// Lays or adopts the ruleset, and sets the allow-list before anybody can be blocked. `None` where nothing is blocked.
fn install(config: &Config, watch: &HostWatch, log: &mut Log) -> Result<Option<(Nft, RulesetSpec)>, DaemonError> {
    if config.tcp.block != BlockPolicy::Yes && config.udp.block != BlockPolicy::Yes {
        return Ok(None);
    }
    let spec = RulesetSpec { size: config.block.nft.size, ..RulesetSpec::default() };
    let mut nft = Nft::open()?;
    if let Installed::Adopted { blocked, blocked6 } | Installed::Relaid { blocked, blocked6 } = nft.install(&spec)?
        && (blocked != spec.size || blocked6 != spec.size)
    {
        log.write(&Event::now(What::Note(format!(
            "the sets of table inet portsentry hold {blocked} and {blocked6} elements, not {} as block.nft.size says; delete \
             the table to have them laid anew",
            spec.size
        ))));
    }
    let prefixes: Vec<_> = watch.host().allow.prefixes().collect();
    nft.protect(&prefixes).map_err(DaemonError::Protect)?;
    Ok(Some((nft, spec)))
}

/// Tells the sensor whom the kernel blocks already, and whom it should block and does not. A thread of its own: a full set
/// takes the kernel seconds to show.
fn adopt(
    inbox: Inbox,
    events: queue::Sender,
    remembered: Vec<(Subject, Expiry)>,
    recorder: Option<Recorder>,
) -> Result<(), DaemonError> {
    let thread = std::thread::Builder::new().name("adopt".to_owned());
    let work = move || {
        let elements = Nft::open().map_err(BlockError::from).and_then(|mut nft| nft.elements());
        let elements = match elements {
            Ok(elements) => elements,
            Err(error) => {
                return events.send(Event::now(What::Error(format!("the bans in the kernel cannot be read: {error}"))));
            }
        };
        let bans = elements.len();
        let reconciled = reconcile(&elements, &remembered, SystemTime::now());
        let expiry = |remaining: Option<Duration>| remaining.map_or(Expiry::Never, Expiry::After);
        let held: Vec<_> = elements.into_iter().map(|(subject, remaining)| (subject, expiry(remaining))).collect();
        let adopted = held.chunks(ADOPTED_AT_ONCE).map(|part| Order::Adopt(part.to_vec()));
        let restored = reconciled.restore.chunks(RESTORED_AT_ONCE).map(|part| Order::Restore(part.to_vec()));
        for mut order in adopted.chain(restored) {
            // Only this thread waits where the inbox is full.
            while let Err(back) = inbox.put(order) {
                order = back;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(recorder) = recorder {
            // What finds no room is counted and said by the ledger's own thread.
            for change in reconciled.changes {
                let _ = recorder.put(change);
            }
        }
        if bans > 0 {
            events.send(Event::now(What::Adopted { bans }));
        }
    };
    thread.spawn(work).map(drop).map_err(system("start a thread"))
}

/// What the engine is to do, from what the operator wrote.
#[must_use]
pub fn settings(config: &Config) -> Settings {
    let watch = |protocol: &Protocol| Watch {
        // In connect mode only what a decoy accepts is evidence.
        ports: if protocol.mode == Mode::Connect { Default::default() } else { protocol.watched() },
        block: protocol.block == BlockPolicy::Yes,
    };
    Settings {
        tcp: watch(&config.tcp),
        udp: watch(&config.udp),
        sctp: config.detect.sctp,
        icmp: config.detect.icmp,
        scan_trigger: config.detect.scan_trigger,
        window: config.detect.window,
        expiry: config.expire,
        max_sources: usize::try_from(config.detect.max_sources).unwrap_or(usize::MAX),
        max_judged: usize::try_from(config.block.nft.size).unwrap_or(usize::MAX),
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
