//! Compares the sources that the kernel's trap caught with the sensor's verdicts, and remembers which of their packets were
//! no evidence. Asks no kernel, so that the simulation runs it as it is.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::excuses::Excuses;
use crate::engine::{Engine, HashKey, Host, IgnoreReason, Protection, Verdict};
use crate::types::{BanTarget, Protocol, Timestamp};
use crate::wire::{Delivery, Packet, TcpFlags, Transport};

/// The longest time that a source stays blocked without the sensor's own verdict, which takes milliseconds, or under a flood
/// as long as its ring buffer is deep.
pub const UNCONFIRMED_FOR: Duration = Duration::from_secs(2);

/// The flags that the trap looks at: with SYN alone among them a segment counts.
const OPENING: u16 = TcpFlags::FIN | TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK;

/// What the sensor knows about the trap's bans that it did not make itself.
pub struct TrapReview {
    /// Sources that the trap caught and the sensor has no verdict on, and since when.
    unconfirmed: HashMap<BanTarget, Timestamp>,
    excuses: Excuses,
}

/// How the trap counts: distinct ports that it forgives, and for how long each counts.
#[derive(Clone, Copy, Debug)]
pub struct Counting {
    pub forgiven: u8,
    pub window: Duration,
}

/// The sources that the trap caught, by the sensor's view of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Blocked by the sensor as well.
    pub confirmed: Vec<BanTarget>,
    /// Covered by a prefix ban.
    pub in_prefix: Vec<BanTarget>,
    pub exempt: Vec<(BanTarget, Protection)>,
    /// Without a verdict for [`UNCONFIRMED_FOR`], and the sensor knows why: as many ports as the trap counted are no evidence,
    /// or less than it took for one.
    pub excused: Vec<BanTarget>,
    /// Without a verdict for as long, for reasons that the sensor does not see.
    pub unexplained: Vec<BanTarget>,
}

impl Default for TrapReview {
    fn default() -> Self {
        let secret = RandomState::new();
        Self::new(HashKey(secret.hash_one(0), secret.hash_one(1)))
    }
}

impl TrapReview {
    /// Knows nothing yet. `secret` must be unpredictable to attackers.
    #[must_use]
    pub fn new(secret: HashKey) -> Self {
        Self { unconfirmed: HashMap::new(), excuses: Excuses::new(secret) }
    }

    /// Notes what `packet` was no evidence of, where the trap may have counted it, because it `watches` the port; `forgiven` are
    /// the ports of its source that its look-ups refuted.
    pub fn excuse(
        &mut self,
        now: Timestamp,
        packet: &Packet,
        verdict: Verdict,
        forgiven: &[(Protocol, u16)],
        watches: impl Fn((Protocol, u16)) -> bool,
    ) {
        let target = || BanTarget::of(packet.source);
        for port in forgiven {
            self.excuses.add(now, target(), *port);
        }
        // For these the trap has no eyes. A port that it does not watch, however open, excuses nothing.
        let Verdict::Ignored(
            IgnoreReason::Open
            | IgnoreReason::RecentlyOpen
            | IgnoreReason::RememberedService
            | IgnoreReason::Damaged
            | IgnoreReason::WrongInterface
            | IgnoreReason::NoSource,
        ) = verdict
        else {
            return;
        };
        let port = match packet.transport {
            Transport::Tcp { destination_port, flags, .. } if flags.0 & OPENING == TcpFlags::SYN => {
                (Protocol::Tcp, destination_port)
            }
            Transport::Udp { destination_port, .. } => (Protocol::Udp, destination_port),
            _ => return,
        };
        if packet.delivery == Delivery::Host && watches(port) {
            self.excuses.add(now, target(), port);
        }
    }

    /// Notes that the sensor took its own verdict on `target` back.
    pub fn acquit(&mut self, now: Timestamp, target: BanTarget) {
        self.excuses.acquit(now, target);
    }

    /// Sorts the sources that the trap `caught` and no review has sorted before. While the trap is `paused`, none is to stay blocked.
    pub fn review(
        &mut self,
        now: Timestamp,
        caught: impl Iterator<Item = BanTarget>,
        (counting, paused): (Counting, bool),
        engine: &Engine,
        host: &Host,
    ) -> Review {
        let mut review = Review::default();
        let unconfirmed = std::mem::take(&mut self.unconfirmed);
        for target in caught {
            let since = unconfirmed.get(&target).copied().unwrap_or(now);
            if engine.is_blocked(now, target) {
                review.confirmed.push(target);
            } else if engine.is_in_blocked_network(now, target.element()) {
                review.in_prefix.push(target);
            } else if let Some(protection) = host.exemption(target) {
                review.exempt.push((target, protection));
            } else if now.since(since) < UNCONFIRMED_FOR {
                self.unconfirmed.insert(target, since);
            } else if paused
                || engine.is_forgiven_peer(now, target)
                || engine.is_forgiven_related(now, target, host)
                || self.is_excused(now, target, counting, engine)
            {
                review.excused.push(target);
            } else {
                review.unexplained.push(target);
            }
        }
        review
    }

    /// True where the sensor has seen all ports that the trap counted, and some of them were no evidence.
    fn is_excused(&self, now: Timestamp, target: BanTarget, counting: Counting, engine: &Engine) -> bool {
        if self.excuses.is_acquitted(now, target) {
            return true;
        }
        let Counting { forgiven, window } = counting;
        let mut ports: HashSet<_> = self.excuses.ports(now, target, window.max(UNCONFIRMED_FOR * 2)).collect();
        let some = !ports.is_empty();
        ports.extend(engine.evidence(now, target));
        some && ports.len() > usize::from(forgiven)
    }
}
