//! Counts groups of related ports, which one client tries together: a mail program that guesses the server's settings,
//! a printer driver, a browser. If this host serves a port of a group, the closed ports of the group count as one.
//! Otherwise they do only while the source probes no other ports, as a mail program does for a host without mail.

use super::sources::Evidence;
use crate::types::{PORT_GROUPS, PortSet, Protocol};

/// Maximum number of ports of one source that are not counted because they are related, once it has probed unrelated
/// ports.
pub(super) const MAX_EXTRA: u8 = 4;

/// Maximum number of unrelated ports that a source may have probed for the groups that are not served to count as one.
pub(super) const MAX_UNRELATED: u8 = 0;

/// The groups with at least one port that this host serves, now or as a remembered service.
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

    /// Returns how many of the distinct ports of `evidence` count towards a ban. The ports of a served group count as
    /// one, but at most `extra` ports of a source are left out for this reason. The ports of another group count as one
    /// only if the source has probed at most `unrelated` ports outside of all groups (`None`: never).
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

/// True if `item` is about a port of `group` and is not sufficient evidence on its own.
fn is_related(item: &Evidence, group: &[u16]) -> bool {
    item.protocol() == Some(Protocol::Tcp) && !item.is_conclusive() && group.contains(&item.port())
}
