//! Starts the command helper, a process that runs the operator's commands. A command may be any program and may need
//! permissions that the packet-reading process must not have. The daemon only names the bans for which the configured
//! commands are run.
//!
//! A second socket pair, in place of the helper's standard output, carries digests for `notify.command`, which a reload
//! reads again. Changed commands of bans need a restart.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use rustix::net::{Shutdown, shutdown};

use super::error::DaemonError;
use super::helper::{self, Helper, HelperKind};
use super::sandbox_policy;
use crate::config::{Config, Run};
use crate::control::status;
use crate::enforce::command::{
    CommandHelperClient, Notifications, TIME_LIMIT, check_program, serve, serve_notifications,
};
use crate::enforce::helper_socket::pair;
use crate::sandbox::{Sandbox, SandboxState};

pub(super) struct CommandHelper {
    pub(super) helper_client: CommandHelperClient,
    /// The channel to `notify.command`, until the notifier takes it.
    pub(super) notifications: Option<Notifications>,
    sandbox: SandboxState,
    pub(super) warnings: Vec<String>,
}

/// The commands of bans, and the command for digests; empty if there is none.
pub(super) type Commands = (Run, Vec<String>);

impl CommandHelper {
    /// Starts the helper with the current permissions of this process.
    ///
    /// # Errors
    /// It cannot be started, or reports that the commands cannot be run.
    pub(super) fn start(config_path: &Path, sandboxed: bool) -> Result<Self, DaemonError> {
        let (digests, theirs) = pair().map_err(DaemonError::system("start the process that runs commands"))?;
        let Helper { socket, mut child, sandbox, warnings } =
            Helper::start(HelperKind::Commands, config_path, sandboxed, Stdio::from(theirs))?;
        let process = child.id();
        let helper_client = CommandHelperClient::new(socket, process, move || {
            child.try_wait().ok().flatten().map(|status| status.to_string())
        });
        Ok(Self { helper_client, notifications: Some(Notifications::new(digests)), sandbox, warnings })
    }

    pub(super) fn status(&self) -> status::CommandHelperStatus {
        let (process, running) = (self.helper_client.process(), self.helper_client.is_running());
        status::CommandHelperStatus { process, running, sandbox: self.sandbox.clone() }
    }
}

/// Runs commands until the daemon, at the other end of `socket`, ends.
///
/// # Errors
/// The daemon cannot be reached.
pub(super) fn run(socket: &OwnedFd, digests: &OwnedFd, commands: Commands, config_path: &Path) -> Result<(), String> {
    let (settings, notify) = commands;
    let (quit, hung_up) = io::pipe().map_err(|error| error.to_string())?;
    thread::scope(|scope| {
        let quit = &quit;
        let reread = || notify_command(&helper::load(config_path)?);
        scope.spawn(move || serve_notifications(digests, notify, TIME_LIMIT, reread, quit));
        let served = serve(socket, &settings).map_err(|error| error.to_string());
        // Ends a running digest command, and the thread.
        drop(hung_up);
        let _ = shutdown(digests, Shutdown::Both);
        served
    })
}

/// The command for digests; empty if there is none.
fn notify_command(config: &Config) -> Result<Vec<String>, String> {
    let command = config.notify.command.clone();
    if !command.is_empty() {
        check_program(&command).map_err(|error| DaemonError::Notify(error).to_string())?;
    }
    Ok(command)
}

/// Drops all unneeded permissions, and returns the commands.
pub(super) fn ready(config_path: &Path, sandboxed: bool) -> Result<(Commands, Sandbox), String> {
    let config = helper::load(config_path)?;
    let mut sandbox = if sandboxed { Sandbox::enter(&sandbox_policy::of_commands(), || ()) } else { Sandbox::now() };
    if sandboxed {
        sandbox.drop_privileges();
    }
    // Checked last, with the remaining permissions.
    let settings = config.block.run.clone();
    let checked = if config.runs_commands() { settings.check() } else { settings.check_expiry() };
    checked.map_err(|error| DaemonError::Run(error).to_string())?;
    Ok(((settings, notify_command(&config)?), sandbox))
}
