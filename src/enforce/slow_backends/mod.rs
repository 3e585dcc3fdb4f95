//! Bans to the back ends that may take their time: lines of hosts.deny, commands, the ending of connections. One plain
//! thread does them, fed by a bounded queue, so that nobody who has seen a packet waits for a disk or a process.
//!
//! It keeps the time of what it holds by CLOCK_BOOTTIME: a line goes when its ban is over, whether or not anybody says so.
//! What fails is tried again, later and later, until the ban is over, and nothing else waits for it. At the end lines stay,
//! because bans outlive the program; the next one says which are still in force ([`Task::Adopt`]), and the others go.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use super::BanContext;
use super::command::{RunSettings, Spawner};
use super::hosts_deny::HostsDeny;
use crate::lazy_queue::LazyQueue;
use crate::panic_guard;
use crate::types::{Backend, BanTarget, Expiry};

mod backoff;
mod ban_queue;
mod command_queue;
mod connections;
mod events;
mod hosts_deny_queue;
mod worker;

pub use events::{BackendEvent, CommandPhase, SlowTask};

use worker::Work;

/// Tasks that wait for the thread at one time: what arrives while a file is brought to the disk.
const MAX_PENDING: usize = 4_096;

/// Bans that are held, so many as the kernel's sets hold by default.
const MAX_BANS: usize = 131_072;

/// Which back ends there are.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// For [`Backend::HostsDeny`].
    pub hosts_deny: Option<HostsDeny>,
    /// For [`Backend::Command`] and [`Task::Before`]: what the settings say of commands, and who runs them.
    pub run: Option<(RunSettings, Spawner)>,
    /// The connections of every blocked source are ended, in the network namespace of whoever starts the thread.
    pub end_connections: bool,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Task {
    /// A ban that is about to begin: runs the command, then tells [`BackendEvent::Ready`], at the latest when its time limit is
    /// over, so that many sources at once cannot keep a block waiting. The command is not run again when the block follows:
    /// leave [`Backend::Command`] out of its methods.
    Before {
        /// The ban.
        case: BanContext,
    },
    /// A ban that has begun.
    Block {
        /// The ban.
        case: BanContext,
        /// What to do, one after another; the next begins when the one before has ended, well or not.
        methods: Arc<[Backend]>,
    },
    /// A ban that is over or lifted.
    Release {
        /// Whose.
        subject: BanTarget,
    },
    /// All bans that were in force before the program started. Lines of others are removed; lines that are missing were
    /// taken out by somebody and stay away.
    Adopt {
        /// Them.
        bans: Vec<Adopted>,
    },
}

/// A ban from before the program started.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// The ban.
    pub case: BanContext,
    /// What was done when it began; for [`Backend::Command`] the other command is run when it is over.
    pub methods: Arc<[Backend]>,
    /// What is left of it.
    pub left: Expiry,
}

/// The thread. Only [`SlowBackends::stop`] ends it before the process does.
pub struct SlowBackends {
    orders: Orders,
    thread: JoinHandle<()>,
    done: Receiver<Left>,
}

/// How the thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stopped {
    /// All that was handed over is done, or was told to have failed.
    Whole,
    /// So much is left.
    Left(Left),
    /// A disk or a command did not let it end in time.
    Stuck,
}

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
        let shared = Arc::new(Shared::default());
        let (ended, done) = sync_channel(1);
        let mut work = Work::new(settings, Box::new(tell), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("hands".to_owned())
            .spawn(move || panic_guard::restart_on_panic(|| work.run(&ended)))?;
        let orders = Orders { shared, thread: thread.thread().clone() };
        Ok(Self { orders, thread, done })
    }

    /// A way to hand tasks over.
    #[must_use]
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Does what was handed over before this call and is quick, and ends the thread; waits for `within` at most. Commands
    /// have half of it, then their groups are ended.
    pub fn stop(self, within: Duration) -> Stopped {
        let now = Instant::now();
        let later = |span| now.checked_add(span).unwrap_or(now);
        // Once is enough.
        let _ = self.orders.shared.stop.set((later(within / 2), later(within * 7 / 8)));
        self.orders.thread.unpark();
        match self.done.recv_timeout(within) {
            Ok(left) => {
                // It has nothing more to do.
                let _ = self.thread.join();
                if left == Left::default() { Stopped::Whole } else { Stopped::Left(left) }
            }
            Err(_) => Stopped::Stuck,
        }
    }
}

/// Takes tasks for the thread. Cheap to clone.
#[derive(Clone)]
pub struct Orders {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Orders {
    /// Hands `task` over and never waits.
    ///
    /// # Errors
    /// Gives it back, and counts it, where there is no room.
    #[expect(clippy::result_large_err, reason = "whoever is on a packet's way must not allocate a box for it")]
    pub fn put(&self, task: Task) -> Result<(), Task> {
        let put = self.shared.queue.push(task);
        match put {
            Ok(()) => self.thread.unpark(),
            Err(_) => _ = self.shared.refused.fetch_add(1, Ordering::Relaxed),
        }
        put
    }
}

/// What the thread shares with those who have something for it.
struct Shared {
    queue: LazyQueue<Task>,
    /// Tasks without room.
    refused: AtomicU64,
    /// When to end commands, and when to end itself, once it is to end.
    stop: OnceLock<(Instant, Instant)>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { queue: LazyQueue::new(MAX_PENDING), refused: AtomicU64::new(0), stop: OnceLock::new() }
    }
}
