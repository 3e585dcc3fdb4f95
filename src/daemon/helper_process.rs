//! Runs a helper process: greets the daemon, and does its work until the daemon ends.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::sockopt::socket_type;
use rustix::net::{SendFlags, SocketType};
use tokio::signal::unix::{SignalKind, signal};

use super::helper::{Greeting, HelperArgs, HelperKind};
use super::{command_helper, file_helper};
use crate::enforce::helper_socket::send_message;
use crate::sandbox::Sandbox;

/// Does the work until the daemon, at the other end of standard input, ends.
///
/// # Errors
/// The process was not started by the daemon, or the daemon cannot be reached.
pub fn run(args: &HelperArgs) -> Result<(), String> {
    let refusal =
        format!("{} is an internal option of portsentry; start it without this option", <&str>::from(args.work));
    let socket = inherited_socket(rustix::stdio::stdin(), refusal)?;
    // The service manager signals all processes, and a terminal all foreground processes, but only the daemon decides
    // when this one ends. The signals are caught instead of ignored, because ignored signals are inherited by commands.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(|error| error.to_string())?;
    let _inside = runtime.enter();
    let caught = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let _caught = caught.into_iter().collect::<io::Result<Vec<_>>>().map_err(|error| error.to_string())?;
    let HelperArgs { work, config_path, sandboxed } = args;
    match work {
        HelperKind::Commands => {
            let refusal = "standard output is not a socket of the daemon".to_owned();
            let digests = inherited_socket(rustix::stdio::stdout(), refusal)?;
            let Some(commands) = greet(&socket, command_helper::ready(config_path, *sandboxed))? else { return Ok(()) };
            command_helper::run(&socket, &digests, commands, config_path)
        }
        work => {
            let Some(files) = greet(&socket, file_helper::ready(config_path, *sandboxed, *work))? else {
                return Ok(());
            };
            crate::enforce::file_helper::serve(&socket, &files).map_err(|error| error.to_string())
        }
    }
}

/// The daemon's socket in place of a standard stream.
///
/// # Errors
/// `otherwise`, if the stream is not such a socket.
fn inherited_socket(stream: BorrowedFd<'_>, otherwise: String) -> Result<OwnedFd, String> {
    match socket_type(stream) {
        Ok(SocketType::SEQPACKET) => stream.try_clone_to_owned().map_err(|error| error.to_string()),
        _ => Err(otherwise),
    }
}

/// Reports whether the helper is ready; returns `None` if it is not, which the daemon reports.
fn greet<T>(socket: &OwnedFd, ready: Result<(T, Sandbox), String>) -> Result<Option<T>, String> {
    let greeting: Greeting = match &ready {
        Ok((_, sandbox)) => Ok((sandbox.state.clone(), sandbox.warnings.clone())),
        Err(error) => Err(error.clone()),
    };
    let greeted = send_message(socket, &greeting, SendFlags::empty());
    let Ok((work, _)) = ready else { return Ok(None) };
    greeted.map_err(|error| error.to_string())?;
    Ok(Some(work))
}
