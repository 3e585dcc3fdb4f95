//! Reads addresses, routes and links on a separate thread, so that the event loop does not wait for the kernel: a host
//! on the link can make their list take seconds by flooding router advertisements.

use std::io;
use std::thread;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::host::network::{HostError, Reader, Reading};
use crate::host::resolv_conf::ResolverFiles;
use crate::panic_guard;

pub(super) struct NetworkLister {
    requests: Sender<()>,
    readings: Receiver<Result<Reading, HostError>>,
}

impl NetworkLister {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// The thread or its runtime cannot be created.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (requests, mut requested) = channel(1);
        let (found, readings) = channel(1);
        let mut reader = Reader::default();
        let work = move || {
            while requested.blocking_recv().is_some() {
                let reading = runtime.block_on(reader.read(&ResolverFiles::default()));
                if found.blocking_send(reading).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("network".to_owned()).spawn(|| panic_guard::restart_on_panic(work))?;
        Ok(Self { requests, readings })
    }

    /// Requests a reading. If one is under way, another follows, because the first may have missed the change.
    pub(super) fn request(&self) {
        // A full queue holds a request already.
        let _ = self.requests.try_send(());
    }

    /// Waits for the next reading. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Reading, HostError> {
        match self.readings.recv().await {
            Some(reading) => reading,
            // The thread ends only when this receiver is dropped.
            None => std::future::pending().await,
        }
    }
}
