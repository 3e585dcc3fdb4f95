//! The backends that enforce bans, in the configured order. Those that take microseconds (nftables, routes) are used by the
//! sensor itself; the others get tasks for their own thread.

use std::time::SystemTime;

use ipnet::IpNet;

use super::reporter::Reporter;
use crate::enforce::nft::{BlockError, Nft, NftBackend, Trap};
use crate::enforce::route::{self, Routes};
use crate::enforce::slow_backends::SlowQueue;
use crate::enforce::{BanBackend, BanContext, Gone, Refused};
use crate::engine::{ActiveBan, Ban, Host};
use crate::types::{Backend, BanTarget, Expiry, Protocol, Timestamp};

/// The configured backends.
#[derive(Default)]
pub struct Blocker {
    /// All backends in their order; none where sources are only logged.
    pub backends: Vec<Backend>,
    pub nft: Option<NftBackend>,
    pub routes: Option<Routes>,
    /// hosts.deny and the command. There may be a command that is no backend: one that only tells of scans.
    pub slow: Option<SlowQueue>,
    /// Nothing is enforced for the time being: scans are only logged.
    pub suspended: bool,
    /// Scans of TCP only run the command.
    pub tcp_tells: bool,
    /// Scans of UDP only run the command.
    pub udp_tells: bool,
    /// The classic name of the mode for TCP.
    pub tcp_mode: &'static str,
    /// The classic name of the mode for UDP.
    pub udp_mode: &'static str,
}

impl Blocker {
    /// True where sources are blocked, with any backend.
    pub(super) fn is_enabled(&self) -> bool {
        !self.backends.is_empty()
    }

    /// The backends that the sensor uses itself, in their order. There are two at most.
    pub(super) fn inline(&self) -> impl Iterator<Item = Backend> + use<> {
        let mut inline =
            self.backends.iter().copied().filter(|backend| matches!(backend, Backend::Nft | Backend::Route));
        [inline.next(), inline.next()].into_iter().flatten()
    }

    /// True where bans are also, or only, enforced by the slow backends.
    pub(super) fn has_slow_backends(&self) -> bool {
        self.slow.as_ref().is_some_and(SlowQueue::enforces)
    }

    fn backend(&mut self, backend: Backend) -> Option<&mut dyn BanBackend> {
        Some(match backend {
            Backend::Nft => self.nft.as_mut()?,
            Backend::Route => self.routes.as_mut()?,
            Backend::HostsDeny | Backend::Command => self.slow.as_mut()?,
        })
    }

    /// Blocks `bans` with `backend`; which of them were refused.
    pub(super) fn block(
        &mut self,
        backend: Backend,
        bans: &[BanContext],
        now: Timestamp,
    ) -> Result<Vec<Refused>, Gone> {
        self.backend(backend).map_or(Ok(Vec::new()), |backend| backend.block(bans, now))
    }

    /// Queues `ban` for the slow backends; which of them refused it.
    pub(super) fn queue(&mut self, ban: BanContext, now: Timestamp) -> Vec<Refused> {
        let queue = self.slow.as_mut().map(|slow| slow.block(&[ban], now));
        queue.and_then(Result::ok).unwrap_or_default()
    }

    /// Blocks with `backend` what it has lost, for the time that is left; which of the bans were refused.
    pub(super) fn put_back(
        &mut self,
        backend: Backend,
        bans: &[ActiveBan],
        now: Timestamp,
    ) -> Result<Vec<Refused>, Gone> {
        self.backend(backend).map_or(Ok(Vec::new()), |backend| backend.put_back(bans, now))
    }

    /// Which of `targets` should be enforced with `backend`, as far as it knows, and are not.
    pub(super) fn missing(&mut self, backend: Backend, targets: &[BanTarget]) -> Vec<BanTarget> {
        self.backend(backend).map_or_else(Vec::new, |backend| backend.missing(targets))
    }

    /// Ends the bans of `targets` with every backend but nftables; a text for each backend that could not.
    pub(super) fn release(&mut self, targets: &[BanTarget]) -> Vec<String> {
        let [slow, routes] = [Backend::HostsDeny, Backend::Route]
            .map(|backend| self.backend(backend).and_then(|backend| backend.lift(targets).err()));
        [slow, routes].into_iter().flatten().collect()
    }

    /// The sets of nftables and the rules of the kernel's trap, where the table has one.
    pub(super) fn trap(&mut self) -> Option<(&mut Nft, Trap)> {
        self.nft.as_mut()?.trap()
    }

    /// Applies `change` to the sets of nftables; does nothing where that is no backend.
    pub(super) fn change_sets(
        &mut self,
        change: impl FnOnce(&mut Nft) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        self.nft.as_mut().map_or(Ok(()), |backend| change(&mut backend.nft))
    }

    /// Whether the sets of nftables block `target`; always without them.
    pub(super) fn is_in_sets(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        self.nft.as_mut().map_or(Ok(true), |backend| Ok(backend.nft.holds(target)?.is_some()))
    }

    /// Removes the element of exactly `target` from the sets of nftables; false if there was none.
    pub(super) fn remove_from_sets(&mut self, target: BanTarget) -> Result<bool, BlockError> {
        self.nft.as_mut().map_or(Ok(false), |backend| backend.remove(target))
    }

    /// Has the table include sets for prefixes whenever it is created again.
    pub(super) fn plan_prefix_sets(&mut self) {
        if let Some(backend) = &mut self.nft {
            backend.spec.wide = true;
        }
    }

    /// When routes expire, or one that could not be removed is to be tried again.
    pub(super) fn next_route_due(&self) -> Option<Timestamp> {
        self.routes.as_ref().and_then(Routes::next_due)
    }

    /// Removes routes that have expired, if some are due.
    pub(super) fn expire_routes(&mut self, now: Timestamp, reporter: &Reporter) {
        if let Some(routes) = &mut self.routes
            && routes.next_due().is_some_and(|due| due <= now)
        {
            report_routes(routes.due(now).trouble, reporter);
        }
    }

    /// Removes routes of an earlier run that belong to no ban.
    pub(super) fn remove_stale_routes(&mut self, now: Timestamp, reporter: &Reporter) {
        let Some(routes) = &mut self.routes else { return };
        let removed = routes.sweep(now);
        if !removed.targets.is_empty() {
            let count = removed.targets.len();
            reporter.note(format!("routes of an earlier run without a ban were removed: {count}"));
        }
        report_routes(removed.trouble, reporter);
    }

    /// True where there should be a route for `target`.
    pub(super) fn wants_route(&self, target: BanTarget) -> bool {
        self.routes.as_ref().is_some_and(|routes| routes.is_wanted(target))
    }

    /// Keeps routes clear of everything that is never blocked and of this host's own networks; returns the targets whose
    /// routes were removed for that. Own IPv4 networks are left out: a neighbour there is an address like any other.
    pub(super) fn keep_reachable(&mut self, host: &Host) -> Vec<BanTarget> {
        let Some(routes) = &mut self.routes else { return Vec::new() };
        let own = host.networks.iter().copied().filter(|network| matches!(network, IpNet::V6(_)));
        let prefixes: Vec<IpNet> = host.allow.prefixes().chain(own).collect();
        routes.protect(&prefixes).targets
    }

    /// Starts the command that has to run before the ban; false if there is none, or no room in the queue.
    pub(super) fn run_first(&self, ban: &Ban, seen: SystemTime) -> bool {
        self.slow.as_ref().is_some_and(|slow| slow.run_first(self.context(ban, ban.expiry, seen)))
    }

    /// Queues the command alone; false if there was no room.
    pub(super) fn queue_command(&self, ban: &Ban, seen: SystemTime) -> bool {
        self.slow.as_ref().is_some_and(|slow| slow.run_command(self.context(ban, ban.expiry, seen)))
    }

    /// True where scans of `protocol` only run the command.
    pub(super) fn only_runs_command(&self, protocol: Protocol) -> bool {
        let tells = match protocol {
            Protocol::Tcp | Protocol::Sctp => self.tcp_tells,
            Protocol::Udp | Protocol::Icmp => self.udp_tells,
        };
        tells && !self.suspended
    }

    /// `ban` as backends take it, with the time that it is to last.
    pub(super) fn context(&self, ban: &Ban, expiry: Expiry, seen: SystemTime) -> BanContext {
        let observation = &ban.probe.observation;
        BanContext {
            target: ban.probe.target,
            source: observation.source,
            protocol: observation.protocol,
            port: observation.port,
            mode: match observation.protocol {
                Protocol::Tcp | Protocol::Sctp => self.tcp_mode,
                Protocol::Udp | Protocol::Icmp => self.udp_mode,
            },
            class: Some(observation.class),
            expiry,
            since: seen,
            ban: Some(*ban),
        }
    }
}

fn report_routes(failure: Option<route::BlockError>, reporter: &Reporter) {
    if let Some(error) = failure {
        reporter.error(format!("routes could not be taken away, which is tried again: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_backends_keep_their_order() {
        let backends = vec![Backend::Command, Backend::Route, Backend::HostsDeny, Backend::Nft];
        let blocker = Blocker { backends, ..Blocker::default() };
        assert!(blocker.inline().eq([Backend::Route, Backend::Nft]));
    }
}
