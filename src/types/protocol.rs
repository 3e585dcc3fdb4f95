//! Defines the transport protocol of a probe.

use serde::{Deserialize, Serialize};

/// The protocol of a probed port.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[repr(u8)]
pub enum Protocol {
    Tcp = 1,
    Udp = 2,
    Sctp = 3,
    /// ICMP or ICMPv6; the "port" is the type of the message.
    Icmp = 4,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::Sctp, Self::Icmp];

    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        }
    }

    /// The name in JSON.
    pub fn key(self) -> &'static str {
        self.into()
    }

    /// True if the table `[udp]` of the configuration applies: to UDP and ICMP. `[tcp]` applies to TCP and SCTP.
    pub fn uses_udp_settings(self) -> bool {
        matches!(self, Self::Udp | Self::Icmp)
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| *protocol as u8 == code)
    }
}
