//! Coordinates engine and backends. A packet goes observe -> decide into a batch, and a batch goes apply -> commit: its bans
//! into the kernel, its events to the log, in the order of the packets.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::batch::{Batch, Outcome};
use super::blocker::Blocker;
use super::guest_bans::GuestBans;
use super::metrics::SensorMetrics;
use super::observer::Observer;
use super::own_source::OwnSourceGuard;
use super::pending_bans::{PendingBans, Retry};
use super::reporter::Reporter;
use super::table_repair::{Damage, TableRepair};
use super::trap::TrapControl;
use crate::enforce::nft::{BlockError, Nft, RulesetSpec};
use crate::enforce::{BanContext, Gone, Refused, route};
use crate::engine::{ActiveBan, Ban, Host, Observation, Probe, Repeated, Settings, Standing, Verdict};
use crate::events::event::{Event, EventKind};
use crate::types::{Backend, BanTarget, Expiry, Timestamp};
use crate::wire::Packet;

/// Bans of exempt targets that are removed at one time: some 2 ms between two batches.
const EXEMPT_PER_ROUND: usize = 256;

/// Until the next round of them. Each has its line in the log, and the event queue must not overflow.
const EXEMPT_ROUND_DELAY: Duration = Duration::from_millis(50);

/// Retries of refused bans between two batches.
const RETRIES_PER_ROUND: usize = 16;

/// Sources that waited while this host settled and are judged between two batches, at some 50 µs each.
const JUDGED_PER_ROUND: usize = 64;

/// Owns the parts of the sensor behind the capture, and hands each what it needs of the others.
pub(super) struct BanController {
    observer: Observer,
    batch: Batch,
    blocker: Blocker,
    pending: PendingBans,
    table_repair: TableRepair,
    trap: TrapControl,
    own_sources: OwnSourceGuard,
    guest_bans: GuestBans,
    /// When to remove bans of targets that have become exempt; `None` while there are none.
    exempt_check_at: Option<Timestamp>,
    reporter: Reporter,
}

/// Bans that should be in force.
#[derive(Debug, Default)]
pub struct Sample {
    /// Some of them.
    pub fresh: Vec<BanTarget>,
    /// Those that were asked about and still should be.
    pub again: Vec<BanTarget>,
    /// Those of `fresh` that should have a route.
    pub routes: Vec<BanTarget>,
    /// Those that were asked about and still should have a route.
    pub routes_again: Vec<BanTarget>,
}

impl Sample {
    /// True if there is nothing to compare with the kernel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty() && self.routes_again.is_empty()
    }
}

impl BanController {
    pub(super) fn new(observer: Observer, blocker: Blocker, reporter: Reporter) -> Self {
        Self {
            observer,
            batch: Batch::new(),
            blocker,
            pending: PendingBans::default(),
            table_repair: TableRepair::default(),
            trap: TrapControl::default(),
            own_sources: OwnSourceGuard::default(),
            guest_bans: GuestBans::default(),
            exempt_check_at: None,
            reporter,
        }
    }

    pub(super) fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    pub(super) fn metrics(&self) -> &SensorMetrics {
        self.reporter.metrics()
    }

    pub(super) fn observer(&mut self) -> &mut Observer {
        &mut self.observer
    }
}

/// The way of a packet.
impl BanController {
    /// Observes a packet that was captured at `time`. What follows from it waits for [`BanController::commit`].
    pub(super) fn observe_packet(&mut self, now: Timestamp, packet: &Packet, time: SystemTime) {
        if let Some(target) = self.batch.refuted(packet)
            && self.observer.proves_port_use(packet)
        {
            self.batch.withdraw(target);
            self.observer.lift(target);
            self.trap.acquit(now, target);
        }
        let verdict = self.observe(now, time, packet.interface, |observer| observer.observe(now, packet));
        self.trap.excuse(now, packet, verdict, self.observer.engine().forgiven());
        self.own_sources.inspect(packet, self.observer.host(), &self.reporter);
    }

    /// Observes a connection or datagram that a decoy accepted at `time`, likewise.
    pub(super) fn observe_decoy(&mut self, now: Timestamp, observation: Observation, time: SystemTime) {
        self.metrics().connections.add(1);
        let _ = self.observe(now, time, observation.interface, |observer| observer.observe_decoy(now, observation));
    }

    fn observe(
        &mut self,
        now: Timestamp,
        time: SystemTime,
        interface: u32,
        judge: impl Fn(&mut Observer) -> Verdict,
    ) -> Verdict {
        let mut verdict = judge(&mut self.observer);
        if self.ban_vanished(now, &verdict, time) {
            verdict = judge(&mut self.observer);
        }
        if let Verdict::Block(ban) = &verdict {
            self.guest_bans.note(ban, interface, self.observer.host());
        }
        self.decide(verdict, time);
        verdict
    }

    /// True if the ban of a source that keeps sending was removed from the kernel's set without a notification. The source
    /// is then to be judged anew: the log must say what the kernel does.
    fn ban_vanished(&mut self, now: Timestamp, verdict: &Verdict, time: SystemTime) -> bool {
        let Verdict::Repeated(Repeated { target, verify, standing: Standing::Blocked, .. }) = *verdict else {
            return false;
        };
        self.table_repair.saw_blocked(target);
        if !verify {
            return false;
        }
        match self.blocker.is_in_sets(target) {
            Ok(false) if self.table_repair.is_incomplete() => {
                self.repair(now, Backend::Nft, &[target]);
                return false;
            }
            Ok(false) => {}
            Err(BlockError::Gone) => {
                self.repair_missing_table(now);
                return false;
            }
            Ok(true) | Err(_) => return false,
        }
        self.observer.lift(target);
        self.trap.forget_probes(&[target], &mut self.blocker, &self.reporter);
        self.batch.report(time, EventKind::Lifted { target });
        true
    }

    /// Adds what follows from `verdict` to the batch.
    fn decide(&mut self, verdict: Verdict, time: SystemTime) {
        if let Verdict::Probe(probe) | Verdict::Block(Ban { probe, .. }) | Verdict::LogOnly(Ban { probe, .. }) =
            &verdict
        {
            self.metrics().probed(probe.observation.class);
        }
        match verdict {
            Verdict::Block(ban) => {
                self.table_repair.saw_blocked(ban.probe.target);
                // Filters of the classic log expect the probe before its ban, also where the port is not a new one.
                self.batch.report(time, EventKind::Probe(Probe { fresh: true, ..ban.probe }));
                if self.pending.has_room_for_command() && self.blocker.run_first(&ban, time) {
                    self.pending.await_command(ban, time);
                } else {
                    self.batch.block(ban, time);
                }
                return;
            }
            Verdict::LogOnly(ban) => {
                let runs_command = self.blocker.only_runs_command(ban.probe.observation.protocol);
                if runs_command && !self.blocker.queue_command(&ban, time) {
                    let reason = "the command queue is full".to_owned();
                    let target = ban.probe.target;
                    self.batch.report(time, EventKind::BlockFailed { target, reason, way: Backend::Command });
                }
            }
            _ => {}
        }
        if let Some(kind) = EventKind::from_verdict(verdict) {
            self.batch.report(time, kind);
        }
    }

    /// Applies the bans of the batch, in one transaction per backend, and reports its outcomes.
    pub(super) fn commit(&mut self, now: Timestamp) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let refused = self.apply(now, batch.bans(&self.blocker));
        let applied = SystemTime::now();
        for outcome in batch.drain() {
            match outcome {
                Outcome::Report(event) => self.reporter.emit_event(event),
                Outcome::Block(ban, seen) => self.commit_ban(now, &ban, seen, applied, &refused),
            }
        }
        // Keeps the allocated room.
        self.batch = batch;
    }

    /// Reports how `ban` fared with every inline backend, schedules retries, and queues it for the slow backends.
    fn commit_ban(&mut self, now: Timestamp, ban: &Ban, seen: SystemTime, applied: SystemTime, refused: &[Refused]) {
        let target = ban.probe.target;
        let mut in_force = false;
        for backend in self.blocker.inline() {
            match refused.iter().find(|refused| (refused.backend, refused.target) == (backend, target)) {
                None => {
                    in_force = true;
                    self.metrics().reacted(applied.duration_since(seen).unwrap_or_default());
                    self.report_blocked(ban, backend, seen, applied);
                }
                Some(Refused { reason, .. }) => {
                    self.metrics().failed(backend);
                    self.pending.retry(*ban, seen, backend, now);
                    self.report_failed(seen, target, backend, reason.clone());
                }
            }
        }
        if in_force {
            self.replace_inner_bans(target);
        }
        let has_slow_backends = self.blocker.has_slow_backends();
        let refused = self.blocker.queue(self.blocker.context(ban, ban.expiry, seen), now);
        let queued = refused.is_empty() && has_slow_backends;
        for Refused { backend, target, reason } in refused.into_iter().filter(|_| has_slow_backends) {
            self.report_failed(seen, target, backend, reason);
        }
        if !(in_force || queued) {
            // Not blocked: the next probes are evidence again.
            self.observer.lift(target);
        }
    }

    fn report_blocked(&self, ban: &Ban, backend: Backend, seen: SystemTime, applied: SystemTime) {
        self.metrics().blocked(backend, ban.probe.observation.class, ban.grade);
        let reaction = applied.duration_since(seen).unwrap_or_default();
        let what = EventKind::Blocked { ban: *ban, reaction, way: backend };
        self.reporter.emit_event(Event { time: seen, what });
    }

    fn report_failed(&self, time: SystemTime, target: BanTarget, backend: Backend, reason: String) {
        self.reporter.emit_event(Event { time, what: EventKind::BlockFailed { target, reason, way: backend } });
    }

    /// Blocks `bans` with every inline backend; which of them were refused, and why.
    fn apply(&mut self, now: Timestamp, bans: &[BanContext]) -> Vec<Refused> {
        if bans.is_empty() {
            return Vec::new();
        }
        self.blocker.inline().flat_map(|backend| self.apply_with(backend, now, bans)).collect()
    }

    fn apply_with(&mut self, backend: Backend, now: Timestamp, bans: &[BanContext]) -> Vec<Refused> {
        self.with_table(now, backend, bans.iter().map(|ban| ban.target), |blocker| blocker.block(backend, bans, now))
    }

    /// Has `attempt` made with `backend`, once more after a repair where the table was gone; which of `targets` were refused.
    fn with_table(
        &mut self,
        now: Timestamp,
        backend: Backend,
        targets: impl Iterator<Item = BanTarget>,
        attempt: impl Fn(&mut Blocker) -> Result<Vec<Refused>, Gone>,
    ) -> Vec<Refused> {
        attempt(&mut self.blocker)
            .or_else(|Gone| {
                self.repair_missing_table(now);
                attempt(&mut self.blocker)
            })
            .unwrap_or_else(|Gone| Refused::all(backend, targets, &BlockError::Gone))
    }

    /// Applies the ban of `target`, whose command has ended.
    pub(super) fn command_ended(&mut self, now: Timestamp, target: BanTarget) {
        if let Some((ban, seen)) = self.pending.command_ended(target) {
            self.batch.block(ban, seen);
            self.commit(now);
        }
    }
}

/// Work that is due beside packets.
impl BanController {
    /// When [`BanController::run_maintenance`] has something to do.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let (engine, pending, trap) = (self.observer.engine().wake(), self.pending.next_retry(), self.trap.next_due());
        let (routes, repair) = (self.blocker.next_route_due(), self.table_repair.next_due());
        [engine, pending, trap, routes, repair, self.exempt_check_at].into_iter().flatten().min()
    }

    /// Removes bans of exempt targets, reviews the trap, removes expired routes, retries refused bans, reports the engine's
    /// notices: as far as each is due.
    pub(super) fn run_maintenance(&mut self, now: Timestamp) {
        if self.exempt_check_at.is_some_and(|at| at <= now) {
            self.remove_exempt_bans(now);
        }
        self.trap.check(now, &mut self.blocker, &mut self.observer, &self.pending, &self.reporter);
        if let Some(routes) = &mut self.blocker.routes
            && routes.next_due().is_some_and(|due| due <= now)
        {
            let removed = routes.due(now);
            self.report_routes(removed.trouble);
        }
        if let Some(table) = &mut self.blocker.nft {
            self.table_repair.complete(now, table, &mut self.observer, &mut self.pending, &self.reporter);
        }
        for _ in 0..RETRIES_PER_ROUND {
            let Some(retry) = self.pending.due_retry(now) else { break };
            self.retry_ban(now, retry);
        }
        for _ in 0..JUDGED_PER_ROUND {
            let Some(verdict) = self.observer.judge_waiting(now) else { break };
            self.decide(verdict, SystemTime::now());
        }
        self.commit(now);
        while let Some(notice) = self.observer.engine_mut().notice(now) {
            self.reporter.emit(notice.into());
        }
        self.metrics().update(self.observer.engine().tracked(), self.observer.engine().counters());
    }

    fn retry_ban(&mut self, now: Timestamp, retry: Retry) {
        let Some(left) = retry.left(now) else { return };
        let Retry { ban, seen, backend, .. } = retry;
        let target = ban.probe.target;
        let attempt = self.blocker.context(&ban, left, seen);
        if !self.apply_with(backend, now, &[attempt]).is_empty() {
            self.metrics().failed(backend);
            return self.pending.retry_again(retry, now);
        }
        if !self.observer.engine().is_blocked(now, target) {
            let ban = ActiveBan { grade: Some(ban.grade), ..ActiveBan::whole(target, left) };
            self.observer.engine_mut().adopt(now, &ban);
        }
        self.report_blocked(&ban, backend, seen, SystemTime::now());
    }

    /// Removes bans of targets that are exempt by now. The kernel lets them pass in any case; but such a ban would mislead
    /// readers of the set, and would be back in force when the exemption ends.
    fn remove_exempt_bans(&mut self, now: Timestamp) {
        // From the engine first, so that a table that has to be repaired is filled without them.
        let exempt = self.observer.lift_exempt(EXEMPT_PER_ROUND);
        self.exempt_check_at = (exempt.len() == EXEMPT_PER_ROUND).then(|| now.after(EXEMPT_ROUND_DELAY));
        let targets: Vec<_> = exempt.iter().map(|(target, _)| *target).collect();
        self.change_sets(now, "bans of protected sources could not be lifted", |nft| nft.lift(&targets));
        self.release(&targets);
        for (target, protection) in exempt {
            self.reporter.emit_exempt(target, protection);
        }
    }

    fn report_routes(&self, failure: Option<route::BlockError>) {
        if let Some(error) = failure {
            self.reporter.error(format!("routes could not be taken away, which is tried again: {error}"));
        }
    }
}

/// Changes of the host and of the configuration.
impl BanController {
    pub(super) fn start(&mut self, now: Timestamp) {
        self.start_trap(now);
        if let Some(backend) = &mut self.blocker.nft {
            self.table_repair.report_foreign(backend, None, &self.reporter);
        }
        self.reporter.emit(EventKind::Started);
    }

    /// Has the kernel block nothing by itself while no sensor reviews it.
    pub(super) fn stop(&mut self) {
        self.own_sources.clear(&mut self.blocker, &self.reporter);
        self.trap.stop(&mut self.blocker, &self.reporter);
    }

    /// Replaces the snapshot of the host.
    pub(super) fn change_host(&mut self, now: Timestamp, host: Arc<Host>) {
        let departed = self.guest_bans.departed(&host);
        let more_exempt = self.observer.change_host(now, host);
        self.lift_guest_bans(&departed);
        self.update_allow_list(now, Nft::follow_protected);
        self.guard_own_sources();
        self.arm_trap(now);
        if more_exempt {
            self.exempt_check_at = Some(now);
            // The trap may have caught one of them just before.
            self.trap.check_soon(now);
        }
    }

    /// Ends the bans of guests whose bridge ports are gone: the next one may get their addresses.
    fn lift_guest_bans(&mut self, departed: &[BanTarget]) {
        for target in departed {
            match self.unblock(&[*target]) {
                Ok(unblocked) if unblocked.is_empty() => {}
                Ok(_) => self.reporter.emit_unblocked(*target, "portsentry, because its port of the bridge is gone"),
                Err(error) => self.reporter.error(format!("the ban of {target}, whose port is gone, stays: {error}")),
            }
        }
    }

    /// Updates the kernel's allow-list from the host's, and keeps routes clear of it. The `update` is [`Nft::protect`], which
    /// replaces the list whatever others made of it, or [`Nft::follow_protected`], which sends the difference.
    fn update_allow_list(&mut self, now: Timestamp, update: fn(&mut Nft, &[IpNet]) -> Result<(), BlockError>) {
        for target in self.blocker.keep_reachable(self.observer.host()) {
            let text = format!("the route that blocked {target} was removed: it would cut off protected addresses");
            self.reporter.note(text);
        }
        let allowed = self.observer.allowed();
        self.change_sets(now, "the kernel's allow-list could not be set", |nft| update(nft, &allowed));
    }

    pub(super) fn restore_allow_list(&mut self, now: Timestamp) {
        self.update_allow_list(now, Nft::protect);
    }

    pub(super) fn reconfigure(&mut self, now: Timestamp, settings: Settings) {
        self.observer.engine_mut().reconfigure(settings);
        self.trap.forget_coverage(&self.reporter);
        self.arm_trap(now);
    }

    /// Suspends blocking: the trap watches nothing, no backend gets a ban, and the bans in force stay.
    pub(super) fn start_trial(&mut self) {
        self.suspend_bans();
        self.guard_own_sources();
        self.trap.pause(&mut self.blocker, &self.reporter);
    }

    /// Blocks again. What was probed meanwhile is no evidence for a ban.
    pub(super) fn end_trial(&mut self, now: Timestamp, settings: Settings) {
        self.observer.engine_mut().reconfigure(settings);
        self.trap.forget_coverage(&self.reporter);
        self.blocker.suspended = false;
        self.trap.resume();
        self.start_trap(now);
    }

    fn suspend_bans(&mut self) {
        self.observer.engine_mut().log_only();
        self.blocker.suspended = true;
        let waiting = self.pending.clear();
        for target in &waiting {
            self.observer.lift(*target);
        }
        self.release(&waiting);
    }

    /// Blocks no source from now on.
    pub(super) fn log_only(&mut self, now: Timestamp) {
        self.suspend_bans();
        self.guard_own_sources();
        self.trap.disarm(&mut self.blocker, &self.reporter);
        self.arm_trap(now);
    }

    /// The services of this host have come up after a boot.
    pub(super) fn end_settling(&mut self, now: Timestamp) {
        self.observer.engine_mut().end_settling();
        self.arm_trap(now);
    }

    /// Gives the table other rules; its sets keep their elements.
    pub(super) fn replace_ruleset(&mut self, now: Timestamp, wanted: RulesetSpec) {
        match self.blocker.nft.as_mut().map(|backend| backend.replace_rules(wanted)) {
            Some(Ok(())) => self.reporter.note("table inet portsentry has the rules of the new settings"),
            None => {}
            Some(Err(error)) => {
                self.reporter.error(format!("the rules of the new settings could not be laid: {error}"))
            }
        }
        self.start_trap(now);
    }

    /// Has connections to decoys tracked or not.
    pub(super) fn track_decoys(&mut self, now: Timestamp, max_new_tracked: Option<u32>) {
        let Some(backend) = &mut self.blocker.nft else { return };
        let Some(decoys) = &mut backend.spec.decoys else { return };
        decoys.max_new_tracked = max_new_tracked;
        if let Err(error) = backend.repair() {
            self.reporter.error(format!("the rules for decoys could not be changed: {error}"));
        }
        self.reset_trap(now);
    }

    /// Arms the trap, which counts from zero: the sensor may not have seen what was counted before, or judges it otherwise.
    fn start_trap(&mut self, now: Timestamp) {
        TrapControl::forget_all_probes(&mut self.blocker);
        self.reset_trap(now);
    }

    /// Arms the trap again, whatever others made it watch.
    pub(super) fn reset_trap(&mut self, now: Timestamp) {
        self.own_sources.forget();
        self.guard_own_sources();
        self.trap.forget_ports();
        self.arm_trap(now);
    }

    fn guard_own_sources(&mut self) {
        self.own_sources.update(&mut self.blocker, self.observer.host(), &self.reporter);
    }

    fn arm_trap(&mut self, now: Timestamp) {
        self.trap.arm(now, &mut self.blocker, &self.observer, &self.reporter);
    }
}

/// Reconciliation of the kernel with the engine.
impl BanController {
    /// Takes over bans that the kernel holds and that this run did not make.
    pub(super) fn adopt(&mut self, now: Timestamp, bans: &[ActiveBan]) {
        bans.iter().for_each(|ban| self.observer.engine_mut().adopt(now, ban));
        if bans.iter().any(|ban| matches!(ban.target, BanTarget::Prefix(_))) {
            self.blocker.plan_prefix_sets();
        }
        if bans.iter().any(|ban| self.observer.exemption(ban.target).is_some()) {
            self.exempt_check_at = Some(now);
        }
    }

    /// Removes from the kernel's sets those of `elements`, which came with a ruleset that `by` loaded, that are no bans, and gives the
    /// others the time that they have left.
    pub(super) fn review_loaded(&mut self, now: Timestamp, elements: &[BanTarget], by: &str) {
        let engine = self.observer.engine();
        let bans = elements.iter().filter_map(|target| engine.standing_of(now, *target));
        let bans: Vec<_> = bans.map(|ban| (ban.target, ban.length, ban.left)).collect();
        let stale = elements.iter().copied().filter(|target| engine.standing_of(now, *target).is_none());
        let stale: Vec<BanTarget> = stale.collect();
        self.change_sets(now, "elements of a loaded ruleset could not be compared with the bans", |nft| {
            nft.lift(&stale)?;
            nft.restore(&bans)
        });
        self.reporter.note(format!(
            "{by} loaded a ruleset with elements of table inet portsentry: {} are bans and keep the time that they have left, {} \
             are not and were removed; docs/interoperability.md says how to save a ruleset without them",
            bans.len(),
            stale.len()
        ));
    }

    /// Replaces elements that another program added with host bits, and that match no packet.
    pub(super) fn mask_elements(&mut self, now: Timestamp, elements: &[(BanTarget, Expiry)]) {
        let wrong: Vec<BanTarget> = elements.iter().map(|(target, _)| *target).collect();
        let masked: Vec<_> = elements.iter().map(|(target, expiry)| (target.masked(), *expiry)).collect();
        self.change_sets(now, "elements with host bits could not be replaced", |nft| {
            nft.lift(&wrong)?;
            nft.block(&masked)
        });
        let bans: Vec<_> = masked.iter().map(|(target, expiry)| ActiveBan::whole(*target, *expiry)).collect();
        self.adopt(now, &bans);
    }

    /// Adds bans to the engine and to these backends, for the time that is left.
    pub(super) fn restore(&mut self, now: Timestamp, bans: &[ActiveBan], backends: &[Backend]) {
        for backend in self.blocker.inline().filter(|backend| backends.contains(backend)) {
            match summary(&self.put_back(backend, now, bans)) {
                None => self.reporter.emit(EventKind::Restored { bans: bans.len(), way: backend }),
                Some(error) => {
                    let name = backend.name();
                    self.reporter.error(format!("bans could not be put back from the ledger ({name}): {error}"));
                }
            }
        }
        self.adopt(now, bans);
    }

    /// Puts bans back that `backend` lost without a notification. The kernel is asked once more, because the comparison was a
    /// moment ago; a missing table is repaired as a whole.
    pub(super) fn repair(&mut self, now: Timestamp, backend: Backend, targets: &[BanTarget]) {
        let missing = self.blocker.missing(backend, targets).into_iter();
        let missing = missing.filter(|target| !self.pending.awaits_command(*target));
        let bans: Vec<_> = missing.filter_map(|target| self.observer.engine().standing_of(now, target)).collect();
        if bans.is_empty() {
            return;
        }
        let refused = self.put_back(backend, now, &bans);
        let repaired = bans.len().saturating_sub(refused.len());
        if repaired > 0 {
            self.metrics().repaired.add(repaired as u64);
            self.reporter.emit(EventKind::Repaired { bans: repaired, way: backend });
        }
        if let Some(error) = summary(&refused) {
            let what = match backend {
                Backend::Route => "a route that was gone could not be laid again",
                _ => "bans that the kernel had lost could not be put back",
            };
            self.reporter.error(format!("{what}: {error}"));
        }
    }

    fn put_back(&mut self, backend: Backend, now: Timestamp, bans: &[ActiveBan]) -> Vec<Refused> {
        let targets = bans.iter().map(|ban| ban.target);
        self.with_table(now, backend, targets, |blocker| blocker.put_back(backend, bans, now))
    }

    /// Some of the bans that should be in force, others each time, for a comparison with the kernel; and which of the targets
    /// in `again` and `routes_again`, missing at the last comparison, still should be.
    pub(super) fn sample(
        &mut self,
        now: Timestamp,
        most: usize,
        mut again: Vec<BanTarget>,
        mut routes_again: Vec<BanTarget>,
    ) -> Sample {
        let mut fresh = Vec::new();
        self.observer.engine_mut().sample(now, &mut |target| fresh.push(target), most);
        fresh.retain(|target| !self.pending.awaits_command(*target));
        let routes = fresh.iter().copied().filter(|target| self.blocker.wants_route(*target)).collect();
        again.retain(|target| self.observer.engine().is_blocked(now, *target));
        routes_again
            .retain(|target| self.observer.engine().is_blocked(now, *target) && self.blocker.wants_route(*target));
        self.metrics().missing.set((again.len() + routes_again.len()) as u64);
        Sample { fresh, again, routes, routes_again }
    }

    /// Ends the ban of `target`, whose route was deleted: like a deleted element, that is how an administrator unblocks.
    pub(super) fn route_removed(&mut self, now: Timestamp, target: BanTarget) {
        // Another route may have taken its place, or the same one again.
        if !self.observer.engine().is_blocked(now, target)
            || self.blocker.missing(Backend::Route, &[target]) != [target]
        {
            return;
        }
        match self.unblock(&[target]) {
            Ok(_) => self.reporter.emit_unblocked(target, "a program that deleted its route"),
            Err(error) => self.reporter.error(format!("the ban of {target}, whose route is gone, stays: {error}")),
        }
    }

    /// Removes routes of an earlier run that belong to no ban.
    pub(super) fn remove_stale_routes(&mut self, now: Timestamp) {
        let Some(routes) = &mut self.blocker.routes else { return };
        let removed = routes.sweep(now);
        if !removed.targets.is_empty() {
            let count = removed.targets.len();
            self.reporter.note(format!("routes of an earlier run without a ban were removed: {count}"));
        }
        self.report_routes(removed.trouble);
    }

    /// Repairs the table after `damage`.
    pub(super) fn repair_table(&mut self, now: Timestamp, damage: Damage<'_>) {
        let Some(table) = &mut self.blocker.nft else { return };
        if self.table_repair.repair(now, table, damage, &mut self.observer, &mut self.pending, &self.reporter) {
            self.trap.forget_ports();
            self.own_sources.forget();
            self.guard_own_sources();
        }
    }

    /// Creates the table again, unless that was just done.
    fn repair_missing_table(&mut self, now: Timestamp) {
        if self.table_repair.may_repair_now() {
            self.repair_table(now, Damage::Deleted(None));
        }
    }

    /// Applies `change` to the sets of nftables. A missing table is repaired as a whole; other errors are logged after `failure`.
    fn change_sets(&mut self, now: Timestamp, failure: &str, change: impl FnOnce(&mut Nft) -> Result<(), BlockError>) {
        match self.blocker.change_sets(change) {
            Ok(()) => {}
            Err(BlockError::Gone) => self.repair_missing_table(now),
            Err(error) => self.reporter.error(format!("{failure}: {error}")),
        }
    }
}

/// Bans that begin and end without a packet.
impl BanController {
    /// Blocks `target` because an operator asked for it.
    pub(super) fn block(&mut self, now: Timestamp, target: BanTarget, expiry: Expiry) -> Result<(), String> {
        if !self.blocker.is_enabled() {
            return Err("blocking is disabled: scans are only logged".to_owned());
        }
        let ban = BanContext::by_hand(target, expiry, SystemTime::now());
        let refused = self.apply(now, &[ban]);
        let queued = self.blocker.queue(ban, now).is_empty() && self.blocker.has_slow_backends();
        // In force with one backend is in force.
        if let Some(first) = refused.first()
            && refused.len() == self.blocker.inline().count()
            && !queued
        {
            return Err(first.reason.clone());
        }
        for Refused { backend, target, reason } in refused {
            self.report_failed(SystemTime::now(), target, backend, reason);
        }
        self.replace_inner_bans(target);
        self.observer.engine_mut().adopt(now, &ActiveBan::whole(target, expiry));
        Ok(())
    }

    /// Ends the bans of `targets`; which of them were blocked.
    pub(super) fn unblock(&mut self, targets: &[BanTarget]) -> Result<Vec<BanTarget>, String> {
        let mut unblocked = Vec::new();
        let targets = &self.with_links(targets)[..];
        for target in targets {
            let in_set = self.blocker.remove_from_sets(*target).map_err(|error| error.to_string())?;
            if self.observer.lift(*target) || in_set {
                unblocked.push(*target);
            }
        }
        self.release(targets);
        Ok(unblocked)
    }

    /// These targets and, of link-local addresses that are named without a link, their bans on each link.
    fn with_links(&self, targets: &[BanTarget]) -> Vec<BanTarget> {
        let mut all = targets.to_vec();
        let links = self.observer.engine().bans().map(|ban| ban.target);
        let links = links.filter(|ban| matches!(ban, BanTarget::Link { .. }) && targets.contains(&ban.on_every_link()));
        all.extend(links);
        all
    }

    /// Ends all bans; which there were.
    pub(super) fn unblock_all(&mut self) -> Result<Vec<BanTarget>, String> {
        let targets: Vec<BanTarget> = self.observer.engine().bans().map(|ban| ban.target).collect();
        match self.blocker.change_sets(|nft| nft.lift(&targets)) {
            Ok(()) | Err(BlockError::Gone) => {}
            Err(error) => return Err(error.to_string()),
        }
        self.release(&targets);
        // One by one: each takes its strike back, as where it is named.
        for target in &targets {
            self.observer.lift(*target);
        }
        Ok(targets)
    }

    /// Ends the bans of `targets`, which were removed from the kernel's sets.
    pub(super) fn bans_removed(&mut self, targets: &[BanTarget]) {
        for target in targets {
            self.observer.lift(*target);
        }
        self.release(targets);
    }

    /// Ends the bans of `targets` everywhere but in the engine and in the sets of nftables.
    fn release(&mut self, targets: &[BanTarget]) {
        self.trap.forget_probes(targets, &mut self.blocker, &self.reporter);
        self.pending.remove(targets);
        for error in self.blocker.release(targets) {
            self.reporter.error(error);
        }
    }

    /// Ends the bans of prefixes inside `target`: its set holds no overlapping intervals, so its ban has replaced them.
    fn replace_inner_bans(&mut self, target: BanTarget) {
        let (BanTarget::Prefix(outer), true) = (target, self.blocker.nft.is_some()) else { return };
        let is_inside = |inner: &BanTarget| match inner {
            BanTarget::Prefix(inner) => *inner != outer && outer.network().contains(&inner.network()),
            BanTarget::V4(_) | BanTarget::V6(_) | BanTarget::Link { .. } => false,
        };
        let inner: Vec<_> = self.observer.engine().bans().map(|ban| ban.target).filter(is_inside).collect();
        for inner in inner {
            self.observer.lift(inner);
            self.reporter.emit_unblocked(inner, format!("the ban of {target} around it"));
        }
    }
}

/// The first of `refused` and the number of the others, for the log.
fn summary(refused: &[Refused]) -> Option<String> {
    let [Refused { target, reason, .. }, others @ ..] = refused else { return None };
    let others = if others.is_empty() { String::new() } else { format!(", and {} others", others.len()) };
    Some(format!("{target}{others}: {reason}"))
}
