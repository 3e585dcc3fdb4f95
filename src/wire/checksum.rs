//! Verifies the checksums of the IPv4 header and of its payload, as the receiving kernel does before it looks up a
//! port. One flipped bit turns a segment of a connection into a NULL or XMAS probe that was never sent.
//!
//! References: RFC 1071 (the sum), RFC 791, 768, 8200 and 9293 (what it covers), and the kernel's
//! Documentation/networking/checksum-offloads.rst (`CHECKSUM_PARTIAL`).

use std::fmt;

use super::piece::Piece;
use super::protocol::{TCP, UDP, UDP_HEADER};

/// The result of verifying the checksums of a packet, the worst one last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checksum {
    /// All checksums are correct, or the protocol has none that is verified here. A TCP or UDP field with only the sum
    /// of the pseudo header also counts as correct: Linux leaves the rest to the network card. Between local namespaces
    /// or virtual machines, and behind receive offload, no card completes the sum. A damaged segment looks like that
    /// once in 65,536 times.
    Good,
    /// Part of the covered data is missing: the packet is a fragment, or has more payload than was captured.
    Unknown,
    /// The TCP or UDP field is zero, although the correct sum is not: left out, as in captures on the sending host.
    Blank,
    /// As [`Self::Blank`], in the IPv4 header. A receiver drops the packet.
    BlankHeader,
    /// The TCP or UDP checksum is wrong. The kernel drops such a packet if it arrived over a wire. It accepts the
    /// packet, with any value in the field, if a program on the same machine sent it with the sum still to be computed
    /// (`CHECKSUM_PARTIAL`).
    Bad,
    /// The checksum of the IPv4 header is wrong. The kernel drops the packet before it can be answered.
    BadHeader,
}

/// The checksums of a packet, verified only if the result is needed: most packets are ignored for reasons that cost
/// less to find.
#[derive(Clone, Copy)]
pub struct LazyChecksum<'a>(Covered<'a>);

/// What the checksums cover. The addresses are the source followed by the destination; the payload is `None` if it is a
/// fragment.
#[derive(Clone, Copy)]
enum Covered<'a> {
    /// A result that is already known.
    Known(Checksum),
    V4 {
        header: &'a [u8],
        payload: Option<Payload<'a>>,
    },
    V6 {
        addresses: &'a [u8; 32],
        payload: Option<Payload<'a>>,
        has_length: bool,
    },
}

/// The whole payload of an IP packet.
#[derive(Clone, Copy)]
pub(super) struct Payload<'a> {
    pub(super) protocol: u8,
    pub(super) piece: Piece<'a>,
}

impl From<Checksum> for LazyChecksum<'_> {
    fn from(known: Checksum) -> Self {
        Self(Covered::Known(known))
    }
}

impl<'a> LazyChecksum<'a> {
    /// The checksums of an IPv4 packet: that of its header with options, and that of its payload.
    #[inline]
    pub(super) fn v4(header: &'a [u8], payload: Option<Payload<'a>>) -> Self {
        Self(Covered::V4 { header, payload })
    }

    /// The checksum of the payload of an IPv6 packet. Without a length in its header, it is unknown whether the whole
    /// packet was captured.
    #[inline]
    pub(super) fn v6(addresses: &'a [u8; 32], payload: Option<Payload<'a>>, has_length: bool) -> Self {
        Self(Covered::V6 { addresses, payload, has_length })
    }

    /// Verifies the checksums.
    pub fn verify(&self) -> Checksum {
        match &self.0 {
            Covered::Known(checksum) => *checksum,
            Covered::V4 { header, payload } => {
                let addresses = header.get(12..20).unwrap_or_default();
                Checksum::of_transport(addresses, *payload).max(Checksum::of_header(header))
            }
            Covered::V6 { addresses, payload, has_length: true } => Checksum::of_transport(*addresses, *payload),
            // Linux accepts such a packet if it begins with a hop-by-hop header, of whatever length.
            Covered::V6 { addresses, payload, .. } => {
                Checksum::of_transport(*addresses, *payload).min(Checksum::Unknown)
            }
        }
    }

    /// The whole TCP segment or UDP datagram; `None` if it is a fragment or was not captured whole.
    pub fn payload(&self) -> Option<&'a [u8]> {
        match self.0 {
            Covered::Known(_) => None,
            Covered::V4 { payload, .. } | Covered::V6 { payload, .. } => payload?.piece.whole(),
        }
    }
}

/// Compares the results, so both sides are verified.
impl PartialEq for LazyChecksum<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.verify() == other.verify()
    }
}

impl Eq for LazyChecksum<'_> {}

impl fmt::Debug for LazyChecksum<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.verify().fmt(f)
    }
}

impl Checksum {
    /// Verifies the checksum of an IPv4 header with its options.
    fn of_header(header: &[u8]) -> Self {
        match header.get(10..12) {
            _ if fold(sum(header, 0)) == 0xffff => Self::Good,
            Some([0, 0]) => Self::BlankHeader,
            _ => Self::BadHeader,
        }
    }

    /// Verifies the checksum of a whole TCP segment or UDP datagram between `addresses`.
    fn of_transport(addresses: &[u8], payload: Option<Payload<'_>>) -> Self {
        let Some(Payload { protocol, piece: payload }) = payload else { return Self::Unknown };
        let is_v4 = addresses.len() == 8;
        let (field, payload) = match protocol {
            TCP => (16..18, payload),
            UDP => match datagram(payload, is_v4) {
                Ok(datagram) => (6..8, datagram),
                Err(damage) => return damage,
            },
            _ => return Self::Good,
        };
        let Some(bytes) = payload.whole() else { return Self::Unknown };
        // Shorter than its header: the packet is malformed, and the result is not used.
        let Some(&[high, low]) = bytes.get(field) else { return Self::Unknown };
        let length = u64::try_from(bytes.len()).unwrap_or(0);
        let pseudo = sum(addresses, length + u64::from(protocol));
        match u16::from_be_bytes([high, low]) {
            // RFC 768: zero means no checksum. IPv6 does not allow it (RFC 8200).
            0 if protocol == UDP && is_v4 => Self::Good,
            _ if fold(sum(bytes, pseudo)) == 0xffff => Self::Good,
            0 => Self::Blank,
            field if field == fold(pseudo) => Self::Good,
            _ => Self::Bad,
        }
    }
}

/// The part of a packet that belongs to its UDP datagram: the kernel ignores the bytes behind the length in the UDP
/// header (the surplus area of RFC 9868), and drops a datagram whose length is impossible. A length of zero means the
/// whole packet, over IPv6 only (RFC 2675).
#[inline]
fn datagram(payload: Piece<'_>, is_v4: bool) -> Result<Piece<'_>, Checksum> {
    let &[_, _, _, _, high, low] = payload.header(UDP_HEADER).map_err(|_| Checksum::Unknown)?;
    match usize::from(u16::from_be_bytes([high, low])) {
        0 if !is_v4 => Ok(payload),
        length if (UDP_HEADER..=payload.length()).contains(&length) => Ok(payload.first(length)),
        _ => Err(Checksum::Bad),
    }
}

/// Adds the 16-bit words of `bytes` to `start`, two at a time. A packet is too short for an overflow.
fn sum(bytes: &[u8], start: u64) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let rest = rest.iter().rfold(0, |word, byte| word >> 8 | u32::from(*byte) << 24);
    words.iter().fold(start + u64::from(rest), |sum, word| sum + u64::from(u32::from_be_bytes(*word)))
}

/// The one's complement sum of the Internet checksum; 0xffff for data with a correct checksum. The upper half of each
/// addition is the sum of both halves with its own carry.
#[inline]
fn fold(sum: u64) -> u16 {
    let half = u32::try_from(sum.wrapping_add(sum.rotate_left(32)) >> 32).unwrap_or(u32::MAX);
    u16::try_from(half.wrapping_add(half.rotate_left(16)) >> 16).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{LinkType, decode};

    /// A SYN from nmap from 10.77.1.2 port 61425 to 10.77.1.1 port 23, as captured.
    const SYN: [u8; 44] = [
        0x45, 0x00, 0x00, 0x2c, 0xf4, 0xaf, 0x00, 0x00, 0x39, 0x06, 0x76, 0x80, 0x0a, 0x4d, 0x01, 0x02, 0x0a, 0x4d,
        0x01, 0x01, 0xef, 0xf1, 0x00, 0x17, 0x8d, 0xb4, 0xee, 0x4a, 0x00, 0x00, 0x00, 0x00, 0x60, 0x02, 0x04, 0x00,
        0x11, 0x82, 0x00, 0x00, 0x02, 0x04, 0x05, 0xb4,
    ];

    /// `None` if the packet cannot be decoded.
    fn checksum(packet: &[u8]) -> Option<Checksum> {
        decode(LinkType::Raw, packet).ok().map(|packet| packet.checksum.verify())
    }

    #[test]
    fn any_flipped_bit_breaks_checksum() {
        assert_eq!(checksum(&SYN), Some(Checksum::Good));
        // Version, header length and total length define the layout; every later bit is covered.
        for bit in 4 * 8..SYN.len() * 8 {
            let mut frame = SYN;
            frame[bit / 8] ^= 1 << (bit % 8);
            let bad = if bit < 20 * 8 { Checksum::BadHeader } else { Checksum::Bad };
            assert!(checksum(&frame).is_none_or(|seen| seen == bad || seen == Checksum::BadHeader), "bit {bit}");
        }
    }

    #[test]
    fn missing_checksum_is_unknown() {
        let mut frame = SYN;
        frame[36..38].fill(0);
        assert_eq!(checksum(&frame), Some(Checksum::Blank));
        frame[10..12].fill(0);
        assert_eq!(checksum(&frame), Some(Checksum::BlankHeader));
    }

    #[test]
    fn uncaptured_bytes_are_not_an_error() {
        for length in 0..SYN.len() {
            assert!(matches!(checksum(&SYN[..length]), None | Some(Checksum::Unknown)), "{length}");
        }
    }

    #[test]
    fn pseudo_header_sum_counts_as_offloaded() {
        let mut frame = SYN;
        // 0x0a4d + 0x0102 + 0x0a4d + 0x0101 + protocol 6 + length 24
        frame[36..38].copy_from_slice(&0x16bb_u16.to_be_bytes());
        assert_eq!(checksum(&frame), Some(Checksum::Good));
        frame[37] ^= 1;
        assert_eq!(checksum(&frame), Some(Checksum::Bad));
    }

    /// A datagram over IPv4 or IPv6 with this length in its header, and the checksum of its first `summed` bytes,
    /// without one if that is 0.
    fn datagram(is_v4: bool, length: u8, summed: usize) -> Vec<u8> {
        let mut datagram = [&[0x0f, 0xa0, 0, 53, 0, length, 0, 0][..], b"questionsurplus!"].concat();
        let mut packet = match is_v4 {
            true => [&SYN[..9], &[UDP], &SYN[10..20]].concat(),
            false => [&[0x60, 0, 0, 0, 0, 24, UDP, 64][..], &[0xfd; 32]].concat(),
        };
        if summed > 0 {
            let addresses = if is_v4 { &packet[12..20] } else { &packet[8..40] };
            let pseudo = sum(addresses, u64::from(UDP) + u64::try_from(summed).unwrap());
            let checksum = !fold(sum(&datagram[..summed], pseudo));
            datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        if is_v4 {
            packet[10..12].fill(0);
            let checksum = !fold(sum(&packet, 0));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet.extend(datagram);
        packet
    }

    #[test]
    fn surplus_area_is_not_summed() {
        for is_v4 in [true, false] {
            let seen = |length, summed| checksum(&datagram(is_v4, length, summed));
            assert_eq!(seen(24, 24), Some(Checksum::Good));
            assert_eq!(seen(16, 16), Some(Checksum::Good), "the kernel answers such a datagram");
            assert_eq!(seen(16, 24), Some(Checksum::Bad));
            assert_eq!(seen(25, 24), Some(Checksum::Bad), "longer than the packet");
            assert_eq!(seen(7, 24), Some(Checksum::Bad), "shorter than its header");
            let whole = if is_v4 { Checksum::Bad } else { Checksum::Good };
            assert_eq!(seen(0, 24), Some(whole), "length 0");
        }
    }

    #[test]
    fn ipv6_requires_udp_checksum() {
        assert_eq!(checksum(&datagram(true, 24, 0)), Some(Checksum::Good));
        assert_eq!(checksum(&datagram(false, 24, 0)), Some(Checksum::Blank));
    }

    #[test]
    fn carries_of_any_length_are_folded() {
        let folded = |bytes: &[u8], start| fold(sum(bytes, start));
        assert_eq!(folded(&[0xff; 65_535], u64::from(u32::MAX)), 0xff00);
        assert_eq!(folded(&[0x12], 0), 0x1200);
        assert_eq!(folded(&[0x12, 0x34, 0x56], 0), 0x6834);
        assert_eq!(folded(&[], 0), 0);
        for (sum, expected) in [(u64::MAX, 0xffff), (1 << 32, 1), (0xffff << 16, 0xffff), (0x0001_ffff, 1)] {
            assert_eq!(fold(sum), expected, "{sum:#x}");
        }
    }
}
