//! Sends requests to the command helper over the daemon's end of the socket. Starts no process: the helper was started
//! before the daemon dropped its privileges, and is not restarted until the daemon restarts.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, shutdown};

use super::protocol::{CommandAnswer, CommandRequest, ConfiguredCommand, MAX_ANSWER_LEN};
use crate::enforce::BanContext;
use crate::enforce::helper_socket::{decode, receive, send_message};

/// Timeout for the helper's end after hanging up.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval between checks whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The daemon's handle of the command helper. Cheap to clone.
#[derive(Clone)]
pub struct CommandHelperClient(Arc<Shared>);

struct Shared {
    socket: OwnedFd,
    process: u32,
    gone: AtomicBool,
    /// Returns how the process has ended, once it has.
    ended: Mutex<ExitStatusFn>,
}

type ExitStatusFn = Box<dyn FnMut() -> Option<String> + Send>;

impl CommandHelperClient {
    /// A handle of the process with id `process` at the other end of `socket` (`SOCK_SEQPACKET`). `ended` reaps the
    /// process and returns how it has ended; `None` while it runs.
    pub fn new(socket: OwnedFd, process: u32, ended: impl FnMut() -> Option<String> + Send + 'static) -> Self {
        Self(Arc::new(Shared { socket, process, gone: AtomicBool::new(false), ended: Mutex::new(Box::new(ended)) }))
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.0.process
    }

    /// False once it has ended.
    pub fn is_running(&self) -> bool {
        !self.0.gone.load(Ordering::Relaxed)
    }

    /// Requests a command; [`CommandHelperClient::next`] returns the answer. Never waits.
    ///
    /// # Errors
    /// The request cannot be sent.
    pub(in crate::enforce) fn ask(
        &self,
        number: u64,
        which: ConfiguredCommand,
        context: BanContext,
    ) -> Result<(), String> {
        if !self.is_running() {
            return Err("the process that runs commands has ended; restart portsentry".to_owned());
        }
        send_message(&self.0.socket, &CommandRequest { number, which, context }, SendFlags::DONTWAIT)
            .map_err(|error| format!("the process that runs commands does not accept requests: {error}"))
    }

    /// Waits for the next answer; `None` if there are no more, because the helper has ended or sent an invalid answer.
    pub(in crate::enforce) fn next(&self) -> Option<CommandAnswer> {
        let answer: Option<CommandAnswer> = receive(&self.0.socket, MAX_ANSWER_LEN, decode);
        if answer.is_none() {
            self.0.gone.store(true, Ordering::Relaxed);
            // If it still runs, this makes it end.
            self.hang_up();
        }
        answer
    }

    /// Makes the helper end its commands and then itself. Answers still arrive.
    pub(in crate::enforce) fn hang_up(&self) {
        let _: Result<(), Errno> = shutdown(&self.0.socket, Shutdown::Write);
    }

    /// Returns how it has ended, after waiting for a moment.
    pub(in crate::enforce) fn end(&self) -> Option<String> {
        let until = Instant::now() + END_TIMEOUT;
        let mut ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match ended() {
                None if Instant::now() < until => thread::sleep(POLL_INTERVAL),
                end => return end,
            }
        }
    }
}

impl fmt::Debug for CommandHelperClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandHelperClient({})", self.0.process)
    }
}
