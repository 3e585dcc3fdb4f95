//! Tracks the sources that are connected to a service of this host, or were recently. A closed port that such a client
//! tries is more likely a mistake than a scan. The ledger keeps them across restarts and reboots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::engine::Host;
use crate::ledger::{KnownPeer, LedgerChange, Recorder};
use crate::netlink::sock_diag::Connection;
use crate::types::{BanTarget, HOUR, MINUTE, Timestamp};

/// Maximum number of known peers. A new one replaces the peer that has had no connection for the longest time.
pub(super) const MAX_PEERS: usize = 4_096;

/// Time for which a peer is known after its last connection. Browsers, and users behind a carrier's NAT, have
/// connections for seconds and make mistakes between them. It is longer than the window of their probes
/// (`detect.window`), so that a peer is still known at the last probe of a window. A longer time helps no scanner that
/// knows the rule, because it could also leave a connection open.
const REMEMBERED: Duration = HOUR.saturating_mul(2);

/// Interval between two writes. Each connection in between is listed again after a crash, unless it has ended.
const WRITE_INTERVAL: Duration = MINUTE;

#[derive(Clone, Copy)]
struct Peer {
    /// Start of the first connection.
    since: Timestamp,
    /// Time at which it is forgotten, unless a connection is listed until then.
    until: Timestamp,
}

/// The peers with a connection to a service, now or recently.
pub struct KnownPeers {
    known: BTreeMap<BanTarget, Peer>,
    /// [`REMEMBERED`].
    span: Duration,
    /// True if the ledger does not contain the state of `known`.
    unwritten: bool,
    next_write: Timestamp,
}

impl Default for KnownPeers {
    fn default() -> Self {
        Self { known: BTreeMap::new(), span: REMEMBERED, unwritten: false, next_write: Timestamp::ZERO }
    }
}

impl KnownPeers {
    /// Sets the time for which peers are remembered after their last connection.
    pub fn remember_for(&mut self, span: Duration) {
        self.span = span;
    }

    /// The peers, each with the time since its first connection.
    pub fn ages(&self, now: Timestamp) -> Vec<(BanTarget, Duration)> {
        self.known.iter().map(|(target, peer)| (*target, now.since(peer.since))).collect()
    }

    /// Restores the peers from the ledger. A restart makes none of them known for longer, and a time after `wall` means
    /// that the clock was set back.
    pub fn restore(&mut self, peers: impl IntoIterator<Item = KnownPeer>, now: Timestamp, wall: SystemTime) {
        for KnownPeer { target, since, last } in peers.into_iter().take(MAX_PEERS) {
            let age = |time: SystemTime| wall.duration_since(time).unwrap_or_default();
            if let Some(left) = self.span.checked_sub(age(last)) {
                // A timestamp cannot be earlier than the boot.
                let since = Timestamp::at(now.since_origin().saturating_sub(age(since)));
                self.known.insert(target, Peer { since, until: now.after(left) });
            }
        }
    }

    /// The peers for the ledger.
    pub fn records(&self, now: Timestamp, wall: SystemTime) -> Vec<KnownPeer> {
        let latest = now.after(self.span);
        let before = |span: Duration| wall.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
        let record = |(target, peer): (&BanTarget, &Peer)| {
            let (since, last) = (before(now.since(peer.since)), before(latest.since(peer.until)));
            KnownPeer { target: *target, since, last }
        };
        self.known.iter().map(record).collect()
    }

    /// Writes pending changes if the last write is long ago.
    pub(super) fn keep(&mut self, now: Timestamp, wall: SystemTime, recorder: &Recorder) {
        if now >= self.next_write {
            self.write(now, wall, recorder);
        }
    }

    /// Writes pending changes.
    pub(super) fn write(&mut self, now: Timestamp, wall: SystemTime, recorder: &Recorder) {
        if self.unwritten {
            self.unwritten = !recorder.send(LedgerChange::KnownPeers(self.records(now, wall)));
            self.next_write = now.after(WRITE_INTERVAL);
        }
    }

    /// Updates the peers from the listed connections. Returns true if the peers changed.
    pub fn update(&mut self, now: Timestamp, connections: &[Connection], host: &Host) -> bool {
        let served = connections.iter().filter(|one| is_served(one, host));
        let connected: BTreeSet<BanTarget> = served.map(|one| BanTarget::on(one.peer, one.interface)).collect();
        let before = self.known.len();
        self.known.retain(|_, peer| now <= peer.until);
        let mut changed = self.known.len() != before;
        self.unwritten |= changed || !connected.is_empty();
        let until = now.after(self.span);
        let mut new = Vec::new();
        for target in connected {
            match self.known.get_mut(&target) {
                Some(peer) => peer.until = until,
                None => new.push(target),
            }
        }
        self.make_room(now, new.len());
        for target in new.into_iter().take(MAX_PEERS - self.known.len()) {
            self.known.insert(target, Peer { since: now, until });
            changed = true;
        }
        changed
    }

    /// Removes peers without a connection until `wanted` new ones fit.
    fn make_room(&mut self, now: Timestamp, wanted: usize) {
        let excess = (self.known.len() + wanted).saturating_sub(MAX_PEERS);
        if excess == 0 {
            return;
        }
        let latest = now.after(self.span);
        let without = self.known.iter().filter(|(_, peer)| peer.until < latest);
        let mut without: Vec<_> = without.map(|(target, peer)| (peer.until, *target)).collect();
        without.sort_unstable();
        without.iter().take(excess).for_each(|(_, target)| _ = self.known.remove(target));
    }
}

/// True for a connection to a listening or published port, which is a service. A connection that this host started has
/// another local port.
fn is_served(connection: &Connection, host: &Host) -> bool {
    let Connection { address, port, peer, interface, is_published } = *connection;
    let own = |address: IpAddr| address.is_loopback() || host.local.contains(address);
    let interfaces = if interface == 0 { &[][..] } else { &[interface] };
    let is_service = is_published && host.local.contains(address) || host.tcp.contains_on(interfaces, address, port);
    is_service && !own(peer)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::engine::Local;
    use crate::types::at;

    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn host() -> Host {
        let mut host = Host::new(Local::own([OWN]));
        host.tcp.insert([0; 4].into(), 443);
        host
    }

    fn from(peer: u32, port: u16) -> Connection {
        Connection { address: OWN, port, peer: IpAddr::V4(peer.into()), interface: 0, is_published: false }
    }

    fn since(peers: &KnownPeers, peer: u32) -> Option<Timestamp> {
        peers.known.get(&BanTarget::containing(from(peer, 443).peer)).map(|peer| peer.since)
    }

    #[test]
    fn peers_of_services_are_known_and_bounded() {
        let (host, mut peers) = (host(), KnownPeers::default());
        let mixed = [from(1, 443), from(1, 443), from(2, 40_000), Connection { peer: OWN, ..from(0, 443) }];
        assert!(peers.update(at(1), &mixed, &host));
        assert_eq!(peers.known.len(), 1, "neither outgoing connections nor those of this host to itself");
        assert!(!peers.update(at(9), &mixed, &host));
        assert_eq!(since(&peers, 1), Some(at(1)), "the first time counts");
        let many: Vec<_> = (0..10_000).map(|peer| from(peer, 443)).collect();
        assert!(peers.update(at(10), &many, &host));
        assert_eq!(peers.known.len(), MAX_PEERS);
        assert_eq!(since(&peers, 1), Some(at(1)), "the oldest peers are kept");
        assert!(!peers.update(at(11), &[], &host));
        assert!(peers.update(at(12), &[from(20_000, 443)], &host));
        assert_eq!(since(&peers, 20_000), Some(at(12)), "peers without a connection make room");
        assert_eq!(peers.known.len(), MAX_PEERS);
    }

    #[test]
    fn peers_of_published_ports_are_known() {
        let (host, mut peers) = (host(), KnownPeers::default());
        let published = |peer| Connection { is_published: true, ..from(peer, 8_080) };
        let elsewhere = Connection { address: Ipv4Addr::new(192, 0, 2, 9).into(), ..published(1) };
        assert!(!peers.update(at(1), &[elsewhere, from(2, 8_080)], &host), "a proxied connection to another host");
        assert!(peers.update(at(2), &[published(3)], &host));
        assert_eq!(since(&peers, 3), Some(at(2)));
    }

    fn wall(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    /// The peers that a start at `now` and `seconds` restores.
    fn restored(records: &[KnownPeer], now: Timestamp, seconds: u64) -> KnownPeers {
        let mut peers = KnownPeers::default();
        peers.restore(records.to_vec(), now, wall(seconds));
        peers
    }

    #[test]
    fn restart_keeps_peer_for_remaining_time() {
        let (host, mut peers) = (host(), KnownPeers::default());
        assert!(peers.update(at(1_000), &[from(1, 443)], &host));
        assert!(!peers.update(at(1_100), &[from(1, 443)], &host));
        let mut records = peers.records(at(1_500), wall(1_500));
        assert_eq!((records[0].since, records[0].last), (wall(1_000), wall(1_100)));
        for start in [2_000, 5_000, 8_299] {
            let mut next = restored(&records, at(start), start);
            assert_eq!(since(&next, 1), Some(at(1_000)), "the age of the connection is kept");
            assert!(!next.update(at(start), &[], &host));
            records = next.records(at(start), wall(start));
        }
        let mut last = restored(&records, at(8_300), 8_300);
        assert!(!last.update(at(8_300), &[], &host), "two hours after its last connection");
        assert!(last.update(at(8_301), &[], &host), "restarts add no time");
        assert!(restored(&records, at(8_301), 8_301).known.is_empty());
    }

    #[test]
    fn reboot_keeps_peer_since_boot() {
        let (host, mut peers) = (host(), KnownPeers::default());
        assert!(peers.update(at(90_000), &[from(1, 443)], &host));
        let records = peers.records(at(90_000), wall(90_000));
        let mut booted = restored(&records, at(30), 91_000);
        assert_eq!(booted.ages(at(30)), [(BanTarget::containing(from(1, 443).peer), Duration::from_secs(30))]);
        assert!(!booted.update(at(30 + 6_200), &[], &host));
        assert!(booted.update(at(30 + 6_201), &[], &host), "two hours after its last connection");
    }

    #[test]
    fn clock_set_back_keeps_peer_two_hours() {
        let record =
            KnownPeer { target: BanTarget::containing(from(1, 443).peer), since: wall(0), last: wall(9_999_999) };
        let mut peers = restored(&[record], at(50), 0);
        assert!(!peers.update(at(7_250), &[], &host()));
        assert!(peers.update(at(7_251), &[], &host()));
    }

    #[test]
    fn stored_peers_are_bounded() {
        let record =
            |peer| KnownPeer { target: BanTarget::containing(from(peer, 443).peer), since: wall(0), last: wall(0) };
        let many: Vec<_> = (0..10_000).map(record).collect();
        assert_eq!(restored(&many, at(50), 0).known.len(), MAX_PEERS);
    }

    #[test]
    fn peer_is_known_two_hours_longer() {
        let (host, mut peers) = (host(), KnownPeers::default());
        assert!(peers.update(at(1), &[from(1, 443)], &host));
        assert!(!peers.update(at(10), &[from(1, 443)], &host));
        assert!(!peers.update(at(7_210), &[], &host));
        assert!(!peers.update(at(7_210), &[from(1, 443)], &host));
        assert_eq!(since(&peers, 1), Some(at(1)), "a second connection does not reset the time");
        assert!(peers.update(at(14_411), &[], &host));
        assert!(peers.known.is_empty());
    }
}
