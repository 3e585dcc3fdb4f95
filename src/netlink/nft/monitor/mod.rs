//! Reports what other programs do to the daemon's table, from the kernel's notifications. Decides nothing: whether a ban is
//! restored or forgotten is for its caller.
//!
//! All notifications of one transaction come in a row, after it took effect, and end with NEWGEN, which names the
//! process. Elements that expire and elements that a rule adds from the packet path are not told.
//!
//! References: nft_commit_notify and nf_tables_fill_gen_info in the kernel's net/netfilter/nf_tables_api.c, and netlink(7)
//! for ENOBUFS.

mod change;
mod decoder;
mod pause;

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::io::Errno;
use rustix::net::sockopt;
use socket2::{SockFilter, SockRef};
use tokio::task::consume_budget;
use tokio::time::timeout;

use crate::netlink::socket::SocketError;
pub use change::{Author, Change};
use decoder::Decoder;
use pause::{GROUP, Line};
pub use pause::{MonitorPause, PausedSpan};

/// Listens to the nf_tables notifications of the network namespace in which it was opened.
pub struct Monitor {
    line: Arc<Line>,
    datagram: Vec<u8>,
    own: Vec<u32>,
    decoder: Decoder,
}

/// Any datagram through the reader of notifications: how many changes it tells. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(datagram: &[u8]) -> usize {
    let mut decoder = Decoder::default();
    decoder.absorb(datagram, &[7]);
    decoder.absorb(datagram, &[]);
    decoder.drain().len()
}

impl Monitor {
    /// Begins to listen. What is read from the kernel after this misses no change.
    ///
    /// # Errors
    /// Where the kernel has no netfilter netlink, or the process lacks CAP_NET_ADMIN.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub fn open() -> Result<Self, SocketError> {
        let mut asynchronous =
            TokioSocket::new(NETLINK_NETFILTER).map_err(|error| match Errno::from_io_error(&error) {
                Some(errno @ (Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT)) => SocketError::NoNfTables(errno),
                _ => SocketError::Io(error),
            })?;
        let socket = asynchronous.socket_mut();
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        if sockopt::set_socket_recv_buffer_size_force(&*socket, BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&*socket, BUFFER).map_err(io::Error::from)?;
        }
        socket.add_membership(GROUP).map_err(|error| match Errno::from_io_error(&error) {
            Some(errno @ Errno::PERM) => SocketError::NotPermitted(errno),
            _ => SocketError::Io(error),
        })?;
        Ok(Self {
            line: Arc::new(Line::new(asynchronous)),
            datagram: Vec::with_capacity(DATAGRAM),
            own: Vec::new(),
            decoder: Decoder::default(),
        })
    }

    /// From now on, changes made through the socket with this port id are the daemon's own and are not told.
    pub fn ignore(&mut self, port_id: u32) {
        if !self.own.contains(&port_id) {
            self.own.push(port_id);
            self.keep_own_back();
        }
    }

    /// Takes [`Monitor::ignore`] back. For a socket that was closed: the kernel may give its number to a stranger.
    pub fn unignore(&mut self, port_id: u32) {
        self.own.retain(|own| *own != port_id);
        self.keep_own_back();
    }

    /// Has the kernel keep back what is not to be told: else it would wake this thread for each ban before the one that sent it
    /// has its acknowledgement, and a flood of bans would fill the queue. Where it refuses, all is passed over when it is
    /// read.
    fn keep_own_back(&self) {
        let own = self.own.iter().take(MOST_OWN);
        // nlmsg_pid, the same in all messages of a transaction; the filter reads it as if it were big-endian.
        let mut program = vec![SockFilter::new(LOAD_WORD, 0, 0, 12)];
        for port_id in own {
            program.push(SockFilter::new(JUMP_EQUAL, 0, 1, u32::from_be_bytes(port_id.to_ne_bytes())));
            program.push(SockFilter::new(RETURN, 0, 0, 0));
        }
        program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
        let _ = SockRef::from(self).attach_filter(&program);
    }

    /// A way to have the kernel tell nothing for a while.
    #[must_use]
    pub fn pause(&self) -> MonitorPause {
        MonitorPause::new(Arc::clone(&self.line))
    }

    /// Waits until another program changes the table; gives whole transactions, in order, with all that arrived
    /// meanwhile. Never empty; a transaction of thousands of changes comes in parts.
    ///
    /// # Cancel safety
    /// What was noticed is told by the next call.
    ///
    /// # Errors
    /// Where the socket fails: open another monitor, and read the table.
    pub async fn next(&mut self) -> Result<Vec<Change>, SocketError> {
        let mut datagrams = 0;
        while datagrams < self.most_datagrams() && self.decoder.changes.len() < MOST_CHANGES {
            let arrived = if self.decoder.changes.is_empty() {
                self.arrival().await?
            } else if self.decoder.open {
                // The rest is in the queue already, or is just being put there; it cannot fail to come, but for an
                // overrun, and that arrives too. The timeout is for a kernel that does otherwise.
                timeout(REST, self.arrival()).await.unwrap_or(Ok(Arrival::Nothing))?
            } else {
                consume_budget().await;
                self.queued()?
            };
            match arrived {
                Arrival::News => self.decoder.absorb(&self.datagram, &self.own),
                Arrival::Noise => {}
                Arrival::Unheard => self.decoder.miss(),
                Arrival::Overrun => self.decoder.lose(),
                Arrival::Nothing => {
                    self.decoder.lost = false;
                    break;
                }
            }
            // What others do to other tables, and what we do to ours, may go on without end.
            datagrams += u32::from(!self.decoder.changes.is_empty());
        }
        Ok(self.decoder.drain())
    }

    /// The process that made the last change that [`Monitor::next`] returned, if the kernel named it.
    #[must_use]
    pub fn author(&self) -> Option<&Author> {
        self.decoder.author.as_ref()
    }

    fn most_datagrams(&self) -> u32 {
        if self.decoder.lost { QUEUED_DATAGRAMS } else { MOST_DATAGRAMS }
    }

    /// Waits for a datagram.
    async fn arrival(&mut self) -> Result<Arrival, SocketError> {
        self.datagram.clear();
        let (line, datagram) = (&self.line, &mut self.datagram);
        let received = tokio::select! {
            unheard = line.unheard() => return Ok(unheard.map(|()| Arrival::Unheard)?),
            received = poll_fn(|context| line.socket.poll_recv_from(context, datagram)) => received,
        };
        self.arrived(received)
    }

    /// Takes a datagram that is there already.
    fn queued(&mut self) -> Result<Arrival, SocketError> {
        self.datagram.clear();
        let received = self.line.socket.socket_ref().recv_from(&mut self.datagram, 0);
        self.arrived(received.map(|(_, sender)| sender))
    }

    fn arrived(&self, received: io::Result<SocketAddr>) -> Result<Arrival, SocketError> {
        match received {
            // One that fills the room may have been longer.
            Ok(_) if self.datagram.len() >= DATAGRAM => Ok(Arrival::Overrun),
            // Any process with CAP_NET_ADMIN may send to the group as well; the kernel is number 0.
            Ok(sender) => Ok(if sender.port_number() == 0 { Arrival::News } else { Arrival::Noise }),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => Ok(Arrival::Noise),
                Some(Errno::AGAIN) => Ok(Arrival::Nothing),
                Some(Errno::NOBUFS) => Ok(Arrival::Overrun),
                _ => Err(error.into()),
            },
        }
    }
}

impl AsFd for Monitor {
    /// For socket options and figures; do not read from it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.socket.socket_ref().as_fd()
    }
}

/// What a look into the socket found.
enum Arrival {
    /// A datagram of the kernel.
    News,
    /// Nothing that matters.
    Noise,
    Unheard,
    Overrun,
    Nothing,
}

/// Instructions of the kernel's packet filter, from linux/filter.h: BPF_LD+BPF_W+BPF_ABS, BPF_JMP+BPF_JEQ+BPF_K, BPF_RET+BPF_K.
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Sockets of the daemon's own that the kernel is told of; it has one. It takes 4,096 instructions.
const MOST_OWN: usize = 1_000;
/// Past the system's limit where this process may. The flush of a full set of 131,072 bans is some 12 MB of
/// notifications, all of them put into the queue at once. Only what is queued takes memory.
const BUFFER: usize = 32 << 20;
/// The kernel fills at most 8 KiB of one datagram of notifications.
const DATAGRAM: usize = 16 << 10;
/// Changes that are held at most, give or take those of one datagram: the rest waits in the kernel.
const MOST_CHANGES: usize = 4_096;
/// Datagrams for one batch: while others are at it without a pause, what they did is told all the same.
const MOST_DATAGRAMS: u32 = 1 << 10;
/// More than the buffer holds, twice its size with the kernel's own share of some 700 bytes each: after an overrun it is
/// emptied at once.
const QUEUED_DATAGRAMS: u32 = 1 << 17;
/// How long the end of a transaction is waited for.
const REST: Duration = Duration::from_millis(100);
