//! Tracks bans of guests on this host's bridges: containers and virtual machines. Such a ban ends when the bridge port
//! of the guest is deleted, because the next guest may get the same address. The ledger stores the port with the ban,
//! so that a port which is deleted while no daemon runs ends the ban at the next start.

use std::collections::VecDeque;

use crate::engine::{Ban, Host, LinkId};
use crate::types::BanTarget;

/// Maximum number of tracked bans. If there are more, the oldest ones last until their expiry.
const MAX_FOLLOWED: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestBan {
    pub target: BanTarget,
    /// The bridge port through which the last probe came.
    pub port: LinkId,
}

/// The tracked bans, oldest first.
pub(super) struct GuestBans(VecDeque<GuestBan>);

impl Default for GuestBans {
    fn default() -> Self {
        Self(VecDeque::with_capacity(MAX_FOLLOWED))
    }
}

impl GuestBans {
    /// Tracks `ban` if its last probe came from a guest.
    pub(super) fn track(&mut self, ban: &Ban, host: &Host) {
        let target = ban.probe.target;
        self.forget(target);
        let observation = &ban.probe.observation;
        if let Some(port) = host.guest_port(target, observation.source, observation.bridge_port) {
            self.insert(GuestBan { target, port });
        }
    }

    /// Tracks a ban of an earlier run.
    pub(super) fn insert(&mut self, ban: GuestBan) {
        if self.0.len() == MAX_FOLLOWED {
            self.0.pop_front();
        }
        self.0.push_back(ban);
    }

    /// Stops tracking the ban of `target`, which another ban replaces.
    pub(super) fn forget(&mut self, target: BanTarget) {
        self.0.retain(|ban| ban.target != target);
    }

    /// Returns the targets whose bridge ports no longer exist on `host`, and stops tracking them.
    pub(super) fn departed(&mut self, host: &Host) -> Vec<BanTarget> {
        let is_there = |ban: &GuestBan| host.links.iter().any(|link| link.id == ban.port);
        let departed = self.0.iter().filter(|ban| !is_there(ban)).map(|ban| ban.target).collect();
        self.0.retain(is_there);
        departed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Link, Local};
    use crate::types::Prefix;

    fn link(index: u32, name: &str) -> Link {
        Link { id: LinkId::new(index, name), guests: vec!["192.0.2.0/24".parse().unwrap()] }
    }

    /// [`Ban::example`], whose last probe came through this port.
    fn ban(port: u32) -> Ban {
        let mut ban = Ban::example();
        ban.probe.observation.bridge_port = port;
        ban
    }

    #[test]
    fn guest_ban_ends_with_bridge_port() {
        let mut host = Host::new(Local::Any);
        host.links = vec![link(7, "veth7"), link(8, "veth8"), Link { guests: Vec::new(), ..link(9, "eth0") }];
        let mut bans = GuestBans::default();
        bans.track(&ban(9), &host);
        assert!(bans.0.is_empty(), "the interface is no bridge port");
        bans.track(&ban(7), &host);
        assert!(bans.departed(&host).is_empty());
        host.links = vec![link(7, "other"), link(8, "veth8")];
        assert_eq!(bans.departed(&host), [Ban::example().probe.target], "another port has its index");
        assert!(bans.departed(&host).is_empty(), "once");
        host.links[1].guests = vec!["198.51.100.0/24".parse().unwrap()];
        bans.track(&ban(8), &host);
        assert!(bans.0.is_empty(), "a source outside the networks of the bridge is no guest");
    }

    #[test]
    fn newer_ban_replaces_guest_ban() {
        let mut host = Host::new(Local::Any);
        host.links = vec![link(7, "veth7"), link(8, "veth8")];
        let mut bans = GuestBans::default();
        bans.track(&ban(7), &host);
        bans.track(&ban(8), &host);
        host.links.remove(0);
        assert!(bans.departed(&host).is_empty(), "the first ban is over");
        bans.track(&ban(3), &host);
        host.links.clear();
        assert!(bans.departed(&host).is_empty(), "the last probe came from elsewhere");
    }

    #[test]
    fn guest_bans_have_a_bound() {
        let mut host = Host::new(Local::Any);
        host.links = vec![link(7, "veth7")];
        let mut bans = GuestBans::default();
        for number in 0..2_000_u32 {
            let mut ban = ban(7);
            ban.probe.target = BanTarget::V4(number.into());
            bans.track(&ban, &host);
        }
        assert_eq!(bans.0.len(), MAX_FOLLOWED);
        let mut ban = ban(7);
        ban.probe.target = BanTarget::Prefix(Prefix::new("192.0.2.0/24".parse().unwrap()).unwrap());
        bans.track(&ban, &host);
        assert_eq!(bans.0.back().unwrap().target, BanTarget::V4(1_999.into()), "a network is no guest");
    }
}
