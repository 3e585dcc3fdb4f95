//! The control socket: requests of clients become [`IncomingRequest`]s, which the daemon answers. The number of clients
//! and the length of lines are limited; a slow client is disconnected and never delays the daemon or another client.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, UCred};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::protocol::{Answer, ErrorKind, Failure, MAX_LINE_LEN, Reply, Request, reply_to_line};
use super::socket_file::SocketFile;
pub use super::socket_file::{Access, Bound, ControlError};
use crate::events::json::EventRecord;

/// Maximum number of clients.
const MAX_CLIENTS: usize = 32;
/// Maximum number of requests that wait for the daemon.
const MAX_PENDING: usize = 64;
/// Maximum number of events that a subscriber may lag behind.
const MAX_BEHIND: usize = 1024;
/// Timeout for a client's line.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for the daemon's answer, and for the client to receive it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A request that waits for its reply.
#[derive(Debug)]
pub struct IncomingRequest {
    /// Never [`Request::Subscribe`], which is answered here.
    pub request: Request,
    pub peer: UCred,
    pub reply: oneshot::Sender<Reply>,
}

/// The listening socket of operators.
pub struct Server {
    _file: SocketFile,
    requests: mpsc::Receiver<IncomingRequest>,
    events: broadcast::Sender<Arc<str>>,
}

impl Server {
    /// Serves a socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn serve(bound: Bound) -> Result<Self, ControlError> {
        let (file, listener) = bound.listen()?;
        let (sender, requests) = mpsc::channel(MAX_PENDING);
        let (events, _) = broadcast::channel(MAX_BEHIND);
        tokio::spawn(accept(listener, sender, events.clone()));
        Ok(Self { _file: file, requests, events })
    }

    /// The next request. Cancel safe.
    pub async fn next_request(&mut self) -> IncomingRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // The listening task has ended, so that no more requests can arrive.
            None => std::future::pending().await,
        }
    }

    /// Sends an event to all subscribers; it is serialised only if there are any.
    pub fn publish(&self, event: impl Into<EventRecord>) {
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(format!("{}\n", event.into().to_json()).into());
        }
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<IncomingRequest>, events: broadcast::Sender<Arc<str>>) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Usually a lack of file descriptors: an immediate retry would keep a core busy.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                tokio::spawn(serve(stream, place, requests.clone(), events.clone()));
            }
            Err(_) => {
                let text = format!("refused: {MAX_CLIENTS} clients are already connected; try again later");
                // It fits into the socket's buffer; otherwise the client does not read.
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
            _ if !is_whole => failure(
                ErrorKind::Usage,
                format!(
                    "refused: the request is longer than {MAX_LINE_LEN} bytes, or does \
                                                   not end with a line feed"
                ),
            ),
            Err(error) => failure(ErrorKind::Usage, error),
            Ok(request) if request.changes() && !is_privileged => failure(
                ErrorKind::Denied,
                "refused: only root and the daemon's user may change anything; run this with sudo",
            ),
            Ok(Request::Subscribe) => return stream_events(&mut writer, &mut reader, events.subscribe()).await,
            Ok(request) => forward(&requests, request, peer).await,
        };
        // The rest of a truncated line would be taken for a request.
        if write_line(&mut writer, &reply_to_line(&reply)).await.is_none() || !is_whole {
            return;
        }
    }
}

/// Forwards a request to the daemon.
async fn forward(requests: &mpsc::Sender<IncomingRequest>, request: Request, peer: UCred) -> Reply {
    let (reply, answered) = oneshot::channel();
    let exchange = async {
        requests.send(IncomingRequest { request, peer, reply }).await.ok()?;
        answered.await.ok()
    };
    match timeout(ANSWER_TIMEOUT, exchange).await {
        Ok(Some(reply)) => reply,
        Ok(None) => failure(ErrorKind::Failed, "the daemon is shutting down"),
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
            // A subscriber sends no more requests; any input, or its end, ends the subscription.
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

/// Writes a line; `None` if the client does not accept it.
pub(super) async fn write_line(writer: &mut OwnedWriteHalf, line: &str) -> Option<()> {
    timeout(ANSWER_TIMEOUT, writer.write_all(line.as_bytes())).await.ok()?.ok()
}
