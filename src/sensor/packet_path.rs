//! Takes packets from the engine to the kernel: the engine observes each packet and decides on its source; the bans of a
//! batch are applied in one transaction per backend and then committed together with the events, in packet order.

use std::time::SystemTime;

use super::batch::{Batch, Outcome};
use super::controller::BanController;
use super::observer::{Observer, Scope};
use crate::engine::{Ban, Observation, Probe, Repeated, Standing, Verdict};
use crate::events::event::EventKind;
use crate::types::{BanTarget, Timestamp};
use crate::wire::Packet;

/// Sources judged per maintenance round after settling has ended, at about 50 µs each.
const JUDGED_PER_ROUND: usize = 64;

/// Owns the batch. Outcomes stay in it until [`PacketPath::finish_batch`].
pub(super) struct PacketPath {
    batch: Batch,
}

impl PacketPath {
    pub(super) fn new() -> Self {
        Self { batch: Batch::new() }
    }

    /// Observes a packet that was captured at `time`, and decides on its source.
    pub(super) fn process_packet(
        &mut self,
        controller: &mut BanController,
        now: Timestamp,
        packet: &Packet,
        time: SystemTime,
    ) {
        if let Some(target) = self.batch.refuted(packet)
            && controller.observer.proves_port_use(packet)
        {
            self.batch.withdraw(target);
            controller.observer.engine.lift(target);
            controller.enforcement.trap.refute(now, target);
        }
        let Observer { engine, host, lookup } = &mut controller.observer;
        let verdict = engine.observe(now, packet, host, lookup);
        if self.lift_vanished(controller, now, &verdict, time) {
            return self.process_packet(controller, now, packet, time);
        }
        self.collect(controller, verdict, time);
        let BanController { observer, enforcement, reporter, .. } = controller;
        enforcement.trap.excuse(now, packet, verdict, observer.engine.forgiven());
        enforcement.own_sources.inspect(packet, &observer.host, reporter);
    }

    /// As [`PacketPath::process_packet`], for a connection or datagram that a decoy accepted at `time`.
    pub(super) fn process_connection(
        &mut self,
        controller: &mut BanController,
        now: Timestamp,
        observation: Observation,
        time: SystemTime,
    ) {
        let Observer { engine, host, lookup } = &mut controller.observer;
        let verdict = engine.observe_decoy(now, observation, host, lookup);
        if self.lift_vanished(controller, now, &verdict, time) {
            return self.process_connection(controller, now, observation, time);
        }
        self.collect(controller, verdict, time);
        controller.reporter.metrics.connections.add(1);
    }

    /// Lifts the ban of a source that keeps sending if it disappeared from the kernel's set without a notification. If
    /// so, returns true: the caller judges the packet again, so that the log matches the state of the kernel.
    fn lift_vanished(
        &mut self,
        controller: &mut BanController,
        now: Timestamp,
        verdict: &Verdict,
        time: SystemTime,
    ) -> bool {
        let Verdict::Repeated(Repeated { target, verify, standing: Standing::Blocked, .. }) = *verdict else {
            return false;
        };
        let (enforcement, mut scope) = controller.enforcement(now);
        let vanished = enforcement.lift_vanished(&mut scope, target, verify);
        if vanished {
            self.batch.report(time, EventKind::Lifted { target });
        }
        vanished
    }

    /// Adds the outcomes of `verdict` to the batch.
    fn collect(&mut self, controller: &mut BanController, verdict: Verdict, time: SystemTime) {
        if let Verdict::Probe(probe) | Verdict::Block(Ban { probe, .. }) | Verdict::LogOnly(Ban { probe, .. }) =
            &verdict
        {
            controller.reporter.metrics.probed(probe.observation.class);
        }
        match verdict {
            Verdict::Block(ban) => {
                controller.guest_bans.note(&ban, &controller.observer.host);
                // Filters of the classic log expect the probe before its ban, also where the port is not a new one.
                self.batch.report(time, EventKind::Probe(Probe { fresh: true, ..ban.probe }));
                if !controller.enforcement.run_first(&ban, time) {
                    self.batch.add_ban(ban, time);
                }
                return;
            }
            Verdict::LogOnly(ban) => {
                if let Some(refused) = controller.enforcement.blocker.queue_command(&ban, time) {
                    self.batch.report(time, EventKind::from(&refused));
                }
            }
            _ => {}
        }
        if let Some(kind) = EventKind::from_verdict(verdict) {
            self.batch.report(time, kind);
        }
    }

    /// Applies the bans of the batch in one transaction per backend, and commits its outcomes.
    pub(super) fn finish_batch(&mut self, controller: &mut BanController, now: Timestamp) {
        if self.batch.is_empty() {
            return;
        }
        let BanController { observer, enforcement, reporter, .. } = controller;
        let mut scope = Scope { now, observer, reporter };
        let refused = enforcement.apply(&mut scope, self.batch.bans(&enforcement.blocker));
        let applied = SystemTime::now();
        for outcome in self.batch.drain() {
            match outcome {
                Outcome::Report(event) => reporter.emit_event(event),
                Outcome::Block(ban, seen) => enforcement.commit(&mut scope, &ban, seen, applied, &refused),
            }
        }
    }

    /// Decides on sources that waited during settling or for room under the ceilings.
    pub(super) fn process_waiting(&mut self, controller: &mut BanController, now: Timestamp) {
        for _ in 0..JUDGED_PER_ROUND {
            let Observer { engine, host, lookup } = &mut controller.observer;
            let Some(verdict) = engine.judge_waiting(now, host, lookup) else { break };
            self.collect(controller, verdict, SystemTime::now());
        }
        self.finish_batch(controller, now);
    }

    /// Applies the ban of `target`, whose command has ended.
    pub(super) fn command_ended(&mut self, controller: &mut BanController, now: Timestamp, target: BanTarget) {
        if let Some((ban, seen)) = controller.enforcement.pending.command_ended(target) {
            self.batch.add_ban(ban, seen);
            self.finish_batch(controller, now);
        }
    }
}
