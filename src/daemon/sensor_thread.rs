//! Starts the sensor thread before the sensor exists: the thread sets its real-time priority while that is still
//! permitted, gives up the capability for it, and waits.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

use super::error::DaemonError;
use crate::sandbox;

type Work = Box<dyn FnOnce() + Send>;

/// The waiting thread. It ends when this is dropped.
pub(super) struct SensorThread {
    work: SyncSender<Work>,
    thread: JoinHandle<()>,
}

impl SensorThread {
    /// Starts the thread. When this returns, the thread has its priority, or was not permitted to set it.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub(super) fn start(sandboxed: bool) -> Result<Self, DaemonError> {
        let (work, waits) = sync_channel::<Work>(1);
        let (ready, is_ready) = sync_channel(1);
        let thread = thread::Builder::new().name("sensor".to_owned()).spawn(move || {
            // Fails in most containers; the reaction-time metrics show it.
            let _ = raise_priority();
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
const LOWEST: u8 = 1;

/// Puts the calling thread under SCHED_RR. Without it a ban often waits a few milliseconds for the scheduler, and a
/// scanner learns about more ports in that time. False if that is not permitted (CAP_SYS_NICE, RLIMIT_RTPRIO):
/// everything works without it, but with more delay under load. The kernel reserves a share of each core for ordinary
/// threads (kernel.sched_rt_runtime_us), so that a flood of packets cannot starve the host.
fn raise_priority() -> bool {
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin);
    ThreadPriority::try_from(LOWEST)
        .is_ok_and(|priority| set_thread_priority_and_policy(thread_native_id(), priority, policy).is_ok())
}
