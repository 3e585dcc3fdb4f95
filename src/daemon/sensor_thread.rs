//! Starts the sensor thread before there is a sensor: it takes its real-time priority while that is still permitted, gives
//! up the right to it, and waits.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::error::DaemonError;
use super::priority;
use crate::sandbox;

type Work = Box<dyn FnOnce() + Send>;

/// The thread that waits. It ends where this is dropped.
pub(super) struct SensorThread {
    work: SyncSender<Work>,
    thread: JoinHandle<()>,
}

impl SensorThread {
    /// Starts the thread; when this returns it has its priority, or is not permitted to.
    ///
    /// # Errors
    /// Where the system has no thread to give.
    pub(super) fn start(sandboxed: bool) -> Result<Self, DaemonError> {
        let (work, waits) = sync_channel::<Work>(1);
        let (ready, is_ready) = sync_channel(1);
        let thread = thread::Builder::new().name("sensor".to_owned()).spawn(move || {
            // In vain in most containers; the figures of the reaction time show it.
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
        // Where it has ended instead, the silence says so.
        let _ = is_ready.recv();
        Ok(Self { work, thread })
    }

    /// Runs `work` on the thread.
    pub(super) fn run(self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        // There is room for one, and this is the one.
        let _ = self.work.send(Box::new(work));
        self.thread
    }
}
