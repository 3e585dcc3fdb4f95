//! Defines the errors of reading and writing hosts.deny, and the limits that they name.

use std::io;
use std::path::{Path, PathBuf};

/// Maximum size of a file that is read and written. The TCP wrappers read the whole file for every connection.
pub(crate) const MAX_FILE_LEN: u64 = 16 << 20;

/// Maximum number of attempts if other programs change the file concurrently.
pub(super) const MAX_ATTEMPTS: usize = 5;

/// Why hosts.deny cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HostsDenyError {
    #[error("{0} is a symbolic link; configure the file that it points to")]
    Link(PathBuf),
    #[error("{0} is not a regular file; move it away")]
    Kind(PathBuf),
    #[error("{0} is larger than {limit} MiB; remove unneeded lines", limit = MAX_FILE_LEN >> 20)]
    TooBig(PathBuf),
    #[error("{0} has reached its maximum size of {limit} MiB; shorten `expire`, or use the backend nft alone", limit = MAX_FILE_LEN >> 20)]
    Full(PathBuf),
    #[error("another program changed {0} during each of {MAX_ATTEMPTS} attempts to rewrite it; stop that program")]
    Unsteady(PathBuf),
    #[error("cannot {doing} {path}: {error}")]
    System { doing: &'static str, path: PathBuf, error: io::Error },
}

impl HostsDenyError {
    pub(super) fn system(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::System { doing, path, error }
    }
}
