//! Implements `--daemon`: the program starts a second process in a new session, and exits once that process is watching
//! or has failed. A boot script that waits for its commands then continues, as with classic PortSentry, and learns
//! whether the start succeeded.
//!
//! The second process reports readiness with a byte on its standard output, which is a pipe to the first one.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::setsid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The option that requests a background process.
const OPTION: &str = "--daemon";

/// Environment variable that identifies the second process.
const VARIABLE: &str = "PORTSENTRY_IN_BACKGROUND";

/// In the second process: `/dev/null`, opened before the sandbox is entered.
static NULL: OnceLock<File> = OnceLock::new();

/// Starts the second process with `words`, the command line of this one, and waits until it is watching; returns its
/// exit code as `Err` if it ended instead.
pub fn start(words: impl Iterator<Item = OsString>) -> io::Result<Result<(), u8>> {
    let mut child = Command::new("/proc/self/exe")
        .args(words.skip(1).filter(|word| word != OsStr::new(OPTION)))
        .env(VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let is_ready = child.stdout.take().is_some_and(|mut pipe| pipe.read_exact(&mut [0]).is_ok());
    if is_ready {
        return Ok(Ok(()));
    }
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(Err(code.unwrap_or(crate::types::exit_code::FAILED)))
}

/// Leaves the terminal and session of the parent, if this is the second process; true if it is.
pub fn enter() -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    // Fails for the leader of a process group, which already has its own session.
    let _ = setsid();
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = NULL.set(null);
    }
    true
}

/// True in the second process, whose standard error leads nowhere once it monitors.
pub(super) fn is_detached() -> bool {
    NULL.get().is_some()
}

/// Reports readiness to the first process, and closes the shared output.
pub(super) fn ready() {
    let Some(null) = NULL.get() else { return };
    // If the first process was killed, no process waits.
    let mut out = io::stdout().lock();
    let _ = out.write_all(b"\n").and_then(|()| out.flush());
    let _ = dup2_stdin(null).and_then(|()| dup2_stdout(null)).and_then(|()| dup2_stderr(null));
}
