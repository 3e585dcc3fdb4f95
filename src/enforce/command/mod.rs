//! Implements the command backend: runs an operator's command when a ban begins and another when it ends. It is slow,
//! because each run starts a process. No command runs unless the configuration contains one.
//!
//! A command is an argument list and never passes through a shell: each argument stays one argument, regardless of the
//! text substituted into it. The process gets a new environment, no input, `/` as its working directory, and a separate
//! process group, so that the time limit also ends its children. Children that leave the group (setsid(2)) or outlive
//! the command are not ended, because a common classic recipe schedules a job for the next day.
//!
//! A separate process runs the commands ([`helper`]), so that the daemon can drop the permission to start programs. The
//! daemon sends it requests over a socket ([`CommandHelperClient`]); the helper reads the commands from its own copy of
//! the configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::BanContext;
use super::template::{NAMES, expand, unknown};
use crate::config::Run;

mod helper;
mod helper_client;
mod notification;
mod process;
mod protocol;

#[cfg(any(test, fuzzing))]
pub(crate) use notification::fuzz as fuzz_notification;
#[cfg(any(test, fuzzing))]
pub(crate) use protocol::fuzz as fuzz_protocol;

pub use helper::serve;
pub use helper_client::CommandHelperClient;
pub use notification::{Delivery, NotificationJob, Notifications, TIME_LIMIT, serve_notifications};
pub use process::ExitOutcome;
pub(super) use process::Ran;
pub(super) use protocol::{CommandAnswer, ConfiguredCommand};

/// PATH of the commands.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the command to run is empty; write for example [\"/usr/local/sbin/on-ban\", \"$TARGET$\"]")]
    Empty,
    #[error("{0} cannot be run: the file does not exist; correct the path")]
    Missing(PathBuf),
    #[error("{0} cannot be run: it is not an executable file; check that it is a program, and run: chmod 755 {0}")]
    NotExecutable(PathBuf),
    #[error("every user can write to {0} and so gain the privileges of portsentry; run: chmod o-w {0}")]
    Writable(PathBuf),
    /// The program name depends on the ban.
    #[error("the path of the program must not contain a placeholder: {0}; use placeholders only in its arguments")]
    Macro(String),
    #[error("{0} is not a placeholder; the placeholders of a command are {NAMES}")]
    Unknown(String),
}

impl Run {
    /// Checks that the commands can be started, as far as possible without starting them.
    ///
    /// # Errors
    /// A command is empty, missing, not executable or not safe.
    pub fn check(&self) -> Result<(), RunError> {
        check(&self.command)?;
        self.check_expiry()
    }

    /// Checks only `expire_command`.
    ///
    /// # Errors
    /// As for [`Run::check`].
    pub fn check_expiry(&self) -> Result<(), RunError> {
        if self.expire_command.is_empty() { Ok(()) } else { check(&self.expire_command) }
    }
}

/// A command on one line, each word in quotes.
pub fn quoted(command: &[String]) -> String {
    command.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ")
}

fn check(command: &[String]) -> Result<(), RunError> {
    let program = command.first().filter(|program| !program.is_empty()).ok_or(RunError::Empty)?;
    if program.contains('$') {
        return Err(RunError::Macro(program.clone()));
    }
    if let Some(word) = command.iter().find_map(|argument| unknown(argument)) {
        return Err(RunError::Unknown(word.to_owned()));
    }
    check_program(command)
}

/// Checks that `command`, without macros, can be started, as far as possible without starting it. The configuration
/// accepts only absolute paths (`config/consistency.rs`), so no search path applies.
///
/// # Errors
/// The command is empty, missing, not executable or not safe.
pub fn check_program(command: &[String]) -> Result<(), RunError> {
    let program = command.first().filter(|program| !program.is_empty()).ok_or(RunError::Empty)?;
    let path = PathBuf::from(program);
    let found = fs::metadata(&path).map_err(|_| RunError::Missing(path.clone()))?;
    if !is_executable(&path) {
        return Err(RunError::NotExecutable(path));
    }
    if found.permissions().mode() & 0o002 != 0 {
        return Err(RunError::Writable(path));
    }
    Ok(())
}

/// True for a file that this process may execute with its current permissions.
fn is_executable(path: &Path) -> bool {
    path.is_file() && accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

/// Prepares `command` for `context`; also returns it as a line for the log.
fn prepare(command: &[String], context: &BanContext) -> Result<(Command, String), RunError> {
    let target = context.target.on_every_link().to_string();
    let (program, arguments) = command.split_first().ok_or(RunError::Empty)?;
    let arguments: Vec<String> = arguments.iter().map(|argument| expand(argument, &target, context)).collect();
    let line = line(std::iter::once(program).chain(&arguments));
    let mut prepared = start_of(program, &arguments);
    let (port, source) = (context.port.to_string(), context.source.to_string());
    prepared.envs([
        ("PORTSENTRY_TARGET", target.as_str()),
        ("PORTSENTRY_SOURCE", &source),
        ("PORTSENTRY_PROTOCOL", context.protocol.key()),
        ("PORTSENTRY_PORT", &port),
        ("PORTSENTRY_MODE", context.mode()),
        ("PORTSENTRY_REASON", context.reason()),
        ("PORTSENTRY_EXPIRES", &context.until()),
    ]);
    Ok((prepared, line))
}

/// `program` with `arguments`, a new environment and the working directory `/`.
fn start_of(program: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/").envs([("PATH", PATH), ("LANG", "C")]);
    command
}

/// A command on one line, for the log; words are quoted only if necessary.
pub(super) fn line<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    words.into_iter().map(|word| shell_quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word for the log, in quotes if necessary.
fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("\"{}\"", word.escape_debug()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn refusal(command: &[&str]) -> RunError {
        Run { command: words(command), ..Run::default() }.check().unwrap_err()
    }

    fn file(directory: &Path, name: &str, mode: u32) -> String {
        let path = directory.join(name);
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn unrunnable_command_is_refused_early() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str, mode| file(directory.path(), name, mode);
        assert!(matches!(refusal(&[]), RunError::Empty));
        assert!(matches!(refusal(&[""]), RunError::Empty));
        assert!(matches!(refusal(&["/no/such/program"]), RunError::Missing(_)));
        assert!(matches!(refusal(&[&path("plain", 0o644)]), RunError::NotExecutable(_)));
        assert!(matches!(refusal(&["/tmp"]), RunError::NotExecutable(_)));
        assert!(matches!(refusal(&[&path("open", 0o757)]), RunError::Writable(_)));
        assert!(matches!(refusal(&["/bin/$TARGET$"]), RunError::Macro(_)));
        assert!(matches!(refusal(&["true", "x$TAGRET$"]), RunError::Unknown(word) if word == "$TAGRET$"));
        let good = |settings: Run| Run { command: words(&["/bin/true", "$TARGET$"]), ..settings }.check();
        good(Run::default()).unwrap();
        good(Run { expire_command: words(&["/bin/true"]), ..Run::default() }).unwrap();
        let missing = Run { expire_command: words(&["/no/such"]), ..Run::default() };
        assert!(matches!(good(missing), Err(RunError::Missing(_))));
    }

    #[test]
    fn template_values_stay_in_their_argument() {
        let command = words(&["true", "$TARGET$:$PORT$", "--why=$REASON$", "$MODE$ $EXPIRES$", "$$", ""]);
        let (prepared, line) = prepare(&command, &BanContext::example("2001:db8::7".parse().unwrap())).unwrap();
        let arguments: Vec<_> = prepared.get_args().map(|word| word.to_str().unwrap()).collect();
        let expected = ["2001:db8::/64:23", "--why=TCP SYN/Normal scan", "atcp 2026-01-01T01:00:00Z", "$$", ""];
        assert_eq!(arguments, expected);
        assert_eq!(
            line,
            "true 2001:db8::/64:23 \"--why=TCP SYN/Normal scan\" \"atcp 2026-01-01T01:00:00Z\" \"$$\" \"\""
        );
    }
}
