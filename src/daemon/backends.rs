//! Opens the configured backends, and reports the events of the slow ones. Protected addresses are set before the first
//! ban. Also removes what bans of an earlier run left in backends that `block.method` no longer contains: the table and
//! routes. These bans continue in the configured backends.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::error::DaemonError;
use super::sensor_thread::SensorHandle;
use super::table_identity::FoundTable;
use crate::config::{BlockPolicy, Config};
use crate::enforce::command::{CommandHelperClient, ExitOutcome};
use crate::enforce::hosts_deny::HostsDeny;
use crate::enforce::nft::{
    BlockError, DecoyRules, Installed, Nft, RulesetError, RulesetSpec, Table, TrapContents, trap_sets,
};
use crate::enforce::route::Routes;
use crate::enforce::slow_backends::{
    BackendEvent, CommandPhase, SlowBackends, SlowBackendsConfig, SlowQueue, SlowTask,
};
use crate::enforce::{BackendHandles, BanContext, EntryFile};
use crate::engine::Host;
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};
use crate::ledger::Reader;
use crate::netlink::nft::{has_repeated_rules, is_created_by_nft, table_handle};
use crate::netlink::socket::Socket;
use crate::sensor::{Blocker, SensorCommand};
use crate::types::{Backend, BanTarget, Timestamp};

/// The backends that this run uses.
pub(super) struct UsedBackends {
    /// The backends that enforce bans. Empty if the configuration only logs and there are no earlier bans.
    pub(super) backends: Vec<Backend>,
    /// The file with an entry per ban. If hosts.deny is not in `backends`, it only loses the entries of earlier bans.
    /// `None` if there are none of these either.
    pub(super) entry_file: Option<EntryFile>,
    /// True if commands begin no new bans, but are undone at the end of those that they began.
    pub(super) undoes_commands: bool,
    /// True if commands of `block.run` are run or undone.
    pub(super) runs_commands: bool,
}

impl UsedBackends {
    /// The backends that `config` uses. `earlier_bans` is true if an earlier run has left bans, which continue even if
    /// `config` only logs; `has_entries` is true for a file that contains some of them.
    ///
    /// # Errors
    /// The configuration of a backend is invalid.
    pub(super) fn new(
        config: &Config,
        earlier_bans: bool,
        has_entries: fn(&EntryFile) -> bool,
    ) -> Result<Self, DaemonError> {
        let enforces = config.blocks() || earlier_bans;
        let backends = if enforces { config.block.method.clone() } else { Vec::new() };
        let runs = backends.contains(&Backend::Command) || config.uses(BlockPolicy::Run);
        let undoes_commands = enforces && !runs && !config.block.run.expire_command.is_empty();
        let entry_file = match HostsDeny::from_config(config).map(EntryFile::from) {
            Ok(file) => {
                Some(file).filter(|file| backends.contains(&Backend::HostsDeny) || enforces && has_entries(file))
            }
            Err(error) if backends.contains(&Backend::HostsDeny) => return Err(error.into()),
            Err(_) => None,
        };
        Ok(Self { entry_file, undoes_commands, runs_commands: runs || undoes_commands, backends })
    }

    /// The file if it loses the entries of earlier bans, and gets no new ones.
    pub(super) fn file_to_clean(&self) -> Option<&HostsDeny> {
        let file = self.entry_file.as_ref().filter(|_| !self.backends.contains(&Backend::HostsDeny))?;
        Some(&file.hosts_deny)
    }
}

#[derive(Default)]
pub(super) struct OpenBackends {
    pub(super) blocker: Blocker,
    pub(super) slow_backends: Option<SlowBackends>,
    /// Set if this start created the table.
    pub(super) new_table: Option<NewTable>,
    /// A table that already existed.
    pub(super) table_found: Option<FoundTable>,
    /// The sources that the kernel's trap has blocked since the last daemon ended.
    pub(super) trap_banned: Vec<BanTarget>,
    /// Targets that an earlier run has left in an inline backend whose objects do not expire by themselves.
    pub(super) leftovers: Vec<(Backend, BanTarget)>,
    /// The port id of the routes' socket; see [`Routes::port_id`].
    pub(super) route_port: Option<u32>,
    pub(super) messages: Vec<EventKind>,
}

/// A table that this start created. It is removed again if the start fails.
pub(super) struct NewTable(Option<RulesetSpec>);

impl NewTable {
    /// Keeps the table, because the start has succeeded.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for NewTable {
    fn drop(&mut self) {
        if let Some(spec) = self.0.take()
            && let Ok(mut nft) = Nft::open()
        {
            // The start already fails with another error.
            drop(nft.remove(&spec));
        }
    }
}

/// Opens the backends in use. Commands are run by `helper_client`.
pub(super) fn open(
    config: &Config,
    host: &Host,
    helper_client: Option<CommandHelperClient>,
    used: &UsedBackends,
    (events, sensor): (&Sender, &SensorHandle),
    on_trial: bool,
    decoys: Option<DecoyRules>,
) -> Result<OpenBackends, DaemonError> {
    let mut opened = OpenBackends::default();
    let has = |backend: Backend| used.backends.contains(&backend);
    let (mut nft, mut others, mut slow_queue) = (None, BackendHandles::new(), None);
    // Fallible checks come before the first change.
    if has(Backend::Route) {
        let mut routes = Routes::from_config(config)?;
        opened.leftovers.extend(routes.leftovers()?.into_iter().map(|target| (Backend::Route, target)));
        opened.route_port = Some(routes.port_id());
        others.push((Backend::Route, Box::new(routes)));
    }
    if has(Backend::Nft) {
        let nft = nft.insert(Nft::open()?);
        let mut socket = Socket::open()?;
        opened.table_found = table_handle(&mut socket).ok().flatten().map(|handle| FoundTable {
            handle,
            by_nft: is_created_by_nft(&mut socket).unwrap_or(false),
            merged: has_repeated_rules(&mut socket).unwrap_or(false),
        });
        // The sensor empties the trap.
        opened.trap_banned = trap_sets::trap_banned(&mut nft.table).unwrap_or_default();
        let (spec, created) = install(nft, config, host, (on_trial, decoys), &mut opened.messages)?;
        opened.new_table = created.then(|| NewTable(Some(spec)));
    } else if let Ok(mut table) = Table::open() {
        // A trap that a crashed run left armed must not continue to block. Usually there is none. Each set is emptied
        // separately, because a missing set makes the kernel refuse the whole transaction.
        let none: Option<&[(u16, u16)]> = Some(&[]);
        drop(trap_sets::arm(&mut table, TrapContents { tcp: none, ..TrapContents::default() }));
        drop(trap_sets::arm(&mut table, TrapContents { udp: none, ..TrapContents::default() }));
        drop(trap_sets::arm(&mut table, TrapContents { services: none, ..TrapContents::default() }));
    }
    if let Some(Err(error)) = used.entry_file.as_ref().map(EntryFile::check) {
        opened.messages.push(EventKind::Error(format!("cannot write hosts.deny, retrying: {error}")));
    }
    let settings = SlowBackendsConfig {
        entry_file: used.entry_file.clone(),
        run: helper_client.map(|helper_client| (config.block.run.clone(), helper_client)),
        end_connections: nft.is_some() && config.block.nft.end_connections,
    };
    if settings.entry_file.is_some() || settings.run.is_some() || settings.end_connections {
        let report = reporter(used.entry_file.clone(), events.clone(), sensor.clone());
        let end_connections = settings.end_connections;
        let slow = SlowBackends::start(settings, report).map_err(DaemonError::system("start a thread"))?;
        let command_first = has(Backend::Command) && config.block.run.first;
        let queue = slow_queue.insert(SlowQueue::new(&slow, &used.backends, command_first, end_connections));
        queue.undoes_commands = used.undoes_commands;
        opened.slow_backends = Some(slow);
    }
    opened.blocker = Blocker::new(config, &used.backends, nft, others, slow_queue);
    drop(opened.blocker.protect(host));
    Ok(opened)
}

/// Opens the inline backends again, beside those of the sensor, for comparisons with the kernel.
///
/// # Errors
/// Netlink cannot be opened.
pub(super) fn open_inline(config: &Config) -> Result<BackendHandles, DaemonError> {
    let mut handles = BackendHandles::new();
    for backend in &config.block.method {
        match backend {
            Backend::Nft => handles.push((*backend, Box::new(Nft::open()?))),
            Backend::Route => handles.push((*backend, Box::new(Routes::from_config(config)?))),
            Backend::HostsDeny | Backend::Command => {}
        }
    }
    Ok(handles)
}

/// Sets the allow-list again, because it has grown since [`open`].
pub(super) fn protect(blocker: &mut Blocker, host: &Host) -> Result<(), BlockError> {
    let prefixes: Vec<_> = host.allow.prefixes().collect();
    if let Some(nft) = blocker.nft() {
        nft.allowed.replace(&mut nft.table, &prefixes)?;
    }
    drop(blocker.protect(host));
    Ok(())
}

/// Creates or adopts the ruleset, and sets the allow-list before the first ban; true if there was no table.
fn install(
    nft: &mut Nft,
    config: &Config,
    host: &Host,
    (on_trial, decoys): (bool, Option<DecoyRules>),
    messages: &mut Vec<EventKind>,
) -> Result<(RulesetSpec, bool), DaemonError> {
    let mut spec = RulesetSpec { decoys, ..RulesetSpec::from_config(config) };
    if on_trial {
        spec = spec.without_hold();
    }
    let prefixes: Vec<_> = host.allow.prefixes().collect();
    let mut attempt = 1;
    let installed = loop {
        let installed = match nft.install(&spec) {
            // Everything else works without these features.
            Err(error @ RulesetError::Lacking { .. }) if spec.watches_ports() || spec.own_source => {
                let asked = spec;
                let installed = install_less(nft, &mut spec)?;
                if decoys.is_some() && spec.decoys.is_none() {
                    messages.push(EventKind::Error(format!(
                        "connect mode opens one socket per port, because the kernel lacks nft_tproxy or nft_socket: \
                         {error}"
                    )));
                }
                if asked.trap.is_some() && spec.trap.is_none() {
                    messages.push(EventKind::Error(format!("the kernel's trap ([trap]) is disabled: {error}")));
                }
                if asked.own_source && !spec.own_source {
                    messages.push(EventKind::Error(format!(
                        "incoming frames with an address of this host as their source are not dropped: {error}"
                    )));
                }
                installed
            }
            installed => installed?,
        };
        match nft.allowed.replace(&mut nft.table, &prefixes) {
            Ok(()) => break installed,
            // Another program has deleted the table in the meantime.
            Err(BlockError::Gone) if attempt < MAX_ATTEMPTS => attempt += 1,
            Err(error) => return Err(DaemonError::Protect(error)),
        }
    };
    if let Installed::Repaired { difference, .. } = &installed {
        messages.push(EventKind::Note(format!(
            "table inet portsentry had been changed while portsentry was stopped ({difference}) and has been restored"
        )));
    }
    if let Installed::Adopted((blocked, blocked6))
    | Installed::Rebuilt((blocked, blocked6))
    | Installed::Repaired { sizes: (blocked, blocked6), .. } = installed
        && (blocked != spec.size || blocked6 != spec.size)
    {
        messages.push(EventKind::Note(format!(
            "the sets of table inet portsentry hold {blocked} and {blocked6} elements instead of block.nft.size = {}; delete \
             the table to have them created with that size",
            spec.size
        )));
    }
    Ok((spec, installed == Installed::Created))
}

/// Installs the table with as much of decoys, the trap, and the chain for own source addresses as the kernel supports.
fn install_less(nft: &mut Nft, spec: &mut RulesetSpec) -> Result<Installed, RulesetError> {
    let asked = *spec;
    // Bits of the omitted parts: first one part, then two, then all.
    for left_out in [1, 2, 4, 3, 5, 6, 7] {
        let has = |part| left_out & part == 0;
        *spec = RulesetSpec {
            decoys: asked.decoys.filter(|_| has(1)),
            trap: asked.trap.filter(|_| has(2)),
            own_source: asked.own_source && has(4),
            ..asked
        };
        match nft.install(spec) {
            Err(RulesetError::Lacking { .. }) => {}
            installed => return installed,
        }
    }
    nft.install(spec)
}

/// Maximum number of attempts to create the table if another program deletes it each time.
const MAX_ATTEMPTS: u32 = 10;

/// Handles the events of the slow-backends thread. Waits only for the sensor.
fn reporter(
    entry_file: Option<EntryFile>,
    events: Sender,
    sensor: SensorHandle,
) -> impl FnMut(BackendEvent) + Send + 'static {
    move |event| {
        let metrics = &sensor.metrics;
        let text = event.sentence().unwrap_or_default();
        let kind = match event {
            BackendEvent::Ready { context } => {
                return sensor.send_blocking(SensorCommand::CommandEnded(context.target));
            }
            BackendEvent::Done { context, backend } => {
                let BanContext { target, ban, since, .. } = context;
                if let Some(ban) = &ban {
                    metrics.blocked(backend, ban.probe.observation.class, ban.grade);
                }
                let entry = entry_file.as_ref().map_or_else(String::new, |file| file.hosts_deny.entry(&context));
                let time = if ban.is_some() { since } else { SystemTime::now() };
                return events.send(Event { time, kind: EventKind::Entered { target, backend, ban, entry } });
            }
            BackendEvent::Released { .. } | BackendEvent::Connections { ended: 0, .. } => {
                return;
            }
            BackendEvent::Ran { context, phase, command, ref outcome, ref output, took, again, .. } => {
                let well = outcome.is_success();
                match (well, phase, &context.ban) {
                    (true, CommandPhase::Before | CommandPhase::Block, Some(ban)) => {
                        metrics.blocked(Backend::Command, ban.probe.observation.class, ban.grade);
                    }
                    (false, ..) => metrics.failed(Backend::Command),
                    _ => {}
                }
                let took =
                    humantime::format_duration(Duration::from_millis(took.as_millis().try_into().unwrap_or(u64::MAX)));
                let wrote = if output.is_empty() { String::new() } else { format!("; output: {output}") };
                let when = match phase {
                    CommandPhase::Before => " before the block",
                    CommandPhase::Block => "",
                    CommandPhase::Release => " at the end of the ban",
                };
                let ban = context.ban.filter(|_| phase != CommandPhase::Release);
                let has_ended = again.is_none()
                    && !matches!(outcome, ExitOutcome::Stopped | ExitOutcome::Unknown | ExitOutcome::NotStarted(_));
                let undone = (phase == CommandPhase::Release && has_ended).then_some(context.since);
                let outcome = format!("{outcome} after {took}{when}{wrote}").into();
                let kind =
                    EventKind::Ran { target: context.target, ban, command: command.into(), outcome, well, undone };
                return events
                    .send(Event { time: if ban.is_some() { context.since } else { SystemTime::now() }, kind });
            }
            BackendEvent::Failed { task, .. } | BackendEvent::Unable { task, .. } => {
                if let SlowTask::Ban(backend) = task {
                    metrics.failed(backend);
                }
                EventKind::Error(text)
            }
            BackendEvent::Restored { targets, backend } => {
                metrics.relined.add(targets.len() as u64);
                EventKind::Repaired { bans: targets.len(), backend }
            }
            BackendEvent::Connections { target, ended } => EventKind::Disconnected { target, connections: ended },
            BackendEvent::Lost { .. } => EventKind::Error(text),
            BackendEvent::Exempted { .. } => EventKind::Note(text),
        };
        events.emit(kind);
    }
}

/// Removes the objects that `config` does not use any more; returns the events to report.
pub(super) fn remove_leftovers(config: &Config) -> Vec<EventKind> {
    let is_unused = |backend: Backend| !config.block.method.contains(&backend);
    let backends = config.block.method.iter().map(|method| method.name()).collect::<Vec<_>>().join(", ");
    let mut report = Vec::new();
    if is_unused(Backend::Nft) {
        let spec = RulesetSpec::from_config(config);
        match Nft::open().map_err(RulesetError::from).and_then(|mut nft| nft.remove(&spec)) {
            Ok(true) => report.push(EventKind::Note(format!(
                "table inet portsentry of an earlier run has been removed, because \"nft\" is not in block.method; its \
                 bans continue with {backends}"
            ))),
            Ok(false) | Err(RulesetError::Socket(_)) => {}
            Err(error) => report.push(EventKind::Error(format!("the table of an earlier run stays: {error}"))),
        }
    }
    if is_unused(Backend::Route) {
        let removed = Routes::from_config(config).and_then(|mut routes| {
            let found = routes.leftovers()?;
            Ok((found.len(), routes.remove_stale(Timestamp::default()).trouble))
        });
        match removed {
            Ok((0, _)) | Err(_) => {}
            Ok((count, None)) => report.push(EventKind::Note(format!(
                "routes of earlier bans have been removed, because \"route\" is not in block.method: {count}; the bans continue \
                 with {backends}"
            ))),
            Ok((_, Some(error))) => report.push(EventKind::Error(format!(
                "routes of earlier bans stay: {error}; remove them with `ip route flush proto 112` and \
                 `ip -6 route flush proto 112`"
            ))),
        }
    }
    report
}

/// True if an earlier run may have left bans in a backend or in the ledger in `state_dir`, or commands that have to be
/// undone. Must be called before the daemon opens the ledger. A table may contain bans of a fleet, and counts even if
/// it is empty, because the kernel takes seconds to list a full set.
pub(super) fn have_leftovers(config: &Config, state_dir: &Path) -> bool {
    let has_table = || Socket::open().is_ok_and(|mut socket| matches!(table_handle(&mut socket), Ok(Some(_))));
    let has_routes = || {
        let found = Routes::from_config(config).and_then(|mut routes| routes.leftovers());
        found.is_ok_and(|found| !found.is_empty())
    };
    let has_records = || {
        let undoes_commands = !config.block.run.expire_command.is_empty();
        let found = Reader::read(state_dir, |reader| {
            let is_active = !reader.active(SystemTime::now())?.items.is_empty();
            Ok(is_active || undoes_commands && reader.has_to_undo()?)
        });
        found.unwrap_or(false)
    };
    let has_lines = || HostsDeny::from_config(config).is_ok_and(|hosts_deny| has_entries(&hosts_deny.into()));
    has_table() || has_routes() || has_lines() || has_records()
}

/// True if `file` contains entries of earlier bans.
pub(super) fn has_entries(file: &EntryFile) -> bool {
    file.held().is_ok_and(|held| !held.is_empty())
}
