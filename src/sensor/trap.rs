//! Controls the kernel's trap: arms it with the closed ports, and reviews the sources that it blocked.
//!
//! The trap blocks by itself, and the sensor sees the same packets: within milliseconds it reaches the same verdict, with a
//! reason, a record and the right length. Where it does not (the port turned out to be in use, the source is exempt by now,
//! packets were lost), the trap's ban is removed again, so that every standing ban has a reason.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::blocker::Blocker;
use super::observer::Observer;
use super::pending_bans::PendingBans;
use super::reporter::Reporter;
use super::trap_coverage::{CoverageChange, TrapCoverage};
use crate::enforce::nft::{BlockError, HoldCounts, Nft, Watched};
use crate::engine::Protection;
use crate::types::{BanTarget, PortSet, Protocol, Timestamp};

/// How often the ports are compared and the caught sources reviewed. New listeners need no faster round: the trap's rules
/// check for a socket themselves.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time that a source stays blocked without the sensor's own verdict, which takes milliseconds, or under a flood
/// as long as its ring buffer is deep.
const UNCONFIRMED_FOR: Duration = Duration::from_secs(2);

/// Sources reviewed in one round, at some 30 µs each; the rest follows in the next rounds.
const MAX_PER_ROUND: usize = 512;

#[derive(Default)]
pub(super) struct TrapControl {
    /// What the kernel watches; `None` if that is not known.
    armed: Option<Armed>,
    /// It is to watch nothing for the time being.
    paused: bool,
    /// The next review; `None` without a trap.
    check_at: Option<Timestamp>,
    /// Sources that the trap caught and the sensor has no verdict on, and since when.
    unconfirmed: HashMap<BanTarget, Timestamp>,
    /// What the kernel's counters of held packets said last.
    hold_counts: HoldCounts,
    /// The last error that was logged, so that it is not repeated.
    last_error: Option<String>,
    coverage: TrapCoverage,
}

/// What the kernel watches: ports of the protocols that count, and interfaces.
#[derive(PartialEq, Eq)]
struct Armed {
    tcp: Option<PortSet>,
    udp: Option<PortSet>,
    interfaces: Vec<u32>,
}

/// The sources that the trap caught, by the sensor's view of them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Review {
    /// Blocked by the sensor as well.
    confirmed: Vec<BanTarget>,
    /// Covered by a prefix ban.
    in_prefix: Vec<BanTarget>,
    exempt: Vec<(BanTarget, Protection)>,
    /// Without a verdict for [`UNCONFIRMED_FOR`].
    unfounded: Vec<BanTarget>,
}

impl TrapControl {
    /// Has the next [`TrapControl::arm`] set the ports, whatever the kernel is believed to watch.
    pub(super) fn forget_ports(&mut self) {
        self.armed = None;
    }

    /// Has the next [`TrapControl::check`] review the caught sources, if there is a trap.
    pub(super) fn check_soon(&mut self, now: Timestamp) {
        self.check_at = self.check_at.map(|_| now);
    }

    /// When [`TrapControl::check`] has something to do.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.check_at
    }

    /// Has the kernel watch the ports that are closed now. The kernel's allow-list must be up to date before.
    pub(super) fn arm(&mut self, now: Timestamp, blocker: &mut Blocker, observer: &Observer, reporter: &Reporter) {
        let Some((nft, rules)) = blocker.trap() else { return self.reset(reporter) };
        self.check_at = Some(now.after(POLL_INTERVAL));
        if self.paused {
            return;
        }
        let closed = |counts: bool, protocol| counts.then(|| observer.closed_ports(now, protocol));
        let wanted = Armed {
            tcp: closed(rules.tcp, Protocol::Tcp),
            udp: closed(rules.udp, Protocol::Udp),
            interfaces: observer.host().interfaces.clone(),
        };
        self.report_coverage(now, &wanted, reporter);
        if self.armed.as_ref() == Some(&wanted) {
            return;
        }
        let [tcp, udp] = [&wanted.tcp, &wanted.udp].map(|ports| ports.as_ref().map(PortSet::ranges));
        self.armed = None;
        match nft.arm(Watched { tcp: tcp.as_deref(), udp: udp.as_deref(), interfaces: &wanted.interfaces }) {
            Ok(()) => {
                (self.armed, self.last_error) = (Some(wanted), None);
                self.update_metrics(reporter);
            }
            // Armed again once the table is there.
            Err(BlockError::Gone) => {}
            Err(error) => self
                .report(format!("the kernel's trap could not be set: {error}; scans are seen all the same"), reporter),
        }
    }

    /// Takes the next number of ports for what there should be: the configuration has changed.
    pub(super) fn forget_coverage(&mut self, reporter: &Reporter) {
        self.coverage = TrapCoverage::default();
        reporter.metrics().trap_lost.set(0);
    }

    /// Says that a large part of the ports has left the trap, or is back.
    fn report_coverage(&mut self, now: Timestamp, wanted: &Armed, reporter: &Reporter) {
        let ports = [&wanted.tcp, &wanted.udp].into_iter().flatten().map(PortSet::len).sum();
        match self.coverage.record(now, ports) {
            Some(CoverageChange::Lost { before, .. }) => reporter.error(format!(
                "the kernel's trap has lost more than a quarter of its ports: {ports} are left of {before}, the others count as \
                 in use, and scans of them are not seen; see `ss -lntu` and the NAT rules for what uses them"
            )),
            Some(CoverageChange::Regained { before, .. }) => {
                reporter.note(format!("the kernel's trap has {ports} of {before} ports again"));
            }
            None => {}
        }
        reporter.metrics().trap_lost.set(self.coverage.missing(ports).into());
    }

    fn reset(&mut self, reporter: &Reporter) {
        *self = Self { paused: self.paused, ..Self::default() };
        reporter.metrics().trap_lost.set(0);
        self.update_metrics(reporter);
    }

    fn update_metrics(&self, reporter: &Reporter) {
        let ports = self.armed.as_ref().map_or([None; 2], |armed| [armed.tcp.as_ref(), armed.udp.as_ref()]);
        let [tcp, udp] = ports.map(|ports| ports.map_or(0, |ports| ports.len().into()));
        reporter.metrics().trapped.set(tcp);
        reporter.metrics().trapped_udp.set(udp);
    }

    /// Removes the trap and its rules.
    pub(super) fn disarm(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        self.suspend(blocker, reporter);
        let Some(backend) = blocker.nft.as_mut().filter(|backend| backend.spec.trap.is_some()) else { return };
        backend.spec.trap = None;
        if let Err(error) = backend.repair() {
            let text = "the rules of the kernel's trap could not be taken away";
            self.report(format!("{text}: {error}; it watches nothing"), reporter);
        }
        self.reset(reporter);
    }

    /// Has the trap watch nothing until [`TrapControl::resume`], whatever arms it meanwhile. What it caught is reviewed before.
    pub(super) fn pause(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        self.suspend(blocker, reporter);
        self.paused = true;
        self.update_metrics(reporter);
    }

    pub(super) fn resume(&mut self) {
        self.paused = false;
    }

    /// Has the trap watch nothing until it is armed again.
    pub(super) fn suspend(&mut self, blocker: &mut Blocker, reporter: &Reporter) {
        let Some((nft, rules)) = blocker.trap() else { return };
        self.armed = None;
        let none: &[(u16, u16)] = &[];
        match nft.arm(Watched { tcp: rules.tcp.then_some(none), udp: rules.udp.then_some(none), interfaces: &[] }) {
            Ok(()) | Err(BlockError::Gone) => {}
            Err(error) => self.report(format!("the kernel's trap could not be emptied: {error}"), reporter),
        }
    }

    /// Arms the trap with the ports of now and reviews what it caught, if that is due.
    pub(super) fn check(
        &mut self,
        now: Timestamp,
        blocker: &mut Blocker,
        observer: &Observer,
        pending: &PendingBans,
        reporter: &Reporter,
    ) {
        if self.check_at.is_none_or(|at| at > now) {
            return;
        }
        self.arm(now, blocker, observer, reporter);
        let Some((nft, rules)) = blocker.trap() else { return };
        match nft.caught() {
            Ok(caught) => {
                let caught = caught.get(..MAX_PER_ROUND).unwrap_or(&caught);
                let review = self.review(now, caught, observer, pending);
                self.apply(review, nft, reporter);
            }
            Err(BlockError::Gone) => {}
            Err(error) => {
                self.report(format!("the sources that the kernel's trap caught cannot be read: {error}"), reporter)
            }
        }
        if rules.hold.is_some()
            && let Ok(counts) = nft.hold_counts()
        {
            self.count_held(counts, reporter);
        }
        if let Ok(Some(usage)) = nft.filling(rules) {
            reporter.metrics().trap_touched.set(usage.touched.into());
            reporter.metrics().trap_suspects.set(usage.suspects.into());
        }
    }

    /// Adds to the metrics what the kernel has counted since the last time; rules that were made anew count from zero.
    fn count_held(&mut self, counts: HoldCounts, reporter: &Reporter) {
        let last = std::mem::replace(&mut self.hold_counts, counts);
        let since = |now: u64, last: u64| now.checked_sub(last).unwrap_or(now);
        reporter.metrics().held.add(since(counts.dropped, last.dropped));
        reporter.metrics().hold_full.add(since(counts.full, last.full));
    }

    /// Compares the sources that the trap caught with the sensor's verdicts.
    fn review(&mut self, now: Timestamp, caught: &[BanTarget], observer: &Observer, pending: &PendingBans) -> Review {
        let mut review = Review::default();
        let unconfirmed = std::mem::take(&mut self.unconfirmed);
        // The sensor decided to block these as well, although a backend has refused so far.
        let refused: HashSet<BanTarget> = pending.refused().collect();
        for target in caught.iter().copied().filter(|target| !refused.contains(target)) {
            let since = unconfirmed.get(&target).copied().unwrap_or(now);
            if observer.engine().is_blocked(now, target) {
                review.confirmed.push(target);
            } else if observer.engine().is_in_blocked_network(now, target.element()) {
                review.in_prefix.push(target);
            } else if let Some(protection) = observer.exemption(target) {
                review.exempt.push((target, protection));
            } else if now.since(since) >= UNCONFIRMED_FOR {
                review.unfounded.push(target);
            } else {
                self.unconfirmed.insert(target, since);
            }
        }
        review
    }

    /// Removes the trap's bans that a review does not uphold, and has the trap count all reviewed sources from zero:
    /// otherwise one more port would be enough when their bans are over.
    fn apply(&mut self, review: Review, nft: &mut Nft, reporter: &Reporter) {
        let Review { confirmed, in_prefix, exempt, unfounded } = review;
        // A full set had no room for these: they are not blocked.
        let missing: HashSet<BanTarget> = nft.missing(&unfounded).unwrap_or_default().into_iter().collect();
        let (missing, unfounded): (Vec<_>, Vec<_>) = unfounded.into_iter().partition(|one| missing.contains(one));
        let exempt_targets: Vec<BanTarget> = exempt.iter().map(|(target, _)| *target).collect();
        let mut applied = Ok(());
        for targets in [&unfounded, &in_prefix, &exempt_targets] {
            applied = applied.and(nft.lift(targets));
        }
        for targets in [&confirmed, &unfounded, &missing, &in_prefix, &exempt_targets] {
            applied = applied.and(nft.forget(targets));
        }
        reporter.metrics().trap_caught.add((confirmed.len() + in_prefix.len()) as u64);
        reporter.metrics().trap_let_go.add((unfounded.len() + exempt.len()) as u64);
        match applied {
            Ok(()) => {}
            Err(BlockError::Gone) => return,
            Err(error) => self.report(format!("bans of the kernel's trap could not be lifted: {error}"), reporter),
        }
        for (target, protection) in exempt {
            reporter.emit_exempt(target, protection);
        }
        if let [first, rest @ ..] = unfounded.as_slice() {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            reporter.note(format!(
                "the kernel's trap had blocked {first}{more}, and nothing is held against them: let go after {} s",
                UNCONFIRMED_FOR.as_secs()
            ));
        }
    }

    /// Has the trap count the probes of every source from zero.
    pub(super) fn forget_all_probes(blocker: &mut Blocker) {
        if let Some((nft, rules)) = blocker.trap() {
            // If this fails, arming fails as well and is reported.
            let _ = nft.forget_everybody(rules);
        }
    }

    /// Has the trap count the probes of `targets` from zero: their bans have been removed.
    pub(super) fn forget_probes(&mut self, targets: &[BanTarget], blocker: &mut Blocker, reporter: &Reporter) {
        let Some((nft, rules)) = blocker.trap() else { return };
        let forgotten = if targets.len() > MAX_PER_ROUND { nft.forget_everybody(rules) } else { nft.forget(targets) };
        match forgotten {
            Ok(()) | Err(BlockError::Gone) => {}
            Err(error) => self.report(format!("the kernel's trap could not be made to forget: {error}"), reporter),
        }
    }

    /// Logs an error, unless it is the one that was logged last.
    fn report(&mut self, error: String, reporter: &Reporter) {
        if self.last_error.as_ref() != Some(&error) {
            reporter.error(error.clone());
            self.last_error = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::decoy::DecoyPorts;
    use crate::engine::ActiveBan;
    use crate::sensor::KernelPorts;
    use crate::sensor::fixtures::{engine, host};
    use crate::types::Expiry;

    #[test]
    fn caught_source_needs_verdict_within_limit() {
        let (mut trap, mut host) = (TrapControl::default(), host());
        let [blocked, exempt, unknown] = ["192.0.2.7", "192.0.2.8", "192.0.2.9"].map(|text| text.parse().unwrap());
        let at = |seconds| Timestamp::at(Duration::from_secs(seconds));
        host.allow.insert("192.0.2.8/32".parse().unwrap(), Protection::Listed);
        let mut observer = Observer::new(engine(), host.into(), KernelPorts::open().unwrap().0, DecoyPorts::default());
        observer.engine_mut().adopt(at(1), &ActiveBan::whole(blocked, Expiry::Never));
        let caught = [blocked, exempt, unknown];
        let mut review = |now| trap.review(now, &caught, &observer, &PendingBans::default());
        let first = review(at(1));
        assert_eq!((&first.confirmed[..], &first.exempt[..]), (&[blocked][..], &[(exempt, Protection::Listed)][..]));
        assert_eq!(first.unfounded, [], "the verdict may be under way");
        assert_eq!(review(at(2)).unfounded, []);
        assert_eq!(review(at(3)).unfounded, [unknown]);
    }
}
