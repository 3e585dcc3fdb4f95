//! Compares the sources that the kernel's trap blocked with the sensor's verdicts, and remembers which of their packets
//! were not evidence. Does no I/O, so that the simulation can run it unchanged.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use crate::engine::{Engine, HashKey, Host, IgnoreReason, Protection, Verdict, is_unicast};
use crate::types::{BanTarget, Protocol, Timestamp};
use crate::wire::{Delivery, Packet, TcpFlags, Transport};

/// Maximum time for which a source stays blocked without a verdict of the sensor. A verdict takes milliseconds, or
/// under a flood the time to process a full ring buffer.
pub const UNCONFIRMED_FOR: Duration = Duration::from_secs(2);

/// The flags that the trap examines: a segment counts if SYN is the only one of them that is set.
const EXAMINED_FLAGS: u16 = TcpFlags::FIN | TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK;

/// Pending reviews of the trap's bans.
pub struct TrapReview {
    /// Sources blocked by the trap without a verdict of the sensor, each with the time of the first review.
    unconfirmed: HashMap<BanTarget, Timestamp>,
    excuses: Excuses,
}

/// Counting rules of the trap: the number of forgiven ports, and the time for which each counts.
#[derive(Clone, Copy, Debug)]
pub struct Counting {
    pub forgiven: u8,
    pub window: Duration,
}

/// Reviewed sources, grouped by the sensor's assessment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Blocked by the sensor as well.
    pub confirmed: Vec<BanTarget>,
    /// Covered by a prefix ban.
    pub in_prefix: Vec<BanTarget>,
    pub exempt: Vec<(BanTarget, Protection)>,
    /// Enough evidence for a ban of the sensor, but its ceilings had no room.
    pub withheld: Vec<BanTarget>,
    /// The sensor knows why the trap banned them: some of the ports are not evidence, or the sensor withdrew its
    /// verdict. Also those without a verdict for [`UNCONFIRMED_FOR`] whose ports the sensor forgives, or that the trap
    /// banned before it was paused.
    pub excused: Vec<BanTarget>,
    /// Without a verdict for [`UNCONFIRMED_FOR`], and unexplained.
    pub unexplained: Vec<BanTarget>,
}

impl Default for TrapReview {
    fn default() -> Self {
        let secret = RandomState::new();
        Self::new(HashKey(secret.hash_one(0), secret.hash_one(1)))
    }
}

impl TrapReview {
    /// Creates an empty review. `secret` must be unpredictable to attackers.
    pub fn new(secret: HashKey) -> Self {
        Self { unconfirmed: HashMap::new(), excuses: Excuses::new(secret) }
    }

    /// Records that `packet` is not evidence, if the trap may have counted it (`watches` its port). `withdrawn` are
    /// ports of its source that look-ups have refuted.
    pub fn excuse(
        &mut self,
        now: Timestamp,
        packet: &Packet,
        verdict: Verdict,
        withdrawn: &[(Protocol, u16)],
        watches: impl Fn((Protocol, u16)) -> bool,
    ) {
        let target = || BanTarget::containing(packet.source);
        for port in withdrawn {
            self.excuses.add(now, target(), *port);
        }
        // The trap cannot see these reasons. A packet to an unmonitored port excuses nothing, even if the port is open.
        let Verdict::Ignored(
            IgnoreReason::Open
            | IgnoreReason::RecentlyOpen
            | IgnoreReason::RememberedService
            | IgnoreReason::Damaged
            | IgnoreReason::NotUnicast
            | IgnoreReason::NotOurs
            | IgnoreReason::WrongInterface
            | IgnoreReason::NoSource,
        ) = verdict
        else {
            return;
        };
        let port = match packet.transport {
            Transport::Tcp { destination_port, flags, .. } if flags.0 & EXAMINED_FLAGS == TcpFlags::SYN => {
                (Protocol::Tcp, destination_port)
            }
            Transport::Udp { destination_port, .. } => (Protocol::Udp, destination_port),
            _ => return,
        };
        let counted = match packet.delivery {
            Delivery::Host => true,
            // The kernel may drop these (`drop_unicast_in_l2_multicast`), but only after the trap.
            Delivery::Broadcast | Delivery::Multicast => port.0 == Protocol::Udp,
            _ => false,
        };
        // The kernel treats the first address of each network on its links as an own anycast address.
        let is_first = matches!(packet.destination, IpAddr::V6(v6) if v6.octets().ends_with(&[0]));
        let is_counted = counted && is_unicast(packet.destination);
        let is_forwarded = verdict == Verdict::Ignored(IgnoreReason::NotOurs);
        if is_counted && (!is_forwarded || is_first && port.0 == Protocol::Udp) && watches(port) {
            self.excuses.add(now, target(), port);
        }
    }

    /// Records that the sensor withdrew its own verdict on `target`.
    pub fn refute(&mut self, now: Timestamp, target: BanTarget) {
        self.excuses.refute(now, target);
    }

    /// Reviews the sources banned by the trap. While the trap is `paused`, a source without a verdict is excused
    /// after [`UNCONFIRMED_FOR`].
    pub fn review(
        &mut self,
        now: Timestamp,
        trap_banned: impl Iterator<Item = BanTarget>,
        (counting, paused): (Counting, bool),
        engine: &Engine,
        host: &Host,
    ) -> Review {
        let mut review = Review::default();
        let unconfirmed = std::mem::take(&mut self.unconfirmed);
        for target in trap_banned {
            let since = unconfirmed.get(&target).copied().unwrap_or(now);
            if engine.is_blocked(now, target) {
                review.confirmed.push(target);
            } else if engine.is_in_blocked_network(now, target.element()) {
                review.in_prefix.push(target);
            } else if let Some(protection) = host.allow.protects_target(target) {
                review.exempt.push((target, protection));
            } else if engine.is_withheld(now, target) {
                review.withheld.push(target);
            } else if self.is_excused(now, target, counting, engine) {
                review.excused.push(target);
            } else if now.since(since) < UNCONFIRMED_FOR {
                self.unconfirmed.insert(target, since);
            } else if paused
                || engine.is_tolerated_peer(now, target, host)
                || engine.is_tolerated_related(now, target, host)
            {
                review.excused.push(target);
            } else {
                review.unexplained.push(target);
            }
        }
        review
    }

    /// True if the sensor has recently withdrawn its own verdict, or has seen more ports than the trap forgives and
    /// some of them were not evidence.
    fn is_excused(&self, now: Timestamp, target: BanTarget, counting: Counting, engine: &Engine) -> bool {
        if self.excuses.is_refuted(now, target) {
            return true;
        }
        let Counting { forgiven, window } = counting;
        let mut ports: HashSet<_> = self.excuses.ports(now, target, window.max(UNCONFIRMED_FOR * 2)).collect();
        let has_excuse = !ports.is_empty();
        ports.extend(engine.evidence(now, target));
        has_excuse && ports.len() > usize::from(forgiven)
    }
}

/// Maximum number of sources with excuses. The trap bans few sources at one time.
const MAX_SOURCES: usize = 1_024;

/// Maximum number of excused ports per source: one more than the trap can be configured to forgive.
const MAX_PORTS: usize = 16;

/// Time for which a refuted verdict is remembered: twice the time that the sensor takes to review the trap's bans.
const REFUTED_FOR: Duration = Duration::from_secs(6);

/// The packets that the kernel's trap may have counted, but that are not probes according to the sensor: their port is
/// in use, or the kernel drops them later. The table is bounded: if two sources share a slot, the later one keeps it,
/// and the ban of the other is shortened instead of removed.
struct Excuses {
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
    ports: [Option<(Protocol, u16)>; MAX_PORTS],
}

impl Excuses {
    fn new(secret: HashKey) -> Self {
        Self { secret, places: vec![None; MAX_SOURCES].into() }
    }

    /// Records that a packet of `target` to `port` is not a probe.
    fn add(&mut self, now: Timestamp, target: BanTarget, port: (Protocol, u16)) {
        let Some(excused) = self.entry(now, target) else { return };
        if !excused.ports.contains(&Some(port))
            && let Some(free) = excused.ports.iter_mut().find(|free| free.is_none())
        {
            *free = Some(port);
        }
    }

    /// Records that the sensor's own verdict on `target` was refuted.
    fn refute(&mut self, now: Timestamp, target: BanTarget) {
        if let Some(excused) = self.entry(now, target) {
            excused.refuted = Some(now);
        }
    }

    /// True if the verdict was refuted within [`REFUTED_FOR`], so that the trap may have banned the source for the
    /// same packets.
    fn is_refuted(&self, now: Timestamp, target: BanTarget) -> bool {
        let refuted = self.get(target).and_then(|excused| excused.refuted);
        refuted.is_some_and(|at| now.since(at) <= REFUTED_FOR)
    }

    fn entry(&mut self, now: Timestamp, target: BanTarget) -> Option<&mut Excused> {
        let place = self.places.get_mut(index(self.secret, target))?;
        if place.is_none_or(|excused| excused.target != target) {
            *place = Some(Excused { target, last: now, refuted: None, ports: [None; MAX_PORTS] });
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
    fn ports(&self, now: Timestamp, target: BanTarget, window: Duration) -> impl Iterator<Item = (Protocol, u16)> + '_ {
        let excused = self.get(target).filter(|excused| now.since(excused.last) <= window);
        excused.into_iter().flat_map(|excused| excused.ports.iter().flatten().copied())
    }
}

fn index(secret: HashKey, target: BanTarget) -> usize {
    let mut hasher = SipHasher13::new_with_keys(secret.0, secret.1);
    target.hash(&mut hasher);
    usize::try_from(hasher.finish() % MAX_SOURCES as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{HERE, SCANNER, host, packet};
    use super::*;
    use crate::engine::NoLookup;
    use crate::engine::tests::scene::builtin;
    use crate::types::at;
    use crate::wire::Checksum;

    /// Three SYNs with this checksum, and later a review of the trap's ban for them.
    fn reviewed(host: &Host, checksum: Checksum) -> Review {
        let mut engine = Engine::new(builtin(), HashKey(1, 2));
        let mut review = TrapReview::new(HashKey(3, 4));
        let (now, later) = (Timestamp::default(), Timestamp::at(UNCONFIRMED_FOR));
        for port in [21, 22, 23] {
            let packet = Packet { checksum: checksum.into(), ..packet(false, TcpFlags::SYN, port) };
            let verdict = engine.observe(now, &packet, host, &mut NoLookup);
            review.excuse(now, &packet, verdict, &[], |_| true);
        }
        let counting = (Counting { forgiven: 2, window: Duration::from_secs(1_800) }, false);
        let trap_banned = [BanTarget::V4(SCANNER.into())];
        review.review(now, trap_banned.into_iter(), counting, &engine, host);
        review.review(later, trap_banned.into_iter(), counting, &engine, host)
    }

    #[test]
    fn damaged_segments_excuse_trap_ban() {
        let trap_banned = vec![BanTarget::V4(SCANNER.into())];
        let mut host = host();
        assert_eq!(reviewed(&host, Checksum::Good).confirmed, trap_banned);
        assert_eq!(reviewed(&host, Checksum::Bad).excused, trap_banned, "the kernel drops it if it came over a wire");
        host.virtual_links = vec![2];
        assert_eq!(reviewed(&host, Checksum::Bad).confirmed, trap_banned, "the kernel accepts it from a guest");
        assert_eq!(reviewed(&host, Checksum::BadHeader).excused, trap_banned);
    }

    #[test]
    fn filtered_group_frames_excuse_trap_ban() {
        let mut review = TrapReview::new(HashKey(3, 4));
        let engine = Engine::new(builtin(), HashKey(1, 2));
        let (target, now) = (BanTarget::V4(SCANNER.into()), Timestamp::default());
        let counting = Counting { forgiven: 2, window: Duration::from_secs(1_800) };
        let verdict = Verdict::Ignored(IgnoreReason::NotUnicast);
        let mut see = |delivery, transport, destination: [u8; 4]| {
            let seen = Packet { delivery, transport, destination: destination.into(), ..packet(false, 0, 0) };
            review.excuse(now, &seen, verdict, &[], |_| true);
            review.excuse(now, &seen, Verdict::Ignored(IgnoreReason::NotOurs), &[], |_| true);
            review.is_excused(now, target, counting, &engine)
        };
        let udp = |port| Transport::Udp { source_port: 5, destination_port: port };
        for port in 1..=5 {
            let tcp = packet(false, TcpFlags::SYN, port).transport;
            assert!(!see(Delivery::Broadcast, tcp, HERE), "the trap does not count TCP in such frames");
            assert!(!see(Delivery::Multicast, udp(port), [224, 0, 0, 251]), "nor true multicast");
            assert!(!see(Delivery::OtherHost, udp(port), HERE), "nor frames for another host");
        }
        assert!(!see(Delivery::Broadcast, udp(1), HERE) && !see(Delivery::Broadcast, udp(2), HERE));
        assert!(see(Delivery::Multicast, udp(3), HERE), "as many as the trap counts");
    }

    /// nft calls the first address of a network anycast, even if it belongs to another router.
    #[test]
    fn forwarded_first_address_excuses_trap_ban() {
        let mut review = TrapReview::new(HashKey(3, 4));
        let engine = Engine::new(builtin(), HashKey(1, 2));
        let source: IpAddr = "2001:db8:5::1".parse().unwrap();
        let counting = Counting { forgiven: 2, window: Duration::from_secs(1_800) };
        let now = Timestamp::default();
        let mut see = |destination: &str| {
            for port in 1..=3 {
                let transport = Transport::Udp { source_port: 5, destination_port: port };
                let destination = destination.parse().unwrap();
                let seen = Packet { source, destination, transport, ..packet(false, 0, 0) };
                review.excuse(now, &seen, Verdict::Ignored(IgnoreReason::NotOurs), &[], |_| true);
            }
            review.is_excused(now, BanTarget::containing(source), counting, &engine)
        };
        assert!(!see("2001:db8:7::1"), "the trap counts no other forwarded packet");
        assert!(see("2001:db8:7::"));
    }

    #[test]
    fn excuses_are_bounded_and_expire() {
        let mut excuses = Excuses::new(HashKey(1, 2));
        let target: BanTarget = "192.0.2.7".parse().unwrap();
        for port in [901, 902, 901].into_iter().chain(1..100) {
            excuses.add(at(1), target, (Protocol::Tcp, port));
        }
        let window = Duration::from_secs(10);
        assert_eq!(excuses.ports(at(11), target, window).count(), MAX_PORTS);
        assert_eq!(excuses.ports(at(12), target, window).count(), 0);
        for n in 0..100_000_u32 {
            excuses.add(at(1), BanTarget::V4(n.into()), (Protocol::Udp, 9));
        }
        assert_eq!(excuses.ports(at(1), target, window).count(), 0, "later sources have replaced it");
    }
}
