//! Decodes the link layer down to the IP packet: Ethernet, both Linux cooked captures, raw IP and BSD loopback. VLAN
//! tags and PPPoE sessions are removed. A frame without IP is [`Undecoded::NotIp`].
//!
//! Linux removes the first tag before the capture, and accepts packets behind any number of further tags with number 0.
//!
//! References: IEEE 802.1Q and 802.1ad, RFC 2516 (PPPoE), and the LINKTYPE pages of tcpdump.org.

use super::error::Undecoded;
use super::packet::{Delivery, LinkType};

/// The IP version in the link-layer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// The information of the link layer, and its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) version: Version,
    pub(super) packet: &'a [u8],
    /// True if the packet is behind more than [`MAX_TAGS`] tags with number 0, whose only purpose is to hide it.
    pub(super) hidden: bool,
    pub(super) delivery: Delivery,
    pub(super) interface: u32,
}

/// Decodes the link layer of `frame`.
#[inline]
pub(super) fn open(link: LinkType, frame: &[u8]) -> Result<Frame<'_>, Undecoded> {
    let (Inner { version, packet, hidden }, delivery, interface) = match link {
        LinkType::Ethernet => {
            let (destination, rest) = split::<6>(frame)?;
            let ([_, _, _, _, _, _, t0, t1], rest) = split(rest)?;
            (payload(u16::from_be_bytes([*t0, *t1]), rest)?, group(*destination), 0)
        }
        LinkType::Sll => {
            let ([p0, p1, .., t0, t1], rest) = split::<16>(frame)?;
            (payload(u16::from_be_bytes([*t0, *t1]), rest)?, cooked(u16::from_be_bytes([*p0, *p1])), 0)
        }
        LinkType::Sll2 => {
            let ([t0, t1, _, _, i0, i1, i2, i3, _, _, kind, ..], rest) = split::<SLL2_HEADER>(frame)?;
            let ether_type = u16::from_be_bytes([*t0, *t1]);
            let inner = behind_tags(ether_type, rest).unwrap_or_else(|| payload(ether_type, rest))?;
            (inner, cooked(u16::from(*kind)), u32::from_be_bytes([*i0, *i1, *i2, *i3]))
        }
        LinkType::Raw => (Inner::new(nibble(frame)?, frame), Delivery::Unknown, 0),
        LinkType::Null => {
            let (family, packet) = split(frame)?;
            (Inner::new(address_family(*family)?, packet), Delivery::Unknown, 0)
        }
    };
    Ok(Frame { version, packet, hidden, delivery, interface })
}

/// The IP packet of a frame.
#[derive(Clone, Copy)]
struct Inner<'a> {
    version: Version,
    packet: &'a [u8],
    hidden: bool,
}

impl<'a> Inner<'a> {
    fn new(version: Version, packet: &'a [u8]) -> Self {
        Self { version, packet, hidden: false }
    }
}

/// Splits `bytes` into the first `N` bytes and the rest.
#[inline]
fn split<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), Undecoded> {
    bytes.split_first_chunk().ok_or(Undecoded::Truncated)
}

/// Follows EtherTypes through VLAN tags to IP.
#[inline]
fn payload(mut ether_type: u16, mut bytes: &[u8]) -> Result<Inner<'_>, Undecoded> {
    let (mut tags, mut numbered) = (0, false);
    loop {
        let hidden = tags > MAX_TAGS;
        match ether_type {
            ETHER_IPV4 => return Ok(Inner { version: Version::V4, packet: bytes, hidden }),
            ETHER_IPV6 => return Ok(Inner { version: Version::V6, packet: bytes, hidden }),
            ETHER_VLAN | ETHER_SERVICE_VLAN | ETHER_OLD_SERVICE_VLAN => {
                let ([n0, n1, t0, t1], rest) = split(bytes)?;
                tags += 1;
                numbered |= u16::from_be_bytes([*n0, *n1]) & VLAN_NUMBER != 0;
                if tags > MAX_TAGS && numbered {
                    return Err(Undecoded::Malformed);
                }
                ether_type = u16::from_be_bytes([*t0, *t1]);
                bytes = rest;
            }
            ETHER_PPPOE_SESSION => return pppoe(bytes),
            _ => return Err(Undecoded::NotIp),
        }
    }
}

/// The packet behind tags with number 0 in a cooked frame whose header does not show them. Since Linux 6.11 the header
/// contains the EtherType behind all tags, or 0 if there are more than eight. Returns `None` if there are no tags
/// before the packet.
#[inline]
fn behind_tags(ether_type: u16, bytes: &[u8]) -> Option<Result<Inner<'_>, Undecoded>> {
    let &[n0, n1, t0, t1] = bytes.first_chunk()?;
    let is_tag = u16::from_be_bytes([n0, n1]) & VLAN_NUMBER == 0
        && matches!(ether_type, 0 | ETHER_IPV4 | ETHER_IPV6)
        && matches!(
            u16::from_be_bytes([t0, t1]),
            ETHER_IPV4 | ETHER_IPV6 | ETHER_VLAN | ETHER_SERVICE_VLAN | ETHER_OLD_SERVICE_VLAN
        );
    if !is_tag {
        return None;
    }
    let inner = payload(ETHER_VLAN, bytes);
    // No IPv4 header begins like a tag. An IPv6 header with a rare flow label does; then the bytes behind the supposed
    // tags are not an IPv6 header.
    if ether_type == ETHER_IPV6 && n0 >> 4 == 6 {
        let is_header = |inner: &Inner<'_>| inner.version == Version::V6 && nibble(inner.packet) == Ok(Version::V6);
        return inner.ok().filter(is_header).map(Ok);
    }
    Some(inner)
}

/// Reads a cooked frame as an untagged IPv6 packet if its first bytes can also be a VLAN tag before another IPv6
/// header: a flow label that equals the EtherType of IPv6, and more than 24,000 bytes. A guest can send such a packet
/// (segmentation offload). The cooked header is the same as that of a tagged frame.
#[inline]
pub(super) fn begin_like_tag(link: LinkType, frame: &[u8]) -> Option<Frame<'_>> {
    let (&[t0, t1, _, _, i0, i1, i2, i3, _, _, kind, ..], packet) = frame.split_first_chunk::<SLL2_HEADER>()?;
    let &[first, second, l0, l1, length_high, ..] = packet.first_chunk::<8>()?;
    let is_like_tag = link == LinkType::Sll2
        && u16::from_be_bytes([t0, t1]) == ETHER_IPV6
        && (first, second) == (0x60, 0)
        && u16::from_be_bytes([l0, l1]) == ETHER_IPV6
        && length_high >> 4 == 6;
    let (delivery, interface) = (cooked(u16::from(kind)), u32::from_be_bytes([i0, i1, i2, i3]));
    is_like_tag.then_some(Frame { version: Version::V6, packet, hidden: false, delivery, interface })
}

/// A PPPoE session frame: version and type 1, code 0, session, length, then the PPP protocol.
fn pppoe(bytes: &[u8]) -> Result<Inner<'_>, Undecoded> {
    let ([version_type, code, _, _, _, _, p0, p1], packet) = split(bytes)?;
    if (*version_type, *code) != (0x11, 0) {
        return Err(Undecoded::Malformed);
    }
    match u16::from_be_bytes([*p0, *p1]) {
        PPP_IPV4 => Ok(Inner::new(Version::V4, packet)),
        PPP_IPV6 => Ok(Inner::new(Version::V6, packet)),
        _ => Err(Undecoded::NotIp),
    }
}

/// The delivery that follows from an Ethernet destination.
#[inline]
fn group(destination: [u8; 6]) -> Delivery {
    match destination {
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => Delivery::Broadcast,
        [first, ..] if first & 1 == 1 => Delivery::Multicast,
        _ => Delivery::Unknown,
    }
}

/// The delivery for a packet type of `linux/if_packet.h`.
#[inline]
fn cooked(packet_type: u16) -> Delivery {
    match packet_type {
        0 => Delivery::Host,
        1 => Delivery::Broadcast,
        2 => Delivery::Multicast,
        3 => Delivery::OtherHost,
        4 => Delivery::Outgoing,
        _ => Delivery::Unknown,
    }
}

/// The IP version in the packet itself.
#[inline]
pub(super) fn nibble(packet: &[u8]) -> Result<Version, Undecoded> {
    match packet.first().ok_or(Undecoded::Truncated)? >> 4 {
        4 => Ok(Version::V4),
        6 => Ok(Version::V6),
        _ => Err(Undecoded::Malformed),
    }
}

/// The IP version for an address family in either byte order, because the capturing machine's order is unknown. The
/// number of IPv6 depends on the system: Linux 10, NetBSD 24, FreeBSD 28, macOS 30, Windows 23.
#[inline]
fn address_family(family: [u8; 4]) -> Result<Version, Undecoded> {
    match family {
        [2, 0, 0, 0] | [0, 0, 0, 2] => Ok(Version::V4),
        [10 | 23 | 24 | 28 | 30, 0, 0, 0] | [0, 0, 0, 10 | 23 | 24 | 28 | 30] => Ok(Version::V6),
        _ => Err(Undecoded::NotIp),
    }
}

/// Maximum number of stacked VLAN tags that are followed. Networks use two; more than four only serve to hide a packet.
pub(crate) const MAX_TAGS: usize = 4;
/// The bits of a tag that contain the VLAN number. Number 0 is only a priority.
const VLAN_NUMBER: u16 = 0x0fff;
/// Bytes of the header of LINKTYPE_LINUX_SLL2.
pub(crate) const SLL2_HEADER: usize = 20;
const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_VLAN: u16 = 0x8100;
const ETHER_SERVICE_VLAN: u16 = 0x88a8;
const ETHER_OLD_SERVICE_VLAN: u16 = 0x9100;
const ETHER_PPPOE_SESSION: u16 = 0x8864;
const PPP_IPV4: u16 = 0x0021;
const PPP_IPV6: u16 = 0x0057;
