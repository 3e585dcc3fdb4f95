//! Reconciles the bans from before the start: compares the ledger with the kernel, and sends the differences to the
//! sensor and to the ledger.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::oneshot;

use super::backends::{self, UsedBackends};
use super::ban_recorder::{EarlierBans, RememberedBan};
use super::error::DaemonError;
use super::sensor_thread::SensorHandle;
use super::table_identity::TableOrigin;
use crate::config::Config;
use crate::enforce::nft::{BlockError, Generation, Nft};
use crate::enforce::slow_backends::{Adopted, Task, TaskSender};
use crate::enforce::{BanContext, ExemptPrefixes};
use crate::engine::{ActiveBan, Grade};
use crate::events::channel;
use crate::events::event::EventKind;
use crate::ledger::{BanAuthor, BanRecord, BanSummary, LedgerChange, Recorder};
use crate::panic_guard;
use crate::sensor::{GuestBan, SensorCommand, SensorRequest};
use crate::types::{Backend, Backends, BanTarget, Expiry};

mod difference;
mod elements;

use difference::reconcile;
use elements::Element;

/// Bans from before the start that the sensor adopts between two batches of packets.
const ADOPTION_BATCH: usize = 256;

/// Bans from the ledger that are sent to the kernel between two batches of packets: about 40 ms.
const RESTORE_BATCH: usize = 10_000;

/// The state to adopt, and the components that receive it.
pub(super) struct StartupReconcile {
    pub(super) sensor: SensorHandle,
    pub(super) events: channel::Sender,
    pub(super) recorder: Recorder,
    pub(super) bans: EarlierBans,
    pub(super) used: UsedBackends,
    /// Bans around these prefixes are enforced by nftables only.
    pub(super) exempt: ExemptPrefixes,
    pub(super) table_origin: TableOrigin,
    /// The sources that the kernel's trap has blocked since the last daemon ended.
    pub(super) trap_banned: Vec<BanTarget>,
    /// A file that exists while bans are restored: if a start is killed meanwhile, the next one detects it.
    pub(super) marker: PathBuf,
    pub(super) config: Config,
    /// The queue of the slow backends, if there are any.
    pub(super) tasks: Option<TaskSender>,
    /// The kernel's sets, for this thread; `None` if nft is not a backend.
    pub(super) nft: Option<Nft>,
}

impl StartupReconcile {
    /// Runs on a separate thread, because the kernel takes seconds to list a full set.
    pub(super) fn start(mut self) -> Result<(), DaemonError> {
        let thread = std::thread::Builder::new().name("adopt".to_owned());
        let work = move || {
            panic_guard::restart_on_panic(|| self.hand_over());
            // The marker file reveals work that a panic interrupted.
            panic_guard::restart_on_panic(|| self.adopt());
            self.follow_guests();
            // Without a ledger only the old backend knows the bans. A panic does not repeat the removal.
            let mut is_due = self.recorder.is_open();
            panic_guard::restart_on_panic(|| std::mem::take(&mut is_due).then(|| self.remove_leftovers()));
            panic_guard::restart_on_panic(|| self.record_backends());
        };
        thread.spawn(work).map(drop).map_err(DaemonError::system("start a thread"))
    }

    /// Removes objects of earlier bans from other backends, once the sensor has the bans in the current ones. A start
    /// that fails removes nothing.
    fn remove_leftovers(&self) {
        // The start has passed all its checks once the sensor runs.
        if self.await_sensor() {
            backends::remove_leftovers(&self.config).into_iter().for_each(|kind| self.events.emit(kind));
        }
    }

    /// Waits until the sensor has executed all earlier commands; false if it has ended.
    fn await_sensor(&self) -> bool {
        let (answer, done) = oneshot::channel();
        self.sensor.send_blocking(SensorCommand::Request(SensorRequest::Count { answer }));
        done.blocking_recv().is_ok()
    }

    /// Sends `items` to the sensor in batches of `size`, between which it processes packets.
    fn send_in_batches<T: Clone>(&self, items: &[T], size: usize, command: impl Fn(Vec<T>) -> SensorCommand) {
        items.chunks(size).for_each(|batch| self.sensor.send_blocking(command(batch.to_vec())));
    }

    /// Records which backends enforce the bans now, where `block.method` or the exempt prefixes have changed.
    fn record_backends(&self) {
        for ban in self.bans.remembered.iter().map(|remembered| &remembered.ban) {
            let mut backends = continuing(&self.used.backends, ban);
            if self.exempt.check(ban.target).is_err() {
                backends = backends.iter().filter(|backend| *backend == Backend::Nft).collect();
            }
            if backends != ban.backends {
                self.recorder.write_blocking(LedgerChange::Moved { target: ban.target, since: ban.since, backends });
            }
        }
    }

    /// Sends the bridge ports of guests to the sensor, which must already have the bans.
    fn follow_guests(&self) {
        let guest_ban =
            |RememberedBan { ban, .. }: &RememberedBan| Some(GuestBan { target: ban.target, port: ban.guest_port? });
        let bans = self.bans.remembered.iter().filter_map(guest_ban).collect();
        self.sensor.send_blocking(SensorCommand::FollowGuests(bans));
    }

    /// Informs the slow backends about the bans that are still in force.
    fn hand_over(&self) {
        let EarlierBans { remembered, undo_due, .. } = &self.bans;
        if !undo_due.is_empty() {
            self.send(Task::Undo { bans: undo_due.iter().map(context).collect() });
        }
        let adopted = |RememberedBan { ban, left }: &RememberedBan| {
            // Entries of bans that have ended are removed.
            let continuing = continuing(&self.used.backends, ban).iter();
            let backends: Backends =
                continuing.filter(|backend| backend.is_slow() && self.used.open.contains(*backend)).collect();
            let adopted = Adopted { context: context(ban), backends, done: ban.backends, left: *left };
            (!backends.is_empty()).then_some(adopted)
        };
        self.send(Task::Adopt { bans: remembered.iter().filter_map(adopted).collect() });
    }

    /// Adds the entries of a ban, such as its line in hosts.deny, that a crash has prevented.
    fn add_entries(&self, target: BanTarget, left: Expiry) {
        let slow = self.used.backends.iter().copied().filter(|backend| backend.is_slow());
        let backends: Arc<[Backend]> = slow.filter(|backend| *backend != Backend::Command).collect();
        if !backends.is_empty() {
            self.send(Task::BlockUnknown { context: BanContext::by_hand(target, left, SystemTime::now()), backends });
        }
    }

    /// Sends `task` to the slow backends, if there are any. Blocks only this thread if the queue is full.
    fn send(&self, task: Task) {
        if let Some(tasks) = &self.tasks {
            tasks.send_blocking(task);
        }
    }

    fn adopt(&mut self) {
        let mut bans: Vec<ActiveBan> = self.bans.remembered.iter().map(RememberedBan::to_active_ban).collect();
        if self.used.backends.contains(&Backend::Nft) {
            match self.adopt_elements(&bans) {
                Some(gone) => bans.retain(|ban| !gone.contains(&ban.target)),
                // Unreadable sets cannot be compared; their elements stay enforced.
                None => return,
            }
        }
        // The other inline backends get the bans of the ledger.
        let others =
            self.used.backends.iter().copied().filter(|backend| !backend.is_slow() && *backend != Backend::Nft);
        let others: Vec<Backend> = others.collect();
        if !others.is_empty() {
            // Neither a crash before the ledger was written nor its loss may lift a ban. The bans are recorded, because
            // otherwise each start would give them the whole duration again.
            let expire = self.config.expire;
            for (backend, target) in &self.bans.unrecorded {
                bans.push(ActiveBan::new(*target, expire));
                let now = SystemTime::now();
                self.recorder
                    .write_blocking(BanRecord::wanted_by(BanAuthor::Import, *target, now, expire, *backend).into());
                self.add_entries(*target, expire);
            }
            for backend in others {
                self.send_in_batches(&bans, RESTORE_BATCH, |bans| SensorCommand::Restore(backend, bans));
            }
            self.sensor.send_blocking(SensorCommand::RemoveStale);
        } else if !self.used.backends.contains(&Backend::Nft) {
            // The slow backends hold the bans; the sensor has to recognise the sources.
            self.send_in_batches(&bans, ADOPTION_BATCH, SensorCommand::Adopt);
        }
    }

    /// Adopts the kernel's elements and restores missing ones; returns the targets that were lifted meanwhile. `None`
    /// if the kernel's sets cannot be read.
    fn adopt_elements(&mut self, remembered: &[ActiveBan]) -> Option<HashSet<BanTarget>> {
        let (elements, incomplete) = match elements::read(remembered) {
            Ok(elements) => (elements, self.table_origin == TableOrigin::Created),
            // Another program has deleted the table since; the table monitor creates it again.
            Err(BlockError::Gone) => (Vec::new(), true),
            Err(error) => {
                let text = format!("cannot read the bans in the kernel: {error}");
                self.events.emit(EventKind::Error(text));
                return None;
            }
        };
        let (elements, incomplete) = match self.table_origin {
            TableOrigin::Loaded => (self.review_loaded(elements, remembered), true),
            _ => (self.review_merged(elements, remembered), incomplete),
        };
        let elements = self.mask(elements);
        let bans = elements.len();
        let interrupted = self.marker.exists();
        let reconciled = reconcile(&elements, remembered, interrupted || incomplete, SystemTime::now());
        let grades: HashMap<BanTarget, Option<Grade>> = remembered.iter().map(|ban| (ban.target, ban.grade)).collect();
        let active = |(target, left)| {
            let grade = grades.get(&target).copied().flatten();
            ActiveBan { target, length: None, grade, left }
        };
        let active: Vec<ActiveBan> = elements.into_iter().map(active).collect();
        self.send_in_batches(&active, ADOPTION_BATCH, SensorCommand::Adopt);
        let generation = self.nft.as_mut().and_then(|nft| nft.table.generation());
        if !reconciled.restore.is_empty() {
            // If the marker cannot be written, the next start treats missing bans as lifted, as it would without a
            // marker.
            let _ = std::fs::write(&self.marker, b"");
            for part in reconciled.restore.chunks(RESTORE_BATCH) {
                self.restore(part);
                panic_guard::failpoint("adopt");
            }
            if !self.await_sensor() {
                return None;
            }
            self.restore_missing(generation, &reconciled.restore);
        }
        if interrupted || !reconciled.restore.is_empty() {
            let _ = std::fs::remove_file(&self.marker);
        }
        for (target, left) in &reconciled.unknown {
            self.add_entries(*target, *left);
        }
        let mut gone = HashSet::new();
        for change in reconciled.changes {
            if let LedgerChange::Ended { target, .. } = &change {
                gone.insert(*target);
            }
            self.recorder.write_blocking(change);
        }
        if !gone.is_empty() {
            self.send(Task::Release { targets: gone.iter().copied().collect() });
        }
        if bans > 0 {
            self.events.emit(EventKind::Adopted { bans });
        }
        Some(gone)
    }

    /// Makes the sensor remove the elements that a file has loaded into the sets, except for bans of the ledger, which
    /// get their remaining times. Returns those bans.
    fn review_loaded(&self, elements: Vec<Element>, remembered: &[ActiveBan]) -> Vec<Element> {
        self.send_in_batches(remembered, ADOPTION_BATCH, SensorCommand::Adopt);
        let targets: Vec<BanTarget> = elements.iter().map(|(target, _)| *target).collect();
        self.send_in_batches(&targets, RESTORE_BATCH, |targets| {
            SensorCommand::ReviewLoaded(targets, "a file".to_owned())
        });
        let loaded: HashSet<BanTarget> = targets.into_iter().collect();
        let known = remembered.iter().filter(|ban| loaded.contains(&ban.target));
        known.map(|ban| (ban.target, ban.left)).collect()
    }

    /// Makes the sensor remove the elements that a saved ruleset or set has added to the daemon's own table, as
    /// [`StartupReconcile::review_loaded`] does. Elements that the ledger has never seen stay, because an operator may
    /// have added them while the daemon was down. Returns the elements that stay.
    fn review_merged(&mut self, elements: Vec<Element>, remembered: &[ActiveBan]) -> Vec<Element> {
        let is_merged = self.table_origin == TableOrigin::Merged;
        let known: HashSet<BanTarget> = remembered.iter().map(|ban| ban.target).collect();
        let unknown = elements.iter().map(|(target, _)| *target).filter(|target| !known.contains(target));
        let mut saved = match &mut self.nft {
            Some(nft) if self.recorder.is_open() => {
                elements::former_bans(&unknown.collect::<Vec<_>>(), is_merged, &mut nft.table, &self.recorder)
            }
            _ => HashSet::new(),
        };
        match is_merged {
            true => saved.extend(&self.trap_banned),
            // These are new bans, by the trap that a crashed daemon had armed.
            false => saved.retain(|target| !self.trap_banned.contains(target)),
        }
        if !is_merged && saved.is_empty() {
            return elements;
        }
        let is_new = |(target, _): &(BanTarget, _)| !known.contains(target) && !saved.contains(target);
        let (added, loaded) = elements.into_iter().partition::<Vec<_>, _>(is_new);
        self.review_loaded(loaded, remembered).into_iter().chain(added).collect()
    }

    /// Replaces elements with host bits that were added while the daemon was down, and match no packet.
    fn mask(&self, elements: Vec<Element>) -> Vec<Element> {
        let (wrong, mut right): (Vec<_>, Vec<_>) =
            elements.into_iter().partition(|(target, _)| *target != target.masked());
        if wrong.is_empty() {
            return right;
        }
        let known: HashSet<BanTarget> = right.iter().map(|(target, _)| *target).collect();
        let masked = wrong.iter().map(|(target, left)| (target.masked(), *left));
        right.extend(masked.filter(|(target, _)| !known.contains(target)));
        self.sensor.send_blocking(SensorCommand::MaskElements(wrong));
        right
    }

    /// Restores bans and informs the sensor. Large numbers are restored from this thread, because the sensor may not
    /// run yet. If another change interferes, and for networks, the sensor does it, which creates the sets and reports
    /// errors.
    fn restore(&mut self, bans: &[ActiveBan]) {
        let (wide, narrow): (Vec<ActiveBan>, Vec<ActiveBan>) = bans.iter().partition(|ban| ban.target.is_prefix());
        if self.nft.as_mut().is_some_and(|nft| matches!(nft.restore_lost_unmonitored(&narrow), Ok(true))) {
            self.events.emit(EventKind::Restored { bans: narrow.len(), backend: Backend::Nft });
            self.send_in_batches(&narrow, ADOPTION_BATCH, SensorCommand::Adopt);
            if !wide.is_empty() {
                self.sensor.send_blocking(SensorCommand::Restore(Backend::Nft, wide));
            }
        } else {
            self.sensor.send_blocking(SensorCommand::Restore(Backend::Nft, bans.to_vec()));
        }
    }

    /// Called once the sensor has all bans. Other programs may have flushed the sets since `mark`. Then the sensor has
    /// refilled them without the bans that it did not have yet.
    fn restore_missing(&mut self, generation: Option<Generation>, bans: &[ActiveBan]) {
        let Some(nft) = &mut self.nft else { return };
        if generation.is_some_and(|generation| nft.table.is_undisturbed_since(generation)) {
            return;
        }
        let targets: Vec<BanTarget> = bans.iter().map(|ban| ban.target).collect();
        // A deleted table is created again with all bans of the sensor.
        let missing = nft.table.missing(&targets).unwrap_or_default();
        self.send_in_batches(&missing, ADOPTION_BATCH, |targets| SensorCommand::Repair(Backend::Nft, targets));
    }
}

/// Those of `backends` that enforce a ban of an earlier run from now on. The command runs for earlier bans only if
/// nothing else blocks their sources; if it has run, it counts until it is undone.
fn continuing(backends: &[Backend], ban: &BanSummary) -> Backends {
    let runs = ban.backends.contains(Backend::Command) || *backends == [Backend::Command];
    let others = backends.iter().copied().filter(|backend| *backend != Backend::Command);
    others.chain(runs.then_some(Backend::Command)).collect()
}

/// The data of a ban of an earlier run for the slow backends.
fn context(ban: &BanSummary) -> BanContext {
    let length = ban.until.and_then(|until| until.duration_since(ban.since).ok());
    let mut context = BanContext::by_hand(ban.target, length.into(), ban.since);
    (context.source, context.class) = (ban.source, ban.class);
    if let Some((protocol, port)) = ban.port {
        (context.protocol, context.port) = (protocol, port);
    }
    context
}
