//! Creates the file of a listening socket if no other daemon listens on it, and removes it afterwards.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use tokio::net::UnixListener;

use crate::file::{FileId, directory};

/// Maximum wait for another daemon that sets up its socket in the same directory. Any user with read access to the
/// directory can lock it, and must not prevent a daemon from creating its socket.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{path} is not a socket; remove it, or use another path with {option}")]
    NotASocket { path: PathBuf, option: &'static str },
    #[error("another portsentry answers at {path}; use another path with {option}")]
    InUse { path: PathBuf, option: &'static str },
    #[error("cannot {doing} {path}: {error}; use another path with {option}")]
    System { doing: &'static str, path: PathBuf, error: io::Error, option: &'static str },
}

/// The processes that may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Those of the owner and the group.
    Group,
    /// All; the server checks the user of each peer.
    All,
}

impl Access {
    /// The option or key that sets the path of the socket.
    fn option(self) -> &'static str {
        match self {
            Self::Group => "--socket",
            Self::All => "fleet.socket",
        }
    }
}

/// The socket's file, which is removed when this is dropped, unless another one has replaced it. A file that root has
/// created in its own directory stays, and the next start replaces it.
pub(super) struct SocketFile {
    path: PathBuf,
    id: Option<FileId>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| Some(FileId::from(&found)) == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A listening socket that is not served yet.
pub struct BoundSocket {
    listener: std::os::unix::net::UnixListener,
    file: SocketFile,
    access: Access,
}

impl BoundSocket {
    /// Listens on `path`. Creates its directory if it is missing, and replaces a socket that an earlier daemon left. A
    /// socket with a running daemon, for example in another network namespace, is kept.
    ///
    /// # Errors
    /// Another file exists at `path`, or it cannot be written.
    pub fn open(path: &Path, access: Access) -> Result<Self, ControlError> {
        let option = access.option();
        let system = |doing| move |error| ControlError::System { doing, path: path.to_owned(), error, option };
        let directory = directory(path).unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(system("create the directory of"))?;
        // Held until the socket listens: if two daemons start at once, the second finds the first one's socket in use.
        let _lock = lock(directory);
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ControlError::NotASocket { path: path.to_owned(), option });
            }
            Ok(_) if is_answered(path).map_err(system("connect to"))? => {
                return Err(ControlError::InUse { path: path.to_owned(), option });
            }
            Ok(_) => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system("replace")(error)),
                _ => {}
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("inspect")(error)),
        }
        // For a group, only the owner can connect until the mode is set.
        let mask = match access {
            Access::Group => 0o177,
            Access::All => 0o111,
        };
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
        let bound = std::os::unix::net::UnixListener::bind(path);
        rustix::process::umask(mask);
        let listener = bound.map_err(system("listen at"))?;
        listener.set_nonblocking(true).map_err(system("listen at"))?;
        if access == Access::Group {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
                .map_err(system("set the mode of"))?;
        }
        let id = std::fs::symlink_metadata(path).ok().map(|found| FileId::from(&found));
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), id }, access })
    }

    /// The listener for a server. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot poll the socket.
    pub(super) fn listen(self) -> Result<(SocketFile, UnixListener), ControlError> {
        let Self { listener, file, access } = self;
        let listener = UnixListener::from_std(listener).map_err(|error| ControlError::System {
            doing: "serve",
            path: file.path.clone(),
            error,
            option: access.option(),
        })?;
        Ok((file, listener))
    }
}

/// Locks `directory` against other daemons until the file is closed. A directory that cannot be read, or that another
/// process keeps locked, is used without a lock.
fn lock(directory: &Path) -> Option<File> {
    let directory = File::open(directory).ok()?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while flock(&directory, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
        && Instant::now() < deadline
    {
        thread::sleep(RETRY_DELAY);
    }
    Some(directory)
}

/// True if a process listens on the socket `path`.
fn is_answered(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        // The queue of a busy or stopped listener may be full.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
