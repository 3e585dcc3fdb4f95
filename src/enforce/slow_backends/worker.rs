//! Runs the main loop of the slow-backends thread: takes tasks, handles ended commands, writes entries, ends
//! connections, starts commands, and waits until something is due.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::ban_queue::{BanQueue, QueuedBan};
use super::command_queue::{CommandJob, CommandQueue};
use super::connections::Connections;
use super::entry_queue::EntryQueue;
use super::events::{BackendEvent, CommandPhase, SlowTask};
use super::task::{Adopted, Left, MAX_BANS, MAX_TASKS, SharedExempt, SlowBackendsConfig, Task};
use crate::clock::boot_time;
use crate::enforce::{BanContext, ExemptPrefixes};
use crate::panic_guard;
use crate::types::{Backend, BanTarget, Timestamp};
use crate::worker::{Inbox, Stop};

/// Maximum wait while there is a deadline: after a suspend, the clock of the wait is behind the clock of the bans.
const MAX_REST: Duration = Duration::from_secs(5);

/// Interval between checks of running commands, at the end.
const FINAL_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Interval between reports of losses.
const LOSS_INTERVAL: Duration = Duration::from_secs(60);

/// The state of the thread.
pub(super) struct BackendWorker {
    entries: Option<EntryQueue>,
    commands: Option<CommandQueue>,
    connections: Connections,
    end_connections: bool,
    exempt: Arc<ExemptPrefixes>,
    shared_exempt: SharedExempt,
    bans: BanQueue,
    report: Box<dyn FnMut(BackendEvent) + Send>,
    inbox: Arc<Inbox<Task>>,
    /// Reported numbers of lost tasks and commands, and the time of the next report.
    reported: (u64, u64),
    losses_due: Timestamp,
}

impl BackendWorker {
    pub(super) fn new(
        settings: SlowBackendsConfig,
        report: Box<dyn FnMut(BackendEvent) + Send>,
        inbox: Arc<Inbox<Task>>,
        shared_exempt: SharedExempt,
    ) -> Self {
        let exempt = Arc::clone(&shared_exempt.borrow());
        Self {
            entries: settings.entry_file.map(EntryQueue::new),
            commands: settings.run.map(CommandQueue::new),
            connections: Connections::default(),
            end_connections: settings.end_connections,
            exempt,
            shared_exempt,
            bans: BanQueue::default(),
            report,
            inbox,
            reported: (0, 0),
            losses_due: Timestamp::ZERO,
        }
    }

    pub(super) fn run(&mut self) -> Left {
        if let Some(commands) = &mut self.commands {
            commands.listen();
        }
        let stop = loop {
            // Read first, so that tasks sent before the stop request are in the queue.
            let stop = self.inbox.stop();
            self.round();
            match stop {
                None => self.rest(),
                Some(stop) if !self.inbox.is_empty() && Instant::now() < last(stop) => {}
                Some(stop) => break stop,
            }
        };
        let now = boot_time();
        // Pending changes get one last attempt.
        self.entries.iter_mut().for_each(EntryQueue::hurry);
        self.write(now);
        self.end_commands(stop);
        self.losses_due = Timestamp::ZERO;
        self.report_losses(boot_time());
        Left {
            lines: self.entries.as_ref().map_or(0, EntryQueue::waiting),
            commands: self.commands.as_ref().map_or(0, CommandQueue::left),
        }
    }

    /// Does the work that is due.
    fn round(&mut self) {
        let now = boot_time();
        let exempt = Arc::clone(&self.shared_exempt.borrow());
        if !Arc::ptr_eq(&exempt, &self.exempt) {
            self.exempt = exempt;
            self.end_exempt();
        }
        for _ in 0..MAX_TASKS {
            let Some(task) = self.inbox.pop() else { break };
            panic_guard::failpoint("slow-backends");
            self.handle(now, task);
        }
        while let Some(target) = self.bans.expired(now) {
            self.lift(target);
        }
        self.commands_go_on(now);
        self.write(now);
        self.restore_lost(now);
        // After the entries: a connection that is ended earlier could be opened again.
        self.connections.flush(now, &self.exempt, &mut self.report);
        self.commands_go_on(now);
        self.report_losses(now);
    }

    fn handle(&mut self, now: Timestamp, task: Task) {
        match task {
            Task::Before { context } => self.before(now, context),
            Task::Block { context, backends } => {
                if self.end_connections {
                    self.connections.end(context.target);
                }
                if backends.is_empty() {
                    return;
                }
                // The target became exempt while the task was in the queue.
                if let Err(overlap) = self.exempt.check(context.target) {
                    return backends.iter().for_each(|backend| self.refuse(context, *backend, overlap.to_string()));
                }
                match self.bans.insert(now, context, context.expiry) {
                    Some(held) => {
                        held.steps.extend(backends.iter());
                        self.step(context.target);
                    }
                    None => backends.iter().for_each(|backend| self.refuse(context, *backend, full())),
                }
            }
            Task::BlockUnknown { context, backends } => {
                if self.bans.get(context.target).is_none() {
                    self.handle(now, Task::Block { context, backends });
                }
            }
            Task::Release { targets } => targets.into_iter().for_each(|target| self.lift(target)),
            Task::Undo { bans } => {
                let Some(commands) = &mut self.commands else { return };
                bans.into_iter()
                    .filter(|context| self.bans.get(context.target).is_none())
                    .for_each(|context| commands.undo(0, context));
            }
            Task::Adopt { bans } => {
                let present = self.entries.as_ref().and_then(EntryQueue::held);
                for Adopted { context, backends, has_run, left } in bans {
                    // A ban made after the start takes precedence over one from before.
                    if self.bans.get(context.target).is_some() {
                        continue;
                    }
                    let is_present = present.as_ref().map(|present| present.contains(&context.target));
                    // If addresses in the target are exempt, only what an earlier run has done is ended.
                    let is_exempt = self.exempt.check(context.target).is_err();
                    let has_entry = backends.contains(&Backend::HostsDeny) && (!is_exempt || is_present == Some(true));
                    let entries = self.entries.as_mut().filter(|_| has_entry);
                    if is_exempt && entries.is_none() && !has_run {
                        continue;
                    }
                    if let Some(held) = self.bans.insert(now, context, left) {
                        (held.has_entry, held.has_run) = (entries.is_some(), has_run);
                        if backends.contains(&Backend::Command) && !has_run && !is_exempt {
                            held.steps.push_back(Backend::Command);
                        }
                        // Another backend blocked it until now, or the entry was removed in the meantime.
                        if let (Some(entries), Some(false)) = (entries, is_present) {
                            entries.restore(held.id, context);
                        }
                        self.step(context.target);
                    }
                }
                self.end_exempt();
                self.entries.iter_mut().for_each(EntryQueue::remove_stale);
                self.write(now);
            }
        }
    }

    /// Ends the bans that would affect exempt addresses. nftables still blocks the rest of these targets.
    fn end_exempt(&mut self) {
        let overlap = |target: BanTarget| Some((target, self.exempt.check(target).err()?.0));
        let mut ended: Vec<(BanTarget, IpNet)> = self.bans.targets().filter_map(overlap).collect();
        ended.iter().for_each(|(target, _)| self.lift(*target));
        // The ban of a target that is exempt as a whole ends in every backend, which is reported elsewhere.
        ended.retain(|(target, exempt)| !exempt.contains(&target.network()));
        if !ended.is_empty() {
            let mut targets: Vec<BanTarget> = ended.into_iter().map(|(target, _)| target).collect();
            targets.sort_unstable();
            (self.report)(BackendEvent::Exempted { targets });
        }
    }

    fn before(&mut self, now: Timestamp, context: BanContext) {
        if self.exempt.check(context.target).is_err() {
            return (self.report)(BackendEvent::Ready { context });
        }
        match (&mut self.commands, self.bans.insert(now, context, context.expiry)) {
            (Some(commands), Some(held)) => commands.before(now, held.id, context, &mut self.report),
            (None, Some(_)) => {
                self.bans.remove(context.target);
                (self.report)(BackendEvent::Ready { context });
            }
            (_, None) => {
                self.refuse(context, Backend::Command, full());
                (self.report)(BackendEvent::Ready { context });
            }
        }
    }

    /// Starts the next backend of a ban.
    fn step(&mut self, target: BanTarget) {
        while let Some(held) = self.bans.get_mut(target)
            && let Some(backend) = held.steps.pop_front()
        {
            let (context, id) = (held.context, held.id);
            match (backend, &mut self.entries, &mut self.commands) {
                (Backend::HostsDeny, Some(entries), _) => {
                    held.has_entry = true;
                    return entries.add(id, context);
                }
                (Backend::Command, _, Some(commands)) => {
                    if commands.push(CommandJob { id, context, phase: CommandPhase::Block, attempt: 1 }) {
                        return;
                    }
                }
                _ => self.refuse(context, backend, format!("no {} is configured", backend.title())),
            }
        }
    }

    fn refuse(&mut self, context: BanContext, backend: Backend, reason: impl Into<String>) {
        let (targets, task) = (vec![context.target], SlowTask::Ban(backend));
        (self.report)(BackendEvent::Failed { targets, task, reason: reason.into(), attempt: 1, again: None });
    }

    fn lift(&mut self, target: BanTarget) {
        let held = self.bans.remove(target);
        // A target without a ban may have an entry from before the start.
        if let Some(entries) = &mut self.entries
            && held.as_ref().is_none_or(|held| held.has_entry)
        {
            entries.remove(target);
        }
        if let Some(commands) = &mut self.commands {
            commands.forget(target);
            if let Some(QueuedBan { id, context, has_run: true, .. }) = held {
                commands.undo(id, context);
            }
        }
    }

    /// Writes entries, and continues with the bans whose entry was tried.
    fn write(&mut self, now: Timestamp) {
        while let Some(entries) = &mut self.entries {
            let tried = entries.flush(now, &self.bans, &mut self.report);
            if tried.is_empty() {
                return;
            }
            for (target, id) in tried {
                if self.bans.is_current(target, id) {
                    self.step(target);
                }
            }
        }
    }

    /// Restores entries that another program removed.
    fn restore_lost(&mut self, now: Timestamp) {
        if let Some(entries) = &mut self.entries {
            for held in entries.lost(now, &self.bans).into_iter().filter_map(|target| self.bans.get(target)) {
                entries.restore(held.id, held.context);
            }
        }
        self.write(now);
    }

    fn commands_go_on(&mut self, now: Timestamp) {
        let Some(commands) = &mut self.commands else { return };
        let ended = commands.collect(now, &self.bans, &mut self.report);
        ended.into_iter().for_each(|target| self.step(target));
        if let Some(commands) = &mut self.commands {
            commands.go_on(now, &mut self.bans, &mut self.report);
        }
    }

    /// Waits until something is due or a task arrives.
    fn rest(&self) {
        let commands = self.commands.as_ref().and_then(CommandQueue::next);
        let entries = self.entries.as_ref().and_then(|entries| entries.next(&self.bans));
        match [self.bans.next(), entries, self.connections.next(), commands].into_iter().flatten().min() {
            Some(next) => thread::park_timeout(next.since(boot_time()).min(MAX_REST)),
            None if self.losses() != self.reported => thread::park_timeout(LOSS_INTERVAL),
            None => thread::park(),
        }
    }

    /// Lets commands run for a while, then ends them.
    fn end_commands(&mut self, stop: Stop) {
        let soft = stop.after_eighths(4);
        while self.commands.as_ref().is_some_and(|commands| commands.left() > 0) && Instant::now() < soft {
            thread::park_timeout(FINAL_POLL_INTERVAL);
            self.commands_go_on(boot_time());
        }
        // The backends that follow a command in the order of a ban.
        self.write(boot_time());
        let Some(commands) = &mut self.commands else { return };
        commands.quit();
        while !commands.running.is_empty() && Instant::now() < last(stop) {
            thread::park_timeout(FINAL_POLL_INTERVAL);
            commands.collect(boot_time(), &self.bans, &mut self.report);
        }
    }

    fn losses(&self) -> (u64, u64) {
        (self.inbox.refused(), self.commands.as_ref().map_or(0, |commands| commands.lost))
    }

    fn report_losses(&mut self, now: Timestamp) {
        let (tasks, commands) = self.losses();
        if (tasks, commands) != self.reported && now >= self.losses_due {
            (self.report)(BackendEvent::Lost { tasks: tasks - self.reported.0, commands: commands - self.reported.1 });
            self.reported = (tasks, commands);
            self.losses_due = now.after(LOSS_INTERVAL);
        }
    }
}

/// Time at which the thread ends, even with unfinished work.
fn last(stop: Stop) -> Instant {
    stop.after_eighths(7)
}

fn full() -> String {
    format!("the maximum of {MAX_BANS} bans with hosts.deny lines or commands is reached; shorten `expire`")
}
