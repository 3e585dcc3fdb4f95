//! The ways to block that the settings name, opened: before anybody can be blocked, whoever must not be is known to them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::DaemonError;
use crate::config::{BlockPolicy, Config, Mode, Protocol};
use crate::enforce::command::{RunSettings, Spawner};
use crate::enforce::hosts_deny::HostsDeny;
use crate::enforce::nft::{Action, BlockError, Installed, Nft, RulesetError, RulesetSpec, Trap, Watched};
use crate::enforce::route::{Kind, Routes};
use crate::enforce::slow_backends::{BackendEvent, CommandPhase, Settings, SlowBackends, SlowTask};
use crate::engine::Host;
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};
use crate::sensor::{Blocker, Inbox, SensorCommand, SensorMetrics};
use crate::types::{Backend, BanTarget, Expiry};

/// What was opened.
#[derive(Default)]
pub(super) struct OpenBackends {
    /// For the sensor.
    pub(super) blocker: Blocker,
    /// The thread of the slow ones.
    pub(super) hands: Option<SlowBackends>,
    /// The table was not there before.
    pub(super) laid_anew: bool,
    /// Who has a route from an earlier run.
    pub(super) leftovers: Vec<BanTarget>,
    /// What is to be said.
    pub(super) said: Vec<EventKind>,
}

/// The table that the settings ask for.
pub(crate) fn ruleset(config: &Config) -> RulesetSpec {
    let nft = &config.block.nft;
    RulesetSpec {
        size: nft.size,
        action: match nft.action {
            crate::config::Action::Drop => Action::Drop,
            crate::config::Action::Reject => Action::Reject,
        },
        log_drops: nft.log_drops,
        trap: trap(config),
        wide: config.block.widest_ipv4 < 32 || config.block.widest_ipv6 < 64,
    }
}

/// What the kernel is to count by itself: what the sensor counts and blocks with nftables, and no command comes before.
fn trap(config: &Config) -> Option<Trap> {
    let counts = |protocol: &Protocol| {
        matches!(protocol.mode, Mode::Stealth | Mode::Advanced) && protocol.block == BlockPolicy::Yes
    };
    let (tcp, udp) = (config.trap.tcp && counts(&config.tcp), config.trap.udp && counts(&config.udp));
    let first = config.block.run.first && config.block.method.contains(&Backend::Command);
    let blocks = config.block.method.contains(&Backend::Nft) && !first;
    let forgiven = config.detect.scan_trigger;
    ((tcp || udp) && blocks).then(|| Trap {
        tcp,
        udp,
        forgiven,
        // In whole seconds, as nft shows it.
        window: if forgiven == 0 { Duration::ZERO } else { whole(config.detect.window) },
        expiry: match config.expire {
            Expiry::Never => Expiry::Never,
            Expiry::After(span) => Expiry::After(whole(span)),
        },
        most_a_minute: config.block.max_new_bans_per_minute,
        named_interfaces: !config.interfaces.is_empty(),
    })
}

fn whole(span: Duration) -> Duration {
    Duration::from_secs(span.as_secs().max(1))
}

/// True where somebody is blocked.
pub(super) fn blocks(config: &Config) -> bool {
    [&config.tcp, &config.udp].into_iter().any(|protocol| protocol.block == BlockPolicy::Yes)
}

/// Opens the ways that the settings name; none where nobody is blocked and nothing is run. Commands are left to `spawner`.
pub(super) fn open(
    config: &Config,
    host: &Host,
    spawner: Option<Spawner>,
    (events, inbox, metrics): (&Sender, &Inbox, &Arc<SensorMetrics>),
) -> Result<OpenBackends, DaemonError> {
    let tells = [&config.tcp, &config.udp].map(|protocol| protocol.block == BlockPolicy::Run);
    let mut ways = OpenBackends::default();
    [ways.blocker.tcp_tells, ways.blocker.udp_tells] = tells;
    if blocks(config) {
        ways.blocker.ways = config.block.method.clone();
    }
    let has = |way: Backend| ways.blocker.ways.contains(&way);
    let (nft, route, hosts_deny) = (has(Backend::Nft), has(Backend::Route), has(Backend::HostsDeny));
    ways.blocker.first = has(Backend::Command) && config.block.run.first;
    (ways.blocker.tcp_mode, ways.blocker.udp_mode) = (classic("tcp", config.tcp.mode), classic("udp", config.udp.mode));
    if nft {
        let (nft, spec, laid_anew) = install(config, host, &mut ways.said)?;
        (ways.blocker.nft, ways.laid_anew) = (Some((nft, spec)), laid_anew);
    } else if let Ok(mut nft) = Nft::open() {
        // A trap that a run before this one left armed, when it crashed, must not go on blocking. Mostly there is none. Of each
        // protocol by itself, because what is not there refuses the rest as well.
        let none: Option<&[(u16, u16)]> = Some(&[]);
        drop(nft.arm(Watched { tcp: none, ..Watched::default() }));
        drop(nft.arm(Watched { udp: none, ..Watched::default() }));
        // What it holds would go on being dropped, and no command of this program could lift it.
        if !ways.blocker.ways.is_empty() {
            match nft.remove(&ruleset(config)) {
                Ok(true) => ways.said.push(EventKind::Note(format!(
                    "table inet portsentry of an earlier run has been removed, because \"nft\" is not in block.method; its \
                     bans go on by {}",
                    config.block.method.iter().map(|method| method.name()).collect::<Vec<_>>().join(", ")
                ))),
                Ok(false) | Err(RulesetError::Socket(_)) => {}
                Err(error) => ways.said.push(EventKind::Error(format!("the table of an earlier run stays: {error}"))),
            }
        }
    }
    if route {
        let size = usize::try_from(config.block.nft.size).unwrap_or(usize::MAX);
        let mut routes = Routes::open(kind(config), size)?;
        let own = host.networks.iter().copied().filter(|network| matches!(network, ipnet::IpNet::V6(_)));
        let prefixes: Vec<_> = host.allow.prefixes().chain(own).collect();
        drop(routes.protect(&prefixes));
        ways.leftovers = routes.leftovers()?;
        ways.blocker.routes = Some(routes);
    }
    let settings = Settings {
        hosts_deny: match hosts_deny {
            true => Some(HostsDeny::new(config.block.hosts_deny.file.clone(), &config.block.hosts_deny.line)?),
            false => None,
        },
        run: spawner.map(|spawner| (run_settings(config), spawner)),
        end_connections: nft && config.block.nft.end_connections,
    };
    ways.blocker.end_connections = settings.end_connections;
    if hosts_deny || settings.run.is_some() || settings.end_connections {
        let tell = teller(settings.hosts_deny.clone(), events.clone(), inbox.clone(), Arc::clone(metrics));
        let hands = SlowBackends::start(settings, tell).map_err(super::system("start a thread"))?;
        ways.blocker.hands = Some(hands.orders());
        ways.hands = Some(hands);
    }
    Ok(ways)
}

/// Lays or adopts the ruleset, and sets the allow-list before anybody can be blocked; true where there was no table.
fn install(config: &Config, host: &Host, said: &mut Vec<EventKind>) -> Result<(Nft, RulesetSpec, bool), DaemonError> {
    let mut spec = ruleset(config);
    let mut nft = Nft::open()?;
    let prefixes: Vec<_> = host.allow.prefixes().collect();
    let mut attempt = 1;
    let installed = loop {
        let installed = match nft.install(&spec) {
            // Everything else works without it.
            Err(error @ RulesetError::Lacking { .. }) if spec.trap.is_some() => {
                spec.trap = None;
                let installed = nft.install(&spec)?;
                said.push(EventKind::Error(format!(
                    "the kernel counts nothing by itself (the settings of `trap`): {error}"
                )));
                installed
            }
            installed => installed?,
        };
        match nft.protect(&prefixes) {
            Ok(()) => break installed,
            // Somebody has deleted it in between.
            Err(BlockError::Gone) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(DaemonError::Protect(error)),
        }
    };
    if let Installed::Adopted { blocked, blocked6 } | Installed::Rebuilt { blocked, blocked6 } = installed
        && (blocked != spec.size || blocked6 != spec.size)
    {
        said.push(EventKind::Note(format!(
            "the sets of table inet portsentry hold {blocked} and {blocked6} elements, not {} as block.nft.size says; delete \
             the table to have them laid anew",
            spec.size
        )));
    }
    Ok((nft, spec, installed == Installed::Created))
}

/// How often the table is laid where somebody deletes it at once.
const ATTEMPTS: u32 = 10;

pub(crate) fn kind(config: &Config) -> Kind {
    use crate::config::Route;
    match config.block.route {
        Route::Blackhole => Kind::Blackhole,
        Route::Unreachable => Kind::Unreachable,
        Route::Prohibit => Kind::Prohibit,
        Route::Via(gateway) => Kind::Via(gateway),
    }
}

/// What the settings say of commands, if they can be run by whoever asks.
pub(crate) fn commands(config: &Config) -> Result<RunSettings, DaemonError> {
    let settings = run_settings(config);
    settings.check()?;
    Ok(settings)
}

fn run_settings(config: &Config) -> RunSettings {
    let run = &config.block.run;
    RunSettings {
        command: run.command.clone(),
        expire_command: run.expire_command.clone(),
        first: run.first,
        timeout: run.timeout,
        at_once: usize::try_from(run.at_once).unwrap_or(1),
    }
}

/// A mode in the classic word: what `$MODE$` stands for.
fn classic(protocol: &'static str, mode: Mode) -> &'static str {
    match (protocol, mode) {
        ("tcp", Mode::Stealth) => "stcp",
        ("tcp", Mode::Advanced) => "atcp",
        ("udp", Mode::Stealth) => "sudp",
        ("udp", Mode::Advanced) => "audp",
        (protocol, _) => protocol,
    }
}

/// What is done with the news of the slow ways: on their thread, and it waits for nobody.
fn teller(
    hosts_deny: Option<HostsDeny>,
    events: Sender,
    inbox: Inbox,
    metrics: Arc<SensorMetrics>,
) -> impl FnMut(BackendEvent) + Send + 'static {
    move |news| {
        let text = news.to_string();
        let what = match news {
            BackendEvent::Ready { case } => {
                let mut order = SensorCommand::CommandEnded(case.subject);
                while let Err(back) = inbox.put(order) {
                    order = back;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                return;
            }
            BackendEvent::Done { case, backend: Backend::HostsDeny } => {
                if let Some(ban) = &case.ban {
                    metrics.blocked(Backend::HostsDeny, ban.probe.sighting.class);
                }
                let line = hosts_deny.as_ref().map_or_else(String::new, |hosts_deny| hosts_deny.line(&case));
                let time = if case.ban.is_some() { case.since } else { SystemTime::now() };
                return events
                    .send(Event { time, what: EventKind::Wrapped { subject: case.subject, ban: case.ban, line } });
            }
            BackendEvent::Done { .. } | BackendEvent::Released { .. } | BackendEvent::Connections { ended: 0, .. } => {
                return;
            }
            BackendEvent::Ran { case, occasion, command, ref outcome, ref output, took, .. } => {
                let well = outcome.is_success();
                match (well, occasion, &case.ban) {
                    (true, CommandPhase::Before | CommandPhase::Block, Some(ban)) => {
                        metrics.blocked(Backend::Command, ban.probe.sighting.class);
                    }
                    (false, ..) => metrics.failed(Backend::Command),
                    _ => {}
                }
                let took = humantime::format_duration(std::time::Duration::from_millis(
                    u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                ));
                let wrote = if output.is_empty() { String::new() } else { format!("; it says: {output}") };
                let when = match occasion {
                    CommandPhase::Before => " before the block",
                    CommandPhase::Block => "",
                    CommandPhase::Release => " at the end of the ban",
                };
                let ban = case.ban.filter(|_| occasion != CommandPhase::Release);
                let outcome = format!("{outcome} after {took}{when}{wrote}");
                let what = EventKind::Ran { subject: case.subject, ban, command, outcome, well };
                return events.send(Event { time: if ban.is_some() { case.since } else { SystemTime::now() }, what });
            }
            BackendEvent::Failed { task, .. } => {
                if task == SlowTask::Ban(Backend::HostsDeny) {
                    metrics.failed(Backend::HostsDeny);
                }
                EventKind::Error(text)
            }
            BackendEvent::Restored { subjects, .. } => {
                metrics.restored_lines(subjects.len() as u64);
                EventKind::Repaired { bans: subjects.len(), way: Backend::HostsDeny }
            }
            BackendEvent::Connections { subject, ended } => EventKind::Disconnected { subject, connections: ended },
            BackendEvent::Unable { task, .. } => {
                if task == SlowTask::Ban(Backend::Command) {
                    metrics.failed(Backend::Command);
                }
                EventKind::Error(text)
            }
            BackendEvent::Lost { .. } => EventKind::Error(text),
        };
        events.send(Event::now(what));
    }
}
