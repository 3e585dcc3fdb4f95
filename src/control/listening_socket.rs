//! Implements both control sockets: accepts a limited number of clients, each of which sends requests as lines of
//! limited length, or subscribes to events. A slow client is disconnected and never delays the daemon or another
//! client.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, UCred};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::socket_file::{BoundSocket, ControlError, SocketFile};

/// Maximum number of events that a subscriber may lag behind.
const MAX_BEHIND: usize = 1_024;
/// Timeout for a client's line.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for the daemon's answer, and for the client to receive it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A listening socket whose clients send requests of type `R`.
pub struct ListeningSocket<R> {
    _file: SocketFile,
    requests: mpsc::Receiver<R>,
    events: broadcast::Sender<Arc<str>>,
}

impl<R: Send + 'static> ListeningSocket<R> {
    /// Answers each client with `serve`. A client that `admit` refuses receives only its error, and a client above
    /// `max_clients` receives only `full`. At most `max_pending` requests wait for the daemon. Must be called within a
    /// tokio runtime.
    pub(super) fn listen<F: Future<Output = ()> + Send + 'static>(
        bound: BoundSocket,
        (max_clients, max_pending): (usize, usize),
        full: String,
        admit: impl Fn(&UCred) -> Result<(), String> + Send + 'static,
        serve: impl Fn(ClientConnection<R>) -> F + Send + 'static,
    ) -> Result<Self, ControlError> {
        let (file, listener) = bound.listen()?;
        let (sender, requests) = mpsc::channel(max_pending);
        let (events, _) = broadcast::channel(MAX_BEHIND);
        let places = Arc::new(Semaphore::new(max_clients));
        let subscriptions = events.clone();
        tokio::spawn(async move {
            loop {
                let (stream, peer) = accept(&listener).await;
                let place = || Arc::clone(&places).try_acquire_owned().map_err(|_| full.clone());
                match admit(&peer).and_then(|()| place()) {
                    Ok(place) => {
                        let (reader, writer) = stream.into_split();
                        tokio::spawn(serve(ClientConnection {
                            peer,
                            reader: BufReader::new(reader),
                            writer,
                            line: Vec::new(),
                            requests: sender.clone(),
                            events: subscriptions.clone(),
                            _place: place,
                        }));
                    }
                    // The line fits into the empty buffer of a new connection. If it cannot be written, the client has
                    // gone.
                    Err(line) => drop(stream.try_write(line.as_bytes())),
                }
            }
        });
        Ok(Self { _file: file, requests, events })
    }

    /// The next request. Cancel safe.
    pub async fn next_request(&mut self) -> R {
        match self.requests.recv().await {
            Some(request) => request,
            // The listening task has ended, so that no more requests can arrive.
            None => pending().await,
        }
    }

    /// Sends a line to all subscribers; it is formatted only if there are any.
    pub(super) fn send(&self, line: impl FnOnce() -> String) {
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(line().into());
        }
    }
}

/// The next client, with its credentials.
async fn accept(listener: &UnixListener) -> (UnixStream, UCred) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Ok(peer) = stream.peer_cred() {
                    return (stream, peer);
                }
            }
            // Usually a lack of file descriptors: an immediate retry would keep a core busy.
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
}

/// A client's connection.
pub(super) struct ClientConnection<R> {
    pub(super) peer: UCred,
    pub(super) requests: mpsc::Sender<R>,
    pub(super) events: broadcast::Sender<Arc<str>>,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// The last line that was read.
    line: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl<R> ClientConnection<R> {
    /// The next line of at most `max_len` bytes, or its error; `None` if the client has disconnected or is too slow.
    pub(super) async fn next_line(&mut self, max_len: usize) -> Option<Result<&[u8], String>> {
        self.line.clear();
        let mut bounded = (&mut self.reader).take(max_len as u64);
        let read = timeout(LINE_TIMEOUT, bounded.read_until(b'\n', &mut self.line)).await;
        let Ok(Ok(1..)) = read else { return None };
        let error = || format!("refused: the request is longer than {max_len} bytes, or does not end with a line feed");
        Some(if self.is_whole() { Ok(&self.line) } else { Err(error()) })
    }

    fn is_whole(&self) -> bool {
        self.line.ends_with(b"\n")
    }

    /// Answers the last line; `None` if the connection is to be closed.
    pub(super) async fn reply(&mut self, reply: &str) -> Option<()> {
        self.write(reply).await?;
        // The rest of a truncated line would be taken for a request.
        self.is_whole().then_some(())
    }

    /// Writes a line; `None` if the client does not accept it.
    pub(super) async fn write(&mut self, line: &str) -> Option<()> {
        timeout(ANSWER_TIMEOUT, self.writer.write_all(line.as_bytes())).await.ok()?.ok()
    }

    /// Forwards a request to the daemon.
    pub(super) async fn forward<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> R) -> Result<T, &'static str> {
        let (reply, answered) = oneshot::channel();
        let exchange = async {
            self.requests.send(request(reply)).await.ok()?;
            answered.await.ok()
        };
        match timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the daemon is shutting down"),
            Err(_) => Err("the daemon did not answer in time; see its log"),
        }
    }

    /// Sends events until the client disconnects or cannot keep up; `lost` is the line about a number of lost events.
    pub(super) async fn stream(mut self, mut events: broadcast::Receiver<Arc<str>>, lost: impl Fn(u64) -> String) {
        let mut end = [0];
        loop {
            let line = tokio::select! {
                // A subscriber sends no more requests; any input, or its end, ends the subscription.
                _ = self.reader.read(&mut end) => return,
                event = events.recv() => match event {
                    Ok(line) => line,
                    Err(broadcast::error::RecvError::Lagged(events)) => lost(events).into(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
            };
            if self.write(&line).await.is_none() {
                return;
            }
        }
    }
}
