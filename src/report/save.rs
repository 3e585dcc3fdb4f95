//! Writes the report to a file atomically: a web server or another reader sees either the old or the new report.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::atomic_file::{AtomicFile, TemporaryName};

/// Why the report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report to {}: {error}", path.display())]
pub struct SaveError {
    path: PathBuf,
    error: io::Error,
}

/// Writes `text` to `path`. An existing file is replaced and keeps its permissions. If `path` is a symbolic link, the
/// file that it points to is replaced. A pipe or a device, such as /dev/stdout, is written to directly.
///
/// # Errors
/// The error of the system; an existing file is then unchanged.
pub fn save(path: &Path, text: &str) -> Result<(), SaveError> {
    let result = match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            path.canonicalize().and_then(|path| replace(&path, text, Some(found.permissions())))
        }
        // Replacing a device with a file would break all other programs that use it.
        Ok(_) => OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(path, text, None),
        Err(error) => Err(error),
    };
    result.map_err(|error| SaveError { path: path.to_owned(), error })
}

fn replace(path: &Path, text: &str, permissions: Option<Permissions>) -> io::Result<()> {
    AtomicFile::write(path, TemporaryName::Random, 0o666, |file| {
        permissions.map_or(Ok(()), |permissions| file.set_permissions(permissions))?;
        file.write_all(text.as_bytes())
    })?
    .replace()
}
