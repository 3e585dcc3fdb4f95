//! Builds packets for the unit tests of all modules.

use std::net::IpAddr;

use super::{Checksum, Delivery, Packet, TcpFlags, Transport};

pub(crate) const FIN: u16 = TcpFlags::FIN;
pub(crate) const SYN: u16 = TcpFlags::SYN;
pub(crate) const RST: u16 = TcpFlags::RST;
pub(crate) const PSH: u16 = TcpFlags::PSH;
pub(crate) const ACK: u16 = TcpFlags::ACK;
pub(crate) const URG: u16 = TcpFlags::URG;

/// A complete packet without information from the link layer.
pub(crate) fn packet(
    source: impl Into<IpAddr>,
    destination: impl Into<IpAddr>,
    transport: Transport,
) -> Packet<'static> {
    Packet {
        source: source.into(),
        destination: destination.into(),
        delivery: Delivery::Unknown,
        interface: 0,
        checksum: Checksum::Good.into(),
        fragmented: false,
        transport,
    }
}

pub(crate) fn tcp(source_port: u16, destination_port: u16, flags: u16) -> Transport {
    Transport::Tcp { source_port, destination_port, flags: TcpFlags(flags), payload: 0 }
}

/// Bytes from hexadecimal text; white space is ignored.
pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits = text.chars().filter(|digit| !digit.is_whitespace());
    let digits: Vec<u32> = digits.map(|digit| digit.to_digit(16).unwrap()).collect();
    assert!(digits.len().is_multiple_of(2), "{text} has an odd number of digits");
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

/// A bare IPv4 packet from 192.0.2.1 to 192.0.2.2 whose header claims `claimed` bytes after it.
pub(crate) fn ipv4_packet(protocol: u8, fragment: u16, claimed: u16, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (claimed + 20).to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    [&[0x45, 0, l0, l1, 0, 7, f0, f1, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2][..], payload].concat()
}

/// A bare IPv6 packet from 2001:db8::1 to 2001:db8::2 whose header claims `claimed` bytes after it.
pub(crate) fn ipv6_packet(next: u8, claimed: u16, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = claimed.to_be_bytes();
    let addresses = hex("20010db8000000000000000000000001 20010db8000000000000000000000002");
    [&[0x60, 0, 0, 0, l0, l1, next, 64][..], &addresses, payload].concat()
}

/// An IPv6 packet whose header claims the actual length.
pub(crate) fn honest_ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    ipv6_packet(next, u16::try_from(payload.len()).unwrap(), payload)
}
