//! Coordinates the engine and the backends between the batches of packets: maintenance, changes of the host and of the
//! configuration, reconciliation with the kernel, and the bans of operators.

use std::sync::Arc;
use std::time::Duration;

use super::blocker::Blocker;
use super::enforcement::Enforcement;
use super::guest_bans::{GuestBan, GuestBans};
use super::observer::{Observer, Scope};
use super::reporter::Reporter;
use crate::enforce::BanContext;
use crate::enforce::nft::BlockError;
use crate::engine::{ActiveBan, Host};
use crate::events::event::EventKind;
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

/// Maximum number of bans of exempt targets removed per maintenance round, which takes about 2 ms.
const EXEMPT_PER_ROUND: usize = 256;

/// Delay before the next such round. Each removed ban causes a log line, and the event queue must not overflow.
const EXEMPT_ROUND_DELAY: Duration = Duration::from_millis(50);

/// A sample of the bans that should be in force in an inline backend, for the comparison with the kernel.
#[derive(Debug)]
pub struct BanSample {
    pub backend: Backend,
    /// Newly sampled bans.
    pub fresh: Vec<BanTarget>,
    /// Targets of the caller's list that should still be banned.
    pub again: Vec<BanTarget>,
}

impl BanSample {
    /// True if there is nothing to compare with the kernel.
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.again.is_empty()
    }
}

/// Owns the engine, the backends and the reporter, and passes each component what it needs from the others.
pub(super) struct BanController {
    pub(super) observer: Observer,
    pub(super) enforcement: Enforcement,
    pub(super) guest_bans: GuestBans,
    /// When to remove bans of targets that have become exempt; `None` while there are none.
    exempt_check_at: Option<Timestamp>,
    pub(super) reporter: Reporter,
}

impl BanController {
    pub(super) fn new(observer: Observer, blocker: Blocker, reporter: Reporter) -> Self {
        Self {
            observer,
            enforcement: Enforcement::new(blocker),
            guest_bans: GuestBans::default(),
            exempt_check_at: None,
            reporter,
        }
    }

    /// The backends, and what they work with at `now`.
    pub(super) fn enforcement_at(&mut self, now: Timestamp) -> (&mut Enforcement, Scope<'_>) {
        (&mut self.enforcement, Scope { now, observer: &mut self.observer, reporter: &self.reporter })
    }
}

/// Maintenance between batches.
impl BanController {
    /// Time at which [`BanController::run_maintenance`] has work to do.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let (observer, enforcement) = (self.observer.next_due(), self.enforcement.next_due());
        [observer, enforcement, self.exempt_check_at].into_iter().flatten().min()
    }

    /// Runs the maintenance that is due: removes bans of exempt targets and maintains the enforcement.
    pub(super) fn run_maintenance(&mut self, now: Timestamp) {
        if self.exempt_check_at.is_some_and(|at| at <= now) {
            self.remove_exempt_bans(now);
        }
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.run_maintenance(&mut scope);
        self.observer.refresh_checksums(now);
    }

    /// Removes bans of targets that have become exempt. The kernel accepts their packets in any case, but a leftover
    /// ban would mislead readers of the set and take effect again when the exemption ends.
    fn remove_exempt_bans(&mut self, now: Timestamp) {
        let Observer { engine, host, .. } = &mut self.observer;
        let exempt = |ban: ActiveBan| Some((ban.target, host.allow.protects_target(ban.target)?));
        let exempt: Vec<_> = engine.bans().filter_map(exempt).take(EXEMPT_PER_ROUND).collect();
        self.exempt_check_at = (exempt.len() == EXEMPT_PER_ROUND).then(|| now.after(EXEMPT_ROUND_DELAY));
        let targets: Vec<_> = exempt.iter().map(|(target, _)| *target).collect();
        let (enforcement, mut scope) = self.enforcement_at(now);
        // Ended in the engine first, so that a table repair does not restore them.
        enforcement.end_bans(&mut scope, &targets);
        enforcement.change_sets(&mut scope, "cannot lift bans of protected sources", |nft| nft.lift(&targets));
        for (target, protection) in exempt {
            self.reporter.emit_exempt(target, protection);
        }
    }
}

/// Changes of the host and of the configuration.
impl BanController {
    pub(super) fn start(&mut self, now: Timestamp) {
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.start(&mut scope);
        self.reporter.emit(EventKind::Started);
    }

    pub(super) fn stop(&mut self) {
        self.enforcement.stop(&self.reporter);
    }

    /// Replaces the snapshot of the host.
    pub(super) fn change_host(&mut self, now: Timestamp, host: Arc<Host>) {
        let mut departed = self.guest_bans.departed(&host);
        departed.extend(self.observer.bans_on_missing_links(&host));
        let more_exempt = self.observer.change_host(now, host);
        self.lift_departed(now, &departed);
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.host_changed(&mut scope);
        if more_exempt {
            // The trap may have blocked one of the newly exempt sources just before.
            enforcement.trap.check_soon(now);
            self.exempt_check_at = Some(now);
        }
    }

    /// Ends the bans of guests and link-local sources whose interfaces are gone: the next guest may get the same
    /// address, and the next interface the same index.
    fn lift_departed(&mut self, now: Timestamp, departed: &[BanTarget]) {
        for target in departed {
            match self.unblock(now, &[*target]) {
                Ok(unblocked) if unblocked.is_empty() => {}
                Ok(_) => self.reporter.emit_unblocked(*target, "portsentry, because its interface no longer exists"),
                Err(error) => self.reporter.error(format!(
                    "cannot remove the ban of {target} after its interface disappeared; it stays: {error}"
                )),
            }
        }
    }

    /// Tracks guest bans of earlier runs, which the sensor has adopted, and bans whose bridge ports have just been
    /// found. Ends those without a bridge port.
    pub(super) fn follow_guests(&mut self, now: Timestamp, bans: Vec<GuestBan>) {
        // An operator may have replaced the ban meanwhile.
        let engine = &self.observer.engine;
        let on_evidence = |ban: &GuestBan| engine.standing_of(now, ban.target).is_some_and(|one| one.grade.is_some());
        for ban in bans.into_iter().filter(on_evidence) {
            self.guest_bans.forget(ban.target);
            self.guest_bans.insert(ban);
        }
        let departed = self.guest_bans.departed(&self.observer.host);
        self.lift_departed(now, &departed);
    }
}

/// Reconciliation of the kernel with the engine.
impl BanController {
    /// Adopts bans that the kernel holds and that an earlier run or another program made.
    pub(super) fn adopt(&mut self, now: Timestamp, bans: &[ActiveBan]) {
        for ban in bans {
            // The element of a guest's ban says nothing new about it.
            if self.observer.engine.adopt(now, ban) {
                self.guest_bans.forget(ban.target);
            }
        }
        if bans.iter().any(|ban| self.observer.host.allow.protects_target(ban.target).is_some()) {
            self.exempt_check_at = Some(now);
        }
        self.enforcement.bans_adopted(now, bans);
    }

    /// Reviews `elements`, which came with a ruleset that `by` loaded. Elements that are not bans are removed from the
    /// kernel's sets; the others get the remaining time of their bans.
    pub(super) fn review_loaded(&mut self, now: Timestamp, elements: &[BanTarget], by: &str) {
        let engine = &self.observer.engine;
        let bans: Vec<_> = elements.iter().filter_map(|target| engine.standing_of(now, *target)).collect();
        let stale = elements.iter().copied().filter(|target| engine.standing_of(now, *target).is_none());
        let stale: Vec<BanTarget> = stale.collect();
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.change_sets(&mut scope, "cannot compare the elements of a loaded ruleset with the bans", |nft| {
            nft.lift(&stale)?;
            nft.replace(&bans)
        });
        self.reporter.emit_note(format!(
            "{by} loaded a ruleset with elements of table inet portsentry; bans, which keep their remaining time: \
             {}, other elements, which were removed: {}. To save a ruleset without them, see \
             interoperability.md in /usr/share/doc/portsentry-nft/docs",
            bans.len(),
            stale.len()
        ));
    }

    /// Replaces elements that another program added with host bits. Such elements match no packet.
    pub(super) fn mask_elements(&mut self, now: Timestamp, elements: &[(BanTarget, Expiry)]) {
        let wrong: Vec<BanTarget> = elements.iter().map(|(target, _)| *target).collect();
        let masked: Vec<_> = elements.iter().map(|(target, expiry)| (target.masked(), *expiry)).collect();
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.change_sets(&mut scope, "cannot replace elements with host bits", |nft| {
            nft.lift(&wrong)?;
            nft.block(&masked)
        });
        let bans: Vec<_> = masked.iter().map(|(target, expiry)| ActiveBan::new(*target, *expiry)).collect();
        self.adopt(now, &bans);
    }

    /// Takes a sample of at most `most` bans for each inline backend; each call samples other ones. Keeps those targets
    /// of `again`, missing at the last comparison, that should still be banned.
    pub(super) fn sample(
        &mut self,
        now: Timestamp,
        most: usize,
        again: &[(Backend, Vec<BanTarget>)],
    ) -> Vec<BanSample> {
        let mut sampled = Vec::new();
        self.observer.engine.sample(now, &mut |target| sampled.push(target), most);
        sampled.retain(|target| !self.enforcement.pending.awaits_command(*target));
        let (engine, blocker) = (&self.observer.engine, &self.enforcement.blocker);
        let samples: Vec<BanSample> = blocker
            .inline()
            .map(|backend| {
                let wanted = |target: &BanTarget| blocker.wants(backend, *target);
                let again = again.iter().filter(|(one, _)| *one == backend).flat_map(|(_, targets)| targets).copied();
                let again = again.filter(|target| engine.is_blocked(now, *target) && wanted(target)).collect();
                BanSample { backend, fresh: sampled.iter().copied().filter(wanted).collect(), again }
            })
            .collect();
        let missing: usize = samples.iter().map(|sample| sample.again.len()).sum();
        self.reporter.metrics.missing.set(missing as u64);
        samples
    }

    /// Adds bans to the engine and to `backend`, each for its remaining time.
    pub(super) fn restore(&mut self, now: Timestamp, backend: Backend, bans: &[ActiveBan]) {
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.restore(&mut scope, backend, bans);
        self.adopt(now, bans);
    }

    /// Ends the ban of `target`, whose object in `backend`, such as a route, was deleted. Deleting it is an unblock
    /// request, like deleting an element of the nftables sets.
    pub(super) fn object_removed(&mut self, now: Timestamp, backend: Backend, target: BanTarget) {
        // The object may have been replaced or restored since the notification.
        if !self.observer.engine.is_blocked(now, target)
            || self.enforcement.blocker.missing(backend, &[target]) != [target]
        {
            return;
        }
        let object = backend.title();
        match self.unblock(now, &[target]) {
            Ok(_) => self.reporter.emit_unblocked(target, format!("a program that deleted its {object}")),
            Err(error) => self
                .reporter
                .error(format!("cannot remove the ban of {target} after its {object} was deleted; it stays: {error}")),
        }
    }
}

/// Bans that start or end without a packet.
impl BanController {
    /// Applies `ban` on the request of an operator.
    pub(super) fn block(&mut self, now: Timestamp, ban: BanContext) -> Result<(), String> {
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.block_by_hand(&mut scope, ban)?;
        self.adopt(now, &[ActiveBan::new(ban.target, ban.expiry)]);
        Ok(())
    }

    /// Ends the bans of `targets`; returns the targets that were blocked.
    pub(super) fn unblock(&mut self, now: Timestamp, targets: &[BanTarget]) -> Result<Vec<BanTarget>, String> {
        let mut unblocked = Vec::new();
        // A link-local address without a link also stands for its bans on each link.
        let bans = self.observer.engine.bans().map(|ban| ban.target);
        let on_links =
            bans.filter(|ban| matches!(ban, BanTarget::Link { .. }) && targets.contains(&ban.on_every_link()));
        let targets: Vec<_> = targets.iter().copied().chain(on_links).collect();
        for target in &targets {
            let was_in_set = self.enforcement.blocker.remove_element(*target)?;
            if was_in_set || self.observer.engine.is_blocked(now, *target) {
                unblocked.push(*target);
            }
        }
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.end_bans(&mut scope, &targets);
        Ok(unblocked)
    }

    /// Ends all bans; returns their targets.
    pub(super) fn unblock_all(&mut self, now: Timestamp) -> Result<Vec<BanTarget>, String> {
        let targets: Vec<BanTarget> = self.observer.engine.bans().map(|ban| ban.target).collect();
        match self.enforcement.blocker.nft().map_or(Ok(()), |nft| nft.lift(&targets)) {
            Ok(()) | Err(BlockError::Gone) => {}
            Err(error) => return Err(error.to_string()),
        }
        let (enforcement, mut scope) = self.enforcement_at(now);
        enforcement.end_bans(&mut scope, &targets);
        Ok(targets)
    }
}
