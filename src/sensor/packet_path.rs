//! Takes packets through the engine, and their bans to the kernel: the engine observes each packet and decides on its
//! source; the bans of a batch are applied in one transaction per backend and then committed together with the events,
//! in packet order.

use std::time::SystemTime;

use super::batch::{Batch, PacketOutcome};
use super::controller::BanController;
use super::observer::{Observer, Scope};
use super::reporter::Reporter;
use crate::engine::{Ban, Observation, Probe, Verdict};
use crate::events::event::EventKind;
use crate::types::{BanTarget, Timestamp};
use crate::wire::Packet;

/// Sources judged per maintenance round after settling has ended, at about 50 µs each.
const JUDGED_PER_ROUND: usize = 64;

/// Owns the batch and the controller. Outcomes stay in the batch until [`PacketPath::finish_batch`].
pub(super) struct PacketPath {
    batch: Batch,
    pub(super) controller: BanController,
}

impl PacketPath {
    pub(super) fn new(controller: BanController) -> Self {
        Self { batch: Batch::new(), controller }
    }

    pub(super) fn reporter(&self) -> &Reporter {
        &self.controller.reporter
    }

    /// Time at which [`PacketPath::run_maintenance`] has work to do.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.controller.next_due()
    }

    /// Faults in the memory that the next packets will need.
    pub(super) fn prepare(&mut self) {
        self.controller.observer.engine.prepare();
    }

    /// Observes a packet that was captured at `time`, and decides on its source.
    pub(super) fn process_packet(&mut self, now: Timestamp, packet: &Packet, time: SystemTime) {
        let controller = &mut self.controller;
        if let Some(target) = self.batch.refuted(packet)
            && controller.observer.proves_port_use(packet)
        {
            self.batch.withdraw(target);
            controller.observer.engine.lift(target);
            controller.enforcement.trap.refute(now, target);
        }
        let verdict = self.judge(now, time, |observer| observer.observe(now, packet));
        self.collect(verdict, time);
        let BanController { observer, enforcement, reporter, .. } = &mut self.controller;
        enforcement.trap.excuse(now, packet, verdict, observer.engine.withdrawn_ports());
        enforcement.own_sources.inspect(packet, &observer.host, reporter);
    }

    /// As [`PacketPath::process_packet`], for a connection or datagram that a decoy accepted at `time`.
    pub(super) fn process_connection(&mut self, now: Timestamp, observation: Observation, time: SystemTime) {
        let verdict = self.judge(now, time, |observer| observer.observe_decoy(now, observation));
        self.collect(verdict, time);
        self.controller.reporter.metrics.connections.add(1);
    }

    /// Returns the verdict of `observe`. If the source's ban has vanished from the kernel and no other backend enforces
    /// bans, ends it and observes again, so that the log matches the kernel. The same applies to the ban of a network
    /// around the source.
    #[inline]
    fn judge(
        &mut self,
        now: Timestamp,
        time: SystemTime,
        mut observe: impl FnMut(&mut Observer) -> Verdict,
    ) -> Verdict {
        loop {
            let verdict = observe(&mut self.controller.observer);
            let (enforcement, mut scope) = self.controller.enforcement_at(now);
            let Some(target) = enforcement.lift_vanished(&mut scope, &verdict) else { return verdict };
            self.batch.report(time, EventKind::BanVanished { target });
        }
    }

    /// Adds the outcomes of `verdict` to the batch.
    fn collect(&mut self, verdict: Verdict, time: SystemTime) {
        let BanController { observer, enforcement, guest_bans, reporter, .. } = &mut self.controller;
        if let Verdict::Probe(probe) | Verdict::Block(Ban { probe, .. }) | Verdict::LogOnly(Ban { probe, .. }) =
            &verdict
        {
            reporter.metrics.probed(probe.observation.class);
        }
        match verdict {
            Verdict::Block(ban) => {
                guest_bans.track(&ban, &observer.host);
                // Filters of the classic log expect the probe before its ban, also where the port is not a new one.
                self.batch.report(time, EventKind::Probe(Probe { fresh: true, ..ban.probe }));
                if !enforcement.run_first(&ban, time) {
                    self.batch.add_ban(ban, time);
                }
                return;
            }
            Verdict::LogOnly(ban) => {
                if let Some(refused) = enforcement.queue_command(&ban, time) {
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
    pub(super) fn finish_batch(&mut self, now: Timestamp) {
        if self.batch.is_empty() {
            return;
        }
        let BanController { observer, enforcement, reporter, .. } = &mut self.controller;
        let mut scope = Scope { now, observer, reporter };
        let refused = enforcement.apply(&mut scope, self.batch.bans(&enforcement.blocker));
        let applied = SystemTime::now();
        for outcome in self.batch.drain() {
            match outcome {
                PacketOutcome::Report(event) => reporter.emit_event(event),
                PacketOutcome::Block(ban, seen) => enforcement.commit(&mut scope, &ban, seen, applied, &refused),
            }
        }
    }

    /// Runs the maintenance that is due, decides on sources that waited, and reports the engine's notices.
    pub(super) fn run_maintenance(&mut self, now: Timestamp) {
        self.controller.run_maintenance(now);
        for _ in 0..JUDGED_PER_ROUND {
            let Some(verdict) = self.controller.observer.judge_waiting(now) else { break };
            self.collect(verdict, SystemTime::now());
        }
        self.finish_batch(now);
        let BanController { observer: Observer { engine, .. }, reporter, .. } = &mut self.controller;
        while let Some(notice) = engine.notice(now) {
            reporter.emit(notice.into());
        }
        reporter.metrics.update(engine.tracked(), engine.counters());
    }

    /// Applies the ban of `target`, whose command has ended.
    pub(super) fn command_ended(&mut self, now: Timestamp, target: BanTarget) {
        if let Some((ban, seen)) = self.controller.enforcement.pending.command_ended(target) {
            self.batch.add_ban(ban, seen);
            self.finish_batch(now);
        }
    }
}
