//! A request to the running daemon, and its reply. Blocks, but never for long.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::protocol::{LONGEST_LINE, Refusal, Reply, Request};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("portsentry is not running: nobody answers at {0}. Start it, or name its socket with --socket")]
    NotRunning(PathBuf),
    /// The socket is not ours to use.
    #[error("{0} may not be used by this user; try it with sudo")]
    NotPermitted(PathBuf),
    /// The connection broke.
    #[error("the connection to {path} broke: {error}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
    /// What came back is no reply.
    #[error("{0}")]
    Unreadable(String),
    /// The daemon said no.
    #[error("{error}")]
    Not {
        /// What kind of failure it is.
        kind: Refusal,
        /// Its sentence.
        error: String,
    },
}

/// A connection to the daemon.
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon that listens at `path`.
    ///
    /// # Errors
    /// Where nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path.to_owned()),
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted(path.to_owned()),
            _ => ClientError::Broken { path: path.to_owned(), error },
        })?;
        let client = Self { path: path.to_owned(), stream: BufReader::new(stream) };
        let set = client.stream.get_ref().set_read_timeout(Some(PATIENCE));
        set.and_then(|()| client.stream.get_ref().set_write_timeout(Some(PATIENCE))).map_err(client.broken())?;
        Ok(client)
    }

    /// What the daemon says to `request`.
    ///
    /// # Errors
    /// [`ClientError::Not`] where it says no, and a broken connection.
    pub fn ask(&mut self, request: &Request) -> Result<Map<String, Value>, ClientError> {
        let line = request.to_line();
        let written = self.stream.get_mut().write_all(line.as_bytes());
        // Whoever is hung up on at once, because there are too many, has been told why.
        let line = match (self.line(), written) {
            (Ok(Some(line)), _) => line,
            (_, Err(error)) => return Err(self.broken()(error)),
            (Ok(None), Ok(())) => return Err(self.broken()(io::ErrorKind::UnexpectedEof.into())),
            (Err(error), Ok(())) => return Err(error),
        };
        match Reply::parse(&line).map_err(ClientError::Unreadable)? {
            Reply::Done(fields) => Ok(fields),
            Reply::Not { kind, error } => Err(ClientError::Not { kind, error }),
        }
    }

    /// Every event from now on, as the daemon writes it.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn watch(mut self) -> Result<Events, ClientError> {
        self.ask(&Request::Watch)?;
        // Events come when they come.
        self.stream.get_ref().set_read_timeout(None).map_err(self.broken())?;
        Ok(Events(self))
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LONGEST_LINE as u64).read_until(b'\n', &mut line);
        match read.map_err(self.broken())? {
            0 => Ok(None),
            _ if line.ends_with(b"\n") => Ok(Some(line)),
            _ => Err(ClientError::Unreadable("the daemon's answer is too long".to_owned())),
        }
    }

    fn broken(&self) -> impl Fn(io::Error) -> ClientError + use<> {
        let path = self.path.clone();
        move |error| ClientError::Broken { path: path.clone(), error }
    }
}

/// Events of a running daemon.
pub struct Events(Client);

impl Iterator for Events {
    type Item = Result<Value, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.0.line().transpose()?;
        Some(line.and_then(|line| {
            serde_json::from_slice(&line)
                .map_err(|error| ClientError::Unreadable(format!("an event cannot be read: {error}")))
        }))
    }
}
