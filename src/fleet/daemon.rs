//! Manages the two connections to the daemon's fleet socket: one for requests, and one on which the daemon reports its
//! own bans.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::protocol::{FleetReply, FleetRequest, LineMessage as _, MAX_FLEET_LINE_LEN, OwnBanEvent};

/// Timeout for an answer from the daemon.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Delay before the connection for own bans is opened again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Maximum number of queued changes of own bans.
const MAX_EVENTS: usize = 256;

/// The connection for requests. Opened by the first request, and again by the next request after it has broken.
pub(super) struct Daemon {
    path: PathBuf,
    stream: Option<BufReader<UnixStream>>,
    is_away: bool,
    has_returned: bool,
}

impl Daemon {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), stream: None, is_away: false, has_returned: false }
    }

    /// Sends a request to the daemon. Returns false if there is no answer, and logs the first such failure. The next
    /// request connects again.
    pub(super) async fn ask(&mut self, request: &FleetRequest) -> bool {
        let answer = match timeout(ANSWER_TIMEOUT, self.exchange(request)).await {
            Ok(Ok(FleetReply::Refused { reason })) => Err(reason),
            Ok(answer) => answer.map(drop).map_err(|error| error.to_string()),
            Err(_) => Err("the daemon does not answer".to_owned()),
        };
        match answer {
            Ok(()) if std::mem::take(&mut self.is_away) => {
                tracing::info!("adminalert: fleet: the daemon accepts reports again");
                self.has_returned = true;
            }
            Ok(()) => {}
            Err(error) => {
                self.stream = None;
                if !std::mem::replace(&mut self.is_away, true) {
                    let path = self.path.display();
                    tracing::error!(
                        "adminalert: fleet: the daemon at {path} does not accept reports: {error}; start portsentry. \
                         Until then reports of other hosts block nothing"
                    );
                }
            }
        }
        !self.is_away
    }

    /// Returns true once after the daemon was unreachable, because it has missed reports in the meantime.
    pub(super) fn has_returned(&mut self) -> bool {
        std::mem::take(&mut self.has_returned)
    }

    async fn exchange(&mut self, request: &FleetRequest) -> io::Result<FleetReply> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            stream => stream.insert(BufReader::new(UnixStream::connect(&self.path).await?)),
        };
        stream.write_all(request.to_line().as_bytes()).await?;
        let mut line = Vec::new();
        read_line(stream, &mut line).await?;
        FleetReply::parse(&line).map_err(io::Error::other)
    }
}

/// A change of own bans, or of the connection that reports them.
#[derive(Debug)]
pub(super) enum OwnBanUpdate {
    /// The connection is new: the daemon now reports all bans in force, and then every change.
    Connected,
    Changed(OwnBanEvent),
}

/// Receives the daemon's own bans until the receiver is dropped.
pub(super) fn watch(path: &Path) -> mpsc::Receiver<OwnBanUpdate> {
    let (sender, receiver) = mpsc::channel(MAX_EVENTS);
    let path = path.to_owned();
    tokio::spawn(async move {
        while !sender.is_closed() {
            // The error is not logged here, because requests fail with the same one.
            let _ = follow(&path, &sender).await;
            sleep(RETRY_DELAY).await;
        }
    });
    receiver
}

async fn follow(path: &Path, updates: &mpsc::Sender<OwnBanUpdate>) -> io::Result<()> {
    let mut stream = BufReader::new(UnixStream::connect(path).await?);
    stream.write_all(FleetRequest::Watch {}.to_line().as_bytes()).await?;
    let mut line = Vec::new();
    read_line(&mut stream, &mut line).await?;
    if FleetReply::parse(&line) != Ok(FleetReply::Watching) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let send = async |one| updates.send(one).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    send(OwnBanUpdate::Connected).await?;
    let mut is_reported = false;
    loop {
        read_line(&mut stream, &mut line).await?;
        match OwnBanEvent::parse(&line) {
            // The daemon reports the bans in force again on the next connection.
            Ok(OwnBanEvent::Lost { .. }) => return Ok(()),
            Ok(event) => send(OwnBanUpdate::Changed(event)).await?,
            Err(error) if !is_reported => {
                tracing::error!("adminalert: fleet: {error}");
                is_reported = true;
            }
            Err(_) => {}
        }
    }
}

/// Reads a complete line; fails if the stream ends before it or the line is too long.
async fn read_line(stream: &mut BufReader<UnixStream>, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    stream.take(MAX_FLEET_LINE_LEN as u64).read_until(b'\n', line).await?;
    if line.ends_with(b"\n") { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BanTarget;

    #[tokio::test]
    async fn unreadable_event_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let mut updates = watch(&path);
        let (mut daemon, _) = listener.accept().await.unwrap();
        let target: BanTarget = "192.0.2.7".parse().unwrap();
        let ban =
            r#"{"event":"ban","target":"192.0.2.8","remaining_s":9,"grade":"proven","distinct_ports":5,"class":"new"}"#;
        let lift = OwnBanEvent::Lift { target };
        let lines = format!("{}{ban}\n{}", FleetReply::Watching.to_line(), lift.to_line());
        daemon.write_all(lines.as_bytes()).await.unwrap();
        assert!(matches!(updates.recv().await, Some(OwnBanUpdate::Connected)));
        assert!(matches!(updates.recv().await, Some(OwnBanUpdate::Changed(event)) if event == lift));
    }
}
