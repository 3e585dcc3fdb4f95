//! Decodes an IPv6 packet, through its extension headers, into its addresses and its payload.
//!
//! References: RFC 8200 (header, extensions, fragments), RFC 4302 (AH), RFC 6946 (atomic fragments), RFC 7112 (a first
//! fragment holds the whole chain of headers), RFC 2675 (jumbograms).

use std::net::{IpAddr, Ipv6Addr};

use super::checksum::{LazyChecksum, Payload};
use super::error::Undecoded;
use super::link::Frame;
use super::packet::{Packet, Transport};
use super::piece::Piece;
use super::protocol::{ICMPV6, TCP, UDP};
use super::transport;

#[inline]
pub(super) fn decode<'a>(frame: &Frame<'a>) -> Result<Packet<'a>, Undecoded> {
    let (&[version, _, _, _, l0, l1, next, _], rest) = frame.packet.split_first_chunk().ok_or(Undecoded::Truncated)?;
    let addresses = rest.first_chunk().ok_or(Undecoded::Truncated)?;
    let (source, rest) = rest.split_first_chunk::<16>().ok_or(Undecoded::Truncated)?;
    let (destination, rest) = rest.split_first_chunk::<16>().ok_or(Undecoded::Truncated)?;
    if version >> 4 != 6 {
        return Err(Undecoded::Malformed);
    }
    let claimed = usize::from(u16::from_be_bytes([l0, l1]));
    // Zero: the length does not fit in 16 bits, as in a jumbogram or in a large send that the card has yet to split.
    let payload = Piece::new(rest, if claimed == 0 { rest.len() } else { claimed });

    let Carried { transport, whole, fragmented } = match next {
        TCP | UDP | ICMPV6 => Carried::unfragmented(next, payload)?,
        _ => chain(next, payload, claimed == 0)?,
    };
    Ok(Packet {
        source: IpAddr::V6(Ipv6Addr::from(*source)),
        destination: IpAddr::V6(Ipv6Addr::from(*destination)),
        delivery: frame.delivery,
        interface: frame.interface,
        checksum: LazyChecksum::v6(addresses, whole, claimed != 0),
        fragmented,
        transport,
    })
}

/// The result of following the headers.
struct Carried<'a> {
    transport: Transport,
    /// `None` for a fragment.
    whole: Option<Payload<'a>>,
    /// True for the first fragment of a datagram.
    fragmented: bool,
}

impl<'a> Carried<'a> {
    fn unfragmented(protocol: u8, payload: Piece<'a>) -> Result<Self, Undecoded> {
        let transport = transport::whole(protocol, ICMPV6, payload)?;
        Ok(Self { transport, whole: Some(Payload { protocol, piece: payload }), fragmented: false })
    }

    fn fragment(transport: Transport, fragmented: bool) -> Self {
        Self { transport, whole: None, fragmented }
    }
}

/// Follows the extension headers from `next`. Their order is not judged, because the packet was meant for a port even
/// if the host answers with an error. Their number is not limited either: Linux follows any number. The loop ends at
/// [`MAX_CHAIN`], because each header has at least eight bytes.
fn chain(mut next: u8, mut payload: Piece<'_>, jumbo: bool) -> Result<Carried<'_>, Undecoded> {
    let mut fragmented = false;
    let start = payload.length();
    loop {
        let before = start.saturating_sub(payload.length());
        let step = match next {
            FRAGMENT => {
                let &[following, _, o0, o1, ..] = payload.header::<FRAGMENT_HEADER>(FRAGMENT_HEADER)?;
                let field = u16::from_be_bytes([o0, o1]);
                let (offset, more) = (field >> 3, field & 1 == 1);
                if jumbo && (more || offset != 0) {
                    return Err(Undecoded::Malformed);
                }
                if offset != 0 {
                    return Ok(Carried::fragment(transport::later_fragment(following, offset), false));
                }
                if before + FRAGMENT_HEADER > MAX_CHAIN {
                    return Ok(Carried::fragment(Transport::HiddenHeader, fragmented || more));
                }
                payload = payload.behind(FRAGMENT_HEADER)?;
                if more {
                    fragmented = true;
                    payload = payload.whole_units();
                }
                next = following;
                continue;
            }
            HOP_BY_HOP | ROUTING | DESTINATION if is_beyond(payload, before, jumbo) => {
                return Ok(Carried::fragment(Transport::HiddenHeader, fragmented));
            }
            // Linux delivers packets behind these headers only to programs that handle them.
            MOBILITY | HIP | SHIM6 | AUTHENTICATION if before > MAX_CHAIN => return Err(Undecoded::Malformed),
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => extension(payload, 1, 8),
            AUTHENTICATION => extension(payload, 2, 4),
            _ if fragmented => {
                let transport = transport::first_fragment(next, ICMPV6, payload)?;
                return Ok(Carried::fragment(transport, true));
            }
            _ => return Carried::unfragmented(next, payload),
        };
        (next, payload) = match step {
            Ok(behind) => behind,
            // No stack splits the chain of headers. A filter that looks for ports finds none in such a fragment.
            Err(Undecoded::Malformed) if fragmented => {
                return Ok(Carried::fragment(Transport::TinyFragment { ports: None }, true));
            }
            Err(undecoded) => return Err(undecoded),
        };
    }
}

/// True if an options or routing header, `before` bytes into the chain, ends beyond [`MAX_CHAIN`] but inside the
/// packet. The end of a `jumbo` packet is unknown.
fn is_beyond(payload: Piece<'_>, before: usize, jumbo: bool) -> bool {
    let length = payload.header(8).map_or(0, |&[_, units]| (usize::from(units) + 1) * 8);
    (jumbo || length <= payload.length()) && before + length > MAX_CHAIN
}

/// Skips one extension header. Its second byte counts units of `unit` bytes, without the first `uncounted` units.
fn extension(payload: Piece<'_>, uncounted: usize, unit: usize) -> Result<(u8, Piece<'_>), Undecoded> {
    let &[next, units] = payload.header(uncounted * unit)?;
    Ok((next, payload.behind((usize::from(units) + uncounted) * unit)?))
}

/// The maximum length of the extension headers before a transport header, in bytes. The captured part of a frame has
/// room for this length and a whole TCP header.
const MAX_CHAIN: usize = 288;
const FRAGMENT_HEADER: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
