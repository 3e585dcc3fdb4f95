//! Implements the daemon's changes to the sets of the model, and the contents that it and the tests read.

use std::net::IpAddr;

use portsentry::enforce::nft::Trap;
use portsentry::types::{BanTarget, Expiry, Timestamp};

use super::{Family, Kernel};
use crate::sets::TimedSet;

impl Kernel {
    /// Blocks `target`, as the daemon does.
    pub fn block(&mut self, now: Timestamp, target: BanTarget, expiry: Expiry) {
        self.family(target.element()).blocked.replace(now, target, expiry);
    }

    /// Lifts the ban of `target`, as the daemon does.
    pub fn lift(&mut self, target: BanTarget) {
        self.family(target.element()).blocked.elements.remove(&target);
    }

    /// Resets the trap's counts for `targets` and removes them from `caught`, as the daemon does. The ports that they
    /// probed are still remembered.
    pub fn forget(&mut self, targets: &[BanTarget]) {
        for target in targets {
            let family = self.family(target.element());
            family.suspects.elements.remove(target);
            family.peer_suspects.elements.remove(target);
            family.caught.elements.remove(target);
        }
    }

    /// Resets the trap's counts for all sources, as the daemon does.
    pub fn forget_all(&mut self) {
        for family in [&mut self.v4, &mut self.v6] {
            family.suspects.elements.clear();
            family.peer_suspects.elements.clear();
            family.touched.elements.clear();
            family.touched_udp.elements.clear();
        }
    }

    /// The counting rules of the trap; `None` if it is off.
    #[must_use]
    pub fn trap(&self) -> Option<Trap> {
        self.trap
    }

    #[must_use]
    pub fn is_blocked(&self, now: Timestamp, target: BanTarget) -> bool {
        let family = if target.element().is_ipv4() { &self.v4 } else { &self.v6 };
        family.blocked.contains(now, target)
    }

    /// The sources in `caught` and `caught6`.
    #[must_use]
    pub fn caught(&self, now: Timestamp) -> Vec<BanTarget> {
        [&self.v4, &self.v6].map(|family| family.caught.live(now)).concat()
    }

    /// All bans with their remaining times, to restore them after a reboot.
    #[must_use]
    pub fn bans(&self, now: Timestamp) -> Vec<(BanTarget, Expiry)> {
        let live = |family: &Family| {
            let left = |target: &BanTarget| match family.blocked.elements[target].expires {
                None => Expiry::Never,
                Some(at) => Expiry::After(at.since(now)),
            };
            family.blocked.live(now).into_iter().map(|target| (target, left(&target))).collect::<Vec<_>>()
        };
        [live(&self.v4), live(&self.v6)].concat()
    }

    /// The ports in `asked`.
    #[must_use]
    pub fn asked(&self, now: Timestamp) -> Vec<u16> {
        self.asked.live(now)
    }

    /// The contents of a set for comparisons: sorted addresses, each with a port if the set has one.
    #[must_use]
    pub fn set(&self, now: Timestamp, name: &str) -> Vec<(IpAddr, Option<u16>)> {
        let family = if name.ends_with('6') { &self.v6 } else { &self.v4 };
        let sources = |set: &TimedSet<BanTarget>| set.live(now).iter().map(|target| (target.element(), None)).collect();
        let ports = |set: &TimedSet<(BanTarget, u16)>| {
            set.live(now).iter().map(|(target, port)| (target.element(), Some(*port))).collect()
        };
        match name.trim_end_matches('6') {
            "blocked" => sources(&family.blocked),
            "suspects" => sources(&family.suspects),
            "caught" => sources(&family.caught),
            "peer_suspects" => sources(&family.peer_suspects),
            "touched" => ports(&family.touched),
            "touched_udp" => ports(&family.touched_udp),
            "held" => sources(&family.held),
            "held_ports" => ports(&family.held_ports),
            "hold_counts" => sources(&family.hold_counts),
            "hold_recent" => sources(&family.hold_recent),
            _ => Vec::new(),
        }
    }
}
