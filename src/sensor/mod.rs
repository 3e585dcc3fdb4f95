//! The thread on a packet's way: capture, decoys, engine and the socket that blocks, with nothing between them. It takes
//! snapshots and orders from its inbox and gives events to a bounded queue; it never waits for anybody but packets.

mod ban_maintenance;
mod batching;
mod blocker;
mod controller;
mod drop_counter;
mod metrics;
mod request;
mod retries;
mod table_repair;
mod trap;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::capture::decoy::Decoys;
use crate::capture::live::{CaptureError, Live, Ring};
use crate::enforce::nft::RulesetSpec;
use crate::engine::{ActiveBan, Engine, Host, Settings};
use crate::events::channel::Sender;
use crate::events::event::EventKind;
use crate::netlink::sock_diag::SockDiag;
use crate::types::{Backend, BanTarget, Timestamp};
use crate::wire;
use batching::Batching;
pub use blocker::Blocker;
use controller::BanController;
use drop_counter::DropCounter;
pub use metrics::{REACTIONS, Read, SensorMetrics};
pub use request::{Answer, Sample, SensorRequest};

/// Frames that are judged before the bans among them go to the kernel: a ban waits for at most so many packets of some
/// 100 ns, and a burst of scanners shares a transaction.
const BATCH: usize = 64;

/// How long connections wait where the system has no room for one more. Asking again at once would burn a core.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long the shell sleeps at most while there are events for it and packets go on coming.
const WAKE_DELAY: Duration = Duration::from_millis(2);

/// What the shell tells the sensor.
pub enum SensorCommand {
    /// The host has changed.
    Host(Arc<Host>),
    /// A capture with another filter, to be used from now on.
    Capture(Live),
    /// Connections to these own addresses count, and to no others; `None`: to all.
    Addresses(Option<HashSet<IpAddr>>),
    /// The kernel holds these bans from before the start, or by somebody else's doing.
    Adopt(Vec<ActiveBan>),
    /// The kernel has forgotten these bans: block them again, in these ways.
    Restore(Vec<ActiveBan>, &'static [Backend]),
    /// The kernel does not hold these bans in this way, and nobody has said why: put them back.
    Repair(Backend, Vec<BanTarget>),
    /// Somebody took the route of this ban away, and of no other.
    RouteRemoved(BanTarget),
    /// All that should be put back has been: what an earlier run left behind beside it goes.
    RemoveStaleRoutes,
    /// The command that comes before the block of this subject has ended.
    CommandEnded(BanTarget),
    /// Somebody took these bans out of the kernel.
    BansRemoved(Vec<BanTarget>),
    /// Somebody deleted the table or a set of it: lay it again, with the bans.
    ReinstallTable,
    /// Somebody, by these words, changed the table: undo it.
    RepairRules(String),
    /// Somebody changed the kernel's allow-list: put it back.
    ProtectAddresses,
    /// Somebody changed what the kernel's trap watches: put it back.
    ResetTrap,
    /// An operator asks for something.
    Request(SensorRequest),
    /// Go on with other settings.
    Settings(Box<Settings>),
    /// The table is to have other rules.
    Ruleset(RulesetSpec),
    /// Block nobody from now on.
    LogOnly,
    /// Give a sign of life: count [`SensorMetrics::beats`].
    Heartbeat,
    /// End.
    Stop,
}

/// The sensor's inbox: orders, and a wake-up for a sensor that waits for packets.
#[derive(Clone)]
pub struct Inbox(Arc<(ArrayQueue<SensorCommand>, OwnedFd)>);

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self(Arc::new((ArrayQueue::new(1024), eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))))
    }

    /// Puts `order` in and wakes the sensor; gives it back where the inbox is full.
    pub fn put(&self, order: SensorCommand) -> Result<(), SensorCommand> {
        let put = self.0.0.push(order);
        // The counter can only overflow after 2^64 orders.
        let _ = rustix::io::write(&self.0.1, &1_u64.to_ne_bytes());
        put
    }
}

/// Why the sensor ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The capture broke.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Waiting for packets failed.
    #[error("cannot wait for packets: {0}")]
    Poll(#[from] Errno),
}

/// What there is to do beside the packets, which are always looked for.
struct Ready {
    orders: bool,
    decoys: bool,
}

/// The sensor.
pub struct Sensor {
    live: Live,
    decoys: Decoys,
    /// Until when the decoys are left alone.
    accept_retry_at: Option<Timestamp>,
    judge: BanController,
    inbox: Inbox,
    /// Origin of the engine's time.
    start: Duration,
    drop_counter: DropCounter,
    batching: Batching,
    /// When the shell knew all that there was to know.
    last_flush: Timestamp,
}

impl Sensor {
    /// Puts the parts together. The capture is running already, and the decoys listen.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own that somebody else opened")]
    pub fn new(
        live: Live,
        decoys: Decoys,
        engine: Engine,
        host: Arc<Host>,
        sockets: SockDiag,
        blocker: Blocker,
        events: Sender,
        inbox: Inbox,
        metrics: Arc<SensorMetrics>,
    ) -> Self {
        Self {
            judge: BanController::new(engine, host, sockets, decoys.ports().clone(), blocker, events, metrics),
            live,
            decoys,
            accept_retry_at: None,
            inbox,
            start: boot_time(),
            drop_counter: DropCounter::default(),
            batching: Batching::default(),
            last_flush: Timestamp::default(),
        }
    }

    /// Runs until [`SensorCommand::Stop`].
    pub fn run(mut self) -> Result<(), SensorError> {
        let end = self.watch();
        self.judge.wake_shell();
        end
    }

    fn watch(&mut self) -> Result<(), SensorError> {
        let now = self.now();
        self.judge.begin_trap(now);
        self.judge.emit(EventKind::Started);
        let mut more = false;
        loop {
            // Only what is ready is asked for more: each call to the kernel stands between a packet and its ban.
            let Ready { orders, decoys } = self.wait(more)?;
            if orders && self.handle_commands()? {
                return Ok(());
            }
            // By turns, so that neither packets nor connections can keep the other from being judged.
            let frames = self.process_frames()?;
            more = frames == BATCH;
            let coalesce = self.batching.count(self.now(), frames) && !more;
            if self.batching.begins_to_flood() {
                self.judge.metrics.flood.notify_one();
            }
            if decoys {
                self.accept_decoys();
            }
            if self.judge.due().is_some() {
                self.judge.run_maintenance(self.now());
            }
            self.take_notices();
            if coalesce {
                std::thread::sleep(batching::COALESCE_DELAY);
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::at(boot_time().saturating_sub(self.start))
    }

    /// Waits until there is something to do; where there is `more` already, only looks what else there is.
    fn wait(&mut self, more: bool) -> Result<Ready, SensorError> {
        let now = self.now();
        self.accept_retry_at = self.accept_retry_at.filter(|until| *until > now);
        let due = self.judge.engine.wake().into_iter().chain(self.accept_retry_at).chain(self.judge.due()).min();
        let patience = due.map(|due| due.since(now).max(Duration::from_millis(50)));
        let decoys = if self.accept_retry_at.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = [
            PollFd::new(&self.live, PollFlags::IN),
            PollFd::new(&self.inbox.0.1, PollFlags::IN),
            PollFd::new(&self.decoys, decoys),
        ];
        // Waking another thread takes longer than to judge a packet, and so does a first touch of memory: that is done while
        // none waits, or when the shell has waited long enough.
        let hurries = more || self.judge.has_pending();
        let busy = hurries && (is_ready(&mut fds, Some(Duration::ZERO))? || more);
        if !self.judge.has_pending() {
            self.last_flush = now;
        } else if !busy || now.since(self.last_flush) >= WAKE_DELAY {
            self.judge.wake_shell();
            self.last_flush = now;
        }
        if !busy {
            self.judge.engine.prepare();
            is_ready(&mut fds, patience)?;
        }
        let [_, orders, decoys] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready { orders, decoys })
    }

    /// Carries out what is in the inbox; true where the sensor is to end.
    fn handle_commands(&mut self) -> Result<bool, SensorError> {
        let mut counter = [0; 8];
        if rustix::io::read(&self.inbox.0.1, &mut counter).is_err() {
            return Ok(false);
        }
        while let Some(order) = self.inbox.0.0.pop() {
            crate::panic_guard::failpoint("sensor");
            match order {
                SensorCommand::Host(host) => self.judge.change_host(self.now(), host),
                SensorCommand::Capture(live) => {
                    // The old one still holds what came before the new one was opened. In a flood it is never empty, but
                    // no more than it can hold is that old.
                    for _ in 0..Ring::MOST / BATCH {
                        if self.process_frames()? < BATCH {
                            break;
                        }
                    }
                    self.drop_counter.replace(&mut self.live);
                    self.live = live;
                }
                SensorCommand::Addresses(addresses) => self.decoys.watch_only(addresses),
                SensorCommand::Adopt(bans) => {
                    let now = self.now();
                    self.judge.adopt(now, &bans);
                }
                SensorCommand::Restore(bans, ways) => {
                    let now = self.now();
                    self.judge.restore(now, &bans, ways);
                }
                SensorCommand::Repair(way, subjects) => {
                    let now = self.now();
                    self.judge.repair(now, way, &subjects);
                }
                SensorCommand::RouteRemoved(subject) => {
                    let now = self.now();
                    self.judge.route_removed(now, subject);
                }
                SensorCommand::RemoveStaleRoutes => {
                    let now = self.now();
                    self.judge.sweep(now);
                }
                SensorCommand::CommandEnded(subject) => {
                    let now = self.now();
                    self.judge.ready(now, subject);
                }
                SensorCommand::BansRemoved(subjects) => self.judge.bans_removed(&subjects),
                SensorCommand::ReinstallTable => self.judge.reinstall_table(),
                SensorCommand::RepairRules(by) => self.judge.repair_rules(&by),
                SensorCommand::ProtectAddresses => self.judge.protect(),
                SensorCommand::ResetTrap => {
                    let now = self.now();
                    self.judge.reset_trap(now);
                }
                SensorCommand::Request(request) => {
                    let now = self.now();
                    self.judge.handle(now, request);
                }
                SensorCommand::Heartbeat => self.judge.metrics.beats.add(1),
                SensorCommand::Settings(settings) => {
                    let now = self.now();
                    self.judge.engine.reconfigure(*settings);
                    self.judge.arm(now);
                }
                SensorCommand::Ruleset(spec) => {
                    let now = self.now();
                    self.judge.replace_ruleset(spec);
                    self.judge.begin_trap(now);
                }
                SensorCommand::LogOnly => {
                    self.judge.engine.log_only();
                    self.judge.disarm();
                }
                SensorCommand::Stop => {
                    // What the kernel did by itself from here on nobody would look at.
                    self.judge.empty_trap();
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Judges the frames that wait, at most [`BATCH`], and blocks whom they condemn; how many there were.
    fn process_frames(&mut self) -> Result<usize, SensorError> {
        let now = self.now();
        let link = self.live.link_type();
        let Self { live, judge, .. } = self;
        let mut undecoded = 0;
        let frames = live.drain(BATCH, |frame, time| match wire::decode(link, frame) {
            Ok(packet) => judge.packet(now, &packet, time),
            Err(wire::Undecoded::NotIp) => {}
            Err(_) => undecoded += 1,
        })?;
        self.judge.metrics.frames.add(frames as u64);
        self.judge.metrics.undecoded.add(undecoded);
        self.judge.commit(now);
        Ok(frames)
    }

    /// Judges a few of those who came to the decoys, and blocks whom that condemns.
    fn accept_decoys(&mut self) {
        if self.accept_retry_at.is_some() {
            return;
        }
        let now = self.now();
        let Self { decoys, judge, .. } = self;
        let taken = decoys.drain(|sighting, time| {
            judge.metrics.connections.add(1);
            judge.decoy(now, sighting, time);
        });
        self.judge.commit(now);
        if let Err(error) = taken {
            self.accept_retry_at = Some(now.after(ACCEPT_RETRY_DELAY));
            self.judge.emit(EventKind::Error(format!(
                "a decoy cannot accept a connection: {error}; it is tried again in a second"
            )));
        }
    }

    fn take_notices(&mut self) {
        let now = self.now();
        while let Some(notice) = self.judge.engine.notice(now) {
            self.judge.emit(EventKind::from(notice));
        }
        self.judge.metrics.take(self.judge.engine.tracked(), self.judge.engine.counters());
        if let Some(packets) = self.drop_counter.due(now, &mut self.live) {
            self.judge.metrics.dropped.add(packets);
            self.judge.emit(EventKind::Dropped { packets });
        }
    }
}

/// Waits until something is there to be read, or that long; whether something is.
fn is_ready(fds: &mut [PollFd<'_>], patience: Option<Duration>) -> Result<bool, Errno> {
    let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// CLOCK_BOOTTIME: it counts suspended time, and nobody can set it.
fn boot_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}
