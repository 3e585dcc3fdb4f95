//! Implements [`BanBackend`] for the slow backends: each ban becomes a task of their thread, which reports the result.

use std::sync::Arc;

use super::{Orders, SharedExempt, SlowBackends, Task};
use crate::enforce::{BanBackend, BanContext, ExemptPrefixes, Gone, Refused};
use crate::engine::ActiveBan;
use crate::types::{Backend, BanTarget, Timestamp};

/// The task queue of the slow backends, and the work that a ban needs.
pub struct SlowQueue {
    orders: Orders,
    exempt: SharedExempt,
    /// The slow backends that enforce a ban, in order.
    backends: Arc<[Backend]>,
    /// The same without the command, which ran before the ban; see [`SlowQueue::run_first`].
    after_command: Option<Arc<[Backend]>>,
    /// True if connections of blocked sources are ended.
    end_connections: bool,
    /// True if bans of an earlier run have a command for their end.
    undoes_commands: bool,
}

impl SlowQueue {
    /// The queue of `thread`, for the slow ones among `backends`. With `command_first` the command runs before the other
    /// backends, which wait for its end.
    #[must_use]
    pub fn new(thread: &SlowBackends, backends: &[Backend], command_first: bool, end_connections: bool) -> Self {
        let slow = |backend: &Backend| matches!(backend, Backend::HostsDeny | Backend::Command);
        let backends: Arc<[Backend]> = backends.iter().copied().filter(slow).collect();
        let after_command =
            command_first.then(|| backends.iter().copied().filter(|backend| *backend != Backend::Command).collect());
        let (orders, exempt) = (thread.orders(), thread.exempt.clone());
        Self { orders, exempt, backends, after_command, end_connections, undoes_commands: false }
    }

    /// Enables the expiry command for bans of an earlier run.
    #[must_use]
    pub fn undoing_commands(self, undoes_commands: bool) -> Self {
        Self { undoes_commands, ..self }
    }

    /// Sets the prefixes whose connections are not ended.
    pub fn protect(&self, exempt: ExemptPrefixes) {
        self.exempt.set(Arc::new(exempt));
    }

    /// True if slow backends enforce bans, alone or in addition to others.
    #[must_use]
    pub fn enforces(&self) -> bool {
        !self.backends.is_empty()
    }

    /// Starts the command that must run before the ban; false if there is none, or the queue is full.
    pub fn run_first(&self, case: BanContext) -> bool {
        self.after_command.is_some() && self.orders.put(Task::Before { case }).is_ok()
    }

    /// Queues the command alone; false if the queue is full.
    pub fn run_command(&self, case: BanContext) -> bool {
        self.orders.put(Task::Block { case, methods: Arc::new([Backend::Command]) }).is_ok()
    }

    /// Queues one ban; false if the queue is full.
    fn queue(&self, case: BanContext) -> bool {
        // An operator's ban has no probe, so no command ran before it.
        let methods = match (&self.after_command, &case.ban) {
            (Some(after), Some(_)) => after,
            _ => &self.backends,
        };
        // An ended connection stays ended, but a ban above the ceiling is short.
        let ends_connections = self.end_connections && case.ban.is_none_or(|ban| !ban.capped);
        if methods.is_empty() && !ends_connections {
            return true;
        }
        self.orders.put(Task::Block { case, methods: Arc::clone(methods) }).is_ok()
    }
}

impl BanBackend for SlowQueue {
    fn block(&mut self, bans: &[BanContext], _now: Timestamp) -> Result<Vec<Refused>, Gone> {
        let lost = bans.iter().filter(|ban| !self.queue(**ban)).map(|ban| ban.target);
        Ok(Refused::all(Backend::Command, lost, &"the queue of the backends hosts-deny and run is full"))
    }

    fn lift(&mut self, targets: &[BanTarget]) -> Result<(), String> {
        for target in targets.iter().filter(|_| self.enforces() || self.undoes_commands) {
            // If the queue is full, a line stays until its ban would have ended.
            let _ = self.orders.put(Task::Release { target: *target });
        }
        Ok(())
    }

    /// The thread restores its own lines, and the effects of a command are unknown.
    fn put_back(&mut self, _bans: &[ActiveBan], _now: Timestamp) -> Result<Vec<Refused>, Gone> {
        Ok(Vec::new())
    }

    fn missing(&mut self, _targets: &[BanTarget]) -> Vec<BanTarget> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::slow_backends::{Settings, SlowBackends};

    #[test]
    fn command_that_runs_first_is_left_out() {
        let slow = SlowBackends::start(Settings::default(), |_| {}).unwrap();
        let configured = [Backend::Command, Backend::Route, Backend::HostsDeny, Backend::Nft];
        let queue = |first| SlowQueue::new(&slow, &configured, first, false);
        assert_eq!(*queue(false).backends, [Backend::Command, Backend::HostsDeny], "slow backends keep their order");
        assert!(queue(false).after_command.is_none());
        assert_eq!(queue(true).after_command.as_deref(), Some(&[Backend::HostsDeny][..]));
        assert!(!SlowQueue::new(&slow, &[Backend::Nft], false, true).enforces());
        let _ = slow.stop(std::time::Duration::from_secs(60));
    }
}
