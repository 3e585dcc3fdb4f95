//! Infers from the link addresses of a capture which hosts are gateways. A running host knows them from its routes.
//!
//! A link address belongs to a router if addresses of other networks both receive and send packets through it. In a
//! capture of one direction it is sufficient that they accept connections (SYN/ACK) through it. Senders alone prove
//! nothing, because they can be forged (decoys), and the answers then go to the real router.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::packet::LinkAddresses;
use crate::wire::{Packet, TcpFlags, Transport};

/// Minimum number of other networks of one family behind a router. The addresses of a single host are in fewer
/// networks.
const ROUTED_NETWORKS: usize = 3;

/// Maximum number of remembered link addresses, and of addresses for each.
const LINK_ADDRESSES: usize = 4_096;
const ADDRESSES: usize = 256;

/// Collects evidence in the first pass over a capture.
#[derive(Default)]
pub(super) struct GatewayInference {
    stations: HashMap<[u8; 6], Station>,
}

#[derive(Default)]
struct Station {
    /// Senders behind this link address that are in the same network as their destination.
    neighbours: HashSet<IpAddr>,
    /// Destinations that are reached through it and are in a different network from the sender.
    reached: HashSet<IpAddr>,
    /// Networks whose addresses are reached through it and also send or accept connections through it.
    networks: HashSet<IpNet>,
}

impl GatewayInference {
    pub(super) fn inspect(&mut self, link: LinkAddresses, packet: &Packet) {
        let Packet { source, destination, transport, .. } = *packet;
        let skipped = |address: IpAddr| address.is_multicast() || address.is_unspecified();
        if link.is_group() || skipped(source) || skipped(destination) {
            return;
        }
        if network(source) == network(destination) {
            insert(&mut self.station(link.source).neighbours, source);
            return;
        }
        insert(&mut self.station(link.destination).reached, destination);
        let station = self.station(link.source);
        let accepts = matches!(transport, Transport::Tcp { flags, .. } if flags.has(TcpFlags::SYN | TcpFlags::ACK));
        if accepts || station.reached.contains(&source) {
            insert(&mut station.networks, network(source));
        }
    }

    pub(super) fn finish(self) -> HashSet<IpAddr> {
        let gateways = self.stations.into_values().flat_map(|Station { neighbours, networks, .. }| {
            let own: HashSet<_> = neighbours.iter().map(|address| network(*address)).collect();
            let routed = move |address: &IpAddr| {
                let other = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4() && !own.contains(*net);
                networks.iter().filter(other).count() >= ROUTED_NETWORKS
            };
            neighbours.into_iter().filter(routed)
        });
        gateways.collect()
    }

    /// The record of a link address. If thousands of forged addresses fill the table, it is cleared.
    fn station(&mut self, address: [u8; 6]) -> &mut Station {
        if self.stations.len() >= LINK_ADDRESSES && !self.stations.contains_key(&address) {
            self.stations.clear();
        }
        self.stations.entry(address).or_default()
    }
}

fn insert<T: Eq + std::hash::Hash>(set: &mut HashSet<T>, value: T) {
    if set.len() < ADDRESSES {
        set.insert(value);
    }
}

/// The presumed network of an address, because the capture does not contain it: a /24 or a /64.
fn network(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { 24 } else { 64 };
    IpNet::new(address, length).map_or(address.into(), |network| network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fixtures::{packet, tcp};

    const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const HOST: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const SCANNER: [u8; 6] = [2, 0, 0, 0, 0, 3];

    /// The inferred gateways after TCP segments with these flags, link addresses and addresses.
    fn gateways_after(flags: u16, packets: &[([u8; 6], &str, [u8; 6], &str)]) -> Vec<String> {
        let mut inference = GatewayInference::default();
        for (from, source, to, destination) in packets {
            let link = LinkAddresses { destination: *to, source: *from };
            let [source, destination]: [IpAddr; 2] = [source, destination].map(|text| text.parse().unwrap());
            inference.inspect(link, &packet(source, destination, tcp(4_000, 23, flags)));
        }
        inference.finish().into_iter().map(|address| address.to_string()).collect()
    }

    fn gateways(packets: &[([u8; 6], &str, [u8; 6], &str)]) -> Vec<String> {
        gateways_after(TcpFlags::SYN, packets)
    }

    #[test]
    fn one_direction_reveals_gateway() {
        let incoming = ["192.168.1.1", "8.8.8.8", "203.0.113.5", "198.51.100.9"];
        let packets = incoming.map(|source| (ROUTER, source, HOST, "192.168.1.46"));
        assert_eq!(gateways_after(TcpFlags::SYN | TcpFlags::ACK, &packets), ["192.168.1.1"]);
        assert!(gateways_after(TcpFlags::SYN, &packets).is_empty(), "the senders may be forged");
    }

    #[test]
    fn router_of_several_networks_is_gateway() {
        let mut packets =
            vec![(ROUTER, "192.168.1.1", HOST, "192.168.1.46"), (HOST, "192.168.1.46", ROUTER, "192.168.1.1")];
        for far in ["8.8.8.8", "203.0.113.5", "198.51.100.9"] {
            assert!(gateways(&packets).is_empty());
            packets.extend([(HOST, "192.168.1.46", ROUTER, far), (ROUTER, far, HOST, "192.168.1.46")]);
        }
        assert_eq!(gateways(&packets), ["192.168.1.1"]);
    }

    #[test]
    fn scanner_with_decoys_is_not_a_gateway() {
        let mut packets = vec![(SCANNER, "192.168.1.7", HOST, "192.168.1.46")];
        for decoy in ["8.8.8.8", "203.0.113.5", "198.51.100.9", "192.0.2.1"] {
            packets.extend([(SCANNER, decoy, HOST, "192.168.1.46"), (HOST, "192.168.1.46", ROUTER, decoy)]);
        }
        assert!(gateways(&packets).is_empty());
    }

    #[test]
    fn multihomed_host_is_not_a_gateway() {
        let mut packets = vec![(HOST, "fe80::2", ROUTER, "fe80::1")];
        for own in ["2001:db8::2", "2001:db8::3", "fd00::2"] {
            packets.extend([(HOST, own, ROUTER, "2001:db8:9::9"), (ROUTER, "2001:db8:9::9", HOST, own)]);
        }
        assert!(gateways(&packets).is_empty());
    }
}
