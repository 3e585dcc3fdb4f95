//! Tests the decoding of fragments, which mean the same in both families.

use super::super::{LinkType, Transport};
use super::ipv4::with_payload;
use super::ipv6::{DESTINATION, FRAGMENT, fragment};
use super::{SYN, SYN_SEEN, assert_stable_when_cut, decode, ipv4_packet, ipv6_packet, joined};

/// An IPv4 and an IPv6 fragment at `offset`, in units of 8 bytes, whose headers claim `claimed` bytes of `payload`.
fn fragments(protocol: u8, offset: u16, more: bool, claimed: u16, payload: &[u8]) -> [Vec<u8>; 2] {
    let v4 = ipv4_packet(protocol, u16::from(more) << 13 | offset, claimed, payload);
    [v4, ipv6_packet(FRAGMENT, 8 + claimed, &joined(&[&fragment(protocol, offset, more), payload]))]
}

#[test]
fn first_fragment_with_flags_is_packet() {
    for (claimed, payload) in [(16, 0), (24, 4)] {
        for packet in fragments(6, 0, true, claimed, &joined(&[&SYN, &[0; 4]])) {
            assert_stable_when_cut(LinkType::Raw, &packet);
            let packet = decode(LinkType::Raw, &packet).unwrap();
            assert_eq!((packet.transport, packet.fragmented), (with_payload(SYN_SEEN, payload), true));
        }
    }
}

#[test]
fn first_fragment_without_flags_is_tiny() {
    for claimed in 0..16 {
        for packet in fragments(6, 0, true, claimed, &SYN) {
            assert_stable_when_cut(LinkType::Raw, &packet);
            // A receiver uses whole units of 8 bytes and cuts 15 bytes down to 8, so it never reads the flags in bytes
            // 12 and 13.
            let ports = (claimed >= 8).then_some((40000, 23));
            let packet = decode(LinkType::Raw, &packet).unwrap();
            let seen = (packet.transport, packet.fragmented);
            assert_eq!(seen, (Transport::TinyFragment { ports }, true), "{claimed} bytes");
        }
    }
}

#[test]
fn tcp_fragment_at_offset_one_overlaps() {
    for (protocol, offset, seen) in [
        (6, 1, Transport::OverlappingFragment),
        (6, 2, Transport::LaterFragment { protocol: 6 }),
        (17, 1, Transport::LaterFragment { protocol: 17 }),
        (DESTINATION, 1, Transport::LaterFragment { protocol: DESTINATION }),
        (6, 0x1fff, Transport::LaterFragment { protocol: 6 }),
    ] {
        for packet in [false, true].into_iter().flat_map(|more| fragments(protocol, offset, more, 20, &SYN)) {
            let packet = decode(LinkType::Raw, &packet).unwrap();
            assert_eq!((packet.transport, packet.fragmented), (seen, false), "{protocol} at {offset}");
        }
    }
}
