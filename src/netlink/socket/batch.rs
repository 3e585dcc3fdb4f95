//! Builds a transaction of nf_tables: several messages that take effect together or not at all. Reuses its memory, so
//! that a warm batch encodes a ban without allocating.

use crate::netlink::message::{Attributes, each_header, number_messages, put_message};

/// A transaction under construction: BEGIN, then messages, and END once it is sealed. Others may only append messages.
#[derive(Debug, Default)]
pub struct Batch(pub(in crate::netlink) Vec<u8>);

impl Batch {
    /// Creates an empty transaction.
    pub fn new() -> Self {
        let mut batch = Self::default();
        batch.clear();
        batch
    }

    /// Clears the transaction and keeps its memory.
    pub fn clear(&mut self) {
        self.0.clear();
        self.append_marker(BATCH_BEGIN);
    }

    /// True if it contains no message.
    pub fn is_empty(&self) -> bool {
        self.0.len() <= BATCH_MARKER_LEN
    }

    /// Appends a message of this kind, with the attributes that `fill` appends.
    pub(crate) fn append(&mut self, kind: u32, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        put_inet_message(&mut self.0, kind, flags, fill);
    }

    /// Appends encoded messages, with `flags` added to each.
    pub(in crate::netlink) fn splice(&mut self, messages: &[u8], flags: u16) {
        let start = self.0.len();
        self.0.extend_from_slice(messages);
        let added = self.0.get_mut(start..).unwrap_or_default();
        each_header(added, |header, _| header.set_flags(header.flags() | flags));
    }

    /// Ends the transaction and numbers its messages from `first` on. The last message is acknowledged, because some
    /// kernels never answer the END. Returns the bytes and the sequence number of the acknowledged message.
    pub(super) fn seal(&mut self, first: u32) -> (&[u8], u32) {
        let next = number_messages(&mut self.0, first);
        let end = self.0.len();
        self.append_marker(BATCH_END);
        each_header(self.0.get_mut(end..).unwrap_or_default(), |header, _| header.set_sequence_number(next));
        (&self.0, next.wrapping_sub(1))
    }

    /// Bytes of the messages, without BEGIN.
    pub(in crate::netlink) fn messages(&self) -> &[u8] {
        self.0.get(BATCH_MARKER_LEN..).unwrap_or_default()
    }

    fn append_marker(&mut self, kind: u16) {
        // `res_id` is the number of the subsystem, in network byte order.
        put_message(&mut self.0, kind, 0, [0, 0, 0, SUBSYSTEM], |_| {});
    }
}

/// Appends one message of the family `inet` with sequence number zero.
pub(in crate::netlink) fn put_inet_message(
    bytes: &mut Vec<u8>,
    kind: u32,
    flags: u16,
    fill: impl FnOnce(&mut Attributes<'_>),
) {
    let [kind, ..] = kind.to_le_bytes();
    put_message(bytes, u16::from_be_bytes([SUBSYSTEM, kind]), flags, [FAMILY_INET, 0, 0, 0], fill);
}

/// NFPROTO_INET: rules for IPv4 and IPv6 in one table.
pub(in crate::netlink) const FAMILY_INET: u8 = 1;
/// NFNL_SUBSYS_NFTABLES, the upper byte of a message's type.
pub(in crate::netlink) const SUBSYSTEM: u8 = 10;
/// NFNL_MSG_BATCH_BEGIN.
const BATCH_BEGIN: u16 = 0x10;
/// NFNL_MSG_BATCH_END.
const BATCH_END: u16 = 0x11;
/// Length of BEGIN and of END: struct nlmsghdr and struct nfgenmsg.
pub(in crate::netlink) const BATCH_MARKER_LEN: usize = 20;

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

    use super::*;
    use crate::netlink::message::Messages;

    #[test]
    fn only_last_message_asks_for_ack() {
        let mut batch = Batch::new();
        batch.append(12, NLM_F_CREATE | NLM_F_ACK, |list| list.put(1, b"x\0"));
        let spliced = batch.messages().to_vec();
        batch.splice(&spliced, NLM_F_EXCL);
        let (bytes, last) = batch.seal(u32::MAX);
        let seen: Vec<_> = Messages(bytes).map(|message| (message.kind, message.sequence, message.flags)).collect();
        assert_eq!(last, 1);
        assert_eq!(
            seen,
            [
                (BATCH_BEGIN, u32::MAX, NLM_F_REQUEST),
                (u16::from(SUBSYSTEM) << 8 | 12, 0, NLM_F_REQUEST | NLM_F_CREATE),
                (u16::from(SUBSYSTEM) << 8 | 12, 1, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK),
                (BATCH_END, 2, NLM_F_REQUEST),
            ]
        );
    }

    #[test]
    fn cleared_batch_is_empty_and_keeps_memory() {
        let mut batch = Batch::new();
        batch.append(12, 0, |list| list.put(1, &[0; 400]));
        let room = batch.0.capacity();
        batch.clear();
        assert!(batch.is_empty() && batch.0.len() == BATCH_MARKER_LEN && batch.0.capacity() == room);
    }
}
