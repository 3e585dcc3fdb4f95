//! The sensor's side of the slow backends. It is an inline backend itself: each ban becomes a task of their thread,
//! which reports the result.

use std::sync::Arc;

use super::task::{MAX_NEW_BANS, SharedExempt, Task};
use super::{SlowBackends, TaskSender};
use crate::enforce::{BackendGone, BanContext, ExemptPrefixes, InlineBackend, Refused};
use crate::engine::Host;
use crate::types::{Backend, BanTarget, Timestamp};

/// The task queue of the slow backends, and the work that a ban needs.
pub struct SlowQueue {
    tasks: TaskSender,
    /// Own copy of what `shared` holds, so that no packet waits for the thread.
    exempt: Arc<ExemptPrefixes>,
    shared: SharedExempt,
    /// The slow backends that enforce a ban, in order.
    backends: Arc<[Backend]>,
    /// The same without the command, which ran before the ban; see [`SlowQueue::run_first`].
    after_command: Option<Arc<[Backend]>>,
    /// True if connections of blocked sources are ended.
    end_connections: bool,
    /// True if `expire_command` runs for earlier bans, although commands are not among these backends.
    undoes_commands: bool,
}

impl SlowQueue {
    /// The queue of `thread`, for the slow ones among `backends`. With `command_first` the command runs before the
    /// other backends, which wait for its end. Set `undoes_commands` if commands are not among `backends`, but
    /// `expire_command` runs for earlier bans.
    pub fn new(thread: &SlowBackends, backends: &[Backend], command_first: bool, undoes_commands: bool) -> Self {
        let backends: Arc<[Backend]> = backends.iter().copied().filter(|backend| backend.is_slow()).collect();
        let after_command =
            command_first.then(|| backends.iter().copied().filter(|backend| *backend != Backend::Command).collect());
        let (tasks, shared) = (thread.tasks(), thread.exempt.clone());
        let exempt = Arc::clone(&shared.borrow());
        let end_connections = thread.end_connections;
        Self { tasks, exempt, shared, backends, after_command, end_connections, undoes_commands }
    }

    /// Sets the prefixes that no entry or command may affect. The thread ends its bans that overlap them.
    pub fn protect(&mut self, exempt: ExemptPrefixes) {
        self.exempt = Arc::new(exempt);
        self.shared.send_replace(Arc::clone(&self.exempt));
        self.tasks.wake();
    }

    /// True if slow backends enforce bans, alone or in addition to others.
    pub fn enforces(&self) -> bool {
        !self.backends.is_empty()
    }

    /// Starts the command that must run before the ban; false if there is none, or the queue is full.
    pub fn run_first(&self, context: BanContext) -> bool {
        self.after_command.is_some()
            && self.exempt.check(context.target).is_ok()
            && self.tasks.send_below(MAX_NEW_BANS, Task::Before { context }).is_ok()
    }

    /// Queues the command alone; returns a refusal if it does not run.
    pub fn run_command(&self, context: BanContext) -> Option<Refused> {
        let backends: Arc<[Backend]> = Arc::new([Backend::Command]);
        let mut refused = self.check(context.target, &backends);
        if refused.is_empty() {
            refused = self.queue(context, &backends);
        }
        refused.pop()
    }

    /// Queues one ban; returns a refusal for each backend that does not enforce it.
    fn queue_ban(&self, context: BanContext) -> Vec<Refused> {
        let mut refused = self.check(context.target, &self.backends);
        // An operator's ban has no probe, so no command ran before it.
        let backends = match (&self.after_command, &context.ban) {
            _ if !refused.is_empty() => &Arc::default(),
            (Some(after), Some(_)) => after,
            _ => &self.backends,
        };
        // An ended connection stays ended, but a ban above the ceiling is short.
        let ends_connections = self.end_connections && context.ban.is_none_or(|ban| !ban.capped);
        if !backends.is_empty() || ends_connections {
            refused.extend(self.queue(context, backends));
        }
        refused
    }

    /// A refusal for each of `backends` if it would affect exempt addresses.
    fn check(&self, target: BanTarget, backends: &[Backend]) -> Vec<Refused> {
        let Err(overlap) = self.exempt.check(target) else { return Vec::new() };
        Self::refuse(target, backends, &overlap)
    }

    fn queue(&self, context: BanContext, backends: &Arc<[Backend]>) -> Vec<Refused> {
        let put = self.tasks.send_below(MAX_NEW_BANS, Task::Block { context, backends: Arc::clone(backends) });
        let full = || format!("the queue of the backends {} is full", Backend::slow_names());
        put.map_or_else(|_| Self::refuse(context.target, backends, &full()), |()| Vec::new())
    }

    fn refuse(target: BanTarget, backends: &[Backend], reason: &impl ToString) -> Vec<Refused> {
        backends.iter().map(|backend| Refused::new(*backend, target, reason)).collect()
    }
}

impl InlineBackend for SlowQueue {
    fn block(&mut self, bans: &[BanContext], _now: Timestamp) -> Result<Vec<Refused>, BackendGone> {
        Ok(bans.iter().flat_map(|ban| self.queue_ban(*ban)).collect())
    }

    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String> {
        if !targets.is_empty() && (self.enforces() || self.undoes_commands) {
            // If the queue is full, an entry stays until its ban would have ended.
            let _ = self.tasks.send(Task::Release { targets: targets.to_vec() });
        }
        Ok(())
    }

    /// Lines of hosts.deny and commands name no link. The thread reports the bans that it ends.
    fn protect(&mut self, host: &Host) -> Vec<String> {
        Self::protect(self, ExemptPrefixes::new(host.allow.networks()));
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::slow_backends::SlowBackends;

    #[test]
    fn command_that_runs_first_is_left_out() {
        let slow = SlowBackends::start(Vec::new(), true, |_| {}).unwrap();
        let configured = [Backend::Command, Backend::Route, Backend::HostsDeny, Backend::Nft];
        let queue = |first| SlowQueue::new(&slow, &configured, first, false);
        assert_eq!(*queue(false).backends, [Backend::Command, Backend::HostsDeny], "slow backends keep their order");
        assert!(queue(false).after_command.is_none());
        assert_eq!(queue(true).after_command.as_deref(), Some(&[Backend::HostsDeny][..]));
        assert!(!SlowQueue::new(&slow, &[Backend::Nft], false, false).enforces());
        let _ = slow.stop(std::time::Duration::from_secs(60));
    }
}
