//! What the kernel does by itself between two bans: the trap, which counts probes and bans, and dropping frames with an
//! own source address. Both need rules of the table and follow the snapshot of the host.

use super::blocker::Blocker;
use super::own_source::OwnSourceGuard;
use super::reporter::Reporter;
use super::scope::Scope;
use super::trap::TrapControl;
use crate::engine::Verdict;
use crate::wire::Packet;

#[derive(Default)]
pub(super) struct KernelGuards {
    pub(super) trap: TrapControl,
    own_sources: OwnSourceGuard,
}

impl KernelGuards {
    /// Excuses the trap's count of `packet` if it was not evidence, and checks whether its source is an address of this
    /// host.
    pub(super) fn inspect(&mut self, scope: &Scope<'_>, packet: &Packet, verdict: Verdict) {
        self.trap.excuse(scope.now, packet, verdict, scope.observer.engine().forgiven());
        self.own_sources.inspect(packet, scope.observer.host(), scope.reporter);
    }

    /// Arms the trap with empty counters, because the sensor may have missed the earlier probes or judges them
    /// differently.
    pub(super) fn start(&mut self, scope: &mut Scope<'_>, blocker: &mut Blocker) {
        TrapControl::forget_all_probes(blocker);
        self.reset(scope, blocker);
    }

    /// Sets ports and interfaces again after another process changed them.
    pub(super) fn reset(&mut self, scope: &mut Scope<'_>, blocker: &mut Blocker) {
        self.table_replaced(scope, blocker);
        self.arm_trap(scope, blocker);
    }

    /// Sets the interfaces again in a table that was repaired; the trap is armed later.
    pub(super) fn table_replaced(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.trap.forget_ports();
        self.own_sources.forget();
        self.guard_own_sources(scope, blocker);
    }

    pub(super) fn guard_own_sources(&mut self, scope: &Scope<'_>, blocker: &mut Blocker) {
        self.own_sources.update(blocker, scope.observer.host(), scope.reporter);
    }

    pub(super) fn arm_trap(&mut self, scope: &mut Scope<'_>, blocker: &mut Blocker) {
        self.trap.arm(scope.now, blocker, scope.observer, scope.reporter);
    }

    /// Stops both, because no sensor reviews them from now on.
    pub(super) fn stop(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        self.own_sources.clear(blocker, reporter);
        self.trap.stop(blocker, reporter);
    }
}
