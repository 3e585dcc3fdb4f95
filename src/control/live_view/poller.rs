//! Collects the data of the live view, with one thread each: the daemon's status and answers, its events, the bans of
//! kernel and ledger, and signals. Reconnects when the daemon is restarted.

use std::cmp::Ordering;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{SignalKind, signal};

use crate::clock::WallTime;
use crate::control::ban_info::BanInfo;
use crate::control::client::{Client, ClientError};
use crate::control::format::compact_ports;
use crate::control::list;
use crate::control::protocol::{Answer, Request};
use crate::control::status::Status;
use crate::events::json::EventRecord;
use crate::types::BanTarget;

/// Interval between two status requests, and between two connection attempts.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which bans are read; longer if reading is slow, so that it takes at most a twentieth of the time.
const BANS_INTERVAL: Duration = Duration::from_secs(5);
const LOAD_DIVISOR: u32 = 20;

/// Maximum number of bans shown: those that expire first.
const MAX_BANS: usize = 10_000;

/// Maximum number of pending messages. A full queue blocks the thread; the daemon then drops events for this
/// subscriber.
const MAX_PENDING: usize = 4_096;

/// A ban in the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BanRow {
    pub(super) target: BanTarget,
    pub(super) class: String,
    pub(super) ports: String,
    /// Number of bans of the target, including this one; `None` if unknown.
    pub(super) bans: Option<u32>,
    /// `None`: never.
    pub(super) until: Option<SystemTime>,
    /// True if it is in the ledger but not in the kernel.
    pub(super) lacking: bool,
}

impl From<&BanInfo> for BanRow {
    fn from(ban: &BanInfo) -> Self {
        Self {
            target: ban.target,
            class: ban.author.map_or("unknown", |author| author.label(ban.class)).to_owned(),
            ports: compact_ports(ban.ports()),
            bans: ban.strikes.map(NonZeroU32::get),
            until: ban.expires.0.map(|WallTime(end)| end),
            lacking: ban.in_kernel == Some(false),
        }
    }
}

impl BanRow {
    /// Orders by expiry, permanent ones last.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let end = |ban: &Self| (ban.until.is_none(), ban.until);
        end(self).cmp(&end(other)).then_with(|| self.target.cmp(&other.target))
    }

    pub(super) fn left(&self, now: SystemTime) -> Option<Duration> {
        self.until.map(|until| until.duration_since(now).unwrap_or_default())
    }
}

/// An update of the view.
#[derive(Debug)]
pub(super) enum Message {
    Status(Box<Status>),
    Event(Box<EventRecord>),
    /// The bans in force, and their total number.
    Bans(Vec<BanRow>, usize),
    /// A note about the bans.
    Note(String),
    Answer(Request, Result<Answer, String>),
    /// The daemon cannot be reached.
    Lost(String),
    /// A signal ends the program.
    End,
}

/// The threads and their queues.
pub(super) struct Poller {
    pub(super) messages: Receiver<Message>,
    pub(super) requests: Sender<Request>,
    /// None of them ends during normal operation.
    pub(super) threads: Vec<JoinHandle<()>>,
}

pub(super) fn start(socket: &Path) -> io::Result<Poller> {
    let (messages, received) = mpsc::sync_channel(MAX_PENDING);
    let (requests, wanted) = mpsc::channel();
    let (directories, directory) = mpsc::channel();
    let thread = |name: &str| thread::Builder::new().name(name.to_owned());
    // None of them is joined: they end with the program.
    let (at, out) = (socket.to_owned(), messages.clone());
    let mut threads = vec![thread("requests").spawn(move || ask(&at, &wanted, &out, &directories))?];
    let (at, out) = (socket.to_owned(), messages.clone());
    threads.push(thread("events").spawn(move || events(&at, &out))?);
    let out = messages.clone();
    let at = socket.to_owned();
    threads.push(thread("bans").spawn(move || bans(&at, &directory, &out))?);
    // This thread ends with a signal.
    thread("signals").spawn(move || signals(&messages))?;
    Ok(Poller { messages: received, requests, threads })
}

/// Requests the status every second, passes on the ledger's directory, and sends the operator's requests in between.
fn ask(socket: &Path, requests: &Receiver<Request>, out: &SyncSender<Message>, directories: &Sender<PathBuf>) {
    let mut client: Option<Client> = None;
    loop {
        let asked = match &mut client {
            Some(client) => client.status(),
            None => Client::connect(socket).and_then(|new| client.insert(new).status()),
        };
        let mut message = match asked {
            Ok(status) => {
                let _ = directories.send(PathBuf::from(&status.ledger));
                Message::Status(status)
            }
            Err(error) => {
                client = None;
                Message::Lost(error.to_string())
            }
        };
        let next = Instant::now() + POLL_INTERVAL;
        loop {
            if out.send(message).is_err() {
                return;
            }
            let left = next.saturating_duration_since(Instant::now());
            let Ok(request) = requests.recv_timeout(left) else { break };
            let answer = Client::connect(socket).and_then(|mut client| client.ask(&request));
            message = Message::Answer(request, answer.map_err(|error| error.to_string()));
        }
    }
}

fn events(socket: &Path, out: &SyncSender<Message>) {
    loop {
        // The other thread reports a missing daemon.
        if let Ok(events) = Client::connect(socket).and_then(Client::subscribe) {
            // An unreadable event is skipped: the next one may be readable.
            let events = events.take_while(|event| !matches!(event, Err(ClientError::Broken { .. })));
            for event in events.flatten() {
                if out.send(Message::Event(Box::new(event))).is_err() {
                    return;
                }
            }
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Reads the bans periodically, because events do not include bans that began earlier.
fn bans(socket: &Path, directories: &Receiver<PathBuf>, out: &SyncSender<Message>) {
    while let Ok(mut directory) = directories.recv() {
        while let Ok(newer) = directories.try_recv() {
            directory = newer;
        }
        let (begin, now) = (Instant::now(), SystemTime::now());
        let note = match list::read(&directory, Some(socket), None, now) {
            Ok(found) => {
                let all = found.bans.len();
                let mut bans: Vec<BanRow> = found.bans.iter().map(BanRow::from).collect();
                bans.sort_by(BanRow::order);
                bans.truncate(MAX_BANS);
                if out.send(Message::Bans(bans, all)).is_err() {
                    return;
                }
                found.notes.into_iter().next()
            }
            Err(error) => Some(format!("earlier bans cannot be listed: {error}")),
        };
        if let Some(note) = note
            && out.send(Message::Note(note)).is_err()
        {
            return;
        }
        thread::sleep(BANS_INTERVAL.max(begin.elapsed().saturating_mul(LOAD_DIVISOR)));
    }
}

fn signals(out: &SyncSender<Message>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    runtime.block_on(async {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = kinds else { return };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        let _ = out.send(Message::End);
    });
}
