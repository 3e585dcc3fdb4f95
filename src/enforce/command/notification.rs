//! Sends digests of bans to `notify.command`; contains both sides. The daemon's side sends one digest at a time and
//! waits for the end of the command. The command helper's side runs the command of its own configuration with the
//! digest on standard input. A request has no field for a program or an argument; a digest is one JSON object on one
//! line.
//!
//! Uses a separate socket, so that digests and commands of bans do not delay each other.

use std::io::PipeReader;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::de::IgnoredAny;

use super::process::{ExitOutcome, Ran, run};
use super::protocol::{CommandAnswer, MAX_ANSWER_LEN, answer};
use super::{line, start_of};
use crate::enforce::helper_socket::{await_message, decode, receive};
use crate::types::printable::is_hidden;

/// Maximum length of a digest in bytes. A datagram of this length fits into the default send buffer of Linux.
pub const MAX_DIGEST_LEN: usize = 128 << 10;

/// Time limit of the command.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Timeout for the answer: the command's time limit plus the time to end its process group.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// First byte of each request; differs from those of the commands of bans.
const REREAD: u8 = 3;
const DIGEST: u8 = 4;

/// Length of the header before a digest.
const HEAD: usize = 9;

#[derive(Clone, Debug, PartialEq, Eq)]
enum NotificationRequest {
    /// Read the command from the configuration again.
    Reread,
    /// Run the command for this digest.
    Digest(String),
}

impl NotificationRequest {
    fn to_bytes(&self, number: u64) -> Vec<u8> {
        let (kind, text) = match self {
            Self::Reread => (REREAD, ""),
            Self::Digest(text) => (DIGEST, text.as_str()),
        };
        [&[kind][..], &number.to_be_bytes(), text.as_bytes()].concat()
    }

    fn read(bytes: &[u8]) -> Option<(u64, Self)> {
        let (kind, rest) = bytes.split_first()?;
        let (number, text) = rest.split_first_chunk()?;
        let text = std::str::from_utf8(text).ok()?;
        let object = text.starts_with('{') && !text.chars().any(is_hidden);
        let request = match *kind {
            REREAD if text.is_empty() => Self::Reread,
            DIGEST if object && serde_json::from_str::<IgnoredAny>(text).is_ok() => Self::Digest(text.to_owned()),
            _ => return None,
        };
        Some((u64::from_be_bytes(*number), request))
    }
}

/// Result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    Succeeded,
    /// The command and its failure, as the end of a sentence.
    Failed(String),
    /// The command helper has ended, so that no request can succeed.
    HelperGone,
}

/// The daemon's side.
#[derive(Debug)]
pub struct Notifications {
    socket: OwnedFd,
    number: u64,
}

impl Notifications {
    /// Connects to the command helper at the other end of `socket` (`SOCK_SEQPACKET`).
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, number: 0 }
    }

    /// Makes the helper read the command from the configuration again. Waits for at most 35 s.
    pub fn reread(&mut self) -> Delivery {
        self.ask(&NotificationRequest::Reread)
    }

    /// Runs the command for `digest`, one JSON object on one line of at most [`MAX_DIGEST_LEN`] bytes. Waits for its
    /// end, for at most 35 s.
    pub fn send(&mut self, digest: String) -> Delivery {
        self.ask(&NotificationRequest::Digest(digest))
    }

    fn ask(&mut self, request: &NotificationRequest) -> Delivery {
        self.number += 1;
        let until = Instant::now() + ANSWER_TIMEOUT;
        match send(&self.socket, &request.to_bytes(self.number), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => {}
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Delivery::HelperGone,
            Err(error) => {
                return Delivery::Failed(format!("the process that runs commands does not accept requests: {error}"));
            }
        }
        loop {
            match await_message(&self.socket, until) {
                Ok(true) => {}
                Ok(false) => return Delivery::Failed("the process that runs commands does not answer".to_owned()),
                Err(_) => return Delivery::HelperGone,
            }
            match receive(&self.socket, MAX_ANSWER_LEN, decode::<CommandAnswer>) {
                // The answer to an earlier request that was abandoned.
                Some(answer) if answer.number != self.number => {}
                Some(CommandAnswer { ran: Ran { outcome: ExitOutcome::Exited(0), .. }, .. }) => {
                    return Delivery::Succeeded;
                }
                Some(CommandAnswer { command, ran: Ran { outcome, output, .. }, .. }) => {
                    let wrote = if output.is_empty() { String::new() } else { format!("; output: {output}") };
                    return Delivery::Failed(format!("{command} {outcome}{wrote}"));
                }
                None => return Delivery::HelperGone,
            }
        }
    }
}

/// Runs `command` for each digest that the daemon at the other end of `socket` sends, one at a time, until the daemon
/// hangs up or sends an invalid request. `reread` reads the command from the configuration again. When `quit` is
/// closed, a running command is ended, and so is one that exceeds `limit`.
pub fn serve_notifications(
    socket: impl AsFd,
    mut command: Vec<String>,
    limit: Duration,
    mut reread: impl FnMut() -> Result<Vec<String>, String>,
    quit: &PipeReader,
) {
    while let Some((number, request)) = receive(&socket, HEAD + MAX_DIGEST_LEN, NotificationRequest::read) {
        let ran = match request {
            NotificationRequest::Reread => match reread() {
                Ok(new) => {
                    command = new;
                    Ran::without_output(ExitOutcome::Exited(0))
                }
                Err(error) => Ran::without_output(ExitOutcome::NotStarted(error)),
            },
            NotificationRequest::Digest(digest) => deliver(&command, &digest, limit, quit),
        };
        // If the daemon is gone, the next request fails.
        let _ = answer(&socket, number, line(&command), ran);
    }
}

fn deliver(command: &[String], digest: &str, limit: Duration, quit: &PipeReader) -> Ran {
    let Some((program, arguments)) = command.split_first() else {
        return Ran::without_output(ExitOutcome::NotStarted("notify.command is empty".to_owned()));
    };
    run(start_of(program, arguments), format!("{digest}\n").as_bytes(), limit, quit)
}

/// Reads any bytes as a request; a valid one must be written back identically.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Some((number, request)) = NotificationRequest::read(bytes) {
        assert_eq!(request.to_bytes(number), bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::thread;

    use super::*;
    use crate::enforce::helper_socket::pair;

    /// Runs `test` with one end of a socket; the command with its settings is at the other end.
    fn with<T>(script: &str, test: impl FnOnce(&mut Notifications) -> T) -> T {
        with_limit(Duration::from_secs(60), script, test)
    }

    fn with_limit<T>(limit: Duration, script: &str, test: impl FnOnce(&mut Notifications) -> T) -> T {
        let words = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (ours, theirs) = pair().unwrap();
        let (quit, hung_up) = pipe().unwrap();
        thread::scope(|scope| {
            let (quit, command) = (&quit, words(script));
            scope.spawn(move || serve_notifications(theirs, command, limit, || Ok(words("exit 7")), quit));
            let result = test(&mut Notifications::new(ours));
            drop(hung_up);
            result
        })
    }

    #[test]
    fn command_reads_digest_from_standard_input() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("note");
        let digest = format!(r#"{{"count":1,"filler":"{}"}}"#, "x".repeat(100_000));
        let script = format!("cat > {}", note.display());
        assert_eq!(with(&script, |ours| ours.send(digest.clone())), Delivery::Succeeded);
        assert_eq!(std::fs::read_to_string(note).unwrap(), format!("{digest}\n"));
        assert_eq!(with("true", |ours| ours.send(digest)), Delivery::Succeeded, "a command need not read the digest");
    }

    #[test]
    fn failing_command_is_reported_with_output() {
        let delivery = with("echo no route; exit 3", |ours| ours.send("{}".to_owned()));
        let Delivery::Failed(reason) = &delivery else { panic!("{delivery:?}") };
        assert!(reason.contains("failed with exit status 3; output: no route"), "{reason}");
    }

    #[test]
    fn command_that_hangs_is_ended() {
        let started = Instant::now();
        let delivery = with_limit(Duration::from_millis(500), "sleep 1000", |ours| ours.send("{}".to_owned()));
        assert!(
            matches!(&delivery, Delivery::Failed(why) if why.contains("was killed at its time limit")),
            "{delivery:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn reread_uses_changed_command() {
        let deliveries = with("true", |ours| (ours.reread(), ours.send("{}".to_owned())));
        assert_eq!(deliveries.0, Delivery::Succeeded);
        assert!(matches!(&deliveries.1, Delivery::Failed(why) if why.contains("exit status 7")), "{deliveries:?}");
    }

    #[test]
    fn digest_is_one_object_on_one_line() {
        let request = |text: &str| NotificationRequest::read(&NotificationRequest::Digest(text.to_owned()).to_bytes(7));
        assert_eq!(
            request(r#"{"a":"b\u001b"}"#),
            Some((7, NotificationRequest::Digest(r#"{"a":"b\u001b"}"#.to_owned())))
        );
        for other in ["", "[]", "{", "{}{}", "{\n}", "{\"a\":\"\u{1b}\"}", "7"] {
            assert_eq!(request(other), None, "{other:?}");
        }
        for bytes in
            [&b""[..], b"\x03", b"\x03\0\0\0\0\0\0\0", b"\x03\0\0\0\0\0\0\0\x01{}", b"\x01\0\0\0\0\0\0\0\x01{}"]
        {
            assert_eq!(NotificationRequest::read(bytes), None, "{bytes:?}");
        }
        let reread = NotificationRequest::Reread.to_bytes(1);
        assert_eq!(NotificationRequest::read(&reread), Some((1, NotificationRequest::Reread)));
        fuzz(&reread);
    }

    #[test]
    fn ended_helper_process_is_named() {
        let (ours, theirs) = pair().unwrap();
        drop(theirs);
        assert_eq!(Notifications::new(ours).send("{}".to_owned()), Delivery::HelperGone);
    }
}
