//! Decodes sock_diag messages into [`Record`]s. Never panics: every input gives a record, an error number of the kernel,
//! or a description of its malformed part. Does no I/O.

use std::ops::ControlFlow::{self, Break, Continue};

use netlink_packet_core::{
    NLM_F_MULTIPART, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NlasIterator, Parseable,
};
use netlink_packet_sock_diag::constants::{INET_DIAG_SKV6ONLY, SOCK_DIAG_BY_FAMILY};
use netlink_packet_sock_diag::inet::{InetResponseHeader, SocketId};
use rustix::io::Errno;

use crate::netlink::message::Message;
use crate::netlink::socket::Ack;

/// The relevant fields of one socket's `struct inet_diag_msg` and its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// TCP_LISTEN, TCP_CLOSE, … of `net/tcp_states.h`; UDP uses the same numbers.
    pub(super) state: u8,
    /// The source is the local end; the destination is the remote end, unspecified if there is none. The interface is
    /// the index of the device to which the socket is bound, or 0. The kernel never reuses a cookie.
    pub(super) id: SocketId,
    /// User id of its owner.
    pub(super) user: u32,
    /// IPV6_V6ONLY.
    pub(super) v6_only: bool,
}

/// `struct inet_diag_msg` of `linux/inet_diag.h`, in bytes; attributes follow.
const INET_DIAG_MSG: usize = 72;

/// Reads one message of an answer, and passes a socket to `keep`. Breaks at the end of the answer, which may be an error
/// number of the kernel.
pub(super) fn read(
    message: &Message<'_>,
    keep: &mut impl FnMut(Record),
) -> ControlFlow<Result<Option<Errno>, &'static str>> {
    Break(match (message.kind, Ack::read(message)) {
        (_, Some(ack)) => Ok(ack.errno),
        (NLMSG_NOOP, None) => return Continue(()),
        (NLMSG_DONE, None) => Ok(None),
        (NLMSG_ERROR, None) => Err("an error message without its number"),
        (NLMSG_OVERRUN, None) => Err("data was lost (NLMSG_OVERRUN)"),
        (SOCK_DIAG_BY_FAMILY, None) => match record(message.body).map(&mut *keep) {
            Ok(()) if message.flags & NLM_F_MULTIPART != 0 => return Continue(()),
            kept => kept.map(|()| None),
        },
        (_, None) => Err("a message of an unknown type"),
    })
}

fn record(payload: &[u8]) -> Result<Record, &'static str> {
    let header = InetResponseHeader::parse(payload).map_err(|_| "a record is not an inet_diag_msg")?;
    let mut v6_only = false;
    for attribute in NlasIterator::new(payload.get(INET_DIAG_MSG..).unwrap_or_default()) {
        let attribute = attribute.map_err(|_| "invalid length of an attribute")?;
        if attribute.kind() == INET_DIAG_SKV6ONLY {
            v6_only = attribute.value().first().is_some_and(|flag| *flag != 0);
        }
    }
    Ok(Record { state: header.state, id: header.socket_id, user: header.uid, v6_only })
}

// The captured bytes are in the order of the machine that they were captured on.
#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::socket::{SocketError, read_answers};

    /// Linux 6.18's answer to request 7, a dump of IPv6 TCP listeners: [::]:1000 dual-stack, and [fd09::1]:1001 with
    /// IPV6_V6ONLY on device 2.
    const DUMP: &str = "840000001400020007000000c3110000\
        0a0a000003e80000\
        00000000000000000000000000000000\
        00000000000000000000000000000000\
        000000008101000000000000\
        00000000000000000800000000000000a5680700\
        050008000000000005000b000000000008000f00000000000c00150001000000000000000600160012000000\
        840000001400020007000000c3110000\
        0a0a000003e90000\
        fd090000000000000000000000000001\
        00000000000000000000000000000000\
        020000008201000000000000\
        00000000000000000800000000000000a6680700\
        050008000000000005000b000100000008000f00000000000c00150001000000000000000600160012000000";

    /// The end of the answer.
    const DONE: &str = "140000000300020007000000c311000000000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |c: u8| u8::try_from(char::from(c).to_digit(16).unwrap()).unwrap();
        hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    /// The sockets in the answer to request `sequence`, and its end: `None` if more datagrams follow.
    fn records(datagram: &[u8], sequence: u32) -> (Result<Option<Option<Errno>>, SocketError>, Vec<Record>) {
        let mut records = Vec::new();
        let mut keep = |record| records.push(record);
        let outcome = read_answers(datagram, sequence, 0, &mut |_, message| read(message, &mut keep));
        let end = outcome.and_then(|end| end.break_value().transpose().map_err(SocketError::Malformed));
        (end, records)
    }

    fn error(code: i32) -> Vec<u8> {
        let mut datagram = bytes("240000000200000007000000c3110000");
        datagram.extend(code.to_ne_bytes());
        datagram.extend([0; 16]);
        datagram
    }

    #[test]
    fn kernel_dump_reads_as_sockets() {
        let (outcome, sockets) = records(&bytes(DUMP), 7);
        assert!(matches!(outcome, Ok(None)));
        let id = SocketId { source_port: 1000, cookie: [0x81, 1, 0, 0, 0, 0, 0, 0], ..SocketId::new_v6() };
        let any = Record { state: 10, id, user: 0, v6_only: false };
        let id = SocketId {
            source_address: "fd09::1".parse().unwrap(),
            source_port: 1001,
            interface_id: 2,
            cookie: [0x82, 1, 0, 0, 0, 0, 0, 0],
            ..SocketId::new_v6()
        };
        let one = Record { id, v6_only: true, ..any.clone() };
        assert_eq!(sockets, [any, one]);
        assert!(matches!(records(&bytes(DONE), 7).0, Ok(Some(None))));
    }

    #[test]
    fn answer_to_other_request_is_skipped() {
        for datagram in [bytes(DUMP), bytes(DONE), error(-2)] {
            let (outcome, records) = records(&datagram, 8);
            assert!(matches!(outcome, Ok(None)) && records.is_empty());
        }
    }

    #[test]
    fn single_answer_needs_no_end_message() {
        let mut datagram = bytes(DUMP);
        datagram.truncate(132);
        datagram[6] = 0;
        let (outcome, records) = records(&datagram, 7);
        assert!(matches!(outcome, Ok(Some(None))) && records.len() == 1);
    }

    #[test]
    fn kernel_error_is_reported_zero_is_success() {
        assert!(matches!(records(&error(-2), 7).0, Ok(Some(Some(Errno::NOENT)))));
        assert!(matches!(records(&error(0), 7).0, Ok(Some(None))));
        assert!(matches!(records(&error(i32::MIN), 7).0, Ok(Some(Some(_)))));
        let mut failed_dump = bytes(DONE);
        failed_dump[16..20].copy_from_slice(&(-2i32).to_ne_bytes());
        assert!(matches!(records(&failed_dump, 7).0, Ok(Some(Some(_)))), "the last message of a dump may be an error");
    }

    #[test]
    fn truncated_answer_shows_complete_sockets_only() {
        let whole = bytes(DUMP);
        for length in 0..whole.len() {
            let (outcome, records) = records(&whole[..length], 7);
            assert_eq!(records.len(), length / 132, "{length}");
            // The last two bytes of a message are padding.
            assert_eq!(outcome.is_ok(), length % 132 == 0, "{length}");
        }
    }

    #[test]
    fn false_lengths_are_malformed_without_loop() {
        for (at, value) in [(0, 0), (0, 15), (0, 255), (88, 0), (88, 3), (88, 255)] {
            let mut datagram = bytes(DUMP);
            datagram[at] = value;
            datagram.truncate(132);
            assert!(records(&datagram, 7).0.is_err(), "{at}: {value}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_loop_or_panic(noise in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = records(&noise, 7);
        }

        #[test]
        fn changed_bytes_cause_no_panic(changes in prop::collection::vec((0..264usize, any::<u8>()), 1..8)) {
            let mut datagram = bytes(DUMP);
            for (at, value) in changes {
                datagram[at] = value;
            }
            prop_assert!(records(&datagram, 7).1.len() <= 2);
        }
    }
}
