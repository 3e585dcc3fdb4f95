//! The process that runs commands, from both sides. Commands may be any program, and need rights that whatever reads
//! packets must not have. So before the daemon gives up its own, it starts this program once more, which reads the settings
//! by itself, gives up all that no command needs, and then does nothing but run the commands in them when the daemon says
//! for which ban. The daemon can start no program from then on, and can choose none.
//!
//! Both hold an end of a socket. When the daemon's is closed, in whatever way it ends, the other one ends what it runs, and
//! itself. The other way round the daemon goes on without commands: it could start another such process only if it had kept
//! the right to.
//!
//! New settings of commands take a restart of the daemon. That the settings were read twice does no harm: what is run stands
//! in each answer, and both times they were checked to be nobody else's.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{RecvFlags, SendFlags, SocketType, recv, send};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::{DaemonError, backends, sandbox_policy, system};
use crate::config::Config;
use crate::control::status::{CommandHelper, SandboxState};
use crate::enforce::command::{RunSettings, Spawner, pair, serve};
use crate::sandbox::Sandbox;

/// The first word of its command line. Nobody else says it, so no help and no manual has it.
const WORD: &str = "--run-commands-of";

/// Behind the file of settings, where it keeps all rights.
const FREE: &str = "--no-sandbox";

/// The program itself, whatever has become of its file meanwhile.
const ITSELF: &str = "/proc/self/exe";

/// How long it may take to say that it is ready. It looks at a handful of files.
const PATIENCE: Duration = Duration::from_secs(20);

/// The longest first word of it, in bytes.
const LONGEST: usize = 32 << 10;

/// The process that runs commands, as the daemon has it.
pub(super) struct Commands {
    spawner: Spawner,
    /// What it has given up, as `status` has it.
    sandbox: SandboxState,
    /// What is to be said.
    pub(super) said: Vec<String>,
}

impl Commands {
    /// Who takes requests.
    pub(super) fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// For `status`.
    pub(super) fn status(&self) -> CommandHelper {
        let (process, running) = (self.spawner.process(), self.spawner.is_running());
        CommandHelper { process, running, sandbox: self.sandbox.clone() }
    }
}

/// Starts it, with the rights that this process has now.
///
/// # Errors
/// Where it cannot be started, or says that the commands cannot be run.
pub(super) fn start(settings: &Path, sandboxed: bool) -> Result<Commands, DaemonError> {
    let unable = system("start the process that runs commands");
    let (ours, theirs) = pair().map_err(&unable)?;
    let mut command = Command::new(ITSELF);
    command.arg0("portsentry").arg(WORD).arg(settings).args((!sandboxed).then_some(FREE));
    command.env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::null());
    let mut child = command.spawn().map_err(&unable)?;
    // Its copy of the other end would keep the socket open.
    drop(command);
    let process = child.id();
    match greeting(&ours) {
        Ok((sandbox, said)) => {
            let said = said.into_iter().map(|text| format!("process {process}, which runs commands: {text}")).collect();
            Ok(Commands { spawner: Spawner::over(ours, process, move || ended(&mut child)), sandbox, said })
        }
        Err(error) => {
            drop(ours);
            let _ = child.kill();
            let _ = child.wait();
            Err(DaemonError::NoSpawner(error))
        }
    }
}

fn ended(child: &mut Child) -> Option<String> {
    child.try_wait().ok().flatten().map(|status| status.to_string())
}

/// The first message of the process that runs commands.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Greeting {
    /// What it has given up, and what there is to be said.
    Ready { sandbox: SandboxState, said: Vec<String> },
    /// Why it cannot run commands.
    Failed { error: String },
}

fn greeting(socket: &OwnedFd) -> Result<(SandboxState, Vec<String>), String> {
    let bytes =
        within(socket, PATIENCE).map_err(|error| format!("the process that runs commands cannot be heard: {error}"))?;
    match serde_json::from_slice(&bytes) {
        Ok(Greeting::Ready { sandbox, said }) => Ok((sandbox, said)),
        Ok(Greeting::Failed { error }) => Err(error),
        Err(_) => Err("the process that runs commands ended without a word".to_owned()),
    }
}

/// The next datagram; empty where there is none any more.
fn within(socket: &OwnedFd, limit: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + limit;
    let mut buffer = vec![0; LONGEST];
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

/// What a process is told to be that is to run commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    settings: PathBuf,
    sandboxed: bool,
}

impl Part {
    /// Reads a command line, program name first; `None` for every other one.
    #[must_use]
    pub fn of(words: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let words: Vec<OsString> = words.into_iter().take(5).collect();
        let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let (settings, sandboxed) = match words.as_slice() {
            [_, word, settings] if *word == WORD => (settings, true),
            [_, word, settings, free] if *word == WORD && *free == FREE => (settings, false),
            _ => return None,
        };
        Some(Self { settings: settings.into(), sandboxed })
    }
}

/// Runs commands until the daemon, at the other end of standard input, ends.
///
/// # Errors
/// A sentence where it was started by somebody else, or the daemon is not itself.
pub fn play(part: &Part) -> Result<(), String> {
    let input = rustix::stdio::stdin();
    if !matches!(socket_type(input), Ok(SocketType::SEQPACKET)) {
        return Err(format!("{WORD} is what portsentry says to itself; start it without"));
    }
    let socket = input.try_clone_to_owned().map_err(|error| error.to_string())?;
    // The service manager tells all processes to end, and a terminal all in front of it, but when this one ends is the
    // daemon's word. Not ignored, because that is inherited.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|error| error.to_string())?;
    let _inside = runtime.enter();
    let caught = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let _caught = caught.into_iter().collect::<io::Result<Vec<_>>>().map_err(|error| error.to_string())?;
    let ready = ready(part);
    let greeting = match &ready {
        Ok((_, sandbox)) => Greeting::Ready { sandbox: sandbox.into(), said: sandbox.warnings.clone() },
        Err(error) => Greeting::Failed { error: error.clone() },
    };
    let greeting = serde_json::to_vec(&greeting).map_err(|error| error.to_string())?;
    let greeted = send(&socket, &greeting, SendFlags::NOSIGNAL);
    // Who cannot run them has said so; the daemon tells.
    let Ok((settings, _)) = ready else { return Ok(()) };
    greeted.map_err(|error| error.to_string())?;
    serve(&socket, &settings).map_err(|error| error.to_string())
}

/// The commands, when all is given up that they do not need.
fn ready(part: &Part) -> Result<(RunSettings, Sandbox), String> {
    let config = Config::load(&part.settings).map_err(|errors| errors.to_string())?;
    sandbox_policy::trusted(&config, &part.settings).map_err(|error| error.to_string())?;
    let mut sandbox = if part.sandboxed { Sandbox::enter(&sandbox_policy::of_commands()) } else { Sandbox::now() };
    if part.sandboxed {
        sandbox.drop_privileges();
    }
    // Last: with the rights that there are from now on.
    let settings = backends::commands(&config).map_err(|error| error.to_string())?;
    Ok((settings, sandbox))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(words: &[&str]) -> Option<Part> {
        Part::of(words.iter().map(OsString::from))
    }

    #[test]
    fn only_the_very_words_that_the_daemon_says_make_the_process_that_runs_commands() {
        let settings = PathBuf::from("/etc/p.toml");
        let sandboxed = Part { settings: settings.clone(), sandboxed: true };
        assert_eq!(part(&["portsentry", WORD, "/etc/p.toml"]), Some(sandboxed));
        assert_eq!(part(&["portsentry", WORD, "/etc/p.toml", FREE]), Some(Part { settings, sandboxed: false }));
        for other in
            [&["portsentry"][..], &["portsentry", WORD], &["portsentry", WORD, "a", "b"], &[], &["a", "b", WORD]]
        {
            assert_eq!(part(other), None, "{other:?}");
        }
        assert_eq!(part(&["portsentry", WORD, "a", FREE, "b"]), None);
    }

    #[test]
    fn a_process_that_says_nothing_or_what_is_wrong_is_none_that_runs_commands() {
        let said = |bytes: Option<&[u8]>| {
            let (ours, theirs) = pair().unwrap();
            bytes.map(|bytes| send(&theirs, bytes, SendFlags::NOSIGNAL).unwrap());
            drop(theirs);
            greeting(&ours)
        };
        assert!(said(None).unwrap_err().contains("without a word"));
        assert!(said(Some(b"\x02garbage")).unwrap_err().contains("without a word"));
        assert_eq!(said(Some(br#"{"error": "block.run: no"}"#)).unwrap_err(), "block.run: no");
        let sandbox = SandboxState { uid: 7, ..SandboxState::default() };
        let ready = Greeting::Ready { sandbox: sandbox.clone(), said: vec!["one".to_owned()] };
        let ready = said(Some(&serde_json::to_vec(&ready).unwrap())).unwrap();
        assert_eq!(ready, (sandbox, vec!["one".to_owned()]));
    }
}
