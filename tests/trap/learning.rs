//! Tests that a port counts as open only because of this host's own sockets and the administrator's NAT rules. The
//! first tests try to blind the program from outside, from guests and through NAT; the others check that honest clients
//! are not banned for it.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, ACK, SYN};
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually};

use crate::Protocol::{self, Tcp, Udp};

/// More ports than any client of a real service uses, all of them monitored.
const MANY: std::ops::RangeInclusive<u16> = 1..=1000;

/// Sends `packets` slowly enough that the program looks up each in the kernel.
fn send(lab: &Lab, host: &str, to: Option<[u8; 6]>, packets: impl Iterator<Item = Vec<u8>>) {
    let mut wire = lab.wire(host);
    if let Some(to) = to {
        wire.address_to(to);
    }
    wire.pace(400, packets);
}

/// Packets with the victim's address as source, from each monitored port.
fn answers(own: impl Into<IpAddr>, peer: impl Into<IpAddr>) -> impl Iterator<Item = Vec<u8>> {
    let (own, peer) = (own.into(), peer.into());
    MANY.map(move |port| raw::packet(own, peer, raw::TCP, &raw::segment(own, peer, (port, 40_000), SYN | ACK)))
}

/// Asserts that all packets have been judged, no port has left the trap, and a scan is banned.
fn assert_still_detects(lab: &Lab, daemon: Daemon, before: &BTreeSet<u16>) {
    let scanner = lab.provoke_ban("scanner");
    assert_eq!(lab.banned(), [scanner]);
    assert_eq!(&Tcp.watched(lab), before, "the watched ports are unchanged");
    daemon.stop();
}

/// Starts the program; returns the ports that it monitors.
fn start(lab: &Lab) -> (Daemon, BTreeSet<u16>) {
    let daemon = Tcp.start(lab, "");
    (daemon, Tcp.watched(lab))
}

/// Makes the links to these hosts ports of a bridge in the victim, and removes the victim's addresses from them.
fn bridge(lab: &Lab, hosts: &[&str]) {
    lab.victim_ip("link add name tenants type bridge");
    lab.sysctl("net.ipv6.conf.tenants.disable_ipv6=1");
    lab.victim_ip("link set tenants up");
    for host in hosts {
        lab.victim_ip(&format!("address flush dev {host}"));
        lab.victim_ip(&format!("link set {host} master tenants"));
    }
}

#[test]
fn guests_of_bridge_open_no_port() {
    for addressed in [false, true] {
        let lab = Lab::new(&["scanner", "guest", "other"]);
        bridge(&lab, &["guest", "other"]);
        if addressed {
            lab.victim_ip("address add 172.17.0.1/16 dev tenants");
        }
        let (daemon, before) = start(&lab);
        let to = lab.hardware_address("other", "uplink");
        send(&lab, "guest", Some(to), answers(lab.victim_v4("scanner"), Ipv4Addr::new(172, 17, 0, 9)));
        assert_still_detects(&lab, daemon, &before);
    }
}

/// A bridge as Proxmox and libvirt configure it: the network card is a port of the bridge that has the host's address.
/// The sender is any host on the Internet.
#[test]
fn remote_sender_through_bridge_opens_no_port() {
    let lab = Lab::new(&["scanner", "guest", "remote"]);
    bridge(&lab, &["guest", "remote"]);
    lab.victim_ip("address add 10.77.3.1/24 dev tenants");
    let (daemon, before) = start(&lab);
    let to = lab.hardware_address("guest", "uplink");
    send(&lab, "remote", Some(to), answers(lab.victim_v4("remote"), lab.v4("remote")));
    assert_still_detects(&lab, daemon, &before);
}

/// IPv6 has no filter of martian sources: a router forwards a packet with its own address as source.
#[test]
fn forwarded_packets_open_no_port() {
    for tracked in [false, true] {
        let lab = Lab::new(&["scanner", "other", "far"]);
        lab.sysctl("net.ipv6.conf.all.forwarding=1");
        if tracked {
            lab.nft(
                "add table ip6 t; add chain ip6 t c { type filter hook forward priority 0; }; \
                                        add rule ip6 t c ct state new counter",
            );
        }
        let (daemon, before) = start(&lab);
        send(&lab, "other", None, answers(lab.victim_v6("scanner"), lab.v6("far")));
        // The reverse direction does not count as an answer either.
        let (own, peer) = (lab.victim_v6("other").into(), IpAddr::from(lab.v6("far")));
        let begin =
            [21, 22, 23].map(|port| raw::packet(own, peer, raw::TCP, &raw::segment(own, peer, (port, 4_000), SYN)));
        send(&lab, "other", None, begin.into_iter());
        let probes =
            [21, 22, 23].map(|port| raw::packet(peer, own, raw::TCP, &raw::segment(peer, own, (4_000, port), SYN)));
        send(&lab, "far", None, probes.into_iter());
        lab.expect_ban(lab.v6_network("far").into());
        assert_eq!(Tcp.watched(&lab), before, "the watched ports are unchanged");
        let scanner = lab.provoke_ban("scanner");
        assert_eq!(lab.banned(), [scanner, lab.v6_network("far").into()]);
        daemon.stop();
    }
}

/// Masquerading keeps the port that a client has chosen.
#[test]
fn client_behind_nat_opens_no_port() {
    let lab = Lab::new(&["scanner", "client", "server"]);
    lab.sysctl("net.ipv4.ip_forward=1");
    let rules = "add table ip nat; add chain ip nat post { type nat hook postrouting priority srcnat; }; \
                 add rule ip nat post ip saddr 10.77.2.0/24 oif { scanner, server } masquerade";
    lab.nft(rules);
    let (daemon, before) = start(&lab);
    for peer in [lab.v4("server"), lab.v4("scanner")] {
        let (client, peer) = (IpAddr::from(lab.v4("client")), IpAddr::from(peer));
        let begin = MANY.map(|port| raw::packet(client, peer, raw::TCP, &raw::segment(client, peer, (port, 443), SYN)));
        send(&lab, "client", None, begin);
    }
    assert_still_detects(&lab, daemon, &before);
}

/// Data connections of passive FTP: each has its own listener, at a port that the client repeatedly requests.
#[test]
fn short_lived_listener_opens_port_to_peer() {
    let lab = Lab::new(&["scanner", "client"]);
    let (daemon, _) = start(&lab);
    let own = lab.victim_v4("client");
    for port in 901..=906 {
        let listener = lab.inside("victim", || TcpListener::bind((own, port)).unwrap());
        let mut stream = lab.inside("client", || TcpStream::connect((own, port)).unwrap());
        let (mut data, _) = listener.accept().unwrap();
        drop(listener);
        data.write_all(b"file").unwrap();
        drop(data);
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    // Some of the six listeners may have been seen open, but not all.
    let scanner = IpAddr::from(lab.v4("scanner"));
    eventually("a scan of neighbouring ports is banned", || {
        lab.probe("scanner", scanner, lab.victim_v4("scanner").into(), &[911, 912, 913]);
        lab.banned() == [scanner]
    });
    daemon.stop();
}

/// The backend is slow or gone: no answer has come when the last SYN arrives.
#[test]
fn clients_of_slow_published_ports_are_innocent() {
    let lab = Lab::new(&["culprit", "client", "backend"]);
    let (backend, ports) = (lab.v4("backend"), [143, 465, 587, 993]);
    let _services = lab.inside("backend", || ports.map(|port| TcpListener::bind((backend, port)).unwrap()));
    lab.publish("fib daddr type local tcp dport { 143, 465, 587, 993 }", backend);
    // To an unused address of the link: no SYN/ACK ever comes.
    lab.nft("add rule ip nat prerouting fib daddr type local tcp dport { 5432, 6379, 9200 } dnat to 10.77.3.99");
    let daemon = Tcp.start(&lab, "");
    let client = lab.v4("client").into();
    lab.probe("client", client, lab.victim_v4("client").into(), &[5432, 6379, 9200]);
    lab.probe("client", client, lab.victim_v4("client").into(), &ports);
    assert_eq!(lab.provoke_ban("culprit"), IpAddr::from(lab.v4("culprit")));
    let lines = daemon.lines_with(&client.to_string());
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("culprit"))], "{lines:#?}");
    daemon.stop();
}

/// A transparent proxy for the LAN of a gateway: every port is redirected to it, but only for clients on that
/// interface.
#[test]
fn redirected_lan_client_opens_few_ports() {
    let lab = Lab::new(&["scanner", "client"]);
    let rules = "add table ip nat; add chain ip nat pre { type nat hook prerouting priority dstnat; }; \
                 add rule ip nat pre iif client tcp dport 1-1023 redirect to :9040";
    lab.nft(rules);
    let proxy = lab.inside("victim", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9_040)).unwrap());
    let daemon = Tcp.start(&lab, "");
    let own = lab.victim_v4("scanner");
    // Uses the victim's address on the other link; the redirection changes it to the one on this link.
    for _ in 0..2 {
        // Fewer than the backlog of a listener.
        let _streams: Vec<TcpStream> =
            lab.inside("client", || (201..=310).map(|port| TcpStream::connect((own, port)).unwrap()).collect());
        (201..=310).for_each(|_| drop(proxy.accept().unwrap()));
        std::thread::sleep(Duration::from_secs(2));
    }
    let trapped = lab.ports("trapped");
    let lost = (201..=310).filter(|port| !trapped.contains(port)).count();
    assert!(lost <= 64, "{lost} ports count as published for all sources");
    let scanner = IpAddr::from(lab.v4("scanner"));
    let closed: Vec<u16> = (201..=310).filter(|port| trapped.contains(port)).take(3).collect();
    lab.probe("scanner", scanner, own.into(), &closed);
    lab.expect_ban(scanner);
    assert_eq!(lab.banned(), [scanner], "the client is served by the proxy");
    daemon.stop();
}

/// The connections are older than the program, so it has not seen their SYN/ACKs.
#[test]
fn connections_to_published_ports_survive_restart() {
    let lab = Lab::new(&["culprit", "client", "backend"]);
    let ports = [5432, 6379, 9200];
    lab.publish("fib daddr type local tcp dport { 5432, 6379, 9200 }", lab.v4("backend"));
    let own = lab.victim_v4("client");
    let mut pairs = ports.map(|port| {
        let listener = lab.inside("backend", || TcpListener::bind((lab.v4("backend"), port)).unwrap());
        let client = lab.inside("client", || TcpStream::connect((own, port)).unwrap());
        let (server, _) = listener.accept().unwrap();
        (client, server)
    });
    let mut exchange = || {
        for (client, server) in &mut pairs {
            for stream in [&*client, &*server] {
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            }
            client.write_all(b"question").unwrap();
            server.read_exact(&mut [0; 8]).unwrap();
            server.write_all(b"answer").unwrap();
            client.read_exact(&mut [0; 6]).unwrap();
        }
    };
    exchange();
    let daemon = Tcp.start(&lab, "");
    exchange();
    assert_eq!(lab.provoke_ban("culprit"), IpAddr::from(lab.v4("culprit")));
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("culprit"))]);
    exchange();
    daemon.stop();
}

/// TFTP answers from another port than the queried one; a resolver's answer may come after the socket has closed.
#[test]
fn answers_to_own_queries_are_innocent() {
    let lab = Lab::new(&["server", "scanner"]);
    let daemon = Udp.start(&lab, "");
    let (server, own) = (lab.v4("server"), lab.victim_v4("server"));
    let tftp = lab.inside("server", || UdpSocket::bind((server, 69)).unwrap());
    tftp.set_read_timeout(Some(TIMEOUT)).unwrap();
    for port in 901..=905 {
        let client = lab.inside("victim", || {
            let client = UdpSocket::bind((own, port)).unwrap();
            client.send_to(b"read request", (server, 69)).unwrap();
            client
        });
        let (_, from) = tftp.recv_from(&mut [0; 64]).unwrap();
        let data = lab.inside("server", || UdpSocket::bind((server, 0)).unwrap());
        data.send_to(b"data", from).unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.recv_from(&mut [0; 64]).unwrap();
        drop(client);
        tftp.send_to(b"late", from).unwrap();
    }
    let scanner = lab.v4("scanner").into();
    Protocol::probe(Udp, &lab, "scanner", scanner, lab.victim_v4("scanner").into(), &[911, 912, 913]);
    lab.expect_banned(&[scanner]);
    daemon.stop();
}

/// If many ports count as in use for any reason, the operator is warned that scans of them go undetected.
#[test]
fn lost_ports_raise_alarm() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "[tcp]\nadvanced_ports = \"901-920\"\n");
    eventually("all ports are watched", || Tcp.watched(&lab).len() == 20);
    let lost = || lab.ask(&["status"])["trap"]["lost_ports"].as_u64().unwrap();
    assert_eq!(lost(), 0);
    let _few = Services::open(&lab, &[901, 902, 903, 904, 905]);
    eventually("the services are known", || Tcp.watched(&lab).len() == 15);
    assert_eq!(lost(), 0, "a quarter does not raise the alarm");
    let _many = Services::open(&lab, &[906]);
    daemon.expect_line("the kernel's trap has lost more than a quarter of the monitored ports: 14 of 20 are left");
    eventually("the status reports it", || lost() == 6);
    assert!(lab.succeed(&["status"]).contains("ALARM: ports that now count as in use and are not monitored: 6"));
    daemon.stop();
}
