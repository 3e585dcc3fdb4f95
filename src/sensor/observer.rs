//! Observes packets: combines the engine with the host snapshot and the socket look-up that its verdicts depend on.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::capture::checksum_offload::ChecksumOffload;
use crate::capture::decoy::DecoyPorts;
use crate::engine::{Engine, Host, Observation, PortLookup, PortUse, Verdict};
use crate::types::{BanTarget, Protocol, Timestamp};
use crate::wire::{Packet, Transport};

use super::port_lookup::{KernelLookup, KernelPorts};
use super::reporter::Reporter;

/// What a step of the sensor works with: its time, the engine with the host, and the reporter.
pub(super) struct Scope<'a> {
    pub(super) now: Timestamp,
    pub(super) observer: &'a mut Observer,
    pub(super) reporter: &'a Reporter,
}

pub(super) struct Observer {
    pub(super) engine: Engine,
    pub(super) host: Arc<Host>,
    lookup: KernelLookup,
}

impl Observer {
    pub(super) fn new(engine: Engine, host: Arc<Host>, kernel: KernelPorts, decoys: DecoyPorts) -> Self {
        let mut observer =
            Self { engine, host, lookup: KernelLookup { kernel, decoys, checksums: ChecksumOffload::default() } };
        observer.open_checksums();
        observer
    }

    /// Asks the kernel for checksum marks if packets can arrive without a wire.
    fn open_checksums(&mut self) {
        if !self.host.virtual_links.is_empty() {
            self.lookup.checksums.open();
        }
    }

    /// Observes a packet; see [`Engine::observe`].
    #[inline]
    pub(super) fn observe(&mut self, now: Timestamp, packet: &Packet) -> Verdict {
        self.engine.observe(now, packet, &self.host, &mut self.lookup)
    }

    /// Observes a connection or datagram at a decoy; see [`Engine::observe_decoy`].
    pub(super) fn observe_decoy(&mut self, now: Timestamp, observation: Observation) -> Verdict {
        self.engine.observe_decoy(now, observation, &self.host, &mut self.lookup)
    }

    /// Decides on a source that waited; see [`Engine::judge_waiting`].
    pub(super) fn judge_waiting(&mut self, now: Timestamp) -> Option<Verdict> {
        self.engine.judge_waiting(now, &self.host, &mut self.lookup)
    }

    /// Reads the checksum marks again if that is due.
    pub(super) fn refresh_checksums(&mut self, now: Timestamp) {
        self.lookup.checksums.refresh(now);
    }

    /// Time at which a notice is due, a source can be judged, or the checksum marks have to be read again.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.engine.wake().into_iter().chain(self.lookup.checksums.next_due()).min()
    }

    /// True if the kernel confirms that `packet`, sent from an own address, answers from a port in use.
    pub(super) fn proves_port_use(&mut self, packet: &Packet) -> bool {
        let Transport::Tcp { source_port, destination_port, .. } = packet.transport else { return false };
        let own = SocketAddr::new(packet.source, source_port);
        let peer = SocketAddr::new(packet.destination, destination_port);
        let interface = self.host.receiver(packet.interface);
        !matches!(self.lookup.port_use(Protocol::Tcp, peer, own, interface), PortUse::Closed | PortUse::Unknown)
    }

    /// Replaces the snapshot of the host; true if more targets are exempt than before.
    pub(super) fn change_host(&mut self, now: Timestamp, host: Arc<Host>) -> bool {
        self.engine.host_changed(now, &self.host, &host);
        let more_exempt = host.allow.protects_more_than(&self.host.allow);
        self.host = host;
        self.open_checksums();
        more_exempt
    }

    /// The banned link-local sources on interfaces that no longer exist in `new`.
    pub(super) fn bans_on_missing_links(&self, new: &Host) -> Vec<BanTarget> {
        let gone: Vec<u32> = self.host.links_missing_in(new).map(|link| link.index).collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let targets = self.engine.bans().map(|ban| ban.target);
        targets
            .filter(|target| matches!(target, BanTarget::Link { interface, .. } if gone.contains(interface)))
            .collect()
    }

    /// Returns at most `most` banned targets inside `network`, and their total number.
    pub(super) fn bans_in(&self, network: IpNet, most: usize) -> (Vec<BanTarget>, usize) {
        let is_inside = |target: &BanTarget| network.contains(&target.network());
        let inside = || self.engine.bans().map(|ban| ban.target).filter(is_inside);
        let mut targets: Vec<BanTarget> = inside().take(most).collect();
        targets.sort_unstable();
        (targets, inside().count())
    }
}
