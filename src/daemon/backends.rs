//! Opens the configured backends, and reports the events of the slow ones. Protected addresses are set before the first
//! ban. Also removes what bans of an earlier run left in backends that `block.method` no longer contains: the table and
//! routes. These bans continue in the configured backends.

use std::path::Path;
use std::time::SystemTime;

use super::error::DaemonError;
use super::sensor_thread::SensorHandle;
use super::table_identity::FoundTable;
use crate::config::Config;
use crate::enforce::nft::{BlockError, Installed, Nft, RulesetError, RulesetSpec, Table, TrapContents, trap_sets};
use crate::enforce::slow_backends::{BackendEvent, CommandPhase, SlowBackends, SlowQueue, SlowTask};
use crate::enforce::{BackendHandles, BanContext, Helpers, Opened, implementation};
use crate::engine::Host;
use crate::events::channel::Sender;
use crate::events::event::EventKind;
use crate::ledger::Reader;
use crate::netlink::nft::{has_repeated_rules, is_created_by_nft, table_handle};
use crate::netlink::socket::Socket;
use crate::sensor::{Blocker, SensorCommand};
use crate::types::{Backend, Backends, BanTarget, Response};

/// The backends that this run uses.
#[derive(Clone)]
pub(super) struct UsedBackends {
    /// The backends that enforce bans. Empty if the configuration only logs and there are no earlier bans.
    pub(super) backends: Vec<Backend>,
    /// Slow backends that are no longer in `block.method`. They begin no bans, but remove the lines of earlier bans
    /// from hosts.deny and run `expire_command` when an earlier ban ends.
    pub(super) ending: Backends,
    /// `backends` and `ending`, and the command backend if a protocol has `block = "run"`.
    pub(super) open: Backends,
}

impl UsedBackends {
    /// The backends that `config` uses. `earlier_bans` is true if an earlier run has left bans, which continue even if
    /// `config` only logs; `leftovers` are the slow backends in which it may have left something.
    pub(super) fn new(config: &Config, earlier_bans: bool, leftovers: Backends) -> Self {
        let enforces = config.blocks() || earlier_bans;
        let backends = if enforces { config.block.method.clone() } else { Vec::new() };
        let ending: Backends = leftovers.iter().filter(|backend| enforces && !backends.contains(backend)).collect();
        let only_run = config.uses(Response::RunCommand).then_some(Backend::Command);
        let open = backends.iter().copied().chain(ending.iter()).chain(only_run).collect();
        Self { backends, ending, open }
    }
}

/// The slow backends in which an earlier run may have left something.
pub(super) fn slow_leftovers(config: &Config) -> Backends {
    let slow = Backend::ALL.into_iter().filter(|backend| backend.is_slow());
    slow.filter(|backend| implementation(*backend).has_leftovers(config)).collect()
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
    /// See [`InlineBackend::route_port_id`](crate::enforce::InlineBackend::route_port_id).
    pub(super) route_port_id: Option<u32>,
    pub(super) messages: Vec<EventKind>,
}

/// A table that this start created. It is removed again if the start fails.
pub(super) struct NewTable(Option<Nft>);

impl NewTable {
    /// Keeps the table, because the start has succeeded.
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for NewTable {
    fn drop(&mut self) {
        if let Some(mut nft) = self.0.take() {
            // The start already fails with another error.
            drop(nft.remove());
        }
    }
}

/// Opens the backends in use, with `spec` as the ruleset for nftables.
pub(super) fn open(
    config: &Config,
    host: &Host,
    helpers: &Helpers,
    used: &UsedBackends,
    spec: RulesetSpec,
    events: &Sender,
    sensor: &SensorHandle,
) -> Result<OpenBackends, DaemonError> {
    let mut opened = OpenBackends::default();
    let has = |backend: Backend| used.backends.contains(&backend);
    let (mut nft, mut others, mut slow, mut slow_queue) = (None, BackendHandles::new(), Vec::new(), None);
    // Fallible checks come before the first change.
    for backend in used.open.iter().filter(|backend| *backend != Backend::Nft) {
        match implementation(backend).open(config, helpers)? {
            Opened::Inline(mut handle) => {
                opened.leftovers.extend(handle.unexpiring_targets()?.into_iter().map(|target| (backend, target)));
                opened.route_port_id = opened.route_port_id.or(handle.route_port_id());
                others.push((backend, handle));
            }
            Opened::Slow(handle) => slow.push((backend, handle)),
        }
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
        if install(nft, spec, host, &mut opened.messages)? {
            match nft.try_clone() {
                Ok(handle) => opened.new_table = Some(NewTable(Some(handle))),
                Err(error) => {
                    drop(nft.remove());
                    return Err(error.into());
                }
            }
        }
    } else if let Ok(mut table) = Table::open() {
        // A trap that a crashed run left armed must not continue to block. Usually there is none. Each set is emptied
        // separately, because a missing set makes the kernel refuse the whole transaction.
        let none: Option<&[(u16, u16)]> = Some(&[]);
        for contents in [
            TrapContents { tcp: none, ..TrapContents::default() },
            TrapContents { udp: none, ..TrapContents::default() },
            TrapContents { services: none, ..TrapContents::default() },
        ] {
            drop(trap_sets::arm(&mut table, contents));
        }
    }
    opened.messages.extend(slow.iter().filter_map(|(_, handle)| handle.warning()).map(EventKind::Error));
    let end_connections = nft.is_some() && config.block.nft.end_connections;
    if !slow.is_empty() || end_connections {
        let report = reporter(events.clone(), sensor.clone());
        let slow = SlowBackends::start(slow, end_connections, report).map_err(DaemonError::system("start a thread"))?;
        let command_first = has(Backend::Command) && config.block.run.first;
        slow_queue = Some(SlowQueue::new(&slow, &used.backends, command_first, used.ending.contains(Backend::Command)));
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
pub(super) fn open_again(config: &Config) -> Result<BackendHandles, DaemonError> {
    let mut handles = BackendHandles::new();
    for backend in config.block.method.iter().copied().filter(|backend| !backend.is_slow()) {
        if let Opened::Inline(handle) = implementation(backend).open(config, &Helpers::default())? {
            handles.push((backend, handle));
        }
    }
    Ok(handles)
}

/// Sets the allow-list again, because it has grown since [`open`].
pub(super) fn protect(blocker: &mut Blocker, host: &Host) -> Result<(), BlockError> {
    let prefixes: Vec<_> = host.allow.prefixes().collect();
    if let Some(nft) = blocker.nft() {
        nft.replace_allow_list(&prefixes)?;
    }
    drop(blocker.protect(host));
    Ok(())
}

/// Creates or adopts the ruleset, and sets the allow-list before the first ban; true if there was no table.
fn install(
    nft: &mut Nft,
    mut spec: RulesetSpec,
    host: &Host,
    messages: &mut Vec<EventKind>,
) -> Result<bool, DaemonError> {
    let prefixes: Vec<_> = host.allow.prefixes().collect();
    let mut attempt = 1;
    let installed = loop {
        let installed = match nft.install(&spec) {
            // Everything else works without these features.
            Err(error @ RulesetError::Lacking { .. }) if spec.watches_ports() || spec.own_source => {
                let asked = spec;
                let installed = install_less(nft, &mut spec)?;
                if asked.decoys.is_some() && spec.decoys.is_none() {
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
        match nft.replace_allow_list(&prefixes) {
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
    Ok(installed == Installed::Created)
}

/// Installs the table with as much of decoys, the trap, and the chain for own source addresses as the kernel supports.
fn install_less(nft: &mut Nft, spec: &mut RulesetSpec) -> Result<Installed, RulesetError> {
    let asked = *spec;
    // First without one part, then without two, then without all.
    for reduced in [
        RulesetSpec { decoys: None, ..asked },
        RulesetSpec { trap: None, ..asked },
        RulesetSpec { own_source: false, ..asked },
        RulesetSpec { decoys: None, trap: None, ..asked },
        RulesetSpec { decoys: None, own_source: false, ..asked },
        RulesetSpec { trap: None, own_source: false, ..asked },
        RulesetSpec { decoys: None, trap: None, own_source: false, ..asked },
    ] {
        *spec = reduced;
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
fn reporter(events: Sender, sensor: SensorHandle) -> impl FnMut(BackendEvent) + Send + 'static {
    move |event| {
        let metrics = &sensor.metrics;
        match &event {
            BackendEvent::Ready { context } => sensor.send_blocking(SensorCommand::CommandEnded(context.target)),
            BackendEvent::Done { context: BanContext { ban: Some(ban), .. }, backend, .. } => {
                metrics.blocked(*backend, ban.probe.observation.class, ban.grade);
            }
            BackendEvent::Ran { context, phase, outcome, .. } => match (outcome.is_success(), phase, &context.ban) {
                (true, CommandPhase::Before | CommandPhase::Block, Some(ban)) => {
                    metrics.blocked(Backend::Command, ban.probe.observation.class, ban.grade);
                }
                (false, ..) => metrics.failed(Backend::Command),
                _ => {}
            },
            BackendEvent::Failed { task: SlowTask::Ban(backend), .. }
            | BackendEvent::Unable { task: SlowTask::Ban(backend), .. } => metrics.failed(*backend),
            BackendEvent::Restored { targets, .. } => metrics.entries_restored.add(targets.len() as u64),
            _ => {}
        }
        if let Some(event) = event.into_event() {
            events.send(event);
        }
    }
}

/// Removes what earlier runs left in the inline backends that `config` does not use any more; returns the events to
/// report.
pub(super) fn remove_leftovers(config: &Config) -> Vec<EventKind> {
    let used = config.block.method.iter().map(|backend| backend.name()).collect::<Vec<_>>().join(", ");
    let unused = Backend::ALL.into_iter().filter(|backend| !config.block.method.contains(backend));
    let reports = unused.filter_map(|backend| match implementation(backend).discard_leftovers(config, &used) {
        Ok(note) => note.map(EventKind::Note),
        Err(error) => Some(EventKind::Error(error)),
    });
    reports.collect()
}

/// True if an earlier run may have left bans in a backend or in the ledger in `state_dir`, or commands that have to be
/// undone. Must be called before the daemon opens the ledger. A table may contain bans of a fleet, and counts even if
/// it is empty, because the kernel takes seconds to list a full set.
pub(super) fn have_leftovers(config: &Config, state_dir: &Path) -> bool {
    let has_records = || {
        let undoes_commands = !config.block.run.expire_command.is_empty();
        let found = Reader::read(state_dir, |reader| {
            let is_active = !reader.active(SystemTime::now())?.items.is_empty();
            Ok(is_active || undoes_commands && reader.has_to_undo()?)
        });
        found.unwrap_or(false)
    };
    let mut others = Backend::ALL.into_iter().filter(|backend| *backend != Backend::Command);
    others.any(|backend| implementation(backend).has_leftovers(config)) || has_records()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_backend_ends_earlier_bans() {
        let config = |text: &str| Config::parse("test", text).unwrap();
        let used = |config: &Config, earlier_bans| UsedBackends::new(config, earlier_bans, slow_leftovers(config));
        let run = "[block.run]\ncommand = [\"/bin/true\"]\n";
        let undoes = format!("{run}expire_command = [\"/bin/true\"]\n[block.hosts_deny]\nfile = \"/proc/none\"\n");
        let is_ending = |text: &str| used(&config(text), false).ending.contains(Backend::Command);
        assert!(is_ending(&undoes), "the commands of earlier bans are undone");
        assert!(!is_ending(run), "there is no command for the end of a ban");
        assert!(!is_ending(&format!("[block]\nmethod = [\"run\"]\n{undoes}")), "it is a backend");
        let scans_run = format!("[tcp]\nblock = \"run\"\n[udp]\nblock = true\n{undoes}");
        assert!(is_ending(&scans_run), "also if scans of a protocol only run the command");
        let only_logs = config(&format!("[tcp]\nblock = false\n[udp]\nblock = false\n{undoes}"));
        assert!(used(&only_logs, false).open.is_empty());
        let used = used(&only_logs, true);
        assert_eq!((used.backends, used.open.contains(Backend::Command)), (vec![Backend::Nft], true));
    }
}
