//! The daemon's side of the sensor thread. The thread starts before the sensor exists: it sets its real-time priority
//! while that is still permitted, gives up the capability for it, and waits. [`SensorHandle`] sends it commands and
//! requests, and reads its metrics.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::sync::oneshot;

use super::error::DaemonError;
use crate::sandbox;
use crate::sensor::{Inbox, ReplySender, SensorCommand, SensorMetrics, SensorRequest};

type ThreadMain = Box<dyn FnOnce() + Send>;

/// The waiting thread. It ends when this is dropped.
pub(super) struct SensorThread {
    work: SyncSender<ThreadMain>,
    thread: JoinHandle<()>,
}

impl SensorThread {
    /// Starts the thread. When this returns, the thread has its priority, or was not permitted to set it.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub(super) fn start(sandboxed: bool) -> Result<Self, DaemonError> {
        let (work, waits) = sync_channel::<ThreadMain>(1);
        let (ready, is_ready) = sync_channel(1);
        let thread = thread::Builder::new().name("sensor".to_owned()).spawn(move || {
            raise_priority();
            if sandboxed {
                sandbox::forget_priority();
            }
            let _ = ready.send(());
            if let Ok(work) = waits.recv() {
                work();
            }
        });
        let thread = thread.map_err(DaemonError::system("start the sensor's thread"))?;
        // If the thread has ended instead, the channel is closed.
        let _ = is_ready.recv();
        Ok(Self { work, thread })
    }

    pub(super) fn run(self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        // The channel has capacity for the only message.
        let _ = self.work.send(Box::new(work));
        self.thread
    }
}

/// The lowest real-time priority: above all ordinary threads, below all other real-time threads.
const LOWEST_PRIORITY: u8 = 1;

/// Puts the calling thread under SCHED_RR. Without it a ban often waits a few milliseconds for the scheduler, and a
/// scanner learns about more ports in that time. In most containers that is not permitted (CAP_SYS_NICE,
/// RLIMIT_RTPRIO): everything works without it, but with more delay under load, which the reaction-time metrics show.
/// The kernel reserves a share of each core for ordinary threads (kernel.sched_rt_runtime_us), so that a flood of
/// packets cannot starve the host.
fn raise_priority() {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    if let Ok(priority) = ThreadPriority::try_from(LOWEST_PRIORITY) {
        let _ = set_thread_priority_and_policy(thread_native_id(), priority, policy);
    }
}

/// Delay before a full inbox is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(5);

#[derive(Clone)]
pub(super) struct SensorHandle {
    pub(super) inbox: Inbox,
    pub(super) metrics: Arc<SensorMetrics>,
}

impl SensorHandle {
    pub(super) fn new() -> Result<Self, DaemonError> {
        let inbox = Inbox::new().map_err(DaemonError::system("make an event descriptor"))?;
        Ok(Self { inbox, metrics: Arc::default() })
    }

    /// Sends `command`, unless the inbox is full: then the sensor has been busy with packets for a thousand commands. A
    /// lost snapshot is repeated by the next change, because every snapshot is complete, and a lost request has no
    /// answer.
    pub(super) fn send(&self, command: SensorCommand) {
        let _ = self.inbox.send(command);
    }

    /// Sends several commands, as [`SensorHandle::send`].
    pub(super) fn send_all(&self, commands: impl IntoIterator<Item = SensorCommand>) {
        commands.into_iter().for_each(|command| self.send(command));
    }

    /// Sends `command`; blocks this thread while the inbox is full.
    pub(super) fn send_blocking(&self, mut command: SensorCommand) {
        while let Err(back) = self.inbox.send(command) {
            command = back;
            std::thread::sleep(RETRY_DELAY);
        }
    }

    /// Sends `command`; this task waits while the inbox is full.
    pub(super) async fn send_waiting(&self, mut command: SensorCommand) {
        while let Err(back) = self.inbox.send(command) {
            command = back;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Sends a request that `request` builds from the answer channel; `None` if the inbox is full.
    pub(super) fn try_ask<T>(
        &self,
        request: impl FnOnce(ReplySender<T>) -> SensorRequest,
    ) -> Option<oneshot::Receiver<T>> {
        let (sent, answer) = oneshot::channel();
        self.inbox.send(SensorCommand::Request(request(sent))).is_ok().then_some(answer)
    }

    /// Sends a request that `request` builds from the answer channel. If the inbox is full, the answer is an error.
    pub(super) fn ask<T>(&self, request: impl FnOnce(ReplySender<T>) -> SensorRequest) -> oneshot::Receiver<T> {
        // A receiver without a sender returns an error immediately.
        self.try_ask(request).unwrap_or_else(|| oneshot::channel().1)
    }
}
