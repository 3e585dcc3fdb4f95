//! Defines where the daemon keeps its files and sockets.

use std::path::PathBuf;

/// Locations of files and sockets.
#[derive(Clone, Debug)]
pub struct DaemonPaths {
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    /// The configuration file, if it exists.
    pub config: PathBuf,
}
