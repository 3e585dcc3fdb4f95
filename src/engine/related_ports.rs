//! Counts groups of related ports, which one client tries together: a mail program that guesses the server's settings,
//! a printer driver, a browser. While a source probes nothing but ports of groups, each group counts as one port.
//! Afterwards only groups of which this host serves a port do, up to a limit.

use super::evidence::Evidence;
use crate::types::{PORT_GROUPS, PortSet, Protocol, WEB_PORTS};

/// Maximum number of related ports that are not counted for a source which has also probed unrelated ports.
pub(super) const MAX_EXTRA: u8 = 4;

/// Maximum number of unrelated ports that a source may have probed for every group to count as one port.
pub(super) const MAX_UNRELATED: u8 = 0;

/// The groups with at least one port that this host serves, now or as a remembered service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelatedPorts([bool; PORT_GROUPS.len()]);

impl RelatedPorts {
    /// Selects the groups that contain a port for which `is_served` holds.
    pub(super) fn new(is_served: impl Fn(u16) -> bool) -> Self {
        Self(PORT_GROUPS.map(|group| group.iter().any(|port| is_served(*port))))
    }

    fn groups(self) -> impl Iterator<Item = &'static [u16]> {
        PORT_GROUPS.into_iter().zip(self.0).filter(|(_, served)| *served).map(|(group, _)| group)
    }

    /// The ports of these groups.
    pub(super) fn ports(self) -> PortSet {
        self.groups().flatten().copied().collect()
    }

    /// The ports of these groups that clients try once, when a program is set up. Web ports are left out: where only
    /// one of them is served, each visit of a browser may begin with a SYN to the other one.
    pub(super) fn tried_once(self) -> PortSet {
        self.groups().filter(|group| *group != WEB_PORTS).flatten().copied().collect()
    }

    /// Returns how many of the distinct ports of `evidence` count towards a ban. If the source has probed at most
    /// `unrelated` ports outside of all groups (`None`: never), the ports of each group count as one. Otherwise the
    /// ports of a served group count as one, but at most `extra` ports of a source are left out for this reason.
    pub(super) fn counting(
        self,
        evidence: impl Iterator<Item = Evidence> + Clone,
        extra: u8,
        unrelated: Option<u8>,
    ) -> u8 {
        let distinct = evidence.clone().count();
        // Evidence that is sufficient on its own is related to no other.
        let is_related = |item: &Evidence| item.protocol() == Some(Protocol::Tcp) && !item.is_conclusive();
        let related = evidence.filter(is_related);
        let probed = |group: &[u16]| related.clone().filter(|item| group.contains(&item.port())).count();
        let others = distinct - PORT_GROUPS.into_iter().map(probed).sum::<usize>();
        let beyond_first = |group: &[u16]| probed(group).saturating_sub(1);
        let left_out = match unrelated.is_some_and(|most| others <= usize::from(most)) {
            true => PORT_GROUPS.into_iter().map(beyond_first).sum(),
            false => self.groups().map(beyond_first).sum::<usize>().min(extra.into()),
        };
        u8::try_from(distinct - left_out).unwrap_or(u8::MAX)
    }
}

/// True for a port of any group.
pub(super) fn is_related_port(protocol: Protocol, port: u16) -> bool {
    protocol == Protocol::Tcp && PORT_GROUPS.iter().any(|group| group.contains(&port))
}
