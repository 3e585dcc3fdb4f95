//! Judges sources without a new packet: those that waited while this host settled, and those whose bans the ceilings
//! withheld.

use super::candidates::Candidate;
use super::ceiling::Room;
use super::decide::taken;
use super::grade::Grade;
use super::key::Hashed;
use super::recent_ports::OwnPort;
use super::settling::Settling;
use super::sources::Evidence;
use super::{Engine, Host, Observation, PortLookup, Probe, Verdict};
use crate::types::{Protocol, Timestamp};

impl Engine {
    /// Returns the verdict on the next source that waited during settling, or whose ban a ceiling withheld and now has
    /// room; `None` if no source is left. Evidence about ports that turned out to be open is dropped first.
    pub fn judge_waiting(&mut self, now: Timestamp, host: &Host, lookup: &mut impl PortLookup) -> Option<Verdict> {
        let now = self.clock(now);
        if self.settling.lasts(now) {
            return None;
        }
        while let Some(probe) = self.settling.next_waiting() {
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
    pub(super) fn judge_again(
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
        let verdict = self.impose_ban_for(now, response, key, (held.slot, held.distinct), held.first, probe, host);
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

    /// Returns the verdict on the fastest candidate, if the ceilings have room for its ban.
    pub(super) fn judge_candidate(
        &mut self,
        now: Timestamp,
        host: &Host,
        lookup: &mut impl PortLookup,
    ) -> Option<Verdict> {
        if now < self.candidates.retry_at() {
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
        self.candidates.retry_later(now);
        None
    }
}
