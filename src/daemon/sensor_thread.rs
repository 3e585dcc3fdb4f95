//! The daemon's side of the sensor thread. The thread starts before the sensor exists: it sets its real-time priority
//! while that is still permitted, gives up the capability for it, and waits. [`SensorHandle`] sends it messages and
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
use crate::sensor::{ReplySender, SensorCommand, SensorInbox, SensorMessage, SensorMetrics, SensorRequest};

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
    pub(super) inbox: SensorInbox,
    pub(super) metrics: Arc<SensorMetrics>,
}

impl SensorHandle {
    pub(super) fn new() -> Result<Self, DaemonError> {
        let inbox = SensorInbox::new().map_err(DaemonError::system("make an event descriptor"))?;
        Ok(Self { inbox, metrics: Arc::default() })
    }

    /// Sends `message`, unless the inbox is full: then the sensor has been too busy with packets to take the last thousand messages. A
    /// lost snapshot is repeated by the next change, because every snapshot is complete, and a lost request has no
    /// answer.
    pub(super) fn send(&self, message: impl Into<SensorMessage>) {
        let _ = self.inbox.send(message.into());
    }

    /// Sends several messages, as [`SensorHandle::send`].
    pub(super) fn send_all(&self, messages: impl IntoIterator<Item = impl Into<SensorMessage>>) {
        messages.into_iter().for_each(|message| self.send(message));
    }

    /// Sends `command`; blocks this thread while the inbox is full.
    pub(super) fn send_blocking(&self, command: SensorCommand) {
        let mut message = command.into();
        while let Err(back) = self.inbox.send(message) {
            message = back;
            std::thread::sleep(RETRY_DELAY);
        }
    }

    /// Sends `message`; this task waits while the inbox is full.
    pub(super) async fn send_waiting(&self, message: impl Into<SensorMessage>) {
        let mut message = message.into();
        while let Err(back) = self.inbox.send(message) {
            message = back;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Sends a request that `request` builds from the answer channel; `None` if the inbox is full.
    pub(super) fn try_ask<T>(
        &self,
        request: impl FnOnce(ReplySender<T>) -> SensorRequest,
    ) -> Option<oneshot::Receiver<T>> {
        let (sent, answer) = oneshot::channel();
        self.inbox.send(SensorCommand::Request(request(sent)).into()).is_ok().then_some(answer)
    }

    /// Sends a request that `request` builds from the answer channel. If the inbox is full, the answer is an error.
    pub(super) fn ask<T>(&self, request: impl FnOnce(ReplySender<T>) -> SensorRequest) -> oneshot::Receiver<T> {
        // A receiver without a sender returns an error immediately.
        self.try_ask(request).unwrap_or_else(|| oneshot::channel().1)
    }
}
