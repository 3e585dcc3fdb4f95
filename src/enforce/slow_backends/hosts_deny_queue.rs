//! Queues lines of hosts.deny that are to be written or removed; all of them go into one new file. A failure concerns
//! the file, not one ban, so all lines are retried together.
//!
//! Other programs write the file too. An editor that saves an old copy, or a tool that writes its own version, removes
//! lines by accident. Therefore the file is checked every two seconds, and lines missing in a changed file are written
//! again. To lift a ban, use `portsentry unblock`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use super::deny_file::DenyFile;
use super::{BACKOFF, BackendEvent, MAX_BANS, SlowTask};
use crate::enforce::BanContext;
use crate::enforce::hosts_deny::file::Stamp;
use crate::types::{Backend, Backoff, BanTarget, Timestamp};

/// Pending changes.
pub(super) struct Lines {
    file: DenyFile,
    add: HashMap<BanTarget, Add>,
    remove: HashSet<BanTarget>,
    /// True if lines of bans that are not held are removed.
    sweep: bool,
    backoff: Backoff,
    /// Stamp of the file when it contained all lines; `None` before the first check.
    seen: Option<Option<Stamp>>,
    look_at: Timestamp,
}

/// Interval between checks of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// A line to write.
struct Add {
    /// Identifier of its ban.
    id: u64,
    case: BanContext,
    tried: bool,
    /// True if it was written before.
    again: bool,
}

impl Lines {
    pub(super) fn new(file: DenyFile) -> Self {
        Self {
            file,
            add: HashMap::new(),
            remove: HashSet::new(),
            sweep: false,
            backoff: BACKOFF,
            seen: None,
            look_at: Timestamp::ZERO,
        }
    }

    /// Targets that have a line now; `None` if the file cannot be read.
    pub(super) fn held(&self) -> Option<HashSet<BanTarget>> {
        self.file.held().ok().map(|held| held.into_iter().collect())
    }

    /// Time at which [`Lines::lost`] checks the file again.
    pub(super) fn next_look(&self) -> Timestamp {
        self.look_at
    }

    /// The targets in `wanted` that have lost their line, if the file has changed. Empty while other lines are pending:
    /// the file is checked afterwards.
    pub(super) fn lost(&mut self, now: Timestamp, wanted: impl Iterator<Item = BanTarget>) -> Vec<BanTarget> {
        if now < self.look_at || self.sweep || self.waiting() > 0 {
            return Vec::new();
        }
        self.look_at = now.after(CHECK_INTERVAL);
        // Read before the content, so that a concurrent write is detected.
        let stamp = self.file.stamp();
        if self.seen == Some(stamp) {
            return Vec::new();
        }
        let Some(held) = self.held() else { return Vec::new() };
        let lost: Vec<BanTarget> = wanted.filter(|target| !held.contains(target)).collect();
        if lost.is_empty() {
            self.seen = Some(stamp);
        }
        lost
    }

    /// Queues a lost line for writing.
    pub(super) fn restore(&mut self, id: u64, case: BanContext) {
        self.add.insert(case.target, Add { id, case, tried: true, again: true });
        self.backoff.shorten();
    }

    pub(super) fn add(&mut self, id: u64, case: BanContext) {
        self.remove.remove(&case.target);
        self.add.insert(case.target, Add { id, case, tried: false, again: false });
        self.backoff.shorten();
    }

    /// If the queue is full, the line is removed at the next start.
    pub(super) fn remove(&mut self, target: BanTarget) {
        self.add.remove(&target);
        if self.remove.len() < MAX_BANS {
            self.remove.insert(target);
        }
        self.backoff.shorten();
    }

    pub(super) fn sweep(&mut self) {
        self.sweep = true;
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
    pub(super) fn next(&self) -> Option<Timestamp> {
        (self.sweep || self.waiting() > 0).then_some(self.backoff.until())
    }

    /// Writes the changes that are due. In a sweep, `has_line` selects the targets that keep their line. Returns the
    /// bans whose line was tried for the first time, written or not.
    pub(super) fn flush(
        &mut self,
        now: Timestamp,
        has_line: impl Fn(BanTarget) -> bool,
        tell: &mut dyn FnMut(BackendEvent),
    ) -> Vec<(BanTarget, u64)> {
        if self.next().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let backend = Backend::HostsDeny;
        match self.write(has_line) {
            Ok(targets) => {
                let (again, new): (Vec<&Add>, Vec<&Add>) = self.add.values().partition(|add| add.again);
                new.into_iter().for_each(|add| tell(BackendEvent::Done { case: add.case, backend }));
                if !again.is_empty() {
                    tell(BackendEvent::Restored {
                        targets: again.into_iter().map(|add| add.case.target).collect(),
                        backend,
                    });
                }
                if !targets.is_empty() {
                    tell(BackendEvent::Released { targets, backend });
                }
                self.backoff.reset();
                self.remove.clear();
                self.sweep = false;
                self.add.drain().filter(|(_, add)| !add.tried).map(|(target, add)| (target, add.id)).collect()
            }
            Err(error) => {
                let again = Some(self.backoff.extend(now));
                let targets = self.add.keys().chain(&self.remove).copied().collect();
                let attempt = self.backoff.failures();
                tell(BackendEvent::Failed {
                    targets,
                    task: SlowTask::Ban(backend),
                    reason: error.to_string(),
                    attempt,
                    again,
                });
                let new = self.add.iter_mut().filter(|(_, add)| !add.tried);
                new.map(|(target, add)| {
                    add.tried = true;
                    (*target, add.id)
                })
                .collect()
            }
        }
    }

    fn write(&self, has_line: impl Fn(BanTarget) -> bool) -> io::Result<Vec<BanTarget>> {
        let add: Vec<BanContext> = self.add.values().map(|add| add.case).collect();
        let mut remove: Vec<BanTarget> = self.remove.iter().copied().collect();
        if self.sweep {
            remove.extend(self.file.held()?.into_iter().filter(|target| !has_line(*target)));
        }
        self.file.apply(&add, &remove)
    }
}
