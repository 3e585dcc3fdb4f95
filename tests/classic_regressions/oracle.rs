//! Compares the decoder with the kernel: a packet that the kernel answers tells its sender about a port, so it must be
//! decoded, and its checksum must not seem wrong.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netns_lab::raw::{self, DESTINATION, FRAGMENT, HOP_BY_HOP, ROUTING, TCP, UDP};
use netns_lab::{Lab, TIMEOUT, within};
use pcap::{Active, Capture};
use portsentry::wire::{Checksum, LinkType, Packet, Transport, decode, icmp_quote};
use simulation::chance::Chance;

const PACKETS: u16 = 6_000;

/// The bytes of an IP packet that the capture keeps.
const CAPTURED: usize = 396;

/// Headers that Linux accepts in many unusual forms: options, fields that contradict each other, data beyond the
/// captured bytes. Each has the source port `number`, by which an answer names it.
struct Mutator {
    /// The same packets in every run.
    chance: Chance,
    source: [IpAddr; 2],
    target: [IpAddr; 2],
}

impl Mutator {
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        self.chance.pick(choices)
    }

    /// True once in `times`.
    fn rarely(&mut self, times: u32) -> bool {
        self.chance.below(times) == 0
    }

    fn packet(&mut self, number: u16) -> Vec<u8> {
        let family = self.pick(&[0, 1, 1]);
        let addresses = (self.source[family], self.target[family]);
        let (protocol, payload) = if self.rarely(4) {
            (UDP, self.datagram(number, addresses))
        } else {
            (TCP, self.segment(number, addresses))
        };
        let mut packet = if family == 0 {
            self.ipv4(addresses, protocol, &payload)
        } else {
            self.ipv6(addresses, protocol, payload)
        };
        // Padding of the link.
        packet.resize(packet.len() + self.pick(&[0, 0, 0, 1, 30]), 0x5a);
        packet.truncate(1_500);
        packet
    }

    fn segment(&mut self, number: u16, (source, target): (IpAddr, IpAddr)) -> Vec<u8> {
        let flags = self.pick(&[0, 1, 2, 2, 3, 8, 0x20, 0x29, 0x42, 0xc2, 0x1c2, 0x202]);
        let data = vec![0x61; self.pick(&[0, 0, 0, 1, 7, 300, 380, 900])];
        let mut segment = raw::segment_with(source, target, (number, 23), flags, &data);
        let (at, value) = self.pick(&[(0, 0), (0, 0), (0, 0), (4, 9), (14, 0), (18, 7), (20, 1), (20, 30), (22, 255)]);
        if at > 0 {
            segment[at] = value;
        }
        if self.rarely(30) {
            segment[12] = self.pick(&[0x00, 0x40, 0x50, 0x70, 0xf0]);
        }
        self.sum(&mut segment, 16, (source, target), TCP);
        segment
    }

    fn datagram(&mut self, number: u16, (source, target): (IpAddr, IpAddr)) -> Vec<u8> {
        let data = self.pick(&[0_usize, 1, 8, 300, 500]);
        let surplus = self.pick(&[0, 0, 0, 1, 8, 50]);
        let mut length = u16::try_from(8 + data).unwrap();
        if self.rarely(10) {
            length = self.pick(&[0, 4, 8, length + 60, length.saturating_sub(1)]);
        }
        let header = [number.to_be_bytes(), 53_u16.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat();
        let mut datagram = [header, vec![0x61; data + surplus]].concat();
        let summed = if usize::from(length) >= 8 { usize::from(length).min(datagram.len()) } else { datagram.len() };
        let rest = datagram.split_off(summed);
        if !self.rarely(8) {
            self.sum(&mut datagram, 6, (source, target), UDP);
        }
        [datagram, rest].concat()
    }

    /// Writes the checksum, sometimes a wrong one.
    fn sum(&mut self, bytes: &mut [u8], at: usize, (source, target): (IpAddr, IpAddr), protocol: u8) {
        bytes[at..at + 2].fill(0);
        let [high, low] = raw::checksum(source, target, protocol, bytes);
        let damage = if self.rarely(20) { self.pick(&[1, 0x55]) } else { 0 };
        bytes[at..at + 2].copy_from_slice(&[high ^ damage, low]);
    }

    fn ipv4(&mut self, (source, target): (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = raw::packet(source, target, protocol, payload);
        let options: &[u8] = self.pick(&[
            &[][..],
            &[],
            &[],
            &[1, 1, 1, 0],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[0x94, 4, 0, 0],
            &[0x9e, 40, 0, 0],
            &[131, 7, 8, 10, 77, 1, 9, 0],
            &[7, 99, 4, 0],
        ]);
        packet.splice(20..20, options.iter().copied());
        packet[0] = 0x45 + u8::try_from(options.len() / 4).unwrap();
        let length = u16::try_from(packet.len()).unwrap();
        let length = if self.rarely(20) { self.pick(&[0, 20, 34, length - 1, length + 4]) } else { length };
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[6] = self.pick(&[0, 0, 0x40, 0x80, 0xc0]);
        packet[8] = self.pick(&[64, 1, 255]);
        raw::sum_header(&mut packet);
        if self.rarely(30) {
            packet[10] ^= 1;
        }
        packet
    }

    fn ipv6(&mut self, (source, target): (IpAddr, IpAddr), protocol: u8, mut payload: Vec<u8>) -> Vec<u8> {
        let mut next = protocol;
        for _ in 0..self.pick(&[0, 0, 1, 1, 2, 3, 5]) {
            let header = self.pick(&[HOP_BY_HOP, HOP_BY_HOP, DESTINATION, DESTINATION, ROUTING, FRAGMENT, 51, 135]);
            let units: u8 = match header {
                HOP_BY_HOP | DESTINATION => self.pick(&[0, 0, 1, 3, 20, 31]),
                _ => 0,
            };
            // An option that a receiver skips, or, in a routing header, a type without segments left.
            let first =
                if header == ROUTING { self.pick(&[[0, 0], [77, 0], [4, 0], [77, 1]]) } else { [0x1e, 4 + 8 * units] };
            let mut chained = [&[next, units][..], &first, &vec![0; 4 + 8 * usize::from(units)]].concat();
            if header == FRAGMENT {
                chained[1..4].fill(0);
            }
            chained.extend(payload);
            payload = chained;
            next = header;
        }
        let mut packet = raw::packet(source, target, next, &payload);
        if self.rarely(if next == HOP_BY_HOP { 2 } else { 20 }) {
            let length = u16::try_from(payload.len()).unwrap();
            let length = self.pick(&[0, 0, 0, length - 1, length + 4, 20]);
            packet[4..6].copy_from_slice(&length.to_be_bytes());
        }
        packet
    }
}

/// The source ports of the answered packets. Resets and ICMP errors name them.
fn answers(link: &mut Capture<Active>) -> BTreeSet<u16> {
    let mut answered = BTreeSet::new();
    while let Ok(frame) = link.next_packet() {
        match decode(LinkType::Ethernet, frame.data).map(|packet| packet.transport) {
            Ok(Transport::Tcp { destination_port, .. }) => answered.insert(destination_port),
            _ => icmp_quote(LinkType::Ethernet, frame.data).is_some_and(|quote| answered.insert(quote.ports.0)),
        };
    }
    answered
}

#[test]
fn every_answered_packet_is_decoded() {
    let lab = Lab::new(&["peer"]);
    for sysctl in ["ipv4.icmp_ratelimit=0", "ipv4.icmp_msgs_per_sec=1000000", "ipv6.icmp.ratelimit=0"] {
        lab.sysctl(&format!("net.{sysctl}"));
    }
    let mut mutator = Mutator {
        chance: Chance::new(1, "packets", 0),
        source: [lab.v4("peer").into(), lab.v6("peer").into()],
        target: [lab.victim_v4("peer").into(), lab.victim_v6("peer").into()],
    };
    let mut link = lab.inside("peer", || {
        let link = Capture::from_device("uplink").unwrap().immediate_mode(true).buffer_size(8 << 20);
        let mut link = link.open().unwrap().setnonblock().unwrap();
        // Unreachable ports, and every TCP segment: a service of the peer itself sends none.
        link.filter(
            "inbound and (tcp or (icmp and icmp[0:2] = 0x0303) or (icmp6 and ip6[40:2] = 0x0104) or ip6[6] = 6)",
            true,
        )
        .unwrap();
        link
    });
    let packets: Vec<_> = (1..=PACKETS).map(|number| (20_000 + number, mutator.packet(20_000 + number))).collect();
    let mut wire = lab.wire("peer");
    let mut answered = BTreeSet::new();
    for group in packets.chunks(50) {
        wire.pace(10_000, group.iter().map(|(_, packet)| packet.clone()));
        answered.extend(answers(&mut link));
    }
    // The kernel answers in order.
    let last = raw::tcp(mutator.source[0], mutator.target[0], 23, raw::FIN);
    within(TIMEOUT, || {
        wire.send(&last);
        std::thread::sleep(Duration::from_millis(50));
        answered.extend(answers(&mut link));
        answered.contains(&40_404).then_some(())
    })
    .expect("an ordinary probe is answered");

    let of_number: Vec<_> = packets.iter().filter(|(number, _)| answered.contains(number)).collect();
    assert!(of_number.len() > usize::from(PACKETS) / 4, "{} packets are answered", of_number.len());
    for (number, packet) in of_number {
        let seen = decode(LinkType::Raw, &packet[..packet.len().min(CAPTURED)]);
        let is_seen = match seen {
            Ok(Packet { checksum, transport, .. }) => {
                let is_known = match transport {
                    Transport::Tcp { source_port, .. } | Transport::Udp { source_port, .. } => source_port == *number,
                    other => other == Transport::HiddenHeader,
                };
                is_known && matches!(checksum.verify(), Checksum::Good | Checksum::Unknown)
            }
            Err(_) => false,
        };
        assert!(is_seen, "{seen:?} of {packet:02x?}");
    }
}
