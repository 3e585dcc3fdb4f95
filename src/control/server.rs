//! The control socket: connections become [`IncomingRequest`]s, which the daemon answers. Clients are counted and lines are
//! bounded; a slow client is disconnected and never delays the daemon or another client.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, UCred};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{Answer, ErrorKind, Failure, MAX_LINE_LEN, Reply, Request, reply_to_line};
use crate::events::json::EventRecord;

/// Clients at one time.
const MAX_CLIENTS: usize = 32;
/// Requests that wait for the daemon at one time.
const MAX_PENDING: usize = 64;
/// Events that a subscriber may be behind.
const MAX_BEHIND: usize = 1024;
/// How long a client may take for a line.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the daemon may take for an answer, and a client to take it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long another daemon may take to set up its socket in the same folder. Any user with read access to the folder can lock it, and
/// must not keep a daemon from its socket.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it waits before it tries again.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// A request that waits for its reply.
#[derive(Debug)]
pub struct IncomingRequest {
    /// Never [`Request::Subscribe`], which is answered here.
    pub request: Request,
    pub peer: UCred,
    pub reply: oneshot::Sender<Reply>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{0} is no socket; take it away, or name another place with --socket")]
    NotASocket(PathBuf),
    #[error("another portsentry answers at {0}; name another place with --socket")]
    InUse(PathBuf),
    #[error("cannot {doing} {path}: {error}; name another place with --socket")]
    System { doing: &'static str, path: PathBuf, error: io::Error },
}

/// The socket's file, which is removed when this is dropped, unless another one has taken its place. One that root has made
/// in a folder of its own stays, and the next start replaces it.
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| Some(id(&found)) == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A socket that listens, but is not served yet.
pub struct Bound {
    listener: std::os::unix::net::UnixListener,
    file: SocketFile,
}

impl Bound {
    /// Listens at `path`. Makes its directory where it is missing, and replaces a socket that an earlier daemon left behind.
    /// One at which a daemon answers, that of another network namespace for example, stays.
    ///
    /// # Errors
    /// Where something else is at `path`, or it cannot be written.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let system = |doing| move |error| ControlError::System { doing, path: path.to_owned(), error };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory).map_err(system("make the directory of"))?;
        // Held until it listens: of two daemons that start at once, the second finds the first one's socket answered.
        let _lock = lock(directory);
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(ControlError::NotASocket(path.to_owned())),
            Ok(_) if is_answered(path).map_err(system("connect to"))? => {
                return Err(ControlError::InUse(path.to_owned()));
            }
            Ok(_) => match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system("replace")(error)),
                _ => {}
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("look at")(error)),
        }
        // Only the owner may connect until the mode is set.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = std::os::unix::net::UnixListener::bind(path);
        rustix::process::umask(mask);
        let listener = bound.map_err(system("listen at"))?;
        listener.set_nonblocking(true).map_err(system("listen at"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(system("set the mode of"))?;
        let id = std::fs::symlink_metadata(path).ok().map(|found| id(&found));
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), id } })
    }
}

/// The control socket that is served.
pub struct Server {
    _file: SocketFile,
    requests: mpsc::Receiver<IncomingRequest>,
    events: broadcast::Sender<Arc<str>>,
}

impl Server {
    /// Serves a socket. Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the runtime cannot watch it.
    pub fn serve(bound: Bound) -> Result<Self, ControlError> {
        let Bound { listener, file } = bound;
        let listener = UnixListener::from_std(listener).map_err(|error| ControlError::System {
            doing: "serve",
            path: file.path.clone(),
            error,
        })?;
        let (sender, requests) = mpsc::channel(MAX_PENDING);
        let (events, _) = broadcast::channel(MAX_BEHIND);
        tokio::spawn(accept(listener, sender, events.clone()));
        Ok(Self { _file: file, requests, events })
    }

    /// The next request. Safe to cancel.
    pub async fn next_request(&mut self) -> IncomingRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // The listening task has ended: no request can come any more.
            None => std::future::pending().await,
        }
    }

    /// Sends an event to all subscribers; it is made only where there is one.
    pub fn publish(&self, event: impl Into<EventRecord>) {
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(format!("{}\n", event.into().to_json()).into());
        }
    }
}

fn id(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Locks `directory` against other daemons until the file is closed. One that cannot be read, or that another process keeps
/// locked, is used without.
fn lock(directory: &Path) -> Option<File> {
    let folder = File::open(directory).ok()?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    while flock(&folder, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
        && Instant::now() < deadline
    {
        thread::sleep(RETRY_DELAY);
    }
    Some(folder)
}

/// True where a process listens at the socket `path`.
fn is_answered(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        // A listener that is too busy, or stopped, has a full queue.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<IncomingRequest>, events: broadcast::Sender<Arc<str>>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, as a rule: a retry at once would burn a core.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                tokio::spawn(serve(stream, place, requests.clone(), events.clone()));
            }
            Err(_) => {
                let text = format!("{MAX_CLIENTS} clients are connected already; try again when one has gone");
                // It fits into the socket's buffer, or the client does not read.
                let _ = stream.try_write(reply_to_line(&failure(ErrorKind::Refused, text)).as_bytes());
            }
        }
    }
}

fn failure(kind: ErrorKind, error: impl ToString) -> Reply {
    Err(Failure::new(kind, error))
}

/// Answers one client until it disconnects, is too slow, or ends its subscription.
async fn serve(
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
    requests: mpsc::Sender<IncomingRequest>,
    events: broadcast::Sender<Arc<str>>,
) {
    let Ok(peer) = stream.peer_cred() else { return };
    let is_privileged = [0, rustix::process::geteuid().as_raw()].contains(&peer.uid());
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_LINE_LEN as u64);
        let Ok(Ok(1..)) = timeout(LINE_TIMEOUT, bounded.read_until(b'\n', &mut line)).await else { return };
        let is_whole = line.ends_with(b"\n");
        let reply = match Request::parse(&line) {
            _ if !is_whole => {
                failure(ErrorKind::Usage, format!("a request ends with a line feed after at most {MAX_LINE_LEN} bytes"))
            }
            Err(error) => failure(ErrorKind::Usage, error),
            Ok(request) if request.changes() && !is_privileged => failure(
                ErrorKind::Denied,
                "only root and the user that the daemon runs as may change anything; try it with sudo",
            ),
            Ok(Request::Subscribe) => return stream_events(&mut writer, &mut reader, events.subscribe()).await,
            Ok(request) => forward(&requests, request, peer).await,
        };
        // After a line that was cut, the rest of it would be taken for a request.
        if write_line(&mut writer, &reply_to_line(&reply)).await.is_none() || !is_whole {
            return;
        }
    }
}

/// Has the daemon answer.
async fn forward(requests: &mpsc::Sender<IncomingRequest>, request: Request, peer: UCred) -> Reply {
    let (reply, answered) = oneshot::channel();
    let exchange = async {
        requests.send(IncomingRequest { request, peer, reply }).await.ok()?;
        answered.await.ok()
    };
    match timeout(ANSWER_TIMEOUT, exchange).await {
        Ok(Some(reply)) => reply,
        Ok(None) => failure(ErrorKind::Failed, "the daemon is ending"),
        Err(_) => failure(ErrorKind::Failed, "the daemon did not answer in time; see its log"),
    }
}

/// Sends events until the client disconnects or cannot keep up.
async fn stream_events(
    writer: &mut OwnedWriteHalf,
    reader: &mut BufReader<OwnedReadHalf>,
    mut events: broadcast::Receiver<Arc<str>>,
) {
    let mut end = [0];
    let mut line: Arc<str> = reply_to_line(&Ok(Answer::Subscribed {})).into();
    while write_line(writer, &line).await.is_some() {
        line = tokio::select! {
            // A subscriber has no more requests; what it sends, or its end, ends the subscription.
            _ = reader.read(&mut end) => return,
            event = events.recv() => match event {
                Ok(line) => line,
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    let lost = EventRecord { event: "lost".into(), events: Some(lost), ..EventRecord::default() };
                    format!("{}\n", lost.to_json()).into()
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
    }
}

/// Writes a line; `None` where the client does not take it.
async fn write_line(writer: &mut OwnedWriteHalf, line: &str) -> Option<()> {
    timeout(ANSWER_TIMEOUT, writer.write_all(line.as_bytes())).await.ok()?.ok()
}
