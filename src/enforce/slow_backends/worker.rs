//! Runs the main loop of the slow-backends thread: takes tasks, lets the backends do what is due, ends connections, and
//! waits until something is due.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::ban_queue::{BanQueue, QueuedBan};
use super::connections::Connections;
use super::events::{BackendEvent, SlowTask};
use super::slow_backend::{SlowBackend, SlowBackendHandles, Unfinished};
use super::task::{Adopted, MAX_BANS, MAX_TASKS, SharedExempt, Task};
use crate::clock::boot_time;
use crate::enforce::{BanContext, ExemptPrefixes};
use crate::panic_guard;
use crate::types::{Backend, BanTarget, LossReport, MINUTE, Timestamp};
use crate::worker::{Inbox, Stop};

/// Maximum wait while there is a deadline: after a suspend, the clock of the wait is behind the clock of the bans.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Interval between checks of running commands, at the end.
const FINAL_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The state of the thread.
pub(super) struct BackendWorker {
    backends: SlowBackendHandles,
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
        backends: SlowBackendHandles,
        end_connections: bool,
        report: Box<dyn FnMut(BackendEvent) + Send>,
        inbox: Arc<Inbox<Task>>,
        shared_exempt: SharedExempt,
    ) -> Self {
        let exempt = Arc::clone(&shared_exempt.borrow());
        Self {
            backends,
            connections: Connections::default(),
            end_connections,
            exempt,
            shared_exempt,
            bans: BanQueue::default(),
            report,
            inbox,
            losses: LossReport::default(),
        }
    }

    pub(super) fn run(&mut self) -> Unfinished {
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
        // Pending changes get one last attempt; running commands get a grace period.
        self.backends.iter_mut().for_each(|(_, slow)| slow.end_waits());
        self.finish(stop.after_eighths(4));
        self.backends.iter_mut().for_each(|(_, slow)| slow.quit());
        self.finish(last(stop));
        self.losses.expedite();
        self.report_losses(boot_time());
        let left = self.backends.iter().map(|(backend, slow)| (*backend, slow.unfinished()));
        left.filter(|(_, changes)| *changes > 0).collect()
    }

    /// Does the work that is due, then waits until `end` for running work and what follows from it.
    fn finish(&mut self, end: Instant) {
        self.run_due(boot_time());
        while self.backends.iter().any(|(_, slow)| slow.is_working()) && Instant::now() < end {
            thread::park_timeout(FINAL_POLL_INTERVAL);
            self.run_due(boot_time());
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
        self.run_due(now);
        // After the backends: a connection that is ended earlier could be opened again.
        self.connections.flush(now, &self.exempt, &mut self.report);
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
                for context in bans.into_iter().filter(|context| self.bans.get(context.target).is_none()) {
                    let ban = QueuedBan::new(context, Backend::Command.into());
                    self.backends.iter_mut().for_each(|(_, slow)| slow.end(context.target, Some(&ban)));
                }
            }
            Task::Adopt { bans } => self.adopt(now, bans),
        }
    }

    /// Continues the bans of earlier runs that are still in force, and undoes what those runs did for all other bans.
    fn adopt(&mut self, now: Timestamp, mut adopted: Vec<Adopted>) {
        // A ban made after the start takes precedence over one from before.
        adopted.retain(|Adopted { context, left, .. }| {
            self.bans.get(context.target).is_none() && self.bans.insert(now, *context, *left).is_some()
        });
        for (_, slow) in &mut self.backends {
            slow.adopt(&adopted, &mut self.bans, &self.exempt);
        }
        // A ban that overlaps exempt addresses is kept only if an earlier run did something that must be undone.
        for target in adopted.into_iter().map(|ban| ban.context.target) {
            if self.exempt.check(target).is_err() && self.bans.get(target).is_some_and(|ban| ban.done.is_empty()) {
                self.bans.remove(target);
            }
        }
        self.end_exempt();
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
        if self.exempt.check(context.target).is_ok()
            && let Some(command) = find(&mut self.backends, Backend::Command)
        {
            match self.bans.insert(now, context, context.expiry) {
                Some(ban) => return command.precede(now, ban, &mut self.report),
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
            match find(&mut self.backends, backend).map(|slow| slow.begin(ban)) {
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
        self.backends.iter_mut().for_each(|(_, slow)| slow.end(target, ban.as_ref()));
    }

    /// Runs all due work. A ban whose backend has made its first attempt moves to its next backend, so this repeats
    /// until no ban moves.
    fn run_due(&mut self, now: Timestamp) {
        let mut continues = true;
        while continues {
            continues = false;
            for index in 0..self.backends.len() {
                let Some((_, slow)) = self.backends.get_mut(index) else { break };
                let tried = slow.run_due(now, &mut self.bans, &mut self.report);
                continues |= !tried.is_empty();
                tried.into_iter().for_each(|target| self.step(target));
            }
        }
    }

    /// Waits until something is due or a task arrives.
    fn wait_for_work(&mut self) {
        let slow = self.backends.iter().filter_map(|(_, slow)| slow.next_due(&self.bans)).min();
        match [self.bans.next(), self.connections.next(), slow].into_iter().flatten().min() {
            Some(next) => thread::park_timeout(next.since(boot_time()).min(MAX_WAIT)),
            None if self.losses.is_pending(self.lost()) => thread::park_timeout(MINUTE),
            None => thread::park(),
        }
    }

    /// Numbers of lost tasks and commands.
    fn lost(&self) -> [u64; 2] {
        [self.inbox.refused(), self.backends.iter().map(|(_, slow)| slow.lost()).sum()]
    }

    fn report_losses(&mut self, now: Timestamp) {
        if let Some([tasks, commands]) = self.losses.take(self.lost(), now) {
            (self.report)(BackendEvent::Lost { tasks, commands });
        }
    }
}

fn find(backends: &mut SlowBackendHandles, backend: Backend) -> Option<&mut dyn SlowBackend> {
    backends.iter_mut().find(|(one, _)| *one == backend).map(|(_, slow)| &mut **slow as _)
}

/// Time at which the thread ends, even with unfinished work.
fn last(stop: Stop) -> Instant {
    stop.after_eighths(7)
}

fn full() -> String {
    format!("the maximum of {MAX_BANS} bans with hosts.deny lines or commands is reached; shorten `expire`")
}
