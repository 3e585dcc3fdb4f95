//! The transport protocol of a probe.

/// The protocol that a probed port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    Tcp = 1,
    Udp = 2,
    Sctp = 3,
    /// ICMP or ICMPv6; the "port" is then the message's type.
    Icmp = 4,
}

impl Protocol {
    /// The name as the log has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        }
    }

    /// The name as JSON has it.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp].into_iter().find(|protocol| *protocol as u8 == code)
    }
}
