//! Pauses the monitor while very many elements are added to the sets. While there is a listener, the kernel creates a
//! notification for each element, which takes as long as adding the element itself.
//!
//! The kernel's generation grows by one with each transaction. The caller compares it with the number of its own
//! transactions, to detect changes by other programs during the pause.
//!
//! References: nf_tables_setelem_notify and nf_tables_commit in the kernel's net/netfilter/nf_tables_api.c.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rtnetlink::sys::{AsyncSocket, TokioSocket};
use tokio::sync::Notify;

/// State shared by a monitor and its [`MonitorPause`].
pub(super) struct Line {
    pub(super) socket: TokioSocket,
    unheard: Notify,
    /// Number of active pauses.
    pauses: Mutex<u32>,
    /// Error that ended the notifications for good.
    deaf: OnceLock<io::ErrorKind>,
}

impl Line {
    pub(super) fn new(socket: TokioSocket) -> Self {
        Self { socket, unheard: Notify::new(), pauses: Mutex::new(0), deaf: OnceLock::new() }
    }

    /// Waits until notifications may have been missed. Cancel safe.
    ///
    /// # Errors
    /// The notifications have ended for good.
    pub(super) async fn unheard(&self) -> io::Result<()> {
        self.unheard.notified().await;
        self.deaf.get().map_or(Ok(()), |kind| Err((*kind).into()))
    }

    fn pauses(&self) -> MutexGuard<'_, u32> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends one pause.
    fn listen(&self) {
        let mut pauses = self.pauses();
        *pauses = pauses.saturating_sub(1);
        if *pauses == 0
            && let Err(error) = self.socket.socket_ref().add_membership(GROUP)
        {
            let _ = self.deaf.set(error.kind());
            self.unheard.notify_one();
        }
    }
}

/// Pauses a [`Monitor`](super::Monitor) from any thread.
#[derive(Clone)]
pub struct MonitorPause(pub(super) Arc<Line>);

impl std::fmt::Debug for MonitorPause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MonitorPause").finish_non_exhaustive()
    }
}

impl MonitorPause {
    /// Stops the notifications until the returned span ends.
    ///
    /// # Errors
    /// The socket failed; notifications continue as before.
    pub fn begin(&self) -> io::Result<PausedSpan> {
        let mut pauses = self.0.pauses();
        if *pauses == 0 {
            self.0.socket.socket_ref().drop_membership(GROUP)?;
        }
        *pauses += 1;
        Ok(PausedSpan { line: Arc::clone(&self.0), silent: true, missed: true })
    }
}

/// The monitor receives no notifications while a span exists. When the last one ends, notifications start again; if
/// that fails, the monitor fails. Dropping a span instead of ending it makes the monitor report
/// [`Change::Unheard`](super::Change::Unheard).
pub struct PausedSpan {
    line: Arc<Line>,
    silent: bool,
    missed: bool,
}

impl PausedSpan {
    /// Ends the span. `missed` is called once notifications arrive again, and returns whether a change was missed.
    pub fn end(mut self, missed: impl FnOnce() -> bool) -> bool {
        self.listen();
        self.missed = missed();
        self.missed
    }

    fn listen(&mut self) {
        if std::mem::take(&mut self.silent) {
            self.line.listen();
        }
    }
}

impl Drop for PausedSpan {
    fn drop(&mut self) {
        self.listen();
        if self.missed {
            self.line.unheard.notify_one();
        }
    }
}

/// NFNLGRP_NFTABLES.
pub(super) const GROUP: u32 = 7;
