//! Decodes a frame of a capture into the packet that a host would have received. Captures contain packets that a host
//! never receives: damaged packets, in which one flipped bit looks like a probe, and headers invented by tools.

use crate::engine::{Class, Local};
use crate::wire::{self, Checksum, Delivery, LinkType, Packet, TcpFlags, Transport, Undecoded};

/// Decodes a frame.
///
/// # Errors
/// The errors of [`wire::decode`], and [`Undecoded::Malformed`] for strange TCP flags with a wrong checksum. An
/// ordinary segment with a wrong checksum is accepted: the capturing host sent it before its network card filled in the
/// checksum.
#[inline]
pub(super) fn decode(link: LinkType, bytes: &[u8]) -> Result<Packet<'_>, Undecoded> {
    let mut packet = wire::decode(link, bytes)?;
    let strange = match packet.transport {
        Transport::Tcp { flags, .. } => Class::of_tcp(flags).is_some_and(Class::is_conclusive),
        Transport::TinyFragment { .. } | Transport::OverlappingFragment | Transport::HiddenHeader => true,
        _ => false,
    };
    if strange && matches!(packet.checksum.verify(), Checksum::Bad | Checksum::BadHeader) {
        return Err(Undecoded::Malformed);
    }
    packet.checksum = Checksum::Good.into();
    if !strange {
        return Ok(packet);
    }
    if let Transport::Tcp { flags, payload: 1.., .. } = &mut packet.transport
        && flags.0 == 0
    {
        // Tools that wrap data in packets (text2pcap) set no flags. A NULL probe needs no data, so this is not one.
        *flags = TcpFlags(TcpFlags::ACK | TcpFlags::PSH);
    }
    Ok(packet)
}

/// Corrects the delivery of a packet, which the link layer states from the view of the capturing host. For the hosts of
/// `local`, a packet arrives even if the capturing host sent it or saw it on the way to another host.
///
/// A TCP segment to one host in a broadcast frame arrives too: tools that do not resolve the link address (scapy) send
/// it so.
pub(super) fn deliver(packet: &mut Packet, local: &Local) {
    let own = local.is_exact() && local.contains(packet.source);
    let arrives = match packet.delivery {
        Delivery::Outgoing => !own,
        Delivery::OtherHost => local.contains(packet.destination),
        Delivery::Broadcast => matches!(packet.transport, Transport::Tcp { .. }),
        Delivery::Host | Delivery::Multicast | Delivery::Unknown => false,
    };
    if arrives {
        packet.delivery = Delivery::Unknown;
    }
}

/// The link addresses of an Ethernet frame.
#[derive(Clone, Copy)]
pub(super) struct LinkAddresses {
    pub(super) destination: [u8; 6],
    pub(super) source: [u8; 6],
}

impl LinkAddresses {
    /// Reads the link addresses; `None` if the link layer does not have both.
    pub(super) fn from_frame(link: LinkType, bytes: &[u8]) -> Option<Self> {
        let (destination, rest) = bytes.split_first_chunk()?;
        let source = rest.first_chunk()?;
        (link == LinkType::Ethernet).then_some(Self { destination: *destination, source: *source })
    }

    /// True for a frame to more than one host.
    pub(super) fn is_group(&self) -> bool {
        let [first, ..] = self.destination;
        first & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet from 192.0.2.1 port 4000 to 192.0.2.2 port 23 with these flags and this data, and no checksums.
    fn segment(flags: u8, data: &[u8]) -> Vec<u8> {
        let total = u8::try_from(40 + data.len()).unwrap();
        let mut bytes = vec![0x45, 0, 0, total, 0, 1, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        bytes.extend([0x0f, 0xa0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0]);
        bytes.extend(data);
        bytes
    }

    fn flags(bytes: &[u8]) -> Result<u16, Undecoded> {
        decode(LinkType::Raw, bytes).map(|packet| match packet.transport {
            Transport::Tcp { flags, .. } => flags.0,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn payload_without_flags_is_null_probe() {
        assert_eq!(flags(&segment(0, b"GET /")), Ok(TcpFlags::ACK | TcpFlags::PSH));
        assert_eq!(flags(&segment(0, b"")), Ok(0));
    }

    #[test]
    fn wrong_checksum_is_damage_unless_offloaded() {
        let mut xmas = segment(0x29, b"");
        assert_eq!(flags(&xmas), Ok(0x29));
        xmas[36] = 1;
        assert_eq!(flags(&xmas), Err(Undecoded::Malformed));
        let mut syn = segment(0x02, b"");
        syn[36] = 1;
        assert_eq!(flags(&syn), Ok(0x02));
    }
}
