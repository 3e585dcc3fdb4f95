//! Derives values from several keys: whether bans are enforced, whether commands run, and which files must be trusted.

use std::path::Path;

use super::{BlockPolicy, Config, Mode};
use crate::sandbox::{Policy, Untrusted, only_ours};
use crate::types::Backend;

impl Mode {
    /// The name in the configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connect => "connect",
            Self::Stealth => "stealth",
            Self::Advanced => "advanced",
        }
    }
}

impl Config {
    /// True if `block = true` for at least one protocol, even if the mode of that protocol is off.
    pub fn blocks(&self) -> bool {
        [&self.tcp, &self.udp].into_iter().any(|protocol| protocol.block == BlockPolicy::Yes)
    }

    /// True if at least one protocol that is not off has this policy.
    pub fn uses(&self, policy: BlockPolicy) -> bool {
        [&self.tcp, &self.udp].into_iter().any(|protocol| protocol.mode != Mode::Off && protocol.block == policy)
    }

    /// True if one listener accepts the connections to all ports of TCP connect mode. Rules in the table of the
    /// nftables backend redirect connections to it.
    pub fn shares_decoys(&self) -> bool {
        self.tcp.mode == Mode::Connect && self.blocks() && self.block.method.contains(&Backend::Nft)
    }

    /// True if `block.run.command` is run for new bans.
    pub fn runs_commands(&self) -> bool {
        self.blocks() && self.block.method.contains(&Backend::Command) || self.uses(BlockPolicy::Run)
    }

    /// True if `block.run.expire_command` still runs for bans of an earlier run, although no command runs for new bans.
    pub fn only_undoes_commands(&self) -> bool {
        self.blocks() && !self.block.run.expire_command.is_empty() && !self.runs_commands()
    }

    /// True if digests of bans are sent to `notify.command`.
    pub fn notifies(&self) -> bool {
        !self.notify.command.is_empty()
    }

    /// The part of the sandbox policy for the daemon's directories and for the files in `settings` that it reads again.
    /// The directories are the state directory with `own_files` in it, and the directories of the sockets.
    pub fn folders(&self, settings: Option<&Path>, state_dir: &Path, socket: &Path, own_files: &[&str]) -> Policy {
        let mut policy = Policy::of_folders(state_dir, socket, own_files);
        policy.settings = settings
            .into_iter()
            .chain(self.allow.files.iter().map(|file| file.as_path()))
            .map(Path::to_owned)
            .collect();
        if self.fleet.is_joined() {
            policy.shared_socket = Some(self.fleet.socket.clone());
            let folder = self.fleet.socket.parent().map(Path::to_owned);
            policy.own.extend(folder.filter(|folder| !policy.own.contains(folder)));
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
