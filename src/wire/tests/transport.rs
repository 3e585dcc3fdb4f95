//! Tests the decoding of transport headers: flags, data offsets, lengths, and other protocols.

use super::super::{LinkType, TcpFlags, Transport, Undecoded};
use super::{SYN, assert_stable_when_cut, honest_ipv6, ipv4_packet, joined, transport_of};

#[test]
fn every_flag_and_reserved_bit_is_kept() {
    for bits in 0..=0x0fff_u16 {
        let mut segment = SYN;
        let [high, low] = (0x5000 | bits).to_be_bytes();
        (segment[12], segment[13]) = (high, low);
        let Ok(Transport::Tcp { flags, .. }) = transport_of(&ipv4_packet(6, 0, 20, &segment)) else { panic!("{bits}") };
        assert_eq!(flags, TcpFlags(bits));
    }
}

#[test]
fn flags_are_read_despite_data_offset() {
    for (words, payload) in (0..16).zip([0, 0, 0, 0, 0, 20, 16, 12, 8, 4, 0, 0, 0, 0, 0, 0]) {
        let mut segment = SYN;
        segment[12] = words << 4;
        let packet = ipv4_packet(6, 0, 40, &joined(&[&segment, &[0; 20]]));
        let flags = TcpFlags(TcpFlags::SYN);
        let seen = Transport::Tcp { source_port: 40000, destination_port: 23, flags, payload };
        assert_eq!(transport_of(&packet), Ok(seen), "data offset {words}");
    }
}

#[test]
fn header_beyond_ip_length_is_malformed() {
    for (protocol, least) in [(6, 14), (17, 8), (132, 16), (1, 4)] {
        for claimed in 0..least {
            let packet = ipv4_packet(protocol, 0, claimed, &SYN);
            assert_stable_when_cut(LinkType::Raw, &packet);
            assert_eq!(transport_of(&packet), Err(Undecoded::Malformed), "{protocol} of {claimed} bytes");
        }
        assert!(transport_of(&ipv4_packet(protocol, 0, least, &SYN)).is_ok());
    }
}

#[test]
fn header_beyond_capture_is_truncated() {
    for (protocol, read) in [(6, 14), (17, 4), (132, 13), (1, 2)] {
        for captured in 0..read {
            let packet = ipv4_packet(protocol, 0, 500, &SYN[..captured]);
            assert_eq!(transport_of(&packet), Err(Undecoded::Truncated), "{captured} bytes of {protocol}");
        }
        assert!(transport_of(&ipv4_packet(protocol, 0, 500, &SYN[..read])).is_ok());
    }
}

#[test]
fn icmp_belongs_to_its_ip_version() {
    let message = [3, 1, 0, 0, 0, 0, 0, 0];
    let seen = Ok(Transport::Icmp { kind: 3, code: 1 });
    assert_eq!(transport_of(&ipv4_packet(1, 0, 8, &message)), seen);
    assert_eq!(transport_of(&honest_ipv6(58, &message)), seen);
    assert_eq!(transport_of(&ipv4_packet(58, 0, 8, &message)), Ok(Transport::Other { protocol: 58 }));
    assert_eq!(transport_of(&honest_ipv6(1, &message)), Ok(Transport::Other { protocol: 1 }));
}

#[test]
fn tunnels_and_unknown_protocols_are_other() {
    for protocol in [0, 4, 41, 47, 50, 51, 89, 136, 255] {
        assert_eq!(transport_of(&ipv4_packet(protocol, 0, 0, &[])), Ok(Transport::Other { protocol }));
    }
}

#[test]
fn eight_byte_fragment_has_udp_ports_only() {
    let more = 0x2000;
    let udp = transport_of(&ipv4_packet(17, more, 8, &SYN));
    assert_eq!(udp, Ok(Transport::Udp { source_port: 40000, destination_port: 23 }));
    let sctp = transport_of(&ipv4_packet(132, more, 8, &SYN));
    assert_eq!(sctp, Ok(Transport::TinyFragment { ports: Some((40000, 23)) }));
}

#[test]
fn flags_are_shown_by_name() {
    let shown = |bits| format!("{:?}", TcpFlags(bits));
    assert_eq!(shown(TcpFlags::SYN | TcpFlags::ACK), "SYN|ACK");
    assert_eq!(shown(0), "none");
    assert_eq!(shown(TcpFlags::FIN | 0x600), "FIN|R3");
}
