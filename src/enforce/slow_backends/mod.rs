//! The slow backends: lines of hosts.deny, commands, and the ending of connections. One worker thread runs them, fed by a
//! bounded queue, so that neither the sensor nor the event loop waits for a disk or a process.
//!
//! The thread keeps the expiry of its bans by CLOCK_BOOTTIME and removes a line when its ban is over, without being told.
//! What fails is retried with backoff until the ban is over. At the end of the program lines stay, because bans outlive it;
//! the next start says which bans are still in force ([`Task::Adopt`]), and other lines are removed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::BanContext;
use super::command::{RunSettings, Spawner};
use super::file_helper::FileHelper;
use super::hosts_deny::HostsDeny;
use crate::types::{Backend, Backoff, BanTarget, Expiry};
pub use crate::worker::Stopped;
use crate::worker::{Handle, Worker};

mod backend;
mod ban_queue;
mod command_queue;
mod connections;
mod deny_file;
mod events;
mod hosts_deny_queue;
mod worker;

pub use backend::SlowQueue;
pub use events::{BackendEvent, CommandPhase, SlowTask};

use worker::Work;

/// Tasks that wait for the thread at one time: what arrives while a file is brought to the disk.
const MAX_PENDING: usize = 4_096;

/// Bans that are held, so many as the kernel's sets hold by default.
const MAX_BANS: usize = 131_072;

/// Between attempts at what has failed: 1 s, 2 s, 4 s and so on, at most 5 min.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

/// The configured backends.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// For [`Backend::HostsDeny`].
    pub hosts_deny: Option<HostsDeny>,
    /// Writes hosts.deny where this process may not.
    pub file_helper: Option<FileHelper>,
    /// For [`Backend::Command`] and [`Task::Before`]: the configuration of commands, and the process that runs them.
    pub run: Option<(RunSettings, Spawner)>,
    /// The connections of every blocked source are ended, in the network namespace of the thread's starter.
    pub end_connections: bool,
}

/// A command to the thread.
#[derive(Clone, Debug)]
pub enum Task {
    /// A ban is about to begin: runs the command, then tells [`BackendEvent::Ready`], at the latest when the command's time
    /// limit is over, so that many sources at once cannot keep a block waiting. The command is not run again when the block
    /// follows: leave [`Backend::Command`] out of its methods.
    Before { case: BanContext },
    /// A ban has begun.
    Block {
        case: BanContext,
        /// The backends, one after another: the next one begins when the one before has ended, failed or not.
        methods: Arc<[Backend]>,
    },
    /// A ban from before the program started that has no line yet. It counts for nothing where the target has been banned
    /// meanwhile: that ban knows better.
    WriteLine { case: BanContext },
    /// A ban is over or lifted.
    Release {
        /// Its target.
        target: BanTarget,
    },
    /// All bans that were in force before the program started. Lines of other targets are removed. Missing lines were
    /// removed on purpose and stay away.
    Adopt {
        /// The bans.
        bans: Vec<Adopted>,
    },
}

/// A ban from before the program started.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub case: BanContext,
    /// The backends that enforced it; for [`Backend::Command`] the expiry command is run at its end.
    pub methods: Arc<[Backend]>,
    /// The time that is left.
    pub left: Expiry,
}

/// The thread. Only [`SlowBackends::stop`] ends it before the process does.
pub struct SlowBackends(Worker<Task, Left>);

/// Sends tasks to the thread. Cheap to clone.
pub type Orders = Handle<Task>;

/// What is not done at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Lines that are neither written nor removed.
    pub lines: usize,
    /// Commands that were not run, or not to their end.
    pub commands: usize,
}

impl SlowBackends {
    /// Starts the thread. `tell` is called on it with what was done, and must not wait for long.
    ///
    /// # Errors
    /// Where the system has no thread to give.
    pub fn start(settings: Settings, tell: impl FnMut(BackendEvent) + Send + 'static) -> io::Result<Self> {
        let worker = Worker::start("hands", MAX_PENDING, |inbox| {
            let mut work = Work::new(settings, Box::new(tell), inbox);
            move || work.run()
        });
        Ok(Self(worker?))
    }

    /// Sends tasks to the thread.
    #[must_use]
    pub fn orders(&self) -> Orders {
        self.0.handle().clone()
    }

    /// Does the quick ones of the tasks that were sent before this call, and ends the thread; waits for `within` at most. Commands
    /// have half of it, then their groups are ended.
    pub fn stop(self, within: Duration) -> Stopped<Left> {
        self.0.stop(within).into()
    }
}
