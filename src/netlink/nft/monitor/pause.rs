//! Pauses the monitor while very many elements are added to the sets. For each of them the kernel makes a notification, as long
//! as there is a listener, and that takes as long as the element itself.
//!
//! The kernel's generation, which grows by one with each transaction, tells whether another program changed something
//! meanwhile: compare it with the number of own transactions.
//!
//! References: nf_tables_setelem_notify and nf_tables_commit in the kernel's net/netfilter/nf_tables_api.c.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rtnetlink::sys::{AsyncSocket, TokioSocket};
use tokio::sync::Notify;

/// What a monitor and its [`MonitorPause`] share.
pub(super) struct Line {
    pub(super) socket: TokioSocket,
    unheard: Notify,
    /// How many want silence now.
    pauses: Mutex<u32>,
    /// Why nothing is heard any more.
    deaf: OnceLock<io::ErrorKind>,
}

impl Line {
    pub(super) fn new(socket: TokioSocket) -> Self {
        Self { socket, unheard: Notify::new(), pauses: Mutex::new(0), deaf: OnceLock::new() }
    }

    /// Waits until something may have gone unheard. Safe to cancel.
    ///
    /// # Errors
    /// Where nothing is heard any more.
    pub(super) async fn unheard(&self) -> io::Result<()> {
        self.unheard.notified().await;
        self.deaf.get().map_or(Ok(()), |kind| Err((*kind).into()))
    }

    fn pauses(&self) -> MutexGuard<'_, u32> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One fewer wants silence.
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

/// Has a [`Monitor`](super::Monitor) hear nothing for a while, from any thread.
#[derive(Clone)]
pub struct MonitorPause {
    line: Arc<Line>,
}

impl std::fmt::Debug for MonitorPause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MonitorPause").finish_non_exhaustive()
    }
}

impl MonitorPause {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { line }
    }

    /// From here on nothing is heard, until the silence ends.
    ///
    /// # Errors
    /// Where the socket fails; then all is heard as before.
    pub fn begin(&self) -> io::Result<PausedSpan> {
        let mut pauses = self.line.pauses();
        if *pauses == 0 {
            self.line.socket.socket_ref().drop_membership(GROUP)?;
        }
        *pauses += 1;
        Ok(PausedSpan { line: Arc::clone(&self.line), silent: true, missed: true })
    }
}

/// As long as there is one, the monitor hears nothing. With the end of the last one it hears again; where that fails, it
/// fails. A silence that is only dropped makes it tell [`Change::Unheard`](super::Change::Unheard).
pub struct PausedSpan {
    line: Arc<Line>,
    silent: bool,
    missed: bool,
}

impl PausedSpan {
    /// Ends it. `missed` tells, when all is heard again, whether there was anything to hear meanwhile.
    pub fn end(mut self, missed: impl FnOnce() -> bool) {
        self.listen();
        self.missed = missed();
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
