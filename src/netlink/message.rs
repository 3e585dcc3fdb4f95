//! Encodes and decodes netlink messages and attributes. Never fails on invalid input: lengths in a reply are checked
//! against the received bytes, and an invalid header ends the iteration.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer};

/// One message of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// Type; for nf_tables the subsystem in the upper byte and the message kind in the lower byte.
    pub(crate) kind: u16,
    /// NLM_F_* bits.
    pub(crate) flags: u16,
    /// Sequence number of the answered request.
    pub(crate) sequence: u32,
    /// Bytes after the header.
    pub(crate) body: &'a [u8],
}

/// Iterates over the messages in `bytes`.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *self.0.first_chunk::<HEADER>()?;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

/// Iterates over the attributes in `bytes`: type without its flag bits, and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value))
    })
}

/// The first attribute of this type.
pub(crate) fn field(list: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(list).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Reads a 32-bit attribute value in network order.
pub(crate) fn be_u32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Reads a 64-bit attribute value in network order.
pub(crate) fn be_u64(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

/// Reads an address: four bytes of IPv4 or sixteen of IPv6.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

/// Reads a text attribute without its terminating zero byte.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// Appends attributes to a message.
pub(crate) struct Attributes<'a>(pub(crate) &'a mut Vec<u8>);

impl Attributes<'_> {
    /// Appends an attribute with this value.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        self.append(kind, |bytes| bytes.extend_from_slice(value));
    }

    /// Appends a 32-bit number in network order.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Appends a 64-bit number in network order.
    pub(crate) fn put_u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Appends a text with its terminating zero byte.
    pub(crate) fn put_text(&mut self, kind: u16, value: &str) {
        self.append(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        });
    }

    /// Appends an attribute with the nested attributes that `fill` appends.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.append(kind | NESTED, |bytes| fill(&mut Attributes(bytes)));
    }

    /// Appends an attribute with the value that `fill` appends, and pads it.
    fn append(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        fill(self.0);
        let end = self.0.len();
        // A wrapped length would corrupt the rest of the list; the maximum makes the kernel refuse the message. Callers
        // split their lists well below this limit.
        let length = u16::try_from(end - start).unwrap_or(u16::MAX);
        patch(self.0, start, length.to_ne_bytes());
        self.0.resize(end.next_multiple_of(4), 0);
    }
}

/// Appends one message of a netfilter subsystem, with sequence number zero. `generic` is struct nfgenmsg: address
/// family, version and resource.
pub(crate) fn put_message(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    generic: [u8; 4],
    fill: impl FnOnce(&mut Attributes<'_>),
) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&generic);
    fill(&mut Attributes(bytes));
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    patch(bytes, start, length.to_ne_bytes());
}

/// Numbers the messages in `bytes` from `first` on, and requests one acknowledgement, for the last message:
/// acknowledgements for all would overflow the receive buffer. Returns the number after the last one.
pub(crate) fn number_messages(bytes: &mut [u8], first: u32) -> u32 {
    let mut next = first;
    each_header(bytes, |header, is_last| {
        let ack = if is_last { NLM_F_ACK } else { 0 };
        header.set_flags(header.flags() & !NLM_F_ACK | ack);
        header.set_sequence_number(next);
        next = next.wrapping_add(1);
    });
    next
}

/// Calls `visit` with the header of each message in `bytes`, and whether it is the last one.
pub(crate) fn each_header(mut bytes: &mut [u8], mut visit: impl FnMut(&mut NetlinkBuffer<&mut [u8]>, bool)) {
    // An error of `new_checked` allocates, and a warm batch must not.
    while !bytes.is_empty() {
        let available = bytes.len();
        let Ok(mut header) = NetlinkBuffer::new_checked(&mut *bytes) else { return };
        let length = usize::try_from(header.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        visit(&mut header, available <= length);
        bytes = std::mem::take(&mut bytes).get_mut(length..).unwrap_or_default();
    }
}

/// Overwrites the bytes at `start` with `field`.
pub(crate) fn patch<const N: usize>(bytes: &mut [u8], start: usize, field: [u8; N]) {
    if let Some(place) = bytes.get_mut(start..).and_then(<[u8]>::first_chunk_mut::<N>) {
        *place = field;
    }
}

/// Length of struct nlmsghdr.
const HEADER: usize = 16;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;
/// NLA_TYPE_MASK: all but NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn length_below_header_ends_iteration() {
        assert_eq!(Messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }

    #[test]
    fn malformed_datagram_gives_no_message() {
        let mut bytes = [16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(2);
        assert_eq!(number_messages(&mut bytes, 7), 9);
        for length in [0_u32, 33, u32::MAX] {
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(number_messages(&mut bytes, 7), 7, "{length}");
        }
        for end in 0..4 {
            assert_eq!(number_messages(&mut bytes[..end], 7), 7);
        }
    }

    proptest! {
        #[test]
        fn reply_holds_no_more_than_bytes(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let held: usize = Messages(&bytes).map(|message| HEADER + message.body.len()).sum();
            prop_assert!(held <= bytes.len());
            let held: usize = attributes(&bytes).map(|(_, value)| 4 + value.len()).sum();
            prop_assert!(held <= bytes.len());
        }
    }
}
