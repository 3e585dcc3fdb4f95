//! A text to a file, in one step: whoever reads it, a web server perhaps, sees the old page or the new one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why the page is not where it was wanted.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report to {}: {error}", path.display())]
pub struct SaveError {
    path: PathBuf,
    error: io::Error,
}

/// Writes `text` to `path`. A file that is there is replaced, with its permissions kept; behind a symbolic link it is the
/// one that the link leads to. Into what is no file, such as a pipe or /dev/stdout, it is written as it is.
///
/// # Errors
/// Whatever the system refuses; the old file is then as it was.
pub fn save(path: &Path, text: &str) -> Result<(), SaveError> {
    let failed = |error| SaveError { path: path.to_owned(), error };
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            let path = path.canonicalize().map_err(failed)?;
            replace(&path, text, Some(found.permissions())).map_err(failed)
        }
        // Replacing a device by a file would harm everybody else who uses it.
        Ok(_) => OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(failed),
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(path, text, None).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

fn replace(path: &Path, text: &str, permissions: Option<fs::Permissions>) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut hidden = OsString::from(".");
    hidden.push(name);
    // A name that nobody can guess, for directories where everybody may write.
    hidden.push(format!(".{:016x}", getrandom::u64().map_err(io::Error::other)?));
    let fresh = directory.join(hidden);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&fresh)?;
    let result = fill(&mut file, text, permissions).and_then(|()| fs::rename(&fresh, path));
    if result.is_err() {
        // What is half written is of no use to anybody.
        let _ = fs::remove_file(&fresh);
    }
    result
}

fn fill(file: &mut File, text: &str, permissions: Option<fs::Permissions>) -> io::Result<()> {
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
