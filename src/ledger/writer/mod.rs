//! Writes changes to the ledger on a worker thread, so that producers never wait for a disk. Pending changes are
//! written in one transaction; writes that a full or locked disk refuses are retried with backoff; changes that do not
//! fit into the queue are counted. Once a second the thread marks ended bans and updates the text files. Expiry follows
//! the kernel's clock: when the wall clock is set, the ends of the bans in force are adjusted.

mod clock;
mod events;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot::{self, Receiver};

pub use events::WriterEvent;

use super::ban::LedgerChange;
use super::error::LedgerError;
use super::legacy_files::LegacyFiles;
use super::{Ledger, Opened, Reader, Retention, Rows, decisions};
use clock::{ClockStep, WallClock};
use events::Retry;

use crate::clock::{boot_time, end_time};
use crate::panic_guard;
use crate::types::{Backoff, LossReport};
use crate::worker::{Handle, Inbox, Stopped, Worker};

/// Maximum number of queued changes: those that arrive while one transaction is written.
const QUEUE: usize = 8_192;

/// Maximum number of queued queries.
const MAX_QUERIES: usize = 64;

/// Maximum number of pending changes while the disk refuses writes; about 20 MB.
const MAX_PENDING: usize = 65_536;

/// Maximum number of changes per transaction, so that the end of the program need not wait long for one.
const MAX_BATCH: usize = 2_048;

/// Interval at which ended bans are marked, and minimum interval between two versions of the list of bans in force.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// Writing the list of bans in force takes at most 1/`LOAD_DIVISOR` of the thread's time, regardless of its length.
const LOAD_DIVISOR: u32 = 20;

/// Delay between attempts after a failure.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));

/// Delay between attempts at the end, when little time is left.
const FINAL_RETRY_DELAY: Duration = Duration::from_millis(20);

/// The thread. Only [`Writer::stop`] ends it before the process does.
pub struct Writer {
    recorder: Recorder,
    worker: Worker<LedgerChange, u64>,
}

impl Writer {
    /// Starts the thread. `emit` is called on it with events for the operator, and must not block for long.
    pub fn start(
        ledger: Ledger,
        classic: Option<LegacyFiles>,
        emit: impl FnMut(WriterEvent) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared { queries: ArrayQueue::new(MAX_QUERIES), written: AtomicU64::new(0) });
        let now = Instant::now();
        let worker = Worker::start("ledger", QUEUE, |inbox| {
            let mut work = WriterThread {
                directory: ledger.state_dir.directory.clone(),
                retention: ledger.retention,
                undoes_commands: ledger.undoes_commands,
                ledger: Some(ledger),
                classic,
                emit: Box::new(emit),
                inbox,
                shared: Arc::clone(&shared),
                pending: VecDeque::new(),
                saved: Vec::new(),
                database: Retry::new(BACKOFF),
                text_files: Retry::new(BACKOFF),
                tick: now,
                clock: WallClock::new(),
                stale: true,
                // A start has more urgent work.
                list_due: now + TICK_INTERVAL,
                losses: LossReport::default(),
                unreadable: (0, 0),
            };
            move || work.run()
        })?;
        let handle = WriterHandle { changes: worker.handle().clone(), shared };
        Ok(Self { recorder: Recorder(Some(handle)), worker })
    }

    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Writes the changes that were sent before this call, and ends the thread; waits for at most `within`. Failures
    /// are retried for half of that time, so that the remaining changes can still be reported.
    pub fn stop(self, within: Duration) -> Stopped<u64> {
        self.worker.stop(within).into()
    }
}

/// Sends changes to the thread. Cheap to clone. The default one is for a daemon without a ledger: it refuses changes and
/// answers no query.
#[derive(Clone, Default)]
pub struct Recorder(Option<WriterHandle>);

#[derive(Clone)]
struct WriterHandle {
    changes: Handle<LedgerChange>,
    shared: Arc<Shared>,
}

/// A query that the thread answers.
type ReadQuery = Box<dyn FnOnce(&Reader) + Send>;

/// State shared between the thread and recorders, in addition to the queue of changes.
struct Shared {
    queries: ArrayQueue<ReadQuery>,
    written: AtomicU64,
}

impl Recorder {
    /// False if there is no ledger.
    pub fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Sends `change` and never waits; false if there is no ledger, or if the queue is full: the change is then lost,
    /// and the writer counts and reports it.
    pub fn send(&self, change: LedgerChange) -> bool {
        self.0.as_ref().is_some_and(|writer| writer.changes.send(change).is_ok())
    }

    /// True if most of the queue is free.
    pub fn has_room(&self) -> bool {
        self.0.as_ref().is_none_or(|writer| writer.changes.inbox().len() < QUEUE / 4)
    }

    /// Sends `change`, and waits up to a few seconds for room; after that it is lost and counted. For many changes at a
    /// time, on a thread that may wait.
    pub fn write_blocking(&self, change: LedgerChange) {
        for _ in 0..1_000 {
            if self.has_room() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.send(change);
    }

    /// Runs `query` on the ledger after all changes that were sent before it. The answer is an error if too many
    /// queries are queued, or if there is no ledger now.
    pub fn ask<T: Send + 'static>(&self, query: impl FnOnce(&Reader) -> T + Send + 'static) -> Receiver<T> {
        let (sent, answer) = oneshot::channel();
        // A query that is dropped closes the channel.
        if let Some(WriterHandle { changes, shared }) = &self.0 {
            drop(shared.queries.push(Box::new(move |ledger| drop(sent.send(query(ledger))))));
            changes.wake();
        }
        answer
    }

    /// Changes that are in the database.
    pub fn written(&self) -> u64 {
        self.0.as_ref().map_or(0, |writer| writer.shared.written.load(Ordering::Relaxed))
    }

    /// Changes that are lost because there was no room.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |writer| writer.changes.inbox().refused())
    }
}

/// The state of the thread.
struct WriterThread {
    /// `None` until it is opened again.
    ledger: Option<Ledger>,
    directory: PathBuf,
    retention: Retention,
    undoes_commands: bool,
    classic: Option<LegacyFiles>,
    emit: Box<dyn FnMut(WriterEvent) + Send>,
    inbox: Arc<Inbox<LedgerChange>>,
    shared: Arc<Shared>,
    pending: VecDeque<LedgerChange>,
    /// Bans to carry over from an abandoned database.
    saved: Vec<LedgerChange>,
    database: Retry,
    text_files: Retry,
    tick: Instant,
    clock: WallClock,
    /// True if the list of bans in force is out of date.
    stale: bool,
    list_due: Instant,
    losses: LossReport<2>,
    /// Maximum number of invalid rows in force, and how many of them were reported.
    unreadable: (u64, u64),
}

impl WriterThread {
    fn run(&mut self) -> u64 {
        loop {
            // Read first, so that changes sent before the stop request are in the queue.
            let deadline = self.inbox.stop().map(|stop| stop.after_eighths(4));
            while self.pending.len() < MAX_PENDING
                && let Some(change) = self.inbox.pop()
            {
                self.pending.push_back(change);
            }
            if !self.pending.is_empty() {
                panic_guard::failpoint("ledger");
            }
            let now = Instant::now();
            if deadline.is_some() || self.database.backoff.is_over(boot_time()) {
                self.write_due(now);
            }
            if let Some(deadline) = deadline {
                if self.has_nothing() || Instant::now() >= deadline {
                    break;
                }
                thread::sleep(if self.database.backoff.failures() > 0 { FINAL_RETRY_DELAY } else { Duration::ZERO });
                continue;
            }
            self.write_text_files(now);
            self.report_losses();
            self.answer_queries();
            if self.has_nothing() || !self.database.backoff.is_over(boot_time()) {
                thread::park_timeout(self.rest());
            }
        }
        self.stale = true;
        self.list_due = self.tick;
        self.text_files.backoff.end_wait();
        self.write_text_files(Instant::now());
        self.losses.expedite();
        self.report_losses();
        (self.pending.len() + self.saved.len() + self.inbox.len()) as u64
    }

    /// Answers the pending queries. Those that arrive meanwhile wait for the next changes to be written.
    fn answer_queries(&mut self) {
        for _ in 0..self.shared.queries.len() {
            let Some(query) = self.shared.queries.pop() else { return };
            if let Some(ledger) = &self.ledger {
                query(ledger.reader());
            }
        }
    }

    fn has_nothing(&self) -> bool {
        self.pending.is_empty() && self.saved.is_empty() && self.inbox.is_empty()
    }

    /// Time without work, unless a change arrives.
    fn rest(&self) -> Duration {
        let rest = match self.database.backoff.failures() {
            0 => (self.tick + TICK_INTERVAL).saturating_duration_since(Instant::now()),
            _ => self.database.backoff.until().since(boot_time()),
        };
        rest.min(TICK_INTERVAL).max(Duration::from_millis(1))
    }

    /// Writes pending changes, and once a second marks ended bans.
    fn write_due(&mut self, now: Instant) {
        let due = now >= self.tick + TICK_INTERVAL;
        if self.pending.is_empty() && self.saved.is_empty() && !due && self.clock.step().is_none() {
            return;
        }
        match self.try_write(due) {
            Ok(()) => {
                self.database.succeeded().into_iter().for_each(&mut self.emit);
                if due {
                    self.tick = now;
                }
            }
            Err(error) => {
                self.database.backoff.extend(boot_time());
                if error.is_damage() {
                    self.give_up(error.to_string(), |ledger| ledger.quarantine().map(Some));
                } else {
                    self.report_failure(error);
                }
            }
        }
    }

    fn try_write(&mut self, due: bool) -> Result<(), LedgerError> {
        if due && self.ledger.as_ref().is_some_and(|ledger| !ledger.is_in_place()) {
            self.give_up("its file was removed or cannot be reached".to_owned(), |_| Ok(None));
        }
        if let Some(step) = self.clock.step() {
            self.follow_clock(step)?;
        }
        let Self { ledger, saved, pending, shared, .. } = self;
        let ledger = match ledger {
            Some(ledger) => ledger,
            None => {
                let (opened, how) = Ledger::open(&self.directory).map_err(LedgerError::while_running)?;
                if let Opened::Rebuilt { aside, damage } = how {
                    (self.emit)(WriterEvent::Rebuilt { damage, aside: Some(aside), carried: saved.len() });
                }
                ledger.insert(opened.with_retention(self.retention).undoing_commands(self.undoes_commands))
            }
        };
        if !saved.is_empty() || !pending.is_empty() {
            let batch = pending.len().min(MAX_BATCH);
            ledger.write(saved.iter().chain(pending.iter().take(batch)))?;
            shared.written.fetch_add(batch as u64, Ordering::Relaxed);
            saved.clear();
            self.stale = true;
            for change in self.pending.drain(..batch) {
                if let (LedgerChange::Banned(ban), Some(classic)) = (change, &mut self.classic) {
                    classic.add(&ban);
                }
            }
        }
        if due {
            let Rows { items, unreadable } = ledger.expire(self.clock.now())?;
            if unreadable > 0 {
                (self.emit)(WriterEvent::Unreadable { rows: unreadable });
            }
            if !items.is_empty() {
                self.stale = true;
                (self.emit)(WriterEvent::Expired(items));
            }
        }
        Ok(())
    }

    /// Adjusts the ends of the bans in force to the clock, including those of pending changes.
    fn follow_clock(&mut self, step: ClockStep) -> Result<(), LedgerError> {
        if let Some(ledger) = &mut self.ledger {
            ledger.clock_was_set(step.by)?;
        }
        for change in self.saved.iter_mut().chain(&mut self.pending) {
            match change {
                LedgerChange::Banned(ban) | LedgerChange::Also(ban) => {
                    let length = ban.until.and_then(|until| until.duration_since(ban.since).ok());
                    ban.since = step.moved(ban.since);
                    ban.until = end_time(length, ban.since);
                }
                LedgerChange::Moved { since, .. } | LedgerChange::GuestPort { since, .. } => {
                    *since = step.moved(*since)
                }
                LedgerChange::Undone { since, at, .. } => (*since, *at) = (step.moved(*since), step.moved(*at)),
                LedgerChange::Logged(logged) => logged.last = step.moved(logged.last),
                LedgerChange::Trial { until } => *until = until.map(|until| step.moved(until)),
                LedgerChange::Allowed(allowance) => allowance.until = allowance.until.map(|until| step.moved(until)),
                LedgerChange::FleetLifts(lifts) => {
                    lifts.iter_mut().for_each(|lift| lift.until = step.moved(lift.until))
                }
                LedgerChange::Disallowed { .. } => {}
                LedgerChange::Ended { ended, .. } => ended.at = step.moved(ended.at),
                LedgerChange::Served(_, at) => *at = step.moved(*at),
                LedgerChange::Listeners(listeners) => {
                    listeners.iter_mut().for_each(|(_, gone)| *gone = gone.map(|gone| step.moved(gone)));
                }
                LedgerChange::KnownPeers(peers) => peers.iter_mut().for_each(|peer| {
                    (peer.since, peer.last) = (step.moved(peer.since), step.moved(peer.last));
                }),
                LedgerChange::Table(_) | LedgerChange::ServiceForgotten(_) => {}
            }
        }
        self.clock.follow(step);
        self.stale = true;
        (self.emit)(WriterEvent::ClockSet { back: step.by < 0, by: Duration::from_micros(step.by.unsigned_abs()) });
        Ok(())
    }

    fn report_failure(&mut self, error: LedgerError) {
        self.database.report(error, self.pending.len()).into_iter().for_each(&mut self.emit);
    }

    /// Abandons an unusable database, and keeps its readable bans in force.
    fn give_up(&mut self, damage: String, leave: impl FnOnce(Ledger) -> Result<Option<PathBuf>, LedgerError>) {
        let Some(ledger) = self.ledger.take() else { return };
        if let Ok(found) = ledger.reader().active(self.clock.now()) {
            self.saved = found.items.into_iter().map(|entry| LedgerChange::Banned(entry.ban)).collect();
            self.saved.extend(decisions::all(ledger.reader()).unwrap_or_default());
        }
        match leave(ledger) {
            Ok(aside) => (self.emit)(WriterEvent::Rebuilt { damage, aside, carried: self.saved.len() }),
            Err(error) => self.report_failure(error),
        }
    }

    fn write_text_files(&mut self, now: Instant) {
        let (Some(classic), Some(ledger)) = (&mut self.classic, &self.ledger) else { return };
        if !self.text_files.backoff.is_over(boot_time()) {
            return;
        }
        let started = Instant::now();
        let mut result = classic.append();
        // After a failure this is the only sign that writing works again.
        if result.is_ok() && self.stale && (now >= self.list_due || self.text_files.is_failing()) {
            let active = ledger.reader().in_force(self.clock.now());
            result = active.and_then(|found| {
                self.unreadable.0 = self.unreadable.0.max(found.unreadable);
                classic.rewrite(found.items)
            });
            self.stale = result.is_err();
            self.list_due = now + TICK_INTERVAL.max(started.elapsed() * LOAD_DIVISOR);
        }
        match result {
            Ok(()) => {
                self.text_files.succeeded().into_iter().for_each(&mut self.emit);
            }
            Err(error) => {
                self.text_files.backoff.extend(boot_time());
                self.text_files.report(error, 0).into_iter().for_each(&mut self.emit);
            }
        }
    }

    fn report_losses(&mut self) {
        let lost = [self.inbox.refused(), self.classic.as_ref().map_or(0, LegacyFiles::left_out)];
        if let Some([changes, lines]) = self.losses.take(lost, boot_time()) {
            (self.emit)(WriterEvent::Lost { changes, lines });
        }
        let (rows, reported) = self.unreadable;
        if rows > reported {
            (self.emit)(WriterEvent::Unreadable { rows });
            self.unreadable.1 = rows;
        }
    }
}
