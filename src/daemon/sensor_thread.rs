//! The sensor's thread, before there is a sensor: it takes its priority while that is still permitted, gives up the right to
//! it, and waits.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::{DaemonError, priority, system};
use crate::sandbox;

type Play = Box<dyn FnOnce() + Send>;

/// The thread that waits. It ends where this is dropped.
pub(super) struct SensorThread {
    play: SyncSender<Play>,
    thread: JoinHandle<()>,
}

impl SensorThread {
    /// Starts the thread; when this returns it has its priority, or is not permitted to.
    ///
    /// # Errors
    /// Where the system has no thread to give.
    pub(super) fn build(sandboxed: bool) -> Result<Self, DaemonError> {
        let (play, waits) = sync_channel::<Play>(1);
        let (built, is_built) = sync_channel(1);
        let thread = thread::Builder::new().name("sensor".to_owned()).spawn(move || {
            // In vain in most containers; the figures of the reaction time show it.
            let _ = priority::raise();
            if sandboxed {
                sandbox::forget_priority();
            }
            let _ = built.send(());
            if let Ok(play) = waits.recv() {
                play();
            }
        });
        let thread = thread.map_err(system("start the sensor's thread"))?;
        // Where it has ended instead, whoever enters is told by its silence.
        let _ = is_built.recv();
        Ok(Self { play, thread })
    }

    /// Runs `play` on the thread.
    pub(super) fn enter(self, play: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        // There is room for one, and this is the one.
        let _ = self.play.send(Box::new(play));
        self.thread
    }
}
