//! Defines what a process needs after its start, so that the sandbox drops everything else.

use std::path::{Path, PathBuf};

use crate::file::directory;

/// The resources that the program needs after its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Own directories. Missing ones are created, and they are given to the user of the process.
    pub own: Vec<PathBuf>,
    /// Names of the files that it creates in them; a trailing `*` matches any suffix.
    pub own_files: Vec<String>,
    /// The socket that it creates in one of them.
    pub own_socket: Option<PathBuf>,
    /// Another socket, used by processes of other users.
    pub shared_socket: Option<PathBuf>,
    /// Directories in which it creates, writes, renames and removes files.
    pub write: Vec<PathBuf>,
    /// Configuration files, which it reads again when they are replaced.
    pub config_files: Vec<PathBuf>,
    /// Files, and directories with their contents, that it reads if possible.
    pub read: Vec<PathBuf>,
    /// True if it listens on ports below 1024.
    pub low_ports: bool,
    /// TCP ports on which it listens.
    pub tcp_ports: Vec<u16>,
    /// True for name look-ups, which load libraries.
    pub names: bool,
    /// The process to which the policy applies.
    pub process: Process,
    /// True if it replaces files of other users, which keep their owner.
    pub others_files: bool,
    /// Reason to stay root; `None` if the own user is sufficient.
    pub root: Option<&'static str>,
}

impl Policy {
    /// A policy with only the directories of a daemon's state and of its control socket. `files` are the names of the
    /// files that it creates in them ([`Policy::own_files`]).
    pub fn for_directories(state_dir: &Path, socket: &Path, files: &[&str]) -> Self {
        Self {
            own: std::iter::once(state_dir).chain(directory(socket)).map(Path::to_owned).collect(),
            own_files: files.iter().map(|&name| name.to_owned()).collect(),
            own_socket: Some(socket.to_owned()),
            ..Self::default()
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Process {
    /// Reads packets.
    #[default]
    Daemon,
    /// Runs the administrator's commands, which inherit the sandbox.
    Commands,
    /// Writes files that only root can write.
    Files,
}
