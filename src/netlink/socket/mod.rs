//! Sends requests and transactions for nf_tables, the routing tables and the socket tables to the kernel over one
//! long-lived socket, and waits for the answers. Synchronous: the thread that saw the packet waits for the
//! acknowledgement. Does not interpret the messages.
//!
//! References: linux/netlink.h, and nfnetlink_rcv_batch in the kernel's net/netfilter/nfnetlink.c for the order of
//! answers.

mod batch;
mod error;

use std::ops::ControlFlow::{self, Break, Continue};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::SocketAddr;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use nix::libc::MSG_TRUNC;
use rtnetlink::sys::{AsyncSocket, TokioSocket};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};

use super::message::{Message, Messages, field, number_messages, patch, text};
pub use batch::Batch;
pub(super) use batch::{BATCH_MARKER_LEN, FAMILY_INET, SUBSYSTEM, put_inet_message};
pub use error::SocketError;
use error::{ANSWER_TIMEOUT, MAX_ATTEMPTS};

/// A socket to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    inner: netlink_sys::Socket,
    port_id: u32,
    sequence: u32,
    /// Number of successful transactions through this socket and its clones.
    changes: Arc<AtomicU32>,
    replies: Vec<u8>,
}

impl Socket {
    /// Opens a socket to nf_tables. Missing kernel support or permission shows only at the first request.
    pub fn open() -> Result<Self, SocketError> {
        Self::connected(NETLINK_NETFILTER).map_err(SocketError::on_opening)
    }

    /// Opens a socket to the routing tables.
    pub(crate) fn open_route() -> Result<Self, SocketError> {
        let socket = Self::connected(NETLINK_ROUTE)?;
        // Enables filtering of lists in the kernel. Kernels before 4.20 lack it; then the reader has to filter.
        let _ = socket.inner.set_netlink_get_strict_chk(true);
        Ok(socket)
    }

    /// Opens a socket to the socket tables, on which each wait ends after `timeout`.
    pub(in crate::netlink) fn open_sock_diag(timeout: Duration) -> std::io::Result<Self> {
        let socket = Self::connected(NETLINK_SOCK_DIAG)?;
        sockopt::set_socket_timeout(&socket.inner, Timeout::Recv, Some(timeout))?;
        Ok(socket)
    }

    fn connected(protocol: isize) -> std::io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(protocol)?;
        let port_id = inner.bind_auto()?.port_number();
        // Connected to the kernel, so that no other process can inject an answer.
        inner.connect(&SocketAddr::new(KERNEL, 0))?;
        sockopt::set_socket_timeout(&inner, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        sockopt::set_socket_timeout(&inner, Timeout::Send, Some(ANSWER_TIMEOUT))?;
        // Errors without a copy of the refused message, so that many fit into the buffer, and with an explanation if
        // available.
        inner.set_cap_ack(true)?;
        inner.set_ext_ack(true)?;
        // Above the system's limit if permitted, otherwise up to it: smaller buffers only cause more retries.
        if sockopt::set_socket_send_buffer_size_force(&inner, SOCKET_BUFFER).is_err() {
            sockopt::set_socket_send_buffer_size(&inner, SOCKET_BUFFER)?;
        }
        enlarge_receive_buffer(&inner, SOCKET_BUFFER)?;
        Ok(Self { inner, port_id, sequence: 1, changes: Arc::default(), replies: vec![0; REPLY] })
    }

    /// The port id by which the kernel identifies this socket in notifications of its changes. It is unique in the
    /// network namespace while the socket is open.
    pub fn port_id(&self) -> u32 {
        self.port_id
    }

    /// Opens another socket to nf_tables that shares the transaction count of this one.
    pub fn try_clone(&self) -> Result<Self, SocketError> {
        Ok(Self { changes: Arc::clone(&self.changes), ..Self::open()? })
    }

    /// Number of successful transactions through this socket and its clones; wraps after 2^32.
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Sends the transaction and waits until it is in force. An error reports the first refused message.
    pub fn transact(&mut self, batch: &mut Batch) -> Result<(), SocketError> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.sequence;
        let (bytes, last) = batch.seal(first);
        // The sequence number of END is used as well.
        self.sequence = last.wrapping_add(2);
        send(&self.inner, bytes)?;
        let count = last.wrapping_sub(first);
        let mut refused = None;
        self.receive_answers(first, count, |place, message| {
            let Some(ack) = Ack::read(message) else { return Continue(()) };
            if refused.is_none() {
                refused = ack.refusal(place);
            }
            // An error about BEGIN concerns the whole transaction, and may be the only answer.
            if place == count || (place == 0 && refused.is_some()) { Break(()) } else { Continue(()) }
        })?;
        self.changes.fetch_add(u32::from(refused.is_none()), Ordering::Relaxed);
        refused.map_or(Ok(()), Err)
    }

    /// Receives the answers to the requests with the sequence number `first` and the `more` following ones, and passes
    /// each to `take` with its place among them, until that breaks. Other messages are late answers to an abandoned
    /// request.
    #[inline]
    fn receive_answers<T>(
        &mut self,
        first: u32,
        more: u32,
        mut take: impl FnMut(u32, &Message<'_>) -> ControlFlow<T>,
    ) -> Result<T, SocketError> {
        loop {
            if let Break(end) = read_answers(receive(&self.inner, &mut self.replies)?, first, more, &mut take)? {
                return Ok(end);
            }
        }
    }

    /// Sends a request once, and passes each message of the answer to `take` until that breaks. Then the rest of the
    /// answer is still to come.
    pub(in crate::netlink) fn answers<T>(
        &mut self,
        request: &mut [u8],
        mut take: impl FnMut(&Message<'_>) -> ControlFlow<T>,
    ) -> Result<T, SocketError> {
        let sequence = self.number(request);
        send(&self.inner, request)?;
        self.receive_answers(sequence, 0, |_, message| take(message))
    }

    /// Sends a request for one object and passes its answer to `take`.
    pub(crate) fn ask(&mut self, request: &mut [u8], mut take: impl FnMut(&Message<'_>)) -> Result<(), SocketError> {
        let refused = self.answers(request, |message| {
            let ack = Ack::read(message);
            if ack.is_none() {
                take(message);
            }
            Break(ack.and_then(|ack| ack.refusal(1)))
        })?;
        refused.map_or(Ok(()), Err)
    }

    /// As [`Socket::ask`]; false if the object does not exist.
    pub(crate) fn find(&mut self, request: &mut [u8], take: impl FnMut(&Message<'_>)) -> Result<bool, SocketError> {
        match self.ask(request, take) {
            Err(error) if error.is(Errno::NOENT) => Ok(false),
            asked => asked.map(|()| true),
        }
    }

    /// Sends a request for a list. `start` is called before every attempt, `take` for every message. A list that
    /// changed while it was read is read again.
    pub(crate) fn dump<T>(
        &mut self,
        request: &mut [u8],
        start: impl Fn() -> T,
        mut take: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<T, SocketError> {
        for _ in 0..MAX_ATTEMPTS {
            let mut list = start();
            match self.read_list(request, |message| take(&mut list, message)) {
                Ok(true) => return Ok(list),
                Ok(false) | Err(SocketError::Overrun(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(SocketError::Unsteady)
    }

    /// Requests a list and reads it to its end; false if it changed meanwhile.
    fn read_list(&mut self, request: &mut [u8], mut take: impl FnMut(&Message<'_>)) -> Result<bool, SocketError> {
        let mut steady = true;
        self.answers(request, |message| {
            steady &= message.flags & NLM_F_DUMP_INTR == 0;
            Break(match Ack::read(message) {
                // EINTR: the kernel aborted the list.
                Some(ack) if ack.errno == Some(Errno::INTR) => Ok(false),
                Some(ack) => ack.refusal(1).map_or(Ok(steady), Err),
                None if message.kind == NLMSG_DONE => Ok(steady),
                None => {
                    take(message);
                    return Continue(());
                }
            })
        })?
    }

    /// Sends requests in one datagram. The kernel executes each independently, in this order. `take` receives the
    /// answers with their indexes from 0: a requested object or a refusal. A request without an answer succeeded. For
    /// the routing tables, which have no transactions.
    pub(crate) fn each(
        &mut self,
        requests: &mut [u8],
        mut take: impl FnMut(usize, Result<&Message<'_>, SocketError>),
    ) -> Result<(), SocketError> {
        let first = self.sequence;
        // The kernel reports errors also for requests without NLM_F_ACK, and before it acknowledges the last one.
        self.sequence = number_messages(requests, first);
        let Some(more) = self.sequence.wrapping_sub(first).checked_sub(1) else { return Ok(()) };
        send(&self.inner, requests)?;
        self.receive_answers(first, more, |number, message| {
            let Ok(place) = usize::try_from(number) else { return Continue(()) };
            let Some(ack) = Ack::read(message) else {
                take(place, Ok(message));
                return Continue(());
            };
            if let Some(refusal) = ack.refusal(number.saturating_add(1)) {
                take(place, Err(refusal));
            }
            if number == more { Break(()) } else { Continue(()) }
        })
    }

    fn number(&mut self, request: &mut [u8]) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        patch(request, 8, sequence.to_ne_bytes());
        sequence
    }
}

/// The kernel's acknowledgement of one message: NLMSG_ERROR with zero or an error, or NLMSG_DONE with an error.
pub(crate) struct Ack<'a> {
    /// `None` on success.
    pub(crate) errno: Option<Errno>,
    text: &'a str,
}

impl<'a> Ack<'a> {
    /// Reads an acknowledgement; `None` if the message is not one.
    pub(crate) fn read(message: &Message<'a>) -> Option<Self> {
        let (code, rest) = message.body.split_first_chunk::<4>()?;
        let code = i32::from_ne_bytes(*code);
        let words = match message.kind {
            // The code is followed by the header of the refused message and, with CAP_ACK, directly by attributes.
            NLMSG_ERROR if message.flags & NLM_F_CAPPED != 0 => rest.get(16..),
            NLMSG_ERROR => None,
            NLMSG_DONE if code < 0 => Some(rest),
            _ => return None,
        };
        let words = words.filter(|_| message.flags & NLM_F_ACK_TLVS != 0).unwrap_or_default();
        let text = field(words, ACK_TEXT).and_then(text);
        // A code outside of the kernel's range of error numbers is invalid.
        let errno = match code.saturating_neg() {
            0 => None,
            number @ 1..=4095 => Some(Errno::from_raw_os_error(number)),
            _ => Some(Errno::BADMSG),
        };
        Some(Self { errno, text: text.unwrap_or_default() })
    }

    /// The error about the message at `place`, if there is one.
    fn refusal(&self, place: u32) -> Option<SocketError> {
        self.errno.map(|errno| match errno {
            Errno::PERM if place <= 1 => SocketError::NotPermitted(errno),
            Errno::OPNOTSUPP if place == 0 => SocketError::NoNfTables(errno),
            _ => SocketError::Refused { message: place, errno, text: self.text.to_owned() },
        })
    }
}

fn send(socket: &netlink_sys::Socket, bytes: &[u8]) -> Result<(), SocketError> {
    loop {
        return match socket.send(bytes, 0) {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => continue,
                Some(Errno::AGAIN) => Err(SocketError::NoAnswer),
                Some(Errno::MSGSIZE) => Err(SocketError::TooBig { bytes: bytes.len() }),
                _ => Err(SocketError::Io(error)),
            },
        };
    }
}

/// Sets the receive buffer, above the system's limit if permitted.
pub(super) fn enlarge_receive_buffer(socket: impl AsFd, bytes: usize) -> std::io::Result<()> {
    Ok(sockopt::set_socket_recv_buffer_size_force(&socket, bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, bytes))?)
}

/// Opens a socket that receives the notifications of these groups, in the network namespace of the calling thread.
///
/// # Panics
/// Outside a tokio runtime with I/O enabled.
pub(crate) fn listen(protocol: isize, groups: impl IntoIterator<Item = u32>) -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind_auto()?;
    groups.into_iter().try_for_each(|group| socket.socket_ref().add_membership(group))?;
    Ok(socket)
}

/// Passes each message of a datagram that answers the requests with the sequence number `first` and the `more`
/// following ones to `take`, until that breaks.
#[inline]
pub(crate) fn read_answers<T>(
    datagram: &[u8],
    first: u32,
    more: u32,
    take: &mut impl FnMut(u32, &Message<'_>) -> ControlFlow<T>,
) -> Result<ControlFlow<T>, SocketError> {
    let mut messages = Messages(datagram);
    for message in messages.by_ref() {
        let place = message.sequence.wrapping_sub(first);
        if place <= more
            && let Break(end) = take(place, &message)
        {
            return Ok(Break(end));
        }
    }
    if messages.0.is_empty() { Ok(Continue(())) } else { Err(SocketError::Malformed("invalid length of a message")) }
}

fn receive<'a>(socket: &netlink_sys::Socket, replies: &'a mut Vec<u8>) -> Result<&'a [u8], SocketError> {
    loop {
        let mut room = replies.as_mut_slice();
        match socket.recv_from(&mut room, MSG_TRUNC) {
            // A connected socket receives nothing from other processes. The sender is checked anyway, because a reply
            // is trusted for its sender, and its sequence number is easy to guess.
            Ok((_, sender)) if sender.port_number() != KERNEL => {}
            Ok((length, _)) if length > replies.len() => {
                // The rest is lost; the next attempt has enough room.
                let had = replies.len();
                replies.resize(length.next_multiple_of(REPLY), 0);
                return Err(SocketError::Overrun(had));
            }
            Ok((length, _)) => return Ok(replies.get(..length).unwrap_or_default()),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INTR) => {}
                Some(Errno::AGAIN) => return Err(SocketError::NoAnswer),
                Some(Errno::NOBUFS) => {
                    return Err(SocketError::Overrun(sockopt::socket_recv_buffer_size(socket).unwrap_or(0)));
                }
                _ => return Err(SocketError::Io(error)),
            },
        }
    }
}

/// Runs any datagram through the reader of acknowledgements. For the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(datagram: &[u8]) {
    for message in Messages(datagram) {
        let refusal = Ack::read(&message).and_then(|ack| ack.refusal(2));
        assert!(refusal.is_none_or(|refusal| refusal.to_string().len() <= message.body.len() + 512));
    }
}

/// Size of the socket buffers: enough for one transaction of about 50,000 prefixes, or for thousands of errors.
const SOCKET_BUFFER: usize = 4 << 20;
/// The kernel fills at most 32 KiB per datagram of a list, unless a single object is larger.
const REPLY: usize = 64 << 10;
/// The port id of the kernel, which no other socket can have.
const KERNEL: u32 = 0;
/// NLMSGERR_ATTR_MSG.
const ACK_TEXT: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(flags: u16, code: i32, rest: &[u8]) -> Option<SocketError> {
        let mut body = code.to_ne_bytes().to_vec();
        body.extend_from_slice(rest);
        Ack::read(&Message { kind: NLMSG_ERROR, flags, sequence: 7, body: &body }).unwrap().refusal(2)
    }

    #[test]
    fn acknowledgement_is_not_an_error() {
        assert!(answer(NLM_F_CAPPED, 0, &[0; 16]).is_none());
    }

    #[test]
    fn refusal_carries_kernel_error() {
        let mut rest = vec![0; 16];
        rest.extend_from_slice(&[12, 0, 1, 0, b'b', b'a', b'd', b' ', b's', b'e', b't', 0]);
        let refusal = answer(NLM_F_CAPPED | NLM_F_ACK_TLVS, -2, &rest).unwrap();
        assert!(refusal.is(Errno::NOENT));
        assert!(refusal.to_string().ends_with("(bad set)"), "{refusal}");
        for end in 0..rest.len() {
            assert!(answer(NLM_F_CAPPED | NLM_F_ACK_TLVS, -2, &rest[..end]).unwrap().is(Errno::NOENT));
        }
    }

    #[test]
    fn answer_truncated_before_code_is_ignored() {
        for end in 0..4 {
            assert!(Ack::read(&Message { kind: NLMSG_ERROR, flags: 0, sequence: 7, body: &[0; 4][..end] }).is_none());
        }
    }

    #[test]
    fn message_of_another_process_is_ignored() {
        let own = || {
            let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE).unwrap();
            let address = socket.bind_auto().unwrap();
            (socket, address)
        };
        // Not connected, so that the kernel delivers messages of other sockets.
        let ((socket, address), (other, _)) = (own(), own());
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT)).unwrap();
        let forged = [20, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut buffer = vec![0; 1024];
        match other.send_to(&forged, &address, 0) {
            // Only processes with CAP_NET_ADMIN may send to other ports here.
            Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::PERM)),
            Ok(_) => {
                let request = [20, 0, 0, 0, 250, 0, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                socket.send_to(&request, &SocketAddr::new(KERNEL, 0), 0).unwrap();
                let answer = receive(&socket, &mut buffer).unwrap();
                assert_eq!(Messages(answer).next().map(|message| message.sequence), Some(9), "the kernel's");
            }
        }
        // A connected socket receives nothing from other sockets.
        let connected = Socket::open_route().unwrap();
        let refused = other.send_to(&forged, &SocketAddr::new(connected.port_id(), 0), 0).unwrap_err();
        assert!(matches!(Errno::from_io_error(&refused), Some(Errno::PERM | Errno::CONNREFUSED)), "{refused}");
    }

    #[test]
    fn impossible_error_number_is_malformed() {
        for code in [i32::MIN, -4096, 1, i32::MAX] {
            assert!(answer(0, code, &[]).unwrap().is(Errno::BADMSG), "{code}");
        }
    }
}
