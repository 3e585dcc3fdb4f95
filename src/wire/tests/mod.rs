//! Tests the decoder with captured frames, with the same frames truncated at every length, and with hostile ones.

mod fragments;
mod frames;
mod ipv4;
mod ipv6;
mod link;
mod transport;

use super::fixtures::{hex, honest_ipv6, ipv4_packet, ipv6_packet};
use super::{Checksum, LinkType, Packet, TcpFlags, Transport, Undecoded, decode};

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
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
