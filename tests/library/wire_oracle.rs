//! Tests the decoder with arbitrary bytes, and against etherparse, an independent implementation of the same RFCs.

use std::net::IpAddr;

use etherparse::{
    LaxSlicedPacket, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice, VlanId, ether_type,
};
use portsentry::wire::{
    Checksum, Delivery, LinkType, Packet, Quote, TcpFlags, Transport, Undecoded, decode, icmp_quote,
};
use proptest::collection::vec;
use proptest::prelude::*;

const LINKS: [LinkType; 5] = [LinkType::Ethernet, LinkType::Sll, LinkType::Sll2, LinkType::Raw, LinkType::Null];

/// The description of a packet for etherparse's builder.
#[derive(Clone, Debug)]
struct PacketSpec {
    destination_mac: [u8; 6],
    vlan: Option<u16>,
    addresses: Addresses,
    ports: (u16, u16),
    transport_spec: TransportSpec,
    payload: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Addresses {
    V4([u8; 4], [u8; 4]),
    V6([u8; 16], [u8; 16]),
}

#[derive(Clone, Debug)]
enum TransportSpec {
    Tcp { flags: u16, options: Vec<u8> },
    Udp,
    Icmp { kind: u8, code: u8 },
}

impl PacketSpec {
    fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], self.destination_mac);
        let ip = match (self.vlan, &self.addresses) {
            (None, Addresses::V4(from, to)) => link.ipv4(*from, *to, 64),
            (None, Addresses::V6(from, to)) => link.ipv6(*from, *to, 64),
            (Some(id), Addresses::V4(from, to)) => link.single_vlan(VlanId::try_new(id).unwrap()).ipv4(*from, *to, 64),
            (Some(id), Addresses::V6(from, to)) => link.single_vlan(VlanId::try_new(id).unwrap()).ipv6(*from, *to, 64),
        };
        let (source, destination) = self.ports;
        match (&self.transport_spec, &self.addresses) {
            (TransportSpec::Tcp { flags, options }, _) => {
                let mut header = TcpHeader::new(source, destination, 1, 1024);
                let bit = |bit: u16| flags & bit != 0;
                header.fin = bit(TcpFlags::FIN);
                header.syn = bit(TcpFlags::SYN);
                header.rst = bit(TcpFlags::RST);
                header.psh = bit(TcpFlags::PSH);
                header.ack = bit(TcpFlags::ACK);
                header.urg = bit(TcpFlags::URG);
                header.ece = bit(TcpFlags::ECE);
                header.cwr = bit(TcpFlags::CWR);
                header.ns = bit(TcpFlags::AE);
                header.set_options_raw(options).unwrap();
                ip.tcp_header(header).write(&mut frame, &self.payload)
            }
            (TransportSpec::Udp, _) => ip.udp(source, destination).write(&mut frame, &self.payload),
            (&TransportSpec::Icmp { kind, code }, Addresses::V4(..)) => {
                ip.icmpv4_raw(kind, code, [0; 4]).write(&mut frame, &self.payload)
            }
            (&TransportSpec::Icmp { kind, code }, Addresses::V6(..)) => {
                ip.icmpv6_raw(kind, code, [0; 4]).write(&mut frame, &self.payload)
            }
        }
        .unwrap();
        frame
    }

    fn packet(&self) -> Packet<'static> {
        let (source, destination): (IpAddr, IpAddr) = match self.addresses {
            Addresses::V4(from, to) => (from.into(), to.into()),
            Addresses::V6(from, to) => (from.into(), to.into()),
        };
        let (source_port, destination_port) = self.ports;
        let transport = match self.transport_spec {
            TransportSpec::Tcp { flags, .. } => {
                let payload = u16::try_from(self.payload.len()).unwrap();
                Transport::Tcp { source_port, destination_port, flags: TcpFlags(flags), payload }
            }
            TransportSpec::Udp => Transport::Udp { source_port, destination_port },
            TransportSpec::Icmp { kind, code } => Transport::Icmp { kind, code },
        };
        let delivery = match self.destination_mac {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => Delivery::Broadcast,
            [first, ..] if first % 2 == 1 => Delivery::Multicast,
            _ => Delivery::Unknown,
        };
        let checksum = Checksum::Good.into();
        Packet { source, destination, delivery, interface: 0, checksum, fragmented: false, transport }
    }
}

prop_compose! {
    fn spec()(
        destination_mac in prop_oneof![4 => any::<[u8; 6]>(), 1 => Just([0xff; 6])],
        vlan in proptest::option::of(0..4096_u16),
        addresses in prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(from, to)| Addresses::V4(from, to)),
            any::<([u8; 16], [u8; 16])>().prop_map(|(from, to)| Addresses::V6(from, to)),
        ],
        ports in any::<(u16, u16)>(),
        transport_spec in prop_oneof![
            (0..0x200_u16, 0..=10_usize)
                .prop_map(|(flags, words)| TransportSpec::Tcp { flags, options: vec![1; words * 4] }),
            Just(TransportSpec::Udp),
            any::<(u8, u8)>().prop_map(|(kind, code)| TransportSpec::Icmp { kind, code }),
        ],
        payload in vec(any::<u8>(), 0..200),
    ) -> PacketSpec {
        PacketSpec { destination_mac, vlan, addresses, ports, transport_spec, payload }
    }
}

/// Addresses and ports as etherparse decodes them from a truncated or damaged frame.
fn by_etherparse(frame: &[u8]) -> Option<(IpAddr, IpAddr, Transport)> {
    let sliced = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match sliced.net? {
        etherparse::LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        etherparse::LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        etherparse::LaxNetSlice::Arp(_) => return None,
    };
    let transport = match sliced.transport? {
        TransportSlice::Tcp(tcp) => {
            let [high, low] = [tcp.slice()[12] & 0x0f, tcp.slice()[13]];
            Transport::Tcp {
                source_port: tcp.source_port(),
                destination_port: tcp.destination_port(),
                flags: TcpFlags(u16::from_be_bytes([high, low])),
                payload: 0,
            }
        }
        TransportSlice::Udp(udp) => {
            Transport::Udp { source_port: udp.source_port(), destination_port: udp.destination_port() }
        }
        TransportSlice::Icmpv4(icmp) => Transport::Icmp { kind: icmp.type_u8(), code: icmp.code_u8() },
        TransportSlice::Icmpv6(icmp) => Transport::Icmp { kind: icmp.type_u8(), code: icmp.code_u8() },
        TransportSlice::Igmp(_) => return None,
    };
    Some((source, destination, transport))
}

/// A packet without its payload length, for which etherparse uses the capture's length if the packet is truncated.
fn without_payload(packet: &Packet) -> (IpAddr, IpAddr, Transport) {
    let mut transport = packet.transport;
    if let Transport::Tcp { payload, .. } = &mut transport {
        *payload = 0;
    }
    (packet.source, packet.destination, transport)
}

fn names_ports(transport: Transport) -> bool {
    matches!(transport, Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Icmp { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_decode_without_panic(
        bytes in vec(any::<u8>(), 0..200), more in vec(any::<u8>(), 1..50)
    ) {
        let longer = [bytes.as_slice(), &more].concat();
        for link in LINKS {
            let _ = icmp_quote(link, &bytes);
            if let Ok(packet) = decode(link, &bytes) {
                let _ = packet.checksum.verify();
                let seen = decode(link, &longer).map(|packet| without_payload(&packet));
                prop_assert_eq!(seen, Ok(without_payload(&packet)));
            }
        }
    }

    #[test]
    fn icmp_error_quotes_failed_packet(spec in spec(), cut in any::<prop::sample::Index>()) {
        let (failed, v4) = (spec.frame(), matches!(spec.addresses, Addresses::V4(..)));
        let packet = &failed[if spec.vlan.is_some() { 18 } else { 14 }..];
        let (router, mut frame) = (PacketBuilder::ethernet2([2; 6], [4; 6]), Vec::new());
        match v4 {
            true => router.ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64).icmpv4_raw(3, 3, [0; 4]).write(&mut frame, packet),
            false => router.ipv6([1; 16], [2; 16], 64).icmpv6_raw(1, 4, [0; 4]).write(&mut frame, packet),
        }
        .unwrap();
        let expected = spec.packet();
        let quote = icmp_quote(LinkType::Ethernet, &frame).unwrap();
        prop_assert_eq!((quote.source, quote.destination), (expected.source, expected.destination));
        if matches!(spec.transport_spec, TransportSpec::Tcp { .. } | TransportSpec::Udp) {
            prop_assert_eq!(quote.ports, spec.ports);
        }
        let part: Option<Quote> = icmp_quote(LinkType::Ethernet, &frame[..cut.index(frame.len())]);
        prop_assert!(part.is_none_or(|part| part == quote));
    }

    #[test]
    fn built_packet_decodes_unchanged(spec in spec()) {
        let frame = spec.frame();
        prop_assert_eq!(decode(LinkType::Ethernet, &frame), Ok(spec.packet()));
    }

    #[test]
    fn truncated_packet_is_equal_or_truncated(spec in spec(), cut in any::<prop::sample::Index>()) {
        let frame = spec.frame();
        // A checksum can be verified only if all bytes that it covers are present.
        let seen = decode(LinkType::Ethernet, &frame[..cut.index(frame.len())])
            .map(|packet| Packet { checksum: Checksum::Good.into(), ..packet });
        prop_assert!(seen == Ok(spec.packet()) || seen == Err(Undecoded::Truncated), "{:?}", seen);
    }

    #[test]
    fn both_decoders_agree_on_mutated_packet(
        spec in spec(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(40..100_usize),
    ) {
        let mut frame = spec.frame();
        // Only headers are changed: changes after them rarely matter.
        let headers = frame.len().min(70);
        for (place, value) in changes {
            frame[place.index(headers)] = value;
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        let ours = decode(LinkType::Ethernet, &frame).map(|packet| without_payload(&packet));
        if let (Ok(ours), Some(theirs)) = (ours, by_etherparse(&frame))
            && names_ports(ours.2)
        {
            prop_assert_eq!(ours, theirs);
        }
    }

    /// If the strict slicer, which accepts no contradiction, finds ports, a decoder that misses them would let a
    /// scanner pass.
    #[test]
    fn strictly_valid_packet_is_decoded(
        spec in spec(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut frame = spec.frame();
        let headers = frame.len().min(70);
        for (place, value) in changes {
            frame[place.index(headers)] = value;
        }
        let Ok(sliced) = SlicedPacket::from_ethernet(&frame) else { return Ok(()) };
        let ports = matches!(sliced.transport, Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_)));
        // Authentication headers of IPv4 are not decoded: a host without the key does not read past one.
        let authenticated = matches!(&sliced.net, Some(NetSlice::Ipv4(ip)) if !ip.extensions().is_empty());
        // etherparse trusts the version over the EtherType; Linux drops a packet if they disagree.
        let announced = sliced.ether_payload().map(|payload| payload.ether_type);
        let consistent = match &sliced.net {
            Some(NetSlice::Ipv4(_)) => announced == Some(ether_type::IPV4),
            Some(NetSlice::Ipv6(_)) => announced == Some(ether_type::IPV6),
            _ => false,
        };
        if ports && !authenticated && consistent {
            let seen = decode(LinkType::Ethernet, &frame).map(|packet| names_ports(packet.transport));
            prop_assert_eq!(seen, Ok(true));
        }
    }
}
