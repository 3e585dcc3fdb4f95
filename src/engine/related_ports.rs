//! Groups of ports that one client tries together: a mail program that guesses the server's settings, a printer driver,
//! a browser. If this host runs a service of such a group, the closed ports of the group count as one. Otherwise they do
//! as long as the source probes no other ports: a mail program that was given the name of a host without mail.

use super::sources::Evidence;
use crate::types::{PORT_GROUPS, PortSet, Protocol};

/// The maximum number of ports that one source is forgiven for their relation to others, once it has probed unrelated ports.
pub(super) const MAX_EXTRA: u8 = 4;

/// The maximum number of unrelated ports that a source may have probed for every group to count as one.
pub(super) const MAX_UNRELATED: u8 = 0;

/// The groups of which this host serves at least one port, now or as a remembered service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelatedPorts([bool; PORT_GROUPS.len()]);

impl RelatedPorts {
    /// Selects the groups that contain a port for which `is_served` holds.
    pub(super) fn of(is_served: impl Fn(u16) -> bool) -> Self {
        Self(PORT_GROUPS.map(|group| group.iter().any(|port| is_served(*port))))
    }

    fn groups(self) -> impl Iterator<Item = &'static [u16]> {
        PORT_GROUPS.into_iter().zip(self.0).filter(|(_, served)| *served).map(|(group, _)| group)
    }

    /// The ports of these groups.
    pub(super) fn ports(self) -> PortSet {
        self.groups().flatten().copied().collect()
    }

    /// How many of the distinct ports of `evidence` count towards a ban. Ports of one group count as one: of a group of which this
    /// host serves a port, although at most `extra` ports of a source are left out for it; of other groups only while the source
    /// has probed at most `unrelated` ports of no group (`None`: never).
    pub(super) fn counting(
        self,
        evidence: impl Iterator<Item = Evidence> + Clone,
        extra: u8,
        unrelated: Option<u8>,
    ) -> u8 {
        let distinct = evidence.clone().count();
        let probed = PORT_GROUPS.map(|group| evidence.clone().filter(|item| is_related(item, group)).count());
        let others = distinct.saturating_sub(probed.iter().sum());
        let left_out = |served: bool| -> usize {
            let groups = probed.iter().zip(self.0).filter(|(_, is_served)| *is_served == served);
            groups.map(|(ports, _)| ports.saturating_sub(1)).sum()
        };
        let guessed = if unrelated.is_some_and(|most| others <= usize::from(most)) { left_out(false) } else { 0 };
        u8::try_from(distinct - left_out(true).min(extra.into()) - guessed).unwrap_or(u8::MAX)
    }
}

/// True for a port of any group.
pub(super) fn is_related_port(protocol: Protocol, port: u16) -> bool {
    protocol == Protocol::Tcp && PORT_GROUPS.iter().any(|group| group.contains(&port))
}

/// True where `item` is about a port of `group`, and no evidence that is enough on its own.
fn is_related(item: &Evidence, group: &[u16]) -> bool {
    item.protocol() == Some(Protocol::Tcp) && !item.is_conclusive() && group.contains(&item.port())
}
