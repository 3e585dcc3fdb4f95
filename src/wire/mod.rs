//! Decodes the bytes of one captured frame into a [`Packet`]. Never fails: every input gives a packet or a counted
//! [`Undecoded`]. Never logs, allocates or decides; [`crate::engine`] interprets the packet.
//!
//! References: RFC 791 and 8200 (IP), RFC 9293 (TCP), RFC 768 (UDP), RFC 9260 (SCTP), RFC 1858 and 3128 (tiny and
//! overlapping fragments), `linux/if_packet.h` and the LINKTYPE_LINUX_SLL2 page of tcpdump.org (cooked captures).

mod checksum;
mod error;
#[cfg(test)]
pub(crate) mod fixtures;
mod ipv4;
mod ipv6;
mod link;
mod packet;
mod piece;
mod protocol;
mod quote;
mod transport;

pub use checksum::{Checksum, LazyChecksum};
pub use error::Undecoded;
pub(crate) use link::{MAX_TAGS, SLL2_HEADER};
pub use packet::{Delivery, LinkType, Packet, TcpFlags, Transport};
pub use quote::{Quote, icmp_quote};

/// Decodes one captured frame. Lengths come from the headers, so the captured length of the payload does not matter if
/// the headers are complete.
///
/// # Errors
///
/// [`Undecoded`] if the frame contains no IP packet, ends too early, or contradicts itself.
#[inline]
pub fn decode(link: LinkType, frame: &[u8]) -> Result<Packet<'_>, Undecoded> {
    let frame = link::open(link, frame)?;
    if frame.hidden {
        return hidden(&frame);
    }
    match frame.version {
        link::Version::V4 => ipv4::decode(&frame),
        link::Version::V6 => ipv6::decode(&frame),
    }
}

/// Decodes the second reading of a cooked frame whose bytes can be both a VLAN tag, which [`decode`] removes, and the
/// start of an IPv6 header. `None` for almost every frame. The reading that is wrong has other addresses.
#[inline]
pub fn decode_untagged(link: LinkType, frame: &[u8]) -> Option<Packet<'_>> {
    link::begin_like_tag(link, frame).and_then(|frame| ipv6::decode(&frame).ok())
}

/// The addresses of a packet that is hidden behind VLAN tags. The rest of the packet is not decoded.
#[cold]
fn hidden<'a>(frame: &link::Frame<'a>) -> Result<Packet<'a>, Undecoded> {
    let link::Frame { version, packet, delivery, interface, .. } = *frame;
    let (Quote { source, destination, .. }, behind) = quote::open(version, packet).ok_or(Undecoded::Truncated)?;
    let header = packet.get(..packet.len() - behind.len()).unwrap_or_default();
    let checksum = match version {
        link::Version::V4 => LazyChecksum::v4(header, None),
        link::Version::V6 => Checksum::Unknown.into(),
    };
    let transport = Transport::HiddenHeader;
    Ok(Packet { source, destination, delivery, interface, checksum, fragmented: false, transport })
}

#[cfg(test)]
mod tests;
