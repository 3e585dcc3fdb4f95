//! Encodes and decodes nf_tables messages of the family `inet`: requests, parts of a transaction, and answers.
//!
//! References: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, and the kernel's
//! net/netfilter/nf_tables_api.c. Headers are in host order, attributes of nf_tables in network order. Their numbers
//! are those of [`rustables::sys`].

use netlink_packet_core::NLM_F_DUMP;
use rustables::sys;

pub(super) use crate::netlink::message::field;
use crate::netlink::message::{Attributes, Message, patch};
pub(super) use crate::netlink::socket::put_inet_message as put_message;
use crate::netlink::socket::{FAMILY_INET, SUBSYSTEM};

impl<'a> Message<'a> {
    /// Kind (NFT_MSG_*) and attributes, if it is an nf_tables message of the family `inet`.
    pub(crate) fn nft(&self) -> Option<(u32, &'a [u8])> {
        let (family, kind, attributes) = self.nft_of_any_family()?;
        (family == FAMILY_INET).then_some((kind, attributes))
    }

    /// Family (NFPROTO_*), kind and attributes of an nf_tables message.
    pub(super) fn nft_of_any_family(&self) -> Option<(u8, u32, &'a [u8])> {
        let ([family, ..], attributes) = self.body.split_first_chunk::<4>()?;
        let [subsystem, kind] = self.kind.to_be_bytes();
        (subsystem == SUBSYSTEM).then_some((*family, kind.into(), attributes))
    }

    /// The attributes of a message about a generation (NEWGEN), which has no family.
    pub(super) fn generation(&self) -> Option<&'a [u8]> {
        let [subsystem, kind] = self.kind.to_be_bytes();
        let is_generation = subsystem == SUBSYSTEM && u32::from(kind) == sys::NFT_MSG_NEWGEN;
        self.body.get(4..).filter(|_| is_generation)
    }

    /// The attributes of a message of this kind; empty for any other kind.
    pub(crate) fn nft_of(&self, kind: u32) -> &'a [u8] {
        self.nft().filter(|(found, _)| *found == kind).map_or(&[], |(_, attributes)| attributes)
    }
}

/// Replaces `bytes` with one request, with the attributes that `fill` appends.
pub(crate) fn put_request(bytes: &mut Vec<u8>, kind: u32, flags: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
    bytes.clear();
    put_message(bytes, kind, flags, fill);
}

/// Replaces `bytes` with a request for the objects of a family (NFPROTO_*); 0: all families.
pub(super) fn put_dump(bytes: &mut Vec<u8>, family: u8, kind: u32, fill: impl FnOnce(&mut Attributes<'_>)) {
    put_request(bytes, kind, NLM_F_DUMP, fill);
    // The family follows the netlink header.
    patch(bytes, 16, [family]);
}

/// NFT_MSG_DESTROYSETELEM, since Linux 6.3; may be missing in the headers with which rustables was built.
pub(crate) const DESTROY_ELEMENT: u32 = 30;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::message::{Messages, attributes, text};

    #[test]
    fn nested_attributes_read_back() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, 13, 0, |list| {
            list.put_text(1, "portsentry");
            list.nest(3, |nest| nest.put(4, &[1, 2, 3]));
        });
        assert_eq!(bytes.len(), 16 + 4 + 16 + 4 + 8);
        let message = Messages(&bytes).next().unwrap();
        let (kind, list) = message.nft().unwrap();
        let list: Vec<_> = attributes(list).collect();
        assert_eq!((kind, list[0].0, text(list[0].1)), (13, 1, Some("portsentry")));
        assert_eq!(attributes(list[1].1).collect::<Vec<_>>(), [(4, &[1, 2, 3][..])]);
    }

    #[test]
    fn truncated_message_is_rejected() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, 13, 0, |list| list.put_text(1, "portsentry"));
        for end in 0..bytes.len() {
            assert!(Messages(&bytes[..end]).next().is_none(), "{end}");
        }
    }
}
