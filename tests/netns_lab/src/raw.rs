//! Sends packets that no socket and no packaged scanner can send. They are built byte by byte and sent unchanged on a
//! host's link. References: RFC 791, 8200 (IP), 9293 (TCP), 768 (UDP), 1071 (the checksum).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use pcap::{Active, Capture};

use crate::{Lab, TIMEOUT, slowness, within};

/// TCP flag: finish.
pub const FIN: u16 = 0x01;
/// TCP flag: synchronise.
pub const SYN: u16 = 0x02;
/// TCP flag: reset.
pub const RST: u16 = 0x04;
/// TCP flag: acknowledge.
pub const ACK: u16 = 0x10;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// IPv6 extension header: hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// IPv6 extension header: routing.
pub const ROUTING: u8 = 43;
/// IPv6 extension header: fragment.
pub const FRAGMENT: u8 = 44;
/// IPv6 extension header: destination options.
pub const DESTINATION: u8 = 60;

const EVERYBODY: [u8; 6] = [0xff; 6];

/// A host's end of its link to the victim.
pub struct Wire {
    link: Capture<Active>,
    victim: [u8; 6],
    own: [u8; 6],
}

impl Wire {
    /// Sends an IP packet to the victim.
    pub fn send(&mut self, packet: &[u8]) {
        self.frame(self.victim, packet);
    }

    /// Makes [`Wire::send`] and [`Wire::pace`] use this hardware address instead of the victim's.
    pub fn address_to(&mut self, hardware_address: [u8; 6]) {
        self.victim = hardware_address;
    }

    /// Sends an IP packet as a broadcast frame.
    pub fn broadcast(&mut self, packet: &[u8]) {
        self.frame(EVERYBODY, packet);
    }

    /// Sends an IPv4 packet to the link-layer group of its destination (RFC 1112).
    pub fn multicast(&mut self, group: Ipv4Addr, packet: &[u8]) {
        let [_, b, c, d] = group.octets();
        self.frame([0x01, 0x00, 0x5e, b & 0x7f, c, d], packet);
    }

    /// Advertises `router` as a default router to the link.
    pub fn advertise(&mut self, router: Ipv6Addr) {
        self.frame([0x33, 0x33, 0, 0, 0, 1], &router_advertisement(router));
    }

    /// Sends the packets evenly at this rate, or at a lower one on a slow machine, where the receiver is slow too.
    pub fn pace(&mut self, per_second: u32, packets: impl Iterator<Item = Vec<u8>>) {
        let begin = Instant::now();
        for (number, packet) in (0..).zip(packets) {
            let due = Duration::from_secs(1) * number / per_second * slowness();
            // A pause after every packet would reduce the rate, so the packets of a few milliseconds are sent together.
            if let Some(early) = due.checked_sub(begin.elapsed()).filter(|early| early.as_millis() > 2) {
                std::thread::sleep(early);
            }
            self.send(&packet);
        }
    }

    /// Sends an IP packet in a frame with a VLAN tag (IEEE 802.1Q).
    pub fn tagged(&mut self, vlan: u16, packet: &[u8]) {
        self.stacked(&[vlan], packet);
    }

    /// Sends an IP packet in a frame with several VLAN tags.
    pub fn stacked(&mut self, vlans: &[u16], packet: &[u8]) {
        let tags: Vec<u8> = vlans.iter().flat_map(|vlan| [[0x81, 0x00], vlan.to_be_bytes()].concat()).collect();
        self.put([&self.victim[..], &self.own, &tags, &ether_type(packet), packet].concat());
    }

    /// Sends an IP packet to this hardware address.
    pub fn frame(&mut self, destination: [u8; 6], packet: &[u8]) {
        self.put([&destination[..], &self.own, &ether_type(packet), packet].concat());
    }

    /// Sends a frame, again if the kernel's queue is full.
    fn put(&mut self, frame: Vec<u8>) {
        let sent = within(TIMEOUT, || match self.link.sendpacket(&*frame) {
            Err(pcap::Error::PcapError(text)) if text.contains("No buffer space") => None,
            sent => Some(sent),
        });
        sent.expect("the queue has room").expect("the link takes a frame");
    }
}

fn ether_type(packet: &[u8]) -> [u8; 2] {
    if packet.first().is_some_and(|byte| byte >> 4 == 4) { [0x08, 0x00] } else { [0x86, 0xdd] }
}

impl Lab {
    /// Opens the host's end of its link, to send raw packets.
    pub fn wire(&self, host: &str) -> Wire {
        let link = self.inside(host, || {
            let link = Capture::from_device("uplink").and_then(|link| link.snaplen(64).open());
            link.expect("root may open the link")
        });
        Wire { link, victim: self.hardware_address("victim", host), own: self.hardware_address(host, "uplink") }
    }

    pub fn hardware_address(&self, host: &str, interface: &str) -> [u8; 6] {
        let text = self.run(host, "cat", &[&format!("/sys/class/net/{interface}/address")]);
        let bytes: Vec<u8> = text.trim().split(':').filter_map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
        bytes.try_into().unwrap_or_else(|_| panic!("{text:?} is no hardware address"))
    }
}

/// The first addresses from 10.99.0.0 on, which belong to no host of a lab.
pub fn forged(count: u32) -> impl Iterator<Item = IpAddr> {
    (0..count).map(|number| Ipv4Addr::from_bits(0x0a63_0000 + number).into())
}

/// A complete IP packet of either family.
pub fn packet(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => ipv4(source, target, protocol, 0, false, payload),
        (IpAddr::V6(source), IpAddr::V6(target)) => ipv6(source, target, protocol, payload),
        _ => panic!("{source} and {target} are of different families"),
    }
}

/// A TCP packet without payload, from a fixed port.
pub fn tcp(source: IpAddr, target: IpAddr, port: u16, flags: u16) -> Vec<u8> {
    packet(source, target, TCP, &segment(source, target, (SOURCE_PORT, port), flags))
}

/// A SYN as nmap builds it.
pub fn scanner_syn(source: IpAddr, target: IpAddr, port: u16) -> Vec<u8> {
    packet(source, target, TCP, &segment_offering(source, target, (SOURCE_PORT, port), (SYN, 1_024), &[]))
}

/// A UDP packet with a few bytes of payload.
pub fn udp(source: IpAddr, target: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    let mut datagram =
        [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &16_u16.to_be_bytes(), &[0; 2], b"portscan"].concat();
    let sum = checksum(source, target, UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum);
    packet(source, target, UDP, &datagram)
}

/// A TCP header of 24 bytes, with the maximum segment size as its only option.
pub fn segment(source: IpAddr, target: IpAddr, ports: (u16, u16), flags: u16) -> Vec<u8> {
    segment_with(source, target, ports, flags, &[])
}

/// The same with a payload.
pub fn segment_with(source: IpAddr, target: IpAddr, ports: (u16, u16), flags: u16, payload: &[u8]) -> Vec<u8> {
    segment_offering(source, target, ports, (flags, 64_240), payload)
}

fn segment_offering(
    source: IpAddr,
    target: IpAddr,
    ports: (u16, u16),
    (flags, window): (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::with_capacity(24 + payload.len());
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(0x1357_9bdf_u32.to_be_bytes());
    segment.extend(if flags & ACK == 0 { [0; 4] } else { 0x2468_ace0_u32.to_be_bytes() });
    segment.extend((0x6000 | flags).to_be_bytes());
    segment.extend(window.to_be_bytes());
    segment.extend([0, 0, 0, 0, 2, 4, 0x05, 0xb4]);
    segment.extend(payload);
    let sum = checksum(source, target, TCP, &segment);
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// A fragment of an IPv4 datagram: `offset` is in units of 8 bytes.
pub fn ipv4(source: Ipv4Addr, target: Ipv4Addr, protocol: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("a short packet");
    let mut header = [0x45, 0, 0, 0, 0x4d, 0x58, 0, 0, 64, protocol, 0, 0].to_vec();
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[6..8].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
    header.extend(source.octets());
    header.extend(target.octets());
    let sum = fold(&header);
    header[10..12].copy_from_slice(&sum);
    [header, payload.to_vec()].concat()
}

/// An IPv6 packet whose payload begins with the header `next`.
pub fn ipv6(source: Ipv6Addr, target: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short packet");
    let start = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[next, 64]].concat();
    [&start[..], &source.octets(), &target.octets(), payload].concat()
}

/// A router's advertisement of a default route for half an hour, for [`Wire::advertise`] (RFC 4861).
fn router_advertisement(router: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = [&[134, 0, 0, 0, 64, 0][..], &1_800_u16.to_be_bytes(), &[0; 8]].concat();
    let sum = checksum(router.into(), all_nodes.into(), ICMPV6, &message);
    message[2..4].copy_from_slice(&sum);
    let mut packet = ipv6(router, all_nodes, ICMPV6, &message);
    packet[7] = 255;
    packet
}

/// Eight bytes of padding options (PadN) before `payload`, whose protocol is `next`.
pub fn options(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0][..], payload].concat()
}

/// An IPv6 fragment header before `payload`; at offset 0 without more fragments it is an atomic fragment (RFC 6946).
pub fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let field = (offset << 3 | u16::from(more)).to_be_bytes();
    [&[next, 0][..], &field, &0x706f_7274_u32.to_be_bytes(), payload].concat()
}

/// Writes the checksum of an IPv4 header.
pub fn sum_header(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let sum = fold(&packet[..header]);
    packet[10..12].copy_from_slice(&sum);
}

/// The fragment with another identification, so that it belongs to another datagram.
pub fn identified(number: u16, mut packet: Vec<u8>) -> Vec<u8> {
    let number = number.to_be_bytes();
    if packet[0] >> 4 == 4 {
        packet[4..6].copy_from_slice(&number);
        sum_header(&mut packet);
        return packet;
    }
    let (mut next, mut at) = (packet[6], 40);
    while next != FRAGMENT {
        (next, at) = (packet[at], at + (usize::from(packet[at + 1]) + 1) * 8);
    }
    packet[at + 6..at + 8].copy_from_slice(&number);
    packet
}

const SOURCE_PORT: u16 = 40_404;

/// The checksum of a segment or datagram with its pseudo-header.
pub fn checksum(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> [u8; 2] {
    let length = u32::try_from(payload.len()).expect("a short packet").to_be_bytes();
    let mut summed = Vec::new();
    for address in [source, target] {
        match address {
            IpAddr::V4(v4) => summed.extend(v4.octets()),
            IpAddr::V6(v6) => summed.extend(v6.octets()),
        }
    }
    summed.extend(length);
    summed.extend([0, 0, 0, protocol]);
    summed.extend(payload);
    fold(&summed)
}

fn fold(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}
