//! Sends digests of bans to `notify.command`: one message an interval at most, none where nothing has happened. The command
//! runs in the process that runs commands. A digest that could not be sent goes with the next one, which is said once.

use std::future::pending;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::{JoinHandle, spawn_blocking};

use super::deadline;
use crate::config::Notify;
use crate::enforce::command::{Delivery, MAX_DIGEST_LEN, Notifications};
use crate::events::digest::Digest;
use crate::events::event::{Event, EventKind};
use crate::types::counted;
use crate::types::printable::masked_to;

/// How long the last digest may take at the end of the program.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);

/// What is asked of the process that runs commands.
enum Asked {
    /// The command is read anew.
    Reread,
    Digest(Box<Digest>),
}

/// The way to the command.
enum Way {
    /// The process that runs commands was not started, or has ended.
    None,
    Free(Notifications),
    Busy(JoinHandle<(Notifications, Delivery)>, Asked),
}

pub(super) struct Notifier {
    way: Way,
    interval: Duration,
    /// A command is configured.
    wanted: bool,
    rereads: bool,
    collected: Digest,
    /// When the first was collected of what is to be sent next.
    since: Option<Instant>,
    /// The last digest failed, which was said.
    fails: bool,
}

impl Notifier {
    pub(super) fn new(notify: &Notify, way: Option<Notifications>, now: SystemTime) -> Self {
        Self {
            way: way.map_or(Way::None, Way::Free),
            interval: notify.interval,
            wanted: !notify.command.is_empty(),
            rereads: false,
            collected: Digest::new(now),
            since: None,
            fails: false,
        }
    }

    /// True where the process is there that runs commands.
    pub(super) fn can_notify(&self) -> bool {
        !matches!(self.way, Way::None)
    }

    /// Applies changed settings.
    pub(super) fn reconfigure(&mut self, notify: &Notify) {
        let wanted = !notify.command.is_empty();
        if wanted != self.wanted {
            (self.collected, self.since) = (Digest::new(SystemTime::now()), None);
        }
        (self.interval, self.wanted) = (notify.interval, wanted);
        self.rereads = self.can_notify();
    }

    /// Takes `event` in; `begins` where it is the first that reports a ban.
    pub(super) fn add(&mut self, event: &Event, begins: bool) {
        if self.wanted {
            self.collected.add(event, begins);
            self.mark();
        }
    }

    /// So many events were lost.
    pub(super) fn lose(&mut self, events: u64) {
        if self.wanted && events > 0 {
            self.collected.lose(events);
            self.mark();
        }
    }

    fn mark(&mut self) {
        if self.since.is_none() && self.collected.is_worth_sending() {
            self.since = Some(Instant::now());
        }
    }

    /// Waits until a digest is due and sends it, or until one has been sent; what is to be reported. Safe to cancel.
    pub(super) async fn turn(&mut self) -> Option<EventKind> {
        match &mut self.way {
            Way::None => pending().await,
            Way::Busy(job, _) => {
                let done = job.await.ok();
                self.settle(done)
            }
            Way::Free(_) if self.rereads => {
                self.rereads = false;
                self.ask(Asked::Reread);
                None
            }
            Way::Free(_) => {
                deadline::reached(self.since.filter(|_| self.wanted).map(|since| since + self.interval)).await;
                self.send();
                None
            }
        }
    }

    /// Sends what is left, and waits for a moment; what is to be reported.
    pub(super) async fn finish(&mut self) -> Option<EventKind> {
        let mut said = None;
        let rest = async {
            if let Way::Busy(job, _) = &mut self.way {
                let done = job.await.ok();
                said = self.settle(done);
            }
            if self.since.is_some() && matches!(self.way, Way::Free(_)) {
                self.send();
                if let Way::Busy(job, _) = &mut self.way {
                    let done = job.await.ok();
                    said = self.settle(done);
                }
            }
        };
        let in_time = tokio::time::timeout(LAST_TIMEOUT, rest).await.is_ok();
        let untold = self.wanted && (!in_time || self.since.is_some());
        let bans = match &self.way {
            Way::Busy(_, Asked::Digest(digest)) => digest.bans() + self.collected.bans(),
            _ => self.collected.bans(),
        };
        let text = format!("notify.command has not told of the last digest, of {}", counted(bans, "ban"));
        if untold { Some(EventKind::Error(text)) } else { said }
    }

    fn send(&mut self) {
        let digest = std::mem::replace(&mut self.collected, Digest::new(SystemTime::now()));
        self.since = None;
        self.ask(Asked::Digest(Box::new(digest)));
    }

    fn ask(&mut self, asked: Asked) {
        let Way::Free(mut way) = std::mem::replace(&mut self.way, Way::None) else { return };
        let digest = match &asked {
            Asked::Reread => None,
            // A name or a note may hold what drives a terminal.
            Asked::Digest(digest) => {
                let host = rustix::system::uname();
                let host = host.nodename().to_string_lossy();
                Some(masked_to(&digest.to_json(&host, SystemTime::now()), '?', MAX_DIGEST_LEN))
            }
        };
        let work = move || {
            let delivery = match digest {
                Some(digest) => way.send(digest),
                None => way.reread(),
            };
            (way, delivery)
        };
        self.way = Way::Busy(spawn_blocking(work), asked);
    }

    /// Takes in how what was asked has ended; `None`: by a panic.
    fn settle(&mut self, done: Option<(Notifications, Delivery)>) -> Option<EventKind> {
        let Way::Busy(_, asked) = std::mem::replace(&mut self.way, Way::None) else { return None };
        let delivery = match done {
            Some((way, delivery)) if delivery != Delivery::HelperGone => {
                self.way = Way::Free(way);
                delivery
            }
            _ => Delivery::HelperGone,
        };
        match (asked, delivery) {
            (Asked::Reread, Delivery::Succeeded) => None,
            (Asked::Reread, Delivery::Failed(why)) => {
                Some(EventKind::Error(format!("notify.command stays as it was: {why}")))
            }
            (Asked::Digest(_), Delivery::Succeeded) => {
                let text = "notify.command succeeds again; what could not be told before was told now";
                std::mem::take(&mut self.fails).then(|| EventKind::Note(text.to_owned()))
            }
            (Asked::Digest(digest), Delivery::Failed(why)) => {
                self.keep(*digest);
                let said = std::mem::replace(&mut self.fails, true);
                let next = humantime::format_duration(self.interval);
                let text = format!(
                    "notify.command: {why}. Its digest goes with the next one, in {next}; this is said once until it succeeds"
                );
                (!said).then_some(EventKind::Error(text))
            }
            (asked, Delivery::HelperGone) => {
                if let Asked::Digest(digest) = asked {
                    self.keep(*digest);
                }
                Some(EventKind::Error(
                    "the process that runs commands has ended: no digest goes to notify.command until portsentry is \
                     restarted"
                        .to_owned(),
                ))
            }
        }
    }

    /// Keeps `digest` for the next one.
    fn keep(&mut self, mut digest: Digest) {
        digest.append(std::mem::replace(&mut self.collected, Digest::new(SystemTime::now())));
        self.collected = digest;
        self.since = Some(Instant::now());
    }
}
