//! Lines of hosts.deny that are to be written or removed: all that wait go into one new file. A failure is the file's, not
//! one ban's, so all of them are tried again together.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::pause::Pause;
use super::{HELD, News, Way};
use crate::enforce::Case;
use crate::enforce::hosts_deny::{HostsDeny, HostsDenyError};
use crate::engine::subject::Subject;

/// What waits to be written.
pub(super) struct Lines {
    file: HostsDeny,
    add: HashMap<Subject, Add>,
    remove: HashSet<Subject>,
    /// Lines of bans that are not held are to go.
    sweep: bool,
    pause: Pause,
}

/// One line that is to be written.
struct Add {
    /// Which ban of its subject it is for.
    id: u64,
    case: Case,
    tried: bool,
}

impl Lines {
    pub(super) fn new(file: HostsDeny) -> Self {
        Self { file, add: HashMap::new(), remove: HashSet::new(), sweep: false, pause: Pause::default() }
    }

    pub(super) fn add(&mut self, id: u64, case: Case) {
        self.remove.remove(&case.subject);
        self.add.insert(case.subject, Add { id, case, tried: false });
        self.pause.shorten();
    }

    /// What finds no room is swept at the next start.
    pub(super) fn remove(&mut self, subject: Subject) {
        self.add.remove(&subject);
        if self.remove.len() < HELD {
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
        has_line: impl Fn(Subject) -> bool,
        tell: &mut dyn FnMut(News),
    ) -> Vec<(Subject, u64)> {
        if self.next().is_none_or(|next| next > now) {
            return Vec::new();
        }
        let way = Way::HostsDeny;
        match self.write(has_line) {
            Ok(subjects) => {
                self.add.values().for_each(|add| tell(News::Done { case: add.case, way }));
                if !subjects.is_empty() {
                    tell(News::Released { subjects, way });
                }
                self.pause = Pause::default();
                self.remove.clear();
                self.sweep = false;
                self.add.drain().filter(|(_, add)| !add.tried).map(|(subject, add)| (subject, add.id)).collect()
            }
            Err(error) => {
                let again = Some(self.pause.extend(now));
                let subjects = self.add.keys().chain(&self.remove).copied().collect();
                let attempt = self.pause.failures;
                tell(News::Failed { subjects, way, reason: error.to_string(), attempt, again });
                let new = self.add.iter_mut().filter(|(_, add)| !add.tried);
                new.map(|(subject, add)| {
                    add.tried = true;
                    (*subject, add.id)
                })
                .collect()
            }
        }
    }

    fn write(&self, has_line: impl Fn(Subject) -> bool) -> Result<Vec<Subject>, HostsDenyError> {
        let add: Vec<Case> = self.add.values().map(|add| add.case).collect();
        let mut remove: Vec<Subject> = self.remove.iter().copied().collect();
        if self.sweep {
            remove.extend(self.file.held()?.into_iter().filter(|subject| !has_line(*subject)));
        }
        self.file.apply(&add, &remove)
    }
}
