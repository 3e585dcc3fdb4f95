//! Tests legitimate traffic that resembles a scan, the usual reason to disable a scan detector.

use std::time::Duration;

use super::scene::Gist::{Block, Ignored, Probe, Scan};
use super::scene::{CLIENT, SCANNER, SERVER, Scene, address, target, tcp, udp};
use crate::engine::{Counters, IgnoreReason, Protection, explain};
use crate::types::{Protocol, Response};
use crate::wire::fixtures::{ACK, FIN, RST, SYN};
use crate::wire::{Checksum, Delivery, Packet, TcpFlags, Transport};

#[test]
fn https_attempt_on_http_host_is_forgiven() {
    let mut scene = Scene::new();
    scene.listen(80);
    for _ in 0..500 {
        assert_eq!(scene.after(20.0).syn(CLIENT, 80), Ignored(IgnoreReason::Open));
        assert_eq!(scene.syn(CLIENT, 443), Probe(1));
    }
}

#[test]
fn ident_query_is_not_monitored() {
    assert_eq!(Scene::new().syn(SERVER, 113), Ignored(IgnoreReason::NotMonitored));
}

#[test]
fn stray_segments_go_to_open_ports() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    [22, 80, 443].into_iter().for_each(|port| scene.listen(port));
    for flags in [FIN | ACK, RST, RST | ACK, ACK, ACK | TcpFlags::PSH, SYN] {
        for port in [22, 80, 443] {
            assert!(matches!(scene.tcp(CLIENT, port, flags), Ignored(_)), "{:?}", TcpFlags(flags));
        }
    }
}

#[test]
fn carrier_nat_clients_are_not_banned() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.listen(443);
    for n in 0..20_000 {
        let flags = [SYN, ACK, FIN | ACK, RST][usize::from(n % 4)];
        assert!(matches!(scene.sees(CLIENT, tcp(1_024 + n, 443, flags)), Ignored(_)));
    }
    assert_eq!(scene.engine.tracked(), (0, 0));
}

#[test]
fn backscatter_is_not_a_scan() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    for port in 1..=1_024 {
        assert_eq!(scene.sees(SERVER, tcp(80, port, SYN | ACK)), Ignored(IgnoreReason::NoRequest));
        assert_eq!(scene.sees(SERVER, tcp(80, port, RST | ACK)), Ignored(IgnoreReason::NoRequest));
    }
}

#[test]
fn damaged_packet_changes_nothing() {
    let set_up = || {
        let mut scene = Scene::new();
        scene.listen(80);
        scene.after(10.0).stop_listening();
        scene.listen(22);
        scene.remember_service(443);
        scene.protect(&format!("{SERVER}/32"), Protection::Listed);
        assert_eq!(scene.udps(SCANNER, [7, 9, 11]), Scan(3));
        scene.syns(CLIENT, [21, 23]);
        scene
    };
    let state = |scene: &Scene, source: &str| {
        let Scene { engine, host, truth, now, .. } = scene;
        let counters = Counters { packets: 0, ..engine.counters() };
        let closed = scene.closed_ports(Protocol::Tcp).to_string();
        (counters, truth.lookups, engine.tracked(), closed, explain(engine, *now, address(source), None, host))
    };
    for (source, transport, reason) in [
        (CLIENT, tcp(40_000, 22, SYN), IgnoreReason::Open),
        (CLIENT, tcp(40_000, 80, SYN), IgnoreReason::RecentlyOpen),
        (CLIENT, tcp(40_000, 443, SYN), IgnoreReason::RememberedService),
        (CLIENT, tcp(40_000, 113, SYN), IgnoreReason::NotMonitored),
        (CLIENT, tcp(40_000, 25, SYN), IgnoreReason::Damaged),
        (CLIENT, tcp(40_000, 25, FIN), IgnoreReason::Damaged),
        (SERVER, tcp(40_000, 25, SYN), IgnoreReason::Damaged),
        (SCANNER, udp(40_000, 13), IgnoreReason::Damaged),
    ] {
        let (mut undisturbed, mut scene) = (set_up(), set_up());
        let before = state(&scene, source);
        for checksum in [Checksum::Bad, Checksum::Blank, Checksum::BadHeader, Checksum::BlankHeader] {
            let damaged = Packet { checksum: checksum.into(), ..Scene::packet(source, transport) };
            assert_eq!(scene.see(&damaged), Ignored(reason), "{source} {transport:?}");
            assert_eq!(state(&scene, source), before, "{source} {transport:?}");
        }
        let verdicts = [&mut undisturbed, &mut scene].map(|scene| {
            scene.sees(source, transport);
            scene.verdict
        });
        assert_eq!(verdicts[0], verdicts[1], "a packet without damage is judged as before");
    }
}

/// A broadcast datagram of a neighbour.
fn cast(from: &str, to: &str, port: u16, delivery: Delivery) -> Packet<'static> {
    Packet { destination: address(to), delivery, ..Scene::packet(from, udp(port, port)) }
}

#[test]
fn broadcast_is_not_a_probe() {
    let mut scene = Scene::with(|settings| {
        (settings.scan_trigger, settings.udp.response) = (0, Response::Block);
        settings.udp.ports = "1-65535".parse().unwrap();
    });
    for (name, packet) in [
        ("DHCP", cast("0.0.0.0", "255.255.255.255", 67, Delivery::Broadcast)),
        ("NetBIOS names", cast("192.0.2.40", "192.0.2.255", 137, Delivery::Broadcast)),
        ("NetBIOS names where the link says nothing", cast("192.0.2.40", "255.255.255.255", 137, Delivery::Unknown)),
        ("NTP", cast("192.0.2.40", "224.0.1.1", 123, Delivery::Multicast)),
        ("RIP", cast("192.0.2.40", "224.0.0.9", 520, Delivery::Multicast)),
        ("SSDP", cast("192.0.2.40", "239.255.255.250", 1_900, Delivery::Multicast)),
        ("SSDP where the link says nothing", cast("192.0.2.40", "239.255.255.250", 1_900, Delivery::Unknown)),
        ("mDNS", cast("192.0.2.40", "224.0.0.251", 5_353, Delivery::Multicast)),
        ("mDNS over IPv6", cast("fe80::40", "ff02::fb", 5_353, Delivery::Multicast)),
        ("DHCPv6", cast("fe80::40", "ff02::1:2", 547, Delivery::Multicast)),
        ("a flooded switch", cast("192.0.2.40", "192.0.2.1", 23, Delivery::OtherHost)),
    ] {
        assert_eq!(scene.see(&packet), Ignored(IgnoreReason::NotUnicast), "{name}");
    }
}

#[test]
fn packet_at_bridge_port_is_for_host() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    let at =
        |interface| Packet { interface, delivery: Delivery::OtherHost, ..Scene::packet(CLIENT, tcp(40_000, 23, SYN)) };
    scene.change(|host| host.bridge_ports = vec![(7, 3)]);
    assert_eq!(scene.see(&at(8)), Ignored(IgnoreReason::NotUnicast));
    assert_eq!(scene.see(&Packet { delivery: Delivery::Broadcast, ..at(7) }), Ignored(IgnoreReason::NotUnicast));
    assert!(!matches!(scene.see(&at(7)), Ignored(_)));
}

#[test]
fn directed_broadcast_is_not_for_this_host() {
    let mut scene = Scene::with(|settings| settings.udp.response = Response::Block);
    let packet = cast("192.0.2.40", "192.0.2.255", 161, Delivery::Host);
    assert_eq!(scene.see(&packet), Ignored(IgnoreReason::NotOurs));
}

#[test]
fn unicast_chatter_of_neighbours_is_not_monitored() {
    let mut scene = Scene::with(|settings| (settings.scan_trigger, settings.udp.response) = (0, Response::Block));
    for port in [67, 68, 137, 138, 520, 546] {
        assert_eq!(scene.udp("192.0.2.40", port), Ignored(IgnoreReason::NotMonitored), "{port}");
    }
}

#[test]
fn traceroute_is_not_monitored() {
    let mut scene = Scene::with(|settings| (settings.scan_trigger, settings.udp.response) = (0, Response::Block));
    for port in 33_434..33_534 {
        assert_eq!(scene.udp(CLIENT, port), Ignored(IgnoreReason::NotMonitored));
    }
}

#[test]
fn icmp_errors_and_keepalives_are_not_probes() {
    let mut scene = Scene::with(|settings| (settings.scan_trigger, settings.icmp) = (0, true));
    scene.listen(22);
    assert_eq!(scene.sees(CLIENT, Transport::Icmp { kind: 3, code: 4 }), Ignored(IgnoreReason::NoRequest));
    for _ in 0..100 {
        assert_eq!(scene.after(75.0).tcp(CLIENT, 22, ACK), Ignored(IgnoreReason::Open));
    }
}

#[test]
fn ntp_answers_are_not_probes() {
    let mut scene = Scene::with(|settings| (settings.scan_trigger, settings.udp.response) = (0, Response::Block));
    for _ in 0..50 {
        scene.after(64.0).sends(SERVER, udp(123, 123));
        assert_eq!(scene.after(0.05).sees(SERVER, udp(123, 123)), Ignored(IgnoreReason::RecentlyOpen));
    }
}

#[test]
fn impossible_source_is_ignored() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    for source in ["0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.5", "::", "ff02::1"] {
        assert_eq!(scene.syn(source, 23), Ignored(IgnoreReason::NoSource), "{source}");
    }
}

#[test]
fn routed_packet_is_not_for_host() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    assert_eq!(scene.syn_to("203.0.113.99", CLIENT, 23), Ignored(IgnoreReason::NotOurs));
}

#[test]
fn connected_peer_has_threshold_of_eight() {
    let mut scene = Scene::new();
    let minute = Duration::from_secs(60);
    scene.engine.set_peers(scene.now, &[(target(CLIENT), minute), (target("2001:db8:5::1"), minute)]);
    assert_eq!(scene.syns(CLIENT, 1..=7), Probe(7), "seven mistaken ports");
    assert_eq!(scene.syn(CLIENT, 8), Block(8), "a scanner that keeps a connection open gains five ports");
    assert_eq!(scene.syns("2001:db8:5::77", 1..=7), Probe(7), "its /64 is one source");
    assert_eq!(scene.tcp("2001:db8:5::77", 9, 0), Block(8), "flags that no TCP stack sends are enough nevertheless");
    assert_eq!(scene.syns("198.51.100.99", [1, 2]), Probe(2));
    assert_eq!(scene.syn("198.51.100.99", 3), Block(3), "another source has no such connection");
}

#[test]
fn later_connection_and_strikes_excuse_nothing() {
    let mut scene = Scene::new();
    assert_eq!(scene.syn(CLIENT, 1), Probe(1));
    scene.after(1.0);
    scene.engine.set_peers(scene.now, &[(target(CLIENT), Duration::ZERO)]);
    assert_eq!(scene.syn(CLIENT, 2), Probe(2));
    assert_eq!(scene.syn(CLIENT, 3), Block(3), "it connected after its first probe");
    scene.after(100_000.0);
    scene.engine.set_peers(scene.now, &[(target(CLIENT), Duration::from_secs(60))]);
    assert_eq!(scene.syns(CLIENT, [11, 12]), Probe(2));
    assert_eq!(scene.syn(CLIENT, 13), Block(3), "it was banned before");
    scene.after(1_000_000.0);
    scene.engine.set_peers(scene.now, &[]);
    assert_eq!(scene.syns("192.0.2.77", [11, 12]), Probe(2));
    assert_eq!(scene.syn("192.0.2.77", 13), Block(3));
}
