//! Tests the decoder with frames that nmap and the kernel sent between two network namespaces, captured with tcpdump on
//! Ethernet and on the "any" device. They use documentation addresses: 192.0.2.1 scans 192.0.2.2.

use super::super::{Delivery, LinkType, TcpFlags, Transport, Undecoded};
use super::{assert_stable_when_cut, decode, decoded, hex};

/// `nmap -sS`, Ethernet.
pub(super) const SYN_SCAN: &str = "8adaa5b7660a a242bdbdc813 0800
    4500002c242f00002606ec99c0000201c0000202 ab0c001750b6759800000000600204009eb00000020405b4";
/// The same SYN on the "any" device, version 1.
pub(super) const SYN_SCAN_SLL: &str = "0000 0001 0006 a242bdbdc8130000 0800
    4500002c242f00002606ec99c0000201c0000202 ab0c001750b6759800000000600204009eb00000020405b4";
/// The same SYN on the "any" device, version 2; it arrived at interface 2.
pub(super) const SYN_SCAN_SLL2: &str = "0800 0000 00000002 0001 00 06 a242bdbdc8130000
    4500002c242f00002606ec99c0000201c0000202 ab0c001750b6759800000000600204009eb00000020405b4";
/// The reply, which the host itself sent.
pub(super) const ANSWER_SLL: &str = "0004 0001 0006 8adaa5b7660a0000 0800
    45000028000040004006b6ccc0000202c0000201 0017ab0c0000000050b6759950140000ba590000";
/// `nmap -sS -f`: three fragments of 8, 8 and 8 bytes.
pub(super) const FRAGMENTED_SYN: [&str; 3] = [
    "8adaa5b7660a a242bdbdc813 0800 4500001c433420002a06a9a4c0000201c0000202 d7590017ceb0fba5",
    "8adaa5b7660a a242bdbdc813 0800 4500001c433420012a06a9a3c0000201c0000202 0000000060020400",
    "8adaa5b7660a a242bdbdc813 0800 4500001c433400022a06c9a2c0000201c0000202 6e5b0000020405b4",
];
/// `nmap -sS --ip-options "L ..."`: loose source route, 12 bytes of IPv4 options.
pub(super) const SOURCE_ROUTED: &str = "8adaa5b7660a a242bdbdc813 0800
    4800003836ab000037063587c0000201c0000201 01830b04c0000201c0000202 e10a0017b63bba8c0000000060020400be380000020405b4";
/// `nmap -6 -sS`.
pub(super) const SYN_SCAN_IPV6: &str = "8adaa5b7660a a242bdbdc813 86dd
    60000000001806ff 20010db8000000000000000000000001 20010db8000000000000000000000002
    bba20017fed28e270000000060020400effd0000020405b4";
/// A multicast listener report: a hop-by-hop header before ICMPv6.
pub(super) const LISTENER_REPORT: &str = "333300000016 8adaa5b7660a 86dd
    6000000000380001 fe8000000000000088daa5fffeb7660a ff020000000000000000000000000016 3a00050200000100
    8f00748f0000000204000000ff0200000000000000000001ff00000204000000ff0200000000000000000001ffb7660a";
/// `ping -s 3000`: the first and second of three fragments, truncated by the capture.
pub(super) const FRAGMENTED_PING_IPV6: [&str; 2] = [
    "8adaa5b7660a a242bdbdc813 86dd 600c500705b02c40 20010db8000000000000000000000001
    20010db8000000000000000000000002 3a000001099421bc 800087b2358c0001762d016b00000000040a0000000000001011121314151617",
    "8adaa5b7660a a242bdbdc813 86dd 600c500705b02c40 20010db8000000000000000000000001
    20010db8000000000000000000000002 3a0005a9099421bc a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
];

#[test]
fn syn_scan_decodes_completely() {
    let packet = decoded(LinkType::Ethernet, SYN_SCAN);
    assert_eq!(packet.source.to_string(), "192.0.2.1");
    assert_eq!(packet.destination.to_string(), "192.0.2.2");
    assert_eq!((packet.delivery, packet.interface, packet.fragmented), (Delivery::Unknown, 0, false));
    let flags = TcpFlags(TcpFlags::SYN);
    assert_eq!(packet.transport, Transport::Tcp { source_port: 43788, destination_port: 23, flags, payload: 0 });
}

#[test]
fn cooked_capture_shows_delivery_and_interface() {
    let ethernet = decoded(LinkType::Ethernet, SYN_SCAN);
    let sll = decoded(LinkType::Sll, SYN_SCAN_SLL);
    let sll2 = decoded(LinkType::Sll2, SYN_SCAN_SLL2);
    assert_eq!((sll.delivery, sll.interface), (Delivery::Host, 0));
    assert_eq!((sll2.delivery, sll2.interface), (Delivery::Host, 2));
    assert_eq!(
        (sll.source, sll.destination, sll.transport),
        (ethernet.source, ethernet.destination, ethernet.transport)
    );
    assert_eq!((sll2.source, sll2.transport), (ethernet.source, ethernet.transport));
}

#[test]
fn answer_of_this_host_is_outgoing() {
    let packet = decoded(LinkType::Sll, ANSWER_SLL);
    assert_eq!(packet.delivery, Delivery::Outgoing);
    let flags = TcpFlags(TcpFlags::RST | TcpFlags::ACK);
    assert_eq!(packet.transport, Transport::Tcp { source_port: 23, destination_port: 43788, flags, payload: 0 });
}

#[test]
fn other_scans_of_nmap_show_their_flags() {
    for (frame, flags) in [
        // -sX, -sM, -sT
        (
            "4500 00280561000026060b6cc0000201c0000202 b4860017ef32c86e0000000050290400bb780000",
            TcpFlags::FIN | TcpFlags::PSH | TcpFlags::URG,
        ),
        (
            "4500 00289c6b000033066761c0000201c0000202 e1f10017000000005e449a2d501104004d550000",
            TcpFlags::FIN | TcpFlags::ACK,
        ),
        (
            "4500 003c087740004006ae41c0000201c0000202 c20a0017d5ca0d7300000000a002faf0843200000204\
             05b40402080ab6115f04000000000103030a",
            TcpFlags::SYN,
        ),
    ] {
        let Transport::Tcp { destination_port: 23, flags: seen, payload: 0, .. } =
            decoded(LinkType::Raw, frame).transport
        else {
            panic!("no TCP without payload to port 23 in {frame}");
        };
        assert_eq!(seen, TcpFlags(flags));
    }
}

#[test]
fn udp_sctp_and_icmp_are_decoded() {
    let udp = "8adaa5b7660aa242bdbdc8130800 4500003ded6a000031111842c0000201c0000202 ca8e00a10029b64f
               301f02010004067075626c6963a112020100020100020100300730050601000500";
    let sctp = "8adaa5b7660aa242bdbdc8130800 45000034f15b0000338411e7c0000201c0000202
                875300170000000088f498ca 01000014f643241a00008000000a0800538a62f2";
    let ping = "ffffffffffffa242bdbdc8130800 45000054000040004001b5a8c0000201c00002ff 08005ed1358b00012d016b00";
    let ethernet = |frame| decoded(LinkType::Ethernet, frame).transport;
    assert_eq!(ethernet(udp), Transport::Udp { source_port: 51854, destination_port: 161 });
    assert_eq!(ethernet(sctp), Transport::Sctp { source_port: 34643, destination_port: 23, chunk: 1 });
    assert_eq!(ethernet(ping), Transport::Icmp { kind: 8, code: 0 });
    assert_eq!(decoded(LinkType::Ethernet, ping).delivery, Delivery::Broadcast);
}

#[test]
fn fragmented_syn_scan_has_expected_fragments() {
    let [first, second, third] = FRAGMENTED_SYN.map(|frame| decoded(LinkType::Ethernet, frame));
    assert_eq!(first.transport, Transport::TinyFragment { ports: Some((55129, 23)) });
    assert_eq!(second.transport, Transport::OverlappingFragment);
    assert_eq!(third.transport, Transport::LaterFragment { protocol: 6 });
    assert_eq!([first, second, third].map(|piece| piece.fragmented), [true, false, false]);
}

#[test]
fn ipv4_options_are_passed_over() {
    let packet = decoded(LinkType::Ethernet, SOURCE_ROUTED);
    let flags = TcpFlags(TcpFlags::SYN);
    assert_eq!(packet.transport, Transport::Tcp { source_port: 57610, destination_port: 23, flags, payload: 0 });
}

#[test]
fn ipv6_syn_scan_is_decoded() {
    let packet = decoded(LinkType::Ethernet, SYN_SCAN_IPV6);
    assert_eq!(packet.source.to_string(), "2001:db8::1");
    assert_eq!(packet.destination.to_string(), "2001:db8::2");
    let flags = TcpFlags(TcpFlags::SYN);
    assert_eq!(packet.transport, Transport::Tcp { source_port: 48034, destination_port: 23, flags, payload: 0 });
}

#[test]
fn listener_report_follows_hop_by_hop_header() {
    let packet = decoded(LinkType::Ethernet, LISTENER_REPORT);
    assert_eq!(packet.delivery, Delivery::Multicast);
    assert_eq!(packet.transport, Transport::Icmp { kind: 143, code: 0 });
}

#[test]
fn fragmented_ping_counts_first_fragment_only() {
    let [first, second] = FRAGMENTED_PING_IPV6.map(|frame| decoded(LinkType::Ethernet, frame));
    assert_eq!((first.transport, first.fragmented), (Transport::Icmp { kind: 128, code: 0 }, true));
    assert_eq!((second.transport, second.fragmented), (Transport::LaterFragment { protocol: 58 }, false));
}

#[test]
fn arp_is_not_ip() {
    let arp = hex("ffffffffffffa242bdbdc8130806 0001080006040001a242bdbdc813c0000201000000000000c0000202");
    assert_stable_when_cut(LinkType::Ethernet, &arp);
    assert_eq!(decode(LinkType::Ethernet, &arp), Err(Undecoded::NotIp));
}
