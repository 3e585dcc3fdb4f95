//! Passes packets through the world: the kernel's rules decide first, and the engine sees every packet.

use std::net::IpAddr;

use portsentry::wire::{Delivery, Packet, TcpFlags, Transport};

use super::{Role, View, World, ends};
use crate::detector::{IgnoreReason, PacketVerdict};
use crate::host::Reply;
use crate::kernel::Passage;

impl World {
    /// Receives a packet from outside.
    pub fn receive(&mut self, packet: Packet) -> Reply {
        self.step += 1;
        let role = self.parts.get_mut(&self.current).map_or(Role::Backstage, |part| {
            (part.step, part.met) = (self.step, part.met || !self.down);
            part.role
        });
        if self.down {
            self.trace_packet(role, &packet, None);
            return Reply::Silence;
        }
        self.catch_up();
        let (protocol, _, to) = ends(&packet);
        // The program arms the trap on its start.
        if !self.host.is_up(protocol, to.port()) || !self.armed.is_armed() {
            self.arm();
        }
        let now = self.now;
        let passage = self.kernel.input(now, &packet, &View(&self.host, now));
        self.note_hold();
        let (host, kernel) = (&self.host, &self.kernel);
        let verdict = self.detector.observe(
            now,
            &packet,
            |protocol, source, to| host.taker(now, protocol, source, to),
            |(protocol, port)| kernel.traps(protocol, port),
        );
        if matches!(verdict, PacketVerdict::Ignored(IgnoreReason::Open)) && self.kernel.traps(protocol, to.port()) {
            self.armed.change(now);
        }
        self.trace_packet(role, &packet, Some((passage, &verdict)));
        self.record(role, &packet, to.port(), passage, &verdict);
        self.ban(&verdict);
        if passage != Passage::Passed {
            return Reply::Silence;
        }
        let reply = self.host.answer(now, &packet);
        self.reply(&packet, reply);
        if reply == Reply::SynAck
            && let Some(part) = self.parts.get_mut(&self.current)
        {
            part.learned.insert(to.port());
        }
        reply
    }

    /// Records a packet for a replay that has not reached its end.
    fn trace_packet(&mut self, role: Role, packet: &Packet, seen: Option<(Passage, &PacketVerdict)>) {
        if !self.is_replayed()
            && let Some(trace) = &mut self.trace
        {
            trace.packet(self.now, self.step, role, packet, seen);
        }
    }

    /// Applies a ban.
    pub(super) fn ban(&mut self, verdict: &PacketVerdict) {
        if let PacketVerdict::Ban { target, expiry, ban, .. } = verdict {
            self.kernel.block(self.now, *target, *expiry);
            self.daemon.record(self.now, ban);
        }
    }

    /// Charges a hold that the last packet started to its source.
    fn note_hold(&mut self) {
        let Some((target, length)) = self.kernel.take_hold() else { return };
        let Some(behaviour) = self.owners.get(&target) else { return };
        let role = self.parts.get(&self.current).map_or(Role::Backstage, |part| part.role);
        if matches!(role, Role::Authorised(_)) {
            return;
        }
        let own = matches!(role, Role::Honest(_));
        let seen = self.outcome.honest.entry(behaviour).or_default();
        let seconds = if own { &mut seen.hold_seconds } else { &mut seen.forged_hold_seconds };
        *seconds += length.as_secs_f64();
    }

    /// Sends the host's reply.
    fn reply(&mut self, packet: &Packet, reply: Reply) {
        let (_, from, to) = ends(packet);
        let tcp = |flags| Transport::Tcp {
            source_port: to.port(),
            destination_port: from.port(),
            flags: TcpFlags(flags),
            payload: 0,
        };
        let transport = match (reply, packet.transport) {
            (Reply::SynAck, _) => tcp(TcpFlags::SYN | TcpFlags::ACK),
            (Reply::Data, Transport::Udp { .. }) => {
                Transport::Udp { source_port: to.port(), destination_port: from.port() }
            }
            (Reply::Data, _) => tcp(TcpFlags::ACK),
            // The engine learns nothing from a reset or an ICMP error.
            _ => return,
        };
        self.send(from.ip(), transport);
    }

    pub(super) fn send(&mut self, peer: IpAddr, transport: Transport) {
        let (source, destination) = (self.host.address_for(peer), peer);
        let packet = Packet { source, destination, delivery: Delivery::Outgoing, ..self.packet(peer, transport) };
        let (protocol, from, _) = ends(&packet);
        // The trap is armed before the engine processes this packet.
        if !self.host.is_up(protocol, from.port()) {
            self.arm();
        }
        if self.kernel.traps(protocol, from.port()) {
            self.armed.change(self.now);
        }
        self.kernel.output(self.now, &packet);
        let (now, host) = (self.now, &self.host);
        self.detector.sent(now, &packet, |protocol, source, to| host.taker(now, protocol, source, to));
    }
}
