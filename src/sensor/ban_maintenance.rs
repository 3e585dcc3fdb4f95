//! Bans while they last: put back where the kernel forgot them, taken away where somebody is protected by now or an operator
//! says so, tried again where a way did not take them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::blocker::Refused;
use super::controller::BanController;
use crate::enforce::nft::{BlockError, Nft, Repaired, RulesetSpec};
use crate::engine::{ActiveBan, Explanation, Host, Protection};
use crate::events::event::{Event, EventKind};
use crate::types::{Backend, BanTarget, Expiry, Timestamp};

/// Bans that are lifted at one time because their subjects are protected now: some 2 ms between two looks at the packets.
const PROTECTED_PER_ROUND: usize = 256;

/// How long the next ones wait: each has its line, and the queue of events must not overflow.
const PROTECTED_ROUND_DELAY: Duration = Duration::from_millis(50);

/// Attempts to carry out what failed between two looks at the packets.
const RETRIES_PER_ROUND: usize = 16;

impl BanController {
    /// The host is another from now on.
    pub(super) fn change_host(&mut self, now: Timestamp, host: Arc<Host>) {
        self.engine.host_changed(now, &self.host, &host);
        let more = host.allow.prefixes().any(|prefix| self.host.allow.covers(prefix).is_none());
        self.host = host;
        self.follow_allowed();
        self.arm(now);
        if more {
            self.lift_protected_at = Some(now);
            // The kernel may have caught one of them just before it knew.
            self.trap.check_soon(now);
        }
    }

    /// The kernel holds these bans, which are not of our making.
    pub(super) fn adopt(&mut self, now: Timestamp, bans: &[ActiveBan]) {
        bans.iter().for_each(|ban| self.engine.adopt(now, ban));
        if let Some((_, spec)) = &mut self.blocker.nft {
            // Wherever they are from, a table that is laid again has to have room for them.
            spec.wide |= bans.iter().any(|ban| matches!(ban.subject, BanTarget::Prefix(_)));
        }
        if bans.iter().any(|ban| self.protection(ban.subject).is_some()) {
            self.lift_protected_at = Some(now);
        }
    }

    /// Why nobody whom a ban of `subject` hits is to be blocked, if that is so. One protected address in a blocked /64 is
    /// not enough: the kernel lets it pass whatever its neighbours did.
    pub(super) fn protection(&self, subject: BanTarget) -> Option<Protection> {
        let network = IpNet::new(subject.element(), subject.prefix_len()).ok()?;
        self.host.allow.covers(network)
    }

    /// Lifts bans of those who are protected by now. The kernel lets them pass in any case; a ban that does nothing would
    /// mislead whoever reads the set, and would be back in force when the protection ends.
    pub(super) fn lift_protected(&mut self, now: Timestamp) {
        if self.lift_protected_at.is_none_or(|at| at > now) {
            return;
        }
        let bans = self.engine.bans().filter_map(|ban| Some((ban.subject, self.protection(ban.subject)?)));
        let spared: Vec<_> = bans.take(PROTECTED_PER_ROUND).collect();
        self.lift_protected_at = (spared.len() == PROTECTED_PER_ROUND).then(|| now.after(PROTECTED_ROUND_DELAY));
        let subjects: Vec<_> = spared.iter().map(|(subject, _)| *subject).collect();
        // First, so that a table that has to be laid again is laid without them.
        subjects.iter().for_each(|subject| {
            self.engine.lift(*subject);
        });
        match self.blocker.nft.as_mut().map_or(Ok(()), |(nft, _)| nft.lift(&subjects)) {
            Ok(()) => {}
            Err(BlockError::Gone) => self.reinstall_now(),
            Err(error) => {
                self.emit(EventKind::Error(format!("bans of protected sources could not be lifted: {error}")))
            }
        }
        self.lift_elsewhere(&subjects);
        for (subject, protection) in spared {
            self.emit(EventKind::Unblocked { subject, by: exemption_source(protection) });
        }
    }

    /// Has the kernel's allow-list follow the host, by as little as has changed, and routes keep clear of it.
    fn follow_allowed(&mut self) {
        self.protect_by(Nft::follow_protected);
    }

    /// Has the kernel's allow-list be the host's, whatever somebody made of it, and routes keep clear of it.
    pub(super) fn protect(&mut self) {
        self.protect_by(Nft::protect);
    }

    fn protect_by(&mut self, set: fn(&mut Nft, &[IpNet]) -> Result<(), BlockError>) {
        let cut_off = self.blocker.keep_reachable(&self.host);
        for subject in cut_off {
            self.emit(EventKind::Note(format!(
                "the route that blocked {subject} is gone: it would cut off who is protected now"
            )));
        }
        let Some((nft, _)) = &mut self.blocker.nft else { return };
        let prefixes: Vec<_> = self.host.allow.prefixes().collect();
        match set(nft, &prefixes) {
            Ok(()) => {}
            Err(BlockError::Gone) => self.reinstall_now(),
            Err(error) => self.emit(EventKind::Error(format!("the kernel's allow-list could not be set: {error}"))),
        }
    }

    /// Blocks those whom the kernel has forgotten, in these ways, for the time that they have left.
    pub(super) fn restore(&mut self, now: Timestamp, bans: &[ActiveBan], ways: &[Backend]) {
        for way in self.blocker.inline_ways().filter(|way| ways.contains(way)).collect::<Vec<_>>() {
            let result = match way {
                Backend::Route => {
                    let bans: Vec<_> = bans.iter().map(|ban| (ban.subject, ban.left)).collect();
                    let mut refused = Vec::new();
                    self.blocker.block_by_route(&bans, now, &mut refused);
                    refused.first().map_or(Ok(()), |first| Err(format!("{}: {}", first.subject, first.reason)))
                }
                _ => {
                    self.ensure_prefix_sets(bans.iter().map(|ban| ban.subject));
                    let bans: Vec<_> = bans.iter().map(|ban| (ban.subject, ban.length, ban.left)).collect();
                    let restored = self.blocker.nft.as_mut().map_or(Ok(()), |(nft, _)| nft.put_back(&bans));
                    restored.map_err(|error| error.to_string())
                }
            };
            match result {
                Ok(()) => self.emit(EventKind::Restored { bans: bans.len(), way }),
                Err(error) => {
                    self.emit(EventKind::Error(format!(
                        "bans could not be put back from the ledger ({}): {error}",
                        way.name()
                    )));
                }
            }
        }
        self.adopt(now, bans);
    }

    /// Puts bans back that the kernel does not hold although nobody took them out.
    pub(super) fn repair(&mut self, now: Timestamp, way: Backend, subjects: &[BanTarget]) {
        if way == Backend::Route {
            return self.repair_routes(now, subjects);
        }
        let Some((nft, _)) = &mut self.blocker.nft else { return };
        // Looked at once more, because the question has been on its way; a table that is gone is healed as one.
        let Ok(missing) = nft.missing(subjects) else { return };
        let missing = missing.iter().filter(|subject| !self.waiting.contains_key(*subject));
        let bans = missing.filter_map(|subject| self.engine.standing_of(now, *subject));
        let bans: Vec<_> = bans.map(|ban| (ban.subject, ban.length, ban.left)).collect();
        if bans.is_empty() {
            return;
        }
        match nft.restore(&bans) {
            Ok(()) => {
                self.metrics.repaired.add(bans.len() as u64);
                self.emit(EventKind::Repaired { bans: bans.len(), way: Backend::Nft });
            }
            Err(error) => {
                self.emit(EventKind::Error(format!("bans that the kernel had lost could not be put back: {error}")))
            }
        }
    }

    /// Lays routes again that somebody swept away.
    fn repair_routes(&mut self, now: Timestamp, subjects: &[BanTarget]) {
        let Some(routes) = &mut self.blocker.routes else { return };
        // Looked at once more, because the question has been on its way.
        let Ok(missing) = routes.missing(subjects) else { return };
        let wanted = missing.into_iter().filter(|subject| routes.is_wanted(*subject));
        let bans = wanted.filter_map(|subject| self.engine.standing_of(now, subject));
        let bans: Vec<_> = bans.map(|ban| (ban.subject, ban.left)).collect();
        if bans.is_empty() {
            return;
        }
        let mut refused = Vec::new();
        self.blocker.block_by_route(&bans, now, &mut refused);
        let laid = bans.len() - refused.len().min(bans.len());
        if laid > 0 {
            self.metrics.repaired.add(laid as u64);
            self.emit(EventKind::Repaired { bans: laid, way: Backend::Route });
        }
        // Said once: who is refused is no longer compared.
        if let Some(first) = refused.first() {
            let (subject, reason, others) = (first.subject, &first.reason, refused.len() - 1);
            let others = if others > 0 { format!(", and {others} others") } else { String::new() };
            self.emit(EventKind::Error(format!(
                "a route that was gone could not be laid again: {subject}{others}: {reason}"
            )));
        }
    }

    /// Somebody took the route of `subject` away: as with an element of nftables, that is how he lifts the ban.
    pub(super) fn route_removed(&mut self, now: Timestamp, subject: BanTarget) {
        let Some(routes) = &mut self.blocker.routes else { return };
        if !routes.is_wanted(subject) || !self.engine.is_blocked(now, subject) {
            return;
        }
        // He may have laid another one in its place, or this one again.
        if !matches!(routes.missing(&[subject]), Ok(missing) if missing == [subject]) {
            return;
        }
        match self.lift(&[subject]) {
            Ok(_) => self.emit(EventKind::Unblocked { subject, by: "somebody who deleted its route".to_owned() }),
            Err(error) => {
                self.emit(EventKind::Error(format!("the ban of {subject}, whose route is gone, stays: {error}")))
            }
        }
    }

    /// Takes away the routes from before the start that nobody has asked for.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        let Some(routes) = &mut self.blocker.routes else { return };
        let swept = routes.sweep(now);
        if !swept.subjects.is_empty() {
            let text =
                format!("routes from before the start that block nobody any more are gone: {}", swept.subjects.len());
            self.emit(EventKind::Note(text));
        }
        if let Some(error) = swept.trouble {
            self.emit(EventKind::Error(format!("routes could not be taken away, which is tried again: {error}")));
        }
    }

    /// When [`BanController::run_maintenance`] has something to do.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let routes = self.blocker.routes.as_ref().and_then(|routes| routes.next_due());
        [self.lift_protected_at, routes, self.retries.next(), self.trap.due()].into_iter().flatten().min()
    }

    /// What is due beside the packets: bans of who is protected, routes whose time is over, ways that failed.
    pub(super) fn run_maintenance(&mut self, now: Timestamp) {
        self.lift_protected(now);
        self.check_trap(now);
        if let Some(routes) = &mut self.blocker.routes
            && routes.next_due().is_some_and(|due| due <= now)
            && let Some(error) = routes.due(now).trouble
        {
            self.emit(EventKind::Error(format!("routes could not be taken away, which is tried again: {error}")));
        }
        for _ in 0..RETRIES_PER_ROUND {
            let Some(retry) = self.retries.due(now) else { return };
            let Some(left) = retry.left(now) else { continue };
            let (ban, subject, mut refused) = (retry.ban, retry.ban.probe.subject, Vec::new());
            self.block_by(retry.way, now, &[(subject, left)], &mut refused);
            if !refused.is_empty() {
                self.metrics.failed(retry.way);
                self.retries.again(retry, now);
                continue;
            }
            self.metrics.blocked(retry.way, ban.probe.sighting.class);
            if !self.engine.is_blocked(now, subject) {
                self.engine.adopt(now, &ActiveBan::whole(subject, left));
            }
            let reaction = SystemTime::now().duration_since(retry.seen).unwrap_or_default();
            let what = EventKind::Blocked { ban, reaction, way: retry.way };
            self.emit_event(Event { time: retry.seen, what });
        }
    }

    /// Blocks `subject` because an operator wants it.
    pub(super) fn block_by_hand(&mut self, now: Timestamp, subject: BanTarget, expiry: Expiry) -> Result<(), String> {
        if !self.blocker.blocks() {
            return Err("nobody is blocked here: it only logs".to_owned());
        }
        let refused: Vec<Refused> = self.apply(now, &[(subject, expiry)]);
        let handed = self.blocker.hand_over_by_hand(subject, expiry);
        // In force in one way is in force; what failed is in the answer of nobody else.
        let ways = self.blocker.inline_ways().count();
        if let Some(first) = refused.first()
            && refused.len() == ways
            && !(handed && self.blocker.has_slow_ways())
        {
            return Err(first.reason.clone());
        }
        for Refused { way, subject, reason } in refused {
            self.emit(EventKind::BlockFailed { subject, reason, way });
        }
        self.replace(subject);
        self.engine.adopt(now, &ActiveBan::whole(subject, expiry));
        Ok(())
    }

    /// Lifts the bans of `subjects`; who was blocked until now.
    pub(super) fn lift(&mut self, subjects: &[BanTarget]) -> Result<Vec<BanTarget>, String> {
        let mut bans_removed = Vec::new();
        for subject in subjects {
            let held = match &mut self.blocker.nft {
                Some((nft, _)) => match nft.has(*subject) {
                    Ok(held) => held,
                    Err(BlockError::Gone) => false,
                    Err(error) => return Err(error.to_string()),
                },
                None => false,
            };
            if let Some((nft, _)) = &mut self.blocker.nft
                && held
            {
                nft.lift(&[*subject]).map_err(|error| error.to_string())?;
            }
            if self.engine.lift(*subject) || held {
                bans_removed.push(*subject);
            }
        }
        self.lift_elsewhere(subjects);
        Ok(bans_removed)
    }

    /// Lifts every ban; whose they were.
    pub(super) fn lift_everybody(&mut self) -> Result<Vec<BanTarget>, String> {
        let subjects: Vec<BanTarget> = self.engine.bans().map(|ban| ban.subject).collect();
        if let Some((nft, _)) = &mut self.blocker.nft {
            match nft.lift(&subjects) {
                Ok(()) | Err(BlockError::Gone) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        self.lift_elsewhere(&subjects);
        self.engine.lift_all();
        Ok(subjects)
    }

    /// Somebody took these bans out of the kernel.
    pub(super) fn bans_removed(&mut self, subjects: &[BanTarget]) {
        subjects.iter().for_each(|subject| {
            self.engine.lift(*subject);
        });
        self.lift_elsewhere(subjects);
    }

    /// Lifts the bans of `subjects` in every way but nftables.
    fn lift_elsewhere(&mut self, subjects: &[BanTarget]) {
        self.forget_touches(subjects);
        let gone: HashSet<BanTarget> = subjects.iter().copied().collect();
        // Their command ends for nothing.
        self.waiting.retain(|subject, _| !gone.contains(subject));
        self.retries.drop(|retry| gone.contains(&retry.ban.probe.subject));
        self.blocker.release(subjects);
        let bans_removed = self.blocker.routes.as_mut().map_or(Ok(()), |routes| routes.lift(subjects));
        if let Err(error) = bans_removed {
            self.emit(EventKind::Error(format!("a route could not be taken away, which is tried again: {error}")));
        }
    }

    /// What is known about `address`.
    pub(super) fn explain(&self, now: Timestamp, address: IpAddr) -> Explanation {
        self.engine.explain(now, address, &self.host)
    }

    /// Sees to it that the table has the sets of networks where one of these is a network.
    pub(super) fn ensure_prefix_sets(&mut self, mut subjects: impl Iterator<Item = BanTarget>) {
        let Some((nft, spec)) = self.blocker.nft.as_mut().filter(|(_, spec)| !spec.wide) else { return };
        if !subjects.any(|subject| matches!(subject, BanTarget::Prefix(_))) {
            return;
        }
        spec.wide = true;
        // What the kernel refuses here it refuses for the bans as well, and these say so.
        let repaired = nft.repair(spec);
        if matches!(repaired, Ok(Repaired::Created)) {
            self.reinstall_table();
        }
    }

    /// The ban of a network goes for those of the networks in it, in the kernel as here.
    pub(super) fn replace(&mut self, subject: BanTarget) {
        let (BanTarget::Prefix(outer), true) = (subject, self.blocker.nft.is_some()) else { return };
        let inside = |ban: &ActiveBan| match ban.subject {
            BanTarget::Prefix(inner) => inner != outer && outer.network().contains(&inner.network()),
            BanTarget::V4(_) | BanTarget::V6(_) => false,
        };
        let gone: Vec<BanTarget> = self.engine.bans().filter(inside).map(|ban| ban.subject).collect();
        for inner in gone {
            self.engine.lift(inner);
            self.emit(EventKind::Unblocked { subject: inner, by: format!("the ban of {subject} around it") });
        }
    }

    /// The table is to have other rules; its sets stay.
    pub(super) fn replace_ruleset(&mut self, wanted: RulesetSpec) {
        let Some((nft, spec)) = &mut self.blocker.nft else { return };
        let wide = spec.wide || wanted.wide;
        *spec = RulesetSpec { wide, ..wanted };
        match nft.repair(spec) {
            Ok(_) => self.emit(EventKind::Note("table inet portsentry has the rules of the new settings".to_owned())),
            Err(error) => {
                self.emit(EventKind::Error(format!("the rules of the new settings could not be laid: {error}")))
            }
        }
    }
}

/// Who lifted a ban of somebody who has this protection.
pub(super) fn exemption_source(protection: Protection) -> String {
    match protection {
        Protection::Listed | Protection::Named => "the allow-list".to_owned(),
        other => format!("portsentry, because it is {other}"),
    }
}
