//! Reads kernel lists that netlink-packet-route does not support yet.
//!
//! References: `linux/netlink.h`, netlink(7).

use std::ops::ControlFlow::{Break, Continue};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::io::Errno;

use super::error::HostError;
use crate::netlink::socket::{Ack, read_answers};

/// A netlink header and eight zero bytes, which select every entry.
const REQUEST: usize = 24;

/// One list of the kernel.
pub(super) struct Dump {
    /// The list's name in error messages.
    pub(super) name: &'static str,
    /// The netlink protocol, such as `NETLINK_ROUTE`.
    pub(super) protocol: isize,
    /// Message type of the request.
    pub(super) request: u16,
    /// Message type of an entry.
    pub(super) entry: u16,
    /// Errors of a kernel or process without this list, which then counts as empty.
    pub(super) unsupported: &'static [Errno],
}

impl Dump {
    /// Calls `each` with the payload of every entry; false if the list changed while it was read.
    ///
    /// # Errors
    ///
    /// [`HostError::Open`] if the socket cannot be opened, [`HostError::Refused`] if the kernel refuses the list, and
    /// [`HostError::Ended`] if its answer cannot be decoded.
    pub(super) async fn list(&self, mut each: impl FnMut(&[u8])) -> Result<bool, HostError> {
        let socket = TokioSocket::new(self.protocol).map_err(HostError::Open)?;
        let mut request = [0; REQUEST];
        let mut header = NetlinkBuffer::new(&mut request[..]);
        header.set_length(24);
        header.set_message_type(self.request);
        header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
        let refused = |error| HostError::Refused { list: self.name, error };
        socket.send_to(&request, &SocketAddr::new(0, 0)).await.map_err(refused)?;

        let mut consistent = true;
        let mut answer = Vec::with_capacity(64 * 1024);
        loop {
            answer.clear();
            let sender = socket.recv_from(&mut answer).await.map_err(refused)?;
            if sender.port_number() == 0 && self.read(&answer, &mut each, &mut consistent)? {
                return Ok(consistent);
            }
        }
    }

    /// Reads one datagram; true if the list is complete.
    pub(super) fn read(
        &self,
        datagram: &[u8],
        each: &mut impl FnMut(&[u8]),
        consistent: &mut bool,
    ) -> Result<bool, HostError> {
        let end = read_answers(datagram, 0, u32::MAX, &mut |_, message| {
            *consistent &= message.flags & NLM_F_DUMP_INTR == 0;
            match Ack::read(message).and_then(|ack| ack.errno) {
                Some(errno) if self.unsupported.contains(&errno) => return Break(Ok(true)),
                Some(errno) => return Break(Err(HostError::Refused { list: self.name, error: errno.into() })),
                None if matches!(message.kind, NLMSG_DONE | NLMSG_ERROR) => return Break(Ok(true)),
                None if message.kind == self.entry => each(message.body),
                None => {}
            }
            Continue(())
        });
        end.map_err(|_| HostError::Ended(self.name))?.break_value().unwrap_or(Ok(false))
    }
}
