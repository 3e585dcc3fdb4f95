//! The kernel's notifications to what others did to the daemon's table. For the shell's side. Judges nothing: whether a
//! ban is restored or a lifted one forgotten is for its caller.
//!
//! All notifications of one transaction come in a row, after it took effect, and end with NEWGEN, which names the
//! process. Elements that expire and elements that a rule adds from the packet path are not told.
//!
//! Read with: nft_commit_notify and nf_tables_fill_gen_info in the kernel's net/netfilter/nf_tables_api.c, and netlink(7)
//! for ENOBUFS.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::task::consume_budget;
use tokio::time::timeout;

use super::message::{Message, Messages, attributes, be_u32, text};
use super::{Element, Remaining, SUBSYSTEM, Set, TABLE, elements_of, kind};
use crate::engine::subject::Subject;
use crate::netlink::socket::SocketError;

/// Something that somebody else did to `table inet portsentry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The table was deleted, with all that was in it: `nft flush ruleset`, `nft delete table`. Changes that come after it
    /// in the same batch belong to a table that was created in its place.
    TableGone,
    /// One of its four sets was deleted, with all that was in it. The rules that used it went before.
    SetGone(Set),
    /// The table, a chain, a rule or a set was added, removed or altered: compare the whole with what it should be.
    RulesetChanged,
    /// An element was added, or its timeout changed.
    ElementAdded(Subject, Remaining),
    /// An element was deleted. `nft flush set` gives one for each.
    ElementRemoved(Subject),
    /// What `allowed` or `allowed6` hold changed.
    AllowedChanged,
    /// Notifications were lost: anything may have happened. All that was notified before is part of it.
    Overrun,
}

/// The process that made a change, in the words of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Its number, that of the thread where it has several.
    pub process: u32,
    /// Its name, at most 15 bytes, chosen by the process itself; what is not printable ASCII stands as "?".
    pub name: String,
}

/// Listens to the nf_tables notifications of the network namespace in which it was opened.
pub struct Monitor {
    socket: TokioSocket,
    datagram: Vec<u8>,
    own: Vec<u32>,
    batch: Batch,
}

/// Changes that have been read and not yet told. Kept in the monitor, so that dropping the future loses none.
#[derive(Debug, Default)]
struct Batch {
    changes: Vec<Change>,
    author: Option<Author>,
    /// The end of a transaction that changed something is still to come.
    open: bool,
    /// Notifications were lost, and older ones may still be queued.
    lost: bool,
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
            socket: asynchronous,
            datagram: Vec::with_capacity(DATAGRAM),
            own: Vec::new(),
            batch: Batch::default(),
        })
    }

    /// From now on, changes made through the socket with this port id are the daemon's own and are not told.
    pub fn ignore(&mut self, port_id: u32) {
        if !self.own.contains(&port_id) {
            self.own.push(port_id);
        }
    }

    /// Takes [`Monitor::ignore`] back. For a socket that was closed: the kernel may give its number to a stranger.
    pub fn heed(&mut self, port_id: u32) {
        self.own.retain(|own| *own != port_id);
    }

    /// Waits until somebody else changes the table; gives whole transactions, in order, with all that arrived
    /// meanwhile. Never empty; a transaction of thousands of changes comes in parts.
    ///
    /// # Cancel safety
    /// What was noticed is told by the next call.
    ///
    /// # Errors
    /// Where the socket fails: open another monitor, and read the table.
    pub async fn next(&mut self) -> Result<Vec<Change>, SocketError> {
        let mut datagrams = 0;
        while datagrams < MOST_DATAGRAMS && self.batch.changes.len() < MOST_CHANGES {
            let arrived = if self.batch.changes.is_empty() {
                self.arrival().await?
            } else if self.batch.open {
                // The rest is in the queue already, or is just being put there; it cannot fail to come, but for an
                // overrun, and that arrives too. The timeout is for a kernel that does otherwise.
                timeout(REST, self.arrival()).await.unwrap_or(Ok(Arrival::Nothing))?
            } else {
                consume_budget().await;
                self.queued()?
            };
            match arrived {
                Arrival::News => self.batch.absorb(&self.datagram, &self.own),
                Arrival::Noise => {}
                Arrival::Overrun => self.batch.lose(),
                Arrival::Nothing => {
                    self.batch.lost = false;
                    break;
                }
            }
            // What others do to other tables, and what we do to ours, may go on for ever.
            datagrams += u32::from(!self.batch.changes.is_empty());
        }
        Ok(self.batch.take())
    }

    /// Who made the last of the changes that [`Monitor::next`] gave, where the kernel has said it.
    #[must_use]
    pub fn author(&self) -> Option<&Author> {
        self.batch.author.as_ref()
    }

    /// Waits for a datagram.
    async fn arrival(&mut self) -> Result<Arrival, SocketError> {
        self.datagram.clear();
        let received = poll_fn(|context| self.socket.poll_recv_from(context, &mut self.datagram)).await;
        self.arrived(received)
    }

    /// Takes a datagram that is there already.
    fn queued(&mut self) -> Result<Arrival, SocketError> {
        self.datagram.clear();
        let received = self.socket.socket_ref().recv_from(&mut self.datagram, 0);
        self.arrived(received.map(|(_, sender)| sender))
    }

    fn arrived(&self, received: io::Result<SocketAddr>) -> Result<Arrival, SocketError> {
        match received {
            // One that fills the room may have been longer.
            Ok(_) if self.datagram.len() >= DATAGRAM => Ok(Arrival::Overrun),
            // Whoever may administer the network may send to the group as well; the kernel is number 0.
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
        self.socket.socket_ref().as_fd()
    }
}

/// What a look into the socket found.
enum Arrival {
    /// A datagram of the kernel.
    News,
    /// Nothing that matters.
    Noise,
    Overrun,
    Nothing,
}

impl Batch {
    /// Takes in the notifications of one datagram.
    fn absorb(&mut self, datagram: &[u8], own: &[u32]) {
        if self.lost {
            return;
        }
        let mut messages = Messages(datagram);
        loop {
            let by = port_id(messages.0);
            let Some(message) = messages.next() else { return };
            if message.kind == NEW_GENERATION {
                if self.open {
                    self.author = author(&message);
                }
                self.open = false;
            } else if by.is_some_and(|by| !own.contains(&by)) {
                self.read(&message);
            }
        }
    }

    /// Takes in one notification about something that is not ours.
    fn read(&mut self, message: &Message<'_>) {
        let Some((kind, list)) = message.nft() else { return };
        // In every one of these messages attribute 1 is the name of the table.
        let field = |wanted| attributes(list).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| text(value));
        if field(TABLE_NAME) != Some(TABLE) {
            return;
        }
        let set = || field(SET_NAME).and_then(|name| SETS.into_iter().find(|set| set.name() == name));
        match kind {
            DELETE_TABLE => {
                // Nothing that happened before has left a trace.
                self.changes.clear();
                self.add(Change::TableGone);
            }
            DELETE_SET => self.add(set().map_or(Change::RulesetChanged, Change::SetGone)),
            kind::NEW_TABLE | kind::NEW_CHAIN | kind::NEW_RULE | kind::NEW_SET | DELETE_CHAIN | DELETE_RULE => {
                self.add(Change::RulesetChanged)
            }
            kind::NEW_ELEMENT | kind::DELETE_ELEMENT => match set() {
                Some(Set::Allowed | Set::Allowed6) => self.add(Change::AllowedChanged),
                Some(Set::Blocked | Set::Blocked6) => {
                    for Element { subject, remaining } in elements_of(list) {
                        self.add(if kind == kind::NEW_ELEMENT {
                            Change::ElementAdded(subject, remaining)
                        } else {
                            Change::ElementRemoved(subject)
                        });
                    }
                }
                None => {}
            },
            _ => {}
        }
    }

    fn add(&mut self, change: Change) {
        if !mem::replace(&mut self.open, true) {
            self.author = None;
        }
        if self.changes.last() != Some(&change) {
            self.changes.push(change);
        }
    }

    /// Notifications were lost. Those still in the queue are older than that, and who acts on them after reading the
    /// table anew would act on the past: they are passed over.
    fn lose(&mut self) {
        self.lost = true;
        self.open = false;
        self.author = None;
        self.changes.clear();
        self.changes.push(Change::Overrun);
    }

    fn take(&mut self) -> Vec<Change> {
        let next = if self.lost { vec![Change::Overrun] } else { Vec::new() };
        mem::replace(&mut self.changes, next)
    }
}

/// The port id in the header of the first message of `bytes`: of the socket whose transaction it tells of.
fn port_id(bytes: &[u8]) -> Option<u32> {
    bytes.get(12..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// The process that the end of a transaction names.
fn author(message: &Message<'_>) -> Option<Author> {
    let (_, list) = message.body.split_first_chunk::<4>()?;
    let field = |wanted| attributes(list).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let name = field(GENERATION_NAME).map(|name| name.strip_suffix(&[0]).unwrap_or(name)).unwrap_or_default();
    let printable = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' };
    Some(Author { process: be_u32(field(GENERATION_PROCESS)?)?, name: name.iter().take(15).map(printable).collect() })
}

/// NFNLGRP_NFTABLES.
const GROUP: u32 = 7;
/// Past the system's limit where this process may. The flush of a full set of 131,072 bans is some 12 MB of
/// notifications, all of them put into the queue at once. Only what is queued takes memory.
const BUFFER: usize = 32 << 20;
/// The kernel fills at most 8 KiB of one datagram of notifications.
const DATAGRAM: usize = 16 << 10;
/// Changes that are held at most, give or take those of one datagram: the rest waits in the kernel.
const MOST_CHANGES: usize = 4_096;
/// Datagrams for one batch: more than the buffer holds, so that after an overrun it is emptied at once.
const MOST_DATAGRAMS: u32 = 1 << 16;
/// How long the end of a transaction is waited for.
const REST: Duration = Duration::from_millis(100);

const SETS: [Set; 4] = [Set::Blocked, Set::Blocked6, Set::Allowed, Set::Allowed6];

// enum nf_tables_msg_types. What a request "destroys" (delete if present) is notified as deleted.
const DELETE_TABLE: u8 = 2;
const DELETE_CHAIN: u8 = 5;
const DELETE_RULE: u8 = 8;
const DELETE_SET: u8 = 11;
/// NFT_MSG_NEWGEN, which has no family.
const NEW_GENERATION: u16 = SUBSYSTEM << 8 | 15;

// enum nft_table_attributes and its like; enum nft_set_attributes, nft_set_elem_list_attributes; enum nft_gen_attributes
const TABLE_NAME: u16 = 1;
const SET_NAME: u16 = 2;
const GENERATION_PROCESS: u16 = 2;
const GENERATION_NAME: u16 = 3;
