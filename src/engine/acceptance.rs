//! Decides whether this host's network stack accepts a packet. A packet that the kernel drops before any socket look-up
//! is not evidence, because its source learns nothing from it and can be forged without risk.
//!
//! Three more kernel checks need no code here. Frames tagged for a VLAN of which this host is not a member do not pass
//! the capture's filter ([`crate::capture::live`]); a VLAN device delivers its own frames without the tag. Frames for
//! another host on a bridge without an address are excluded because [`Host::bridge_ports`] omits such bridges. IPv6 has
//! no reverse-path filter.
//!
//! References: the kernel's `ip_rcv_core`, `ip_route_input_slow`, `fib_validate_source`, `ip6_rcv_core` and
//! `tcp_v4_rcv`.

use std::net::IpAddr;

use super::host::Host;
use super::port_lookup::PortLookup;
use super::verdict::IgnoreReason;
use crate::types::shared64;
use crate::wire::{Checksum, Delivery, Packet, Transport};

/// Returns the reason why the host drops `packet` because of its addresses; `None` if it accepts them as far as these
/// cheap checks can tell. The packet arrived on `interface` (for a bridge port: the bridge).
#[inline]
pub(super) fn refusal(packet: &Packet, interface: u32, host: &Host) -> Option<IgnoreReason> {
    if is_not_unicast(packet, interface, host) {
        return Some(IgnoreReason::NotUnicast);
    }
    if !is_source(packet.source) {
        return Some(IgnoreReason::NoSource);
    }
    if !is_ours(packet, host) || is_live(host) && packet.destination.is_loopback() {
        return Some(IgnoreReason::NotOurs);
    }
    None
}

/// Checks what takes longer than [`refusal`]: broadcast sources, checksums and the reverse path. Returns the result of
/// the checksums.
///
/// # Errors
///
/// The reason why the host drops the packet.
#[inline]
pub(super) fn verify(
    packet: &Packet,
    interface: u32,
    host: &Host,
    lookup: &mut impl PortLookup,
) -> Result<Checksum, IgnoreReason> {
    if host.is_broadcast(packet.source, interface) {
        return Err(IgnoreReason::NoSource);
    }
    let checksum = packet.checksum.verify();
    let damaged = match checksum {
        Checksum::Good | Checksum::Unknown => false,
        Checksum::Blank => is_live(host) && !may_be_unverified(packet, host, lookup),
        Checksum::Bad => !may_be_unverified(packet, host, lookup),
        Checksum::BlankHeader => is_live(host),
        Checksum::BadHeader => true,
    };
    if damaged {
        return Err(IgnoreReason::Damaged);
    }
    if host.reverse_path.refuses(packet.source, interface) {
        return Err(IgnoreReason::WrongInterface);
    }
    Ok(checksum)
}

/// Only a running host knows its exact addresses; a capture file may have been taken on another machine.
fn is_live(host: &Host) -> bool {
    host.local.is_exact()
}

/// True if the kernel may accept the packet without verifying its checksum.
fn may_be_unverified(packet: &Packet, host: &Host, lookup: &mut impl PortLookup) -> bool {
    host.virtual_links.binary_search(&packet.interface).is_ok() && !lookup.verifies_checksum(packet)
}

fn is_ours(packet: &Packet, host: &Host) -> bool {
    let is_anycast = || host.anycast.iter().any(|network| network.contains(&packet.destination));
    host.local.contains(packet.destination) || is_connectionless(&packet.transport) && is_anycast()
}

/// True for a packet that may be a datagram or an ICMP request: unlike TCP, the kernel accepts these at anycast
/// addresses and in frames for several hosts.
fn is_connectionless(transport: &Transport) -> bool {
    matches!(transport, Transport::Udp { .. } | Transport::Icmp { .. } | Transport::HiddenHeader)
}

/// True for broadcast, multicast, and frames for another host on a shared link. On a bridge port, frames for the bridge
/// itself are marked as for another host. Packets that the firewall drops for bridges (`br_netfilter`) are visible only
/// there.
fn is_not_unicast(packet: &Packet, interface: u32, host: &Host) -> bool {
    match packet.delivery {
        Delivery::Broadcast | Delivery::Multicast => {
            let taken = is_connectionless(&packet.transport) && host.takes_group_frame(packet.destination, interface);
            !taken || !is_ours(packet, host) || !is_unicast(packet.destination)
        }
        Delivery::OtherHost if host.bridge(packet.interface).is_none() => true,
        _ => !is_unicast(packet.destination),
    }
}

/// True for an address that one host can have.
#[inline]
pub fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_multicast() || v4.is_broadcast() || v4.octets().starts_with(&[0])),
        // An IPv4-mapped address never appears in a packet (RFC 4291, RFC 4038). Log filters would extract the IPv4
        // address, which may be a protected one.
        IpAddr::V6(v6) => !(v6.is_multicast() || v6.is_unspecified() || v6.to_ipv4_mapped().is_some()),
    }
}

/// True for an address that another host can use as source. 240.0.0.0/4 is reserved (RFC 1112) and has no return route.
/// The first /64 of IPv6 contains the unspecified, loopback, mapped and compatible addresses (RFC 4291) and no hosts; a
/// ban of it would drop duplicate address detection, which is sent from `::`. Loopback itself is protected
/// ([`super::AllowList`]). The first address of a /64 shared by many hosts (`fe80::`, `64:ff9b::`) belongs to no host,
/// and its element in the kernel's set would match all of them.
fn is_source(address: IpAddr) -> bool {
    is_unicast(address)
        && match address {
            IpAddr::V4(v4) => v4.octets().first().is_none_or(|first| *first < 240),
            IpAddr::V6(v6) if v6.octets().ends_with(&[0; 8]) => {
                shared64::prefix_number(v6).is_none() && !v6.is_unspecified()
            }
            IpAddr::V6(v6) => v6.is_loopback() || !v6.octets().starts_with(&[0; 8]),
        }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::host::{Local, ReversePath};
    use super::super::port_lookup::{NoLookup, PortUse};
    use super::*;
    use crate::types::Protocol;
    use crate::wire::{TcpFlags, fixtures};

    const OWN: &str = "192.0.2.1";

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn host() -> Host {
        let prefixes = ["10.77.9.0/24", "fd77:9::/64"].map(|net| net.parse().unwrap()).to_vec();
        let addresses = [OWN, "2001:db8::1", "127.0.0.1", "::1"].map(address).into();
        Host::new(Local::Own { addresses, prefixes })
    }

    fn packet(source: &str, destination: &str) -> Packet<'static> {
        let packet = fixtures::packet(address(source), address(destination), fixtures::tcp(4_000, 23, TcpFlags::SYN));
        Packet { delivery: Delivery::Host, interface: 2, ..packet }
    }

    fn dropped(packet: &Packet, interface: u32, host: &Host) -> Option<IgnoreReason> {
        refusal(packet, interface, host).or_else(|| verify(packet, interface, host, &mut NoLookup).err())
    }

    fn verdict(source: &str, destination: &str) -> Option<IgnoreReason> {
        dropped(&packet(source, destination), 2, &host())
    }

    #[test]
    fn martian_source_is_refused() {
        for source in ["0.1.2.3", "224.0.0.5", "240.0.0.9", "254.1.2.3", "255.255.255.255"] {
            assert_eq!(verdict(source, OWN), Some(IgnoreReason::NoSource), "{source}");
        }
        for source in
            ["::", "::2", "::10.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "ff02::1", "fe80::", "64:ff9b::"]
        {
            assert_eq!(verdict(source, "2001:db8::1"), Some(IgnoreReason::NoSource), "{source}");
        }
        for source in ["1.0.0.1", "223.255.255.1", "10.0.0.1"] {
            assert_eq!(verdict(source, OWN), None, "{source}");
        }
        for source in ["64:ff9b::a00:1", "fe80::1", "2001:db8:5::1"] {
            assert_eq!(verdict(source, "2001:db8::1"), None, "{source}");
        }
    }

    #[test]
    fn broadcast_source_is_refused_where_guarded() {
        let mut host = host();
        let source = "192.0.2.255";
        host.broadcasts = vec![source.parse().unwrap()];
        let came = |interface, host: &Host| dropped(&packet(source, OWN), interface, host);
        assert_eq!(came(2, &host), None, "without a reverse-path filter the kernel answers the whole link");
        host.guarded = vec![(2, "lan".to_owned())];
        assert_eq!(came(2, &host), Some(IgnoreReason::NoSource));
        assert_eq!(came(3, &host), None);
        assert_eq!(dropped(&packet("192.0.2.254", OWN), 2, &host), None);
    }

    #[test]
    fn loopback_destination_from_outside_is_refused() {
        assert_eq!(verdict("198.51.100.7", "127.0.0.1"), Some(IgnoreReason::NotOurs));
        assert_eq!(verdict("2001:db8:5::1", "::1"), Some(IgnoreReason::NotOurs));
    }

    #[test]
    fn address_inside_local_route_is_own() {
        assert_eq!(verdict("198.51.100.7", "10.77.9.200"), None);
        assert_eq!(verdict("2001:db8:5::1", "fd77:9::abc"), None);
        assert_eq!(verdict("198.51.100.7", "10.77.10.1"), Some(IgnoreReason::NotOurs));
    }

    #[test]
    fn damaged_packet_is_refused() {
        let with = |checksum: Checksum, host: &Host| {
            dropped(&Packet { checksum: checksum.into(), ..packet("198.51.100.7", OWN) }, 2, host)
        };
        assert_eq!(with(Checksum::Bad, &host()), Some(IgnoreReason::Damaged));
        assert_eq!(with(Checksum::Blank, &host()), Some(IgnoreReason::Damaged));
        assert_eq!(with(Checksum::Unknown, &host()), None);
        assert_eq!(with(Checksum::Blank, &Host::new(Local::Any)), None, "a capture made on the sending host");
    }

    #[test]
    fn wrong_checksum_without_wire_is_accepted() {
        let mut host = host();
        host.virtual_links = vec![2, 5];
        let at = |interface, checksum: Checksum| {
            let checksum = checksum.into();
            dropped(&Packet { checksum, interface, ..packet("198.51.100.7", OWN) }, interface, &host)
        };
        for checksum in [Checksum::Bad, Checksum::Blank] {
            assert_eq!(at(2, checksum), None, "the sender has marked the segment as not yet summed");
            assert_eq!(at(3, checksum), Some(IgnoreReason::Damaged), "from a wire");
        }
        for checksum in [Checksum::BadHeader, Checksum::BlankHeader] {
            assert_eq!(at(2, checksum), Some(IgnoreReason::Damaged), "the IPv4 header is always verified");
        }
    }

    /// A look-up by which the kernel verifies every checksum.
    struct Verifies;

    impl PortLookup for Verifies {
        fn port_use(&mut self, _: Protocol, _: SocketAddr, _: SocketAddr, _: u32) -> PortUse {
            PortUse::Closed
        }

        fn verifies_checksum(&mut self, _: &Packet) -> bool {
            true
        }
    }

    #[test]
    fn verified_checksum_without_wire_is_refused() {
        let mut host = host();
        host.virtual_links = vec![2];
        for checksum in [Checksum::Bad, Checksum::Blank] {
            let packet = Packet { checksum: checksum.into(), ..packet("198.51.100.7", OWN) };
            assert_eq!(verify(&packet, 2, &host, &mut Verifies), Err(IgnoreReason::Damaged));
        }
    }

    #[test]
    fn datagram_in_group_frame_is_accepted() {
        let udp = Transport::Udp { source_port: 4_000, destination_port: 161 };
        let tcp = packet("198.51.100.7", OWN).transport;
        for delivery in [Delivery::Broadcast, Delivery::Multicast] {
            let came = |transport, to, host: &Host| {
                dropped(&Packet { delivery, transport, ..packet("198.51.100.7", to) }, 2, host)
            };
            assert_eq!(came(udp, OWN, &host()), None);
            assert_eq!(came(Transport::Icmp { kind: 8, code: 0 }, OWN, &host()), None);
            assert_eq!(came(tcp, OWN, &host()), Some(IgnoreReason::NotUnicast), "the kernel drops TCP");
            assert!(came(udp, "192.0.2.255", &host()).is_some() && came(udp, "224.0.0.251", &host()).is_some());
            let mut filtered = host();
            filtered.frame_filters = [vec![2], Vec::new()];
            assert_eq!(came(udp, OWN, &filtered), Some(IgnoreReason::NotUnicast), "drop_unicast_in_l2_multicast");
            assert!(came(udp, OWN, &Host::new(Local::Any)).is_some(), "a capture says nothing of subnets");
        }
    }

    #[test]
    fn anycast_address_takes_datagrams_only() {
        let mut host = host();
        host.anycast = vec!["2001:db8:7::/128".parse().unwrap()];
        let to = |transport, to| dropped(&Packet { transport, ..packet("2001:db8:5::1", to) }, 2, &host);
        let udp = Transport::Udp { source_port: 4_000, destination_port: 161 };
        assert_eq!(to(udp, "2001:db8:7::"), None);
        assert_eq!(to(udp, "2001:db8:8::"), Some(IgnoreReason::NotOurs));
        let tcp = packet("2001:db8:5::1", OWN).transport;
        assert_eq!(to(tcp, "2001:db8:7::"), Some(IgnoreReason::NotOurs), "the kernel answers no TCP there");
    }

    #[test]
    fn bridge_without_address_hides_its_frames() {
        let other = Packet { delivery: Delivery::OtherHost, ..packet("198.51.100.7", OWN) };
        assert_eq!(dropped(&other, 2, &host()), Some(IgnoreReason::NotUnicast));
        let mut bridged = host();
        bridged.bridge_ports = vec![(2, 9)];
        assert_eq!(dropped(&other, 9, &bridged), None);
    }

    #[test]
    fn strict_reverse_path_requires_route_back() {
        let routes: [(&str, &[u32]); 3] = [("192.168.5.0/24", &[7]), ("0.0.0.0/0", &[2, 3]), ("172.16.0.0/12", &[])];
        let routes = routes.map(|(network, interfaces)| (network.parse().unwrap(), interfaces.to_vec()));
        let mut host = host();
        host.reverse_path = ReversePath { strict: vec![2, 7], routes: routes.into_iter().collect() };
        let came = |source: &str, interface| dropped(&packet(source, OWN), interface, &host);
        assert_eq!(came("192.168.5.9", 2), Some(IgnoreReason::WrongInterface));
        assert_eq!(came("192.168.5.9", 7), None);
        assert_eq!(came("192.168.5.9", 4), None, "not strict there");
        assert_eq!(came("198.51.100.7", 2), None);
        assert_eq!(came("198.51.100.7", 7), Some(IgnoreReason::WrongInterface));
        assert_eq!(came("172.16.0.1", 2), None, "a route whose interface the kernel does not report");
        let island = ReversePath { strict: vec![2], ..ReversePath::default() };
        assert!(island.refuses(address("198.51.100.7"), 2), "no route back at all");
        assert!(!island.refuses(address("2001:db8:5::1"), 2), "IPv6 has no reverse-path filter");
    }
}
