//! What the view is fed with, each from a thread of its own: how the daemon is, its events, the bans of kernel and ledger,
//! answers to requests, and signals. A daemon that goes away is waited for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use super::ban::Ban;
use crate::control::client::{Client, ClientError};
use crate::control::list;
use crate::control::protocol::Request;

/// Between two looks at the daemon, and between two attempts to reach it.
const SECOND: Duration = Duration::from_secs(1);

/// Bans are read this often, and seldomer where that took long: at most a twentieth of the time goes into it.
const BANS: Duration = Duration::from_secs(5);
const SHARE: u32 = 20;

/// Bans that are shown: those that end first. More would be no view.
const MOST: usize = 10_000;

/// Messages that wait for the screen. Who sends more waits; the daemon in turn leaves a slow watcher behind.
const WAITING: usize = 4_096;

/// What the view is told.
#[derive(Debug)]
pub(super) enum Message {
    /// How the daemon is.
    Status(Map<String, Value>),
    /// Something happened.
    Event(Value),
    /// The bans in force, and how many there are in all.
    Bans(Vec<Ban>, usize),
    /// What is to be known about the bans.
    Note(String),
    /// What came of a request.
    Answer(Request, Result<Map<String, Value>, String>),
    /// The daemon cannot be reached.
    Lost(String),
    /// A signal ends the program.
    End,
}

/// All that feeds the view.
pub(super) struct Feed {
    /// Where the messages come out.
    pub(super) messages: Receiver<Message>,
    /// Where requests go in.
    pub(super) requests: Sender<Request>,
    threads: Vec<JoinHandle<()>>,
}

impl Feed {
    /// True where a part of it has ended, which none does by itself.
    pub(super) fn is_broken(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

/// Starts all of it.
pub(super) fn start(socket: &Path) -> io::Result<Feed> {
    let (messages, received) = mpsc::sync_channel(WAITING);
    let (requests, wanted) = mpsc::channel();
    let (directories, directory) = mpsc::channel();
    let thread = |name: &str| thread::Builder::new().name(name.to_owned());
    // None is waited for: they end with the program.
    let (at, out) = (socket.to_owned(), messages.clone());
    let mut threads = vec![thread("status").spawn(move || status(&at, &out, &directories))?];
    let (at, out) = (socket.to_owned(), messages.clone());
    threads.push(thread("events").spawn(move || events(&at, &out))?);
    let out = messages.clone();
    threads.push(thread("bans").spawn(move || bans(&directory, &out))?);
    let (at, out) = (socket.to_owned(), messages.clone());
    threads.push(thread("requests").spawn(move || answers(&at, &wanted, &out))?);
    // That one ends with a signal.
    thread("signals").spawn(move || signals(&messages))?;
    Ok(Feed { messages: received, requests, threads })
}

/// Asks every second how the daemon is, and tells where its ledger lies.
fn status(socket: &Path, out: &SyncSender<Message>, directories: &Sender<PathBuf>) {
    let mut client: Option<Client> = None;
    loop {
        let asked = match &mut client {
            Some(client) => client.ask(&Request::Status),
            None => Client::connect(socket).and_then(|new| client.insert(new).ask(&Request::Status)),
        };
        let message = match asked {
            Ok(told) => {
                let ledger = told.get("ledger").and_then(Value::as_str);
                ledger.map(|ledger| directories.send(PathBuf::from(ledger)));
                Message::Status(told)
            }
            Err(error) => {
                client = None;
                Message::Lost(error.to_string())
            }
        };
        if out.send(message).is_err() {
            return;
        }
        thread::sleep(SECOND);
    }
}

fn events(socket: &Path, out: &SyncSender<Message>) {
    loop {
        // Who cannot be reached is told by the other thread.
        if let Ok(events) = Client::connect(socket).and_then(Client::watch) {
            for event in events.map_while(Result::ok) {
                if out.send(Message::Event(event)).is_err() {
                    return;
                }
            }
        }
        thread::sleep(SECOND);
    }
}

/// Reads the bans now and then: what the events do not tell, such as who was blocked before.
fn bans(directories: &Receiver<PathBuf>, out: &SyncSender<Message>) {
    let mut said = None;
    while let Ok(mut directory) = directories.recv() {
        // All but the last word are old.
        while let Ok(newer) = directories.try_recv() {
            directory = newer;
        }
        let (begin, now) = (Instant::now(), SystemTime::now());
        let note = match list::read(&directory, None, now) {
            Ok(found) => {
                let all = found.bans.len();
                let mut bans: Vec<Ban> = found.bans.iter().map(|listed| Ban::of(listed, now)).collect();
                bans.sort_by(Ban::order);
                bans.truncate(MOST);
                if out.send(Message::Bans(bans, all)).is_err() {
                    return;
                }
                found.notes.into_iter().next()
            }
            Err(error) => Some(format!("only bans from now on: {error}")),
        };
        if note != said {
            said.clone_from(&note);
            if let Some(note) = note
                && out.send(Message::Note(note)).is_err()
            {
                return;
            }
        }
        thread::sleep(BANS.max(begin.elapsed().saturating_mul(SHARE)));
    }
}

fn answers(socket: &Path, wanted: &Receiver<Request>, out: &SyncSender<Message>) {
    while let Ok(request) = wanted.recv() {
        let answer = Client::connect(socket).and_then(|mut client| client.ask(&request));
        let answer = answer.map_err(|error: ClientError| error.to_string());
        if out.send(Message::Answer(request, answer)).is_err() {
            return;
        }
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
        // Its receiver is the program itself.
        let _ = out.send(Message::End);
    });
}
