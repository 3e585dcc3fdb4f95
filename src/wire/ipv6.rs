//! An IPv6 packet, through its extension headers, to its addresses and what it carries.
//!
//! Read with: RFC 8200 (header, extensions, fragments), RFC 4302 (AH), RFC 6946 (atomic fragments), RFC 7112 (a first
//! fragment holds the whole chain of headers), RFC 2675 (jumbograms).

use std::net::{IpAddr, Ipv6Addr};

use super::link::Frame;
use super::piece::Piece;
use super::transport::{self, ICMPV6};
use super::{Packet, Transport, Undecoded};

/// Decodes the packet of an IPv6 frame.
#[inline]
pub(super) fn decode(frame: &Frame<'_>) -> Result<Packet, Undecoded> {
    let (&[version, _, _, _, l0, l1, next, _], rest) = frame.packet.split_first_chunk().ok_or(Undecoded::Truncated)?;
    let (source, rest) = rest.split_first_chunk::<16>().ok_or(Undecoded::Truncated)?;
    let (destination, rest) = rest.split_first_chunk::<16>().ok_or(Undecoded::Truncated)?;
    if version >> 4 != 6 {
        return Err(Undecoded::Malformed);
    }
    let claimed = usize::from(u16::from_be_bytes([l0, l1]));
    // Zero: longer than 16 bits can say, as a jumbogram or a large send that the card is still to cut up.
    let payload = Piece::new(rest, if claimed == 0 { rest.len() } else { claimed });

    let (transport, fragmented) = match next {
        transport::TCP | transport::UDP | ICMPV6 => (transport::whole(next, ICMPV6, payload)?, false),
        _ => chain(next, payload, claimed == 0)?,
    };
    Ok(Packet {
        source: IpAddr::V6(Ipv6Addr::from(*source)),
        destination: IpAddr::V6(Ipv6Addr::from(*destination)),
        delivery: frame.delivery,
        interface: frame.interface,
        fragmented,
        transport,
    })
}

/// Follows the extension headers from `next`. The order is not judged: a host may answer with an error, but the sender
/// has meant a port all the same. Gives what they lead to, and whether it is the first piece of a fragmented datagram.
fn chain(mut next: u8, mut payload: Piece<'_>, jumbo: bool) -> Result<(Transport, bool), Undecoded> {
    let mut fragmented = false;
    for _ in 0..=MAX_EXTENSIONS {
        let step = match next {
            FRAGMENT => {
                let &[following, _, o0, o1, ..] = payload.header::<FRAGMENT_HEADER>(FRAGMENT_HEADER)?;
                let field = u16::from_be_bytes([o0, o1]);
                let (offset, more) = (field >> 3, field & 1 == 1);
                if jumbo && (more || offset != 0) {
                    return Err(Undecoded::Malformed);
                }
                if offset != 0 {
                    return Ok((transport::later_fragment(following, offset), false));
                }
                payload = payload.behind(FRAGMENT_HEADER)?;
                if more {
                    fragmented = true;
                    payload = payload.whole_units();
                }
                next = following;
                continue;
            }
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => extension(payload, 1, 8),
            AUTHENTICATION => extension(payload, 2, 4),
            _ if fragmented => return Ok((transport::first_fragment(next, ICMPV6, payload)?, true)),
            _ => return Ok((transport::whole(next, ICMPV6, payload)?, false)),
        };
        (next, payload) = match step {
            Ok(behind) => behind,
            // No stack splits the chain of headers; a filter that looks for ports finds none in such a piece.
            Err(Undecoded::Malformed) if fragmented => return Ok((Transport::TinyFragment { ports: None }, true)),
            Err(undecoded) => return Err(undecoded),
        };
    }
    Err(Undecoded::Malformed)
}

/// Behind one extension header whose second byte counts units of `unit` bytes, `uncounted` of them left out.
fn extension(payload: Piece<'_>, uncounted: usize, unit: usize) -> Result<(u8, Piece<'_>), Undecoded> {
    let &[next, units] = payload.header(uncounted * unit)?;
    Ok((next, payload.behind((usize::from(units) + uncounted) * unit)?))
}

/// Extension headers that are followed. RFC 8200 knows seven, one of them twice; more only wear a decoder out.
const MAX_EXTENSIONS: usize = 16;
const FRAGMENT_HEADER: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;
