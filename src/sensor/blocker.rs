//! Holds the backends that enforce bans, in the configured order. The sensor thread calls the fast ones (nftables,
//! routes) directly; the others receive tasks through the queue of their own thread.

use std::time::SystemTime;

use ipnet::IpNet;

use super::reporter::Reporter;
use crate::config::Mode;
use crate::enforce::nft::{BlockError, Nft, Trap};
use crate::enforce::route::{self, Routes};
use crate::enforce::slow_backends::SlowQueue;
use crate::enforce::{BanBackend, BanContext, ExemptPrefixes, Refused};
use crate::engine::{Ban, Host};
use crate::types::{Backend, BanTarget, Expiry, Protocol, Timestamp};

#[derive(Default)]
pub struct Blocker {
    /// All backends in their order; empty if no ban is enforced.
    pub backends: Vec<Backend>,
    pub nft: Option<Nft>,
    pub routes: Option<Routes>,
    /// Files with entries, and the command. The command may be present without being a backend, if it only reports
    /// scans.
    pub slow: Option<SlowQueue>,
    /// True while enforcement is suspended: scans are only logged.
    pub suspended: bool,
    /// True if TCP scans only run the command.
    pub tcp_tells: bool,
    /// True if UDP scans only run the command.
    pub udp_tells: bool,
    pub tcp_mode: Option<Mode>,
    pub udp_mode: Option<Mode>,
}

impl Blocker {
    /// The backends that the sensor thread calls directly, in their order; at most two.
    pub(super) fn inline(&self) -> impl Iterator<Item = Backend> + use<> {
        let mut inline = self.backends.iter().copied().filter(|backend| !backend.is_slow());
        [inline.next(), inline.next()].into_iter().flatten()
    }

    /// True if the slow backends enforce bans, alone or in addition to the inline ones.
    pub(super) fn has_slow_backends(&self) -> bool {
        self.slow.as_ref().is_some_and(SlowQueue::enforces)
    }

    pub(super) fn backend(&mut self, backend: Backend) -> Option<&mut dyn BanBackend> {
        Some(match backend {
            Backend::Nft => self.nft.as_mut()?,
            Backend::Route => self.routes.as_mut()?,
            _ => self.slow.as_mut()?,
        })
    }

    /// Queues `ban` for the slow backends; returns a refusal for each backend that did not accept it.
    pub(super) fn queue(&mut self, ban: BanContext, now: Timestamp) -> Vec<Refused> {
        let queue = self.slow.as_mut().map(|slow| slow.block(&[ban], now));
        queue.and_then(Result::ok).unwrap_or_default()
    }

    /// Returns the targets that `backend` should enforce and does not, as far as it can tell.
    pub(super) fn missing(&mut self, backend: Backend, targets: &[BanTarget]) -> Vec<BanTarget> {
        self.backend(backend).map_or_else(Vec::new, |backend| backend.missing(targets))
    }

    /// Ends the bans of `targets` with every backend except nftables; returns an error text for each backend that
    /// failed.
    pub(super) fn release(&mut self, targets: &[BanTarget]) -> Vec<String> {
        let slow = self.slow.as_mut().and_then(|slow| slow.lift(targets).err());
        let routes = self.routes.as_mut().and_then(|routes| BanBackend::lift(routes, targets).err());
        slow.into_iter().chain(routes).collect()
    }

    /// The nftables sets and the rules of the kernel's trap, if the table has one.
    pub(super) fn trap(&mut self) -> Option<(&mut Nft, Trap)> {
        let nft = self.nft.as_mut()?;
        let trap = nft.spec.trap?;
        Some((nft, trap))
    }

    /// Applies `change` to the nftables sets; does nothing if nft is not a backend.
    pub(super) fn change_sets(
        &mut self,
        change: impl FnOnce(&mut Nft) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        self.nft.as_mut().map_or(Ok(()), change)
    }

    /// Removes the element of exactly `target` from the nftables sets; false if there was none.
    pub(super) fn remove_element(&mut self, target: BanTarget) -> Result<bool, String> {
        let removed = self.nft.as_mut().map_or(Ok(false), |nft| nft.remove_ban(target));
        removed.map_err(|error| error.to_string())
    }

    /// Removes routes that have expired, if some are due.
    pub(super) fn expire_routes(&mut self, now: Timestamp, reporter: &Reporter) {
        if let Some(routes) = &mut self.routes
            && routes.next_due().is_some_and(|due| due <= now)
        {
            report_routes(routes.due(now).trouble, reporter);
        }
    }

    /// Removes routes that an earlier run left and that belong to no ban.
    pub(super) fn remove_stale_routes(&mut self, now: Timestamp, reporter: &Reporter) {
        let Some(routes) = &mut self.routes else { return };
        let removed = routes.sweep(now);
        if !removed.targets.is_empty() {
            let count = removed.targets.len();
            reporter.emit_note(format!("routes of an earlier run that belong to no ban were removed: {count}"));
        }
        report_routes(removed.trouble, reporter);
    }

    /// True if `target` should have a route.
    pub(super) fn wants_route(&self, target: BanTarget) -> bool {
        self.routes.as_ref().is_some_and(|routes| routes.is_wanted(target))
    }

    /// Keeps every backend but nftables away from exempt prefixes, and routes also from this host's own IPv6 networks;
    /// returns the targets whose routes were removed for that reason. Own IPv4 networks are not protected: a neighbour
    /// there is an ordinary address.
    pub fn keep_reachable(&mut self, host: &Host) -> Vec<BanTarget> {
        if let Some(slow) = &mut self.slow {
            // Lines of hosts.deny and commands name no link.
            slow.protect(ExemptPrefixes::new(host.allow.networks()));
        }
        let Some(routes) = &mut self.routes else { return Vec::new() };
        let own = host.networks.iter().copied().filter(|network| matches!(network, IpNet::V6(_)));
        let prefixes: Vec<IpNet> = host.allow.prefixes().chain(own).collect();
        routes.protect(&prefixes).targets
    }

    /// Starts the command that must run before the ban; false if there is none or the queue is full.
    pub(super) fn run_first(&self, ban: &Ban, seen: SystemTime) -> bool {
        self.slow.as_ref().is_some_and(|slow| slow.run_first(self.context(ban, ban.expiry, seen)))
    }

    /// Queues the command alone if scans of the protocol only run it; returns a refusal if it does not run.
    pub(super) fn queue_command(&self, ban: &Ban, seen: SystemTime) -> Option<Refused> {
        let tells = match ban.probe.observation.protocol {
            Protocol::Tcp | Protocol::Sctp => self.tcp_tells,
            Protocol::Udp | Protocol::Icmp => self.udp_tells,
        };
        let slow = self.slow.as_ref().filter(|_| tells && !self.suspended)?;
        slow.run_command(self.context(ban, ban.expiry, seen))
    }

    /// Builds the context that backends expect for `ban`, with `expiry` as its duration.
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
        reporter.error(format!("cannot remove expired routes, retrying: {error}"));
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
