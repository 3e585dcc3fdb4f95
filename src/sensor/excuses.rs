//! Remembers packets that the kernel's trap may have counted, but that are not probes according to the sensor: their
//! port is in use, or the kernel drops them later. The table is bounded: if two sources share a slot, the later one
//! keeps it, and the ban of the other is shortened instead of removed.

use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::engine::HashKey;
use crate::types::{BanTarget, Protocol, Timestamp};

/// Maximum number of sources. The trap bans few sources at one time.
const PLACES: usize = 1_024;

/// Maximum number of ports per source: one more than the trap can be configured to forgive.
const PORTS: usize = 16;

/// Time for which a refuted verdict is remembered: twice the time that the sensor takes to review the trap's bans.
const REFUTED_FOR: Duration = Duration::from_secs(6);

pub(super) struct Excuses {
    secret: HashKey,
    places: Box<[Option<Excused>]>,
}

/// Evidence against one source that does not count.
#[derive(Clone, Copy)]
struct Excused {
    target: BanTarget,
    last: Timestamp,
    /// Time at which the sensor's own verdict was refuted.
    refuted: Option<Timestamp>,
    ports: [Option<(Protocol, u16)>; PORTS],
}

impl Excuses {
    pub(super) fn new(secret: HashKey) -> Self {
        Self { secret, places: vec![None; PLACES].into() }
    }

    /// Records that a packet of `target` to `port` is not a probe.
    pub(super) fn add(&mut self, now: Timestamp, target: BanTarget, port: (Protocol, u16)) {
        let Some(excused) = self.entry(now, target) else { return };
        if !excused.ports.contains(&Some(port))
            && let Some(free) = excused.ports.iter_mut().find(|free| free.is_none())
        {
            *free = Some(port);
        }
    }

    /// Records that the sensor's own verdict on `target` was refuted.
    pub(super) fn refute(&mut self, now: Timestamp, target: BanTarget) {
        if let Some(excused) = self.entry(now, target) {
            excused.refuted = Some(now);
        }
    }

    /// True if the verdict was refuted within [`REFUTED_FOR`], so that the trap may have banned the source for the
    /// same packets.
    pub(super) fn is_refuted(&self, now: Timestamp, target: BanTarget) -> bool {
        let refuted = self.get(target).and_then(|excused| excused.refuted);
        refuted.is_some_and(|at| now.since(at) <= REFUTED_FOR)
    }

    fn entry(&mut self, now: Timestamp, target: BanTarget) -> Option<&mut Excused> {
        let place = self.places.get_mut(index(self.secret, target))?;
        if place.is_none_or(|excused| excused.target != target) {
            *place = Some(Excused { target, last: now, refuted: None, ports: [None; PORTS] });
        }
        let excused = place.as_mut()?;
        excused.last = now;
        Some(excused)
    }

    fn get(&self, target: BanTarget) -> Option<&Excused> {
        let place = self.places.get(index(self.secret, target))?;
        place.as_ref().filter(|excused| excused.target == target)
    }

    /// Returns the excused ports of `target` if the last one is at most `window` old.
    pub(super) fn ports(
        &self,
        now: Timestamp,
        target: BanTarget,
        window: Duration,
    ) -> impl Iterator<Item = (Protocol, u16)> + '_ {
        let excused = self.get(target).filter(|excused| now.since(excused.last) <= window);
        excused.into_iter().flat_map(|excused| excused.ports.iter().flatten().copied())
    }
}

fn index(secret: HashKey, target: BanTarget) -> usize {
    let mut hasher = SipHasher13::new_with_keys(secret.0, secret.1);
    target.hash(&mut hasher);
    usize::try_from(hasher.finish() % PLACES as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::at;

    #[test]
    fn excuses_are_bounded_and_expire() {
        let mut excuses = Excuses::new(HashKey(1, 2));
        let target: BanTarget = "192.0.2.7".parse().unwrap();
        for port in [901, 902, 901].into_iter().chain(1..100) {
            excuses.add(at(1), target, (Protocol::Tcp, port));
        }
        let window = Duration::from_secs(10);
        assert_eq!(excuses.ports(at(11), target, window).count(), PORTS);
        assert_eq!(excuses.ports(at(12), target, window).count(), 0);
        for n in 0..100_000_u32 {
            excuses.add(at(1), BanTarget::V4(n.into()), (Protocol::Udp, 9));
        }
        assert_eq!(excuses.ports(at(1), target, window).count(), 0, "later sources have replaced it");
    }
}
