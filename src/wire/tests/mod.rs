//! Tests the decoder with captured frames, with the same frames truncated at every length, and with hostile ones.

mod frames;
mod ipv4;
mod ipv6;
mod link;
mod transport;

use super::fixtures::hex;
use super::{Checksum, LinkType, Packet, TcpFlags, Transport, Undecoded, decode};

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A bare IPv4 packet from 192.0.2.1 to 192.0.2.2 whose header claims `claimed` bytes after it.
fn ipv4_packet(protocol: u8, fragment: u16, claimed: u16, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (claimed + 20).to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    joined(&[&[0x45, 0, l0, l1, 0, 7, f0, f1, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2], payload])
}

/// A bare IPv6 packet from 2001:db8::1 to 2001:db8::2 whose header claims `claimed` bytes after it.
fn ipv6_packet(next: u8, claimed: u16, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = claimed.to_be_bytes();
    let addresses = hex("20010db8000000000000000000000001 20010db8000000000000000000000002");
    joined(&[&[0x60, 0, 0, 0, l0, l1, next, 64], &addresses, payload])
}

/// An IPv6 packet whose header claims the actual length.
fn honest_ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    ipv6_packet(next, u16::try_from(payload.len()).unwrap(), payload)
}

fn transport_of(packet: &[u8]) -> Result<Transport, Undecoded> {
    decode(LinkType::Raw, packet).map(|packet| packet.transport)
}

/// A 20 byte TCP header from port 40000 to port 23 with SYN set.
const SYN: [u8; 20] = [0x9c, 0x40, 0, 23, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 4, 0, 0, 0, 0, 0];

const SYN_SEEN: Transport =
    Transport::Tcp { source_port: 40000, destination_port: 23, flags: TcpFlags(TcpFlags::SYN), payload: 0 };

/// Asserts that a frame truncated at any length gives the same packet or is reported as truncated, but never gives
/// another packet.
fn assert_stable_when_cut(link: LinkType, frame: &[u8]) {
    // A checksum can be verified only if all bytes that it covers are present.
    let decode = |frame| decode(link, frame).map(|packet| Packet { checksum: Checksum::Good.into(), ..packet });
    let whole = decode(frame);
    let mut first_whole = None;
    for length in 0..frame.len() {
        let cut = decode(&frame[..length]);
        if cut == whole {
            first_whole.get_or_insert(length);
            continue;
        }
        assert_eq!(cut, Err(Undecoded::Truncated), "{length} of {} bytes", frame.len());
        assert_eq!(first_whole, None, "{length} bytes are too few, but fewer were enough");
    }
}

fn decoded(link: LinkType, frame: &str) -> Packet<'static> {
    let frame = hex(frame).leak();
    assert_stable_when_cut(link, frame);
    decode(link, frame).unwrap()
}
