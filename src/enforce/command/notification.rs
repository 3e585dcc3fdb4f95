//! Sends digests of bans to `notify.command`; contains both sides. The daemon's side sends one digest at a time and
//! waits for the end of the command. The command helper's side runs the command of its own configuration with the
//! digest on standard input, as one JSON object on one line. A request has no field for a program or an argument.
//!
//! Uses a separate socket, so that digests and commands of bans do not delay each other.

use std::io::{ErrorKind, PipeReader};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use serde::{Deserialize, Serialize};

use super::process::{ExitOutcome, Ran, run};
use super::protocol::{CommandAnswer, MAX_ANSWER_LEN, answer};
use super::{line, start_of};
use crate::enforce::helper_socket::{decode, receive, receive_before, send_message};
use crate::events::digest::{DigestMessage, MAX_DIGEST_LEN};
use crate::types::printable::is_hidden;
use crate::types::to_line;

/// Maximum length of a request in bytes: a digest and the number of the request.
const MAX_REQUEST_LEN: usize = MAX_DIGEST_LEN + 64;

/// Time limit of the command.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Timeout for the answer: the command's time limit plus the time to end its process group.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotificationRequest {
    /// Repeated in the answer.
    number: u64,
    job: NotificationJob,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotificationJob {
    /// Read the command from the configuration again.
    Reread,
    /// Run the command for this digest.
    Digest(Box<DigestMessage>),
}

impl NotificationRequest {
    /// Reads a message of the daemon, which is one line without raw control characters; escaped ones stay escaped.
    fn read(bytes: &[u8]) -> Option<Self> {
        let is_plain = str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(is_hidden));
        is_plain.then(|| decode(bytes))?
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

    /// Requests `job`. Waits for its end, for at most 35 s.
    pub fn ask(&mut self, job: NotificationJob) -> Delivery {
        self.number += 1;
        let until = Instant::now() + ANSWER_TIMEOUT;
        let request = NotificationRequest { number: self.number, job };
        if let Err(error) = send_message(&self.socket, &request, SendFlags::DONTWAIT) {
            return match error.kind() {
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => Delivery::HelperGone,
                _ => Delivery::Failed(format!("the process that runs commands does not accept requests: {error}")),
            };
        }
        loop {
            match receive_before(&self.socket, MAX_ANSWER_LEN, until) {
                // The answer to an earlier request that was abandoned.
                Ok(Some(CommandAnswer { number, .. })) if number != self.number => {}
                Ok(Some(CommandAnswer { ran: Ran { outcome: ExitOutcome::Exited(0), .. }, .. })) => {
                    return Delivery::Succeeded;
                }
                Ok(Some(CommandAnswer { command, ran: Ran { outcome, output, .. }, .. })) => {
                    let wrote = if output.is_empty() { String::new() } else { format!("; output: {output}") };
                    return Delivery::Failed(format!("{command} {outcome}{wrote}"));
                }
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    return Delivery::Failed("the process that runs commands does not answer".to_owned());
                }
                Ok(None) | Err(_) => return Delivery::HelperGone,
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
    while let Some(NotificationRequest { number, job }) = receive(&socket, MAX_REQUEST_LEN, NotificationRequest::read) {
        let ran = match job {
            NotificationJob::Reread => match reread() {
                Ok(new) => {
                    command = new;
                    Ran::without_output(ExitOutcome::Exited(0))
                }
                Err(error) => Ran::without_output(ExitOutcome::NotStarted(error)),
            },
            NotificationJob::Digest(digest) => deliver(&command, &digest, limit, quit),
        };
        // If the daemon is gone, the next request fails.
        let _ = answer(&socket, number, line(&command), ran);
    }
}

fn deliver(command: &[String], digest: &DigestMessage, limit: Duration, quit: &PipeReader) -> Ran {
    let Some((program, arguments)) = command.split_first() else {
        return Ran::without_output(ExitOutcome::NotStarted("notify.command is empty".to_owned()));
    };
    run(start_of(program, arguments), to_line(digest).as_bytes(), limit, quit)
}

/// Reads any bytes as a request, whose digest must be one plain line.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Some(NotificationRequest { job: NotificationJob::Digest(digest), .. }) = NotificationRequest::read(bytes) {
        assert!(!digest.to_json().chars().any(is_hidden));
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::thread;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::enforce::helper_socket::pair;
    use crate::events::digest::Digest;

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

    fn digest(host: &str) -> DigestMessage {
        Digest::new(UNIX_EPOCH).to_message(host, UNIX_EPOCH)
    }

    fn send(ours: &mut Notifications) -> Delivery {
        ours.ask(NotificationJob::Digest(Box::new(digest("web1"))))
    }

    #[test]
    fn command_reads_digest_from_standard_input() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("note");
        let json = digest("web1").to_json();
        let long = json.replace("web1: 0 bans", &"x".repeat(100_000));
        let (digest, job) = (format!("{long}\n"), NotificationJob::Digest(serde_json::from_str(&long).unwrap()));
        assert!(digest.len() > 100_000);
        let script = format!("cat > {}", note.display());
        assert_eq!(with(&script, |ours| ours.ask(job.clone())), Delivery::Succeeded);
        assert_eq!(std::fs::read_to_string(note).unwrap(), digest);
        assert_eq!(with("true", |ours| ours.ask(job)), Delivery::Succeeded, "a command need not read the digest");
    }

    #[test]
    fn failing_command_is_reported_with_output() {
        let delivery = with("echo no route; exit 3", send);
        let Delivery::Failed(reason) = &delivery else { panic!("{delivery:?}") };
        assert!(reason.contains("failed with exit status 3; output: no route"), "{reason}");
    }

    #[test]
    fn command_that_hangs_is_ended() {
        let started = Instant::now();
        let delivery = with_limit(Duration::from_millis(500), "sleep 1000", send);
        assert!(
            matches!(&delivery, Delivery::Failed(why) if why.contains("was killed at its time limit")),
            "{delivery:?}"
        );
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn reread_uses_changed_command() {
        let deliveries = with("true", |ours| (ours.ask(NotificationJob::Reread), send(ours)));
        assert_eq!(deliveries.0, Delivery::Succeeded);
        assert!(matches!(&deliveries.1, Delivery::Failed(why) if why.contains("exit status 7")), "{deliveries:?}");
    }

    #[test]
    fn digest_is_one_object_on_one_line() {
        let digest = digest("a\"b");
        let request = |text: &str| NotificationRequest::read(format!(r#"{{"number":7,"job":{text}}}"#).as_bytes());
        let job = NotificationJob::Digest(Box::new(digest.clone()));
        let json = digest.to_json();
        assert_eq!(request(&format!(r#"{{"digest":{json}}}"#)), Some(NotificationRequest { number: 7, job }));
        let changed = |from: &str, to: &str| {
            assert!(json.contains(from), "{from}");
            json.replacen(from, to, 1)
        };
        let others = [
            changed("a\\\"b", "a\u{1b}b"),
            changed("a\\\"b", "a\u{202e}b"),
            changed("a\\\"b", "a\\u0062"),
            changed("{\"host\"", "{\"program\":\"/bin/sh\",\"host\""),
            changed(",", ",\n"),
            changed("\"count\":0", "\"count\":-1"),
        ];
        for other in others.iter().map(String::as_str).chain(["", "[]", "{", "{}", "{}{}", "{\n}", "7", "\"{}\""]) {
            assert_eq!(request(&format!(r#"{{"digest":{other}}}"#)), None, "{other:?}");
        }
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/helpers/notification_1");
        assert!(NotificationRequest::read(&std::fs::read(corpus).unwrap()).is_some());
        let reread = NotificationRequest { number: 1, job: NotificationJob::Reread };
        assert_eq!(NotificationRequest::read(br#"{"number":1,"job":"reread"}"#), Some(reread));
        for bytes in [
            &b""[..],
            b"{",
            br#"{"job":"reread"}"#,
            br#"{"number":1,"job":"reread"}{}"#,
            br#"{"number":1}"#,
            br#"{"number":1,"job":"reread","program":"/bin/sh"}"#,
        ] {
            assert_eq!(NotificationRequest::read(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn ended_helper_process_is_named() {
        let (ours, theirs) = pair().unwrap();
        drop(theirs);
        assert_eq!(send(&mut Notifications::new(ours)), Delivery::HelperGone);
    }
}
