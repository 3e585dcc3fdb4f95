//! Starts the sensor thread before the sensor exists: the thread sets its real-time priority while that is still
//! permitted, gives up the capability for it, and waits.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::error::DaemonError;
use super::priority;
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
            let _ = priority::raise();
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
