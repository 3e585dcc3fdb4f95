//! Queues entries of the [`EntryFile`] that are to be written or removed; all of them go into one new file. A failure
//! concerns the file, not one ban, so all entries are retried together.
//!
//! Other programs write the file too. An editor that saves an old copy, or a tool that writes its own version, removes
//! entries by accident. Therefore the file is checked every two seconds, and entries missing in a changed file are
//! written again. To lift a ban, use `portsentry unblock`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem;
use std::time::Duration;

use super::ban_queue::BanQueue;
use super::events::{BackendEvent, SlowTask};
use super::task::{BACKOFF, MAX_BANS};
use crate::enforce::hosts_deny::Stamp;
use crate::enforce::{BanContext, EntryFile};
use crate::types::{Backend, Backoff, BanTarget, Timestamp};

/// Pending changes.
pub(super) struct EntryQueue {
    file: EntryFile,
    add: HashMap<BanTarget, Add>,
    remove: HashSet<BanTarget>,
    /// True if entries of bans that are not held are removed.
    removes_stale: bool,
    backoff: Backoff,
    /// Stamp of the file when it contained all entries; `None` before the first check.
    seen: Option<Option<Stamp>>,
    look_at: Timestamp,
}

/// The backend whose entries these are.
const BACKEND: Backend = Backend::HostsDeny;

/// Interval between checks of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// An entry to write.
struct Add {
    /// Identifier of its ban.
    id: u64,
    context: BanContext,
    tried: bool,
    /// True if it was written before.
    again: bool,
}

impl EntryQueue {
    pub(super) fn new(file: EntryFile) -> Self {
        Self {
            file,
            add: HashMap::new(),
            remove: HashSet::new(),
            removes_stale: false,
            backoff: BACKOFF,
            seen: None,
            look_at: Timestamp::ZERO,
        }
    }

    /// Targets that have an entry now; `None` if the file cannot be read.
    pub(super) fn held(&self) -> Option<HashSet<BanTarget>> {
        self.file.held().ok().map(|held| held.into_iter().collect())
    }

    /// The targets in `bans` that have lost their entry, if the file has changed. Empty while other entries are
    /// pending: the file is checked afterwards.
    pub(super) fn lost(&mut self, now: Timestamp, bans: &BanQueue) -> Vec<BanTarget> {
        if now < self.look_at || self.removes_stale || self.waiting() > 0 {
            return Vec::new();
        }
        self.look_at = now.after(CHECK_INTERVAL);
        // Read before the content, so that a concurrent write is detected.
        let stamp = self.file.hosts_deny.stamp();
        if self.seen == Some(stamp) {
            return Vec::new();
        }
        let Some(held) = self.held() else { return Vec::new() };
        let lost: Vec<BanTarget> = bans.with_entry().filter(|target| !held.contains(target)).collect();
        if lost.is_empty() {
            self.seen = Some(stamp);
        }
        lost
    }

    /// Queues a lost entry for writing.
    pub(super) fn restore(&mut self, id: u64, context: BanContext) {
        self.add.insert(context.target, Add { id, context, tried: true, again: true });
        self.backoff.shorten();
    }

    pub(super) fn add(&mut self, id: u64, context: BanContext) {
        self.remove.remove(&context.target);
        self.add.insert(context.target, Add { id, context, tried: false, again: false });
        self.backoff.shorten();
    }

    /// If the queue is full, the entry is removed at the next start.
    pub(super) fn remove(&mut self, target: BanTarget) {
        self.add.remove(&target);
        if self.remove.len() < MAX_BANS {
            self.remove.insert(target);
        }
        self.backoff.shorten();
    }

    pub(super) fn remove_stale(&mut self) {
        self.removes_stale = true;
        self.backoff.shorten();
    }

    /// Ends the backoff, because the program ends.
    pub(super) fn hurry(&mut self) {
        self.backoff.end_wait();
    }

    /// Number of pending changes.
    pub(super) fn waiting(&self) -> usize {
        self.add.len() + self.remove.len()
    }

    /// Time of the next write, if a change is pending.
    fn next_write(&self) -> Option<Timestamp> {
        (self.removes_stale || self.waiting() > 0).then_some(self.backoff.until())
    }

    /// Time of the next write, or of the next check for the entries of `bans`.
    pub(super) fn next(&self, bans: &BanQueue) -> Option<Timestamp> {
        let has_entries = bans.with_entry().next().is_some();
        self.next_write().into_iter().chain(has_entries.then_some(self.look_at)).min()
    }

    /// Writes the changes that are due. If stale entries are to be removed, only the targets of `bans` keep theirs.
    /// Returns the bans whose entry was tried for the first time, written or not.
    pub(super) fn flush(
        &mut self,
        now: Timestamp,
        bans: &BanQueue,
        tell: &mut dyn FnMut(BackendEvent),
    ) -> Vec<(BanTarget, u64)> {
        if self.next_write().is_none_or(|next| next > now) {
            return Vec::new();
        }
        match self.write(bans) {
            Ok(targets) => {
                let (again, new): (Vec<&Add>, Vec<&Add>) = self.add.values().partition(|add| add.again);
                new.into_iter().for_each(|add| tell(BackendEvent::Done { context: add.context, backend: BACKEND }));
                if !again.is_empty() {
                    tell(BackendEvent::Restored {
                        targets: again.into_iter().map(|add| add.context.target).collect(),
                        backend: BACKEND,
                    });
                }
                if !targets.is_empty() {
                    tell(BackendEvent::Released { targets, backend: BACKEND });
                }
                self.backoff.reset();
                self.remove.clear();
                self.removes_stale = false;
                self.add.drain().filter(|(_, add)| !add.tried).map(|(target, add)| (target, add.id)).collect()
            }
            Err(error) => {
                let again = Some(self.backoff.extend(now));
                let targets = self.add.keys().chain(&self.remove).copied().collect();
                let attempt = self.backoff.failures();
                tell(BackendEvent::Failed {
                    targets,
                    task: SlowTask::Ban(BACKEND),
                    reason: error.to_string(),
                    attempt,
                    again,
                });
                let first =
                    |add: &mut Add| (!mem::replace(&mut add.tried, true)).then_some((add.context.target, add.id));
                self.add.values_mut().filter_map(first).collect()
            }
        }
    }

    fn write(&self, bans: &BanQueue) -> io::Result<Vec<BanTarget>> {
        let add: Vec<BanContext> = self.add.values().map(|add| add.context).collect();
        let mut remove: Vec<BanTarget> = self.remove.iter().copied().collect();
        if self.removes_stale {
            let stays: HashSet<BanTarget> = bans.with_entry().collect();
            remove.extend(self.file.held()?.into_iter().filter(|target| !stays.contains(target)));
        }
        self.file.apply(&add, &remove)
    }
}
