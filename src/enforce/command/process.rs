//! Runs one process from start to end on the calling thread, with its output, time limit and process group.

use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, Read, Seek, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::enforce::helper_socket::serialize_plain;
use crate::types::printable::escaped;

/// Time between SIGTERM and SIGKILL for a process group.
const KILL_DELAY: Duration = Duration::from_secs(2);

/// The same if the daemon is about to end.
const SHORT_GRACE: Duration = Duration::from_millis(100);

/// Maximum number of output bytes read. A command that writes more finds the pipe closed, because reading on would only
/// keep a core busy.
const MAX_READ_OUTPUT: usize = 1 << 20;

/// Number of bytes of a command's output that are kept.
const MAX_KEPT_OUTPUT: usize = 4 << 10;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitOutcome {
    /// Exit status; 0 is success.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
    /// Its process group was ended at the time limit.
    TimedOut,
    /// Its process group was ended because the daemon ends.
    Stopped,
    NotStarted(#[serde(serialize_with = "serialize_plain")] String),
    /// The command helper ended before it reported a result.
    Unknown,
}

impl ExitOutcome {
    /// True if the command reported success.
    pub fn is_success(&self) -> bool {
        *self == Self::Exited(0)
    }
}

impl fmt::Display for ExitOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(0) => f.write_str("succeeded"),
            Self::Exited(status) => write!(f, "failed with exit status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
            Self::TimedOut => f.write_str("was killed at its time limit"),
            Self::Stopped => f.write_str("was killed because portsentry shuts down"),
            Self::NotStarted(error) => write!(f, "could not be started: {error}"),
            Self::Unknown => f.write_str("has an unknown result, because the process that runs commands has ended"),
        }
    }
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::enforce) struct Ran {
    pub(in crate::enforce) outcome: ExitOutcome,
    /// Its standard output and standard error, on one line.
    #[serde(serialize_with = "serialize_plain")]
    pub(in crate::enforce) output: String,
    pub(in crate::enforce) took: Duration,
}

impl Ran {
    /// The result of a command that did not run, or whose result is unknown.
    pub(in crate::enforce) fn without_output(outcome: ExitOutcome) -> Self {
        Self { outcome, output: String::new(), took: Duration::ZERO }
    }
}

/// Runs `command` with `input` on standard input for at most `limit`, or until `quit` is closed. Returns when the
/// process has ended, or slightly after the limit, when its whole group has been killed; background processes are not
/// waited for.
pub(super) fn run(mut command: Command, input: &[u8], limit: Duration, quit: &PipeReader) -> Ran {
    let started = Instant::now();
    let ended = start(&mut command, input).and_then(|(child, reader)| {
        // Copies of the pipe's write end would keep the pipe open.
        drop(command);
        RunningCommand { child, reader: Some(reader), output: Vec::new(), read: 0 }.follow(started, limit, quit)
    });
    let (outcome, output) = match ended {
        Ok((outcome, output)) => (outcome, printable(&output)),
        Err(error) => (ExitOutcome::NotStarted(error.to_string()), String::new()),
    };
    Ran { outcome, output, took: started.elapsed() }
}

/// Both outputs use one pipe, so that they stay in the order in which they were written.
fn start(command: &mut Command, input: &[u8]) -> io::Result<(Child, PipeReader)> {
    let (reader, writer) = pipe()?;
    command.stdin(stdin(input)?).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    Ok((command.spawn()?, reader))
}

/// Puts `input` into a memory file, so that a command that does not read it blocks nothing.
fn stdin(input: &[u8]) -> io::Result<Stdio> {
    if input.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file.into())
}

/// A process and its output so far.
struct RunningCommand {
    child: Child,
    /// `None` once its output has ended or is no longer needed.
    reader: Option<PipeReader>,
    output: Vec<u8>,
    read: usize,
}

impl RunningCommand {
    fn follow(mut self, started: Instant, limit: Duration, quit: &PipeReader) -> io::Result<(ExitOutcome, Vec<u8>)> {
        // Until the process is reaped, even as a zombie, no other group can get its id.
        let group = Pid::from_child(&self.child);
        let watched = self.watch(group, started + limit, quit);
        if !matches!(watched, Ok(None)) {
            // Also if the leader has ended: other processes of the group may still run.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = self.child.wait()?;
        self.read_rest();
        Ok((watched?.unwrap_or_else(|| outcome(status)), self.output))
    }

    /// Waits until the process has ended. If a signal was sent to end its group, returns the reason; some of its
    /// processes may still run then.
    fn watch(&mut self, group: Pid, mut deadline: Instant, quit: &PipeReader) -> io::Result<Option<ExitOutcome>> {
        let process = pidfd_open(group, PidfdFlags::empty())?;
        let mut ending = None;
        let mut ended = false;
        while !ended || (ending.is_some() && self.reader.is_some()) {
            let wanted = [(!ended).then(|| process.as_fd()), ending.is_none().then(|| quit.as_fd())];
            let [ends, quits, writes] = self.wait(wanted, deadline)?;
            if writes {
                self.read_chunk();
            }
            ended |= ends;
            let now = Instant::now();
            match ending {
                None if !ended && (quits || now >= deadline) => {
                    let _ = kill_process_group(group, Signal::TERM);
                    deadline = now + if quits { SHORT_GRACE } else { KILL_DELAY };
                    ending = Some(if quits { ExitOutcome::Stopped } else { ExitOutcome::TimedOut });
                }
                Some(_) if now >= deadline => break,
                _ => {}
            }
        }
        Ok(ending)
    }

    /// Waits for an event of the process, of `quit` or of the output, at most until `deadline`. Returns which occurred.
    fn wait(&self, [process, quit]: [Option<BorrowedFd<'_>>; 2], deadline: Instant) -> io::Result<[bool; 3]> {
        let places = [process, quit, self.reader.as_ref().map(AsFd::as_fd)];
        let mut fds: Vec<PollFd<'_>> =
            places.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(places.map(|place| place.is_some() && events.next().unwrap_or_default()))
    }

    /// Reads once from a pipe that has data or has ended.
    fn read_chunk(&mut self) {
        let mut piece = [0; 16 << 10];
        let Some(reader) = &mut self.reader else { return };
        match reader.read(&mut piece) {
            Ok(length) if length > 0 => {
                let room = MAX_KEPT_OUTPUT.saturating_sub(self.output.len()).min(length);
                self.output.extend_from_slice(piece.get(..room).unwrap_or_default());
                self.read += length;
                if self.read > MAX_READ_OUTPUT {
                    self.reader = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => self.reader = None,
        }
    }

    /// Reads the rest of the pipe without waiting, because a background process may keep the write end open.
    fn read_rest(&mut self) {
        while let Some(reader) = &self.reader
            && self.output.len() < MAX_KEPT_OUTPUT
        {
            let mut fds = [PollFd::new(reader, PollFlags::IN)];
            if !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0) {
                return;
            }
            self.read_chunk();
        }
    }
}

fn outcome(status: ExitStatus) -> ExitOutcome {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitOutcome::Exited(code),
        (None, signal) => ExitOutcome::Killed(signal.unwrap_or_default()),
    }
}

/// Converts the output of a command to one line for the log: line ends and invisible characters are escaped as in Rust
/// (`\n`, `\u{1b}`), invalid UTF-8 becomes U+FFFD. At most [`MAX_KEPT_OUTPUT`] characters. A command may print bytes
/// that an attacker chose, which must neither end the line nor control a terminal.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..MAX_KEPT_OUTPUT).unwrap_or(bytes));
    let line: String = text.trim_end().chars().take(MAX_KEPT_OUTPUT).map(escaped).collect();
    line.chars().take(MAX_KEPT_OUTPUT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_becomes_one_escaped_line() {
        assert_eq!(printable(b"done: 192.0.2.7 \"ok\"\n"), "done: 192.0.2.7 \"ok\"");
        assert_eq!(printable(b"one\ntwo\r\n\n"), "one\\ntwo");
        assert_eq!(printable(b"\x1b[2J\x07\x9b\x00"), "\\u{1b}[2J\\u{7}\u{fffd}\\0");
        assert_eq!(printable("\u{9b}1m \u{202e}evil\u{2028}".as_bytes()), "\\u{9b}1m \\u{202e}evil");
        assert_eq!(printable("Zürich ✓".as_bytes()), "Zürich ✓");
        for byte in 0..=u8::MAX {
            let text = printable(&[b'a', byte, b'b']);
            assert!(!text.chars().any(char::is_control), "{byte:#x}: {text:?}");
        }
    }

    #[test]
    fn long_output_is_cut() {
        assert_eq!(printable(&[b'x'; 5_000]).len(), MAX_KEPT_OUTPUT);
        assert_eq!(printable(&[0x1b; 5_000]).len(), MAX_KEPT_OUTPUT);
        assert_eq!(printable("é".repeat(5_000).as_bytes()).chars().count(), MAX_KEPT_OUTPUT / 2);
    }
}
