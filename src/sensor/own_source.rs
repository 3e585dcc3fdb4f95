//! Handles frames that arrive from outside with a source address of this host. No neighbour sends such frames: they are
//! forged, or return through a network loop. The kernel drops them on the interfaces listed in the host snapshot
//! (nft/portsentry-own-source.nft).

use super::blocker::Blocker;
use super::reporter::Reporter;
use crate::enforce::nft::BlockError;
use crate::engine::Host;
use crate::wire::{Delivery, Packet};

/// Maximum number of interfaces that are reported.
const MAX_REPORTED: usize = 64;

/// Updates the kernel's list of guarded interfaces, and reports the first such frame on each interface.
pub(super) struct OwnSourceGuard {
    /// Contents of the kernel's set; `None` if unknown or if there is no such set.
    guarded: Option<Vec<u32>>,
    reported: Vec<u32>,
}

impl Default for OwnSourceGuard {
    fn default() -> Self {
        Self { guarded: None, reported: Vec::with_capacity(MAX_REPORTED) }
    }
}

impl OwnSourceGuard {
    /// Makes the next [`OwnSourceGuard::update`] fill the set regardless of its last known contents.
    pub(super) fn forget(&mut self) {
        self.guarded = None;
    }

    /// Makes the kernel guard the interfaces in `wanted` and no others.
    pub(super) fn update(&mut self, wanted: Vec<u32>, blocker: &mut Blocker, reporter: &Reporter) {
        let Some(backend) = blocker.nft_with(|spec| spec.own_source) else { return };
        if self.guarded.as_ref() == Some(&wanted) {
            return;
        }
        self.guarded = None;
        match backend.table.guard(&wanted) {
            Ok(()) => self.guarded = Some(wanted),
            // The set is filled once the table has been created again.
            Err(BlockError::Gone) => {}
            Err(error) => reporter.error(format!(
                "cannot update the interfaces on which frames with this host's addresses as source are dropped: {error}"
            )),
        }
    }

    /// Reports the first frame on an interface whose source and destination are both addresses of this host.
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
        let fate = if dropped {
            "the kernel drops them (chain own_source counts them)"
        } else {
            "they are not counted as evidence"
        };
        reporter.error(format!(
            "frames with {}, an address of this host, as their source arrive on {name}: they are forged, or the \
             network has a loop; {fate}. If they are legitimate, set net.ipv4.conf.{name}.accept_local = 1",
            packet.source
        ));
    }
}

/// A link-local address may belong to this host on one link and to a neighbour on another.
fn is_link_local(packet: &Packet) -> bool {
    matches!(packet.source, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}
