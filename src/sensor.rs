//! The thread on a packet's way: capture, engine and the socket that blocks, with nothing between them. It takes
//! snapshots and orders from its inbox and gives events to a bounded queue; it never waits for anybody but packets.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::capture::live::{CaptureError, Live};
use crate::enforce::nft::{BlockError, Nft, RulesetError, RulesetSpec};
use crate::engine::subject::{Expiry, Subject};
use crate::engine::{Ban, Engine, Host, Moment, Notice, PortOracle, Protocol, Repeated, Verdict};
use crate::netlink::sock_diag::{self, Owner, SockDiag};
use crate::report::event::{Event, What};
use crate::report::queue::Sender;
use crate::wire;

use std::net::SocketAddr;

/// Frames that are judged before the bans among them go to the kernel: a ban waits for at most so many packets of some
/// 100 ns, and a burst of scanners shares a transaction.
const BATCH: usize = 64;

/// How often the kernel is asked how many packets it could not hand over.
const DROPS: Duration = Duration::from_secs(1);

/// What the shell tells the sensor.
pub enum Order {
    /// The host has changed.
    Host(Arc<Host>),
    /// A capture with another filter, to be used from now on.
    Capture(Live),
    /// The kernel holds this ban from before the start.
    Adopt(Subject, Expiry),
    /// End.
    Stop,
}

/// The sensor's inbox: orders, and a wake-up for a sensor that waits for packets.
#[derive(Clone)]
pub struct Inbox(Arc<(ArrayQueue<Order>, OwnedFd)>);

impl Inbox {
    /// An empty inbox.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self(Arc::new((ArrayQueue::new(1024), eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))))
    }

    /// Puts `order` in and wakes the sensor; gives it back where the inbox is full.
    pub fn put(&self, order: Order) -> Result<(), Order> {
        let put = self.0.0.push(order);
        // The counter can only overflow after 2^64 orders.
        let _ = rustix::io::write(&self.0.1, &1_u64.to_ne_bytes());
        put
    }
}

/// Figures for whoever asks, written by the sensor.
#[derive(Debug, Default)]
pub struct Figures {
    /// Frames that came through the filter.
    pub frames: AtomicU64,
    /// Frames that the kernel could not hand over in time.
    pub dropped: AtomicU64,
    /// Frames that could not be decoded.
    pub undecoded: AtomicU64,
    /// Sources with evidence against them.
    pub suspects: AtomicU64,
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

/// The sensor.
pub struct Sensor {
    live: Live,
    engine: Engine,
    host: Arc<Host>,
    truth: Truth,
    /// `None` where nothing is blocked.
    nft: Option<(Nft, RulesetSpec)>,
    events: Sender,
    inbox: Inbox,
    figures: Arc<Figures>,
    /// Origin of the engine's time.
    start: Duration,
    bans: Vec<(Ban, SystemTime)>,
    elements: Vec<(Subject, Expiry)>,
    drops: (Moment, u32, u64),
}

impl Sensor {
    /// Puts the parts together. The capture is running already.
    #[must_use]
    pub fn new(
        live: Live,
        engine: Engine,
        host: Arc<Host>,
        sockets: SockDiag,
        nft: Option<(Nft, RulesetSpec)>,
        events: Sender,
        inbox: Inbox,
    ) -> Self {
        Self {
            live,
            engine,
            host,
            truth: Truth(sockets),
            nft,
            events,
            inbox,
            figures: Arc::default(),
            start: boot_time(),
            bans: Vec::with_capacity(BATCH),
            elements: Vec::with_capacity(BATCH),
            drops: (Moment::default(), 0, 0),
        }
    }

    /// The figures, to read while the sensor runs.
    #[must_use]
    pub fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// Runs until [`Order::Stop`].
    pub fn run(mut self) -> Result<(), SensorError> {
        self.say(What::Started);
        loop {
            self.wait()?;
            if self.take_orders()? {
                return Ok(());
            }
            while self.look()? == BATCH {}
            self.take_notices();
        }
    }

    fn now(&self) -> Moment {
        Moment::at(boot_time().saturating_sub(self.start))
    }

    fn say(&self, what: What) {
        self.events.send(Event::now(what));
    }

    fn wait(&mut self) -> Result<(), SensorError> {
        let span = self.engine.wake().map(|due| due.since(self.now()).max(Duration::from_millis(50)));
        let timeout = span.and_then(|span| Timespec::try_from(span).ok());
        let inbox = &self.inbox.0.1;
        let mut fds = [PollFd::new(&self.live, PollFlags::IN), PollFd::new(inbox, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Carries out what is in the inbox; true where the sensor is to end.
    fn take_orders(&mut self) -> Result<bool, SensorError> {
        let mut counter = [0; 8];
        if rustix::io::read(&self.inbox.0.1, &mut counter).is_err() {
            return Ok(false);
        }
        while let Some(order) = self.inbox.0.0.pop() {
            match order {
                Order::Host(host) => self.change_host(host),
                Order::Capture(live) => {
                    // The old one still holds what came before the new one was opened.
                    while self.look()? == BATCH {}
                    self.live = live;
                    self.drops.1 = 0;
                }
                Order::Adopt(subject, expiry) => self.engine.adopt(self.now(), subject, expiry),
                Order::Stop => return Ok(true),
            }
        }
        Ok(false)
    }

    fn change_host(&mut self, host: Arc<Host>) {
        let now = self.now();
        self.engine.host_changed(now, &self.host, &host);
        self.host = host;
        self.protect();
    }

    /// Brings the kernel's allow-list up to date.
    fn protect(&mut self) {
        let Some((nft, _)) = &mut self.nft else { return };
        let prefixes: Vec<_> = self.host.allow.prefixes().collect();
        match nft.protect(&prefixes) {
            Ok(()) => {}
            Err(BlockError::Gone) => self.heal(),
            Err(error) => self.say(What::Error(format!("the kernel's allow-list could not be set: {error}"))),
        }
    }

    /// Judges the frames that wait, at most [`BATCH`], and blocks whom they condemn; how many there were.
    fn look(&mut self) -> Result<usize, SensorError> {
        let now = self.now();
        let link = self.live.link_type();
        let Self { live, engine, host, truth, nft, events, bans, figures, .. } = self;
        let mut undecoded = 0;
        let frames = live.drain(BATCH, |frame, time| {
            let packet = match wire::decode(link, frame) {
                Ok(packet) => packet,
                Err(wire::Undecoded::NotIp) => return,
                Err(_) => {
                    undecoded += 1;
                    return;
                }
            };
            let mut verdict = engine.observe(now, &packet, host, truth);
            if let Verdict::Repeated(Repeated { subject, verify: true, .. }) = verdict
                && let Some((nft, _)) = nft
                && matches!(nft.holds(subject), Ok(None) | Err(BlockError::Gone))
            {
                // Somebody took the element out, or the whole set: what the log says must be what the kernel does.
                engine.lift(subject);
                events.send(Event { time, what: What::Lifted { subject } });
                verdict = engine.observe(now, &packet, host, truth);
            }
            let what = match verdict {
                Verdict::Block(ban) => {
                    bans.push((ban, time));
                    return;
                }
                Verdict::Scan(ban) => What::Scan(ban),
                Verdict::Probe(probe) if probe.fresh => What::Probe(probe),
                Verdict::Spared(spared) => match spared.report {
                    Some(probes) => What::Spared { spared, probes },
                    None => return,
                },
                Verdict::Repeated(Repeated { subject, standing, report: Some(packets), .. }) => {
                    What::Repeated { subject, standing, packets }
                }
                Verdict::Probe(_) | Verdict::Repeated(_) | Verdict::Innocent(_) => return,
            };
            events.send(Event { time, what });
        })?;
        figures.frames.fetch_add(frames as u64, Ordering::Relaxed);
        figures.undecoded.fetch_add(undecoded, Ordering::Relaxed);
        if !self.bans.is_empty() {
            self.block();
        }
        Ok(frames)
    }

    /// Sends the bans that have piled up to the kernel, in one transaction where possible.
    fn block(&mut self) {
        self.elements.clear();
        self.elements.extend(self.bans.iter().map(|(ban, _)| (ban.probe.subject, ban.expiry)));
        let mut result = self.send_elements();
        if matches!(result, Err(BlockError::Gone)) {
            self.heal();
            result = self.send_elements();
        }
        let done = SystemTime::now();
        let failed = match result {
            Ok(()) => Vec::new(),
            Err(BlockError::Failed { failed, .. }) => {
                failed.into_iter().map(|item| (item.subject, item.reason.to_string())).collect()
            }
            Err(error) => {
                let reason = error.to_string();
                self.elements.iter().map(|(subject, _)| (*subject, reason.clone())).collect()
            }
        };
        for (ban, seen) in self.bans.drain(..) {
            let subject = ban.probe.subject;
            let what = match failed.iter().find(|(who, _)| *who == subject) {
                None => What::Blocked { ban, reaction: done.duration_since(seen).unwrap_or_default() },
                Some((_, reason)) => {
                    // Not blocked, so not recognised as such: its next probes are evidence again, and it is tried again.
                    self.engine.lift(subject);
                    What::BlockFailed { subject, reason: reason.clone() }
                }
            };
            self.events.send(Event { time: seen, what });
        }
    }

    fn send_elements(&mut self) -> Result<(), BlockError> {
        match &mut self.nft {
            Some((nft, _)) => nft.block(&self.elements),
            None => Ok(()),
        }
    }

    /// The table is gone: lays it again, with the allow-list. Who was blocked is judged anew.
    fn heal(&mut self) {
        let Some((nft, spec)) = &mut self.nft else { return };
        let prefixes: Vec<_> = self.host.allow.prefixes().collect();
        let healed = nft.install(spec).map_err(|error: RulesetError| error.to_string());
        let healed = healed.and_then(|_| nft.protect(&prefixes).map_err(|error| error.to_string()));
        self.engine.lift_all();
        self.say(match healed {
            Ok(()) => What::Note("table inet portsentry was gone and is there again".to_owned()),
            Err(error) => What::Error(format!("table inet portsentry is gone and could not be laid again: {error}")),
        });
    }

    fn take_notices(&mut self) {
        let now = self.now();
        while let Some(notice) = self.engine.notice(now) {
            self.say(match notice {
                Notice::Sweep(sweep) => What::Sweep(sweep),
                Notice::Repeated { subject, standing, packets } => What::Repeated { subject, standing, packets },
                Notice::Capped { bans } => What::Capped { bans },
            });
        }
        let (suspects, _) = self.engine.tracked();
        self.figures.suspects.store(suspects as u64, Ordering::Relaxed);
        let (checked, before, unsaid) = &mut self.drops;
        if now.since(*checked) >= DROPS
            && let Ok(seen) = self.live.seen()
        {
            *unsaid += u64::from(seen.dropped.wrapping_sub(*before));
            (*checked, *before) = (now, seen.dropped);
            let packets = std::mem::take(unsaid);
            if packets > 0 {
                self.figures.dropped.fetch_add(packets, Ordering::Relaxed);
                self.say(What::Dropped { packets });
            }
        }
    }
}

/// The kernel's socket table as the engine's oracle.
struct Truth(SockDiag);

impl PortOracle for Truth {
    fn in_use(&mut self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> bool {
        let protocol = match protocol {
            Protocol::Tcp => sock_diag::Protocol::Tcp,
            Protocol::Udp => sock_diag::Protocol::Udp,
            Protocol::Sctp | Protocol::Icmp => return false,
        };
        // No answer proves nothing, and the evidence stands: the snapshot of the listeners has been asked before.
        self.0.owner(protocol, source, destination, 0).is_ok_and(|owner| owner != Owner::Nobody)
    }
}

/// CLOCK_BOOTTIME: it counts suspended time, and nobody can set it.
fn boot_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}
