//! Reads the files to translate and writes the result: the only part that touches the system.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::diagnostics::ImportError;
use super::{Import, MAX_LEN, Source, Sources, translate};
use crate::atomic_file::{AtomicFile, TemporaryName};

/// The files that an operator names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// `portsentry.conf`; `None`: those of Debian, with the modes' file if there is one.
    pub config: Option<PathBuf>,
    /// `/etc/default/portsentry`.
    pub defaults: Option<PathBuf>,
    /// Ignore files instead of the one that the configuration names.
    pub ignore: Vec<PathBuf>,
}

const CONFIG: &str = "/etc/portsentry/portsentry.conf";
const DEFAULTS: &str = "/etc/default/portsentry";

/// Reads `files` and translates them.
///
/// # Errors
/// A file that cannot be read, and as [`translate`].
pub fn read(files: &Files) -> Result<Import, ImportError> {
    let config = source(files.config.as_deref().unwrap_or(Path::new(CONFIG)))?;
    let defaults = match (&files.defaults, &files.config) {
        (Some(named), _) => Some(source(named)?),
        (None, None) if !matches!(Path::new(DEFAULTS).try_exists(), Ok(false)) => Some(source(Path::new(DEFAULTS))?),
        (None, _) => None,
    };
    let ignore = files.ignore.iter().map(|path| source(path)).collect::<Result<_, _>>()?;
    translate(&Sources { config, defaults, ignore }, &|path| {
        // Opening a FIFO would wait for its writer without end.
        let is_file = path.metadata()?.is_file();
        if is_file { bytes(path) } else { Err(io::Error::other("it is no regular file")) }
    })
}

fn source(path: &Path) -> Result<Source, ImportError> {
    let bytes = bytes(path).map_err(|error| ImportError::Read { path: path.to_owned(), error })?;
    Ok(Source { name: path.display().to_string(), bytes })
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    // One byte more than is taken tells that there is more.
    let limit = u64::try_from(MAX_LEN).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes `text` to `path`, which must not exist unless `force` says to replace it; a reader sees the old file or the
/// new one, whole.
///
/// # Errors
/// The system's error; nothing is left behind.
pub fn write(path: &Path, text: &str, force: bool) -> Result<(), ImportError> {
    // Readable as the umask has it, and not only by its owner.
    let write = || -> io::Result<()> {
        let file = AtomicFile::write(path, TemporaryName::Random, 0o666, |file| file.write_all(text.as_bytes()))?;
        if force { file.replace() } else { file.create_new() }
    };
    write().map_err(|error| ImportError::Write { path: path.to_owned(), error })
}
