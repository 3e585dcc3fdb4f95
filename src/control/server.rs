//! The control socket: connections to [`Asked`], which the daemon answers. Clients are counted, lines are bounded, and
//! whoever is slow is left behind: nothing that a client does keeps the daemon, or another client, waiting.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{LONGEST_LINE, Refusal, Reply, Request};

/// Clients at one time.
const CLIENTS: usize = 32;
/// Requests that wait for the daemon at one time.
const WAITING: usize = 64;
/// Events that a slow watcher may be behind.
const BEHIND: usize = 1024;
/// How long a client may take for a line.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the daemon may take for an answer, and a client to take it.
const ANSWER: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// User.
    pub user: u32,
    /// Process; `None` where it is in a process namespace that cannot be seen from here.
    pub process: Option<i32>,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// What is wanted; never [`Request::Watch`], which is answered here.
    pub request: Request,
    /// Who wants it.
    pub peer: Peer,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Reply>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Something else stands in its place.
    #[error("{0} is no socket; take it away, or name another place with --socket")]
    NotASocket(PathBuf),
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {error}; name another place with --socket")]
    System {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
}

/// The socket; its file goes when this is dropped.
pub struct Server {
    path: PathBuf,
    asked: mpsc::Receiver<Asked>,
    events: broadcast::Sender<Arc<str>>,
}

impl Server {
    /// Listens at `path`, whose directory is made where it is missing, and takes the place of a socket that nobody answers at.
    ///
    /// # Errors
    /// Where the place is taken or may not be written.
    pub fn open(path: &Path) -> Result<Self, ControlError> {
        let system = |doing| move |error| ControlError::System { doing, path: path.to_owned(), error };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(system("make the directory of"))?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(system("replace"))?,
            Ok(_) => return Err(ControlError::NotASocket(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("look at")(error)),
        }
        // Nobody but the owner may connect until the mode is set.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(mask);
        let listener = bound.map_err(system("listen at"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(system("set the mode of"))?;
        let (requests, asked) = mpsc::channel(WAITING);
        let (events, _) = broadcast::channel(BEHIND);
        tokio::spawn(accept(listener, requests, events.clone()));
        Ok(Self { path: path.to_owned(), asked, events })
    }

    /// The next request. Safe to cancel.
    pub async fn asked(&mut self) -> Asked {
        match self.asked.recv().await {
            Some(asked) => asked,
            // The listening task has ended; there is nobody left who could ask.
            None => std::future::pending().await,
        }
    }

    /// True where somebody watches.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Tells whoever watches.
    pub fn tell(&self, event: &serde_json::Value) {
        let _ = self.events.send(format!("{event}\n").into());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Asked>, events: broadcast::Sender<Arc<str>>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, as a rule: asking again at once would burn a core.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                tokio::spawn(serve(stream, place, requests.clone(), events.clone()));
            }
            Err(_) => {
                let text = format!("{CLIENTS} clients are connected already; try again when one has gone");
                // It fits into the socket's buffer, or the client does not read.
                let _ = stream.try_write(Reply::not(Refusal::Failed, text).to_line().as_bytes());
            }
        }
    }
}

/// One client, until it hangs up, is too slow, or asks to watch and then hangs up.
async fn serve(
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
    requests: mpsc::Sender<Asked>,
    events: broadcast::Sender<Arc<str>>,
) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let peer = Peer { user: credentials.uid(), process: credentials.pid() };
    let own = rustix::process::geteuid().as_raw();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(LONGEST_LINE as u64);
        let Ok(Ok(1..)) = timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await else { return };
        let reply = if !line.ends_with(b"\n") {
            let text = format!("a request ends with a line feed after at most {LONGEST_LINE} bytes");
            // What follows is the middle of a line.
            let _ = put(&mut writer, &Reply::not(Refusal::Usage, text).to_line()).await;
            return;
        } else {
            match Request::parse(&line) {
                Err(error) => Reply::not(Refusal::Usage, error),
                Ok(request) if request.changes() && peer.user != 0 && peer.user != own => Reply::not(
                    Refusal::Denied,
                    "only root and the user that the daemon runs as may change anything; try it with sudo",
                ),
                Ok(Request::Watch) => return show(&mut writer, &mut reader, events.subscribe()).await,
                Ok(request) => ask(&requests, request, peer).await,
            }
        };
        if put(&mut writer, &reply.to_line()).await.is_none() {
            return;
        }
    }
}

async fn ask(requests: &mpsc::Sender<Asked>, request: Request, peer: Peer) -> Reply {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        requests.send(Asked { request, peer, answer }).await.ok()?;
        answered.await.ok()
    };
    match timeout(ANSWER, asked).await {
        Ok(Some(reply)) => reply,
        Ok(None) => Reply::not(Refusal::Failed, "the daemon is ending"),
        Err(_) => Reply::not(Refusal::Failed, "the daemon did not answer in time; see its log"),
    }
}

/// Sends events until the client hangs up or cannot keep up.
async fn show(
    writer: &mut OwnedWriteHalf,
    reader: &mut BufReader<OwnedReadHalf>,
    mut events: broadcast::Receiver<Arc<str>>,
) {
    if put(writer, &Reply::done().to_line()).await.is_none() {
        return;
    }
    let mut end = [0];
    loop {
        let text: Arc<str> = tokio::select! {
            // Whatever the client says now, it has nothing more to ask here.
            _ = reader.read(&mut end) => return,
            event = events.recv() => match event {
                Ok(text) => text,
                Err(broadcast::error::RecvError::Lagged(lost)) => format!("{{\"event\":\"lost\",\"events\":{lost}}}\n").into(),
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
        if put(writer, &text).await.is_none() {
            return;
        }
    }
}

/// Writes a line; `None` where the client does not take it.
async fn put(writer: &mut OwnedWriteHalf, line: &str) -> Option<()> {
    timeout(ANSWER, writer.write_all(line.as_bytes())).await.ok()?.ok()
}
