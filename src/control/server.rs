//! Serves the control socket: passes requests of clients as [`IncomingRequest`]s to the daemon, which answers them.

use tokio::net::unix::UCred;
use tokio::sync::oneshot;

use super::listening_socket::{ClientConnection, ListeningSocket};
use super::protocol::{Answer, ErrorKind, Failure, LineMessage as _, MAX_LINE_LEN, Reply, Request, reply_to_line};
pub use super::socket_file::{Access, BoundSocket, ControlError};
use crate::events::json::{EventName, EventRecord};
use crate::types::to_line;

const MAX_CLIENTS: usize = 32;
const MAX_PENDING: usize = 64;

/// A request that waits for its reply.
#[derive(Debug)]
pub struct IncomingRequest {
    /// Never [`Request::Subscribe`], which is answered here.
    pub request: Request,
    pub peer: UCred,
    pub reply: oneshot::Sender<Reply>,
}

/// The listening socket of operators.
pub type Server = ListeningSocket<IncomingRequest>;

impl Server {
    /// Serves a socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot poll the socket.
    pub fn serve(bound: BoundSocket) -> Result<Self, ControlError> {
        let full = format!("refused: {MAX_CLIENTS} clients are already connected; try again later");
        let full = reply_to_line(&failure(ErrorKind::Refused, full));
        Self::listen(bound, (MAX_CLIENTS, MAX_PENDING), full, |_| Ok(()), serve)
    }

    /// Sends an event to all subscribers.
    pub fn publish(&self, event: impl Into<EventRecord>) {
        self.send(|| to_line(&event.into()));
    }
}

fn failure(kind: ErrorKind, error: impl ToString) -> Reply {
    Err(Failure::new(kind, error))
}

/// Answers one client until it disconnects, is too slow, or ends its subscription.
async fn serve(mut client: ClientConnection<IncomingRequest>) {
    let peer = client.peer;
    let is_privileged = [0, rustix::process::geteuid().as_raw()].contains(&peer.uid());
    while let Some(line) = client.next_line(MAX_LINE_LEN).await {
        let reply = match line.and_then(Request::parse) {
            Err(error) => failure(ErrorKind::Usage, error),
            Ok(request) if request.changes() && !is_privileged => failure(
                ErrorKind::Denied,
                "refused: only root and the daemon's user may change anything; run this with sudo",
            ),
            Ok(Request::Subscribe) => {
                let events = client.events.subscribe();
                if client.reply(&reply_to_line(&Ok(Answer::Subscribed {}))).await.is_some() {
                    client.stream(events, lost).await;
                }
                return;
            }
            Ok(request) => client
                .forward(|reply| IncomingRequest { request, peer, reply })
                .await
                .unwrap_or_else(|error| failure(ErrorKind::Failed, error)),
        };
        if client.reply(&reply_to_line(&reply)).await.is_none() {
            return;
        }
    }
}

fn lost(events: u64) -> String {
    to_line(&EventRecord { event: EventName::Lost, events: Some(events), ..EventRecord::default() })
}
