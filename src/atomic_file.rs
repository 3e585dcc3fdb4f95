//! Replaces files atomically: a temporary file in the same directory is written completely and then renamed. A reader
//! sees either the old file or the new one, even after a crash or on a full disk. Also appends whole lines to a file
//! that another program may rotate.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::file::{self, FileId};

/// The name of the temporary file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemporaryName {
    /// `.NAME.RANDOM`, for directories in which other users may write, and for files that several processes may write
    /// at once.
    Random,
    /// `NAME` and this suffix, for files with a single writer. The next write removes a file that a crash left behind.
    Suffix(&'static str),
}

/// A complete temporary file, synced to the disk but not yet renamed. It is removed on drop.
#[derive(Debug)]
pub struct AtomicFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl AtomicFile {
    /// Creates the temporary file with `mode` (less the umask), calls `fill` to write it and set its attributes, and
    /// syncs it.
    ///
    /// # Errors
    /// Any error of the system or of `fill`. `path` is then unchanged, and no temporary file is left.
    pub fn write(
        path: &Path,
        name: TemporaryName,
        mode: u32,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut prefix = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        let mut random = 0;
        match name {
            TemporaryName::Random => {
                prefix = [".".as_ref(), prefix.as_os_str(), ".".as_ref()].into_iter().collect();
                random = 12;
            }
            TemporaryName::Suffix(suffix) => {
                prefix.push(suffix);
                match fs::remove_file(path.with_file_name(&prefix)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        // Opened here because the error of tempfile's own function does not contain the system's error number.
        let open = |path: &Path| OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let mut temporary = Builder::new().prefix(&prefix).rand_bytes(random).make_in(directory(path), open)?;
        fill(temporary.as_file_mut())?;
        temporary.as_file().sync_all()?;
        Ok(Self { temporary, path: path.to_owned() })
    }

    /// Renames the temporary file to its final name, replacing any existing file, and syncs the directory.
    ///
    /// # Errors
    /// Any error of the system. The old file is unchanged, unless only the sync of the directory failed.
    pub fn replace(self) -> io::Result<()> {
        self.temporary.persist(&self.path).map_err(|error| error.error)?;
        sync_directory(&self.path)
    }

    /// Renames the temporary file to its final name only if no file has that name, even one created at the last moment.
    /// Syncs the directory.
    ///
    /// # Errors
    /// `AlreadyExists` if a file has that name, otherwise as [`AtomicFile::replace`].
    pub fn create_new(self) -> io::Result<()> {
        self.temporary.persist_noclobber(&self.path).map_err(|error| error.error)?;
        sync_directory(&self.path)
    }
}

/// Appends all of `text`, or nothing if the disk is full.
///
/// # Errors
/// Any error of the system.
pub fn append(file: &mut File, text: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    let result = file.write_all(text);
    if result.is_err() && file.metadata()?.len() > before {
        file.set_len(before)?;
    }
    result
}

/// Ends the last line if a crash or a full disk left it incomplete, so that the next line stands by itself.
///
/// # Errors
/// Any error of the system.
pub fn end_last_line(file: &mut File) -> io::Result<()> {
    let mut last = [b'\n'];
    if let Some(place) = file.metadata()?.len().checked_sub(1) {
        file.read_exact_at(&mut last, place)?;
    }
    if last == *b"\n" { Ok(()) } else { file.write_all(b"\n") }
}

/// True if `path` still refers to `file`.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => FileId::from(&open) == FileId::from(&there),
        _ => false,
    }
}

fn directory(path: &Path) -> &Path {
    file::directory(path).unwrap_or(Path::new("."))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(directory(path)).and_then(|directory| directory.sync_all()) {
        // The directory may be writable but not readable, or its file system cannot sync directories.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    const NAMES: [TemporaryName; 2] = [TemporaryName::Random, TemporaryName::Suffix(".new")];

    fn write(path: &Path, name: TemporaryName, text: &str) -> io::Result<AtomicFile> {
        AtomicFile::write(path, name, 0o640, |file| file.write_all(text.as_bytes()))
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn file_is_replaced_only_by_replace() {
        for name in NAMES {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            write(&path, name, "old").unwrap().replace().unwrap();
            let inode = fs::metadata(&path).unwrap().ino();
            let new = write(&path, name, "new").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "old");
            assert_eq!(names(directory.path()).len(), 2, "the temporary file is in the same directory");
            drop(new);
            assert_eq!(names(directory.path()), ["file"]);
            write(&path, name, "new").unwrap().replace().unwrap();
            let found = fs::metadata(&path).unwrap();
            assert_eq!((fs::read_to_string(&path).unwrap().as_str(), found.ino() != inode), ("new", true));
            assert_eq!((found.mode() & 0o7777 & !0o640, names(directory.path()).len()), (0, 1));
        }
    }

    #[test]
    fn failed_write_leaves_old_file() {
        for name in NAMES {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            fs::write(&path, "old").unwrap();
            let fill = |file: &mut File| {
                file.write_all(b"half")?;
                Err(io::Error::from_raw_os_error(28))
            };
            let error = AtomicFile::write(&path, name, 0o600, fill).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(28), "the error keeps its number");
            assert_eq!(
                (names(directory.path()), fs::read_to_string(&path).unwrap()),
                (vec!["file".into()], "old".into())
            );
            let error = write(&directory.path().join("missing/file"), name, "").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(2));
        }
    }

    #[test]
    fn create_new_refuses_existing_file_and_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let new = write(&path, TemporaryName::Random, "new").unwrap();
        fs::write(&path, "made meanwhile").unwrap();
        assert_eq!(new.create_new().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "made meanwhile");
        let link = directory.path().join("link");
        symlink("nowhere", &link).unwrap();
        let new = write(&link, TemporaryName::Random, "new").unwrap();
        assert_eq!(new.create_new().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(&path).unwrap();
        write(&path, TemporaryName::Random, "new").unwrap().create_new().unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(directory.path()).len()), ("new", 2));
    }

    #[test]
    fn leftover_of_crash_is_removed_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, precious) = (directory.path().join("file"), directory.path().join("precious"));
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, directory.path().join("file.new")).unwrap();
        write(&path, NAMES[1], "new").unwrap().replace().unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(names(directory.path()), ["file", "precious"]);
        fs::create_dir(directory.path().join("file.new")).unwrap();
        assert!(write(&path, NAMES[1], "new").is_err(), "a directory in the way is an error");
    }
}
