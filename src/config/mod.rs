//! Reads the configuration, portsentry.toml and classic ignore files, into a [`Config`], with built-in values for
//! missing keys. One run reports all errors, each with file, line, column, key and remedy. A configuration that cannot
//! be read stops the program; it never means "monitor nothing" or "allow all sources".
//!
//! The keys are documented in docs/configuration.md and examples/portsentry.toml, which tests compare with `schema`.

mod choices;
mod consistency;
mod document;
mod error;
pub mod flags;
mod fleet;
pub mod ignore_file;
mod parse;
mod pitfalls;
mod port_lists;
mod schema;
mod table;

pub use choices::{AckPolicy, Facility, HalfOpenPolicy, LogTarget, Mode};
pub use error::{ConfigErrors, Diagnostic};
pub use fleet::{Fleet, FleetAccept, FleetUrl, MAX_NAME_LEN, parse_fleet_name};
pub use ignore_file::read_ignore_file;
pub(crate) use parse::MAX_BANNER_LEN;
pub use parse::{
    DEFAULT_DENY_LINE, DenyLineError, check_deny_line, is_command_word, parse_expiry, parse_interface, parse_name,
    parse_network, parse_span, parse_watched,
};
pub use pitfalls::{Warning, pitfalls};
pub use schema::{
    Allow, Block, Config, Detect, Escalation, HostsDeny, Metrics, NftBlock, Notify, ProtocolConfig, Report, Run, Trap,
};

use std::fs::File;
use std::io;
use std::path::Path;

use crate::file::read_up_to;
use crate::sandbox::{Policy, Untrusted, only_ours};
use crate::types::{Backend, Response};

/// The configuration file if no file is named. If it does not exist, the built-in configuration applies.
pub const DEFAULT_CONFIG: &str = "/etc/portsentry/portsentry.toml";

impl Config {
    /// Parses `text`; error messages call the file `name`. A missing key keeps its built-in value.
    ///
    /// # Errors
    /// All errors, in the order of the file.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigErrors> {
        document::read(name, text, consistency::contradictions)
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    /// As [`Config::parse`], or the system's error if the file cannot be read.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read_text(path, "create it, or name another file")?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// The configuration file: the named one, otherwise [`DEFAULT_CONFIG`]. `None` if no file is named and the default
    /// file is known not to exist: one that is merely inaccessible must not silently become the built-in configuration.
    pub fn source(named: Option<&Path>) -> Option<&Path> {
        let default = Path::new(DEFAULT_CONFIG);
        named.or_else(|| (!matches!(default.try_exists(), Ok(false))).then_some(default))
    }

    /// Reads the file [`Config::source`]. Returns the built-in configuration if there is none.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_or_builtin(named: Option<&Path>) -> Result<Self, ConfigErrors> {
        Self::source(named).map_or_else(|| Ok(Self::default()), Self::load)
    }

    /// Every key that a file may hold, dotted (`detect.window`), in alphabetical order.
    pub fn keys() -> Vec<String> {
        document::Keys::read_from_serde::<Self>().dotted()
    }

    /// Returns this configuration if its keys do not contradict each other after changes. Error messages name `origin`.
    pub(crate) fn consistent(self, origin: &str) -> Result<Self, ConfigErrors> {
        let errors = consistency::contradictions(&self)
            .into_iter()
            .map(|(key, message)| Diagnostic {
                file: origin.to_owned(),
                line: None,
                column: None,
                key: Some(key),
                message,
            })
            .collect();
        ConfigErrors::unless_empty(errors, self)
    }

    /// True if `block = true` for at least one protocol, even if the mode of that protocol is off.
    pub fn blocks(&self) -> bool {
        [&self.tcp, &self.udp].into_iter().any(|protocol| protocol.block == Response::Block)
    }

    /// True if at least one protocol that is not off has this policy.
    pub fn uses(&self, policy: Response) -> bool {
        [&self.tcp, &self.udp].into_iter().any(|protocol| protocol.mode != Mode::Off && protocol.block == policy)
    }

    /// True if one listener accepts the connections to all ports of TCP connect mode. Rules in the table of the
    /// nftables backend redirect connections to it.
    pub fn shares_decoys(&self) -> bool {
        self.tcp.mode == Mode::Connect && self.blocks() && self.block.method.contains(&Backend::Nft)
    }

    /// True if `block.run.command` is run for new bans.
    pub fn runs_commands(&self) -> bool {
        self.blocks() && self.block.method.contains(&Backend::Command) || self.uses(Response::RunCommand)
    }

    /// True if `block.run.expire_command` still runs for bans of an earlier run, although no command runs for new bans.
    pub fn only_undoes_commands(&self) -> bool {
        self.blocks() && !self.block.run.expire_command.is_empty() && !self.runs_commands()
    }

    /// True if digests of bans are sent to `notify.command`.
    pub fn notifies(&self) -> bool {
        !self.notify.command.is_empty()
    }

    /// The part of the sandbox policy for the daemon's directories (the state directory with `own_files` in it, and the
    /// directories of the sockets), and for the files that a reload reads: `config_file` and `allow.files`.
    pub fn directories(
        &self,
        config_file: Option<&Path>,
        state_dir: &Path,
        socket: &Path,
        own_files: &[&str],
    ) -> Policy {
        let mut policy = Policy::for_directories(state_dir, socket, own_files);
        policy.config_files = config_file
            .into_iter()
            .chain(self.allow.files.iter().map(|file| file.as_path()))
            .map(Path::to_owned)
            .collect();
        if self.fleet.is_joined() {
            policy.shared_socket = Some(self.fleet.socket.clone());
            let directory = self.fleet.socket.parent().map(Path::to_owned);
            policy.own.extend(directory.filter(|directory| !policy.own.contains(directory)));
        }
        let json = self.report.json_file.as_deref();
        if let Some(name) = json.filter(|file| policy.own.iter().any(|own| file.parent() == Some(own))) {
            let name = name.file_name().unwrap_or_default().to_string_lossy();
            policy.own_files.extend([name.clone().into_owned(), format!("{name}.*"), format!("{name}-*")]);
        }
        policy
    }

    /// Checks that no other user can change the configuration in `path`, the files that it names, or its commands.
    ///
    /// # Errors
    /// Returns the first file that another user can change.
    pub fn check_ownership(&self, path: &Path) -> Result<(), Untrusted> {
        let commands = [&self.block.run.command, &self.block.run.expire_command, &self.notify.command];
        let programs = commands.into_iter().filter_map(|command| command.first()).map(Path::new);
        let files = self.allow.files.iter().map(|file| file.as_path());
        std::iter::once(path).chain(files).chain(programs).try_for_each(only_ours)
    }
}

/// The text of a file that the operator named. `missing` is the remedy if it does not exist.
fn read_text(path: &Path, missing: &str) -> Result<String, ConfigErrors> {
    /// Far above the size of any real list, but low enough to stop reading a wrong file such as /dev/zero or a capture.
    const MAX_BYTES: u64 = 16 << 20;
    let name = path.display().to_string();
    let bytes = File::open(path).and_then(|file| read_up_to(file, MAX_BYTES + 1)).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => missing,
            io::ErrorKind::PermissionDenied => "give the user that runs portsentry read permission",
            io::ErrorKind::IsADirectory => "name a file in this directory",
            _ => "check the file and its disk",
        };
        ConfigErrors::about(&name, None, format!("cannot read the file: {error}; {remedy}"))
    })?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(ConfigErrors::about(&name, None, "the file is larger than 16 MiB; name a text file".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = error.as_bytes().get(..valid).map(String::from_utf8_lossy).unwrap_or_default();
        let position = error::Lines::new(&text).position(valid);
        ConfigErrors::about(&name, Some(position), "invalid UTF-8; save the file as UTF-8".to_owned())
    })
}
