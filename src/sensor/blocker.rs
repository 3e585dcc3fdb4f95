//! Holds the backends that enforce bans, in the configured order. The sensor thread calls the fast ones (nftables,
//! routes) directly; the others receive tasks through the queue of their own thread.

use std::time::SystemTime;

use super::reporter::Reporter;
use crate::config::{Config, Mode};
use crate::enforce::nft::{Nft, RulesetSpec, Trap};
use crate::enforce::slow_backends::SlowQueue;
use crate::enforce::{BackendHandles, BanContext, InlineBackend, MaintenanceReport, Refused};
use crate::engine::{Ban, Host};
use crate::types::{Backend, BanTarget, Expiry, Protocol, Response, Timestamp};

#[derive(Default)]
pub struct Blocker {
    /// The backends that the sensor thread calls directly, in their order.
    inline: [Option<Backend>; Backend::ALL.len()],
    /// Typed, because its table also holds the trap and the rules for decoys and own source addresses.
    nft: Option<Nft>,
    /// The other inline backends.
    others: BackendHandles,
    /// The slow backends. The command may be present without being a backend, if it only reports scans.
    slow: Option<SlowQueue>,
    tcp: ProtocolPolicy,
    udp: ProtocolPolicy,
}

/// What the configuration says about the ports of one protocol.
#[derive(Clone, Copy, Default)]
struct ProtocolPolicy {
    mode: Option<Mode>,
    /// True if scans only run the command.
    only_runs: bool,
}

impl Blocker {
    /// Enforces bans with `backends`, in this order; with none if it is empty. `nft` and `others` are the inline ones
    /// among them, and `slow` runs the rest.
    pub fn new(
        config: &Config,
        backends: &[Backend],
        nft: Option<Nft>,
        others: BackendHandles,
        slow: Option<SlowQueue>,
    ) -> Self {
        let mut inline = [None; Backend::ALL.len()];
        let chosen = backends.iter().copied().filter(|backend| !backend.is_slow());
        inline.iter_mut().zip(chosen).for_each(|(slot, backend)| *slot = Some(backend));
        let [tcp, udp] = [&config.tcp, &config.udp]
            .map(|config| ProtocolPolicy { mode: Some(config.mode), only_runs: config.block == Response::RunCommand });
        Self { inline, nft, others, slow, tcp, udp }
    }

    /// The backends that the sensor thread calls directly, in their order.
    pub(super) fn inline(&self) -> impl Iterator<Item = Backend> + use<> {
        self.inline.into_iter().flatten()
    }

    /// True if the slow backends enforce bans, alone or in addition to the inline ones.
    pub(super) fn has_slow_backends(&self) -> bool {
        self.slow.as_ref().is_some_and(SlowQueue::enforces)
    }

    /// True if a backend enforces bans.
    pub(super) fn enforces(&self) -> bool {
        self.has_slow_backends() || self.inline().next().is_some()
    }

    /// True if a backend other than nftables enforces bans.
    pub(super) fn enforces_beside_nft(&self) -> bool {
        self.has_slow_backends() || self.inline().any(|backend| backend != Backend::Nft)
    }

    pub(super) fn backend(&mut self, backend: Backend) -> Option<&mut dyn InlineBackend> {
        match backend {
            Backend::Nft => self.nft.as_mut().map(|nft| nft as _),
            _ if backend.is_slow() => self.slow.as_mut().map(|slow| slow as _),
            _ => self.others.iter_mut().find(|(one, _)| *one == backend).map(|(_, handle)| &mut **handle as _),
        }
    }

    /// Every backend except nftables.
    fn beside_nft(&mut self) -> impl Iterator<Item = &mut dyn InlineBackend> {
        let slow = self.slow.iter_mut().map(|slow| slow as &mut dyn InlineBackend);
        slow.chain(self.others.iter_mut().map(|(_, handle)| &mut **handle as &mut dyn InlineBackend))
    }

    /// The nftables sets; `None` if nft is not a backend.
    pub fn nft(&mut self) -> Option<&mut Nft> {
        self.nft.as_mut()
    }

    /// The nftables sets if their ruleset is as `is_wanted` requires.
    pub(super) fn nft_with(&mut self, is_wanted: impl Fn(&RulesetSpec) -> bool) -> Option<&mut Nft> {
        self.nft.as_mut().filter(|nft| is_wanted(nft.spec()))
    }

    /// Queues `ban` for the slow backends; returns a refusal for each backend that did not accept it.
    pub(super) fn queue(&mut self, ban: BanContext, now: Timestamp) -> Vec<Refused> {
        let queue = self.slow.as_mut().map(|slow| slow.block(&[ban], now));
        queue.and_then(Result::ok).unwrap_or_default()
    }

    /// True if `backend`, an inline one, should enforce a ban of `target`.
    pub(super) fn wants(&self, backend: Backend, target: BanTarget) -> bool {
        let other = self.others.iter().find(|(one, _)| *one == backend);
        other.is_none_or(|(_, handle)| handle.wants(target))
    }

    /// Returns the targets that `backend` should enforce and does not, as far as it can tell.
    pub(super) fn missing(&mut self, backend: Backend, targets: &[BanTarget]) -> Vec<BanTarget> {
        let Some(handle) = self.backend(backend) else { return Vec::new() };
        let wanted: Vec<BanTarget> = targets.iter().copied().filter(|target| handle.wants(*target)).collect();
        handle.missing(&wanted)
    }

    /// Ends the bans of `targets` with every backend except nftables; returns an error text for each backend that
    /// failed.
    pub(super) fn lift(&mut self, targets: &[BanTarget]) -> Vec<String> {
        self.beside_nft().filter_map(|backend| backend.lift(targets).err()).collect()
    }

    /// The nftables sets and the rules of the kernel's trap, if the table has one.
    pub(super) fn trap(&mut self) -> Option<(&mut Nft, Trap)> {
        let nft = self.nft.as_mut()?;
        let trap = nft.spec().trap?;
        Some((nft, trap))
    }

    /// Time at which [`Blocker::run_due`] has work to do.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.others.iter().filter_map(|(_, handle)| handle.next_due()).min()
    }

    /// Removes the element of exactly `target` from the nftables sets; false if there was none.
    pub(super) fn remove_element(&mut self, target: BanTarget) -> Result<bool, String> {
        let removed = self.nft().map_or(Ok(false), |nft| nft.remove_ban(target));
        removed.map_err(|error| error.to_string())
    }

    /// Ends the bans that have expired, with the backends whose bans do not expire by themselves.
    pub(super) fn run_due(&mut self, now: Timestamp, reporter: &Reporter) {
        for (_, handle) in &mut self.others {
            if handle.next_due().is_some_and(|due| due <= now) {
                handle.run_due(now).into_iter().for_each(|text| reporter.error(text));
            }
        }
    }

    /// Removes what an earlier run left in the inline backends and belongs to no ban.
    pub(super) fn remove_stale(&mut self, now: Timestamp, reporter: &Reporter) {
        for (_, handle) in &mut self.others {
            let MaintenanceReport { note, error } = handle.remove_stale(now);
            note.into_iter().for_each(|text| reporter.emit_note(text));
            error.into_iter().for_each(|text| reporter.error(text));
        }
    }

    /// Keeps every backend but nftables away from the exempt addresses of `host`; returns notes about the bans that
    /// ended for that reason.
    pub fn protect(&mut self, host: &Host) -> Vec<String> {
        self.beside_nft().flat_map(|backend| backend.protect(host)).collect()
    }

    /// Starts the command that must run before the ban; false if there is none or the queue is full.
    pub(super) fn run_first(&self, ban: &Ban, seen: SystemTime) -> bool {
        self.slow.as_ref().is_some_and(|slow| slow.run_first(self.context(ban, ban.expiry, seen)))
    }

    /// Queues the command alone if scans of the protocol only run it; returns a refusal if it does not run.
    pub(super) fn queue_command(&self, ban: &Ban, seen: SystemTime) -> Option<Refused> {
        let only_runs = self.policy(ban.probe.observation.protocol).only_runs;
        let slow = self.slow.as_ref().filter(|_| only_runs)?;
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
            mode: self.policy(observation.protocol).mode,
            class: Some(observation.class),
            expiry,
            since: seen,
            ban: Some(*ban),
        }
    }

    fn policy(&self, protocol: Protocol) -> ProtocolPolicy {
        if protocol.uses_udp_settings() { self.udp } else { self.tcp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_backends_keep_their_order() {
        let backends = [Backend::Command, Backend::Route, Backend::HostsDeny, Backend::Nft];
        let blocker = Blocker::new(&Config::default(), &backends, None, Vec::new(), None);
        assert!(blocker.inline().eq([Backend::Route, Backend::Nft]));
    }
}
