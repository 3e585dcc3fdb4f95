//! Judges sources without a new packet: those that waited while this host settled, and those whose bans the ceilings
//! withheld.
//!
//! After a boot the services of this host start one by one, and no source is banned before all have started. Probes are
//! counted meanwhile, and each source with enough evidence is judged again afterwards.
//!
//! The sources whose bans were withheld compete for the next bans. A flood of forged packets must not use up the bans
//! of a minute just because its packets come first. So the last ban goes to the fastest scanner.

use std::collections::VecDeque;
use std::time::Duration;

use super::ceiling::Room;
use super::class::Grade;
use super::decide::taken;
use super::key::Hashed;
use super::sources::{Evidence, Pace};
use super::{Engine, Host, Observation, PortLookup, Probe, Service, Verdict};
use crate::types::{Protocol, Tick, Timestamp};

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

    /// Starts settling, at most until `until`.
    pub(super) fn start(until: Timestamp) -> Self {
        Self { until: Some(until), waiting: VecDeque::with_capacity(MAX_WAITING) }
    }

    /// Ends settling; waiting sources are judged again.
    pub(super) fn end(&mut self) {
        self.until = None;
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

/// Maximum number of candidates. A flood fills the list with its fastest sources.
const MAX_CANDIDATES: usize = 16;

/// A candidate that sends nothing for this time leaves the list: the flood may be over.
const SILENT: Duration = Duration::from_secs(10);

/// Time between two attempts to ban the fastest candidate.
const RETRY: Duration = Duration::from_millis(250);

#[derive(Clone, Copy)]
struct Candidate {
    key: Hashed,
    grade: Grade,
    pace: Pace,
    observation: Observation,
}

pub(super) struct Candidates {
    entries: Vec<Candidate>,
    retry_at: Timestamp,
}

impl Candidates {
    pub(super) fn new() -> Self {
        Self { entries: Vec::with_capacity(MAX_CANDIDATES), retry_at: Timestamp::ZERO }
    }

    /// Records that the ban of the source of `observation` was withheld. A full list drops its slowest candidate.
    pub(super) fn enter(&mut self, key: Hashed, grade: Grade, pace: Pace, observation: Observation) {
        let candidate = Candidate { key, grade, pace, observation };
        let now = pace.at;
        if let Some(known) = self.entries.iter_mut().find(|known| known.key.key == key.key) {
            // The capture shows a packet of a guest on the bridge port first, then on the bridge.
            let (last, new) = (known.observation, candidate.observation);
            *known = candidate;
            if new.bridge_port == 0 && new.interface == last.interface {
                known.observation.bridge_port = last.bridge_port;
            }
        } else if self.entries.len() < MAX_CANDIDATES {
            self.entries.push(candidate);
        } else if let Some(slowest) = self.entries.iter_mut().min_by_key(|known| known.pace.ports(now))
            && slowest.pace.ports(now) < pace.ports(now)
        {
            *slowest = candidate;
        }
    }

    pub(super) fn remove(&mut self, key: Hashed) {
        self.entries.retain(|known| known.key.key != key.key);
    }

    /// True if no candidate with evidence of this grade is faster.
    pub(super) fn is_fastest(&self, grade: Grade, pace: Pace) -> bool {
        let now = pace.at;
        let mut rivals = self.entries.iter().filter(|known| known.grade == grade && known.is_active(now));
        rivals.all(|rival| rival.pace.ports(now) <= pace.ports(now))
    }

    fn fastest(&mut self, grade: Grade, now: Tick) -> Option<Candidate> {
        self.entries.retain(|known| known.is_active(now));
        let candidates = self.entries.iter().filter(|known| known.grade == grade);
        candidates.max_by_key(|known| known.pace.ports(now)).copied()
    }

    /// Time of the next attempt to ban the fastest candidate.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        (!self.entries.is_empty()).then_some(self.retry_at)
    }
}

impl Candidate {
    fn is_active(&self, now: Tick) -> bool {
        now.since(self.pace.at) <= Tick::ticks(SILENT)
    }
}

impl Engine {
    /// Returns the verdict on the next source that waited during settling, or whose ban a ceiling withheld and now has
    /// room; `None` if no source is left. Evidence about ports that turned out to be open is dropped first.
    pub fn judge_waiting(&mut self, now: Timestamp, host: &Host, lookup: &mut impl PortLookup) -> Option<Verdict> {
        let now = self.clock(now);
        if self.settling.lasts(now) {
            return None;
        }
        while let Some(probe) = self.settling.waiting.pop_front() {
            let target = host.target(probe.source, probe.interface);
            let key = self.key_of(target, self.response_to(probe.protocol, probe.class));
            if let Some(verdict) = self.judge_again(now, key, probe, host, lookup) {
                return Some(verdict);
            }
        }
        // Frees the memory, which is no longer needed.
        self.settling = Settling::new();
        self.judge_candidate(now, host, lookup)
    }

    /// Judges a source whose evidence is stored under `key` without a new packet; `observation` is its last probe.
    fn judge_again(
        &mut self,
        now: Timestamp,
        key: Hashed,
        observation: Observation,
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Option<Verdict> {
        let target = host.target(observation.source, observation.interface);
        let exempt = host.protection(observation.source, target).is_some();
        let response = self.response_to(observation.protocol, observation.class);
        if exempt || self.bans.table.get(self.key_of(target, response), now.tick()).is_some() {
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
        let verdict = self.impose_ban_for(now, key, (held.slot, held.distinct), held.first, probe, host);
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
        let own = Service { address: observation.destination, protocol, port };
        if listeners.is_open_anywhere(port)
            || host.services.contains(protocol, observation.destination, port)
            || self.recent_ports.holds(own, observation.source, now.tick())
        {
            return true;
        }
        self.is_used(now, observation, (protocol, port), lookup)
    }

    /// Returns the verdict on the fastest candidate, if the ceilings have room for its ban.
    fn judge_candidate(&mut self, now: Timestamp, host: &Host, lookup: &mut impl PortLookup) -> Option<Verdict> {
        if now < self.candidates.retry_at {
            return None;
        }
        for grade in [Grade::Proven, Grade::Forgeable] {
            while let Some(Candidate { key, observation, .. }) = self.candidates.fastest(grade, now.tick()) {
                let response = self.response_to(observation.protocol, observation.class);
                let held = self.sources.held(key, now.tick());
                if held.is_some_and(|held| self.room(now, response, (held.slot, held.distinct)) == Room::Withheld) {
                    break;
                }
                self.candidates.remove(key);
                let verdict = self.judge_again(now, key, observation, host, lookup);
                if verdict.is_some() {
                    return verdict;
                }
            }
        }
        self.candidates.retry_at = now.after(RETRY);
        None
    }
}
