//! Enforces bans: applies them with the backends, retries refused bans, and restores bans that a backend has lost.

use std::time::SystemTime;

use ipnet::IpNet;

use super::blocker::Blocker;
use super::observer::Scope;
use super::own_source::OwnSourceGuard;
use super::pending_bans::{PendingBans, Retry};
use super::reporter::Reporter;
use super::table_repair::{Damage, TableRepair};
use super::trap::TrapControl;
use crate::enforce::nft::{BlockError, Nft, RulesetSpec, trap_sets};
use crate::enforce::{BackendGone, BanContext, InlineBackend, Refused};
use crate::engine::{ActiveBan, Ban, Repeated, Settings, Verdict};
use crate::events::event::EventKind;
use crate::types::{Backend, BanTarget, Response, Timestamp};

/// Retries of refused bans per maintenance round.
const RETRIES_PER_ROUND: usize = 16;

/// Whether new bans are enforced. Bans in force remain in every state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Blocking {
    #[default]
    On,
    /// A log-only trial is running: the trap keeps its rules but monitors no ports.
    Suspended,
    /// `--confirm` was not confirmed in time: nothing is blocked until a restart, and the rules of the trap are
    /// removed.
    Off,
}

#[derive(Default)]
pub(super) struct Enforcement {
    blocking: Blocking,
    pub(super) blocker: Blocker,
    pub(super) pending: PendingBans,
    table_repair: TableRepair,
    /// The trap and the guard are what the kernel does by itself between two bans. Both need rules of the table and
    /// follow the snapshot of the host.
    pub(super) trap: TrapControl,
    pub(super) own_sources: OwnSourceGuard,
}

impl Enforcement {
    pub(super) fn new(blocker: Blocker) -> Self {
        Self { blocker, ..Self::default() }
    }
}

/// Handles packets and the bans that they cause.
impl Enforcement {
    /// If `verdict` asks for it, checks whether the kernel's set still contains the ban of a source that keeps sending.
    /// If the ban vanished without a notification, ends it and returns its target, unless a backend other than nftables
    /// enforces bans: then the ban stays, and its element is restored later. A ban that waits for its command or a
    /// retry is not in the set yet.
    pub(super) fn lift_vanished(&mut self, scope: &mut Scope<'_>, verdict: &Verdict) -> Option<BanTarget> {
        let Verdict::Repeated(Repeated { target, verify, response: Response::Block, .. }) = *verdict else {
            return None;
        };
        self.table_repair.recent.insert(target);
        if !verify || self.pending.is_missing_in(Backend::Nft, target) {
            return None;
        }
        let nft = self.blocker.nft();
        match nft.map_or(Ok(true), |backend| backend.table.time_left(target).map(|held| held.is_some())) {
            Ok(false) if self.table_repair.incomplete => self.repair(scope, Backend::Nft, &[target]),
            // The ban is still in force, also if the set was full. The comparison with the kernel restores the element.
            Ok(false) if self.blocker.enforces_beside_nft() => {}
            Ok(false) => {
                self.end_bans(scope, &[target]);
                return Some(target);
            }
            Err(BlockError::Gone) => self.repair_missing_table(scope),
            Ok(true) | Err(_) => {}
        }
        None
    }

    /// Starts the command that must run before `ban`, which then waits for it. Returns false if there is no such
    /// command.
    pub(super) fn run_first(&mut self, ban: &Ban, seen: SystemTime) -> bool {
        self.table_repair.recent.insert(ban.probe.target);
        let runs = self.pending.has_room_for_command() && self.blocker.run_first(ban, seen);
        if runs {
            self.pending.await_command(*ban, seen);
        }
        runs
    }

    /// Queues the command alone if scans of the protocol only run it; returns a refusal if it does not run.
    pub(super) fn queue_command(&self, ban: &Ban, seen: SystemTime) -> Option<Refused> {
        if self.blocking == Blocking::On { self.blocker.queue_command(ban, seen) } else { None }
    }

    /// Blocks `bans` with every inline backend. Returns the refused ones with their reasons.
    pub(super) fn apply(&mut self, scope: &mut Scope<'_>, bans: &[BanContext]) -> Vec<Refused> {
        if bans.is_empty() {
            return Vec::new();
        }
        let refused = self.blocker.inline().flat_map(|backend| self.apply_with(scope, backend, bans)).collect();
        self.trap.bans_imposed(scope);
        refused
    }

    fn apply_with(&mut self, scope: &mut Scope<'_>, backend: Backend, bans: &[BanContext]) -> Vec<Refused> {
        let (now, targets) = (scope.now, bans.iter().map(|ban| ban.target));
        self.with_table(scope, backend, targets, |backend| backend.block(bans, now))
    }

    /// Runs `attempt` with `backend`, and again after a repair if the table was missing. Returns the refused targets.
    fn with_table(
        &mut self,
        scope: &mut Scope<'_>,
        backend: Backend,
        targets: impl Iterator<Item = BanTarget>,
        attempt: impl Fn(&mut dyn InlineBackend) -> Result<Vec<Refused>, BackendGone>,
    ) -> Vec<Refused> {
        let attempt = |blocker: &mut Blocker| blocker.backend(backend).map_or(Ok(Vec::new()), &attempt);
        attempt(&mut self.blocker)
            .or_else(|BackendGone| {
                self.repair_missing_table(scope);
                attempt(&mut self.blocker)
            })
            .unwrap_or_else(|BackendGone| Refused::all(backend, targets, &BlockError::Gone))
    }

    /// Reports the result of `ban` for every inline backend, schedules retries, and queues it for the slow backends.
    pub(super) fn commit(
        &mut self,
        scope: &mut Scope<'_>,
        ban: &Ban,
        seen: SystemTime,
        applied: SystemTime,
        refused: &[Refused],
    ) {
        let Scope { now, reporter, .. } = *scope;
        let target = ban.probe.target;
        let mut in_force = false;
        for backend in self.blocker.inline() {
            match refused.iter().find(|refused| (refused.backend, refused.target) == (backend, target)) {
                None => {
                    in_force = true;
                    reporter.metrics.reacted(applied.duration_since(seen).unwrap_or_default());
                    reporter.emit_blocked(ban, backend, seen, applied);
                }
                Some(refused) => {
                    self.pending.retry(*ban, seen, backend, now);
                    reporter.emit_refused(seen, refused);
                }
            }
        }
        if in_force {
            self.replace_inner_bans(scope, target, refused);
        }
        let refused = self.blocker.queue(self.blocker.context(ban, ban.expiry, seen), now);
        let queued = refused.is_empty() && self.blocker.has_slow_backends();
        for refused in &refused {
            reporter.emit_refused(seen, refused);
        }
        if !(in_force || queued) {
            // The source is not blocked, so its next probes must count again.
            scope.observer.engine.lift(target);
        }
    }

    /// Applies `ban` of an operator. Fails if no backend enforces it.
    pub(super) fn block_by_hand(&mut self, scope: &mut Scope<'_>, ban: BanContext) -> Result<(), String> {
        if !self.blocker.enforces() {
            return Err("blocking is disabled: scans are only logged".to_owned());
        }
        let mut refused = self.apply(scope, &[ban]);
        // One backend that enforces the ban is sufficient.
        let mut in_force = refused.len() < self.blocker.inline().count();
        let slow = self.blocker.queue(ban, scope.now);
        in_force |= slow.is_empty() && self.blocker.has_slow_backends();
        refused.extend(slow);
        if let Some(first) = refused.first()
            && !in_force
        {
            return Err(first.reason.clone());
        }
        for refused in &refused {
            scope.reporter.emit_refused(SystemTime::now(), refused);
        }
        self.replace_inner_bans(scope, ban.target, &refused);
        Ok(())
    }

    /// Ends the bans of prefixes inside `target` in every backend. The set cannot hold overlapping intervals, so the
    /// wider ban has replaced them, unless it is among the `refused` ones.
    fn replace_inner_bans(&mut self, scope: &mut Scope<'_>, target: BanTarget, refused: &[Refused]) {
        let is_refused = refused.iter().any(|one| (one.backend, one.target) == (Backend::Nft, target));
        let replaces = !is_refused && self.blocker.inline().any(|backend| backend == Backend::Nft);
        let (BanTarget::Prefix(outer), true) = (target, replaces) else { return };
        let is_inside = |inner: &BanTarget| match inner {
            BanTarget::Prefix(inner) => *inner != outer && outer.network().contains(&inner.network()),
            BanTarget::V4(_) | BanTarget::V6(_) | BanTarget::Link { .. } => false,
        };
        let inner: Vec<_> = scope.observer.engine.bans().map(|ban| ban.target).filter(is_inside).collect();
        if !inner.is_empty() {
            self.end_bans(scope, &inner);
        }
        for inner in inner {
            scope.reporter.emit_unblocked(inner, format!("the ban of {target} around it"));
        }
    }

    /// Ends the bans of `targets` in the engine and in all backends except nftables, from whose sets the caller removes
    /// them.
    pub(super) fn end_bans(&mut self, scope: &mut Scope<'_>, targets: &[BanTarget]) {
        // One at a time, so that each also takes back its strike.
        for target in targets {
            scope.observer.engine.lift(*target);
        }
        self.trap.forget_probes(targets, &mut self.blocker, scope.reporter);
        self.pending.remove(targets);
        for error in self.blocker.lift(targets) {
            scope.reporter.error(error);
        }
    }
}

/// Does the maintenance between batches.
impl Enforcement {
    /// When [`Enforcement::run_maintenance`] is next due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let (pending, trap) = (self.pending.next_retry(), self.trap.check_at);
        let (backends, repair) = (self.blocker.next_due(), self.table_repair.next_due());
        [pending, trap, backends, repair].into_iter().flatten().min()
    }

    /// Does the work that is due: reviews the trap, ends expired bans, restores bans after a repair, and retries
    /// refused bans.
    pub(super) fn run_maintenance(&mut self, scope: &mut Scope<'_>) {
        let now = scope.now;
        self.trap.check(scope, &mut self.blocker, &self.pending, self.blocking == Blocking::Suspended);
        self.blocker.run_due(now, scope.reporter);
        if let Some(table) = self.blocker.nft() {
            self.table_repair.complete(scope, table, &mut self.pending);
        }
        for _ in 0..RETRIES_PER_ROUND {
            let Some(retry) = self.pending.due_retry(now) else { break };
            self.retry_ban(scope, retry);
        }
    }

    fn retry_ban(&mut self, scope: &mut Scope<'_>, retry: Retry) {
        let now = scope.now;
        let Some(left) = retry.left(now) else { return };
        let Retry { ban, seen, backend, .. } = retry;
        let target = ban.probe.target;
        let attempt = self.blocker.context(&ban, left, seen);
        if !self.apply_with(scope, backend, &[attempt]).is_empty() {
            scope.reporter.metrics.failed(backend);
            return self.pending.retry_again(retry, now);
        }
        if !scope.observer.engine.is_blocked(now, target) {
            let ban = ActiveBan { grade: Some(ban.grade), ..ActiveBan::new(target, left) };
            scope.observer.engine.adopt(now, &ban);
        }
        scope.reporter.emit_blocked(&ban, backend, seen, SystemTime::now());
    }
}

/// Applies changes of the host and of the configuration.
impl Enforcement {
    pub(super) fn start(&mut self, scope: &mut Scope<'_>) {
        self.restart_trap(scope);
        if let Some(backend) = self.blocker.nft() {
            self.table_repair.report_foreign(scope, backend, None);
        }
    }

    /// Stops the kernel's own blocking, because no sensor reviews it from now on.
    pub(super) fn stop(&mut self, reporter: &Reporter) {
        self.own_sources.update(Vec::new(), &mut self.blocker, reporter);
        self.trap.stop(&mut self.blocker, reporter);
    }

    /// Applies a new snapshot of the host.
    pub(super) fn host_changed(&mut self, scope: &mut Scope<'_>) {
        self.update_allow_list(scope, Nft::follow_allow_list);
        self.guard_own_sources(scope);
        self.arm_trap(scope);
    }

    /// Updates the kernel's allow-list from the host's, and ends bans of other backends that conflict with it. `update`
    /// is [`Nft::replace_allow_list`] or [`Nft::follow_allow_list`].
    pub(super) fn update_allow_list(
        &mut self,
        scope: &mut Scope<'_>,
        update: fn(&mut Nft, &[IpNet]) -> Result<(), BlockError>,
    ) {
        let notes = self.blocker.protect(&scope.observer.host);
        notes.into_iter().for_each(|text| scope.reporter.emit_note(text));
        let allowed: Vec<IpNet> = scope.observer.host.allow.prefixes().collect();
        self.change_sets(scope, "cannot update the kernel's allow-list", |nft| update(nft, &allowed));
    }

    /// Suspends blocking: the trap monitors no ports, no backend receives a ban, and the bans in force remain.
    pub(super) fn start_trial(&mut self, scope: &mut Scope<'_>) {
        self.suspend_bans(scope, Blocking::Suspended);
        self.trap.suspend(&mut self.blocker, scope.reporter);
    }

    /// Resumes blocking, with these settings. Probes seen during the trial are not evidence for a ban.
    pub(super) fn end_trial(&mut self, scope: &mut Scope<'_>, settings: Settings) {
        self.blocking = Blocking::On;
        self.change_settings(scope, settings);
        self.restart_trap(scope);
    }

    fn suspend_bans(&mut self, scope: &mut Scope<'_>, blocking: Blocking) {
        self.blocking = blocking;
        scope.observer.engine.log_only();
        let waiting = self.pending.clear();
        self.end_bans(scope, &waiting);
        self.guard_own_sources(scope);
    }

    /// Disables blocking for the rest of the run.
    pub(super) fn log_only(&mut self, scope: &mut Scope<'_>) {
        self.suspend_bans(scope, Blocking::Off);
        self.trap.disarm(&mut self.blocker, scope.reporter);
        self.arm_trap(scope);
    }

    pub(super) fn reconfigure(&mut self, scope: &mut Scope<'_>, settings: Settings) {
        self.change_settings(scope, settings);
        self.arm_trap(scope);
    }

    fn change_settings(&mut self, scope: &mut Scope<'_>, settings: Settings) {
        scope.observer.engine.reconfigure(settings);
        if self.blocking != Blocking::On {
            scope.observer.engine.log_only();
        }
        self.trap.arming.forget_coverage(scope.reporter);
    }

    /// Called when the services of this host have started after a boot.
    pub(super) fn end_settling(&mut self, scope: &mut Scope<'_>) {
        scope.observer.engine.end_settling();
        self.arm_trap(scope);
    }

    /// Replaces the rules of the table; its sets keep their elements.
    pub(super) fn replace_ruleset(&mut self, scope: &mut Scope<'_>, wanted: RulesetSpec) {
        if let Some(backend) = self.blocker.nft() {
            match backend.replace_rules(wanted) {
                Ok(()) => scope.reporter.emit_note("table inet portsentry now has the rules of the new configuration"),
                Err(error) => {
                    scope.reporter.error(format!("cannot install the rules of the new configuration: {error}"));
                }
            }
        }
        self.restart_trap(scope);
    }

    /// Enables or disables connection tracking for connections to decoys.
    pub(super) fn track_decoys(&mut self, scope: &mut Scope<'_>, max_new_tracked: Option<u32>) {
        let Some(backend) = self.blocker.nft_with(|spec| spec.decoys.is_some()) else { return };
        if let Err(error) = backend.track_decoys(max_new_tracked) {
            scope.reporter.error(format!("cannot change the rules for decoys: {error}"));
        }
        self.reset_trap(scope);
    }

    /// Arms the trap with empty counters, because the sensor may have missed the earlier probes or judges them
    /// differently.
    fn restart_trap(&mut self, scope: &mut Scope<'_>) {
        if let Some((nft, rules)) = self.blocker.trap() {
            // If this fails, arming fails as well and is reported.
            let _ = trap_sets::forget_all_sources(&mut nft.table, rules);
        }
        self.reset_trap(scope);
    }

    /// Sets ports and interfaces again after another process changed them.
    pub(super) fn reset_trap(&mut self, scope: &mut Scope<'_>) {
        self.table_replaced(scope);
        self.arm_trap(scope);
    }

    /// Sets the interfaces again in a table that was repaired; the trap is armed later.
    fn table_replaced(&mut self, scope: &Scope<'_>) {
        self.trap.forget_ports();
        self.own_sources.forget();
        self.guard_own_sources(scope);
    }

    /// Makes the kernel guard the interfaces that the host lists; none while scans are only logged.
    fn guard_own_sources(&mut self, scope: &Scope<'_>) {
        let named = scope.observer.host.guarded.iter().map(|(index, _)| *index);
        let wanted = if self.blocking == Blocking::On { named.collect() } else { Vec::new() };
        self.own_sources.update(wanted, &mut self.blocker, scope.reporter);
    }

    pub(super) fn arm_trap(&mut self, scope: &mut Scope<'_>) {
        self.trap.arm(scope, &mut self.blocker, self.blocking == Blocking::Suspended);
    }
}

/// Reconciles the kernel with the engine.
impl Enforcement {
    /// Called when the engine has adopted `bans`.
    pub(super) fn bans_adopted(&mut self, now: Timestamp, bans: &[ActiveBan]) {
        if let Some(backend) = self.blocker.nft() {
            backend.require_prefix_sets(bans.iter().map(|ban| ban.target));
        }
        // These bans count towards the ceilings, which the trap must not exceed.
        self.trap.check_soon(now);
    }

    /// Adds bans from the ledger to `backend`, for their remaining times.
    pub(super) fn restore(&mut self, scope: &mut Scope<'_>, backend: Backend, bans: &[ActiveBan]) {
        match summary(&self.restore_in_backend(scope, backend, bans)) {
            None => scope.reporter.emit(EventKind::Restored { bans: bans.len(), backend }),
            Some(error) => {
                let name = backend.name();
                scope.reporter.error(format!("cannot restore bans of the ledger ({name}): {error}"));
            }
        }
    }

    /// Restores bans that `backend` lost without a notification. The kernel is queried again, because it may have
    /// changed since the comparison. A missing table is repaired as a whole.
    pub(super) fn repair(&mut self, scope: &mut Scope<'_>, backend: Backend, targets: &[BanTarget]) {
        let missing = self.blocker.missing(backend, targets).into_iter();
        let missing = missing.filter(|target| !self.pending.awaits_command(*target));
        let engine = &scope.observer.engine;
        let bans: Vec<_> = missing.filter_map(|target| engine.standing_of(scope.now, target)).collect();
        if bans.is_empty() {
            return;
        }
        let refused = self.restore_in_backend(scope, backend, &bans);
        let repaired = bans.len().saturating_sub(refused.len());
        if repaired > 0 {
            scope.reporter.metrics.repaired.add(repaired as u64);
            scope.reporter.emit(EventKind::Repaired { bans: repaired, backend });
        }
        if let Some(error) = summary(&refused) {
            let failure = match backend {
                Backend::Route => "cannot restore a missing route",
                _ => "cannot restore bans that are missing in the kernel",
            };
            scope.reporter.error(format!("{failure}: {error}"));
        }
    }

    fn restore_in_backend(&mut self, scope: &mut Scope<'_>, backend: Backend, bans: &[ActiveBan]) -> Vec<Refused> {
        let (now, targets) = (scope.now, bans.iter().map(|ban| ban.target));
        self.with_table(scope, backend, targets, |backend| backend.restore(bans, now))
    }

    pub(super) fn repair_table(&mut self, scope: &mut Scope<'_>, damage: Damage<'_>) {
        let Some(table) = self.blocker.nft() else { return };
        if self.table_repair.repair(scope, table, damage, &mut self.pending) {
            self.table_replaced(scope);
        }
    }

    /// Creates the table again, unless that was just done.
    fn repair_missing_table(&mut self, scope: &mut Scope<'_>) {
        if self.table_repair.may_repair_at(scope.now) {
            self.repair_table(scope, Damage::Deleted(None));
        }
    }

    /// Applies `change` to the nftables sets. A missing table is repaired as a whole; any other error is logged,
    /// prefixed with `failure`.
    pub(super) fn change_sets(
        &mut self,
        scope: &mut Scope<'_>,
        failure: &str,
        change: impl FnOnce(&mut Nft) -> Result<(), BlockError>,
    ) {
        match self.blocker.nft().map_or(Ok(()), change) {
            Ok(()) => {}
            Err(BlockError::Gone) => self.repair_missing_table(scope),
            Err(error) => scope.reporter.error(format!("{failure}: {error}")),
        }
    }
}

/// The first of `refused` and the number of the others, for the log.
fn summary(refused: &[Refused]) -> Option<String> {
    let [Refused { target, reason, .. }, others @ ..] = refused else { return None };
    let others = if others.is_empty() { String::new() } else { format!(", and {} others", others.len()) };
    Some(format!("{target}{others}: {reason}"))
}
