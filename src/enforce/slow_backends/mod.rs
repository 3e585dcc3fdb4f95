//! Runs the slow backends on one thread: the file with an entry per ban (`EntryFile`), commands, and the ending of
//! connections. The thread has a bounded queue, so that neither the sensor nor the event loop waits for a disk or a
//! process.
//!
//! The thread tracks the expiry of its bans by CLOCK_MONOTONIC and removes an entry when its ban ends. Failed work is
//! retried with backoff until the ban ends. Entries stay when the program ends, because bans outlive it; the next start
//! passes the bans that are still in force ([`Task::Adopt`]), and other entries are removed.

use std::io;
use std::time::Duration;

pub use crate::worker::Stopped;
use crate::worker::{Handle, Worker};

mod backend;
mod ban_queue;
mod command_queue;
mod connections;
mod entry_queue;
mod events;
mod slow_backend;
mod task;
mod worker;

pub use backend::SlowQueue;
pub use events::{BackendEvent, CommandPhase, SlowTask};
pub use task::{Adopted, Left, SlowBackendsConfig, Task};

use task::{MAX_TASKS, SharedExempt};
use worker::BackendWorker;

/// The thread. Only [`SlowBackends::stop`] ends it before the process does.
pub struct SlowBackends {
    worker: Worker<Task, Left>,
    exempt: SharedExempt,
}

/// Sends tasks to the thread. Cheap to clone.
pub type TaskSender = Handle<Task>;

impl SlowBackends {
    /// Starts the thread. `report` is called on it with each event, and must not block for long.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(settings: SlowBackendsConfig, report: impl FnMut(BackendEvent) + Send + 'static) -> io::Result<Self> {
        let exempt = SharedExempt::default();
        let shared = exempt.clone();
        let worker = Worker::start("slow-backends", MAX_TASKS, |inbox| {
            let mut work = BackendWorker::new(settings, Box::new(report), inbox, shared);
            move || work.run()
        });
        Ok(Self { worker: worker?, exempt })
    }

    /// A sender of tasks to the thread.
    pub fn tasks(&self) -> TaskSender {
        self.worker.handle().clone()
    }

    /// Completes the short tasks that were sent before this call, and ends the thread; waits for at most `within`.
    /// Commands get half of that time, then their process groups are ended.
    pub fn stop(self, within: Duration) -> Stopped<Left> {
        self.worker.stop(within).into()
    }
}
