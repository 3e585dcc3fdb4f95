//! Records bans from events in the ledger, and reads at the start which of them are still in force. If the ledger
//! cannot be opened or written, an event reports it and blocking continues.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use super::host_memory::HostRecords;
use super::known_peers::MAX_PEERS;
use super::recent_listeners::MAX_LISTENERS;
use super::service_tracker::MAX_SERVICES;
use crate::clock::boot_time;
use crate::config::Config;
use crate::engine::{ActiveBan, Host, RecentBans, StrikeHistory};
use crate::events::channel::Sender;
use crate::events::event::{Event, EventKind};
use crate::events::json::WITHOUT_VERDICT;
use crate::host::boot;
use crate::ledger::{
    Allowance, BanAuthor, BanRecord, BanSummary, EndRecord, Ending, FleetLift, Ledger, LedgerChange, LedgerError,
    LegacyFiles, LoadedState, Logged, Opened, Recorder, Rows, Stopped, Writer, WriterEvent, decisions, services,
    unreadable_note,
};
use crate::types::{Backend, Backends, BanTarget, Expiry};

/// Lifts of the fleet's bans that are read at the start.
const MAX_FLEET_LIFTS: usize = 131_072;

/// Commands of ended bans that are undone after the start. The slow backends hold as many.
const MAX_UNDO: usize = 131_072;

/// Time limit for writing the pending changes when the program ends.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(400);

/// What the ledger knows of earlier runs; empty if it cannot be opened.
#[derive(Default)]
pub(super) struct EarlierRuns {
    pub(super) bans: EarlierBans,
    pub(super) strikes: Vec<StrikeHistory>,
    /// Bans that count towards the ceilings.
    pub(super) recent: RecentBans,
    pub(super) host: HostRecords,
    /// End of a trial that an operator started.
    pub(super) trial: Option<SystemTime>,
    pub(super) allowances: Vec<Allowance>,
    /// The bans of the fleet that operators lifted.
    pub(super) fleet_lifts: Vec<FleetLift>,
    /// Identity of the kernel's table when the daemon last ran.
    pub(super) table: Option<String>,
}

impl EarlierRuns {
    /// Forgets targets on links, and records that this is the first start since the boot: another link may have the
    /// index of a remembered one.
    fn forget_links(&mut self) {
        let is_link = |target| matches!(target, BanTarget::Link { .. });
        self.bans.remembered.retain(|one| !is_link(one.ban.target));
        self.host.peers.retain(|peer| !is_link(peer.target));
        self.host.booted = true;
    }
}

#[derive(Default)]
pub(super) struct EarlierBans {
    /// Those that are still in force.
    pub(super) remembered: Vec<RememberedBan>,
    /// Those that have ended, and whose commands have to be undone.
    pub(super) undo_due: Vec<BanSummary>,
    /// Targets with an object of an earlier run in this backend that are missing in the ledger because of a crash.
    pub(super) unrecorded: Vec<(Backend, BanTarget)>,
}

/// The ledger while a thread opens and reads it. A full ledger takes a few tenths of a second, during which the rest of
/// the start continues.
pub(super) struct Reading {
    directory: PathBuf,
    thread: JoinHandle<Result<Read, LedgerError>>,
}

/// The opened ledger, the entries of earlier runs, and messages for the log.
type Read = (Ledger, EarlierRuns, Vec<EventKind>);

impl Reading {
    /// Opens the ledger in `directory`, and reads what a daemon with `config` needs.
    pub(super) fn start(directory: &Path, config: &Config) -> io::Result<Self> {
        let (place, config) = (directory.to_owned(), config.clone());
        let thread = thread::Builder::new().name("ledger".to_owned()).spawn(move || read(&place, &config))?;
        Ok(Self { directory: directory.to_owned(), thread })
    }
}

fn read(directory: &Path, config: &Config) -> Result<Read, LedgerError> {
    let undoes_commands = !config.block.run.expire_command.is_empty();
    let max_strikes = usize::try_from(config.block.nft.size).unwrap_or(usize::MAX);
    let now = SystemTime::now();
    let (ledger, opened) = Ledger::open(directory)?;
    let mut ledger = ledger.undoing_commands(undoes_commands);
    ledger.begin(now)?;
    // Expired bans are marked before the bans are read: a ban that ended while the program was down is not restored.
    let _ = ledger.expire(now)?;
    let reader = ledger.reader();
    let LoadedState { active, histories, recent, mut unreadable } =
        LoadedState::read(reader, config.escalate.forget, now, max_strikes)?;
    let left = |ban: BanSummary| ban.left(now).map(|left| RememberedBan { ban, left });
    let (undo_due, postponed) = match undoes_commands {
        true => reader.undo_due(MAX_UNDO)?,
        false => (Rows { items: Vec::new(), unreadable: 0 }, 0),
    };
    let mut earlier_runs = EarlierRuns {
        bans: EarlierBans {
            remembered: active.into_iter().filter_map(left).collect(),
            undo_due: items(undo_due, &mut unreadable),
            unrecorded: Vec::new(),
        },
        strikes: histories,
        recent,
        host: HostRecords {
            services: items(services::remembered(reader, MAX_SERVICES)?, &mut unreadable),
            listeners: items(services::listeners(reader, MAX_LISTENERS)?, &mut unreadable),
            peers: items(services::known_peers(reader, MAX_PEERS)?, &mut unreadable),
            booted: false,
        },
        trial: decisions::trial(reader)?,
        allowances: items(decisions::allowances(reader)?, &mut unreadable),
        fleet_lifts: items(decisions::fleet_lifts(reader, MAX_FLEET_LIFTS)?, &mut unreadable),
        table: services::kernel_table(reader)?,
    };
    let boot = boot::boot_id();
    let last = boot.as_deref().map(|boot| ledger.enter_boot(boot)).transpose()?.flatten();
    if boot::has_booted(last.as_deref(), boot.as_deref(), boot_time().since_origin()) {
        earlier_runs.forget_links();
    }
    let mut errors = Vec::new();
    if let Opened::Rebuilt { aside, damage } = opened {
        errors.push(format!(
            "the ledger was damaged ({damage}) and is kept as {}; a new one is created from the bans in the kernel",
            aside.display()
        ));
    }
    errors.extend(unreadable_note(unreadable));
    if postponed > 0 {
        errors.push(format!(
            "more than {MAX_UNDO} bans with a command have ended while portsentry was not running; \
             block.run.expire_command runs for the others after the next start: {postponed}"
        ));
    }
    Ok((ledger, earlier_runs, errors.into_iter().map(EventKind::Error).collect()))
}

/// The rows that could be read; adds the number of the others to `unreadable`.
fn items<T>(found: Rows<T>, unreadable: &mut u64) -> Vec<T> {
    *unreadable += found.unreadable;
    found.items
}

/// A ban from before the start, and its remaining time.
pub(super) struct RememberedBan {
    pub(super) ban: BanSummary,
    pub(super) left: Expiry,
}

impl RememberedBan {
    /// Converts it for the engine and the backends.
    pub(super) fn to_active_ban(&self) -> ActiveBan {
        let length = self.ban.until.and_then(|until| until.duration_since(self.ban.since).ok());
        ActiveBan { target: self.ban.target, length, grade: self.ban.grade, left: self.left }
    }
}

/// Maximum number of bans whose recording is remembered, because several backends report the same ban within moments.
const MAX_RECENT: usize = 512;

/// The ledger while the program runs; does nothing if there is none.
#[derive(Default)]
pub(super) struct BanRecorder {
    writer: Option<Writer>,
    backends: Vec<Backend>,
    recent: VecDeque<(BanTarget, SystemTime)>,
}

impl BanRecorder {
    /// Continues after [`Reading::start`]; also returns messages for the log. `leftovers` are targets that an
    /// earlier run has left in an inline backend.
    pub(super) fn open(
        reading: Reading,
        events: &Sender,
        leftovers: &[(Backend, BanTarget)],
        backends: &[Backend],
    ) -> (Self, EarlierRuns, Vec<EventKind>) {
        let (writer, earlier_runs, messages) = match start_writer(reading, events, leftovers) {
            Ok((writer, earlier_runs, messages)) => (Some(writer), earlier_runs, messages),
            Err(error) => {
                let text =
                    format!("{error}; blocking continues, but bans do not survive a reboot or a flush of the ruleset");
                let bans = EarlierBans { unrecorded: leftovers.to_vec(), ..EarlierBans::default() };
                (None, EarlierRuns { bans, ..EarlierRuns::default() }, vec![EventKind::Error(text)])
            }
        };
        (Self { writer, backends: backends.to_vec(), recent: VecDeque::new() }, earlier_runs, messages)
    }

    /// A sender of changes for other threads.
    pub(super) fn recorder(&self) -> Recorder {
        self.writer.as_ref().map(Writer::recorder).unwrap_or_default()
    }

    /// Records a change, such as the decision of an operator.
    pub(super) fn write(&self, change: LedgerChange) {
        self.recorder().send(change);
    }

    /// Records the ban that `event` reports, if any; true if the event is the first to report a ban on evidence.
    pub(super) fn record(&mut self, event: &Event, host: Option<&Host>) -> bool {
        // A command enforces a ban only if it is one of the backends and has succeeded.
        let enforces =
            !matches!(event.kind, EventKind::Ran { well, .. } if !well || !self.backends.contains(&Backend::Command));
        let Some((ban, backend)) = event.kind.reported_ban().filter(|_| enforces) else {
            if let Some(change) = self.other(&event.kind, event.time) {
                self.write(change);
            }
            return false;
        };
        let (target, observation) = (ban.probe.target, ban.probe.observation);
        let begins = self.is_new(target, event.time);
        let link = host.and_then(|host| host.links.iter().find(|link| link.id.index == observation.interface));
        let mut row = BanRecord::from_ban(ban, event.time, link.map(|link| link.id.name()), backend);
        row.guest_port = host.and_then(|host| host.guest_port(target, observation.source, observation.bridge_port));
        self.write(if begins { row.into() } else { LedgerChange::Also(row) });
        begins
    }

    /// Returns the change for an event about a ban that does not begin on evidence.
    fn other(&self, kind: &EventKind, at: SystemTime) -> Option<LedgerChange> {
        Some(match kind {
            EventKind::ByHand { target, expiry, note, backend, .. } => {
                let backends: Backends = match backend {
                    Some(backend) => (*backend).into(),
                    None => self.backends.iter().copied().collect(),
                };
                let ban = BanRecord::wanted_by(BanAuthor::Operator, *target, at, *expiry, backends);
                BanRecord { note: note.clone(), ..ban }.into()
            }
            EventKind::Shortened { target, expiry, ports } => {
                BanRecord::by_trap(*target, at, *expiry, ports.clone(), WITHOUT_VERDICT).into()
            }
            EventKind::Ran { target, undone: Some(since), .. } => {
                LedgerChange::Undone { target: *target, since: *since, at }
            }
            EventKind::Scan(ban) => LedgerChange::Logged(Logged::from_ban(ban, at, ban.reason())),
            EventKind::Unblocked { target, by } => lifted(*target, by, at),
            EventKind::BanVanished { target } => lifted(*target, "another program", at),
            _ => return None,
        })
    }

    /// False if another backend reported the same ban of `target`, with this time, before.
    fn is_new(&mut self, target: BanTarget, at: SystemTime) -> bool {
        let this = (target, at);
        if self.recent.contains(&this) {
            return false;
        }
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(this);
        true
    }

    /// Writes the remaining changes and closes the ledger; returns an error event if that failed.
    pub(super) fn close(self) -> Option<EventKind> {
        let text = match self.writer?.stop(FLUSH_TIMEOUT) {
            Stopped::Whole => return None,
            Stopped::Left(changes) => {
                format!("changes lost because they could not be written to the ledger: {changes}")
            }
            Stopped::Stuck => "the last changes were not written to the ledger in time".to_owned(),
        };
        Some(EventKind::Error(text))
    }
}

/// Starts the writing thread after the reading thread has ended.
fn start_writer(
    Reading { directory, thread }: Reading,
    events: &Sender,
    leftovers: &[(Backend, BanTarget)],
) -> Result<(Writer, EarlierRuns, Vec<EventKind>), LedgerError> {
    let directory = directory.as_path();
    let gone = || io::Error::other("the thread that reads the ledger panicked");
    let read = thread.join().unwrap_or_else(|_| Err(LedgerError::system("read", directory)(gone())))?;
    let (ledger, mut earlier_runs, mut messages) = read;
    for (backend, target) in leftovers {
        if ledger.reader().bans_of(*target)?.items.is_empty() {
            earlier_runs.bans.unrecorded.push((*backend, *target));
        }
    }
    let classic = LegacyFiles::open(directory).map_err(|error| messages.push(EventKind::Error(error.to_string()))).ok();
    let events = events.clone();
    let emit = move |event: WriterEvent| {
        let text = event.to_string();
        match event {
            WriterEvent::Expired(targets) => {
                targets.into_iter().for_each(|target| events.emit(EventKind::Expired { target }));
            }
            event if event.is_error() => events.emit(EventKind::Error(text)),
            _ => events.emit(EventKind::Note(text)),
        }
    };
    let writer = Writer::start(ledger, classic, emit).map_err(LedgerError::system("start a thread for", directory))?;
    Ok((writer, earlier_runs, messages))
}

pub(super) fn lifted(target: BanTarget, by: &str, at: SystemTime) -> LedgerChange {
    LedgerChange::Ended { target, ended: EndRecord { how: Ending::Lifted { by: by.to_owned() }, at } }
}
