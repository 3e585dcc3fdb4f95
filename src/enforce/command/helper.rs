//! Runs the command helper's main loop: receives requests of the daemon and runs commands. It reads no packets and
//! opens no files. A request selects one of the two configured commands and names a ban. Any other message ends the
//! helper, because only a compromised daemon sends one.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use super::process::{ExitOutcome, Ran, run};
use super::protocol::{CommandRequest, ConfiguredCommand, MAX_REQUEST_LEN, answer};
use super::{line, prepare};
use crate::config::Run;
use crate::enforce::helper_socket::{HelperError, next_request};

/// Runs the commands that the daemon at the other end of `socket` requests, until the daemon hangs up or is gone.
/// Commands that still run then are terminated, and killed if necessary; when this returns, none is left.
///
/// # Errors
/// The message is not a request; running commands are terminated as well.
pub fn serve(socket: &OwnedFd, settings: &Run) -> Result<(), HelperError> {
    let (quit, hung_up) = io::pipe()?;
    let mut buffer = [0; MAX_REQUEST_LEN];
    // Each running command holds a clone, so that the number of clones is the number of running commands.
    let running = Arc::new(());
    thread::scope(|scope| {
        // Dropped before the scope waits for the commands.
        let _hung_up = hung_up;
        while let Some(CommandRequest { number, which, context }) = next_request(socket, &mut buffer)? {
            let words = match which {
                ConfiguredCommand::Ban => &settings.command,
                ConfiguredCommand::Expiry => &settings.expire_command,
            };
            let not_started = |why: String| Ran::without_output(ExitOutcome::NotStarted(why));
            let refuse = |why: String| drop(answer(socket, number, line(words), not_started(why)));
            // The daemon respects this limit; the helper checks it nevertheless.
            if Arc::strong_count(&running) > settings.at_once {
                refuse(format!("block.run.at_once ({}) is reached", settings.at_once));
                continue;
            }
            let (command, line) = match prepare(words, &context) {
                Ok(prepared) => prepared,
                Err(error) => {
                    refuse(error.to_string());
                    continue;
                }
            };
            let one = Arc::clone(&running);
            let (quit, limit) = (&quit, settings.timeout);
            let work = move || {
                let ran = run(command, &[], limit, quit);
                // The daemon may send the next request immediately.
                drop(one);
                // A closed connection needs no answer.
                let _ = answer(socket, number, line, ran);
            };
            if let Err(error) = thread::Builder::new().name("command".to_owned()).spawn_scoped(scope, work) {
                refuse(error.to_string());
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use rustix::net::{SendFlags, send};

    use super::super::protocol::CommandAnswer;
    use super::*;
    use crate::enforce::BanContext;
    use crate::enforce::helper_socket::{decode, encode, pair, receive};

    fn settings(script: &str) -> Run {
        let words = ["/bin/sh", "-c", script, "sh", "$TARGET$"].map(str::to_owned);
        Run { command: words.into(), timeout: Duration::from_secs(20), at_once: 1, ..Run::default() }
    }

    fn request(number: u64, which: ConfiguredCommand) -> Vec<u8> {
        encode(&CommandRequest { number, which, context: BanContext::example([192, 0, 2, 7].into()) }).unwrap()
    }

    fn send_bytes(socket: impl AsFd, bytes: &[u8]) {
        send(socket, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    fn read(socket: impl AsFd) -> CommandAnswer {
        receive(socket, 1 << 16, decode).unwrap()
    }

    /// The result for a daemon that sends these datagrams.
    fn served(settings: &Run, datagrams: &[Vec<u8>]) -> (Result<(), HelperError>, Vec<CommandAnswer>) {
        let (ours, theirs) = pair().unwrap();
        thread::scope(|scope| {
            let serves = scope.spawn(|| serve(&theirs, settings));
            datagrams.iter().for_each(|bytes| send_bytes(&ours, bytes));
            let answers = datagrams
                .iter()
                .filter(|bytes| decode::<CommandRequest>(bytes).is_some())
                .map(|_| read(&ours))
                .collect();
            rustix::net::shutdown(&ours, rustix::net::Shutdown::Write).unwrap();
            (serves.join().unwrap(), answers)
        })
    }

    #[test]
    fn invalid_helper_request_runs_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("note");
        let settings = settings(&format!("echo $1 >> {}", note.display()));
        let whole = request(1, ConfiguredCommand::Ban);
        let cut = (1..whole.len()).map(|end| whole[..end].to_vec());
        let more = [[&whole[..], b"\0"].concat(), [&whole[..], &[0; 4_096]].concat(), b"/bin/sh\0-c\0id".to_vec()];
        for garbage in cut.chain(more) {
            let (result, _) = served(&settings, std::slice::from_ref(&garbage));
            assert!(matches!(result, Err(HelperError::InvalidRequest)), "{garbage:?}: {result:?}");
        }
        assert!(!note.exists());
        let (result, answers) = served(&settings, &[whole]);
        assert!(result.is_ok() && answers[0].ran.outcome == ExitOutcome::Exited(0), "{answers:?}");
        assert_eq!(std::fs::read_to_string(note).unwrap(), "192.0.2.7\n");
    }

    #[test]
    fn only_configured_commands_run() {
        let (result, answers) = served(&settings("exit 3"), &[request(1, ConfiguredCommand::Expiry)]);
        assert!(result.is_ok());
        assert!(
            matches!(&answers[0].ran.outcome, ExitOutcome::NotStarted(why) if why.contains("is empty")),
            "{answers:?}"
        );
        let requests = [1, 2].map(|number| request(number, ConfiguredCommand::Ban));
        let (result, mut answers) = served(&settings("sleep 1"), &requests);
        assert!(result.is_ok());
        answers.sort_by_key(|answer| answer.number);
        assert_eq!(answers[0].ran.outcome, ExitOutcome::Exited(0));
        assert_eq!(answers[1].ran.outcome, ExitOutcome::NotStarted("block.run.at_once (1) is reached".to_owned()));
    }

    #[test]
    fn commands_end_with_daemon() {
        let (ours, theirs) = pair().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("note");
        let settings = settings(&format!("echo $$ > {}; exec sleep 1000", note.display()));
        let serves = thread::spawn(move || serve(&theirs, &settings));
        send_bytes(&ours, &request(1, ConfiguredCommand::Ban));
        let process = loop {
            match std::fs::read_to_string(&note) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ => thread::sleep(Duration::from_millis(10)),
            }
        };
        drop(ours);
        assert!(serves.join().unwrap().is_ok());
        assert!(!std::path::Path::new("/proc").join(process).exists());
    }
}
