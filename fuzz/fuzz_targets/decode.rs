//! Feeds any bytes to the packet decoder. The first byte selects the link layer.
//!
//!     cargo +nightly fuzz run decode
//!
//! The decoder must not panic, and must return the same packet when more of the frame is captured. If a longer snap
//! length changes the packet, a field was read from the wrong place.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use portsentry::wire::{LinkType, Packet, Transport, Undecoded, decode, decode_untagged, icmp_quote};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&selector, frame)) = input.split_first() else { return Corpus::Reject };
    let link = match selector {
        0 => LinkType::Ethernet,
        1 => LinkType::Sll,
        2 => LinkType::Sll2,
        3 => LinkType::Raw,
        4 => LinkType::Null,
        _ => return Corpus::Reject,
    };
    let decoded = decode(link, frame);
    if let Ok(packet) = &decoded {
        let _ = packet.checksum.verify();
    }
    let more = [frame, &[0xa5; 64]].concat();
    let longer = decode(link, &more);
    let untagged = decode_untagged(link, frame);
    if let Some(packet) = untagged.filter(|packet| packet.transport != Transport::HiddenHeader) {
        assert_eq!(decode_untagged(link, &more).map(without_payload), Some(without_payload(packet)));
    }
    if let Some(quote) = icmp_quote(link, frame) {
        assert_eq!(icmp_quote(link, &more), Some(quote));
    }
    match decoded {
        // The bytes that were not captured may show that the chain of headers is malformed.
        Ok(Packet { transport: Transport::HiddenHeader, .. }) => {
            let transport = longer.map(|packet| packet.transport);
            let expected = matches!(
                transport,
                Ok(Transport::HiddenHeader | Transport::TinyFragment { .. }) | Err(Undecoded::Malformed)
            );
            assert!(expected, "{transport:?}");
        }
        Ok(packet) => assert_eq!(longer.map(without_payload), Ok(without_payload(packet))),
        Err(Undecoded::NotIp) => assert_eq!(longer, Err(Undecoded::NotIp)),
        // With an IP length of zero the captured bytes are the length, so more of them may be enough.
        Err(Undecoded::Malformed | Undecoded::Truncated) => {}
    }
    Corpus::Keep
});

/// The packet without the fields that depend on the captured length: the payload if the IP length is zero, and the
/// checksum.
fn without_payload(mut packet: Packet<'_>) -> Packet<'_> {
    if let Transport::Tcp { payload, .. } = &mut packet.transport {
        *payload = 0;
    }
    packet.checksum = portsentry::wire::Checksum::Good.into();
    packet
}
