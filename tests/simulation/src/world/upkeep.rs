//! Does the periodic work of daemon and sensor: they read the listeners, arm the trap and review its bans.

use portsentry::enforce::nft::Trap;
use portsentry::sensor::trap_review::Review;
use portsentry::types::{BanTarget, Expiry, Protocol, Timestamp};

use super::{Armed, World, next_tick};
use crate::daemon::Ticked;
use crate::detector::CAPPED_BAN;
use crate::host::TICK;
use crate::replay::shown;

impl World {
    /// Does the periodic work that has become due since the last packet.
    pub(super) fn catch_up(&mut self) {
        if self.down {
            return;
        }
        loop {
            let (tick, review) = (self.daemon.next_due(), self.review_at);
            if tick <= self.now && review.is_none_or(|review| tick <= review) {
                self.tick(tick);
            } else if let Some(at) = review.filter(|at| *at <= self.now) {
                self.review(at);
            } else {
                return;
            }
        }
    }

    fn tick(&mut self, at: Timestamp) {
        let Ticked { changed, settled, lift } = self.daemon.tick(at, &mut self.host, &mut self.detector);
        if changed {
            self.armed.change(at);
        }
        if settled {
            self.note_at(at, || "the host has settled".to_owned());
        }
        for target in lift {
            self.lift(at, target);
        }
        self.judge_waiting(at);
    }

    /// Judges the sources that waited while the host settled.
    pub(super) fn judge_waiting(&mut self, at: Timestamp) {
        while self.waiting && !self.detector.is_settling(at) {
            let host = &self.host;
            let taker = |protocol, source, to| host.taker(at, protocol, source, to);
            let Some(verdict) = self.detector.judge_waiting(at, taker) else {
                self.waiting = false;
                self.armed.change(at);
                return;
            };
            if let Some(target) = verdict.target() {
                self.record_late_ban(target, &verdict);
                self.note_source(at, target, || format!("{target} waited while the host settled: {}", shown(&verdict)));
            }
            self.ban(&verdict);
        }
    }

    /// Ends a ban whose evidence is no longer sufficient.
    fn lift(&mut self, at: Timestamp, target: BanTarget) {
        self.kernel.lift(target);
        self.kernel.forget(&[target]);
        self.detector.lift(target);
        self.daemon.remove(target);
        self.outcome.lifted += 1;
        if let Some(behaviour) = self.scanners.get(&target) {
            self.outcome.dishonest.entry(behaviour).or_default().freed += 1;
        }
        let name = target.to_string();
        if let Some(ban) = self.outcome.honest_bans.iter_mut().rev().find(|ban| ban.target == name) {
            ban.lasts = Some(at.since_origin().as_secs().saturating_sub(ban.at));
        }
        self.note_source(at, target, || format!("the ban of {target} ends: its ports belong to services"));
    }

    /// Arms the trap with the closed ports, and with the connected sources and the ceilings of the last tick.
    pub(super) fn arm(&mut self) {
        let tick = Timestamp::at(next_tick(self.now).since_origin() - TICK);
        if self.peers_at != tick {
            self.peers_at = tick;
            self.kernel.set_peers(self.detector.tolerated_peers(tick));
            self.kernel.set_ceiling_reached(!self.detector.has_room(tick));
        }
        let Armed { at, changed, stale_at, .. } = self.armed;
        if at == tick || !changed && self.now < stale_at {
            return;
        }
        let longest = self.now.after(Armed::MAX_ARMED);
        let stale_at = if stale_at > self.now { stale_at.min(longest) } else { longest };
        self.armed = Armed { at: tick, changed: false, stale_at, ..self.armed };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ports = self.detector.closed(self.now, protocol);
            self.kernel.arm(protocol, ports);
        }
        self.kernel.arm_related(self.detector.related(self.now));
    }

    fn review(&mut self, at: Timestamp) {
        self.review_at = None;
        let Some(trap) = self.kernel.trap() else { return };
        let mut caught = self.kernel.caught(at);
        caught.sort_unstable();
        self.apply_review(at, &caught, &trap);
        // The remaining sources wait for a verdict.
        if !self.kernel.caught(at).is_empty() {
            self.review_at = Some(at.after(TICK));
        }
    }

    fn apply_review(&mut self, at: Timestamp, caught: &[BanTarget], trap: &Trap) {
        let review = self.detector.review(at, caught, trap);
        let exempt: Vec<_> = review.exempt.iter().map(|(target, _)| *target).collect();
        for target in [&review.withheld, &review.excused, &review.in_prefix, &exempt].into_iter().flatten() {
            self.kernel.lift(*target);
        }
        for target in review.withheld.iter().chain(&review.excused) {
            self.outcome.let_go += 1;
            self.note_source(at, *target, || format!("the program lets {target} go: it holds nothing against it"));
        }
        for target in &review.unexplained {
            if !self.detector.adopt_capped(at, *target) {
                self.kernel.lift(*target);
                continue;
            }
            self.kernel.block(at, *target, Expiry::After(CAPPED_BAN));
            self.record_short_ban(at, *target);
            let text = || format!("the trap's BAN of {target} is made short: the program has no verdict");
            self.note_source(at, *target, text);
        }
        let Review { confirmed, in_prefix, withheld, excused, unexplained, .. } = &review;
        for targets in [confirmed, in_prefix, &exempt, withheld, excused, unexplained] {
            self.kernel.forget(targets);
        }
    }
}
