//! Tests the decoding of IPv6 extension headers, chains of fragment headers and jumbograms.

use super::super::{Checksum, LinkType, Transport, Undecoded};
use super::{SYN, SYN_SEEN, assert_stable_when_cut, decode, honest_ipv6, ipv6_packet, joined, transport_of};

const TCP: u8 = 6;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const DESTINATION: u8 = 60;

pub(super) fn fragment(next: u8, offset: u16, more: bool) -> [u8; 8] {
    let [o0, o1] = (offset << 3 | u16::from(more)).to_be_bytes();
    [next, 0, o0, o1, 0, 0, 0, 7]
}

#[test]
fn each_extension_header_is_passed_over() {
    for header in [0, 43, 60, 135, 139, 140] {
        for units in [0, 1, 5] {
            let extension = joined(&[&[TCP, units], &vec![0; usize::from(units) * 8 + 6]]);
            let packet = honest_ipv6(header, &joined(&[&extension, &SYN]));
            assert_stable_when_cut(LinkType::Raw, &packet);
            assert_eq!(transport_of(&packet), Ok(SYN_SEEN), "header {header} with {units} more units");
        }
    }
}

#[test]
fn authentication_header_counts_four_byte_units() {
    let authentication = joined(&[&[TCP, 4], &[0; 22]]);
    let packet = honest_ipv6(51, &joined(&[&authentication, &SYN]));
    assert_stable_when_cut(LinkType::Raw, &packet);
    assert_eq!(transport_of(&packet), Ok(SYN_SEEN));
}

#[test]
fn chain_is_followed_up_to_its_length() {
    for headers in 1..=60 {
        let mut chain = [DESTINATION, 0, 1, 4, 0, 0, 0, 0].repeat(headers - 1);
        chain.extend([TCP, 0, 1, 4, 0, 0, 0, 0]);
        let packet = honest_ipv6(DESTINATION, &joined(&[&chain, &SYN]));
        // 36 headers of eight bytes are 288 bytes, the maximum length that a capture has room for.
        let expected = if headers <= 36 { SYN_SEEN } else { Transport::HiddenHeader };
        assert_eq!(transport_of(&packet), Ok(expected), "{headers} headers");
    }
}

#[test]
fn chain_of_atomic_fragments_hides_nothing() {
    for headers in 1..=60 {
        let mut chain = fragment(FRAGMENT, 0, false).repeat(headers - 1);
        chain.extend(fragment(TCP, 0, false));
        let packet = honest_ipv6(FRAGMENT, &joined(&[&chain, &SYN]));
        let expected = if headers <= 36 { SYN_SEEN } else { Transport::HiddenHeader };
        assert_eq!(transport_of(&packet), Ok(expected), "{headers} headers");
    }
}

#[test]
fn endless_chain_of_undeliverable_headers_is_malformed() {
    for header in [51, 135, 139, 140] {
        let packet = honest_ipv6(header, &joined(&[&[header, 0, 1, 4, 0, 0, 0, 0].repeat(60), &SYN]));
        assert_eq!(transport_of(&packet), Err(Undecoded::Malformed), "header {header}");
    }
}

#[test]
fn extension_header_beyond_packet_is_malformed() {
    let packet = honest_ipv6(DESTINATION, &joined(&[&[TCP, 255, 1, 4, 0, 0, 0, 0], &SYN]));
    assert_stable_when_cut(LinkType::Raw, &packet);
    assert_eq!(transport_of(&packet), Err(Undecoded::Malformed));
    for claimed in 1..8 {
        let packet = ipv6_packet(DESTINATION, claimed, &joined(&[&[TCP, 0, 1, 4, 0, 0, 0, 0], &SYN]));
        assert_eq!(transport_of(&packet), Err(Undecoded::Malformed), "{claimed} bytes claimed");
    }
}

#[test]
fn extension_header_beyond_capture_is_truncated() {
    let packet = ipv6_packet(DESTINATION, 308, &joined(&[&[TCP, 35, 1, 4, 0, 0, 0, 0], &SYN]));
    assert_eq!(transport_of(&packet), Err(Undecoded::Truncated));
}

#[test]
fn no_next_header_and_tunnels_are_other() {
    for protocol in [4, 41, 47, 50, 59, 1, 255] {
        let packet = honest_ipv6(protocol, &SYN);
        assert_eq!(transport_of(&packet), Ok(Transport::Other { protocol }));
        let packet = honest_ipv6(DESTINATION, &joined(&[&[protocol, 0, 1, 4, 0, 0, 0, 0], &SYN]));
        assert_eq!(transport_of(&packet), Ok(Transport::Other { protocol }), "behind options");
    }
}

#[test]
fn atomic_fragment_is_complete_packet() {
    let packet = honest_ipv6(FRAGMENT, &joined(&[&fragment(TCP, 0, false), &SYN]));
    assert_stable_when_cut(LinkType::Raw, &packet);
    let packet = decode(LinkType::Raw, &packet).unwrap();
    assert_eq!((packet.transport, packet.fragmented), (SYN_SEEN, false));
}

#[test]
fn fragment_splitting_header_chain_is_tiny() {
    let options = [TCP, 2, 1, 4, 0, 0, 0, 0];
    for claimed in [0, 8, 16, 23] {
        let pieces = joined(&[&fragment(DESTINATION, 0, true), &options, &[0; 16], &SYN]);
        let packet = ipv6_packet(FRAGMENT, 8 + claimed, &pieces);
        assert_stable_when_cut(LinkType::Raw, &packet);
        assert_eq!(transport_of(&packet), Ok(Transport::TinyFragment { ports: None }), "{claimed} bytes");
    }
}

#[test]
fn jumbogram_has_captured_length() {
    let jumbo = [TCP, 0, 0xc2, 4, 0, 1, 0, 0];
    let packet = ipv6_packet(0, 0, &joined(&[&jumbo, &SYN, &[0; 30]]));
    assert!(matches!(transport_of(&packet), Ok(Transport::Tcp { destination_port: 23, payload: 30, .. })));
    let fragmented = ipv6_packet(FRAGMENT, 0, &joined(&[&fragment(TCP, 0, true), &SYN]));
    assert_eq!(transport_of(&fragmented), Err(Undecoded::Malformed), "a jumbogram has no fragments");
}

/// Linux answers a packet of length zero that begins with a hop-by-hop header. It may be longer than the capture.
#[test]
fn length_zero_hides_no_probe() {
    const CAPTURED: usize = 396;
    let pad = |next, units: u8| joined(&[&[next, units, 1, 4], &vec![0; usize::from(units) * 8 + 4]]);
    for data in [0, 300, 1_200] {
        let packet = ipv6_packet(0, 0, &joined(&[&pad(TCP, 0), &SYN, &vec![b'x'; data]]));
        let seen = decode(LinkType::Raw, &packet[..packet.len().min(CAPTURED)]).unwrap();
        assert!(matches!(seen.transport, Transport::Tcp { destination_port: 23, .. }));
        assert_eq!(
            seen.checksum.verify(),
            Checksum::Unknown,
            "{data} bytes of data: the sum may cover more than is captured"
        );
    }
    for units in [36, 60, 150] {
        let packet = ipv6_packet(0, 0, &joined(&[&pad(DESTINATION, 0), &pad(TCP, units), &SYN]));
        let seen = decode(LinkType::Raw, &packet[..packet.len().min(CAPTURED)]).unwrap();
        assert_eq!(seen.transport, Transport::HiddenHeader, "{units} units of options");
    }
}

#[test]
fn padding_behind_payload_is_ignored() {
    let packet = ipv6_packet(TCP, 8, &SYN);
    assert_eq!(transport_of(&packet), Err(Undecoded::Malformed));
}

#[test]
fn options_beyond_limit_hide_header() {
    // One destination options header of this length, with a TCP header after it.
    let packet = |bytes: usize| {
        let units = u8::try_from(bytes / 8 - 1).unwrap();
        honest_ipv6(DESTINATION, &joined(&[&[TCP, units], &vec![0; bytes - 2], &SYN]))
    };
    assert!(matches!(transport_of(&packet(288)), Ok(Transport::Tcp { destination_port: 23, .. })));
    for bytes in [296, 1_200, 2_048] {
        assert_eq!(transport_of(&packet(bytes)), Ok(Transport::HiddenHeader), "{bytes}");
        // Truncated by the capture.
        assert_eq!(transport_of(&packet(bytes)[..60]), Ok(Transport::HiddenHeader), "{bytes}");
    }
}

/// A header beyond the captured bytes may be valid or not, so the chain counts as hidden until it is seen.
#[test]
fn uncaptured_header_counts_as_hidden() {
    const HIP: u8 = 139;
    // The second options header is longer than the packet.
    let packet = ipv6_packet(HIP, 304, &joined(&[&[DESTINATION, 36], &[0; 294], &[TCP, 255, 0, 0, 0, 0, 0, 0]]));
    let captured = packet.len() - 8;
    assert_eq!(transport_of(&packet[..captured]), Ok(Transport::HiddenHeader));
    assert_eq!(transport_of(&packet), Err(Undecoded::Malformed));
}
