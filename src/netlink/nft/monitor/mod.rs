//! Reports changes by other programs to the daemon's table, from the kernel's notifications. The caller decides whether
//! a ban is restored or removed.
//!
//! All notifications of one transaction arrive in a row after it took effect, and end with NEWGEN, which names the
//! process. Expired elements and elements that a rule adds in the packet path are not notified.
//!
//! References: nft_commit_notify, nf_tables_fill_gen_info, nf_tables_setelem_notify and nf_tables_commit in
//! net/netfilter/nf_tables_api.c of the kernel, and netlink(7) for ENOBUFS.

mod decoder;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::io::Errno;
use socket2::{SockFilter, SockRef};
use tokio::sync::Notify;
use tokio::task::consume_budget;
use tokio::time::timeout;

use crate::netlink::socket::{SocketError, enlarge_receive_buffer, listen};
use decoder::Decoder;
pub use decoder::{Committer, TableChange};

/// Listens to the nf_tables notifications of the network namespace in which it was opened.
pub struct Monitor {
    state: Arc<MonitorState>,
    datagram: Vec<u8>,
    own: Vec<u32>,
    decoder: Decoder,
}

/// Runs any datagram through the decoder and returns the number of changes. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(datagram: &[u8]) -> usize {
    let mut decoder = Decoder::default();
    decoder.decode(datagram, &[7]);
    decoder.decode(datagram, &[]);
    decoder.drain().len()
}

impl Monitor {
    /// Starts to listen. A later read of the ruleset therefore misses no change.
    ///
    /// # Errors
    /// The kernel has no netfilter netlink, or the process lacks CAP_NET_ADMIN.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub fn open() -> Result<Self, SocketError> {
        let socket = listen(NETLINK_NETFILTER, [GROUP]).map_err(SocketError::on_opening)?;
        socket.socket_ref().connect(&SocketAddr::new(0, 0))?;
        enlarge_receive_buffer(socket.socket_ref(), RECEIVE_BUFFER)?;
        Ok(Self {
            state: Arc::new(MonitorState {
                socket,
                unmonitored: Notify::new(),
                pauses: Mutex::default(),
                deaf: OnceLock::new(),
            }),
            datagram: Vec::with_capacity(DATAGRAM),
            own: Vec::new(),
            decoder: Decoder::default(),
        })
    }

    /// Ignores future changes through the socket with this port id, which belongs to the daemon itself.
    pub fn ignore(&mut self, port_id: u32) {
        if !self.own.contains(&port_id) {
            self.own.push(port_id);
            self.keep_own_back();
        }
    }

    /// Installs a socket filter that drops the daemon's own notifications. Otherwise the kernel would wake this thread
    /// for each ban before the sender gets its acknowledgement, and a flood of bans would fill the queue. If the kernel
    /// refuses the filter, own notifications are skipped when they are read.
    fn keep_own_back(&self) {
        let own = self.own.iter().take(MAX_OWN_SOCKETS);
        // nlmsg_pid is the same in all messages of a transaction. The filter reads it as if it were big-endian.
        let mut program = vec![SockFilter::new(LOAD_WORD, 0, 0, 12)];
        for port_id in own {
            program.push(SockFilter::new(JUMP_EQUAL, 0, 1, u32::from_be_bytes(port_id.to_ne_bytes())));
            program.push(SockFilter::new(RETURN, 0, 0, 0));
        }
        program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
        let _ = SockRef::from(self).attach_filter(&program);
    }

    /// Returns a handle that can pause the notifications.
    #[must_use]
    pub fn pause(&self) -> MonitorPause {
        MonitorPause(Arc::clone(&self.state))
    }

    /// Waits until another program changes the table; returns all changes that have arrived, as whole transactions in
    /// order. Never empty; a transaction of thousands of changes is returned in parts.
    ///
    /// # Cancel safety
    /// Decoded changes are kept and returned by the next call.
    ///
    /// # Errors
    /// The socket failed: open another monitor, and read the table.
    pub async fn next(&mut self) -> Result<Vec<TableChange>, SocketError> {
        let mut datagrams = 0;
        while self.decoder.changes.len() < MAX_CHANGES {
            let most = if self.decoder.lost { QUEUED_DATAGRAMS } else { MAX_DATAGRAMS };
            if datagrams >= most {
                break;
            }
            let arrived = if self.decoder.changes.is_empty() {
                self.arrival().await?
            } else if self.decoder.open {
                // The rest is already queued or being queued. Only an overrun can prevent its arrival, and the overrun
                // is reported too. The timeout covers a misbehaving kernel.
                timeout(MAX_TRANSACTION_WAIT, self.arrival()).await.unwrap_or(Ok(Arrival::Nothing))?
            } else {
                consume_budget().await;
                self.queued()?
            };
            match arrived {
                Arrival::Notification => self.decoder.decode(&self.datagram, &self.own),
                Arrival::Irrelevant => {}
                Arrival::Unmonitored => self.decoder.miss(),
                Arrival::Overrun => self.decoder.record_overrun(),
                Arrival::Nothing => {
                    self.decoder.lost = false;
                    break;
                }
            }
            // Changes of other tables and own changes may continue without end.
            datagrams += u32::from(!self.decoder.changes.is_empty());
        }
        Ok(self.decoder.drain())
    }

    /// The process that made the last change returned by [`Monitor::next`], if the kernel named it.
    pub fn committer(&self) -> Option<&Committer> {
        self.decoder.committer.as_ref()
    }

    /// Waits for a datagram.
    async fn arrival(&mut self) -> Result<Arrival, SocketError> {
        self.datagram.clear();
        let (state, datagram) = (&self.state, &mut self.datagram);
        let received = tokio::select! {
            unmonitored = state.unmonitored() => return Ok(unmonitored.map(|()| Arrival::Unmonitored)?),
            received = state.socket.recv_from(datagram) => received,
        };
        self.arrived(received)
    }

    /// Receives a datagram that is already queued.
    fn queued(&mut self) -> Result<Arrival, SocketError> {
        self.datagram.clear();
        let received = self.state.socket.socket_ref().recv_from(&mut self.datagram, 0);
        self.arrived(received.map(|(_, sender)| sender))
    }

    fn arrived(&self, received: io::Result<SocketAddr>) -> Result<Arrival, SocketError> {
        match received {
            // A datagram that fills the buffer may have been truncated.
            Ok(_) if self.datagram.len() >= DATAGRAM => Ok(Arrival::Overrun),
            // Any process with CAP_NET_ADMIN may send to the group as well; the kernel has port id 0.
            Ok(sender) => Ok(if sender.port_number() == 0 { Arrival::Notification } else { Arrival::Irrelevant }),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => Ok(Arrival::Irrelevant),
                Some(Errno::AGAIN) => Ok(Arrival::Nothing),
                Some(Errno::NOBUFS) => Ok(Arrival::Overrun),
                _ => Err(error.into()),
            },
        }
    }
}

impl AsFd for Monitor {
    /// For socket options and statistics; do not read from it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.socket.socket_ref().as_fd()
    }
}

/// State shared by a monitor and its [`MonitorPause`].
struct MonitorState {
    socket: TokioSocket,
    unmonitored: Notify,
    /// Number of active pauses.
    pauses: Mutex<u32>,
    /// Error that ended the notifications for good.
    deaf: OnceLock<io::ErrorKind>,
}

impl MonitorState {
    /// Waits until notifications may have been missed. Cancel safe.
    ///
    /// # Errors
    /// The notifications have ended for good.
    async fn unmonitored(&self) -> io::Result<()> {
        self.unmonitored.notified().await;
        self.deaf.get().map_or(Ok(()), |kind| Err((*kind).into()))
    }

    fn pauses(&self) -> MutexGuard<'_, u32> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pauses a [`Monitor`] from any thread, while very many elements are added to the sets. While there is a listener, the
/// kernel creates a notification for each element, which takes as long as adding the element itself.
///
/// The kernel's generation grows by one with each transaction. The caller compares it with the number of its own
/// transactions, to detect changes by other programs during the pause.
#[derive(Clone)]
pub struct MonitorPause(Arc<MonitorState>);

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
        Ok(PausedSpan { state: Arc::clone(&self.0), silent: true, missed: true })
    }
}

/// The monitor receives no notifications while a span exists. When the last one ends, notifications start again; if
/// that fails, the monitor fails. Dropping a span instead of ending it makes the monitor report
/// [`TableChange::Unmonitored`].
pub struct PausedSpan {
    state: Arc<MonitorState>,
    silent: bool,
    missed: bool,
}

impl PausedSpan {
    /// Ends the span. Calls `missed` once notifications arrive again, and returns its result: whether a change was
    /// missed.
    pub fn end(mut self, missed: impl FnOnce() -> bool) -> bool {
        self.listen();
        self.missed = missed();
        self.missed
    }

    /// Ends the pause, unless it has already ended.
    fn listen(&mut self) {
        if !std::mem::take(&mut self.silent) {
            return;
        }
        let mut pauses = self.state.pauses();
        *pauses = pauses.saturating_sub(1);
        if *pauses == 0
            && let Err(error) = self.state.socket.socket_ref().add_membership(GROUP)
        {
            let _ = self.state.deaf.set(error.kind());
            self.state.unmonitored.notify_one();
        }
    }
}

impl Drop for PausedSpan {
    fn drop(&mut self) {
        self.listen();
        if self.missed {
            self.state.unmonitored.notify_one();
        }
    }
}

/// Result of one receive attempt.
enum Arrival {
    /// A datagram of the kernel.
    Notification,
    /// Nothing relevant.
    Irrelevant,
    Unmonitored,
    Overrun,
    Nothing,
}

/// NFNLGRP_NFTABLES.
const GROUP: u32 = 7;
/// Instructions of the kernel's packet filter, from linux/filter.h: BPF_LD+BPF_W+BPF_ABS, BPF_JMP+BPF_JEQ+BPF_K,
/// BPF_RET+BPF_K.
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Maximum number of own sockets in the filter; the daemon has one. A filter may have 4,096 instructions.
const MAX_OWN_SOCKETS: usize = 1_000;
/// Receive buffer, above the system's limit if the process is permitted. The flush of a full set of 131,072 bans queues
/// about 12 MB of notifications at once. Only queued data uses memory.
const RECEIVE_BUFFER: usize = 32 << 20;
/// The kernel fills at most 8 KiB of a notification datagram.
const DATAGRAM: usize = 16 << 10;
/// Maximum number of decoded changes, plus those of one datagram; the rest waits in the kernel.
const MAX_CHANGES: usize = 4_096;
/// Maximum number of datagrams per batch, so that changes are returned even if other programs never pause.
const MAX_DATAGRAMS: u32 = 1 << 10;
/// More than the buffer can hold at twice its size, with about 700 bytes per datagram: after an overrun the queue is
/// emptied in one go.
const QUEUED_DATAGRAMS: u32 = 1 << 17;
/// Maximum wait for the end of a transaction.
const MAX_TRANSACTION_WAIT: Duration = Duration::from_millis(100);
