//! Tests every kind of probe against a closed port.

use super::scene::Gist::{Block, Ignored, Probe, Repeated, Scan};
use super::scene::{HERE_TOO, SCANNER, Scene, address, tcp, udp};
use crate::engine::{Class, IgnoreReason, Settings};
use crate::types::{Protocol, Response};
use crate::wire::fixtures::{ACK, FIN, PSH, RST, SYN, URG};
use crate::wire::{Packet, TcpFlags, Transport};

/// Sends packets with these flags to three ports; returns the class of the ban.
fn third_blocks(flags: u16, change: impl FnOnce(&mut Settings)) -> Class {
    let mut scene = Scene::with(change);
    assert_eq!(scene.tcps(SCANNER, [21, 22, 23], flags), [Probe(1), Probe(2), Block(3)]);
    scene.ban().probe.observation.class
}

/// Sends a single packet with these flags; returns the class of the ban.
fn first_blocks(flags: u16) -> Class {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 15);
    assert_eq!(scene.tcp(SCANNER, 23, flags), Block(1), "{:?}", TcpFlags(flags));
    scene.ban().probe.observation.class
}

#[test]
fn congestion_bits_do_not_change_syn() {
    for flags in [SYN, SYN | TcpFlags::ECE | TcpFlags::CWR, SYN | TcpFlags::ECE | TcpFlags::CWR | TcpFlags::AE] {
        assert_eq!(third_blocks(flags, |_| ()), Class::Syn);
    }
}

#[test]
fn ack_and_fin_ack_ban_if_configured() {
    for (flags, class) in [(ACK, Class::Ack), (ACK | PSH, Class::Ack), (FIN | ACK, Class::Maimon)] {
        assert_eq!(third_blocks(flags, |settings| settings.ack_bans = true), class);
        let mut scene = Scene::new();
        assert_eq!(scene.tcps(SCANNER, [21, 22, 23], flags), [Probe(1), Probe(2), Scan(3)], "reported");
        assert_eq!(scene.ban().probe.observation.class, class);
        assert_eq!(scene.tcp(SCANNER, 24, flags), Repeated, "and reported once");
    }
}

#[test]
fn reported_acks_change_no_other_verdict() {
    let mut scene = Scene::new();
    scene.tcps(SCANNER, [21, 22, 23], ACK);
    assert_eq!(scene.syn(SCANNER, 24), Probe(1), "late segments of a legitimate peer do not count with its SYNs");
    assert_eq!(scene.syn(SCANNER, 25), Probe(2));
    assert_eq!(scene.syn(SCANNER, 26), Block(3), "a scanner that begins with ACKs is banned for its SYNs");
    let mut scene = Scene::new();
    let _ = scene.tcp(SCANNER, 21, ACK);
    assert_eq!(scene.tcp(SCANNER, 22, 0), Block(1), "flags that no TCP stack sends are enough as before");
    let mut scene = Scene::with(|settings| settings.tcp.response = Response::RunCommand);
    scene.tcps(SCANNER, [21, 22, 23], ACK);
    scene.after(1_801.0);
    assert_eq!(scene.tcp(SCANNER, 21, ACK), Probe(1), "reported once per window, without running a command");
}

#[test]
fn illegal_packet_bans_immediately() {
    assert_eq!(first_blocks(0), Class::Null);
    assert_eq!(first_blocks(FIN), Class::Fin);
    assert_eq!(first_blocks(FIN | PSH | URG), Class::Xmas);
    for flags in [SYN | FIN, SYN | RST, SYN | FIN | ACK, FIN | SYN | RST | PSH | ACK | URG, URG, 0x200 | SYN] {
        assert_eq!(first_blocks(flags), Class::Illegal);
    }
}

#[test]
fn xmas_probe_after_syn_bans_immediately() {
    let mut scene = Scene::new();
    assert_eq!(scene.syn(SCANNER, 23), Probe(1));
    assert_eq!(scene.tcp(SCANNER, 23, FIN | PSH | URG), Block(1));
}

#[test]
fn classes_at_different_ports_count_together() {
    let mut scene = Scene::with(|settings| settings.ack_bans = true);
    assert_eq!(scene.syn(SCANNER, 21), Probe(1));
    assert_eq!(scene.tcp(SCANNER, 22, ACK), Probe(2));
    assert_eq!(scene.tcp(SCANNER, 23, FIN | ACK), Block(3));
    let held: Vec<_> = scene.ban().ports.iter().collect();
    let named = [(21, Class::Syn), (22, Class::Ack), (23, Class::Maimon)];
    assert_eq!(held, named.map(|(port, class)| (Protocol::Tcp, port, class)));
}

#[test]
fn syn_in_first_fragment_counts() {
    let mut scene = Scene::new();
    let whole = Scene::packet(SCANNER, tcp(1_024, 23, SYN));
    assert_eq!(scene.see(&Packet { fragmented: true, ..whole }), Probe(1));
    scene.syns(SCANNER, [24, 25]);
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    assert_eq!(scene.see(&Packet { fragmented: true, ..whole }), Block(1));
    let observation = scene.ban().probe.observation;
    assert_eq!((observation.class, observation.fragmented), (Class::Syn, true));
}

#[test]
fn fragment_hiding_flags_bans_immediately() {
    for (transport, port) in [
        (Transport::TinyFragment { ports: Some((40_000, 23)) }, 23),
        (Transport::TinyFragment { ports: None }, 0),
        (Transport::OverlappingFragment, 0),
    ] {
        let mut scene = Scene::new();
        assert_eq!(scene.sees(SCANNER, transport), Block(1));
        let observation = scene.ban().probe.observation;
        assert_eq!((observation.class, observation.port, observation.fragmented), (Class::Fragment, port, true));
    }
}

#[test]
fn later_fragment_is_ignored() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    for transport in [Transport::LaterFragment { protocol: 6 }, Transport::Other { protocol: 47 }] {
        assert_eq!(scene.sees(SCANNER, transport), Ignored(IgnoreReason::NoRequest));
    }
}

#[test]
fn fragments_are_ignored_without_tcp() {
    let mut scene = Scene::with(|settings| settings.tcp.ports.clear());
    assert_eq!(scene.sees(SCANNER, Transport::OverlappingFragment), Ignored(IgnoreReason::NotMonitored));
    assert_eq!(scene.tcp(SCANNER, 23, 0), Ignored(IgnoreReason::NotMonitored));
}

#[test]
fn answer_is_not_a_probe() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    for flags in [SYN | ACK, RST, RST | ACK, RST | FIN] {
        assert_eq!(scene.tcp(SCANNER, 23, flags), Ignored(IgnoreReason::NoRequest), "{:?}", TcpFlags(flags));
    }
}

#[test]
fn decoy_connection_is_evidence_of_port() {
    let mut scene = Scene::new();
    assert_eq!((scene.decoy(SCANNER, 1), scene.decoy(SCANNER, 7)), (Probe(1), Probe(2)));
    assert_eq!(scene.decoy(SCANNER, 9), Block(3));
    assert_eq!(scene.ban().probe.observation.class, Class::Connect);
    assert_eq!(scene.decoy(SCANNER, 11), Repeated);
}

#[test]
fn datagrams_to_three_ports_are_scan() {
    let mut scene = Scene::with(|settings| settings.udp.response = Response::Block);
    assert_eq!((scene.udp(SCANNER, 53), scene.udp(SCANNER, 161)), (Probe(1), Probe(2)));
    assert_eq!(scene.udp(SCANNER, 123), Block(3));
    assert_eq!(scene.ban().probe.observation.class, Class::Udp);
}

#[test]
fn tcp_and_udp_port_count_separately() {
    let mut scene = Scene::with(|settings| settings.udp.response = Response::Block);
    assert_eq!((scene.udp(SCANNER, 53), scene.syn(SCANNER, 53)), (Probe(1), Probe(2)));
}

fn sctp(port: u16, chunk: u8) -> Transport {
    Transport::Sctp { source_port: 40_000, destination_port: port, chunk }
}

#[test]
fn sctp_inits_count_only_when_switched_on() {
    let mut scene = Scene::new();
    assert_eq!(scene.sees(SCANNER, sctp(23, 1)), Ignored(IgnoreReason::NotMonitored));
    let mut scene = Scene::with(|settings| settings.sctp = true);
    assert_eq!(scene.sees(SCANNER, sctp(36_412, 2)), Ignored(IgnoreReason::NoRequest), "an INIT ACK");
    assert_eq!((scene.sees(SCANNER, sctp(23, 1)), scene.sees(SCANNER, sctp(36_412, 1))), (Probe(1), Probe(2)));
    assert_eq!(scene.sees(SCANNER, sctp(2_905, 1)), Block(3));
    assert_eq!(scene.ban().probe.observation.class, Class::Sctp);
}

fn ping(to: &str) -> Packet<'static> {
    let destination = address(to);
    Packet { destination, ..Scene::packet(SCANNER, Transport::Icmp { kind: 8, code: 0 }) }
}

#[test]
fn pings_count_only_if_configured() {
    let mut scene = Scene::new();
    assert_eq!(scene.see(&ping(HERE_TOO)), Ignored(IgnoreReason::NotMonitored));
    let mut scene = Scene::with(|settings| (settings.icmp, settings.scan_trigger) = (true, 1));
    for _ in 0..100 {
        assert_eq!(scene.see(&ping(super::scene::HERE)), Probe(1), "one address may be pinged without limit");
    }
    assert_eq!(scene.see(&ping(HERE_TOO)), Scan(2));
    assert_eq!(scene.ban().probe.observation.class, Class::Icmp);
}

#[test]
fn icmp_answers_and_errors_are_not_probes() {
    let mut scene = Scene::with(|settings| (settings.icmp, settings.scan_trigger) = (true, 0));
    // Echo reply, unreachable, fragmentation needed, time exceeded.
    for (kind, code) in [(0, 0), (3, 3), (3, 4), (11, 0)] {
        assert_eq!(scene.sees(SCANNER, Transport::Icmp { kind, code }), Ignored(IgnoreReason::NoRequest));
    }
    // Packet too big, echo reply, router and neighbour discovery.
    for kind in [2, 129, 133, 134, 135, 136] {
        assert_eq!(scene.sees("2001:db8:9::1", Transport::Icmp { kind, code: 0 }), Ignored(IgnoreReason::NoRequest));
    }
}

#[test]
fn unmonitored_port_is_not_evidence() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    assert_eq!(scene.syn(SCANNER, 20_000), Ignored(IgnoreReason::NotMonitored));
    assert_eq!(scene.sees(SCANNER, udp(5_000, 20_000)), Ignored(IgnoreReason::NotMonitored));
}
