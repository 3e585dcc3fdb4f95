//! Runs the sensor thread: decode -> observe -> decide -> apply -> commit, with no blocking work between a packet and
//! its ban. It waits for packets, takes messages from its inbox and puts events into a bounded queue.

mod batch;
mod batching;
mod blocker;
mod commands;
mod controller;
mod enforcement;
#[cfg(test)]
mod fixtures;
mod guest_bans;
mod metrics;
mod observer;
mod own_source;
mod packet_path;
mod pending_bans;
mod port_lookup;
mod reporter;
mod table_repair;
mod trap;
mod trap_arming;
pub mod trap_review;

use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::capture::decoy::Decoys;
use crate::capture::live::{CaptureError, Live, Ring};
use crate::clock::boot_time;
use crate::engine::{Engine, Host};
use crate::events::channel::Sender;
use crate::events::event::EventKind;
use crate::types::Timestamp;
use crate::wire;
use batch::BATCH_SIZE;
use batching::{Batching, COALESCE_DELAY};
pub use blocker::Blocker;
pub use commands::{ReplySender, SensorCommand, SensorInbox, SensorMessage, SensorRequest};
use controller::BanController;
pub use controller::BanSample;
pub use guest_bans::GuestBan;
pub use metrics::{REACTIONS, SensorMetrics};
use observer::Observer;
use packet_path::PacketPath;
pub use port_lookup::KernelPorts;
use reporter::Reporter;

/// Pause of the decoys after a failed accept, usually because of a lack of file descriptors. An immediate retry would
/// keep a core busy.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Maximum time until the event reader is woken while packets keep arriving.
const WAKE_DELAY: Duration = Duration::from_millis(2);

/// Minimum poll timeout for maintenance that is due.
const MIN_WAIT: Duration = Duration::from_millis(50);

/// Minimum interval between two readings of the capture's counter of dropped packets.
const DROP_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Why the sensor ended without [`SensorMessage::Stop`].
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The capture failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("cannot wait for packets: {0}")]
    Poll(#[from] Errno),
}

/// Ready file descriptors. Frames are read in any case.
struct Ready {
    messages: bool,
    decoys: bool,
}

pub struct Sensor {
    live: Live,
    decoys: Decoys,
    /// End of the pause of the decoys.
    accept_retry_at: Option<Timestamp>,
    packets: PacketPath,
    inbox: SensorInbox,
    /// Origin of the engine's time.
    start: Timestamp,
    drop_counter: DropCounter,
    batching: Batching,
    /// Time at which the event reader was last woken.
    last_flush: Timestamp,
}

impl Sensor {
    /// Assembles the sensor. The capture must be running and the decoys must be listening.
    #[expect(clippy::too_many_arguments, reason = "the daemon opens each of them by itself")]
    pub fn new(
        live: Live,
        decoys: Decoys,
        engine: Engine,
        host: Arc<Host>,
        kernel: KernelPorts,
        blocker: Blocker,
        events: Sender,
        inbox: SensorInbox,
        metrics: Arc<SensorMetrics>,
    ) -> Self {
        let observer = Observer::new(engine, host, kernel, decoys.ports().clone());
        Self {
            packets: PacketPath::new(BanController::new(observer, blocker, Reporter::new(events, metrics))),
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

    /// Only logs, from the first packet until [`SensorCommand::EndTrial`].
    pub fn start_trial(&mut self) {
        commands::execute(SensorCommand::StartTrial, self.now(), &mut self.packets);
    }

    /// Runs until [`SensorMessage::Stop`].
    pub fn run(mut self) -> Result<(), SensorError> {
        self.packets.controller.start(self.now());
        let end = self.process();
        self.packets.reporter().wake_reader();
        end
    }

    fn process(&mut self) -> Result<(), SensorError> {
        let mut more_frames = false;
        loop {
            // Reads only ready descriptors, because each system call delays the next ban.
            let ready = self.wait(more_frames)?;
            if ready.messages && self.handle_messages()? {
                return Ok(());
            }
            // One batch of each, so that neither packets nor connections delay the other.
            let frames = self.process_frames()?;
            more_frames = frames == BATCH_SIZE;
            let now = self.now();
            let coalesce = self.batching.count(now, frames) && !more_frames;
            if self.batching.begins_to_flood() {
                self.packets.reporter().metrics.flood.notify_one();
            }
            if ready.decoys {
                self.accept_decoys(now);
            }
            self.packets.run_maintenance(now);
            self.count_drops(now);
            if coalesce {
                std::thread::sleep(COALESCE_DELAY);
            }
        }
    }

    /// Time since the start of the sensor.
    fn now(&self) -> Timestamp {
        Timestamp::at(boot_time().since(self.start))
    }

    /// Waits until a descriptor is ready or maintenance is due. Only polls if the ring buffer holds more frames.
    fn wait(&mut self, more_frames: bool) -> Result<Ready, SensorError> {
        let now = self.now();
        self.accept_retry_at = self.accept_retry_at.filter(|at| *at > now);
        let due = self.packets.next_due().into_iter().chain(self.accept_retry_at).min();
        let timeout = due.map(|due| due.since(now).max(MIN_WAIT));
        let decoys = if self.accept_retry_at.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = [
            PollFd::new(&self.live, PollFlags::IN),
            PollFd::new(&self.inbox, PollFlags::IN),
            PollFd::new(&self.decoys, decoys),
        ];
        // Waking another thread and touching cold memory take longer than judging a packet. Both are done while no
        // packet is waiting, or once the events have waited for [`WAKE_DELAY`].
        let has_events = self.packets.reporter().has_pending();
        let hurry = more_frames || has_events;
        // Polls even with more frames, to notice messages and decoy connections.
        let busy = hurry && (is_ready(&mut fds, Some(Duration::ZERO))? || more_frames);
        if !has_events {
            self.last_flush = now;
        } else if !busy || now.since(self.last_flush) >= WAKE_DELAY {
            self.packets.reporter().wake_reader();
            self.last_flush = now;
        }
        if !busy {
            self.packets.prepare();
            is_ready(&mut fds, timeout)?;
        }
        let [_, messages, decoys] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready { messages, decoys })
    }

    /// Handles the messages in the inbox; true if one of them is to stop.
    fn handle_messages(&mut self) -> Result<bool, SensorError> {
        if !self.inbox.acknowledge() {
            return Ok(false);
        }
        while let Some(message) = self.inbox.pop() {
            crate::panic_guard::failpoint("sensor");
            match message {
                SensorMessage::Capture(live) => self.replace_capture(live)?,
                SensorMessage::Addresses(addresses) => self.decoys.watch_only(addresses),
                SensorMessage::Stop => {
                    self.packets.controller.stop();
                    return Ok(true);
                }
                SensorMessage::Command(command) => commands::execute(command, self.now(), &mut self.packets),
            }
        }
        Ok(false)
    }

    fn replace_capture(&mut self, live: Live) -> Result<(), SensorError> {
        // The old capture still holds frames from before the new one was opened. Under a flood it never becomes empty,
        // but it holds no more frames than its ring buffer.
        for _ in 0..Ring::MAX_PACKETS / BATCH_SIZE {
            if self.process_frames()? < BATCH_SIZE {
                break;
            }
        }
        self.drop_counter.replace(&mut self.live);
        self.live = live;
        Ok(())
    }

    /// Processes a batch of waiting frames: decodes, observes and decides on each, then applies and commits their bans.
    /// Returns their number.
    fn process_frames(&mut self) -> Result<usize, SensorError> {
        let now = self.now();
        let Self { live, packets, .. } = self;
        let mut undecoded = 0;
        let frames = live.drain(BATCH_SIZE, |frame, time| {
            match &wire::decode(Live::LINK_TYPE, frame) {
                Ok(packet) => packets.process_packet(now, packet, time),
                Err(wire::Undecoded::NotIp) => {}
                Err(_) => undecoded += 1,
            }
            if let Some(packet) = wire::decode_untagged(Live::LINK_TYPE, frame) {
                packets.process_packet(now, &packet, time);
            }
        })?;
        let metrics = &packets.reporter().metrics;
        metrics.frames.add(frames as u64);
        metrics.undecoded.add(undecoded);
        packets.finish_batch(now);
        Ok(frames)
    }

    /// Processes a batch of the connections and datagrams that wait at the decoys.
    fn accept_decoys(&mut self, now: Timestamp) {
        if self.accept_retry_at.is_some() {
            return;
        }
        let Self { decoys, packets, .. } = self;
        let accepted = decoys.drain(|observation, time| packets.process_connection(now, observation, time));
        packets.finish_batch(now);
        if let Err(error) = accepted {
            self.accept_retry_at = Some(now.after(ACCEPT_RETRY_DELAY));
            let text = format!("a decoy cannot accept a connection: {error}; retrying in one second");
            packets.reporter().error(text);
        }
    }

    fn count_drops(&mut self, now: Timestamp) {
        if let Some(packets) = self.drop_counter.due(now, &mut self.live) {
            let reporter = self.packets.reporter();
            reporter.metrics.dropped.add(packets);
            reporter.emit(EventKind::Dropped { packets });
        }
    }
}

/// Counts the packets of the current capture and of earlier ones that the kernel dropped because the ring buffer was
/// full.
#[derive(Debug, Default)]
struct DropCounter {
    read_at: Timestamp,
    /// Value of the current capture's counter at the last reading.
    last: u32,
    unreported: u64,
}

impl DropCounter {
    /// Returns the packets dropped since the last report, if any; reads the counter once per [`DROP_REPORT_INTERVAL`].
    fn due(&mut self, now: Timestamp, live: &mut Live) -> Option<u64> {
        if now.since(self.read_at) < DROP_REPORT_INTERVAL {
            return None;
        }
        self.read_at = now;
        self.read(live);
        Some(std::mem::take(&mut self.unreported)).filter(|packets| *packets > 0)
    }

    /// Reads the counter of a capture that is about to be replaced.
    fn replace(&mut self, live: &mut Live) {
        self.read(live);
        self.last = 0;
    }

    fn read(&mut self, live: &mut Live) {
        // After an error, the next reading includes these drops.
        if let Ok(dropped) = live.dropped() {
            self.unreported += u64::from(dropped.wrapping_sub(self.last));
            self.last = dropped;
        }
    }
}

/// Polls `fds` until `timeout`, or without a limit; true if one is ready.
fn is_ready(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<bool, Errno> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}
