//! Sends digests of bans to `notify.command`: at most one message per interval, none if nothing has happened. The
//! command helper runs the command. A failed digest is sent with the next one, and the failure is reported once.

use std::future::pending;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::{JoinHandle, spawn_blocking};

use super::optional::deadline_reached;
use crate::config::Notify;
use crate::enforce::command::{Delivery, NotificationJob, Notifications};
use crate::events::digest::Digest;
use crate::events::event::{Event, EventKind};
use crate::types::counted;

/// Timeout for the last digest at the end of the program.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);

/// A request to the command helper.
enum NotifierJob {
    /// Reads the command again.
    Reread,
    Digest(Box<Digest>),
}

/// The channel to the command.
enum Channel {
    /// The command helper was not started, or has ended.
    None,
    Free(Notifications),
    Busy(JoinHandle<(Notifications, Delivery)>, NotifierJob),
}

pub(super) struct Notifier {
    channel: Channel,
    interval: Duration,
    /// True if a command is configured.
    wanted: bool,
    rereads: bool,
    collected: Digest,
    /// Time of the first event in the next digest.
    since: Option<Instant>,
    /// True if the last digest failed and this was reported.
    fails: bool,
}

impl Notifier {
    pub(super) fn new(notify: &Notify, channel: Option<Notifications>, now: SystemTime) -> Self {
        Self {
            channel: channel.map_or(Channel::None, Channel::Free),
            interval: notify.interval,
            wanted: !notify.command.is_empty(),
            rereads: false,
            collected: Digest::new(now),
            since: None,
            fails: false,
        }
    }

    /// True if the command helper is available.
    pub(super) fn can_notify(&self) -> bool {
        !matches!(self.channel, Channel::None)
    }

    /// Applies a changed configuration.
    pub(super) fn reconfigure(&mut self, notify: &Notify) {
        let wanted = !notify.command.is_empty();
        if wanted != self.wanted {
            (self.collected, self.since) = (Digest::new(SystemTime::now()), None);
        }
        (self.interval, self.wanted) = (notify.interval, wanted);
        self.rereads = self.can_notify();
    }

    /// Adds `event`; `begins` is true for the first event that reports a ban.
    pub(super) fn add(&mut self, event: &Event, begins: bool) {
        if self.wanted {
            self.collected.add(event, begins);
            self.start_interval();
        }
    }

    /// Adds the number of lost events.
    pub(super) fn count_dropped(&mut self, events: u64) {
        if self.wanted && events > 0 {
            self.collected.count_dropped(events);
            self.start_interval();
        }
    }

    fn start_interval(&mut self) {
        if self.since.is_none() && self.collected.is_worth_sending() {
            self.since = Some(Instant::now());
        }
    }

    /// Waits until a digest is due and sends it, or until a sent one has ended; returns the event to report. Cancel
    /// safe.
    pub(super) async fn process_next(&mut self) -> Option<EventKind> {
        match &mut self.channel {
            Channel::None => pending().await,
            Channel::Busy(..) => self.finish_request().await,
            Channel::Free(_) if self.rereads => {
                self.rereads = false;
                self.ask(NotifierJob::Reread);
                None
            }
            Channel::Free(_) => {
                deadline_reached(self.since.filter(|_| self.wanted).map(|since| since + self.interval)).await;
                self.send();
                None
            }
        }
    }

    /// Sends the remaining events, and waits for a short time; returns the event to report.
    pub(super) async fn finish(&mut self) -> Option<EventKind> {
        let mut event = None;
        let rest = async {
            event = self.finish_request().await;
            if self.since.is_some() && matches!(self.channel, Channel::Free(_)) {
                self.send();
                event = self.finish_request().await;
            }
        };
        let in_time = tokio::time::timeout(LAST_TIMEOUT, rest).await.is_ok();
        let unsent = self.wanted && (!in_time || self.since.is_some());
        let bans = match &self.channel {
            Channel::Busy(_, NotifierJob::Digest(digest)) => digest.bans() + self.collected.bans(),
            _ => self.collected.bans(),
        };
        let text = format!("notify.command did not deliver the last digest, of {}", counted(bans, "ban"));
        if unsent { Some(EventKind::Error(text)) } else { event }
    }

    fn send(&mut self) {
        let digest = std::mem::replace(&mut self.collected, Digest::new(SystemTime::now()));
        self.since = None;
        self.ask(NotifierJob::Digest(Box::new(digest)));
    }

    fn ask(&mut self, job: NotifierJob) {
        let Channel::Free(mut channel) = std::mem::replace(&mut self.channel, Channel::None) else { return };
        let request = match &job {
            NotifierJob::Reread => NotificationJob::Reread,
            NotifierJob::Digest(digest) => {
                let host = rustix::system::uname();
                let host = host.nodename().to_string_lossy();
                NotificationJob::Digest(Box::new(digest.to_message(&host, SystemTime::now())))
            }
        };
        let work = move || {
            let delivery = channel.ask(request);
            (channel, delivery)
        };
        self.channel = Channel::Busy(spawn_blocking(work), job);
    }

    /// Waits for the result of the request under way, if there is one, and handles it. Cancel safe.
    async fn finish_request(&mut self) -> Option<EventKind> {
        let Channel::Busy(job, _) = &mut self.channel else { return None };
        let done = job.await;
        let Channel::Busy(_, job) = std::mem::replace(&mut self.channel, Channel::None) else { return None };
        let delivery = match done {
            Ok((channel, delivery)) if delivery != Delivery::HelperGone => {
                self.channel = Channel::Free(channel);
                delivery
            }
            _ => Delivery::HelperGone,
        };
        match (job, delivery) {
            (NotifierJob::Reread, Delivery::Succeeded) => None,
            (NotifierJob::Reread, Delivery::Failed(why)) => {
                Some(EventKind::Error(format!("notify.command cannot be changed: {why}; the old command stays in use")))
            }
            (NotifierJob::Digest(_), Delivery::Succeeded) => {
                let text = "notify.command succeeds again; the pending digests have been delivered";
                std::mem::take(&mut self.fails).then(|| EventKind::Note(text.to_owned()))
            }
            (NotifierJob::Digest(digest), Delivery::Failed(why)) => {
                self.keep(*digest);
                let was_reported = std::mem::replace(&mut self.fails, true);
                let next = humantime::format_duration(self.interval);
                let text = format!(
                    "notify.command: {why}. This digest is added to the next one, in {next}; further failures are \
                     not logged until a command succeeds"
                );
                (!was_reported).then_some(EventKind::Error(text))
            }
            (job, Delivery::HelperGone) => {
                if let NotifierJob::Digest(digest) = job {
                    self.keep(*digest);
                }
                Some(EventKind::Error(
                    "the command helper has ended: no digest is sent to notify.command until portsentry is \
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
