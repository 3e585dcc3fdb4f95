//! Sends lines to the syslog daemon at /dev/log in the format of syslog(3): a facility and the identity
//! `portsentry[PID]`. Reconnects to a restarted daemon; undeliverable lines go to standard error.
//!
//! The messages contain no time: the daemon adds its own, in the time zone of its files.
//!
//! References: RFC 3164, syslog(3), unix(7).

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::config::Facility;
use crate::types::printable::masked_to;

/// Socket of the syslog daemon.
pub const DEV_LOG: &str = "/dev/log";

/// Timeout for a busy daemon.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// Delay before a busy or missing daemon is retried, so that the event loop does not spend its time waiting.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Maximum message length in the default configuration of syslog daemons, minus their prefix.
const MAX_MESSAGE_LEN: usize = 7_900;

/// A connection to a syslog daemon.
pub struct Syslog {
    path: PathBuf,
    facility: Facility,
    state: Mutex<Connection>,
}

struct Connection {
    /// `None` while there is no daemon.
    socket: Option<UnixDatagram>,
    /// Time of the next attempt.
    again: Instant,
    /// Lines lost since the last delivered one.
    lost: u64,
}

impl Syslog {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// The system's error if there is no daemon.
    pub fn connect(path: &Path, facility: Facility) -> io::Result<Self> {
        let socket = Some(open(path)?);
        Ok(Self {
            path: path.to_owned(),
            facility,
            state: Mutex::new(Connection { socket, again: Instant::now(), lost: 0 }),
        })
    }

    /// Sends a line, or writes it to `otherwise` if no daemon accepts it.
    pub fn send(&self, severity: Level, line: &str, otherwise: &mut dyn io::Write) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lost > 0 && Instant::now() >= state.again {
            let missed = format!(
                "adminalert: lines written to standard error, because the syslog daemon did not accept them: {}",
                state.lost
            );
            if self.hand_over(&mut state, &self.message(Level::INFO, &missed)) {
                state.lost = 0;
            }
        }
        if (state.lost > 0 && Instant::now() < state.again)
            || !self.hand_over(&mut state, &self.message(severity, line))
        {
            state.lost += 1;
            // If this fails as well, the line is lost.
            let _ = otherwise.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// True if the daemon, or its successor, has received the message.
    fn hand_over(&self, state: &mut Connection, message: &str) -> bool {
        for _ in 0..2 {
            if state.socket.is_none() {
                state.socket = open(&self.path).ok();
            }
            let Some(socket) = &state.socket else { break };
            match socket.send(message.as_bytes()) {
                Ok(_) => return true,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                // The other end is closed; there may be a new one.
                Err(_) => state.socket = None,
            }
        }
        state.again = Instant::now() + RETRY_DELAY;
        false
    }

    /// The datagram of a line. Line ends and control characters become blanks.
    fn message(&self, severity: Level, line: &str) -> String {
        let priority = (self.facility as u8) << 3 | code(severity);
        let head = format!("<{priority}>portsentry[{}]: ", std::process::id());
        let line = masked_to(line, ' ', MAX_MESSAGE_LEN.saturating_sub(head.len()));
        head + &line
    }
}

/// The severity of syslog(3). Scans, bans and the end of the program are warnings. Classic PortSentry logged each line
/// as a notice.
fn code(severity: Level) -> u8 {
    match severity {
        Level::ERROR => 3,
        Level::WARN => 4,
        _ => 5,
    }
}

fn open(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.connect(path)?;
    Ok(socket)
}

impl<S: Subscriber> Layer<S> for Syslog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = MessageText(String::new());
        event.record(&mut line);
        self.send(*event.metadata().level(), &line.0, &mut io::stderr());
    }
}

/// The message of an event, without its fields.
struct MessageText(String);

impl Visit for MessageText {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a string cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(path: &Path) -> UnixDatagram {
        let _ = std::fs::remove_file(path);
        let daemon = UnixDatagram::bind(path).unwrap();
        daemon.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        daemon
    }

    /// Ends a daemon. A process that another test has just started may hold the socket for a moment.
    fn end(daemon: &UnixDatagram) {
        daemon.shutdown(std::net::Shutdown::Both).unwrap();
    }

    fn next(daemon: &UnixDatagram) -> String {
        let mut bytes = [0; 16_384];
        let length = daemon.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn syslog_line_is_one_datagram() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let daemon = daemon(&path);
        let syslog = Syslog::connect(&path, Facility::Daemon).unwrap();
        let mut otherwise = Vec::new();
        for (severity, code) in [(Level::ERROR, 27), (Level::WARN, 28), (Level::INFO, 29)] {
            syslog.send(severity, "attackalert: x", &mut otherwise);
            assert_eq!(next(&daemon), format!("<{code}>portsentry[{}]: attackalert: x", std::process::id()));
        }
        let local = Syslog::connect(&path, Facility::Local7).unwrap();
        local.send(Level::WARN, "x", &mut otherwise);
        assert!(next(&daemon).starts_with("<188>"), "local7 is facility 23");
        syslog.send(Level::INFO, "a\nb\u{1b}[2J\u{9b}c", &mut otherwise);
        assert!(next(&daemon).ends_with(": a b [2J c"));
        syslog.send(Level::INFO, &"é".repeat(10_000), &mut otherwise);
        assert!(next(&daemon).len() <= MAX_MESSAGE_LEN);
        assert!(otherwise.is_empty());
    }

    #[test]
    fn restarted_syslog_loses_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let first = daemon(&path);
        let syslog = Syslog::connect(&path, Facility::Daemon).unwrap();
        let mut otherwise = Vec::new();
        syslog.send(Level::INFO, "one", &mut otherwise);
        assert!(next(&first).ends_with(": one"));
        end(&first);
        let second = daemon(&path);
        syslog.send(Level::INFO, "two", &mut otherwise);
        assert!(next(&second).ends_with(": two"), "a restart between two lines loses none");
        end(&second);
        syslog.send(Level::INFO, "three", &mut otherwise);
        syslog.send(Level::INFO, "four", &mut otherwise);
        assert_eq!(otherwise, b"three\nfour\n");
        let third = daemon(&path);
        std::thread::sleep(RETRY_DELAY);
        syslog.send(Level::INFO, "five", &mut otherwise);
        assert!(
            next(&third).contains("lines written to standard error, because the syslog daemon did not accept them: 2")
        );
        assert!(next(&third).ends_with(": five"));
        assert_eq!(otherwise, b"three\nfour\n");
    }

    #[test]
    fn hanging_daemon_costs_bounded_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let _hangs = daemon(&path);
        let syslog = Syslog::connect(&path, Facility::Daemon).unwrap();
        let mut otherwise = Vec::new();
        while otherwise.is_empty() {
            syslog.send(Level::INFO, "fills its queue", &mut otherwise);
        }
        otherwise.clear();
        let begin = Instant::now();
        (0..10_000).for_each(|_| syslog.send(Level::INFO, "x", &mut otherwise));
        let took = begin.elapsed();
        let waits = took.as_secs() + 1;
        assert!(took < SEND_TIMEOUT * 2 * u32::try_from(waits).unwrap() + RETRY_DELAY, "{took:?}");
        assert_eq!(otherwise.len(), 20_000);
    }
}
