//! The fleet socket: lets the fleet process submit reports to the daemon and follow this host's own bans, and nothing
//! else. That process reads untrusted data, so its lines, their rate and pending requests are limited here, and only
//! the given users may connect.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::fleet_protocol::{FleetReply, FleetRequest, MAX_FLEET_LINE_LEN, OwnBanEvent};
use super::server::write_line;
use super::socket_file::{Bound, ControlError, SocketFile};
use crate::types::{Timestamp, TokenBucket};

/// Maximum number of clients: one that reports and one that watches, and the same for a process that replaces another.
const MAX_CLIENTS: usize = 4;
/// Maximum number of requests that wait for the daemon.
const MAX_PENDING: usize = 4;
/// Maximum number of events that a client may lag behind.
const MAX_BEHIND: usize = 1_024;
/// Maximum number of requests per second of all clients; further ones wait. 25,600 reports take the daemon less than a
/// tenth of a core.
const MAX_REQUESTS_PER_SECOND: u32 = 200;
/// Timeout for a client's line.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for the daemon's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay before the next attempt if no request is permitted, or no connection was accepted.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// A request to the daemon.
#[derive(Debug)]
pub enum IncomingFleetRequest {
    /// Never [`FleetRequest::Watch`].
    Request { request: FleetRequest, reply: oneshot::Sender<FleetReply> },
    /// A request that was refused as a whole, to be named in the log.
    Refused { reason: String },
    /// Requests the own bans in force, for a client that watches from now on.
    OwnBans { reply: oneshot::Sender<Vec<OwnBanEvent>> },
}

/// State shared by the tasks of all clients.
#[derive(Clone)]
struct Shared {
    requests: mpsc::Sender<IncomingFleetRequest>,
    events: broadcast::Sender<Arc<str>>,
    rate: Arc<Mutex<TokenBucket>>,
    /// The uids that may connect.
    users: Arc<[u32]>,
    start: tokio::time::Instant,
}

/// The listening socket.
pub struct FleetServer {
    _file: SocketFile,
    requests: mpsc::Receiver<IncomingFleetRequest>,
    events: broadcast::Sender<Arc<str>>,
}

impl FleetServer {
    /// Serves a socket for processes of these `users`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn serve(bound: Bound, users: &[u32]) -> Result<Self, ControlError> {
        let (file, listener) = bound.listen()?;
        let (sender, requests) = mpsc::channel(MAX_PENDING);
        let (events, _) = broadcast::channel(MAX_BEHIND);
        let shared = Shared {
            requests: sender,
            events: events.clone(),
            rate: Arc::new(Mutex::new(TokenBucket::new(MAX_REQUESTS_PER_SECOND, Duration::from_secs(1)))),
            users: users.into(),
            start: tokio::time::Instant::now(),
        };
        tokio::spawn(accept(listener, shared));
        Ok(Self { _file: file, requests, events })
    }

    /// The next request. Cancel safe.
    pub async fn next_request(&mut self) -> IncomingFleetRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // The listening task has ended, so that no more requests can arrive.
            None => std::future::pending().await,
        }
    }

    /// Sends an event to the watching clients.
    pub fn publish(&self, event: &OwnBanEvent) {
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(event.to_line().into());
        }
    }
}

async fn accept(listener: UnixListener, shared: Shared) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Usually a lack of file descriptors: an immediate retry would keep a core busy.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let is_known = stream.peer_cred().is_ok_and(|peer| shared.users.contains(&peer.uid()));
        let refuse = |reason: String| {
            // It fits into the socket's buffer; otherwise the client does not read.
            let _ = stream.try_write(FleetReply::Refused { reason }.to_line().as_bytes());
        };
        if !is_known {
            refuse("refused: only root, the daemon's own user and the user portsentry-fleet may connect".to_owned());
            continue;
        }
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => drop(tokio::spawn(serve(stream, place, shared.clone()))),
            Err(_) => refuse(format!("refused: {MAX_CLIENTS} clients are already connected")),
        }
    }
}

/// Answers one client until it disconnects, is too slow, or ends its subscription.
async fn serve(stream: UnixStream, _place: OwnedSemaphorePermit, shared: Shared) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_FLEET_LINE_LEN as u64);
        let Ok(Ok(1..)) = timeout(LINE_TIMEOUT, bounded.read_until(b'\n', &mut line)).await else { return };
        shared.await_turn().await;
        let is_whole = line.ends_with(b"\n");
        let request = FleetRequest::parse(&line);
        let is_malformed = !is_whole || request.is_err();
        let reply = match request {
            _ if !is_whole => FleetReply::Refused {
                reason: format!(
                    "refused: the request is longer than {MAX_FLEET_LINE_LEN} bytes, or does not end \
                                 with a line feed"
                ),
            },
            Err(reason) => FleetReply::Refused { reason },
            Ok(FleetRequest::Watch {}) => return stream_events(&mut writer, &mut reader, &shared).await,
            Ok(request) => {
                shared.forward(|reply| IncomingFleetRequest::Request { request, reply }).await.unwrap_or_else(|| {
                    FleetReply::Refused { reason: "the daemon is shutting down, or did not answer in time".to_owned() }
                })
            }
        };
        if let (FleetReply::Refused { reason }, true) = (&reply, is_malformed) {
            // Without room there are others to be named.
            let _ = shared.requests.try_send(IncomingFleetRequest::Refused { reason: reason.clone() });
        }
        // The rest of a truncated line would be taken for a request.
        if write_line(&mut writer, &reply.to_line()).await.is_none() || !is_whole {
            return;
        }
    }
}

impl Shared {
    /// Waits until a request is permitted.
    async fn await_turn(&self) {
        while !self.rate.lock().await.take(Timestamp::at(self.start.elapsed())) {
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Forwards a request to the daemon; `None` if it does not answer.
    async fn forward<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> IncomingFleetRequest) -> Option<T> {
        let (reply, answered) = oneshot::channel();
        let exchange = async {
            self.requests.send(request(reply)).await.ok()?;
            answered.await.ok()
        };
        timeout(ANSWER_TIMEOUT, exchange).await.ok().flatten()
    }
}

/// Sends the own bans in force, and every change from then on, until the client disconnects or cannot keep up.
async fn stream_events(writer: &mut OwnedWriteHalf, reader: &mut BufReader<OwnedReadHalf>, shared: &Shared) {
    // Before the bans in force are read, so that no change is missed.
    let mut events = shared.events.subscribe();
    let Some(bans) = shared.forward(|reply| IncomingFleetRequest::OwnBans { reply }).await else { return };
    if write_line(writer, &FleetReply::Watching.to_line()).await.is_none() {
        return;
    }
    for ban in &bans {
        if write_line(writer, &ban.to_line()).await.is_none() {
            return;
        }
    }
    let mut end = [0];
    loop {
        let line: Arc<str> = tokio::select! {
            // A subscriber sends no more requests; any input, or its end, ends the subscription.
            _ = reader.read(&mut end) => return,
            event = events.recv() => match event {
                Ok(line) => line,
                Err(broadcast::error::RecvError::Lagged(events)) => OwnBanEvent::Lost { events }.to_line().into(),
                Err(broadcast::error::RecvError::Closed) => return,
            },
        };
        if write_line(writer, &line).await.is_none() {
            return;
        }
    }
}
