//! Decodes the flow that caused an ICMP error: the error quotes the IP header of the failed packet and at least the
//! next 8 bytes (RFC 792, RFC 4443).

use std::net::IpAddr;

use super::link::{self, Version, nibble};
use super::packet::LinkType;
use super::transport::ports;

/// The headers of the quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Sender of the packet that failed.
    pub source: IpAddr,
    /// Destination of the packet that failed.
    pub destination: IpAddr,
    /// Its IP protocol number.
    pub protocol: u8,
    /// The first four bytes of its payload, as two ports.
    pub ports: (u16, u16),
}

/// The flow that the ICMP error in `frame` quotes. Returns `None` if `frame` is not ICMP directly behind an IP header,
/// or ends too early.
pub fn icmp_quote(link: LinkType, frame: &[u8]) -> Option<Quote> {
    const ICMP_HEADER: usize = 8;
    let packet = link::open(link, frame).ok()?.packet;
    let (outer, icmp) = open(nibble(packet).ok()?, packet)?;
    if !matches!((outer.source, outer.protocol), (IpAddr::V4(_), 1) | (IpAddr::V6(_), 58)) {
        return None;
    }
    let failed = icmp.get(ICMP_HEADER..)?;
    let (quote, carried) = open(nibble(failed).ok()?, failed)?;
    Some(Quote { ports: ports(*carried.first_chunk()?), ..quote })
}

/// The addresses and the protocol of an IP header, and the bytes after it.
pub(super) fn open(version: Version, packet: &[u8]) -> Option<(Quote, &[u8])> {
    let (source, destination, protocol, length): (IpAddr, IpAddr, _, _) = match version {
        Version::V4 => {
            let [first, .., s0, s1, s2, s3, d0, d1, d2, d3] = *packet.first_chunk::<20>()?;
            let length = usize::from(first & 0x0f) * 4;
            ([s0, s1, s2, s3].into(), [d0, d1, d2, d3].into(), *packet.get(9)?, length)
        }
        Version::V6 => {
            let (source, rest) = packet.get(8..)?.split_first_chunk::<16>()?;
            ((*source).into(), (*rest.first_chunk::<16>()?).into(), *packet.get(6)?, 40)
        }
    };
    Some((Quote { source, destination, protocol, ports: (0, 0) }, packet.get(length..)?))
}
