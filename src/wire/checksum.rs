//! Checksums of a frame: was it damaged on its way, or made wrong? A running host need not ask, its kernel drops such
//! packets by itself; a capture keeps them, and one flipped bit turns a segment of a connection into what no stack sends.
//!
//! Read with: RFC 1071 (the sum), RFC 791, 8200 and 9293 (what it covers).

use super::link::{self, Version};
use super::transport::TCP;
use super::{LinkType, Undecoded};

/// True where the IPv4 header or a whole TCP segment carries a checksum that does not hold. A field of zero was left for
/// the network card to fill in, and says nothing; neither does a fragment or what was not captured to its end.
#[must_use]
pub fn is_damaged(link: LinkType, frame: &[u8]) -> bool {
    let damaged = link::open(link, frame).and_then(|frame| match frame.version {
        Version::V4 => v4(frame.packet),
        Version::V6 => v6(frame.packet),
    });
    damaged.unwrap_or(false)
}

fn v4(packet: &[u8]) -> Result<bool, Undecoded> {
    let fixed = packet.first_chunk::<20>().ok_or(Undecoded::Truncated)?;
    let &[version_ihl, _, l0, l1, _, _, f0, f1, _, protocol, c0, c1, addresses @ ..] = fixed;
    let header_length = usize::from(version_ihl & 0x0f) * 4;
    let header = packet.get(..header_length).ok_or(Undecoded::Truncated)?;
    if [c0, c1] != [0, 0] && sum(header, 0) != 0xffff {
        return Ok(true);
    }
    let is_fragment = u16::from_be_bytes([f0, f1]) & 0x3fff != 0;
    let end = match usize::from(u16::from_be_bytes([l0, l1])) {
        0 => packet.len(),
        total => total,
    };
    let segment = packet.get(header_length..end).ok_or(Undecoded::Truncated)?;
    Ok(protocol == TCP && !is_fragment && is_segment_damaged(&addresses, segment))
}

fn v6(packet: &[u8]) -> Result<bool, Undecoded> {
    let (fixed, rest) = packet.split_first_chunk::<40>().ok_or(Undecoded::Truncated)?;
    let &[_, _, _, _, l0, l1, next, _, addresses @ ..] = fixed;
    let segment = rest.get(..usize::from(u16::from_be_bytes([l0, l1]))).ok_or(Undecoded::Truncated)?;
    Ok(next == TCP && is_segment_damaged(&addresses, segment))
}

fn is_segment_damaged(addresses: &[u8], segment: &[u8]) -> bool {
    // The checksum of the header lies at bytes 16 and 17.
    let Some(field) = segment.get(16..18) else { return false };
    // The pseudo header: both addresses, the protocol, the length.
    let length = u32::try_from(segment.len()).unwrap_or(0);
    let pseudo = u32::from(TCP) + (length >> 16) + (length & 0xffff);
    let pseudo = u32::from(sum(addresses, pseudo));
    field != [0, 0] && sum(segment, pseudo) != 0xffff
}

/// The Internet checksum's sum, before its complement; 0xffff over data with a correct checksum.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    // A frame has less than 2^16 words, so the carries fit in 32 bits.
    let sum = words.fold(start, u32::wrapping_add);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN that nmap sent from 10.77.1.2 port 61425 to 10.77.1.1 port 23, as captured.
    const SYN: [u8; 44] = [
        0x45, 0x00, 0x00, 0x2c, 0xf4, 0xaf, 0x00, 0x00, 0x39, 0x06, 0x76, 0x80, 0x0a, 0x4d, 0x01, 0x02, 0x0a, 0x4d,
        0x01, 0x01, 0xef, 0xf1, 0x00, 0x17, 0x8d, 0xb4, 0xee, 0x4a, 0x00, 0x00, 0x00, 0x00, 0x60, 0x02, 0x04, 0x00,
        0x11, 0x82, 0x00, 0x00, 0x02, 0x04, 0x05, 0xb4,
    ];

    #[test]
    fn a_whole_segment_is_sound_and_any_flipped_bit_shows() {
        assert!(!is_damaged(LinkType::Raw, &SYN));
        // Version, header length and total length say where everything lies: behind them, every bit is covered.
        for bit in 4 * 8..SYN.len() * 8 {
            let mut frame = SYN;
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(is_damaged(LinkType::Raw, &frame), "bit {bit}");
        }
    }

    #[test]
    fn a_checksum_that_was_left_out_says_nothing() {
        let mut frame = SYN;
        frame[10..12].fill(0);
        frame[36..38].fill(0);
        assert!(!is_damaged(LinkType::Raw, &frame));
    }

    #[test]
    fn what_was_not_captured_is_not_held_against_a_frame() {
        for length in 0..SYN.len() {
            assert!(!is_damaged(LinkType::Raw, &SYN[..length]), "{length}");
        }
    }
}
