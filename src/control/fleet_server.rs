//! Serves the fleet socket, on which the fleet process submits reports to the daemon and follows this host's own bans,
//! and does nothing else. That process reads untrusted data, so the rate of its requests is limited here, and only the
//! given users may connect.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::UCred;
use tokio::sync::{Mutex, oneshot};
use tokio::time::sleep;

use super::listening_socket::{ClientConnection, ListeningSocket};
use super::socket_file::{BoundSocket, ControlError};
use crate::clock::boot_time;
use crate::fleet::protocol::{FleetReply, FleetRequest, LineMessage as _, MAX_FLEET_LINE_LEN, OwnBanEvent};
use crate::types::TokenBucket;

/// One client for reports and one for events, and the same for a process that replaces another.
const MAX_CLIENTS: usize = 4;
const MAX_PENDING: usize = 4;
/// Maximum number of requests per second of all clients; further ones wait. 25,600 reports take the daemon less than a
/// tenth of a core.
const MAX_REQUESTS_PER_SECOND: u32 = 200;
/// Delay before the next attempt if no request is permitted.
const RETRY_DELAY: Duration = Duration::from_millis(5);

/// A request to the daemon.
#[derive(Debug)]
pub enum IncomingFleetRequest {
    /// Never [`FleetRequest::Watch`].
    Request { request: FleetRequest, reply: oneshot::Sender<FleetReply> },
    /// A request that was refused as a whole, for the log.
    Refused { reason: String },
    /// Requests the own bans in force, for a client that receives events from now on.
    OwnBans { reply: oneshot::Sender<Vec<OwnBanEvent>> },
}

/// The listening socket of the fleet process.
pub type FleetServer = ListeningSocket<IncomingFleetRequest>;

impl FleetServer {
    /// Serves a socket for processes of these `users`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The runtime cannot poll the socket.
    pub fn serve(bound: BoundSocket, users: &[u32]) -> Result<Self, ControlError> {
        let refusal = |reason: &str| FleetReply::Refused { reason: format!("refused: {reason}") }.to_line();
        let full = refusal(&format!("{MAX_CLIENTS} clients are already connected"));
        let unknown = refusal("only root, the daemon's own user and the user portsentry-fleet may connect");
        let users = users.to_vec();
        let admit = move |peer: &UCred| if users.contains(&peer.uid()) { Ok(()) } else { Err(unknown.clone()) };
        let rate = Arc::new(Mutex::new(TokenBucket::new(MAX_REQUESTS_PER_SECOND, Duration::from_secs(1))));
        Self::listen(bound, (MAX_CLIENTS, MAX_PENDING), full, admit, move |client| serve(client, rate.clone()))
    }

    /// Sends an event to the watching clients.
    pub fn publish(&self, event: &OwnBanEvent) {
        self.send(|| event.to_line());
    }
}

/// Answers one client until it disconnects, is too slow, or ends its subscription. `rate` limits the requests of all
/// clients.
async fn serve(mut client: ClientConnection<IncomingFleetRequest>, rate: Arc<Mutex<TokenBucket>>) {
    while let Some(line) = client.next_line(MAX_FLEET_LINE_LEN).await {
        let request = line.and_then(FleetRequest::parse);
        while !rate.lock().await.try_take(boot_time()) {
            sleep(RETRY_DELAY).await;
        }
        let reply = match request {
            Err(reason) => {
                // If the queue is full, other refused requests already wait to be logged.
                let _ = client.requests.try_send(IncomingFleetRequest::Refused { reason: reason.clone() });
                FleetReply::Refused { reason }
            }
            Ok(FleetRequest::Watch {}) => {
                stream_events(client).await;
                return;
            }
            Ok(request) => client
                .forward(|reply| IncomingFleetRequest::Request { request, reply })
                .await
                .unwrap_or_else(|reason| FleetReply::Refused { reason: reason.to_owned() }),
        };
        if client.reply(&reply.to_line()).await.is_none() {
            return;
        }
    }
}

/// Sends the own bans in force, and every change from then on, until the client disconnects or cannot keep up.
async fn stream_events(mut client: ClientConnection<IncomingFleetRequest>) -> Option<()> {
    // Before the bans in force are read, so that no change is missed.
    let events = client.events.subscribe();
    let bans = client.forward(|reply| IncomingFleetRequest::OwnBans { reply }).await.ok()?;
    client.write(&FleetReply::Watching.to_line()).await?;
    for ban in &bans {
        client.write(&ban.to_line()).await?;
    }
    client.stream(events, |events| OwnBanEvent::Lost { events }.to_line()).await;
    Some(())
}
