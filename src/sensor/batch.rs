//! Collects the outcomes of one batch of frames in packet order until its bans are in the kernel. One batch is one
//! transaction per backend.

use std::time::SystemTime;
use std::vec::Drain;

use super::blocker::Blocker;
use crate::enforce::BanContext;
use crate::engine::Ban;
use crate::events::event::{Event, EventKind};
use crate::types::{BanTarget, Protocol};
use crate::wire::{Delivery, Packet, TcpFlags, Transport};

/// Frames per batch. A ban waits for at most this many packets of about 100 ns each, and a burst of scanners shares a
/// transaction.
pub(super) const BATCH_SIZE: usize = 64;

/// Maximum number of outcomes per frame. A tagged frame is judged as two packets, each with up to five: three notices
/// that a ban vanished from the kernel (of the source on its link, of the source on every link, and of the network
/// around it), and two from the verdict.
const MAX_OUTCOMES: usize = 10;

/// An outcome of one packet.
pub(super) enum PacketOutcome {
    Report(Event),
    /// A ban to apply, and the capture time of its last probe.
    Block(Ban, SystemTime),
}

pub(super) struct Batch {
    outcomes: Vec<PacketOutcome>,
    bans: Vec<BanContext>,
}

impl Batch {
    /// Returns an empty batch with enough capacity that adding outcomes never allocates.
    pub(super) fn new() -> Self {
        Self { outcomes: Vec::with_capacity(MAX_OUTCOMES * BATCH_SIZE), bans: Vec::with_capacity(2 * BATCH_SIZE) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    pub(super) fn report(&mut self, time: SystemTime, kind: EventKind) {
        self.outcomes.push(PacketOutcome::Report(Event { time, kind }));
    }

    pub(super) fn add_ban(&mut self, ban: Ban, seen: SystemTime) {
        self.outcomes.push(PacketOutcome::Block(ban, seen));
    }

    /// The bans of the batch as backends expect them.
    pub(super) fn bans(&mut self, blocker: &Blocker) -> &[BanContext] {
        self.bans.clear();
        self.bans.extend(self.outcomes.iter().filter_map(|outcome| match outcome {
            PacketOutcome::Block(ban, seen) => Some(blocker.context(ban, ban.expiry, *seen)),
            PacketOutcome::Report(_) => None,
        }));
        &self.bans
    }

    pub(super) fn drain(&mut self) -> Drain<'_, PacketOutcome> {
        self.outcomes.drain(..)
    }

    /// Returns the target of the ban that `packet` refutes, if the kernel confirms the packet. Such a packet is a
    /// SYN/ACK from a port that the evidence of the ban counts as closed. A socket look-up misses listeners that live
    /// for milliseconds and ports published by DNAT.
    pub(super) fn refuted(&self, packet: &Packet) -> Option<BanTarget> {
        let Transport::Tcp { source_port, flags, .. } = packet.transport else { return None };
        if self.is_empty() || packet.delivery != Delivery::Outgoing || !flags.has(TcpFlags::SYN | TcpFlags::ACK) {
            return None;
        }
        let is_refuted = |ban: &Ban| {
            let mut evidence = ban.ports.iter();
            // Flags that no TCP stack sends are a probe even on an open port.
            ban.probe.target.covers(packet.destination)
                && evidence.clone().all(|(_, _, class)| !class.is_conclusive())
                && evidence.any(|(protocol, port, _)| (protocol, port) == (Protocol::Tcp, source_port))
        };
        self.outcomes.iter().find_map(|outcome| match outcome {
            PacketOutcome::Block(ban, _) if is_refuted(ban) => Some(ban.probe.target),
            _ => None,
        })
    }

    /// Removes the ban of `target` and its probes.
    pub(super) fn withdraw(&mut self, target: BanTarget) {
        self.outcomes.retain(|outcome| match outcome {
            PacketOutcome::Block(ban, _) => ban.probe.target != target,
            PacketOutcome::Report(event) => !matches!(&event.kind, EventKind::Probe(probe) if probe.target == target),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensor::fixtures::{SCANNER, ban, packet};

    /// True if `packet` drops the ban that a packet with these flags caused.
    fn refutes(packet: &Packet, flags: u16) -> Option<BanTarget> {
        let mut batch = Batch::new();
        batch.add_ban(ban(flags), SystemTime::UNIX_EPOCH);
        let target = batch.refuted(packet);
        target.into_iter().for_each(|target| batch.withdraw(target));
        assert_eq!(batch.bans(&Blocker::default()).is_empty(), target.is_some());
        target
    }

    #[test]
    fn port_answering_in_batch_was_open() {
        let answer = TcpFlags::SYN | TcpFlags::ACK;
        assert_eq!(refutes(&packet(true, answer, 21), TcpFlags::SYN), Some(BanTarget::V4(SCANNER.into())));
        assert_eq!(refutes(&packet(true, answer, 22), TcpFlags::SYN), None, "another port");
        assert_eq!(refutes(&packet(true, TcpFlags::RST, 21), TcpFlags::SYN), None, "a closed port answers like this");
        assert_eq!(refutes(&packet(false, answer, 21), TcpFlags::SYN), None, "any host can send that");
        assert_eq!(refutes(&packet(true, answer, 21), 0), None, "a NULL probe remains evidence");
    }
}
