//! Controls the kernel's trap: arms it with the closed ports, and reviews the sources that it blocked.
//!
//! The trap blocks sources without the sensor. The sensor sees the same packets and reaches the same verdict within
//! milliseconds, with a reason, a ledger record and the right ban length. If it does not, the trap's ban is removed
//! only for a reason that the sensor saw: the ports are in use, the kernel drops such packets, the source has become
//! exempt, or the ceilings withhold the ban. Without such a reason (packets were lost) the ban is shortened. If it were
//! removed, a scan that the sensor cannot see would end its own ban.
//!
//! While the sensor's own ceilings have no room for as many bans as the trap can impose at once, the trap imposes none.

use std::collections::HashSet;
use std::time::Duration;

use super::blocker::Blocker;
use super::observer::{Observer, Scope};
use super::pending_bans::PendingBans;
use super::reporter::Reporter;
use super::trap_arming::TrapArming;
use super::trap_review::{Counting, Review, TrapReview, UNCONFIRMED_FOR};
use crate::enforce::nft::{
    BlockError, DecoyCounts, HoldCounts, Nft, RulesetSpec, Table, Trap, TrapContents, trap_sets,
};
use crate::engine::{CAPPED_BAN, Verdict};
use crate::events::event::EventKind;
use crate::types::{BanTarget, Expiry, Protocol, Timestamp, first_and_more, update};
use crate::wire::Packet;

/// Interval at which the ports are compared and the trapped sources reviewed. New listeners do not need a shorter one:
/// the rules of the trap check for a socket themselves.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of sources whose counts are reset one by one.
const MAX_SINGLE_RESETS: usize = 512;

/// Maximum number of connected sources added or removed per round, about 0.3 ms; the rest follows in later rounds.
const MAX_PEER_CHANGES: usize = 128;

#[derive(Default)]
pub(super) struct TrapControl {
    pub(super) arming: TrapArming,
    /// Time of the next review; `None` without a trap.
    pub(super) check_at: Option<Timestamp>,
    /// Last values of the kernel's counters of held packets.
    hold_counts: HoldCounts,
    /// Last values of the kernel's decoy counters.
    decoy_counts: DecoyCounts,
    /// Connected sources in the kernel's set, to which more closed ports are forgiven; `None` if unknown.
    peers: Option<HashSet<BanTarget>>,
    review: TrapReview,
    /// The last logged error, so that it is not repeated.
    last_error: Option<String>,
}

impl TrapControl {
    /// Makes the next [`TrapControl::arm`] set the ports regardless of the last known state.
    pub(super) fn forget_ports(&mut self) {
        self.arming.forget();
        self.peers = None;
    }

    /// Makes the next [`TrapControl::check`] review the trapped sources, if there is a trap.
    pub(super) fn check_soon(&mut self, now: Timestamp) {
        self.check_at = self.check_at.map(|_| now);
    }

    /// Makes the next [`TrapControl::check`] stop the trap's bans if new bans have reached a ceiling.
    pub(super) fn bans_imposed(&mut self, scope: &mut Scope<'_>) {
        if self.arming.may_ban() && !TrapArming::has_room(scope) {
            self.check_soon(scope.now);
        }
    }

    /// Makes the kernel monitor the ports that are closed now; the trap monitors none while it is `suspended`. The
    /// kernel's allow-list must already be current.
    pub(super) fn arm(&mut self, scope: &mut Scope<'_>, blocker: &mut Blocker, suspended: bool) {
        let Some(backend) = blocker.nft_with(RulesetSpec::watches_ports) else {
            return self.forget(scope.reporter);
        };
        self.check_at = Some(scope.now.after(POLL_INTERVAL));
        match self.arming.arm(scope, backend, suspended) {
            Ok(true) => self.last_error = None,
            Ok(false) => {}
            // The trap is armed again once the table has been created.
            Err(BlockError::Gone) => {}
            Err(error) => {
                let text = format!("cannot enable the kernel's trap: {error}; the sensor still detects scans");
                self.report(text, scope.reporter);
            }
        }
    }

    /// Records a packet that is not evidence but that the trap may have counted.
    pub(super) fn excuse(&mut self, now: Timestamp, packet: &Packet, verdict: Verdict, withdrawn: &[(Protocol, u16)]) {
        if self.arming.is_armed() {
            self.review.excuse(now, packet, verdict, withdrawn, |port| self.arming.watches(port));
        }
    }

    /// Records that the sensor withdrew its own verdict on `target`.
    pub(super) fn refute(&mut self, now: Timestamp, target: BanTarget) {
        self.review.refute(now, target);
    }

    /// Forgets the state of a trap that no longer exists.
    fn forget(&mut self, reporter: &Reporter) {
        self.arming.forget();
        self.arming.forget_coverage(reporter);
        self.arming.update_metrics(reporter);
        *self = Self { arming: std::mem::take(&mut self.arming), ..Self::default() };
    }

    /// Removes the trap and its rules.
    pub(super) fn disarm(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        self.suspend(blocker, reporter);
        let Some(backend) = blocker.nft_with(|spec| spec.trap.is_some()) else { return };
        if let Err(error) = backend.remove_trap() {
            let text = "cannot remove the rules of the kernel's trap";
            self.report(format!("{text}: {error}; the trap no longer monitors any port"), reporter);
        }
        self.forget(reporter);
    }

    /// Makes the trap monitor no ports until it is armed again. Decoys keep their ports.
    pub(super) fn suspend(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        let Some((nft, rules)) = blocker.trap() else { return };
        let suspended = self.arming.suspend(&mut nft.table, rules);
        self.arming.update_metrics(reporter);
        self.report_failure(suspended, "cannot remove ports from the kernel's trap", reporter);
    }

    /// Removes all ports from the trap and from the decoys, because no thread serves them now.
    pub(super) fn stop(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        self.suspend(blocker, reporter);
        if let Some(backend) = blocker.nft_with(|spec| spec.decoys.is_some()) {
            // Without a listener the rules of decoys have no effect.
            let _ = trap_sets::arm(&mut backend.table, TrapContents { tcp: Some(&[]), ..TrapContents::default() });
        }
    }

    /// If due, arms the trap with the currently closed ports and reviews the trapped sources.
    pub(super) fn check(
        &mut self,
        scope: &mut Scope<'_>,
        blocker: &mut Blocker,
        pending: &PendingBans,
        suspended: bool,
    ) {
        let (now, reporter) = (scope.now, scope.reporter);
        if self.check_at.is_none_or(|at| at > now) {
            return;
        }
        self.arm(scope, blocker, suspended);
        if let Some(backend) = blocker.nft_with(|spec| spec.decoys.is_some())
            && let Ok(counts) = trap_sets::decoy_counts(&mut backend.table)
        {
            let last = std::mem::replace(&mut self.decoy_counts, counts);
            reporter.metrics.decoy_syns.add(since(counts.syns, last.syns));
            reporter.metrics.decoy_answers.add(since(counts.answers, last.answers));
        }
        let Some((nft, rules)) = blocker.trap() else { return };
        let updated = self.update_peers(now, &mut nft.table, scope.observer);
        self.report_failure(updated, "cannot add connected sources to the kernel's trap", reporter);
        let reviewed = trap_sets::trap_banned(&mut nft.table).map(|trap_banned| {
            let review = self.review(now, &trap_banned, (rules, suspended), scope.observer, pending);
            self.apply(scope, review, nft);
        });
        self.report_failure(reviewed, "cannot read the sources blocked by the kernel's trap", reporter);
        if rules.hold.is_some()
            && let Ok(counts) = trap_sets::hold_counts(&mut nft.table)
        {
            let last = std::mem::replace(&mut self.hold_counts, counts);
            reporter.metrics.held.add(since(counts.dropped, last.dropped));
            reporter.metrics.hold_full.add(since(counts.full, last.full));
        }
        if let Ok(Some(usage)) = trap_sets::usage(&mut nft.table, rules) {
            reporter.metrics.trap_probed.set(usage.probed.into());
            reporter.metrics.trap_suspects.set(usage.suspects.into());
        }
    }

    /// Updates the kernel's set with the sources that `observer` forgives more ports, as far as one round allows.
    fn update_peers(&mut self, now: Timestamp, table: &mut Table, observer: &Observer) -> Result<(), BlockError> {
        let wanted: HashSet<BanTarget> = observer.engine.tolerated_peers(now, &observer.host).collect();
        let mut known = match self.peers.take() {
            Some(known) => known,
            None => {
                trap_sets::clear_peers(table)?;
                HashSet::new()
            }
        };
        let out: Vec<BanTarget> = known.difference(&wanted).copied().take(MAX_PEER_CHANGES).collect();
        let into: Vec<BanTarget> = wanted.difference(&known).copied().take(MAX_PEER_CHANGES).collect();
        if !(out.is_empty() && into.is_empty()) {
            trap_sets::change_peers(table, &out, &into)?;
            out.iter().for_each(|peer| _ = known.remove(peer));
            known.extend(into);
        }
        self.peers = Some(known);
        Ok(())
    }

    /// Compares the trapped sources with the sensor's verdicts.
    fn review(
        &mut self,
        now: Timestamp,
        trap_banned: &[BanTarget],
        (rules, suspended): (Trap, bool),
        observer: &Observer,
        pending: &PendingBans,
    ) -> Review {
        // The sensor also decided to block these, although a backend has refused so far.
        let refused: HashSet<BanTarget> = pending.refused().collect();
        let counting = Counting { forgiven: rules.forgiven, window: rules.window };
        let trap_banned = trap_banned.iter().copied().filter(|target| !refused.contains(target));
        self.review.review(now, trap_banned, (counting, suspended), &observer.engine, &observer.host)
    }

    /// Removes or shortens the trap's bans that the review does not confirm, and resets the trap's counts of all
    /// reviewed sources. Otherwise a single further port would be enough when their bans end.
    fn apply(&mut self, Scope { now, observer, reporter }: &mut Scope<'_>, review: Review, nft: &mut Nft) {
        let Review { confirmed, in_prefix, exempt, withheld, excused, unexplained } = review;
        // A full set had no room for these: they are not blocked.
        let unfounded = [&withheld[..], &excused, &unexplained].concat();
        let missing: HashSet<BanTarget> = nft.table.missing(&unfounded).unwrap_or_default().into_iter().collect();
        let is_blocked = |target: &BanTarget| !missing.contains(target);
        let [withheld, excused, unexplained] = [withheld, excused, unexplained]
            .map(|targets| targets.into_iter().filter(is_blocked).collect::<Vec<BanTarget>>());
        let (unexplained, surplus): (Vec<_>, Vec<_>) =
            unexplained.into_iter().partition(|target| observer.engine.adopt_capped(*now, *target));
        let exempt_targets: Vec<BanTarget> = exempt.iter().map(|(target, _)| *target).collect();
        let mut applied = Ok(());
        for targets in [&withheld, &excused, &surplus, &in_prefix, &exempt_targets] {
            applied = applied.and(nft.lift(targets));
        }
        if !unexplained.is_empty() {
            let expiry = Expiry::After(CAPPED_BAN);
            let short: Vec<_> = unexplained.iter().map(|target| (*target, expiry)).collect();
            let shortened = nft.block(&short);
            for target in unexplained.iter().copied() {
                if shortened.is_ok() {
                    let ports = observer.engine.evidence(*now, target).collect();
                    reporter.emit(EventKind::Shortened { target, expiry, ports });
                }
            }
            applied = applied.and(shortened);
        }
        if applied.is_ok() {
            // Otherwise the next review sees them again.
            for targets in [&confirmed, &unfounded, &in_prefix, &exempt_targets] {
                applied = applied.and(trap_sets::forget(&mut nft.table, targets));
            }
        }
        if applied.is_err() {
            return self.report_failure(applied, "cannot change bans of the kernel's trap", reporter);
        }
        reporter.metrics.trap_banned.add((confirmed.len() + in_prefix.len()) as u64);
        reporter.metrics.trap_let_go.add((withheld.len() + excused.len() + surplus.len() + exempt.len()) as u64);
        reporter.metrics.trap_shortened.add(unexplained.len() as u64);
        for (target, protection) in exempt {
            reporter.emit_exempt(target, protection);
        }
        if let Some(sources) = first_and_more(&withheld) {
            reporter.emit_note(format!("the kernel's trap blocked {sources} although a ceiling is reached: unblocked"));
        }
        if let Some(sources) = first_and_more(&surplus) {
            reporter.emit_note(format!(
                "the kernel's trap blocked {sources} on packets that were not seen: unblocked after {} s, because a \
                 ceiling is reached",
                UNCONFIRMED_FOR.as_secs()
            ));
        }
        if let Some(sources) = first_and_more(&excused) {
            reporter.emit_note(format!("the kernel's trap blocked {sources} without valid evidence: unblocked"));
        }
    }

    /// Resets the trap's counts of `targets`, whose bans have been removed.
    pub(super) fn forget_probes(&mut self, targets: &[BanTarget], blocker: &mut Blocker, reporter: &Reporter) {
        let Some((nft, rules)) = blocker.trap() else { return };
        let forgotten = match targets.len() > MAX_SINGLE_RESETS {
            true => trap_sets::forget_all_sources(&mut nft.table, rules),
            false => trap_sets::forget(&mut nft.table, targets),
        };
        self.report_failure(forgotten, "cannot reset the counts of unblocked sources in the kernel's trap", reporter);
    }

    /// Logs `failure` and its cause. A missing table is not reported: the trap is armed again once it has been created.
    fn report_failure(&mut self, result: Result<(), BlockError>, failure: &str, reporter: &Reporter) {
        match result {
            Ok(()) | Err(BlockError::Gone) => {}
            Err(error) => self.report(format!("{failure}: {error}"), reporter),
        }
    }

    /// Logs an error, unless it equals the last logged one.
    fn report(&mut self, error: String, reporter: &Reporter) {
        if update(&mut self.last_error, Some(error.clone())) {
            reporter.error(error);
        }
    }
}

/// Increase of a rule counter since the last reading. Counters of recreated rules start at zero.
fn since(now: u64, last: u64) -> u64 {
    now.checked_sub(last).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{ActiveBan, IgnoreReason, Protection};
    use crate::sensor::fixtures::{host, observer, packet};
    use crate::types::{Rate, at};
    use crate::wire::{TcpFlags, Transport};

    #[test]
    fn caught_source_needs_verdict_within_limit() {
        let (mut trap, mut host) = (TrapControl::default(), host());
        let [blocked, exempt, unknown] = ["192.0.2.7", "192.0.2.8", "192.0.2.9"].map(|text| text.parse().unwrap());
        host.allow.insert("192.0.2.8/32".parse().unwrap(), Protection::Listed);
        let mut observer = observer(host);
        observer.engine.adopt(at(1), &ActiveBan::new(blocked, Expiry::Never));
        let mut served = Packet { source: [192, 0, 2, 10].into(), ..packet(false, TcpFlags::SYN, 21) };
        let excused: BanTarget = "192.0.2.10".parse().unwrap();
        trap.arming = TrapArming::with_tcp_ports("21-23");
        for port in [21, 22, 23, 80] {
            let Transport::Tcp { destination_port, .. } = &mut served.transport else { panic!("a segment") };
            *destination_port = port;
            trap.excuse(at(1), &served, Verdict::Ignored(IgnoreReason::RecentlyOpen), &[]);
        }
        let half: BanTarget = "192.0.2.11".parse().unwrap();
        trap.excuse(
            at(1),
            &Packet { source: [192, 0, 2, 11].into(), ..served },
            Verdict::Ignored(IgnoreReason::Open),
            &[],
        );
        let peer: BanTarget = "192.0.2.12".parse().unwrap();
        observer.engine.set_peers(at(1), &[(peer, Duration::from_secs(1))]);
        let trap_banned = [blocked, exempt, unknown, excused, half, peer];
        let rules = Trap {
            tcp: true,
            udp: false,
            forgiven: 2,
            window: Duration::from_secs(60),
            expiry: Expiry::Never,
            ceiling: Rate::per_minute(60),
            named_interfaces: false,
            nat64: [None; 8],
            hold: None,
        };
        let mut review = |now| trap.review(now, &trap_banned, (rules, false), &observer, &PendingBans::default());
        let first = review(at(1));
        assert_eq!((&first.confirmed[..], &first.exempt[..]), (&[blocked][..], &[(exempt, Protection::Listed)][..]));
        assert_eq!(first.excused, [excused], "all its ports are accounted for");
        assert_eq!(first.unexplained, [], "the verdict may be in progress");
        assert_eq!(review(at(2)).unexplained, []);
        let last = review(at(3));
        assert_eq!(last.unexplained, [unknown, half], "an open port that the trap does not watch excuses nothing");
        assert_eq!(last.excused, [excused, peer], "a connected peer is forgiven more ports than the trap counts");
        let _ = trap.review(at(4), &trap_banned, (rules, true), &observer, &PendingBans::default());
        let suspended = trap.review(at(6), &trap_banned, (rules, true), &observer, &PendingBans::default());
        assert_eq!(suspended.unexplained, [], "no source is banned while blocking is suspended");
    }
}
