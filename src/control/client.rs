//! Sends requests to the running daemon over the control socket, and reads its replies with a timeout.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Answer, ErrorKind, Failure, LineMessage as _, MAX_LINE_LEN, Request, parse_reply};
use super::status::Status;
use crate::events::json::EventRecord;
use crate::types::exit_code;

/// Timeout for the daemon's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How a user gets access to the socket of the packaged service, for queries.
pub const JOIN_GROUP: &str =
    "add the user to the group of the daemon with `sudo adduser USER portsentry`, which applies from the next login on";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot write to standard output: {0}")]
    Write(io::Error),
    #[error("portsentry is not running: no daemon answers at {0}; start it, or name its socket with --socket")]
    NotRunning(PathBuf),
    #[error(
        "portsentry is not running: no daemon answers at {0}. The bans in the kernel stay until they expire; \
         `portsentry list` shows them, `nft delete element inet portsentry blocked {{ ADDRESS }}` lifts one ban \
         (blocked6 for IPv6), `nft flush set inet portsentry blocked` lifts all. If the kernel then has no ban left, the \
         next start restores those in the ledger"
    )]
    BansStay(PathBuf),
    #[error("this user has no access to {0}; run this with sudo, or {JOIN_GROUP}")]
    NotPermitted(PathBuf),
    #[error("this user has no access to {0}; run this with sudo")]
    NotRoot(PathBuf),
    #[error("lost the connection to {path}: {error}")]
    Broken { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Unreadable(String),
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl ClientError {
    /// The error for an answer that does not fit the request.
    pub(super) fn unexpected(answer: &Answer) -> Self {
        Self::Unreadable(format!("the daemon sent an unexpected answer: {answer}; restart portsentry after an upgrade"))
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failure(Failure { kind: ErrorKind::Usage, .. }) => exit_code::USAGE,
            Self::Failure(Failure { kind: ErrorKind::Configuration, .. }) => exit_code::CONFIG,
            _ => exit_code::FAILED,
        }
    }
}

/// A connection to the daemon.
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon that listens on the socket `path`.
    ///
    /// # Errors
    /// No daemon listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path.to_owned()),
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted(path.to_owned()),
            _ => ClientError::Broken { path: path.to_owned(), error },
        })?;
        let client = Self { path: path.to_owned(), stream: BufReader::new(stream) };
        let set = client.stream.get_ref().set_read_timeout(Some(ANSWER_TIMEOUT));
        set.and_then(|()| client.stream.get_ref().set_write_timeout(Some(ANSWER_TIMEOUT)))
            .map_err(|error| client.broken(error))?;
        Ok(client)
    }

    /// Returns the daemon's answer to `request`.
    ///
    /// # Errors
    /// [`ClientError::Failure`] if it was not carried out; a broken connection.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let line = request.to_line();
        let written = self.stream.get_mut().write_all(line.as_bytes());
        // A client above the limit is disconnected immediately, after one line with the reason.
        let line = match (self.line(), written) {
            (Ok(Some(line)), _) => line,
            (_, Err(error)) => return Err(self.broken(error)),
            (Ok(None), Ok(())) => return Err(self.broken(io::ErrorKind::UnexpectedEof.into())),
            (Err(error), Ok(())) => return Err(error),
        };
        Ok(parse_reply(&line, request).map_err(ClientError::Unreadable)??)
    }

    pub fn status(&mut self) -> Result<Box<Status>, ClientError> {
        match self.ask(&Request::Status)? {
            Answer::Status(status) => Ok(status),
            other => Err(ClientError::unexpected(&other)),
        }
    }

    /// Every event of the daemon from now on.
    pub fn subscribe(mut self) -> Result<impl Iterator<Item = Result<EventRecord, ClientError>>, ClientError> {
        self.ask(&Request::Subscribe)?;
        // Events have no timeout.
        self.stream.get_ref().set_read_timeout(None).map_err(|error| self.broken(error))?;
        Ok(std::iter::from_fn(move || {
            let line = self.line().transpose()?;
            Some(line.and_then(|line| {
                serde_json::from_slice(&line).map_err(|error| {
                    ClientError::Unreadable(format!(
                        "cannot parse an event of the daemon: {error}; restart portsentry after an upgrade"
                    ))
                })
            }))
        }))
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE_LEN as u64).read_until(b'\n', &mut line);
        match read.map_err(|error| self.broken(error))? {
            0 => Ok(None),
            _ if line.ends_with(b"\n") => Ok(Some(line)),
            _ => Err(ClientError::Unreadable(
                "the daemon's answer is too long; restart portsentry after an upgrade".to_owned(),
            )),
        }
    }

    fn broken(&self, error: io::Error) -> ClientError {
        ClientError::Broken { path: self.path.clone(), error }
    }
}
