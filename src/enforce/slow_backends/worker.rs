//! Runs the main loop of the slow-backends thread: takes tasks, handles ended commands, writes entries, ends
//! connections, starts commands, and waits until something is due.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::ban_queue::BanQueue;
use super::command_queue::CommandQueue;
use super::connections::Connections;
use super::entry_queue::EntryQueue;
use super::events::{BackendEvent, SlowTask};
use super::slow_backend::SlowBackend;
use super::task::{Adopted, Left, MAX_BANS, MAX_TASKS, SharedExempt, SlowBackendsConfig, Task};
use crate::clock::boot_time;
use crate::enforce::{BanContext, ExemptPrefixes};
use crate::panic_guard;
use crate::types::{Backend, BanTarget, LossReport, MINUTE, Timestamp};
use crate::worker::{Inbox, Stop};

/// Maximum wait while there is a deadline: after a suspend, the clock of the wait is behind the clock of the bans.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Interval between checks of running commands, at the end.
const FINAL_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The configured slow backends.
struct ConfiguredBackends {
    entries: Option<EntryQueue>,
    commands: Option<CommandQueue>,
}

impl ConfiguredBackends {
    /// The order in which the slow backends do their work. Commands come first, because the end of a command can make an
    /// entry due.
    const ORDER: [Backend; 2] = [Backend::Command, Backend::HostsDeny];

    /// The queue of `backend`; `None` if it is not configured, or not slow.
    fn get(&mut self, backend: Backend) -> Option<&mut dyn SlowBackend> {
        match backend {
            Backend::HostsDeny => Some(self.entries.as_mut()?),
            Backend::Command => Some(self.commands.as_mut()?),
            Backend::Nft | Backend::Route => None,
        }
    }
}

/// The state of the thread.
pub(super) struct BackendWorker {
    backends: ConfiguredBackends,
    connections: Connections,
    end_connections: bool,
    exempt: Arc<ExemptPrefixes>,
    shared_exempt: SharedExempt,
    bans: BanQueue,
    report: Box<dyn FnMut(BackendEvent) + Send>,
    inbox: Arc<Inbox<Task>>,
    losses: LossReport<2>,
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
            backends: ConfiguredBackends {
                entries: settings.entry_file.map(EntryQueue::new),
                commands: settings.run.map(CommandQueue::new),
            },
            connections: Connections::default(),
            end_connections: settings.end_connections,
            exempt,
            shared_exempt,
            bans: BanQueue::default(),
            report,
            inbox,
            losses: LossReport::default(),
        }
    }

    pub(super) fn run(&mut self) -> Left {
        self.backends.commands.iter_mut().for_each(CommandQueue::listen);
        let stop = loop {
            // Read first, so that tasks sent before the stop request are in the queue.
            let stop = self.inbox.stop();
            self.round();
            match stop {
                None => self.wait_for_work(),
                Some(stop) if !self.inbox.is_empty() && Instant::now() < last(stop) => {}
                Some(stop) => break stop,
            }
        };
        let now = boot_time();
        // Pending changes get one last attempt.
        self.backends.entries.iter_mut().for_each(EntryQueue::end_waits);
        self.run_due(Backend::HostsDeny, now);
        self.end_commands(stop);
        self.losses.expedite();
        self.report_losses(boot_time());
        Left {
            lines: self.backends.entries.as_ref().map_or(0, EntryQueue::waiting),
            commands: self.backends.commands.as_ref().map_or(0, CommandQueue::left),
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
        ConfiguredBackends::ORDER.into_iter().for_each(|backend| self.run_due(backend, now));
        if let Some(entries) = &mut self.backends.entries {
            entries.restore_lost(now, &self.bans);
            self.run_due(Backend::HostsDeny, now);
        }
        // After the entries: a connection that is ended earlier could be opened again.
        self.connections.flush(now, &self.exempt, &mut self.report);
        self.run_due(Backend::Command, now);
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
                    Some(ban) => {
                        ban.steps.extend(backends.iter());
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
                let Some(commands) = &mut self.backends.commands else { return };
                bans.into_iter()
                    .filter(|context| self.bans.get(context.target).is_none())
                    .for_each(|context| commands.undo(0, context));
            }
            Task::Adopt { bans } => self.adopt(now, bans),
        }
    }

    /// Continues the bans from before the start, and removes the entries of other targets.
    fn adopt(&mut self, now: Timestamp, bans: Vec<Adopted>) {
        let present = self.backends.entries.as_ref().and_then(EntryQueue::targets);
        for Adopted { context, backends, has_run, left } in bans {
            // A ban made after the start takes precedence over one from before.
            if self.bans.get(context.target).is_some() {
                continue;
            }
            let is_present = present.as_ref().map(|present| present.contains(&context.target));
            // If addresses in the target are exempt, only what an earlier run has done is ended.
            let is_exempt = self.exempt.check(context.target).is_err();
            let has_entry = backends.contains(&Backend::HostsDeny) && (!is_exempt || is_present == Some(true));
            let entries = self.backends.entries.as_mut().filter(|_| has_entry);
            if is_exempt && entries.is_none() && !has_run {
                continue;
            }
            if let Some(ban) = self.bans.insert(now, context, left) {
                (ban.has_entry, ban.has_run) = (entries.is_some(), has_run);
                if backends.contains(&Backend::Command) && !has_run && !is_exempt {
                    ban.steps.push_back(Backend::Command);
                }
                // Another backend blocked it until now, or the entry was removed in the meantime.
                if let (Some(entries), Some(false)) = (entries, is_present) {
                    entries.restore(ban.id, context);
                }
                self.step(context.target);
            }
        }
        self.end_exempt();
        self.backends.entries.iter_mut().for_each(EntryQueue::remove_stale);
        self.run_due(Backend::HostsDeny, now);
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
        if let Some(commands) = &mut self.backends.commands
            && self.exempt.check(context.target).is_ok()
        {
            match self.bans.insert(now, context, context.expiry) {
                Some(ban) => return commands.before(now, ban.id, context, &mut self.report),
                None => self.refuse(context, Backend::Command, full()),
            }
        }
        (self.report)(BackendEvent::Ready { context });
    }

    /// Begins the ban in its next backend.
    fn step(&mut self, target: BanTarget) {
        while let Some(ban) = self.bans.get_mut(target)
            && let Some(backend) = ban.steps.pop_front()
        {
            let context = ban.context;
            match self.backends.get(backend).map(|slow| slow.begin(ban)) {
                Some(true) => return,
                Some(false) => {}
                None => self.refuse(context, backend, format!("no {} is configured", backend.title())),
            }
        }
    }

    fn refuse(&mut self, context: BanContext, backend: Backend, reason: impl Into<String>) {
        let (targets, task) = (vec![context.target], SlowTask::Ban(backend));
        (self.report)(BackendEvent::Failed { targets, task, reason: reason.into(), attempt: 1, again: None });
    }

    fn lift(&mut self, target: BanTarget) {
        let ban = self.bans.remove(target);
        for backend in ConfiguredBackends::ORDER {
            if let Some(slow) = self.backends.get(backend) {
                slow.end(target, ban.as_ref());
            }
        }
    }

    /// Does the work of `backend` that is due, and continues with the bans that it has tried.
    fn run_due(&mut self, backend: Backend, now: Timestamp) {
        let Some(slow) = self.backends.get(backend) else { return };
        let tried = slow.run_due(now, &mut self.bans, &mut self.report);
        tried.into_iter().for_each(|target| self.step(target));
    }

    /// Waits until something is due or a task arrives.
    fn wait_for_work(&mut self) {
        let next_due = |backend| self.backends.get(backend)?.next_due(&self.bans);
        let slow = ConfiguredBackends::ORDER.into_iter().filter_map(next_due).min();
        match [self.bans.next(), self.connections.next(), slow].into_iter().flatten().min() {
            Some(next) => thread::park_timeout(next.since(boot_time()).min(MAX_WAIT)),
            None if self.losses.is_pending(self.lost()) => thread::park_timeout(MINUTE),
            None => thread::park(),
        }
    }

    /// Lets commands run for a while, then ends them.
    fn end_commands(&mut self, stop: Stop) {
        let soft = stop.after_eighths(4);
        while self.backends.commands.as_ref().is_some_and(|commands| commands.left() > 0) && Instant::now() < soft {
            thread::park_timeout(FINAL_POLL_INTERVAL);
            self.run_due(Backend::Command, boot_time());
        }
        // The entries that follow a command in the order of a ban.
        self.run_due(Backend::HostsDeny, boot_time());
        let Some(commands) = &mut self.backends.commands else { return };
        commands.quit();
        while !commands.running.is_empty() && Instant::now() < last(stop) {
            thread::park_timeout(FINAL_POLL_INTERVAL);
            commands.collect(boot_time(), &self.bans, &mut self.report);
        }
    }

    /// Numbers of lost tasks and commands.
    fn lost(&self) -> [u64; 2] {
        [self.inbox.refused(), self.backends.commands.as_ref().map_or(0, |commands| commands.lost)]
    }

    fn report_losses(&mut self, now: Timestamp) {
        if let Some([tasks, commands]) = self.losses.take(self.lost(), now) {
            (self.report)(BackendEvent::Lost { tasks, commands });
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
