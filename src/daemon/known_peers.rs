//! Finds the sources that have had a connection to a service of this host for some time. A closed port that such a
//! client tries is more likely a mistake than a scan.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::engine::Host;
use crate::netlink::sock_diag::{Connection, SockDiag, SockDiagError};
use crate::types::{BanTarget, Timestamp};

/// How often connections are listed at most.
const INTERVAL: Duration = Duration::from_secs(2);

/// Listing takes at most one part in so many of the event loop's time, however many connections there are.
const SHARE: u32 = 100;

/// The maximum number of peers that are known. The longest known stay.
const MAX_PEERS: usize = 4_096;

/// The maximum number of connections that are looked at.
const MAX_CONNECTIONS: usize = 65_536;

#[derive(Default)]
pub(super) struct KnownPeers {
    /// Since when each is known to be connected.
    since: BTreeMap<BanTarget, Timestamp>,
    next: Timestamp,
}

impl KnownPeers {
    /// Lists the connections, if that is due; the peers and for how long each is known, if they have changed.
    pub(super) fn poll(
        &mut self,
        now: Timestamp,
        sockets: &mut SockDiag,
        host: &Host,
    ) -> Result<Option<Vec<(BanTarget, Duration)>>, SockDiagError> {
        if now < self.next {
            return Ok(None);
        }
        let started = Instant::now();
        let connections = sockets.connections(MAX_CONNECTIONS)?;
        let changed = self.update(now, &connections, host);
        self.next = now.after(INTERVAL.max(started.elapsed() * SHARE));
        Ok(changed.then(|| self.ages(now)))
    }

    /// The peers and for how long each is known.
    pub(super) fn ages(&self, now: Timestamp) -> Vec<(BanTarget, Duration)> {
        self.since.iter().map(|(peer, since)| (*peer, now.since(*since))).collect()
    }

    /// True where the peers are others than before.
    pub(super) fn update(&mut self, now: Timestamp, connections: &[Connection], host: &Host) -> bool {
        let mut peers: Vec<BanTarget> = connections
            .iter()
            .filter(|one| is_served(one, host))
            .map(|one| BanTarget::on(one.peer, one.interface))
            .collect();
        peers.sort_unstable();
        peers.dedup();
        let before = self.since.len();
        self.since.retain(|peer, _| peers.binary_search(peer).is_ok());
        let mut changed = self.since.len() != before;
        for peer in peers {
            if self.since.len() >= MAX_PEERS {
                break;
            }
            changed |= !self.since.contains_key(&peer);
            self.since.entry(peer).or_insert(now);
        }
        changed
    }
}

/// True for a connection to a service: the port listens. One that this host began leaves from another port.
fn is_served(connection: &Connection, host: &Host) -> bool {
    let Connection { address, port, peer, interface } = *connection;
    let own = |address: IpAddr| address.is_loopback() || host.local.contains(address);
    let interfaces = if interface == 0 { &[][..] } else { &[interface] };
    host.tcp.contains_on(interfaces, address, port) && !own(peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Local;

    #[test]
    fn peers_of_services_are_known_and_bounded() {
        let own: IpAddr = [192, 0, 2, 1].into();
        let mut host = Host::new(Local::Addresses([own].into()));
        host.tcp.insert_any_v4(443);
        let at = |seconds| Timestamp::at(Duration::from_secs(seconds));
        let from = |peer: u32, port| Connection { address: own, port, peer: IpAddr::V4(peer.into()), interface: 0 };
        let mut peers = KnownPeers::default();
        let mixed = [from(1, 443), from(1, 443), from(2, 40_000), Connection { peer: own, ..from(0, 443) }];
        assert!(peers.update(at(1), &mixed, &host));
        assert_eq!(peers.since.len(), 1, "neither connections of this host's own nor to itself");
        assert!(!peers.update(at(9), &mixed, &host));
        assert_eq!(peers.since.values().next(), Some(&at(1)), "the first time counts");
        let many: Vec<_> = (0..10_000).map(|peer| from(peer, 443)).collect();
        assert!(peers.update(at(10), &many, &host));
        assert_eq!(peers.since.len(), MAX_PEERS);
        assert_eq!(peers.since.get(&BanTarget::of(from(1, 443).peer)), Some(&at(1)), "the longest known stay");
        assert!(peers.update(at(11), &[], &host));
        assert!(peers.since.is_empty(), "no connection, no excuse");
    }
}
