//! Tests the decoding of link-layer headers: VLAN tags, PPPoE, cooked captures, loopback and raw IP.

use super::super::{Delivery, LinkType, Transport, Undecoded, decode_untagged};
use super::{SYN, SYN_SEEN, assert_stable_when_cut, decode, honest_ipv6, ipv4_packet, joined};

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

fn syn() -> Vec<u8> {
    ipv4_packet(6, 0, 20, &SYN)
}

#[test]
fn four_stacked_vlan_tags_are_opened() {
    let tag = [0x81, 0x00, 0x00, 0x07];
    for tags in 0..=5 {
        let frame = joined(&[&MACS, &tag.repeat(tags), &[0x08, 0x00], &syn()]);
        assert_stable_when_cut(LinkType::Ethernet, &frame);
        let seen = decode(LinkType::Ethernet, &frame).map(|packet| packet.transport);
        assert_eq!(seen, if tags <= 4 { Ok(SYN_SEEN) } else { Err(Undecoded::Malformed) }, "{tags} tags");
    }
}

/// Linux accepts packets behind any number of tags with VLAN number 0.
#[test]
fn many_zero_tags_hide_packet() {
    for (kind, packet) in [([0x08, 0x00], syn()), ([0x86, 0xdd], honest_ipv6(6, &SYN))] {
        for tags in 0..=12 {
            // The priority must not be mistaken for the version of an IP header.
            let tag = [[0x40, 0], [0x60, 0], [0, 0], [0xf0, 0]][tags % 4];
            let mut stack = [tag, [0x81, 0]].concat().repeat(tags);
            let end = stack.len().saturating_sub(2);
            stack.truncate(end);
            if tags > 0 {
                stack.extend(kind);
            }
            let ether = |first: [u8; 2]| joined(&[&MACS, &first, &stack, &packet]);
            let cooked = |first: [u8; 2]| {
                joined(&[&first, &[0, 0, 0, 0, 0, 9, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], &stack, &packet])
            };
            let seen = if tags > 4 { Transport::HiddenHeader } else { SYN_SEEN };
            let first = if tags > 0 { [0x81, 0] } else { kind };
            let mut frames = vec![(LinkType::Ethernet, ether(first)), (LinkType::Sll2, cooked(first))];
            // As in Linux 6.11 and later, which does not look behind more than eight tags.
            frames.push((LinkType::Sll2, cooked(if tags > 8 { [0, 0] } else { kind })));
            for (link, frame) in frames {
                // If truncated, such a tag looks like an IPv6 header, and a frame without an EtherType looks like one
                // without IP.
                if tags % 4 != 1 && frame[..2] != [0, 0] {
                    assert_stable_when_cut(link, &frame);
                }
                let decoded = decode(link, &frame).unwrap();
                assert_eq!(decoded.transport, seen, "{tags} tags, {link:?}");
                let plain = decode(LinkType::Raw, &packet).unwrap();
                assert_eq!((decoded.source, decoded.destination), (plain.source, plain.destination));
            }
        }
    }
}

#[test]
fn vlan_tag_types_may_be_mixed() {
    let tags = [0x91, 0x00, 0, 1, 0x88, 0xa8, 0, 2, 0x81, 0x00, 0, 3];
    let frame = joined(&[&MACS, &tags, &[0x86, 0xdd], &honest_ipv6(6, &SYN)]);
    assert_eq!(decode(LinkType::Ethernet, &frame).unwrap().transport, SYN_SEEN);
}

#[test]
fn vlan_tag_in_cooked_capture_is_removed() {
    let behind = joined(&[&[0, 7, 0x08, 0x00], &syn()]);
    let sll = joined(&[&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 0x81, 0x00], &behind]);
    let sll2 = joined(&[&[0x81, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], &behind]);
    for (link, frame) in [(LinkType::Sll, sll), (LinkType::Sll2, sll2)] {
        assert_stable_when_cut(link, &frame);
        let packet = decode(link, &frame).unwrap();
        assert_eq!((packet.transport, packet.delivery), (SYN_SEEN, Delivery::Host), "{link:?}");
    }
}

#[test]
fn pppoe_session_is_decoded() {
    let session = |ppp: [u8; 2], packet: &[u8]| joined(&[&MACS, &[0x88, 0x64, 0x11, 0, 0, 1, 0, 42], &ppp, packet]);
    for frame in [session([0, 0x21], &syn()), session([0, 0x57], &honest_ipv6(6, &SYN))] {
        assert_stable_when_cut(LinkType::Ethernet, &frame);
        assert_eq!(decode(LinkType::Ethernet, &frame).unwrap().transport, SYN_SEEN);
    }
    let link_control = session([0xc0, 0x21], &[9, 0, 0, 8, 0, 0, 0, 0]);
    assert_eq!(decode(LinkType::Ethernet, &link_control), Err(Undecoded::NotIp));
    let mut other_version = session([0, 0x21], &syn());
    other_version[14] = 0x21;
    assert_eq!(decode(LinkType::Ethernet, &other_version), Err(Undecoded::Malformed));
}

#[test]
fn destination_address_shows_broadcast_and_multicast() {
    for (destination, delivery) in [
        ([0xff; 6], Delivery::Broadcast),
        ([0x01, 0, 0x5e, 0, 0, 1], Delivery::Multicast),
        ([0x33, 0x33, 0, 0, 0, 1], Delivery::Multicast),
        ([0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Delivery::Multicast),
        ([0x02, 0xff, 0xff, 0xff, 0xff, 0xff], Delivery::Unknown),
    ] {
        let frame = joined(&[&destination, &MACS[6..], &[0x08, 0x00], &syn()]);
        assert_eq!(decode(LinkType::Ethernet, &frame).unwrap().delivery, delivery, "{destination:x?}");
    }
}

#[test]
fn cooked_packet_type_is_delivery() {
    for (kind, delivery) in [
        (0, Delivery::Host),
        (1, Delivery::Broadcast),
        (2, Delivery::Multicast),
        (3, Delivery::OtherHost),
        (4, Delivery::Outgoing),
        (7, Delivery::Unknown),
    ] {
        let sll = joined(&[&[0, kind, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 0x08, 0x00], &syn()]);
        assert_eq!(decode(LinkType::Sll, &sll).unwrap().delivery, delivery);
        let sll2 = joined(&[&[8, 0, 0, 0, 1, 2, 3, 4, 0, 1, kind, 6, 2, 0, 0, 0, 0, 1, 0, 0], &syn()]);
        let packet = decode(LinkType::Sll2, &sll2).unwrap();
        assert_eq!((packet.delivery, packet.interface), (delivery, 0x0102_0304));
    }
    let odd = joined(&[&[1, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 0x08, 0x00], &syn()]);
    assert_eq!(decode(LinkType::Sll, &odd).unwrap().delivery, Delivery::Unknown, "packet type 0x0100 is not 0");
}

#[test]
fn loopback_family_has_either_byte_order() {
    for (family, packet) in [(2, syn())].into_iter().chain([10, 23, 24, 28, 30].map(|v6| (v6, honest_ipv6(6, &SYN)))) {
        for header in [[family, 0, 0, 0], [0, 0, 0, family]] {
            let frame = joined(&[&header, &packet]);
            assert_stable_when_cut(LinkType::Null, &frame);
            assert_eq!(decode(LinkType::Null, &frame).unwrap().transport, SYN_SEEN, "family {header:?}");
        }
    }
    for family in [[7, 0, 0, 0], [2, 0, 0, 2], [0, 2, 0, 0], [0; 4]] {
        assert_eq!(decode(LinkType::Null, &joined(&[&family, &syn()])), Err(Undecoded::NotIp));
    }
}

#[test]
fn raw_ip_version_selects_decoder() {
    assert_eq!(decode(LinkType::Raw, &honest_ipv6(6, &SYN)).unwrap().transport, SYN_SEEN);
    assert_eq!(decode(LinkType::Raw, &[]), Err(Undecoded::Truncated));
    for version in (0..16).filter(|version| ![4, 6].contains(version)) {
        let mut packet = syn();
        packet[0] = version << 4 | 5;
        assert_eq!(decode(LinkType::Raw, &packet), Err(Undecoded::Malformed), "version {version}");
    }
}

#[test]
fn version_contradicting_ether_type_is_malformed() {
    let as_ipv6 = joined(&[&MACS, &[0x86, 0xdd], &syn()]);
    let as_ipv4 = joined(&[&MACS, &[0x08, 0x00], &honest_ipv6(6, &SYN)]);
    for frame in [as_ipv6, as_ipv4] {
        assert_eq!(decode(LinkType::Ethernet, &frame), Err(Undecoded::Malformed));
    }
}

#[test]
fn ethernet_length_field_is_not_ip() {
    let spanning_tree = joined(&[&MACS, &[0x00, 0x26, 0x42, 0x42, 0x03], &[0; 35]]);
    assert_eq!(decode(LinkType::Ethernet, &spanning_tree), Err(Undecoded::NotIp));
}

#[test]
fn dlt_numbers_map_to_link_types() {
    for (dlt, link) in [
        (1, Some(LinkType::Ethernet)),
        (12, Some(LinkType::Raw)),
        (101, Some(LinkType::Raw)),
        (108, Some(LinkType::Null)),
        (113, Some(LinkType::Sll)),
        (276, Some(LinkType::Sll2)),
        (105, None),
        (-1, None),
    ] {
        assert_eq!(LinkType::from_dlt(dlt), link, "{dlt}");
    }
}

#[test]
fn flow_label_like_tag_is_ipv6() {
    let mut packet = honest_ipv6(6, &SYN);
    for label in [[0x86, 0xdd], [0x81, 0], [0x08, 0]] {
        packet[..4].copy_from_slice(&[0x60, 0, label[0], label[1]]);
        let frame = joined(&[&[0x86, 0xdd, 0, 0, 0, 0, 0, 9, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], &packet]);
        assert_eq!(decode(LinkType::Sll2, &frame).unwrap().transport, SYN_SEEN);
        assert_eq!(decode_untagged(LinkType::Sll2, &frame), None, "decoded already");
    }
}

#[test]
fn long_packet_like_tag_is_decoded_twice() {
    let cooked = [0x86, 0xdd, 0, 0, 0, 0, 0, 9, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
    let packet = honest_ipv6(6, &joined(&[&SYN, &[0; 0x60ff - SYN.len()]]));
    let untouched = decode(LinkType::Raw, &packet).unwrap();
    let frame = joined(&[&cooked, &[0x60, 0, 0x86, 0xdd], &packet[4..396]]);
    let seen = decode_untagged(LinkType::Sll2, &frame).unwrap();
    assert_eq!((seen.source, seen.destination, seen.interface), (untouched.source, untouched.destination, 9));
    assert_eq!(seen.transport, untouched.transport);
    let tagged = joined(&[&cooked, &[0x60, 0, 0x86, 0xdd], &honest_ipv6(6, &SYN)]);
    assert_eq!(decode(LinkType::Sll2, &tagged).unwrap().transport, SYN_SEEN);
    for link in [LinkType::Ethernet, LinkType::Sll, LinkType::Raw, LinkType::Null] {
        assert_eq!(decode_untagged(link, &tagged), None);
    }
}
