//! Lines of hosts.deny that are to be written or removed: all that wait go into one new file. A failure is the file's, not
//! one ban's, so all of them are tried again together.
//!
//! The file is anybody's who may write it. An editor that saves an old copy, or a tool that writes its own version, takes
//! lines out that nobody meant to: so the file is looked at every two seconds, and what is missing in a changed one is
//! written again. Who wants a ban lifted says so with `portsentry unblock`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::backoff::Backoff;
use super::{BackendEvent, MAX_BANS, SlowTask};
use crate::enforce::BanContext;
use crate::enforce::hosts_deny::file::Stamp;
use crate::enforce::hosts_deny::{HostsDeny, HostsDenyError};
use crate::types::{Backend, BanTarget};

/// What waits to be written.
pub(super) struct Lines {
    file: HostsDeny,
    add: HashMap<BanTarget, Add>,
    remove: HashSet<BanTarget>,
    /// Lines of bans that are not held are to go.
    sweep: bool,
    pause: Backoff,
    /// The file as it was when all lines were in it; `None` before the first look.
    seen: Option<Option<Stamp>>,
    look_at: Duration,
}

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// One line that is to be written.
struct Add {
    /// Which ban of its subject it is for.
    id: u64,
    case: BanContext,
    tried: bool,
    /// It was written before.
    again: bool,
}

impl Lines {
    pub(super) fn new(file: HostsDeny) -> Self {
        Self {
            file,
            add: HashMap::new(),
            remove: HashSet::new(),
            sweep: false,
            pause: Backoff::default(),
            seen: None,
            look_at: Duration::ZERO,
        }
    }

    /// Who has a line now; `None` where the file cannot be read.
    pub(super) fn held(&self) -> Option<HashSet<BanTarget>> {
        self.file.held().ok().map(|held| held.into_iter().collect())
    }

    /// When [`Lines::lost`] looks again.
    pub(super) fn next_look(&self) -> Duration {
        self.look_at
    }

    /// Which of those who `wanted` names have no line any more, once somebody has changed the file. Nobody, while others are
    /// to be written: then the file is looked at afterwards.
    pub(super) fn lost(&mut self, now: Duration, wanted: impl Iterator<Item = BanTarget>) -> Vec<BanTarget> {
        if now < self.look_at || self.sweep || self.waiting() > 0 {
            return Vec::new();
        }
        self.look_at = now.saturating_add(LOOK);
        // Before its bytes: what is written while they are read then shows.
        let stamp = self.file.stamp();
        if self.seen == Some(stamp) {
            return Vec::new();
        }
        let Some(held) = self.held() else { return Vec::new() };
        let lost: Vec<BanTarget> = wanted.filter(|subject| !held.contains(subject)).collect();
        if lost.is_empty() {
            self.seen = Some(stamp);
        }
        lost
    }

    /// Writes a line that was lost.
    pub(super) fn restore(&mut self, id: u64, case: BanContext) {
        self.add.insert(case.subject, Add { id, case, tried: true, again: true });
        self.pause.shorten();
    }

    pub(super) fn add(&mut self, id: u64, case: BanContext) {
        self.remove.remove(&case.subject);
        self.add.insert(case.subject, Add { id, case, tried: false, again: false });
        self.pause.shorten();
    }

    /// What finds no room is swept at the next start.
    pub(super) fn remove(&mut self, subject: BanTarget) {
        self.add.remove(&subject);
        if self.remove.len() < MAX_BANS {
            self.remove.insert(subject);
        }
        self.pause.shorten();
    }

    pub(super) fn sweep(&mut self) {
        self.sweep = true;
        self.pause.shorten();
    }

    /// There is no time left to wait for a better moment.
    pub(super) fn hurry(&mut self) {
        self.pause.end();
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.add.len() + self.remove.len()
    }

    /// When to write, if there is anything.
    pub(super) fn next(&self) -> Option<Duration> {
        (self.sweep || self.waiting() > 0).then_some(self.pause.until())
    }

    /// Writes what waits, if its time has come. `has_line` says who may have a line when others are swept. The bans
    /// whose line was tried for the first time, well or not.
    pub(super) fn flush(
        &mut self,
        now: Duration,
        has_line: impl Fn(BanTarget) -> bool,
        tell: &mut dyn FnMut(BackendEvent),
    ) -> Vec<(BanTarget, u64)> {
        if self.next().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let backend = Backend::HostsDeny;
        match self.write(has_line) {
            Ok(subjects) => {
                let (again, new): (Vec<&Add>, Vec<&Add>) = self.add.values().partition(|add| add.again);
                new.into_iter().for_each(|add| tell(BackendEvent::Done { case: add.case, backend }));
                if !again.is_empty() {
                    tell(BackendEvent::Restored {
                        subjects: again.into_iter().map(|add| add.case.subject).collect(),
                        backend,
                    });
                }
                if !subjects.is_empty() {
                    tell(BackendEvent::Released { subjects, backend });
                }
                self.pause = Backoff::default();
                self.remove.clear();
                self.sweep = false;
                self.add.drain().filter(|(_, add)| !add.tried).map(|(subject, add)| (subject, add.id)).collect()
            }
            Err(error) => {
                let again = Some(self.pause.extend(now));
                let subjects = self.add.keys().chain(&self.remove).copied().collect();
                let attempt = self.pause.failures;
                tell(BackendEvent::Failed {
                    subjects,
                    task: SlowTask::Ban(backend),
                    reason: error.to_string(),
                    attempt,
                    again,
                });
                let new = self.add.iter_mut().filter(|(_, add)| !add.tried);
                new.map(|(subject, add)| {
                    add.tried = true;
                    (*subject, add.id)
                })
                .collect()
            }
        }
    }

    fn write(&self, has_line: impl Fn(BanTarget) -> bool) -> Result<Vec<BanTarget>, HostsDenyError> {
        let add: Vec<BanContext> = self.add.values().map(|add| add.case).collect();
        let mut remove: Vec<BanTarget> = self.remove.iter().copied().collect();
        if self.sweep {
            remove.extend(self.file.held()?.into_iter().filter(|subject| !has_line(*subject)));
        }
        self.file.apply(&add, &remove)
    }
}
