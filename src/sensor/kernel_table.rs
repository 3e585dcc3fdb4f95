//! Keeps `table inet portsentry` what it should be, bans aside: its rules, the ports of the trap, and the interfaces at which own
//! addresses are guarded.

use super::blocker::Blocker;
use super::observer::Observer;
use super::own_source::OwnSourceGuard;
use super::pending_bans::PendingBans;
use super::reporter::Reporter;
use super::table_repair::{Damage, TableRepair};
use super::trap::TrapControl;
use crate::enforce::nft::RulesetSpec;
use crate::engine::Verdict;
use crate::types::{BanTarget, Timestamp};
use crate::wire::Packet;

/// What a step works with: its time, the engine with the host, and where it reports.
pub(super) struct Scope<'a> {
    pub(super) now: Timestamp,
    pub(super) observer: &'a mut Observer,
    pub(super) reporter: &'a Reporter,
}

#[derive(Default)]
pub(super) struct KernelTable {
    repair: TableRepair,
    trap: TrapControl,
    own_sources: OwnSourceGuard,
}

impl KernelTable {
    pub(super) fn start(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.start_over(scope, blocker);
        if let Some(backend) = &mut blocker.nft {
            self.repair.report_foreign(backend, None, scope.reporter);
        }
    }

    /// Has the kernel block nothing by itself while no sensor reviews it.
    pub(super) fn stop(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        self.own_sources.clear(blocker, reporter);
        self.trap.stop(blocker, reporter);
    }

    /// Notes what `packet` was no evidence of, where the trap may have counted it, and that it carries an address of this host.
    pub(super) fn inspect(
        &mut self,
        now: Timestamp,
        packet: &Packet,
        verdict: Verdict,
        observer: &Observer,
        reporter: &Reporter,
    ) {
        self.trap.excuse(now, packet, verdict, observer.engine().forgiven());
        self.own_sources.inspect(packet, observer.host(), reporter);
    }

    /// Records that a packet of a blocked source was seen: a repair restores its ban first.
    pub(super) fn saw_blocked(&mut self, target: BanTarget) {
        self.repair.saw_blocked(target);
    }

    /// Notes that the sensor took its own verdict on `target` back.
    pub(super) fn acquit(&mut self, now: Timestamp, target: BanTarget) {
        self.trap.acquit(now, target);
    }

    /// Gives the table other rules; its sets keep their elements.
    pub(super) fn replace_ruleset(&mut self, scope: &Scope<'_>, blocker: &mut Blocker, wanted: RulesetSpec) {
        match blocker.nft.as_mut().map(|backend| backend.replace_rules(wanted)) {
            Some(Ok(())) => scope.reporter.note("table inet portsentry has the rules of the new settings"),
            None => {}
            Some(Err(error)) => {
                scope.reporter.error(format!("the rules of the new settings could not be laid: {error}"))
            }
        }
        self.start_over(scope, blocker);
    }

    /// Has connections to decoys tracked or not.
    pub(super) fn track_decoys(&mut self, scope: &Scope<'_>, blocker: &mut Blocker, max_new_tracked: Option<u32>) {
        let Some(backend) = &mut blocker.nft else { return };
        let Some(decoys) = &mut backend.spec.decoys else { return };
        decoys.max_new_tracked = max_new_tracked;
        if let Err(error) = backend.repair() {
            scope.reporter.error(format!("the rules for decoys could not be changed: {error}"));
        }
        self.reset(scope, blocker);
    }

    /// Arms the trap, which counts from zero: the sensor may not have seen what was counted before, or judges it otherwise.
    fn start_over(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        TrapControl::forget_all_probes(blocker);
        self.reset(scope, blocker);
    }

    /// Arms the trap again, whatever others made it watch.
    pub(super) fn reset(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.own_sources.forget();
        self.guard(scope, blocker);
        self.trap.forget_ports();
        self.arm(scope, blocker);
    }

    pub(super) fn guard(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.own_sources.update(blocker, scope.observer.host(), scope.reporter);
    }

    pub(super) fn arm(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.trap.arm(scope.now, blocker, scope.observer, scope.reporter);
    }

    /// Arms the trap by other settings of the engine.
    pub(super) fn reconfigured(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.trap.forget_coverage(scope.reporter);
        self.arm(scope, blocker);
    }

    /// Has the trap watch nothing, and the kernel guard no interface, until [`KernelTable::resume`].
    pub(super) fn pause(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.guard(scope, blocker);
        self.trap.pause(blocker, scope.reporter);
    }

    /// Goes on after [`KernelTable::pause`]. What was probed meanwhile is no evidence for a ban.
    pub(super) fn resume(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.trap.forget_coverage(scope.reporter);
        self.trap.resume();
        self.start_over(scope, blocker);
    }

    /// Removes the trap for good, and has the kernel guard no interface.
    pub(super) fn disarm(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.guard(scope, blocker);
        self.trap.disarm(blocker, scope.reporter);
        self.arm(scope, blocker);
    }

    /// Has the next [`KernelTable::check`] review what the trap has caught.
    pub(super) fn check_soon(&mut self, now: Timestamp) {
        self.trap.check_soon(now);
    }

    /// Has the trap count the probes of `targets` from zero.
    pub(super) fn forget_probes(&mut self, targets: &[BanTarget], blocker: &mut Blocker, reporter: &Reporter) {
        self.trap.forget_probes(targets, blocker, reporter);
    }
}

/// Checks and repairs.
impl KernelTable {
    /// When [`KernelTable::check`] or [`KernelTable::complete`] has something to do.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.trap.next_due().into_iter().chain(self.repair.next_due()).min()
    }

    /// Arms the trap with the ports of now and reviews what it caught, if that is due.
    pub(super) fn check(&mut self, scope: &mut Scope<'_>, blocker: &mut Blocker, pending: &PendingBans) {
        self.trap.check(scope.now, blocker, scope.observer, pending, scope.reporter);
    }

    /// Restores the bans that the last repair left out, if that is due.
    pub(super) fn complete(&mut self, scope: &mut Scope<'_>, blocker: &mut Blocker, pending: &mut PendingBans) {
        if let Some(table) = &mut blocker.nft {
            self.repair.complete(scope.now, table, scope.observer, pending, scope.reporter);
        }
    }

    /// True while bans that the last repair left out are not in the kernel.
    pub(super) fn is_incomplete(&self) -> bool {
        self.repair.is_incomplete()
    }

    /// Repairs the table after `damage`.
    pub(super) fn repair(
        &mut self,
        scope: &mut Scope<'_>,
        blocker: &mut Blocker,
        pending: &mut PendingBans,
        damage: Damage<'_>,
    ) {
        let Some(table) = &mut blocker.nft else { return };
        if self.repair.repair(scope.now, table, damage, scope.observer, pending, scope.reporter) {
            self.trap.forget_ports();
            self.own_sources.forget();
            self.guard(scope, blocker);
        }
    }

    /// Creates the table again, unless that was just done.
    pub(super) fn repair_missing(&mut self, scope: &mut Scope<'_>, blocker: &mut Blocker, pending: &mut PendingBans) {
        if self.repair.may_repair_now() {
            self.repair(scope, blocker, pending, Damage::Deleted(None));
        }
    }
}
