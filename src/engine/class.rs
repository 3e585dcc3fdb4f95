//! Classifies a packet by its flags as a kind of probe. RFC 9293 defines the segments that a TCP stack may send; the
//! names of the others follow nmap's reference guide.
//!
//! Grades the evidence of a ban by how easily it can be forged. The reaction is never harsher than the grade allows:
//! docs/detection.md.

use serde::{Deserialize, Serialize};

use crate::wire::TcpFlags;

/// The class of a probe.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[repr(u8)]
pub enum Class {
    /// A completed connection to a decoy listener; the only class whose source cannot be forged. A connection that a
    /// guessed SYN cookie may have completed counts as [`Class::Syn`].
    Connect = 1,
    /// SYN alone, with or without ECN. Connect and half-open scans look the same until the handshake ends.
    Syn,
    /// No flag at all.
    Null,
    /// FIN alone. No stack sends it: every segment of a connection carries ACK.
    Fin,
    /// FIN, PSH and URG.
    Xmas,
    /// FIN and ACK (Uriel Maimon, Phrack 49).
    Maimon,
    /// ACK without SYN, FIN or RST. ACK and Window scans are identical on the wire.
    Ack,
    /// A combination that no stack sends: SYN with FIN, SYN with RST, all six flags, or reserved bits.
    Illegal,
    /// A first fragment without the TCP flags, a fragment that overlaps them (RFC 1858, RFC 3128), or IPv6 options so
    /// long that the TCP header is out of reach.
    Fragment,
    Udp,
    /// An SCTP INIT chunk.
    Sctp,
    /// An ICMP or ICMPv6 request.
    Icmp,
}

impl Class {
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Returns the class of a TCP segment; `None` for an answer (SYN/ACK, RST). Answers are not evidence, because
    /// backscatter of an attack with this host's address as forged source looks the same.
    pub fn of_tcp(flags: TcpFlags) -> Option<Self> {
        const FIN: u16 = TcpFlags::FIN;
        const SYN: u16 = TcpFlags::SYN;
        const RST: u16 = TcpFlags::RST;
        const PSH: u16 = TcpFlags::PSH;
        const ACK: u16 = TcpFlags::ACK;
        const URG: u16 = TcpFlags::URG;
        // A segment with RST is an answer, regardless of its other flags. The capture filter drops resets as well.
        if flags.0 & TcpFlags::RESERVED != 0 && flags.0 & (SYN | RST) != RST {
            return Some(Self::Illegal);
        }
        match flags.0 & (FIN | SYN | RST | PSH | ACK | URG) {
            // Congestion bits without any other flag belong to no valid segment either, but differ from nmap's NULL
            // scan.
            0 if flags.0 == 0 => Some(Self::Null),
            0 => Some(Self::Illegal),
            FIN => Some(Self::Fin),
            bits if bits == FIN | PSH | URG => Some(Self::Xmas),
            SYN => Some(Self::Syn),
            // Some stacks set PSH on a SYN that carries data (RFC 7413).
            bits if bits == SYN | PSH => Some(Self::Syn),
            bits if bits & !(PSH | URG) == SYN | ACK => None,
            bits if bits & SYN != 0 => Some(Self::Illegal),
            // FIN with RST is invalid, but broken middleboxes send it when they terminate a connection.
            bits if bits & RST != 0 => None,
            bits if bits & (FIN | ACK) == FIN | ACK => Some(Self::Maimon),
            bits if bits & ACK != 0 => Some(Self::Ack),
            _ => Some(Self::Illegal),
        }
    }

    /// True if one packet is enough for a ban, because no TCP stack sends it.
    pub fn is_conclusive(self) -> bool {
        matches!(self, Self::Null | Self::Fin | Self::Xmas | Self::Illegal | Self::Fragment)
    }

    /// True if a late segment of a forgotten connection looks the same.
    pub(super) fn is_late_segment(self) -> bool {
        matches!(self, Self::Maimon | Self::Ack)
    }

    /// The class as in the classic log line, between `attackalert: ` and ` from host`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Connect => "Connect",
            Self::Syn => "TCP SYN/Normal scan",
            Self::Null => "TCP NULL scan",
            Self::Fin => "TCP FIN scan",
            Self::Xmas => "TCP XMAS scan",
            Self::Maimon => "TCP FIN/ACK (Maimon) scan",
            Self::Ack => "TCP ACK/Window scan",
            Self::Illegal => "Unknown Type: TCP illegal flags scan",
            Self::Fragment => "TCP fragment scan",
            Self::Udp => "UDP scan",
            Self::Sctp => "SCTP INIT scan",
            Self::Icmp => "ICMP sweep",
        }
    }

    /// The class as in JSON and metrics.
    pub fn key(self) -> &'static str {
        self.into()
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// The grade of the evidence of a ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, strum::EnumString, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Grade {
    /// Packets whose source address may be forged: any host can send them with any source address.
    Forgeable,
    /// Completed TCP handshakes with decoys: their source received packets from this host.
    Proven,
}

impl Grade {
    pub const ALL: [Self; 2] = [Self::Forgeable, Self::Proven];

    /// Returns the grade of the evidence against one source. It is proven only if the completed handshakes alone would
    /// be enough, because an attacker can add forged packets to the traffic of an innocent source.
    pub(super) fn from_classes(classes: impl Iterator<Item = Class>, scan_trigger: u8) -> Self {
        let handshakes = classes.filter(|class| *class == Class::Connect).count();
        if handshakes > usize::from(scan_trigger) { Self::Proven } else { Self::Forgeable }
    }

    /// The grade as in JSON, metrics and the ledger.
    pub fn key(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scan_of_nmap_has_its_class() {
        let class = |bits| Class::of_tcp(TcpFlags(bits));
        assert_eq!(class(0x002), Some(Class::Syn));
        assert_eq!(class(0x0c2), Some(Class::Syn), "with ECN, as Linux requests it");
        assert_eq!(class(0x1c2), Some(Class::Syn), "with accurate ECN");
        assert_eq!(class(0x000), Some(Class::Null));
        assert_eq!(class(0x001), Some(Class::Fin));
        assert_eq!(class(0x029), Some(Class::Xmas));
        assert_eq!(class(0x011), Some(Class::Maimon));
        assert_eq!(class(0x010), Some(Class::Ack));
        assert_eq!(class(0x018), Some(Class::Ack));
    }

    #[test]
    fn illegal_flags_are_evidence_answers_are_not() {
        for bits in [0x003, 0x006, 0x03f, 0x02b, 0x013, 0x008, 0x020, 0x028, 0x040, 0x202, 0x410] {
            assert_eq!(Class::of_tcp(TcpFlags(bits)), Some(Class::Illegal), "{bits:#x}");
        }
        for bits in [0x012, 0x052, 0x004, 0x014, 0x01c, 0x005, 0x204] {
            assert_eq!(Class::of_tcp(TcpFlags(bits)), None, "{bits:#x}");
        }
    }

    #[test]
    fn every_code_names_its_class() {
        for class in Class::ALL {
            assert_eq!(Class::from_code(*class as u8), Some(*class));
        }
        assert_eq!(Class::from_code(0), None);
    }

    #[test]
    fn only_enough_handshakes_are_proof() {
        const CONNECT: Class = Class::Connect;
        for (classes, trigger, grade) in [
            (&[CONNECT, CONNECT, CONNECT][..], 2, Grade::Proven),
            (&[CONNECT, CONNECT, CONNECT, Class::Sctp], 2, Grade::Proven),
            (&[CONNECT, CONNECT, Class::Udp], 2, Grade::Forgeable),
            (&[CONNECT, CONNECT, Class::Null], 2, Grade::Forgeable),
            (&[Class::Syn, Class::Syn, Class::Syn], 2, Grade::Forgeable),
            (&[CONNECT], 0, Grade::Proven),
            (&[], 0, Grade::Forgeable),
        ] {
            assert_eq!(Grade::from_classes(classes.iter().copied(), trigger), grade, "{classes:?} above {trigger}");
        }
        assert!(Grade::ALL.into_iter().all(|grade| grade.key().parse() == Ok(grade)));
    }
}
