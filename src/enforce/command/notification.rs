//! Digests of bans to `notify.command`, from both sides. The daemon's side sends one digest at a time and waits for the
//! command's end; the side in the process that runs commands runs the command of its own settings with the digest on its
//! standard input. A request has no room for a program or an argument, and a digest is one JSON object on one line.
//!
//! A socket of its own: a digest neither waits for the commands of bans nor holds one of them up.

use std::io::PipeReader;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::de::IgnoredAny;

use super::process::{Outcome, Ran, run};
use super::protocol::{Answer, LONGEST_ANSWER};
use super::{line, start_of};
use crate::types::printable::is_hidden;

/// The longest digest in bytes. A datagram of this length fits into the send buffer that Linux gives a socket.
pub const MAX_DIGEST_LEN: usize = 128 << 10;

/// How long the command may run.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How long the answer may take: the command's time limit, and the end of its group.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

/// The first byte of each request. It differs from those of the commands of bans.
const REREAD: u8 = 3;
const DIGEST: u8 = 4;

/// Bytes before a digest.
const HEAD: usize = 9;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    /// Take the command from the settings as they are now.
    Reread,
    /// Run the command for this digest.
    Digest(String),
}

impl Request {
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

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    Succeeded,
    /// The command and how it failed, as the end of a sentence.
    Failed(String),
    /// The process that runs commands has ended: no request can succeed any more.
    HelperGone,
}

/// The daemon's end.
#[derive(Debug)]
pub struct Notifications {
    socket: OwnedFd,
    number: u64,
}

impl Notifications {
    /// The process that runs commands is at the other end of `socket` (`SOCK_SEQPACKET`).
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, number: 0 }
    }

    /// Has the command taken from the settings as they are now. Waits for at most 35 s.
    pub fn reread(&mut self) -> Delivery {
        self.ask(&Request::Reread)
    }

    /// Has the command run for `digest`, one JSON object on one line of at most [`MAX_DIGEST_LEN`] bytes. Waits for its end,
    /// for at most 35 s.
    pub fn send(&mut self, digest: String) -> Delivery {
        self.ask(&Request::Digest(digest))
    }

    fn ask(&mut self, request: &Request) -> Delivery {
        self.number += 1;
        let until = Instant::now() + ANSWER_TIMEOUT;
        match send(&self.socket, &request.to_bytes(self.number), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => {}
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Delivery::HelperGone,
            Err(error) => return Delivery::Failed(format!("the process that runs commands takes no more: {error}")),
        }
        loop {
            let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Delivery::Failed("the process that runs commands does not answer".to_owned()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return Delivery::HelperGone,
            }
            let mut buffer = vec![0; LONGEST_ANSWER];
            let received = retry_on_intr(|| recv(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC)).ok();
            match received.and_then(|(_, length)| buffer.get(..length).and_then(Answer::read)) {
                // Of an earlier request, which was given up.
                Some(answer) if answer.number != self.number => {}
                Some(Answer { ran: Ran { outcome: Outcome::Exited(0), .. }, .. }) => return Delivery::Succeeded,
                Some(Answer { command, ran: Ran { outcome, output, .. }, .. }) => {
                    let wrote = if output.is_empty() { String::new() } else { format!("; it says: {output}") };
                    return Delivery::Failed(format!("{command} {outcome}{wrote}"));
                }
                None => return Delivery::HelperGone,
            }
        }
    }
}

/// Runs `command` for each digest that the daemon at the other end of `socket` sends, one after another, until the daemon
/// has hung up or sends what is no request. `reread` takes the command from the settings anew. Where `quit` is hung up, a
/// command that runs is ended, and so is one that takes longer than `limit`.
pub fn serve_notifications(
    socket: impl AsFd,
    mut command: Vec<String>,
    limit: Duration,
    mut reread: impl FnMut() -> Result<Vec<String>, String>,
    quit: &PipeReader,
) {
    let mut buffer = vec![0; HEAD + MAX_DIGEST_LEN];
    loop {
        let received = retry_on_intr(|| recv(&socket, buffer.as_mut_slice(), RecvFlags::TRUNC)).ok();
        let read = received.and_then(|(_, length)| buffer.get(..length).and_then(Request::read));
        let Some((number, request)) = read else { return };
        let ran = match request {
            Request::Reread => match reread() {
                Ok(new) => {
                    command = new;
                    ended(Outcome::Exited(0))
                }
                Err(error) => ended(Outcome::NotStarted(error)),
            },
            Request::Digest(digest) => deliver(&command, &digest, limit, quit),
        };
        let answer = Answer { number, command: line(&command), ran }.to_bytes();
        // Where the daemon is gone, the next request says so.
        let _ = retry_on_intr(|| send(&socket, &answer, SendFlags::NOSIGNAL));
    }
}

fn deliver(command: &[String], digest: &str, limit: Duration, quit: &PipeReader) -> Ran {
    let Some((program, arguments)) = command.split_first() else {
        return ended(Outcome::NotStarted("notify.command is empty".to_owned()));
    };
    match start_of(program, arguments.to_vec()) {
        Ok(command) => run(command, format!("{digest}\n").as_bytes(), limit, quit),
        Err(error) => ended(Outcome::NotStarted(error.to_string())),
    }
}

fn ended(outcome: Outcome) -> Ran {
    Ran { outcome, output: String::new(), took: Duration::ZERO }
}

/// Any bytes as a request. What is one is written as it was.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Some((number, request)) = Request::read(bytes) {
        assert_eq!(request.to_bytes(number), bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::thread;

    use super::super::helper_client::pair;
    use super::*;

    const LIMIT: Duration = Duration::from_millis(500);

    /// Runs `test` with one end of a socket; the command with its settings is at the other end.
    fn with<T>(script: &str, test: impl FnOnce(&mut Notifications) -> T) -> T {
        let words = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let (ours, theirs) = pair().unwrap();
        let (quit, hung_up) = pipe().unwrap();
        thread::scope(|scope| {
            let (quit, command) = (&quit, words(script));
            scope.spawn(move || serve_notifications(theirs, command, LIMIT, || Ok(words("exit 7")), quit));
            let result = test(&mut Notifications::new(ours));
            drop(hung_up);
            result
        })
    }

    #[test]
    fn command_reads_digest_from_standard_input() {
        let folder = tempfile::tempdir().unwrap();
        let note = folder.path().join("note");
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
        assert!(reason.contains("failed with exit status 3; it says: no route"), "{reason}");
    }

    #[test]
    fn command_that_hangs_is_ended() {
        let started = Instant::now();
        let delivery = with("sleep 1000", |ours| ours.send("{}".to_owned()));
        assert!(
            matches!(&delivery, Delivery::Failed(why) if why.contains("was ended at its time limit")),
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
        let request = |text: &str| Request::read(&Request::Digest(text.to_owned()).to_bytes(7));
        assert_eq!(request(r#"{"a":"b\u001b"}"#), Some((7, Request::Digest(r#"{"a":"b\u001b"}"#.to_owned()))));
        for other in ["", "[]", "{", "{}{}", "{\n}", "{\"a\":\"\u{1b}\"}", "7"] {
            assert_eq!(request(other), None, "{other:?}");
        }
        for bytes in
            [&b""[..], b"\x03", b"\x03\0\0\0\0\0\0\0", b"\x03\0\0\0\0\0\0\0\x01{}", b"\x01\0\0\0\0\0\0\0\x01{}"]
        {
            assert_eq!(Request::read(bytes), None, "{bytes:?}");
        }
        let reread = Request::Reread.to_bytes(1);
        assert_eq!(Request::read(&reread), Some((1, Request::Reread)));
        fuzz(&reread);
    }

    #[test]
    fn ended_helper_process_is_named() {
        let (ours, theirs) = pair().unwrap();
        drop(theirs);
        assert_eq!(Notifications::new(ours).send("{}".to_owned()), Delivery::HelperGone);
    }
}
