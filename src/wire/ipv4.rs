//! Decodes an IPv4 packet into its addresses and its payload.
//!
//! References: RFC 791 (header, fragments), RFC 1858 and 3128 (fragments made to fool filters).

use std::net::{IpAddr, Ipv4Addr};

use super::checksum::{LazyChecksum, Payload};
use super::error::Undecoded;
use super::link::Frame;
use super::packet::Packet;
use super::piece::Piece;
use super::protocol::ICMPV4;
use super::transport;

#[inline]
pub(super) fn decode<'a>(frame: &Frame<'a>) -> Result<Packet<'a>, Undecoded> {
    let (header, rest) = frame.packet.split_first_chunk::<12>().ok_or(Undecoded::Truncated)?;
    let &[version_ihl, _, l0, l1, _, _, f0, f1, _, protocol, _, _] = header;
    let (source, rest) = rest.split_first_chunk::<4>().ok_or(Undecoded::Truncated)?;
    let (destination, rest) = rest.split_first_chunk::<4>().ok_or(Undecoded::Truncated)?;
    let options = (usize::from(version_ihl & 0x0f) * 4).checked_sub(MIN_HEADER).ok_or(Undecoded::Malformed)?;
    if version_ihl >> 4 != 4 {
        return Err(Undecoded::Malformed);
    }
    let fragment = u16::from_be_bytes([f0, f1]);
    let (more, offset) = (fragment & MORE_FRAGMENTS != 0, fragment & OFFSET);

    let behind_fixed = match usize::from(u16::from_be_bytes([l0, l1])) {
        // A total length of zero: the kernel has not yet split a large send, or has merged received segments, so that
        // the length does not fit in 16 bits. Such packets are never fragments. The kernel drops a packet with length
        // zero that arrives on the wire.
        0 if !more && offset == 0 => rest.len(),
        total => total.checked_sub(MIN_HEADER).ok_or(Undecoded::Malformed)?,
    };
    let payload = Piece::new(rest, behind_fixed).behind(options)?;

    let (transport, whole) = match (offset, more) {
        (0, false) => (transport::whole(protocol, ICMPV4, payload)?, Some(Payload { protocol, piece: payload })),
        (0, true) => (transport::first_fragment(protocol, ICMPV4, payload.whole_units())?, None),
        _ => (transport::later_fragment(protocol, offset), None),
    };
    let header = frame.packet.get(..MIN_HEADER + options).ok_or(Undecoded::Truncated)?;
    Ok(Packet {
        source: IpAddr::V4(Ipv4Addr::from(*source)),
        destination: IpAddr::V4(Ipv4Addr::from(*destination)),
        delivery: frame.delivery,
        interface: frame.interface,
        checksum: LazyChecksum::v4(header, whole),
        fragmented: more && offset == 0,
        transport,
    })
}

const MIN_HEADER: usize = 20;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
