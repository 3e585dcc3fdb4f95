//! Commands that are to be run, in the order in which they came, a few at once and each on a thread of its own that waits
//! for it. Two commands for one subject never run at the same time.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{self, PipeReader, PipeWriter, pipe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::bans::Bans;
use super::{HELD, News, Occasion, pause};
use crate::enforce::Case;
use crate::enforce::run::{Outcome, Ran, RunSettings, prepare, run};
use crate::engine::subject::Subject;

/// Commands for new bans that wait. Strangers make them, so there is an end.
const WAITING: usize = 1_024;

/// Commands that failed and wait for their next attempt.
const RETRIES: usize = 4_096;

/// Attempts at a command after the ban: there is no end of a ban that would end them.
const LAST_ATTEMPTS: u32 = 10;

/// One run of a command.
#[derive(Clone, Copy)]
pub(super) struct Job {
    /// Which ban of the subject it is for.
    pub(super) id: u64,
    pub(super) case: Case,
    pub(super) occasion: Occasion,
    pub(super) attempt: u32,
}

/// What a thread has to say of its command.
struct Finished {
    job: Job,
    command: String,
    ran: Ran,
}

/// The commands that wait and those that run.
pub(super) struct Commands {
    settings: RunSettings,
    waiting: VecDeque<Job>,
    /// Those in `waiting` that are not for the end of a ban.
    new: usize,
    running: HashSet<Subject>,
    retries: BTreeMap<(Duration, u64), Job>,
    serial: u64,
    /// Blocks that wait for their command, and until when at most; in this order, since all have the same limit.
    awaited: VecDeque<(Duration, Case)>,
    finished: (Sender<Finished>, Receiver<Finished>),
    /// Hung up when the commands are to end.
    quit: (Option<PipeWriter>, Arc<PipeReader>),
    /// Commands that were dropped.
    pub(super) lost: u64,
}

impl Commands {
    pub(super) fn new(settings: RunSettings) -> io::Result<Self> {
        let (reader, writer) = pipe()?;
        Ok(Self {
            settings,
            waiting: VecDeque::new(),
            new: 0,
            running: HashSet::new(),
            retries: BTreeMap::new(),
            serial: 0,
            awaited: VecDeque::new(),
            finished: channel(),
            quit: (Some(writer), Arc::new(reader)),
            lost: 0,
        })
    }

    /// Puts a command in line; false where there is no room, and it is lost and counted.
    pub(super) fn put(&mut self, job: Job) -> bool {
        let release = job.occasion == Occasion::Release;
        let room = if release { self.waiting.len() < HELD } else { self.new < WAITING };
        if room {
            self.waiting.push_back(job);
            self.new += usize::from(!release);
        } else {
            self.lost += 1;
        }
        room
    }

    /// Puts the command after a ban in line, if there is one.
    pub(super) fn undo(&mut self, id: u64, case: Case) {
        if !self.settings.expire_command.is_empty() {
            // What is lost is counted.
            let _ = self.put(Job { id, case, occasion: Occasion::Release, attempt: 1 });
        }
    }

    /// Runs the command before the block of `case`, and has the block wait for it, for a while.
    pub(super) fn before(&mut self, now: Duration, id: u64, case: Case, tell: &mut dyn FnMut(News)) {
        if self.put(Job { id, case, occasion: Occasion::Before, attempt: 1 }) {
            self.awaited.push_back((now.saturating_add(self.settings.timeout), case));
        } else {
            tell(News::Ready { case });
        }
    }

    /// Nobody waits any more to block `subject`.
    pub(super) fn forget(&mut self, subject: Subject) {
        self.awaited.retain(|(_, case)| case.subject != subject);
    }

    /// Starts what there is room for, and lets blocks go on that have waited long enough.
    pub(super) fn go_on(&mut self, now: Duration, bans: &mut Bans, tell: &mut dyn FnMut(News)) {
        while let Some(entry) = self.retries.first_entry()
            && entry.key().0 <= now
        {
            let job = entry.remove();
            self.put(job);
        }
        while self.running.len() < self.settings.at_once
            && let Some(at) = self.waiting.iter().position(|job| !self.running.contains(&job.case.subject))
            && let Some(job) = self.waiting.remove(at)
        {
            self.new = self.new.saturating_sub(usize::from(job.occasion != Occasion::Release));
            if let Some(held) = bans.get_mut(job.case.subject) {
                // A newer ban has its own command.
                if job.occasion == Occasion::Block && held.id != job.id {
                    continue;
                }
                held.has_run |= job.occasion != Occasion::Release;
            } else if job.occasion != Occasion::Release {
                continue;
            }
            self.start(job);
        }
        while let Some((until, case)) = self.awaited.front().copied()
            && until <= now
        {
            self.awaited.pop_front();
            tell(News::Ready { case });
        }
    }

    fn start(&mut self, job: Job) {
        let words = match job.occasion {
            Occasion::Release => &self.settings.expire_command,
            Occasion::Before | Occasion::Block => &self.settings.command,
        };
        self.running.insert(job.case.subject);
        let (sender, quit, limit) = (self.finished.0.clone(), Arc::clone(&self.quit.1), self.settings.timeout);
        let hands = thread::current();
        let started = prepare(words, &job.case).map_err(|error| error.to_string()).and_then(|(prepared, command)| {
            let work = move || {
                let ran = run(prepared, limit, &quit);
                // The other end is there as long as anybody waits.
                let _ = sender.send(Finished { job, command, ran });
                hands.unpark();
            };
            thread::Builder::new().name("command".to_owned()).spawn(work).map_err(|error| error.to_string())
        });
        if let Err(error) = started {
            let ran = Ran { outcome: Outcome::NotStarted(error), output: String::new(), took: Duration::ZERO };
            let _ = self.finished.0.send(Finished { job, command: words.join(" "), ran });
            // There is nobody who would wake this thread.
            thread::current().unpark();
        }
    }

    /// Takes what has ended since the last call. The subjects whose ban has its first run behind it.
    pub(super) fn collect(&mut self, now: Duration, bans: &Bans, tell: &mut dyn FnMut(News)) -> Vec<Subject> {
        let mut ended = Vec::new();
        while let Ok(Finished { job, command, ran }) = self.finished.1.try_recv() {
            let Job { id, case, occasion, attempt } = job;
            self.running.remove(&case.subject);
            let again = if ran.outcome.is_success() { None } else { self.try_again(now, job, &ran.outcome, bans) };
            let Ran { outcome, output, took } = ran;
            tell(News::Ran { case, occasion, command, outcome, output, took, attempt, again });
            match occasion {
                Occasion::Before => {
                    if let Some(at) = self.awaited.iter().position(|(_, waits)| waits.subject == case.subject) {
                        self.awaited.remove(at);
                        tell(News::Ready { case });
                    }
                }
                Occasion::Block if attempt == 1 && bans.is_current(case.subject, id) => ended.push(case.subject),
                _ => {}
            }
        }
        ended
    }

    /// Puts a command that failed in line for later, where that makes sense. The time of one before a block is over.
    fn try_again(&mut self, now: Duration, job: Job, outcome: &Outcome, bans: &Bans) -> Option<Duration> {
        let sensible = match job.occasion {
            Occasion::Before => false,
            Occasion::Block => bans.is_current(job.case.subject, job.id),
            Occasion::Release => job.attempt < LAST_ATTEMPTS,
        };
        if !sensible || *outcome == Outcome::Stopped {
            return None;
        }
        if self.retries.len() >= RETRIES {
            self.lost += 1;
            return None;
        }
        let pause = pause::after(job.attempt);
        self.serial += 1;
        self.retries.insert((now.saturating_add(pause), self.serial), Job { attempt: job.attempt + 1, ..job });
        Some(pause)
    }

    /// When there is something to do that nobody will wake the thread for.
    pub(super) fn next(&self) -> Option<Duration> {
        let retry = self.retries.first_key_value().map(|((due, _), _)| *due);
        retry.into_iter().chain(self.awaited.front().map(|(until, _)| *until)).min()
    }

    /// How many wait or run; attempts for later aside.
    pub(super) fn left(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    /// How many run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Has all that run be ended.
    pub(super) fn quit(&mut self) {
        self.quit.0 = None;
    }
}
