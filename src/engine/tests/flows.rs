//! Tests this host's own traffic: services that start and stop, and outgoing flows.

use super::scene::Gist::{Block, Ignored, Probe};
use super::scene::{CLIENT, HERE, HERE_TOO, SCANNER, SERVER, Scene, nth_source, target, tcp, udp};
use crate::engine::{IgnoreReason, PortUse, ProtocolSettings, Settings};
use crate::types::{PortSet, Protocol, Response};
use crate::wire::TcpFlags;
use crate::wire::fixtures::{ACK, FIN, PSH, SYN};

/// All ports from 1024 are monitored, including those of outgoing connections.
fn watch_all_ports(settings: &mut Settings) {
    let ports: PortSet = "1024-65535".parse().unwrap();
    (settings.tcp.ports, settings.udp.ports) = (ports.clone(), ports);
    settings.udp.response = Response::Block;
}

#[test]
fn open_port_is_not_evidence() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.listen(80);
    for flags in [SYN, ACK, ACK | PSH, FIN | ACK, 0, FIN, SYN | FIN] {
        assert_eq!(scene.tcp(CLIENT, 80, flags), Ignored(IgnoreReason::Open), "{:?}", TcpFlags(flags));
    }
}

#[test]
fn clients_of_restarting_service_are_not_banned() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.listen(80);
    scene.after(3_600.0).stop_listening();
    for flags in [SYN, ACK, ACK | PSH, FIN | ACK] {
        assert_eq!(scene.after(10.0).tcp(CLIENT, 80, flags), Ignored(IgnoreReason::RecentlyOpen));
    }
    scene.after(5.0).listen(80);
    assert_eq!(scene.syn(CLIENT, 80), Ignored(IgnoreReason::Open));
}

#[test]
fn stopped_service_leaves_closed_port() {
    let mut scene = Scene::new();
    scene.listen(80);
    scene.after(10.0).stop_listening();
    assert_eq!(scene.after(119.0).syn(CLIENT, 80), Ignored(IgnoreReason::RecentlyOpen));
    assert_eq!(scene.after(2.0).syn(CLIENT, 80), Probe(1));
}

#[test]
fn damaged_segment_to_recent_port_bans_nothing() {
    let mut scene = Scene::new();
    scene.listen(80);
    scene.after(10.0).stop_listening();
    assert_eq!(scene.tcp(CLIENT, 80, 0x200 | ACK), Ignored(IgnoreReason::RecentlyOpen));
    scene.accepts(CLIENT, 443);
    assert_eq!(scene.tcp(CLIENT, 443, 0x200 | ACK), Ignored(IgnoreReason::RecentlyOpen), "published by DNAT");
}

#[test]
fn service_after_snapshot_bans_no_clients() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.truth.in_use.insert((Protocol::Tcp, 80));
    assert_eq!(scene.syn(CLIENT, 80), Ignored(IgnoreReason::Open));
    assert_eq!(scene.engine.tracked(), (0, 0));
    assert_eq!(scene.engine.counters().probes, 0);
    assert_eq!(scene.syn(&nth_source(1), 80), Ignored(IgnoreReason::RecentlyOpen), "the first lookup was enough");
    assert_eq!(scene.truth.lookups, 1);
}

#[test]
fn disproved_evidence_is_forgiven() {
    let mut scene = Scene::new();
    scene.truth.in_use.insert((Protocol::Tcp, 80));
    scene.syns(CLIENT, [21, 22]);
    assert_eq!(scene.syn(CLIENT, 80), Ignored(IgnoreReason::Open));
    assert_eq!(scene.syn(CLIENT, 21), Probe(2));
    assert_eq!(scene.syn(CLIENT, 25), Block(3));
    assert!(scene.ban().ports.iter().all(|(_, port, _)| port != 80));
}

#[test]
fn unchecked_evidence_is_verified_before_ban() {
    let mut scene = Scene::new();
    scene.truth.in_use.extend([(Protocol::Tcp, 21), (Protocol::Tcp, 22)]);
    // More new probes within a second than look-ups are allowed.
    for n in 0..1_000 {
        scene.syn(&nth_source(n), 700);
    }
    assert_eq!((scene.syns(CLIENT, [21, 22]), scene.truth.lookups), (Probe(2), 1_000));
    assert_eq!(scene.syn(CLIENT, 25), Probe(1), "two of the three were open all the time");
}

#[test]
fn flood_causes_no_lookups() {
    let mut scene = Scene::new();
    for n in 0..20_000 {
        scene.after(0.000_05).syn(&nth_source(n), 23);
    }
    assert!((1_000..=2_100).contains(&scene.truth.lookups), "{}", scene.truth.lookups);
}

#[test]
fn clients_of_published_port_are_not_banned() {
    let mut scene = Scene::new();
    for n in 0..50 {
        // SYN in, SYN/ACK out, and no socket on this host.
        assert!(!matches!(scene.syn(&nth_source(n), 443), Block(_)));
        scene.accepts(&nth_source(n), 443);
    }
    assert_eq!(scene.engine.tracked(), (0, 0), "the first probe is forgiven");
    assert_eq!(scene.after(80_000.0).tcp(CLIENT, 443, FIN | ACK), Ignored(IgnoreReason::RecentlyOpen));
}

#[test]
fn three_published_ports_are_not_a_scan() {
    let mut scene = Scene::new();
    for port in [80, 443, 8080] {
        assert_eq!(scene.syn(CLIENT, port), Probe(1));
        scene.after(0.02).accepts(CLIENT, port);
    }
    assert_eq!(scene.syn(CLIENT, 22), Probe(1));
}

#[test]
fn recent_listener_is_forgotten_after_it_stops() {
    let mut scene = Scene::new();
    scene.accepts(CLIENT, 8080);
    scene.after(1.0).listen(8080);
    scene.after(1.0).stop_listening();
    assert_eq!(scene.after(200.0).syn(CLIENT, 8080), Probe(1), "it was a socket, not a port published by NAT");
}

#[test]
fn reset_opens_no_port() {
    let mut scene = Scene::new();
    for (gist, port) in [(Probe(1), 21), (Probe(2), 22), (Block(3), 23)] {
        assert_eq!(scene.syn(SCANNER, port), gist);
        scene.sends(SCANNER, tcp(port, 40_000, TcpFlags::RST | ACK));
    }
}

#[test]
fn answers_at_monitored_ports_are_not_probes() {
    let mut scene = Scene::with(watch_all_ports);
    for port in 50_000..50_010 {
        scene.sends(SERVER, tcp(port, 443, SYN));
        assert_eq!(scene.sees(SERVER, tcp(443, port, SYN | ACK)), Ignored(IgnoreReason::NoRequest));
        scene.sends(SERVER, tcp(port, 443, FIN | ACK));
        // The last segments come after this host has forgotten the connection.
        let late = scene.after(55.0).sees(SERVER, tcp(443, port, FIN | ACK));
        assert_eq!(late, Ignored(IgnoreReason::RecentlyOpen));
        assert_eq!(scene.sees(SERVER, tcp(443, port, ACK | PSH)), Ignored(IgnoreReason::RecentlyOpen));
    }
}

#[test]
fn long_silent_connection_is_known() {
    let mut scene = Scene::with(watch_all_ports);
    for port in 50_000..50_010 {
        scene.sends(SERVER, tcp(port, 443, SYN));
        scene.truth.in_use.insert((Protocol::Tcp, port));
    }
    scene.after(7_200.0);
    for port in 50_000..50_010 {
        assert_eq!(scene.sees(SERVER, tcp(443, port, ACK)), Ignored(IgnoreReason::Open), "a keep-alive");
    }
}

#[test]
fn late_dns_answers_are_not_probes() {
    let mut scene = Scene::with(watch_all_ports);
    for port in 40_000..40_010 {
        scene.sends(SERVER, udp(port, 53));
        assert_eq!(scene.after(30.0).sees(SERVER, udp(53, port)), Ignored(IgnoreReason::RecentlyOpen));
    }
}

#[test]
fn unexpected_answer_is_probe_of_one_port() {
    let mut scene = Scene::with(watch_all_ports);
    scene.sends(SERVER, udp(40_000, 53));
    assert_eq!(scene.after(121.0).sees(SERVER, udp(53, 40_000)), Probe(1));
}

#[test]
fn own_flows_do_not_excuse_other_ports() {
    let mut scene = Scene::with(watch_all_ports);
    scene.sends(SERVER, tcp(50_000, 443, SYN));
    assert_eq!(scene.syns(SERVER, [2_000, 2_001, 2_002]), Block(3));
}

#[test]
fn passive_ftp_port_is_unknown_to_snapshot() {
    let mut scene = Scene::with(watch_all_ports);
    for port in 60_000..60_020 {
        scene.truth.in_use.insert((Protocol::Tcp, port));
        assert!(matches!(scene.syn(CLIENT, port), Ignored(_)));
        scene.accepts(CLIENT, port);
        scene.truth.in_use.remove(&(Protocol::Tcp, port));
        assert_eq!(scene.after(1.0).tcp(CLIENT, port, FIN | ACK), Ignored(IgnoreReason::RecentlyOpen));
    }
}

#[test]
fn active_ftp_reaches_waiting_socket() {
    let mut scene = Scene::with(watch_all_ports);
    for port in 51_000..51_010 {
        scene.sends(SERVER, tcp(50_999, 21, ACK | PSH));
        scene.truth.in_use.insert((Protocol::Tcp, port));
        assert_eq!(scene.sees(SERVER, tcp(20, port, SYN)), Ignored(IgnoreReason::Open));
    }
}

#[test]
fn container_udp_service_is_known_by_answers() {
    let mut scene = Scene::with(|settings| settings.udp.response = Response::Block);
    assert_eq!(scene.udp(CLIENT, 53), Probe(1));
    scene.leaves(CLIENT, udp(53, 40_000), PortUse::Published { established: false });
    assert_eq!(scene.udp(&nth_source(1), 53), Ignored(IgnoreReason::RecentlyOpen));
}

#[test]
fn forwarded_packet_opens_no_port() {
    let mut scene = Scene::new();
    let mut forwarded = Scene::packet(SERVER, tcp(23, 40_000, SYN | ACK));
    forwarded.delivery = crate::wire::Delivery::Outgoing;
    assert_eq!(scene.see(&forwarded), Ignored(IgnoreReason::Own));
    assert_eq!(scene.syn(SCANNER, 23), Probe(1));
}

#[test]
fn bridged_answers_open_no_port() {
    let mut scene = Scene::new();
    let before = scene.closed_ports(Protocol::Tcp);
    for port in 1..=1_024 {
        scene.after(0.01).leaves(CLIENT, tcp(port, 40_000, SYN | ACK), PortUse::Closed);
    }
    assert_eq!(scene.closed_ports(Protocol::Tcp), before, "the kernel denies each port");
    assert_eq!(scene.syns(SCANNER, [21, 22, 23]), Block(3));
}

#[test]
fn masqueraded_connections_open_no_port() {
    let mut scene = Scene::new();
    for port in 1..=1_024 {
        scene.after(0.01).leaves(SERVER, tcp(port, 443, SYN), PortUse::Translated);
    }
    assert_eq!(scene.syns(SERVER, [21, 22, 23]), Block(3), "not even for the peer: only the exact flow is translated");
    assert_eq!(scene.syns(SCANNER, [24, 25, 26]), Block(3));
}

#[test]
fn outgoing_packets_cause_bounded_lookups() {
    let mut scene = Scene::with(watch_all_ports);
    for port in 1_024..21_024 {
        scene.after(0.000_05).leaves(SERVER, tcp(port, 443, SYN), PortUse::Closed);
    }
    assert!((500..=1_100).contains(&scene.truth.lookups), "{} lookups in a second", scene.truth.lookups);
    scene.truth.lookups = 0;
    (0..100).for_each(|_| scene.after(1.0).leaves(CLIENT, tcp(23, 443, SYN), PortUse::Closed));
    assert_eq!(scene.truth.lookups, 0, "an unwatched port needs no lookup");
    scene.after(5.0).sends(SERVER, udp(40_000, 53));
    (0..50).for_each(|_| scene.after(1.0).sends(SERVER, udp(40_000, 53)));
    assert_eq!(scene.truth.lookups, 1, "a known port is not looked up again");
}

#[test]
fn own_flow_opens_port_to_peer() {
    let mut scene = Scene::with(watch_all_ports);
    scene.sends(SERVER, tcp(50_000, 443, SYN));
    assert_eq!(scene.sees(SERVER, tcp(443, 50_000, ACK)), Ignored(IgnoreReason::RecentlyOpen));
    assert_eq!(scene.syn(SCANNER, 50_000), Probe(1));
}

#[test]
fn answer_excuses_its_peer_without_translations() {
    let mut scene = Scene::new();
    for port in [80, 443, 990] {
        assert_eq!(scene.syn(CLIENT, port), Probe(1));
        scene.after(0.02).leaves(CLIENT, tcp(port, 40_000, SYN | ACK), PortUse::Unknown);
    }
    assert_eq!(scene.syn(SCANNER, 80), Probe(1), "no other source");
    scene.leaves(CLIENT, tcp(22, 40_000, SYN), PortUse::Unknown);
    assert_eq!(scene.syn(CLIENT, 22), Probe(1), "a packet that is no answer proves nothing");
}

#[test]
fn published_flow_is_excused_before_answer() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    let found = |port, established| Some(((Protocol::Tcp, port), PortUse::Published { established }));
    for port in [143, 465, 993] {
        scene.truth.flow = found(port, false);
        assert_eq!(scene.syn(CLIENT, port), Ignored(IgnoreReason::Open));
    }
    scene.truth.flow = None;
    assert!(matches!(scene.syn(SCANNER, 143), Block(1)), "without an answer, it opens the port to no other flow");
    scene.truth.flow = found(993, true);
    assert_eq!(scene.tcp(CLIENT, 993, ACK), Ignored(IgnoreReason::Open));
    scene.truth.flow = None;
    assert_eq!(scene.syn(&nth_source(1), 993), Ignored(IgnoreReason::RecentlyOpen));
    assert!(matches!(scene.syn_to(HERE_TOO, &nth_source(2), 993), Block(1)), "the other address publishes nothing");
}

#[test]
fn loopback_listener_opens_nothing() {
    let mut scene = Scene::new();
    scene.change(|host| host.tcp.insert("127.0.0.1".parse().unwrap(), 631));
    assert_eq!(scene.syn(SCANNER, 631), Probe(1));
    scene.stop_listening();
    assert_eq!(scene.syn(&nth_source(1), 631), Probe(1), "so nothing was open a moment ago");
}

#[test]
fn listener_opens_only_its_address() {
    let mut scene = Scene::new();
    scene.change(|host| host.tcp.insert(HERE.parse().unwrap(), 25));
    assert_eq!(scene.syn(CLIENT, 25), Ignored(IgnoreReason::Open));
    assert_eq!(scene.syn_to(HERE_TOO, CLIENT, 25), Probe(1));
}

#[test]
fn wildcard_of_one_family_opens_only_that() {
    let (six, four) = ("2001:db8:9::1", CLIENT);
    let mut scene = Scene::new();
    scene.change(|host| {
        host.tcp.insert([0; 4].into(), 25);
        host.tcp.insert([0; 16].into(), 26);
    });
    assert_eq!((scene.syn(four, 25), scene.syn(four, 26)), (Ignored(IgnoreReason::Open), Probe(1)));
    assert_eq!((scene.syn(six, 25), scene.syn(six, 26)), (Probe(1), Ignored(IgnoreReason::Open)));
}

#[test]
fn remaining_listener_keeps_its_own_scope() {
    let mut scene = Scene::new();
    scene.change(|host| host.tcp.insert(HERE.parse().unwrap(), 25));
    scene.listen(80);
    scene.after(500.0).change(|host| {
        host.tcp = Default::default();
        host.tcp.insert(HERE.parse().unwrap(), 25);
    });
    assert_eq!(scene.syn_to(HERE_TOO, CLIENT, 25), Probe(1));
    assert_eq!(scene.syn_to(HERE_TOO, CLIENT, 80), Ignored(IgnoreReason::RecentlyOpen));
}

#[test]
fn lost_listener_address_was_recently_open() {
    let mut scene = Scene::new();
    scene.listen(25);
    scene.after(500.0).change(|host| {
        host.tcp = Default::default();
        host.tcp.insert(HERE.parse().unwrap(), 25);
    });
    assert_eq!(scene.syn_to(HERE_TOO, CLIENT, 25), Ignored(IgnoreReason::RecentlyOpen));
}

#[test]
fn udp_socket_opens_no_tcp_port() {
    let mut scene = Scene::new();
    scene.change(|host| host.udp.insert([0; 4].into(), 53));
    assert_eq!((scene.udp(CLIENT, 53), scene.syn(CLIENT, 53)), (Ignored(IgnoreReason::Open), Probe(1)));
    assert!(!scene.engine.lift(target(CLIENT)), "a client has no ban");
}

#[test]
fn udp_ports_without_socket_are_closed() {
    assert!(Scene::new().closed_ports(Protocol::Udp).is_empty(), "no source is blocked for them");

    let mut scene = Scene::with(|settings| {
        settings.udp = ProtocolSettings { ports: "53,901-905,40000".parse().unwrap(), response: Response::Block };
    });
    assert_eq!(scene.closed_ports(Protocol::Udp).to_string(), "53,901-905,40000");
    scene.change(|host| {
        host.udp.insert([0; 4].into(), 53);
        host.udp.insert("127.0.0.1".parse().unwrap(), 905);
        host.tcp.insert([0; 4].into(), 904);
        host.ephemeral = "32768-60999".parse().unwrap();
    });
    assert_eq!(
        scene.closed_ports(Protocol::Udp).to_string(),
        "901-905",
        "neither a listener on loopback nor one of TCP opens a port"
    );
    scene.leaves(SERVER, udp(901, 53), PortUse::Open);
    scene.sends(SERVER, tcp(902, 443, SYN));
    scene.stop_listening();
    assert_eq!(scene.closed_ports(Protocol::Udp).to_string(), "902-905");
    scene.after(121.0);
    assert_eq!(scene.closed_ports(Protocol::Udp).to_string(), "53,901-905");
    // The engine judges them as always; only the kernel's trap does not count them.
    assert_eq!(scene.udps(SCANNER, [901, 902, 40_000]), Block(3));
}
