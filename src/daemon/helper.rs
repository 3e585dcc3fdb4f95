//! Starts helper processes, which are instances of this program that do work for which the daemon has no permission.
//! Before the daemon drops its privileges, it starts each helper with its initial permissions. The helper reads the
//! configuration itself, drops all permissions that its work does not need, and then handles typed requests of the
//! daemon.
//!
//! Daemon and helper are connected by a socket. When the daemon ends for any reason, its end is closed and the helper
//! exits. When the helper ends, the daemon continues without it, because it has given up the permission to start
//! another one.
//!
//! Changes of the configuration that a helper has read need a restart of the daemon. Reading the configuration twice is
//! safe, because no other user could change it at either time.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::error::DaemonError;
use crate::config::Config;
use crate::enforce::helper_socket::{pair, receive_before};
use crate::sandbox::SandboxState;

/// Argument after the configuration file that disables the sandbox of the helper.
const NO_SANDBOX: &str = "--no-sandbox";

/// The program itself, even if its file was replaced.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Timeout for the helper's start. It reads a handful of files.
const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// Maximum length of the greeting, in bytes.
const MAX_GREETING_LEN: usize = 32 << 10;

/// The kind of a helper, by its work. Its text is the helper's first argument. Only the daemon passes it, so it is not
/// documented in the help and the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub(super) enum HelperKind {
    /// Runs the configured commands.
    #[strum(serialize = "--run-commands-of")]
    Commands,
    /// Writes hosts.deny, which only root can write.
    #[strum(serialize = "--write-hosts-deny-of")]
    HostsDeny,
    /// Opens `report.json_file`, which only root can write.
    #[strum(serialize = "--open-json-file-of")]
    JsonFile,
    /// Does both.
    #[strum(serialize = "--write-files-of")]
    BothFiles,
}

impl HelperKind {
    /// Description of the process, used after "the process that".
    fn does(self) -> &'static str {
        match self {
            Self::Commands => "runs commands",
            Self::HostsDeny | Self::JsonFile | Self::BothFiles => "writes root's files",
        }
    }
}

/// A helper that is ready.
pub(super) struct Helper {
    pub(super) socket: OwnedFd,
    pub(super) child: Child,
    /// Its sandbox state, as shown by `status`.
    pub(super) sandbox: SandboxState,
    pub(super) warnings: Vec<String>,
}

/// The first message of a helper: its sandbox state and warnings to report, or why it cannot do its work.
pub(super) type Greeting = Result<(SandboxState, Vec<String>), String>;

impl Helper {
    /// Starts the helper with the current permissions of this process, and with `output` as its standard output.
    ///
    /// # Errors
    /// It cannot be started, or reports that it cannot do its work.
    pub(super) fn start(
        work: HelperKind,
        config_path: &Path,
        sandboxed: bool,
        output: Stdio,
    ) -> Result<Self, DaemonError> {
        let unable = DaemonError::system(match work {
            HelperKind::Commands => "start the process that runs commands",
            _ => "start the process that writes root's files",
        });
        let (socket, theirs) = pair().map_err(&unable)?;
        let mut command = Command::new(OWN_PROGRAM);
        command.arg0("portsentry").arg(<&str>::from(work)).arg(config_path).args((!sandboxed).then_some(NO_SANDBOX));
        command.env_clear().stdin(Stdio::from(theirs)).stdout(output);
        let mut child = command.spawn().map_err(&unable)?;
        // Copies of the other socket ends would keep the sockets open.
        drop(command);
        let process = child.id();
        match greeting(&socket, work.does()) {
            Ok((sandbox, warnings)) => {
                let named = |text| format!("process {process}, which {}: {text}", work.does());
                let warnings = warnings.into_iter().map(named).collect();
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

/// Reads the greeting. If none arrives, the error says so.
fn greeting(socket: &OwnedFd, does: &str) -> Greeting {
    match receive_before(socket, MAX_GREETING_LEN, Instant::now() + GREETING_TIMEOUT) {
        Ok(Some(greeting)) => greeting,
        Ok(None) => Err(format!("the process that {does} ended during its start")),
        Err(error) => Err(format!("the process that {does} did not start in time: {error}")),
    }
}

/// The command line of a helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperArgs {
    pub(super) work: HelperKind,
    pub(super) config_path: PathBuf,
    pub(super) sandboxed: bool,
}

impl HelperArgs {
    /// Parses a command line, including the program name; `None` if it is not a helper's command line.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let words: Vec<OsString> = words.into_iter().take(5).collect();
        let (word, path, sandboxed) = match words.as_slice() {
            [_, word, path] => (word, path, true),
            [_, word, path, flag] if flag == NO_SANDBOX => (word, path, false),
            _ => return None,
        };
        Some(Self { work: word.to_str()?.parse().ok()?, config_path: path.into(), sandboxed })
    }
}

/// Loads the configuration at `path`, if no other user can change it.
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
        for work in <HelperKind as strum::VariantArray>::VARIANTS.iter().copied() {
            let word = work.into();
            let args = |sandboxed| HelperArgs { work, config_path: "/etc/p.toml".into(), sandboxed };
            assert_eq!(part(&["portsentry", word, "/etc/p.toml"]), Some(args(true)));
            assert_eq!(part(&["portsentry", word, "/etc/p.toml", NO_SANDBOX]), Some(args(false)));
            for other in [&["portsentry", word][..], &["portsentry", word, "a", "b"], &["a", "b", word]] {
                assert_eq!(part(other), None, "{other:?}");
            }
            assert_eq!(part(&["portsentry", word, "a", NO_SANDBOX, "b"]), None);
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
        assert!(result(None).unwrap_err().contains("ended during its start"));
        assert!(result(Some(b"\x02garbage")).unwrap_err().contains("ended during its start"));
        assert_eq!(result(Some(br#"{"Err":"block.run: no"}"#)).unwrap_err(), "block.run: no");
        let sandbox = SandboxState { uid: 7, ..SandboxState::default() };
        let ready = Greeting::Ok((sandbox, vec!["one".to_owned()]));
        assert_eq!(result(Some(&serde_json::to_vec(&ready).unwrap())), ready);
    }
}
