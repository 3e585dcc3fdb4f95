//! Helper processes, from both sides: this program once more, for what the daemon may not do itself. Before the daemon drops
//! its privileges, it starts each with the rights of the start. The helper reads the configuration itself, gives up all that
//! its work does not need, and then carries out what the daemon asks for in typed messages.
//!
//! Both hold an end of a socket. When the daemon's end is closed, in whatever way it ends, the helper ends itself. When the
//! helper ends, the daemon goes on without: it has not kept the right to start another one.
//!
//! What a helper has read takes a restart of the daemon to change. That the configuration is read twice does no harm: both
//! times no other user could change it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde::{Deserialize, Serialize};

use super::error::DaemonError;
use crate::config::Config;
use crate::control::status::SandboxState;
use crate::enforce::command::pair;

/// Behind the configuration file, where the helper keeps all rights.
const FREE: &str = "--no-sandbox";

/// The program itself, whatever has become of its file meanwhile.
const ITSELF: &str = "/proc/self/exe";

/// How long the helper may take to be ready. It looks at a handful of files.
const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest greeting, in bytes.
const MAX_GREETING_LEN: usize = 32 << 10;

/// What a helper does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Runs the configured commands.
    Commands,
    /// Writes the files that only root may write: hosts.deny, and `report.json_file`.
    Files { hosts_deny: bool, json_file: bool },
}

const ALL: [Work; 4] = [
    Work::Commands,
    Work::Files { hosts_deny: true, json_file: false },
    Work::Files { hosts_deny: false, json_file: true },
    Work::Files { hosts_deny: true, json_file: true },
];

impl Work {
    /// The helper's first argument. Only the daemon passes it, so it is in no help and no manual.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Commands => "--run-commands-of",
            Self::Files { hosts_deny: true, json_file: false } => "--write-hosts-deny-of",
            Self::Files { hosts_deny: false, .. } => "--open-json-file-of",
            Self::Files { hosts_deny: true, json_file: true } => "--write-files-of",
        }
    }

    /// What the process does, behind "the process that".
    fn does(self) -> &'static str {
        match self {
            Self::Commands => "runs commands",
            Self::Files { .. } => "writes files of root",
        }
    }
}

/// A helper that is ready.
pub(super) struct Helper {
    pub(super) socket: OwnedFd,
    pub(super) child: Child,
    /// What it has given up, as `status` has it.
    pub(super) sandbox: SandboxState,
    /// What is to be reported.
    pub(super) warnings: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Greeting {
    /// Why it cannot do its work.
    Failed { error: String },
    /// What it has given up, and what is to be reported.
    Ready { sandbox: SandboxState, said: Vec<String> },
}

impl Helper {
    /// Starts the helper with the rights that this process has now, and with `output` as its standard output.
    ///
    /// # Errors
    /// Where it cannot be started, or reports that it cannot do its work.
    pub(super) fn start(work: Work, config_path: &Path, sandboxed: bool, output: Stdio) -> Result<Self, DaemonError> {
        let unable = DaemonError::system(match work {
            Work::Commands => "start the process that runs commands",
            Work::Files { .. } => "start the process that writes files of root",
        });
        let (socket, theirs) = pair().map_err(&unable)?;
        let mut command = Command::new(ITSELF);
        command.arg0("portsentry").arg(work.word()).arg(config_path).args((!sandboxed).then_some(FREE));
        command.env_clear().stdin(Stdio::from(theirs)).stdout(output);
        let mut child = command.spawn().map_err(&unable)?;
        // Its copies of the other ends would keep the sockets open.
        drop(command);
        let process = child.id();
        match greeting(&socket, work.does()) {
            Ok((sandbox, said)) => {
                let named = |text| format!("process {process}, which {}: {text}", work.does());
                let warnings = said.into_iter().map(named).collect();
                Ok(Self { socket, child, sandbox, warnings })
            }
            Err(error) => {
                drop(socket);
                let _ = child.kill();
                let _ = child.wait();
                Err(DaemonError::NoHelper(error))
            }
        }
    }
}

/// Reads the greeting; the helper's sandbox and its warnings, or why it cannot do its work.
fn greeting(socket: &OwnedFd, does: &str) -> Result<(SandboxState, Vec<String>), String> {
    let bytes = receive(socket, GREETING_TIMEOUT)
        .map_err(|error| format!("the process that {does} cannot be heard: {error}"))?;
    match serde_json::from_slice(&bytes) {
        Ok(Greeting::Ready { sandbox, said }) => Ok((sandbox, said)),
        Ok(Greeting::Failed { error }) => Err(error),
        Err(_) => Err(format!("the process that {does} ended without a word")),
    }
}

/// The next datagram; empty where there is none any more.
fn receive(socket: &OwnedFd, limit: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + limit;
    let mut buffer = vec![0; MAX_GREETING_LEN];
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return Err(Errno::TIMEDOUT.into()),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let (length, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        buffer.truncate(length);
        return Ok(buffer);
    }
}

/// The command line of a helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperArgs {
    pub(super) work: Work,
    pub(super) config_path: PathBuf,
    pub(super) sandboxed: bool,
}

impl HelperArgs {
    /// Reads a command line, program name first; `None` for every other one.
    #[must_use]
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let words: Vec<OsString> = words.into_iter().take(5).collect();
        let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let (word, path, sandboxed) = match words.as_slice() {
            [_, word, path] => (word, path, true),
            [_, word, path, free] if *free == FREE => (word, path, false),
            _ => return None,
        };
        let work = ALL.into_iter().find(|work| *word == work.word())?;
        Some(Self { work, config_path: path.into(), sandboxed })
    }
}

/// The configuration at `path`, if no other user could change it.
pub(super) fn load(path: &Path) -> Result<Config, String> {
    let config = Config::load(path).map_err(|errors| errors.to_string())?;
    config.check_ownership(path).map_err(|error| error.to_string())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use rustix::net::{SendFlags, send};

    use super::*;

    fn part(words: &[&str]) -> Option<HelperArgs> {
        HelperArgs::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn only_internal_arguments_start_helpers() {
        for work in ALL {
            let word = work.word();
            let args = |sandboxed| HelperArgs { work, config_path: "/etc/p.toml".into(), sandboxed };
            assert_eq!(part(&["portsentry", word, "/etc/p.toml"]), Some(args(true)));
            assert_eq!(part(&["portsentry", word, "/etc/p.toml", FREE]), Some(args(false)));
            for other in [&["portsentry", word][..], &["portsentry", word, "a", "b"], &["a", "b", word]] {
                assert_eq!(part(other), None, "{other:?}");
            }
            assert_eq!(part(&["portsentry", word, "a", FREE, "b"]), None);
        }
        assert_eq!([part(&["portsentry"]), part(&[])], [None, None]);
    }

    #[test]
    fn helper_without_valid_greeting_is_refused() {
        let result = |bytes: Option<&[u8]>| {
            let (ours, theirs) = pair().unwrap();
            bytes.map(|bytes| send(&theirs, bytes, SendFlags::NOSIGNAL).unwrap());
            drop(theirs);
            greeting(&ours, "runs commands")
        };
        assert!(result(None).unwrap_err().contains("without a word"));
        assert!(result(Some(b"\x02garbage")).unwrap_err().contains("without a word"));
        assert_eq!(result(Some(br#"{"error": "block.run: no"}"#)).unwrap_err(), "block.run: no");
        let sandbox = SandboxState { uid: 7, ..SandboxState::default() };
        let ready = Greeting::Ready { sandbox: sandbox.clone(), said: vec!["one".to_owned()] };
        let ready = result(Some(&serde_json::to_vec(&ready).unwrap())).unwrap();
        assert_eq!(ready, (sandbox, vec!["one".to_owned()]));
    }
}
