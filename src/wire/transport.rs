//! Decodes the payload of an IP packet into a [`Transport`]. Tunnels are not decoded: their contents are captured on
//! the tunnel's own interface.
//!
//! References: RFC 9293 (TCP), RFC 768 (UDP), RFC 9260 (SCTP), RFC 792 and 4443 (ICMP), RFC 1858 and 3128 (fragments).

use super::error::Undecoded;
use super::packet::{TcpFlags, Transport};
use super::piece::Piece;
use super::protocol::{SCTP, TCP, UDP, UDP_HEADER};

/// Decodes the payload of an unfragmented packet. `icmp` is the protocol number of ICMP in the packet's IP version.
///
/// # Errors
///
/// [`Undecoded::Malformed`] if the header does not fit into the IP length, [`Undecoded::Truncated`] if the captured
/// bytes end before the required fields.
#[inline]
pub(super) fn whole(protocol: u8, icmp: u8, payload: Piece<'_>) -> Result<Transport, Undecoded> {
    match protocol {
        TCP => tcp(payload),
        UDP => {
            let (source_port, destination_port) = ports(*payload.header(UDP_HEADER)?);
            Ok(Transport::Udp { source_port, destination_port })
        }
        SCTP => {
            let &[s0, s1, d0, d1, _, _, _, _, _, _, _, _, chunk] = payload.header(SCTP_HEADER + SCTP_CHUNK_HEADER)?;
            let (source_port, destination_port) = ports([s0, s1, d0, d1]);
            Ok(Transport::Sctp { source_port, destination_port, chunk })
        }
        _ if protocol == icmp => {
            let &[kind, code] = payload.header(ICMP_HEADER)?;
            Ok(Transport::Icmp { kind, code })
        }
        _ => Ok(Transport::Other { protocol }),
    }
}

/// Decodes the first of several fragments, cut to [whole units](Piece::whole_units). A fragment that ends inside the
/// transport header is not malformed, but was sent on purpose.
///
/// # Errors
///
/// [`Undecoded::Truncated`] if the captured bytes end before the required fields.
#[inline]
pub(super) fn first_fragment(protocol: u8, icmp: u8, payload: Piece<'_>) -> Result<Transport, Undecoded> {
    match whole(protocol, icmp, payload) {
        Err(Undecoded::Malformed) => tiny(payload),
        decoded => decoded,
    }
}

/// Decodes a fragment at `offset`, in units of 8 bytes.
#[inline]
pub(super) fn later_fragment(protocol: u8, offset: u16) -> Transport {
    match (protocol, offset) {
        (TCP, 1) => Transport::OverlappingFragment,
        _ => Transport::LaterFragment { protocol },
    }
}

#[inline]
fn tcp(segment: Piece<'_>) -> Result<Transport, Undecoded> {
    let &[s0, s1, d0, d1, _, _, _, _, _, _, _, _, offset_flags, flags] = segment.header(TCP_TO_FLAGS)?;
    let header = usize::from(offset_flags >> 4) * 4;
    // Every stack drops a header that claims fewer than 20 bytes, and none sends one. Its ports and flags are still
    // present and were sent on purpose, so the packet is judged as a probe.
    let payload = if header < TCP_HEADER { 0 } else { segment.length().saturating_sub(header) };
    let (source_port, destination_port) = ports([s0, s1, d0, d1]);
    let flags = TcpFlags(u16::from_be_bytes([offset_flags & 0x0f, flags]));
    Ok(Transport::Tcp { source_port, destination_port, flags, payload: u16::try_from(payload).unwrap_or(u16::MAX) })
}

/// The source and the destination port at the start of a transport header.
#[inline]
pub(super) fn ports([s0, s1, d0, d1]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))
}

fn tiny(piece: Piece<'_>) -> Result<Transport, Undecoded> {
    let ports = match piece.header(PORTS_LEN) {
        Ok(bytes) => Some(ports(*bytes)),
        Err(Undecoded::Truncated) => return Err(Undecoded::Truncated),
        Err(_) => None,
    };
    Ok(Transport::TinyFragment { ports })
}

const PORTS_LEN: usize = 4;
const TCP_HEADER: usize = 20;
/// The length of a TCP header up to its flags. Nothing after the flags is read, so a fragment that ends there is
/// complete enough.
const TCP_TO_FLAGS: usize = 14;
const SCTP_HEADER: usize = 12;
const SCTP_CHUNK_HEADER: usize = 4;
/// Type, code and checksum.
const ICMP_HEADER: usize = 4;
