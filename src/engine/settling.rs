//! Delays bans while the host settles: after a boot its services start one by one, and no source is banned before all
//! have started. Probes are counted meanwhile, and each source with enough evidence is judged again afterwards.

use std::collections::VecDeque;

use super::decide::taken;
use super::key::Hashed;
use super::recent_ports::OwnPort;
use super::sources::Evidence;
use super::{Engine, Host, Observation, PortLookup, Probe, Verdict};
use crate::types::{Protocol, Timestamp};

/// Maximum number of sources that wait to be judged again. Further sources are judged at their next probe.
const MAX_WAITING: usize = 1_024;

pub(super) struct Settling {
    /// `None` if settling is not active.
    until: Option<Timestamp>,
    /// The last probe of each waiting source.
    waiting: VecDeque<Observation>,
}

impl Settling {
    pub(super) fn new() -> Self {
        Self { until: None, waiting: VecDeque::new() }
    }

    pub(super) fn lasts(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Makes the source of `probe` wait, if there is room.
    pub(super) fn wait(&mut self, probe: Observation) {
        if self.waiting.len() < self.waiting.capacity() {
            self.waiting.push_back(probe);
        }
    }

    /// Time at which the next source may be judged again.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.filter(|until| *until > now).or_else(|| (!self.waiting.is_empty()).then_some(now))
    }
}

impl Engine {
    /// Bans no source until `until`, or until [`Engine::end_settling`].
    pub fn start_settling(&mut self, until: Timestamp) {
        self.settling = Settling { until: Some(until), waiting: VecDeque::with_capacity(MAX_WAITING) };
    }

    /// Ends settling, because this host's services have started.
    pub fn end_settling(&mut self) {
        self.settling.until = None;
    }

    /// True while no source is banned.
    #[must_use]
    pub fn is_settling(&self, now: Timestamp) -> bool {
        self.settling.lasts(self.latest.max(now))
    }

    /// Returns the verdict on the next source that waited during settling, or whose ban a ceiling withheld and now has
    /// room; `None` if no source is left. Evidence about ports that turned out to be open is dropped first.
    pub fn judge_waiting(&mut self, now: Timestamp, host: &Host, lookup: &mut impl PortLookup) -> Option<Verdict> {
        let now = self.clock(now);
        if self.settling.lasts(now) {
            return None;
        }
        while let Some(probe) = self.settling.waiting.pop_front() {
            let target = host.target(probe.source, probe.interface);
            let key = self.key_of(target, self.track_of(probe.protocol, probe.class));
            if let Some(verdict) = self.judge_again(now, key, probe, host, lookup) {
                return Some(verdict);
            }
        }
        // Frees the memory, which is no longer needed.
        self.settling = Settling::new();
        self.judge_candidate(now, host, lookup)
    }

    /// Judges a source whose evidence is stored under `key` without a new packet; `observation` is its last probe.
    pub(super) fn judge_again(
        &mut self,
        now: Timestamp,
        key: Hashed,
        observation: Observation,
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Option<Verdict> {
        let exempt = host.protection(observation.source, observation.interface).is_some();
        let target = host.target(observation.source, observation.interface);
        let track = self.track_of(observation.protocol, observation.class);
        if exempt || self.ban_table.get(self.key_of(target, track), now.tick()).is_some() {
            return None;
        }
        for item in taken(self.sources.within(key, now.tick())).into_iter().flatten() {
            let (Some(protocol), port) = (item.protocol(), item.port()) else { continue };
            if !item.is_conclusive() && self.is_served(now, &observation, (protocol, port), host, lookup) {
                self.sources.forgive(key, protocol, port);
            }
        }
        let held = self.sources.held(key, now.tick())?;
        let conclusive = self.sources.within(key, now.tick()).any(Evidence::is_conclusive);
        if !conclusive && !self.exceeds_threshold(now, (target, held.first), (held.slot, held.distinct), host) {
            return None;
        }
        let probe = Probe { observation, target, distinct: held.distinct, probes: held.probes, fresh: false };
        let verdict = self.impose_ban_for(now, track, key, (held.slot, held.distinct), held.first, probe, host);
        // Above the ceilings the source is judged again at its next probes.
        (!matches!(verdict, Verdict::Probe(_))).then_some(verdict)
    }

    /// True if a port of this host is in use now, regardless of its state when it was probed. The evidence stores only
    /// the port, so any address of this host counts.
    fn is_served(
        &mut self,
        now: Timestamp,
        observation: &Observation,
        (protocol, port): (Protocol, u16),
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> bool {
        let listeners = match protocol {
            Protocol::Tcp => &host.tcp,
            Protocol::Udp => &host.udp,
            Protocol::Sctp | Protocol::Icmp => return false,
        };
        let own = OwnPort { address: observation.destination, protocol, port };
        if listeners.is_open_anywhere(port)
            || host.services.contains(protocol, observation.destination, port)
            || self.recent_ports.holds(own, observation.source, now.tick())
        {
            return true;
        }
        self.is_used(now, observation, (protocol, port), lookup)
    }
}
