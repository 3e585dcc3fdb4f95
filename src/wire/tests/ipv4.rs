//! Tests the decoding of IPv4 headers and lengths.

use super::super::{LinkType, Transport, Undecoded};
use super::{SYN, SYN_SEEN, assert_stable_when_cut, decode, ipv4_packet, joined, transport_of};

pub(super) fn with_payload(seen: Transport, bytes: u16) -> Transport {
    let Transport::Tcp { source_port, destination_port, flags, .. } = seen else { panic!("{seen:?}") };
    Transport::Tcp { source_port, destination_port, flags, payload: bytes }
}

#[test]
fn payload_length_comes_from_headers() {
    for (claimed, payload) in [(20, 0), (21, 1), (1480, 1460), (65515, 65495)] {
        let packet = ipv4_packet(6, 0, claimed, &SYN);
        assert_eq!(transport_of(&packet), Ok(with_payload(SYN_SEEN, payload)), "{claimed} bytes claimed");
    }
}

#[test]
fn ethernet_padding_is_ignored() {
    let padded = joined(&[&ipv4_packet(6, 0, 20, &SYN), &[0xee; 6]]);
    assert_eq!(transport_of(&padded), Ok(SYN_SEEN));
    let empty = joined(&[&ipv4_packet(6, 0, 0, &[]), &SYN]);
    assert_eq!(transport_of(&empty), Err(Undecoded::Malformed), "padding contains no TCP header");
}

#[test]
fn every_header_length_is_followed() {
    for words in 0..16_u8 {
        let options = vec![1; usize::from(words.saturating_sub(5)) * 4];
        let mut packet = ipv4_packet(6, 0, 20 + u16::try_from(options.len()).unwrap(), &joined(&[&options, &SYN]));
        packet[0] = 0x40 | words;
        assert_stable_when_cut(LinkType::Raw, &packet);
        assert_eq!(transport_of(&packet), if words < 5 { Err(Undecoded::Malformed) } else { Ok(SYN_SEEN) });
    }
}

#[test]
fn total_length_inside_header_is_malformed() {
    for total in 1..20_u8 {
        let mut packet = ipv4_packet(6, 0, 20, &SYN);
        packet[3] = total;
        assert_eq!(transport_of(&packet), Err(Undecoded::Malformed), "total length {total}");
    }
    let mut options = ipv4_packet(6, 0, 3, &[1; 8]);
    options[0] = 0x46;
    assert_eq!(transport_of(&options), Err(Undecoded::Malformed), "total length inside the options");
}

#[test]
fn zero_total_length_means_captured_length() {
    let mut packet = ipv4_packet(6, 0, 20, &joined(&[&SYN, &[0; 100]]));
    packet[2..4].fill(0);
    assert_eq!(transport_of(&packet), Ok(with_payload(SYN_SEEN, 100)));
    packet[6] = 0x20;
    assert_eq!(transport_of(&packet), Err(Undecoded::Malformed), "a fragment always knows its length");
}

#[test]
fn reserved_ip_bits_do_not_mark_fragment() {
    for bits in [0x4000, 0x8000, 0xc000] {
        let packet = ipv4_packet(6, bits, 20, &SYN);
        let packet = decode(LinkType::Raw, &packet).unwrap();
        assert_eq!((packet.transport, packet.fragmented), (SYN_SEEN, false));
    }
}
