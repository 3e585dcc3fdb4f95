//! Remembers packets that the kernel's trap may have counted and the sensor found to be no probes: their port turned out to
//! be in use, or the kernel drops them later. Bounded: of two sources that share a place the later one
//! keeps it, and the ban of the other is shortened instead of lifted.

use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::engine::HashKey;
use crate::types::{BanTarget, Protocol, Timestamp};

/// Sources at one time. The trap bans few at once.
const PLACES: usize = 1_024;

/// Ports of one source, as many as the trap can be told to forgive and one more.
const PORTS: usize = 16;

/// Twice as long as the sensor takes to review what the trap caught.
const ACQUITTED_FOR: Duration = Duration::from_secs(6);

pub(super) struct Excuses {
    secret: HashKey,
    places: Box<[Option<Excused>]>,
}

/// What is no evidence against a source.
#[derive(Clone, Copy)]
struct Excused {
    target: BanTarget,
    last: Timestamp,
    /// The sensor's own verdict was refuted then.
    acquitted: Option<Timestamp>,
    ports: [Option<(Protocol, u16)>; PORTS],
}

impl Excuses {
    pub(super) fn new(secret: HashKey) -> Self {
        Self { secret, places: vec![None; PLACES].into() }
    }

    /// Notes that a packet of `target` to this port is no probe.
    pub(super) fn add(&mut self, now: Timestamp, target: BanTarget, port: (Protocol, u16)) {
        let Some(excused) = self.entry(now, target) else { return };
        if !excused.ports.contains(&Some(port))
            && let Some(free) = excused.ports.iter_mut().find(|free| free.is_none())
        {
            *free = Some(port);
        }
    }

    /// Notes that the sensor's own verdict on `target` was refuted.
    pub(super) fn acquit(&mut self, now: Timestamp, target: BanTarget) {
        if let Some(excused) = self.entry(now, target) {
            excused.acquitted = Some(now);
        }
    }

    /// True where that was a moment ago, when the trap may have banned it for the same packets.
    pub(super) fn is_acquitted(&self, now: Timestamp, target: BanTarget) -> bool {
        let acquitted = self.get(target).and_then(|excused| excused.acquitted);
        acquitted.is_some_and(|at| now.since(at) <= ACQUITTED_FOR)
    }

    fn entry(&mut self, now: Timestamp, target: BanTarget) -> Option<&mut Excused> {
        let place = self.places.get_mut(index(self.secret, target))?;
        if place.is_none_or(|excused| excused.target != target) {
            *place = Some(Excused { target, last: now, acquitted: None, ports: [None; PORTS] });
        }
        let excused = place.as_mut()?;
        excused.last = now;
        Some(excused)
    }

    fn get(&self, target: BanTarget) -> Option<&Excused> {
        let place = self.places.get(index(self.secret, target))?;
        place.as_ref().filter(|excused| excused.target == target)
    }

    /// The ports that `target` is excused for since `window` ago.
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

    #[test]
    fn excuses_are_bounded_and_expire() {
        let mut excuses = Excuses::new(HashKey(1, 2));
        let at = |seconds| Timestamp::at(Duration::from_secs(seconds));
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
