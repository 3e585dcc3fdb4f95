//! Tracks bans of guests on this host's bridges: containers and virtual machines. Such a ban ends when the bridge port
//! of the guest is deleted, because the next guest may get the same address.

use std::collections::VecDeque;

use crate::engine::{Ban, Host};
use crate::types::BanTarget;

/// Maximum number of tracked bans. If there are more, the oldest ones last until their expiry.
const MAX_FOLLOWED: usize = 1_024;

/// The bans, each with the interface index of the bridge port on which its last probe arrived; oldest first.
pub(super) struct GuestBans(VecDeque<(BanTarget, u32)>);

impl Default for GuestBans {
    fn default() -> Self {
        Self(VecDeque::with_capacity(MAX_FOLLOWED))
    }
}

impl GuestBans {
    /// Tracks `ban` if its last probe arrived on a bridge port (`interface`) and the source is on a network of this
    /// host. Traffic that a router sends through a bridge does not come from a guest.
    pub(super) fn note(&mut self, ban: &Ban, interface: u32, host: &Host) {
        let source = ban.probe.observation.source;
        let is_port = host.bridge_ports.iter().any(|(port, _)| *port == interface);
        if !is_port || !host.networks.iter().any(|network| network.contains(&source)) {
            return;
        }
        if self.0.len() == MAX_FOLLOWED {
            self.0.pop_front();
        }
        self.0.push_back((ban.probe.target, interface));
    }

    /// Returns the targets whose bridge ports no longer exist on `host`, and stops tracking them.
    pub(super) fn departed(&mut self, host: &Host) -> Vec<BanTarget> {
        let is_there = |(_, port): &(BanTarget, u32)| host.bridge_ports.iter().any(|(known, _)| known == port);
        let departed = self.0.iter().filter(|ban| !is_there(ban)).map(|(target, _)| *target).collect();
        self.0.retain(is_there);
        departed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Local;

    #[test]
    fn guest_ban_ends_with_bridge_port() {
        let mut host = Host::new(Local::Any);
        host.networks = vec!["192.0.2.0/24".parse().unwrap()];
        host.bridge_ports = vec![(7, 3), (8, 3)];
        let mut bans = GuestBans::default();
        bans.note(&Ban::example(), 9, &host);
        assert!(bans.0.is_empty(), "the interface is no bridge port");
        bans.note(&Ban::example(), 7, &host);
        assert!(bans.departed(&host).is_empty());
        host.bridge_ports = vec![(8, 3)];
        assert_eq!(bans.departed(&host), [Ban::example().probe.target]);
        assert!(bans.departed(&host).is_empty(), "once");
        host.networks.clear();
        bans.note(&Ban::example(), 8, &host);
        assert!(bans.0.is_empty(), "a source behind a router is no guest");
        host.networks = vec!["192.0.2.0/24".parse().unwrap()];
        (0..2_000).for_each(|_| bans.note(&Ban::example(), 8, &host));
        assert_eq!(bans.0.len(), MAX_FOLLOWED);
    }
}
