//! Runs commands in the command helper ([`CommandHelperClient`]): a few concurrently, the others wait in order. Two
//! commands for one target never run at the same time. If the helper has ended, commands fail.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::config::Run;
use crate::enforce::command::{CommandAnswer, CommandHelperClient, ConfiguredCommand, ExitOutcome, Ran, line};
use crate::enforce::slow_backends::{
    Adopted, BACKOFF, BackendEvent, BanQueue, CommandPhase, MAX_BANS, QueuedBan, SlowBackend, SlowTask,
};
use crate::enforce::{BanContext, ExemptPrefixes};
use crate::panic_guard;
use crate::types::{Backend, BanTarget, Timestamp};

/// Maximum number of waiting commands for new bans, which packets cause.
const MAX_NEW_COMMANDS: usize = 1_024;

/// Maximum number of failed commands that wait for a retry.
const MAX_RETRIES: usize = 4_096;

/// Maximum number of attempts of the expiry command, which no expiry ends.
const MAX_RELEASE_ATTEMPTS: u32 = 10;

/// One run of a command.
#[derive(Clone, Copy)]
struct CommandJob {
    /// Identifier of its ban.
    id: u64,
    context: BanContext,
    phase: CommandPhase,
    attempt: u32,
}

/// The waiting and the running commands.
pub struct CommandQueue {
    settings: Run,
    helper_client: CommandHelperClient,
    waiting: VecDeque<CommandJob>,
    /// Number of commands in `waiting` that are not for the end of a ban.
    new: usize,
    retries: BTreeMap<(Timestamp, u64), CommandJob>,
    serial: u64,
    /// Blocks that wait for their command, each with its timeout; ordered, because all have the same limit.
    awaited: VecDeque<(Timestamp, BanContext)>,
    /// Running commands, by their request numbers.
    running: HashMap<u64, CommandJob>,
    number: u64,
    /// Answers in order of arrival, also those of this thread for commands that could not be requested. `None` means
    /// that the helper has ended.
    answers: (Sender<Option<CommandAnswer>>, Receiver<Option<CommandAnswer>>),
    listens: bool,
    quits: bool,
    /// Number of dropped commands.
    lost: u64,
}

impl CommandQueue {
    /// Runs the commands of `settings` through `helper_client`.
    pub fn new(settings: Run, helper_client: CommandHelperClient) -> Self {
        Self {
            settings,
            helper_client,
            waiting: VecDeque::new(),
            new: 0,
            retries: BTreeMap::new(),
            serial: 0,
            awaited: VecDeque::new(),
            running: HashMap::new(),
            number: 0,
            answers: channel(),
            listens: false,
            quits: false,
            lost: 0,
        }
    }

    /// Receives answers from now on, on a thread that wakes the calling one.
    fn listen(&mut self) {
        if std::mem::replace(&mut self.listens, true) {
            return;
        }
        let (helper_client, sender, worker) = (self.helper_client.clone(), self.answers.0.clone(), thread::current());
        let work = move || {
            panic_guard::restart_on_panic(|| {
                while let Some(answer) = helper_client.next() {
                    // The receiver is dropped only at the end.
                    let _ = sender.send(Some(answer));
                    worker.unpark();
                }
            });
            let _ = sender.send(None);
            worker.unpark();
        };
        if thread::Builder::new().name("commands".to_owned()).spawn(work).is_err() {
            // No answer could be received.
            self.helper_client.hang_up();
            let _ = self.answers.0.send(None);
        }
    }

    /// Queues a command; false if the queue is full, in which case it is counted as lost.
    fn push(&mut self, job: CommandJob) -> bool {
        let release = job.phase == CommandPhase::Release;
        let room = if release { self.waiting.len() < MAX_BANS } else { self.new < MAX_NEW_COMMANDS };
        if room {
            self.waiting.push_back(job);
            self.new += usize::from(!release);
        } else {
            self.lost += 1;
        }
        room
    }

    /// Starts as many commands as permitted, and releases blocks that have waited long enough.
    fn start_due(&mut self, now: Timestamp, bans: &mut BanQueue, report: &mut dyn FnMut(BackendEvent)) {
        while !self.quits
            && let Some(entry) = self.retries.first_entry()
            && entry.key().0 <= now
        {
            let job = entry.remove();
            self.push(job);
        }
        while !self.quits
            && self.running.len() < self.settings.at_once
            && let Some(at) = self.waiting.iter().position(|job| !self.is_running(job.context.target))
            && let Some(job) = self.waiting.remove(at)
        {
            self.new = self.new.saturating_sub(usize::from(job.phase != CommandPhase::Release));
            if let Some(ban) = bans.get_mut(job.context.target) {
                // A newer ban has its own command.
                if job.phase == CommandPhase::Block && ban.id != job.id {
                    continue;
                }
                // Another attempt would undo the command of the newer ban, whose end undoes both.
                if job.phase == CommandPhase::Release && ban.done.contains(Backend::Command) {
                    continue;
                }
                if job.phase != CommandPhase::Release {
                    ban.done.insert(Backend::Command);
                }
            } else if job.phase != CommandPhase::Release {
                continue;
            }
            self.start(job);
        }
        while let Some((until, context)) = self.awaited.front().copied()
            && until <= now
        {
            self.awaited.pop_front();
            report(BackendEvent::Ready { context });
        }
    }

    fn is_running(&self, target: BanTarget) -> bool {
        self.running.values().any(|job| job.context.target == target)
    }

    fn start(&mut self, job: CommandJob) {
        let (which, words) = match job.phase {
            CommandPhase::Release => (ConfiguredCommand::Expiry, &self.settings.expire_command),
            CommandPhase::Before | CommandPhase::Block => (ConfiguredCommand::Ban, &self.settings.command),
        };
        self.number += 1;
        self.running.insert(self.number, job);
        if let Err(error) = self.helper_client.ask(self.number, which, job.context) {
            self.answer(self.number, line(words), ExitOutcome::NotStarted(error));
            // Nothing else wakes this thread.
            thread::current().unpark();
        }
    }

    /// Answers request `number` in place of the helper.
    fn answer(&self, number: u64, command: String, outcome: ExitOutcome) {
        // The receiver is in the same struct.
        let _ = self.answers.0.send(Some(CommandAnswer { number, command, ran: Ran::without_output(outcome) }));
    }

    /// The next result, with its command line.
    fn next_finished(&mut self, report: &mut dyn FnMut(BackendEvent)) -> Option<(CommandJob, String, Ran)> {
        loop {
            match self.answers.1.try_recv().ok()? {
                Some(CommandAnswer { number, command, ran }) => {
                    // Ignores unrequested answers.
                    if let Some(job) = self.running.remove(&number) {
                        return Some((job, command, ran));
                    }
                }
                None => self.helper_ended(report),
            }
        }
    }

    /// Handles the end of the helper; its running commands are not ended.
    fn helper_ended(&mut self, report: &mut dyn FnMut(BackendEvent)) {
        for number in self.running.keys() {
            self.answer(*number, "its command".to_owned(), ExitOutcome::Unknown);
        }
        if !self.quits {
            let how = self.helper_client.end().map_or(String::new(), |how| format!(" ({how})"));
            let process = self.helper_client.process();
            let reason = format!(
                "process {process}, which runs commands, has ended{how}; no command is run until you restart \
                 portsentry, everything else continues"
            );
            report(BackendEvent::Unable { task: SlowTask::Ban(Backend::Command), reason });
        }
    }

    /// Handles the commands that have ended since the last call. Returns the targets of bans whose first run has ended.
    fn collect(&mut self, now: Timestamp, bans: &BanQueue, report: &mut dyn FnMut(BackendEvent)) -> Vec<BanTarget> {
        let mut ended = Vec::new();
        while let Some((job, command, ran)) = self.next_finished(report) {
            let CommandJob { id, context, phase, attempt } = job;
            let again = if ran.outcome.is_success() { None } else { self.try_again(now, job, &ran.outcome, bans) };
            let Ran { outcome, output, took } = ran;
            report(BackendEvent::Ran { context, phase, command, outcome, output, took, attempt, again });
            match phase {
                CommandPhase::Before => {
                    if let Some(at) = self.awaited.iter().position(|(_, waits)| waits.target == context.target) {
                        self.awaited.remove(at);
                        report(BackendEvent::Ready { context });
                    }
                }
                CommandPhase::Block if attempt == 1 && bans.is_current(context.target, id) => {
                    ended.push(context.target)
                }
                _ => {}
            }
        }
        ended
    }

    /// Schedules a retry of a failed command, if useful. The command before a block is not retried.
    fn try_again(
        &mut self,
        now: Timestamp,
        job: CommandJob,
        outcome: &ExitOutcome,
        bans: &BanQueue,
    ) -> Option<Duration> {
        let sensible = match job.phase {
            CommandPhase::Before => false,
            CommandPhase::Block => bans.is_current(job.context.target, job.id),
            CommandPhase::Release => job.attempt < MAX_RELEASE_ATTEMPTS,
        };
        if !sensible || *outcome == ExitOutcome::Stopped {
            return None;
        }
        if self.retries.len() >= MAX_RETRIES {
            self.lost += 1;
            return None;
        }
        let pause = BACKOFF.delay(job.attempt);
        self.serial += 1;
        self.retries.insert((now.after(pause), self.serial), CommandJob { attempt: job.attempt + 1, ..job });
        Some(pause)
    }
}

impl SlowBackend for CommandQueue {
    /// A command that ran before the restart is recorded as done, so that the expiry command runs when the ban ends.
    /// Otherwise the command runs now.
    fn adopt(&mut self, adopted: &[Adopted], bans: &mut BanQueue, exempt: &ExemptPrefixes) {
        for Adopted { context, done, .. } in adopted.iter().filter(|ban| ban.backends.contains(Backend::Command)) {
            let Some(ban) = bans.get_mut(context.target) else { continue };
            if done.contains(Backend::Command) {
                ban.done.insert(Backend::Command);
            } else if exempt.check(context.target).is_ok() {
                self.begin(ban);
            }
        }
    }

    /// Runs the command before the block, which waits for it, up to the time limit.
    fn precede(&mut self, now: Timestamp, ban: &QueuedBan, report: &mut dyn FnMut(BackendEvent)) {
        let QueuedBan { id, context, .. } = *ban;
        if self.push(CommandJob { id, context, phase: CommandPhase::Before, attempt: 1 }) {
            self.awaited.push_back((now.after(self.settings.timeout), context));
        } else {
            report(BackendEvent::Ready { context });
        }
    }

    fn begin(&mut self, ban: &mut QueuedBan) -> bool {
        self.push(CommandJob { id: ban.id, context: ban.context, phase: CommandPhase::Block, attempt: 1 })
    }

    /// Also stops waiting for the command that precedes the block of `target`.
    fn end(&mut self, target: BanTarget, ban: Option<&QueuedBan>) {
        self.awaited.retain(|(_, context)| context.target != target);
        if let Some(QueuedBan { id, context, done, .. }) = ban
            && done.contains(Backend::Command)
            && !self.settings.expire_command.is_empty()
        {
            // A dropped command is counted.
            let _ = self.push(CommandJob { id: *id, context: *context, phase: CommandPhase::Release, attempt: 1 });
        }
    }

    /// Handles the commands that have ended, and starts those that are due.
    fn run_due(&mut self, now: Timestamp, bans: &mut BanQueue, report: &mut dyn FnMut(BackendEvent)) -> Vec<BanTarget> {
        self.listen();
        let ended = self.collect(now, bans, report);
        self.start_due(now, bans, report);
        ended
    }

    fn next_due(&self, _bans: &BanQueue) -> Option<Timestamp> {
        let retry = self.retries.first_key_value().map(|((due, _), _)| *due);
        retry.into_iter().chain(self.awaited.front().map(|(until, _)| *until)).min()
    }

    fn is_working(&self) -> bool {
        !self.running.is_empty() || !self.quits && !self.waiting.is_empty()
    }

    fn quit(&mut self) {
        self.quits = true;
        self.helper_client.hang_up();
    }

    /// Does not count scheduled retries.
    fn unfinished(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    fn lost(&self) -> u64 {
        self.lost
    }
}
