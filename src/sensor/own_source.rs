//! Frames that come in from outside with a source address of this host's own. No neighbour sends them: they are forged, or come
//! back by a loop. The kernel drops them at the interfaces that the snapshot of the host names (nft/portsentry-own-source.nft).

use super::blocker::Blocker;
use super::reporter::Reporter;
use crate::enforce::nft::BlockError;
use crate::engine::Host;
use crate::wire::{Delivery, Packet};

/// Interfaces that are remembered as reported. Beyond them nothing is reported.
const MAX_REPORTED: usize = 64;

/// Keeps the kernel's list of guarded interfaces current, and reports the first such frame of each.
pub(super) struct OwnSourceGuard {
    /// What the kernel's set holds; `None` where that is not known, or there is no such set.
    guarded: Option<Vec<u32>>,
    reported: Vec<u32>,
}

impl Default for OwnSourceGuard {
    fn default() -> Self {
        Self { guarded: None, reported: Vec::with_capacity(MAX_REPORTED) }
    }
}

impl OwnSourceGuard {
    /// Has the next [`OwnSourceGuard::update`] fill the set, whatever it is believed to hold.
    pub(super) fn forget(&mut self) {
        self.guarded = None;
    }

    /// Has the kernel guard the interfaces that `host` names; none while nothing is to be enforced.
    pub(super) fn update(&mut self, blocker: &mut Blocker, host: &Host, reporter: &Reporter) {
        let named = host.guarded.iter().map(|(index, _)| *index);
        let wanted: Vec<u32> = if blocker.suspended { Vec::new() } else { named.collect() };
        self.replace(wanted, blocker, reporter);
    }

    /// Has the kernel guard no interface: nothing follows the host from now on.
    pub(super) fn clear(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        self.replace(Vec::new(), blocker, reporter);
    }

    fn replace(&mut self, wanted: Vec<u32>, blocker: &mut Blocker, reporter: &Reporter) {
        let Some(backend) = blocker.nft.as_mut().filter(|backend| backend.spec.own_source) else { return };
        if self.guarded.as_ref() == Some(&wanted) {
            return;
        }
        self.guarded = None;
        match backend.nft.guard(&wanted) {
            Ok(()) => self.guarded = Some(wanted),
            // Filled once the table is there again.
            Err(BlockError::Gone) => {}
            Err(error) => reporter.error(format!(
                "the interfaces at which frames with own source addresses are dropped could not be set: {error}"
            )),
        }
    }

    /// Reports the first frame of an interface that has addresses of this host as source and as destination.
    pub(super) fn inspect(&mut self, packet: &Packet, host: &Host, reporter: &Reporter) {
        let interface = host.link(packet.interface);
        if packet.delivery != Delivery::Host
            || !host.local.is_exact()
            || !host.local.contains(packet.source)
            || !host.local.contains(packet.destination)
            || is_link_local(packet)
        {
            return;
        }
        let Some((_, name)) = host.guarded.iter().find(|(index, _)| *index == interface) else { return };
        if self.reported.len() == MAX_REPORTED || self.reported.contains(&interface) {
            return;
        }
        self.reported.push(interface);
        let dropped = self.guarded.as_ref().is_some_and(|guarded| guarded.contains(&interface));
        let fate =
            if dropped { "the kernel drops them (chain own_source counts them)" } else { "they are no evidence" };
        reporter.error(format!(
            "frames come in on {name} from {}, which is an address of this host: they are forged, or come back by a loop; \
             {fate}. Where they are wanted, set net.ipv4.conf.{name}.accept_local = 1",
            packet.source
        ));
    }
}

/// A neighbour on one link may have the address that this host has on another.
fn is_link_local(packet: &Packet) -> bool {
    matches!(packet.source, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}
