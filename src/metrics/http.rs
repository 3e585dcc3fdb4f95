//! Listens for HTTP and answers only `GET /metrics`, one small request per connection. A web server library is avoided,
//! because it would run with this program's permission to change the firewall.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

/// Maximum length of a request, in bytes.
const MAX_REQUEST_LEN: usize = 8 << 10;
/// Maximum number of simultaneous clients. Far more than scrapers, so that a burst of connections does not displace a
/// client between its connection and its request.
const MAX_CLIENTS: usize = 64;
/// Time limit for a client's request and for the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests for the metrics, each with a channel for its response.
pub struct Scrapes(mpsc::Receiver<oneshot::Sender<String>>);

impl Scrapes {
    /// Listens at `address`.
    ///
    /// # Errors
    /// Any error of the system.
    pub async fn listen(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self::on(TcpListener::bind(address).await?))
    }

    fn on(listener: TcpListener) -> Self {
        let (wanted, scrapes) = mpsc::channel(MAX_CLIENTS);
        tokio::spawn(accept(listener, wanted));
        Self(scrapes)
    }

    /// The channel for the response to the next request. Cancel-safe.
    pub async fn next(&mut self) -> oneshot::Sender<String> {
        match self.0.recv().await {
            Some(wanted) => wanted,
            None => std::future::pending().await,
        }
    }
}

async fn accept(listener: TcpListener, wanted: mpsc::Sender<oneshot::Sender<String>>) {
    let mut clients: VecDeque<Client> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Usually no descriptor is available.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        // Requests that have arrived are read before a silent client is disconnected.
        yield_now().await;
        clients.retain(|client| !client.task.is_finished());
        if clients.len() >= MAX_CLIENTS {
            // Any local user can connect and send nothing, so the oldest silent client is disconnected.
            let silent = clients.iter().position(|client| !client.has_asked.load(Ordering::Relaxed));
            clients.remove(silent.unwrap_or(0)).into_iter().for_each(|client| client.task.abort());
        }
        let has_asked = Arc::new(AtomicBool::new(false));
        let answer = timeout(REQUEST_TIMEOUT, answer(stream, Arc::clone(&has_asked), wanted.clone()));
        clients.push_back(Client { task: tokio::spawn(async move { drop(answer.await) }), has_asked });
    }
}

struct Client {
    task: JoinHandle<()>,
    /// True once its request for the metrics has arrived.
    has_asked: Arc<AtomicBool>,
}

async fn metrics(wanted: mpsc::Sender<oneshot::Sender<String>>) -> Option<String> {
    let (place, text) = oneshot::channel();
    wanted.send(place).await.ok()?;
    text.await.ok()
}

/// Reads one request and answers it. Sets `has_asked` at a valid request for the metrics.
async fn answer(
    mut stream: TcpStream,
    has_asked: Arc<AtomicBool>,
    wanted: mpsc::Sender<oneshot::Sender<String>>,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut part).await?;
        if read == 0 || request.len() + read > MAX_REQUEST_LEN {
            return Ok(());
        }
        request.extend_from_slice(part.get(..read).unwrap_or_default());
    }
    let first = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = first.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let plain = "text/plain; charset=utf-8";
    let (status, kind, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            has_asked.store(true, Ordering::Relaxed);
            match metrics(wanted).await {
                Some(text) => ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                None => ("503 Service Unavailable", plain, "the daemon is shutting down\n".to_owned()),
            }
        }
        (b"GET" | b"HEAD", _) => ("404 Not Found", plain, "the metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", plain, "use GET\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    if method == b"GET" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// The listener's response to `request`.
    fn ask(request: &str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut scrapes = Scrapes::on(listener);
            let request = request.to_owned();
            let client = tokio::task::spawn_blocking(move || {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                let mut text = String::new();
                let _ = stream.read_to_string(&mut text);
                text
            });
            tokio::select! {
                text = client => text.unwrap(),
                () = async { loop { let _ = scrapes.next().await.send("portsentry_x 1\n".to_owned()); } } => String::new(),
            }
        })
    }

    #[test]
    fn only_metrics_path_is_served() {
        let metrics = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(
            metrics.starts_with("HTTP/1.1 200 OK\r\n") && metrics.ends_with("\r\n\r\nportsentry_x 1\n"),
            "{metrics}"
        );
        assert!(ask("GET /metrics?x=1 HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(ask("HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"), "no body");
        assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    }

    #[test]
    fn overlong_request_is_disconnected() {
        assert_eq!(ask(&format!("GET /{} HTTP/1.1\r\n", "x".repeat(20_000))), "");
    }
}
