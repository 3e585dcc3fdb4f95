//! Commands that wait, in their order, and a few that run at once in the command helper ([`Spawner`]), a process that does
//! nothing else. Two commands for one target never run at the same time. Where the helper has ended, commands fail.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::ban_queue::Bans;
use super::{BACKOFF, BackendEvent, CommandPhase, MAX_BANS, SlowTask};
use crate::enforce::BanContext;
use crate::enforce::command::{Answer, Outcome, Ran, RunSettings, Spawner, Which};
use crate::panic_guard;
use crate::types::{Backend, BanTarget, Timestamp};

/// Commands for new bans that wait; packets cause them.
const MAX_WAITING: usize = 1_024;

/// Commands that failed and wait for their next attempt.
const MAX_RETRIES: usize = 4_096;

/// Attempts at the expiry command: no expiry ends them.
const MAX_RELEASE_ATTEMPTS: u32 = 10;

/// One run of a command.
#[derive(Clone, Copy)]
pub(super) struct Job {
    /// The number of its ban.
    pub(super) id: u64,
    pub(super) case: BanContext,
    pub(super) occasion: CommandPhase,
    pub(super) attempt: u32,
}

/// The result of a command.
struct Finished {
    job: Job,
    command: String,
    ran: Ran,
}

/// The commands that wait and those that run.
pub(super) struct Commands {
    settings: RunSettings,
    spawner: Spawner,
    waiting: VecDeque<Job>,
    /// Those in `waiting` that are not for the end of a ban.
    new: usize,
    running: HashSet<BanTarget>,
    retries: BTreeMap<(Timestamp, u64), Job>,
    serial: u64,
    /// Blocks that wait for their command, and until when at most; in this order, since all have the same limit.
    awaited: VecDeque<(Timestamp, BanContext)>,
    /// Commands that are run, by the number under which they were asked for.
    asked: HashMap<u64, Job>,
    number: u64,
    /// Commands that could not be asked for.
    unasked: VecDeque<Finished>,
    /// Answers as they come; `None` is the last, and says that there will be no more.
    answers: (Sender<Option<Answer>>, Receiver<Option<Answer>>),
    listens: bool,
    quits: bool,
    /// Commands that were dropped.
    pub(super) lost: u64,
}

impl Commands {
    pub(super) fn new((settings, spawner): (RunSettings, Spawner)) -> Self {
        Self {
            settings,
            spawner,
            waiting: VecDeque::new(),
            new: 0,
            running: HashSet::new(),
            retries: BTreeMap::new(),
            serial: 0,
            awaited: VecDeque::new(),
            asked: HashMap::new(),
            number: 0,
            unasked: VecDeque::new(),
            answers: channel(),
            listens: false,
            quits: false,
            lost: 0,
        }
    }

    /// Has answers taken in from now on, on a thread that wakes the calling one.
    pub(super) fn listen(&mut self) {
        if std::mem::replace(&mut self.listens, true) {
            return;
        }
        let (spawner, sender, hands) = (self.spawner.clone(), self.answers.0.clone(), thread::current());
        let work = move || {
            panic_guard::restart_on_panic(|| {
                while let Some(answer) = spawner.next() {
                    // The other end is dropped only at the end.
                    let _ = sender.send(Some(answer));
                    hands.unpark();
                }
            });
            let _ = sender.send(None);
            hands.unpark();
        };
        if thread::Builder::new().name("commands".to_owned()).spawn(work).is_err() {
            // No answer would ever be heard.
            self.spawner.hang_up();
            let _ = self.answers.0.send(None);
        }
    }

    /// Puts a command in line; false where there is no room, and it is lost and counted.
    pub(super) fn put(&mut self, job: Job) -> bool {
        let release = job.occasion == CommandPhase::Release;
        let room = if release { self.waiting.len() < MAX_BANS } else { self.new < MAX_WAITING };
        if room {
            self.waiting.push_back(job);
            self.new += usize::from(!release);
        } else {
            self.lost += 1;
        }
        room
    }

    /// Puts the command after a ban in line, if there is one.
    pub(super) fn undo(&mut self, id: u64, case: BanContext) {
        if !self.settings.expire_command.is_empty() {
            // What is lost is counted.
            let _ = self.put(Job { id, case, occasion: CommandPhase::Release, attempt: 1 });
        }
    }

    /// Runs the command before the block of `case`, and has the block wait for it, for a while.
    pub(super) fn before(&mut self, now: Timestamp, id: u64, case: BanContext, tell: &mut dyn FnMut(BackendEvent)) {
        if self.put(Job { id, case, occasion: CommandPhase::Before, attempt: 1 }) {
            self.awaited.push_back((now.after(self.settings.timeout), case));
        } else {
            tell(BackendEvent::Ready { case });
        }
    }

    /// No block of `target` waits any more.
    pub(super) fn forget(&mut self, target: BanTarget) {
        self.awaited.retain(|(_, case)| case.target != target);
    }

    /// Starts what there is room for, and lets blocks go on that have waited long enough.
    pub(super) fn go_on(&mut self, now: Timestamp, bans: &mut Bans, tell: &mut dyn FnMut(BackendEvent)) {
        while let Some(entry) = self.retries.first_entry()
            && entry.key().0 <= now
        {
            let job = entry.remove();
            self.put(job);
        }
        while self.running.len() < self.settings.at_once
            && let Some(at) = self.waiting.iter().position(|job| !self.running.contains(&job.case.target))
            && let Some(job) = self.waiting.remove(at)
        {
            self.new = self.new.saturating_sub(usize::from(job.occasion != CommandPhase::Release));
            if let Some(held) = bans.get_mut(job.case.target) {
                // A newer ban has its own command.
                if job.occasion == CommandPhase::Block && held.id != job.id {
                    continue;
                }
                held.has_run |= job.occasion != CommandPhase::Release;
            } else if job.occasion != CommandPhase::Release {
                continue;
            }
            self.start(job);
        }
        while let Some((until, case)) = self.awaited.front().copied()
            && until <= now
        {
            self.awaited.pop_front();
            tell(BackendEvent::Ready { case });
        }
    }

    fn start(&mut self, job: Job) {
        let (which, words) = match job.occasion {
            CommandPhase::Release => (Which::End, &self.settings.expire_command),
            CommandPhase::Before | CommandPhase::Block => (Which::Begin, &self.settings.command),
        };
        self.running.insert(job.case.target);
        self.number += 1;
        match self.spawner.ask(self.number, which, job.case) {
            Ok(()) => drop(self.asked.insert(self.number, job)),
            Err(error) => {
                let ran = Ran { outcome: Outcome::NotStarted(error), output: String::new(), took: Duration::ZERO };
                self.unasked.push_back(Finished { job, command: words.join(" "), ran });
                // Nothing else wakes this thread.
                thread::current().unpark();
            }
        }
    }

    /// The next result.
    fn next_finished(&mut self, tell: &mut dyn FnMut(BackendEvent)) -> Option<Finished> {
        loop {
            if let Some(finished) = self.unasked.pop_front() {
                return Some(finished);
            }
            match self.answers.1.try_recv().ok()? {
                Some(Answer { number, command, ran }) => {
                    // Ignores answers that were not asked for.
                    if let Some(job) = self.asked.remove(&number) {
                        return Some(Finished { job, command, ran });
                    }
                }
                None => self.end(tell),
            }
        }
    }

    /// The helper has ended; what it ran is left alone.
    fn end(&mut self, tell: &mut dyn FnMut(BackendEvent)) {
        for (_, job) in self.asked.drain() {
            let ran = Ran { outcome: Outcome::Unknown, output: String::new(), took: Duration::ZERO };
            self.unasked.push_back(Finished { job, command: "its command".to_owned(), ran });
        }
        if !self.quits {
            let how = self.spawner.end().map_or(String::new(), |how| format!(" ({how})"));
            let process = self.spawner.process();
            let reason = format!(
                "process {process}, which runs commands, has ended{how}; all else goes on, and no command is run until \
                 portsentry is restarted"
            );
            tell(BackendEvent::Unable { task: SlowTask::Ban(Backend::Command), reason });
        }
    }

    /// Takes the commands that have ended since the last call. Returns the targets of bans whose first run is over.
    pub(super) fn collect(
        &mut self,
        now: Timestamp,
        bans: &Bans,
        tell: &mut dyn FnMut(BackendEvent),
    ) -> Vec<BanTarget> {
        let mut ended = Vec::new();
        while let Some(Finished { job, command, ran }) = self.next_finished(tell) {
            let Job { id, case, occasion, attempt } = job;
            self.running.remove(&case.target);
            let again = if ran.outcome.is_success() { None } else { self.try_again(now, job, &ran.outcome, bans) };
            let Ran { outcome, output, took } = ran;
            tell(BackendEvent::Ran { case, occasion, command, outcome, output, took, attempt, again });
            match occasion {
                CommandPhase::Before => {
                    if let Some(at) = self.awaited.iter().position(|(_, waits)| waits.target == case.target) {
                        self.awaited.remove(at);
                        tell(BackendEvent::Ready { case });
                    }
                }
                CommandPhase::Block if attempt == 1 && bans.is_current(case.target, id) => ended.push(case.target),
                _ => {}
            }
        }
        ended
    }

    /// Puts a command that failed in line for later, where that makes sense. The time of one before a block is over.
    fn try_again(&mut self, now: Timestamp, job: Job, outcome: &Outcome, bans: &Bans) -> Option<Duration> {
        let sensible = match job.occasion {
            CommandPhase::Before => false,
            CommandPhase::Block => bans.is_current(job.case.target, job.id),
            CommandPhase::Release => job.attempt < MAX_RELEASE_ATTEMPTS,
        };
        if !sensible || *outcome == Outcome::Stopped {
            return None;
        }
        if self.retries.len() >= MAX_RETRIES {
            self.lost += 1;
            return None;
        }
        let pause = BACKOFF.delay(job.attempt);
        self.serial += 1;
        self.retries.insert((now.after(pause), self.serial), Job { attempt: job.attempt + 1, ..job });
        Some(pause)
    }

    /// When something is due that does not wake the thread.
    pub(super) fn next(&self) -> Option<Timestamp> {
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
        self.quits = true;
        self.spawner.hang_up();
    }
}
