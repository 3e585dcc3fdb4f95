//! Ports that one client tries together: a mail program that guesses how a server wants to be asked, a printer driver, a
//! browser. Where this host runs a service of such a group, its closed ports count as one.

use super::sources::Evidence;
use crate::types::{PortSet, Protocol};

/// TCP ports that are tried together. SMTP, POP, IMAP, submission and ManageSieve (Thunderbird, Outlook and K-9 guess all of
/// them); LPD, IPP and raw printing; HTTP and HTTPS.
const GROUPS: [&[u16]; 3] = [&[25, 110, 143, 465, 587, 993, 995, 4190], &[515, 631, 9100], &[80, 443]];

/// The maximum number of ports that one source is forgiven for their relation to others.
pub(super) const MAX_EXTRA: u8 = 4;

/// The groups of which this host serves a port, or is known to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelatedPorts([bool; GROUPS.len()]);

impl RelatedPorts {
    /// The groups of which `is_served` holds for a port.
    pub(super) fn of(is_served: impl Fn(u16) -> bool) -> Self {
        Self(GROUPS.map(|group| group.iter().any(|port| is_served(*port))))
    }

    fn groups(self) -> impl Iterator<Item = &'static [u16]> {
        GROUPS.into_iter().zip(self.0).filter(|(_, served)| *served).map(|(group, _)| group)
    }

    /// True where `port` is one of those groups.
    pub(super) fn contains(self, protocol: Protocol, port: u16) -> bool {
        protocol == Protocol::Tcp && self.groups().any(|group| group.contains(&port))
    }

    /// The ports of those groups.
    pub(super) fn ports(self) -> PortSet {
        self.groups().flatten().copied().collect()
    }

    /// How many ports of `evidence` stand for others of their group; at most [`MAX_EXTRA`] of them do not count.
    pub(super) fn extra(self, evidence: impl Iterator<Item = Evidence> + Clone) -> u8 {
        let extra = self.groups().map(|group| {
            let is_related = |item: &Evidence| {
                item.protocol() == Some(Protocol::Tcp) && !item.is_conclusive() && group.contains(&item.port())
            };
            evidence.clone().filter(is_related).count().saturating_sub(1)
        });
        u8::try_from(extra.sum::<usize>()).unwrap_or(u8::MAX)
    }
}
