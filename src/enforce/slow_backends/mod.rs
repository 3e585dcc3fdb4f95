//! Runs the slow backends on one thread: hosts.deny, commands, and the ending of connections. The thread has a bounded queue, so that neither the sensor nor the event loop waits for a disk or a
//! process.
//!
//! The thread tracks the expiry of its bans by CLOCK_MONOTONIC and removes an entry when its ban ends. Failed work is
//! retried with backoff until the ban ends. Entries stay when the program ends, because bans outlive it; the next start
//! passes the bans that are still in force ([`Task::Adopt`]), and other entries are removed.

use std::io;
use std::time::Duration;

pub use crate::worker::Stopped;
use crate::worker::{Handle, Worker};

mod ban_queue;
mod connections;
mod events;
mod slow_backend;
mod slow_queue;
mod task;
mod worker;

pub use ban_queue::{BanQueue, QueuedBan};
pub use events::{BackendEvent, CommandPhase, SlowTask};
pub use slow_backend::{SlowBackend, SlowBackendHandles, Unfinished};
pub use slow_queue::SlowQueue;
pub use task::{Adopted, Task};
pub(super) use task::{BACKOFF, MAX_BANS};

use task::{MAX_TASKS, SharedExempt};
use worker::BackendWorker;

/// The thread. Only [`SlowBackends::stop`] ends it before the process does.
pub struct SlowBackends {
    worker: Worker<Task, Unfinished>,
    exempt: SharedExempt,
    end_connections: bool,
}

/// Sends tasks to the thread. Cheap to clone.
pub type TaskSender = Handle<Task>;

impl SlowBackends {
    /// Starts the thread. If `end_connections`, it ends the connections of every blocked source, in the network namespace
    /// of the caller. `report` is called on it with each event, and must not block for long.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(
        backends: SlowBackendHandles,
        end_connections: bool,
        report: impl FnMut(BackendEvent) + Send + 'static,
    ) -> io::Result<Self> {
        let exempt = SharedExempt::default();
        let shared = exempt.clone();
        let worker = Worker::start("slow-backends", MAX_TASKS, |inbox| {
            let mut work = BackendWorker::new(backends, end_connections, Box::new(report), inbox, shared);
            move || work.run()
        });
        Ok(Self { worker: worker?, exempt, end_connections })
    }

    /// A sender of tasks to the thread.
    pub fn tasks(&self) -> TaskSender {
        self.worker.handle().clone()
    }

    /// Completes the short tasks that were sent before this call, and ends the thread; waits for at most `within`.
    /// Commands get half of that time, then their process groups are ended.
    pub fn stop(self, within: Duration) -> Stopped<Unfinished> {
        self.worker.stop(within).into()
    }
}
