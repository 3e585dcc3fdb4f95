//! The backends that enforce bans, in the configured order. Those that take microseconds (nftables, routes) are used by the
//! sensor itself; the others get tasks for their own thread.

use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use crate::enforce::BanContext;
use crate::enforce::nft::{BlockError, Nft, Repaired, RulesetError, RulesetSpec, Trap};
use crate::enforce::route::{self, Routes};
use crate::enforce::slow_backends::{Orders, Task};
use crate::engine::{ActiveBan, Ban, Host};
use crate::types::{Backend, BanTarget, Expiry, Protocol, Timestamp};

/// The configured backends.
#[derive(Default)]
pub struct Blocker {
    /// All backends in their order.
    pub ways: Vec<Backend>,
    /// The sets of nftables and the ruleset around them, for [`Backend::Nft`].
    pub nft: Option<(Nft, RulesetSpec)>,
    /// Routes, for [`Backend::Route`].
    pub routes: Option<Routes>,
    /// The task queue of the slow backends' thread.
    pub hands: Option<Orders>,
    /// The command runs before the other backends, which wait until it has ended.
    pub first: bool,
    /// Connections of blocked sources are ended.
    pub end_connections: bool,
    /// Scans of TCP only run the command.
    pub tcp_tells: bool,
    /// Scans of UDP only run the command.
    pub udp_tells: bool,
    /// The classic name of the mode for TCP.
    pub tcp_mode: &'static str,
    /// The classic name of the mode for UDP.
    pub udp_mode: &'static str,
}

/// A ban that a backend did not take.
pub(super) struct Refused {
    pub(super) backend: Backend,
    pub(super) target: BanTarget,
    pub(super) reason: String,
}

impl Refused {
    fn new(backend: Backend, target: BanTarget, reason: &impl ToString) -> Self {
        Self { backend, target, reason: reason.to_string() }
    }

    /// Which of `bans` nftables refused.
    pub(super) fn by_nft(result: Result<(), BlockError>, bans: &[(BanTarget, Expiry)]) -> Vec<Self> {
        match result {
            Ok(()) => Vec::new(),
            Err(BlockError::Failed { failed, .. }) => {
                failed.iter().map(|one| Self::new(Backend::Nft, one.subject, &one.reason)).collect()
            }
            Err(error) => bans.iter().map(|(target, _)| Self::new(Backend::Nft, *target, &error)).collect(),
        }
    }
}

impl Blocker {
    /// True where sources are blocked, with any backend.
    pub(super) fn is_enabled(&self) -> bool {
        !self.ways.is_empty()
    }

    /// The backends that the sensor uses itself, in their order. There are two at most.
    pub(super) fn inline(&self) -> impl Iterator<Item = Backend> + use<> {
        let mut inline = self.ways.iter().copied().filter(|backend| matches!(backend, Backend::Nft | Backend::Route));
        [inline.next(), inline.next()].into_iter().flatten()
    }

    /// True where bans are also, or only, enforced by the slow backends.
    pub(super) fn has_slow_backends(&self) -> bool {
        self.ways.iter().any(|backend| matches!(backend, Backend::HostsDeny | Backend::Command))
    }

    /// The sets of nftables and the rules of the kernel's trap, where the table has one.
    pub(super) fn trap(&mut self) -> Option<(&mut Nft, Trap)> {
        let (nft, spec) = self.nft.as_mut()?;
        Some((nft, spec.trap?))
    }

    /// Applies `change` to the sets of nftables; does nothing where that is no backend.
    pub(super) fn change_sets(
        &mut self,
        change: impl FnOnce(&mut Nft) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        self.nft.as_mut().map_or(Ok(()), |(nft, _)| change(nft))
    }

    /// Whether the sets of nftables block `target`; always without them.
    pub(super) fn is_in_sets(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        self.nft.as_mut().map_or(Ok(true), |(nft, _)| Ok(nft.holds(target)?.is_some()))
    }

    /// Removes the element of exactly `target` from the sets of nftables; false if there was none.
    pub(super) fn remove_from_sets(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        let Some((nft, _)) = &mut self.nft else { return Ok(false) };
        let found = match nft.has(target) {
            Err(BlockError::Gone) => false,
            found => found?,
        };
        if found {
            nft.lift(&[target])?;
        }
        Ok(found)
    }

    /// Adds the sets for prefixes to the table, unless it has them; true if the table was missing and is empty now.
    pub(super) fn add_prefix_sets(&mut self) -> bool {
        let Some((nft, spec)) = self.nft.as_mut().filter(|(_, spec)| !spec.wide) else { return false };
        spec.wide = true;
        // An error here is one of the bans as well, and reported with them.
        matches!(nft.repair(spec), Ok(Repaired::Created))
    }

    /// Has the table include sets for prefixes whenever it is created again.
    pub(super) fn plan_prefix_sets(&mut self) {
        if let Some((_, spec)) = &mut self.nft {
            spec.wide = true;
        }
    }

    /// Replaces the rules of the table and keeps its sets; false without a table.
    pub(super) fn replace_rules(&mut self, wanted: RulesetSpec) -> Result<bool, RulesetError> {
        let Some((nft, spec)) = &mut self.nft else { return Ok(false) };
        let wide = spec.wide || wanted.wide;
        *spec = RulesetSpec { wide, ..wanted };
        nft.repair(spec).map(|_| true)
    }

    /// Blocks what the kernel has forgotten, for the time that is left; which of the bans were refused.
    pub(super) fn put_back(&mut self, backend: Backend, bans: &[ActiveBan], now: Timestamp) -> Vec<Refused> {
        let left: Vec<_> = bans.iter().map(|ban| (ban.subject, ban.left)).collect();
        if backend == Backend::Route {
            return self.add_routes(&left, now);
        }
        let elements: Vec<_> = bans.iter().map(|ban| (ban.subject, ban.length, ban.left)).collect();
        Refused::by_nft(self.change_sets(|nft| nft.put_back(&elements)), &left)
    }

    /// Adds routes for `bans`; which of them were refused.
    pub(super) fn add_routes(&mut self, bans: &[(BanTarget, Expiry)], now: Timestamp) -> Vec<Refused> {
        let Some(routes) = &mut self.routes else { return Vec::new() };
        match routes.block(bans, now) {
            Ok(()) => Vec::new(),
            Err(route::BlockError::Failed { failed, .. }) => {
                failed.iter().map(|one| Refused::new(Backend::Route, one.subject, &one.reason)).collect()
            }
            Err(error) => bans.iter().map(|(target, _)| Refused::new(Backend::Route, *target, &error)).collect(),
        }
    }

    /// When routes expire, or one that could not be removed is to be tried again.
    pub(super) fn next_route_due(&self) -> Option<Timestamp> {
        self.routes.as_ref().and_then(Routes::next_due)
    }

    /// True where there should be a route for `target`.
    pub(super) fn wants_route(&self, target: BanTarget) -> bool {
        self.routes.as_ref().is_some_and(|routes| routes.is_wanted(target))
    }

    /// Which of `targets` should be enforced with `backend`, as far as it knows, and are not.
    pub(super) fn missing(&mut self, backend: Backend, targets: &[BanTarget]) -> Vec<BanTarget> {
        let missing = match (backend, &mut self.nft, &mut self.routes) {
            (Backend::Nft, Some((nft, _)), _) => nft.missing(targets).ok(),
            (Backend::Route, _, Some(routes)) => {
                let wanted: Vec<BanTarget> = targets.iter().copied().filter(|one| routes.is_wanted(*one)).collect();
                routes.missing(&wanted).ok()
            }
            _ => None,
        };
        missing.unwrap_or_default()
    }

    /// Keeps routes clear of everything that is never blocked and of this host's own networks; returns the targets whose
    /// routes were removed for that. Own IPv4 networks are left out: a neighbour there is an address like any other.
    pub(super) fn keep_reachable(&mut self, host: &Host) -> Vec<BanTarget> {
        let Some(routes) = &mut self.routes else { return Vec::new() };
        let own = host.networks.iter().copied().filter(|network| matches!(network, IpNet::V6(_)));
        let prefixes: Vec<IpNet> = host.allow.prefixes().chain(own).collect();
        routes.protect(&prefixes).subjects
    }

    /// Starts the command that has to run before the ban; false if there is none, or no room in the queue.
    pub(super) fn run_first(&self, ban: &Ban, seen: SystemTime) -> bool {
        let Some(tasks) = self.hands.as_ref().filter(|_| self.first) else { return false };
        tasks.put(Task::Before { case: self.context(ban, seen) }).is_ok()
    }

    /// Queues a ban for the slow backends; false if there was no room.
    pub(super) fn queue_ban(&self, ban: &Ban, seen: SystemTime) -> bool {
        let Some(tasks) = &self.hands else { return true };
        let methods = self.slow_backends(!self.first);
        // An ended connection stays ended, a ban above the ceiling is short.
        if methods.is_empty() && (ban.capped || !self.end_connections) {
            return true;
        }
        tasks.put(Task::Block { case: self.context(ban, seen), methods }).is_ok()
    }

    /// Queues a ban that an operator asked for, likewise.
    pub(super) fn queue_manual_ban(&self, target: BanTarget, expiry: Expiry) -> bool {
        let Some(tasks) = &self.hands else { return true };
        let case = BanContext::by_hand(target, expiry, SystemTime::now());
        tasks.put(Task::Block { case, methods: self.slow_backends(true) }).is_ok()
    }

    /// True where scans of `protocol` only run the command.
    pub(super) fn only_runs_command(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp | Protocol::Sctp => self.tcp_tells,
            Protocol::Udp | Protocol::Icmp => self.udp_tells,
        }
    }

    /// Queues the command alone; false if there was no room.
    pub(super) fn queue_command(&self, ban: &Ban, seen: SystemTime) -> bool {
        let Some(tasks) = &self.hands else { return false };
        let methods = Arc::new([Backend::Command]);
        tasks.put(Task::Block { case: self.context(ban, seen), methods }).is_ok()
    }

    /// Ends the bans of `targets` with every backend but nftables. Routes that cannot be removed are retried by the backend.
    pub(super) fn release(&mut self, targets: &[BanTarget]) -> Result<(), route::BlockError> {
        if let Some(tasks) = self.hands.as_ref().filter(|_| self.has_slow_backends()) {
            for target in targets {
                // Without room in the queue, a line stays until its ban would have ended.
                let _ = tasks.put(Task::Release { subject: *target });
            }
        }
        self.routes.as_mut().map_or(Ok(()), |routes| routes.lift(targets))
    }

    fn slow_backends(&self, run: bool) -> Arc<[Backend]> {
        let slow = |backend: &Backend| match backend {
            Backend::HostsDeny => Some(Backend::HostsDeny),
            Backend::Command => run.then_some(Backend::Command),
            Backend::Nft | Backend::Route => None,
        };
        self.ways.iter().filter_map(slow).collect()
    }

    fn context(&self, ban: &Ban, seen: SystemTime) -> BanContext {
        let observation = &ban.probe.sighting;
        BanContext {
            subject: ban.probe.subject,
            source: observation.source,
            protocol: observation.protocol,
            port: observation.port,
            mode: match observation.protocol {
                Protocol::Tcp | Protocol::Sctp => self.tcp_mode,
                Protocol::Udp | Protocol::Icmp => self.udp_mode,
            },
            class: Some(observation.class),
            expiry: ban.expiry,
            since: seen,
            ban: Some(*ban),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_backends_keep_their_order() {
        let ways = vec![Backend::Command, Backend::Route, Backend::HostsDeny, Backend::Nft];
        let blocker = Blocker { ways, ..Blocker::default() };
        assert!(blocker.inline().eq([Backend::Route, Backend::Nft]));
        assert_eq!(*blocker.slow_backends(true), [Backend::Command, Backend::HostsDeny]);
        assert_eq!(*blocker.slow_backends(false), [Backend::HostsDeny]);
    }
}
