//! Starts and contacts the command helper, the process that runs the operator's commands. A command may be any
//! program and may need rights that the process which reads packets must not have. So the daemon starts this
//! program a second time before it drops its privileges. The helper reads the configuration itself, gives up every
//! right that no command needs, and then runs only the configured commands, for the bans that the daemon names.
//! After that the daemon can neither start a program nor choose one.
//!
//! Both hold one end of a socket pair. When the daemon's end is closed, for any reason, the helper ends its
//! commands and itself. When the helper ends, the daemon continues without commands, because it has given up the
//! right to start another helper.
//!
//! A second socket pair, in the place of its standard output, takes digests for `notify.command`.
//!
//! Changed commands of bans need a restart of the daemon; a reload reads `notify.command` again. Reading the
//! configuration twice is safe: each answer says which command was run, and both times no other user could change
//! the file.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType, recv, send, shutdown};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::error::DaemonError;
use super::sandbox_policy;
use crate::config::Config;
use crate::control::status::{self, SandboxState};
use crate::enforce::command::{
    Notifications, RunSettings, Spawner, TIME_LIMIT, check_program, pair, serve, serve_notifications,
};
use crate::sandbox::Sandbox;

/// The helper's first argument. Only the daemon passes it, so it is in no help and no manual.
const WORD: &str = "--run-commands-of";

/// Behind the configuration file, where the helper keeps all rights.
const FREE: &str = "--no-sandbox";

/// The program itself, whatever has become of its file meanwhile.
const ITSELF: &str = "/proc/self/exe";

/// How long the helper may take to be ready. It looks at a handful of files.
const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest greeting, in bytes.
const MAX_GREETING_LEN: usize = 32 << 10;

pub(super) struct CommandHelper {
    spawner: Spawner,
    notifications: Option<Notifications>,
    /// What it has given up, as `status` has it.
    sandbox: SandboxState,
    warnings: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Greeting {
    /// Why it cannot run commands.
    Failed { error: String },
    /// What it has given up, and what is to be reported.
    Ready { sandbox: SandboxState, said: Vec<String> },
}

impl CommandHelper {
    /// Starts the helper, with the rights that this process has now.
    ///
    /// # Errors
    /// Where it cannot be started, or reports that the commands cannot be run.
    pub(super) fn start(config_path: &Path, sandboxed: bool) -> Result<Self, DaemonError> {
        let unable = DaemonError::system("start the process that runs commands");
        let (ours, theirs) = pair().map_err(&unable)?;
        let (digests, their_digests) = pair().map_err(&unable)?;
        let mut command = Command::new(ITSELF);
        command.arg0("portsentry").arg(WORD).arg(config_path).args((!sandboxed).then_some(FREE));
        command.env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::from(their_digests));
        let mut child = command.spawn().map_err(&unable)?;
        // Its copies of the other ends would keep the sockets open.
        drop(command);
        let process = child.id();
        match greeting(&ours) {
            Ok((sandbox, said)) => {
                let named = |text| format!("process {process}, which runs commands: {text}");
                let warnings = said.into_iter().map(named).collect();
                let spawner = Spawner::over(ours, process, move || ended(&mut child));
                Ok(Self { spawner, notifications: Some(Notifications::new(digests)), sandbox, warnings })
            }
            Err(error) => {
                drop(ours);
                let _ = child.kill();
                let _ = child.wait();
                Err(DaemonError::NoSpawner(error))
            }
        }
    }

    pub(super) fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// The way to `notify.command`; once.
    pub(super) fn take_notifications(&mut self) -> Option<Notifications> {
        self.notifications.take()
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(super) fn status(&self) -> status::CommandHelper {
        let (process, running) = (self.spawner.process(), self.spawner.is_running());
        status::CommandHelper { process, running, sandbox: self.sandbox.clone() }
    }
}

fn ended(child: &mut Child) -> Option<String> {
    child.try_wait().ok().flatten().map(|status| status.to_string())
}

/// Reads the greeting; the helper's sandbox and its warnings, or why it cannot run commands.
fn greeting(socket: &OwnedFd) -> Result<(SandboxState, Vec<String>), String> {
    let bytes = receive(socket, GREETING_TIMEOUT)
        .map_err(|error| format!("the process that runs commands cannot be heard: {error}"))?;
    match serde_json::from_slice(&bytes) {
        Ok(Greeting::Ready { sandbox, said }) => Ok((sandbox, said)),
        Ok(Greeting::Failed { error }) => Err(error),
        Err(_) => Err("the process that runs commands ended without a word".to_owned()),
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

/// The command line of the helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperArgs {
    config_path: PathBuf,
    sandboxed: bool,
}

impl HelperArgs {
    /// Reads a command line, program name first; `None` for every other one.
    #[must_use]
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let words: Vec<OsString> = words.into_iter().take(5).collect();
        let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let (config_path, sandboxed) = match words.as_slice() {
            [_, word, path] if *word == WORD => (path, true),
            [_, word, path, free] if *word == WORD && *free == FREE => (path, false),
            _ => return None,
        };
        Some(Self { config_path: config_path.into(), sandboxed })
    }
}

/// Runs commands until the daemon, at the other end of standard input, ends.
///
/// # Errors
/// A sentence where it was not started by the daemon, or the daemon cannot be reached.
pub fn run(args: &HelperArgs) -> Result<(), String> {
    let places = [rustix::stdio::stdin(), rustix::stdio::stdout()];
    if places.iter().any(|place| !matches!(socket_type(place), Ok(SocketType::SEQPACKET))) {
        return Err(format!("{WORD} is what portsentry says to itself; start it without"));
    }
    let [socket, digests] = places.map(|place| place.try_clone_to_owned().map_err(|error| error.to_string()));
    let (socket, digests) = (socket?, digests?);
    // The service manager signals all processes, and a terminal all in the foreground, but only the daemon decides when this
    // one ends. Not ignored, because that is inherited.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|error| error.to_string())?;
    let _inside = runtime.enter();
    let caught = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let _caught = caught.into_iter().collect::<io::Result<Vec<_>>>().map_err(|error| error.to_string())?;
    let ready = ready(args);
    let greeting = match &ready {
        Ok((_, _, sandbox)) => Greeting::Ready { sandbox: sandbox.into(), said: sandbox.warnings.clone() },
        Err(error) => Greeting::Failed { error: error.clone() },
    };
    let greeting = serde_json::to_vec(&greeting).map_err(|error| error.to_string())?;
    let greeted = send(&socket, &greeting, SendFlags::NOSIGNAL);
    // The daemon reports the error.
    let Ok((settings, notify, _)) = ready else { return Ok(()) };
    greeted.map_err(|error| error.to_string())?;
    let (quit, hung_up) = io::pipe().map_err(|error| error.to_string())?;
    thread::scope(|scope| {
        let (quit, digests) = (&quit, &digests);
        let reread = || notify_command(&load(args)?);
        scope.spawn(move || serve_notifications(digests, notify, TIME_LIMIT, reread, quit));
        let served = serve(&socket, &settings).map_err(|error| error.to_string());
        // Ends the command that a digest is with, and the thread.
        drop(hung_up);
        let _ = shutdown(digests, Shutdown::Both);
        served
    })
}

fn load(args: &HelperArgs) -> Result<Config, String> {
    let config = Config::load(&args.config_path).map_err(|errors| errors.to_string())?;
    config.check_ownership(&args.config_path).map_err(|error| error.to_string())?;
    Ok(config)
}

/// The command for digests; empty where there is none.
fn notify_command(config: &Config) -> Result<Vec<String>, String> {
    let command = config.notify.command.clone();
    if !command.is_empty() {
        check_program(&command).map_err(|error| DaemonError::Notify(error).to_string())?;
    }
    Ok(command)
}

/// The commands, when all is given up that they do not need.
fn ready(args: &HelperArgs) -> Result<(RunSettings, Vec<String>, Sandbox), String> {
    let config = load(args)?;
    let mut sandbox =
        if args.sandboxed { Sandbox::enter(&sandbox_policy::of_commands(), || ()) } else { Sandbox::now() };
    if args.sandboxed {
        sandbox.drop_privileges();
    }
    // Last: with the rights that there are from now on.
    let settings = RunSettings::from(&config.block.run);
    if config.runs_commands() {
        settings.check().map_err(|error| DaemonError::Run(error).to_string())?;
    }
    Ok((settings, notify_command(&config)?, sandbox))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(words: &[&str]) -> Option<HelperArgs> {
        HelperArgs::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn only_the_very_words_that_the_daemon_says_make_the_process_that_runs_commands() {
        let config_path = PathBuf::from("/etc/p.toml");
        let sandboxed = HelperArgs { config_path: config_path.clone(), sandboxed: true };
        assert_eq!(part(&["portsentry", WORD, "/etc/p.toml"]), Some(sandboxed));
        assert_eq!(
            part(&["portsentry", WORD, "/etc/p.toml", FREE]),
            Some(HelperArgs { config_path, sandboxed: false })
        );
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
