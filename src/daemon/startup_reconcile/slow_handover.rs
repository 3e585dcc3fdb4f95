//! Hands the bans from before the start over to the slow backends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::StartupReconcile;
use crate::daemon::ban_recorder::{PastBans, Remembered};
use crate::enforce::BanContext;
use crate::enforce::slow_backends::{Adopted, Task};
use crate::ledger::BanSummary;
use crate::types::{Backend, Backends, BanTarget, Expiry};

impl StartupReconcile {
    /// Informs the slow backends about the bans that are still in force.
    pub(super) fn hand_over(&self) {
        let PastBans { remembered, undo_due, .. } = &self.bans;
        if !undo_due.is_empty() {
            self.send(Task::Undo { bans: undo_due.iter().map(context).collect() });
        }
        let runs_commands = self.undoes_commands || self.backends.contains(&Backend::Command);
        let is_slow = |backend: &Backend| backend.is_slow() && (*backend != Backend::Command || runs_commands);
        if !self.backends.iter().any(is_slow) && !self.sweeps_entries && !self.undoes_commands {
            return;
        }
        let adopted = |Remembered { ban, left }: &Remembered| {
            // Entries of bans that are not held are removed.
            let methods: Arc<[Backend]> = continuing(&self.backends, ban).iter().filter(is_slow).collect();
            let methods = Some(methods).filter(|methods| !methods.is_empty())?;
            Some(Adopted { case: context(ban), methods, has_run: has_run(ban), left: *left })
        };
        self.send(Task::Adopt { bans: remembered.iter().filter_map(adopted).collect() });
    }

    /// Adds the entries of a ban, such as its line in hosts.deny, that a crash has prevented.
    pub(super) fn add_entries(&self, target: BanTarget, left: Expiry) {
        let keeps_entries = |backend: &Backend| backend.is_slow() && *backend != Backend::Command;
        let methods: Arc<[Backend]> = self.backends.iter().copied().filter(keeps_entries).collect();
        if !methods.is_empty() {
            self.send(Task::BlockUnknown { case: BanContext::by_hand(target, left, SystemTime::now()), methods });
        }
    }

    pub(super) fn release(&self, targets: Vec<BanTarget>) {
        if !targets.is_empty() {
            self.send(Task::Release { targets });
        }
    }

    /// Sends `task` to the slow backends, if there are any. Blocks only this thread if the queue is full.
    fn send(&self, mut task: Task) {
        let Some(tasks) = &self.tasks else { return };
        while let Err(back) = tasks.send(task) {
            task = back;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Those of `backends` that enforce a ban of an earlier run from now on. The command runs for earlier bans only if
/// nothing else blocks their sources; if it has run, it counts until it is undone.
pub(super) fn continuing(backends: &[Backend], ban: &BanSummary) -> Backends {
    let runs = has_run(ban) || *backends == [Backend::Command];
    let others = backends.iter().copied().filter(|backend| *backend != Backend::Command);
    others.chain(runs.then_some(Backend::Command)).collect()
}

/// True if the command has run for `ban`, and has not been undone.
fn has_run(ban: &BanSummary) -> bool {
    ban.methods.contains(Backend::Command)
}

/// The data of a ban of an earlier run for the slow backends.
fn context(ban: &BanSummary) -> BanContext {
    let length = ban.until.and_then(|until| until.duration_since(ban.since).ok());
    let mut context = BanContext::by_hand(ban.target, length.into(), ban.since);
    (context.source, context.class) = (ban.source, ban.class);
    if let Some((protocol, port)) = ban.port {
        (context.protocol, context.port) = (protocol, port);
    }
    context
}
