//! Tests legitimate traffic that resembles a scan. Each test ends with the ban of another source, whose packets come
//! last.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, ACK, RST, SYN};
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, enter};

const STRICT: [&str; 4] = ["--expire", "24h", "--scan-trigger", "0"];
const UDP_BLOCKS: &str = "[udp]\nblock = true\n";

fn assert_only_culprit_is_banned(lab: &Lab) {
    let culprit = lab.provoke_ban("culprit");
    assert_eq!(lab.banned(), [culprit]);
}

#[test]
fn active_ftp_server_is_not_banned() {
    let lab = Lab::new(&["server", "culprit"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (server, victim) = (lab.v4("server"), lab.victim_v4("server"));
    for port in 700..710 {
        // In active FTP the client listens for data, and the server connects to it.
        let listener = lab.inside("victim", || TcpListener::bind((victim, port)).unwrap());
        lab.inside("server", || {
            let flags = SocketFlags::CLOEXEC;
            let data = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            sockopt::set_socket_reuseaddr(&data, true).unwrap();
            rustix::net::bind(&data, &SocketAddr::from((server, 20))).unwrap();
            rustix::net::connect(&data, &SocketAddr::from((victim, port))).unwrap();
            TcpStream::from(data).write_all(b"data").unwrap();
        });
        let (mut data, _) = listener.accept().unwrap();
        let mut received = String::new();
        data.read_to_string(&mut received).unwrap();
        assert_eq!(received, "data");
    }
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn passive_ftp_client_is_not_banned() {
    let lab = Lab::new(&["client", "culprit"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for port in 710..720 {
        let _data = Services::open(&lab, &[port]);
        assert_eq!(lab.served("client", lab.victim_v4("client").into(), &[port], 1), 1);
    }
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn clients_of_dnat_ports_are_not_banned() {
    let lab = Lab::new(&["client", "container", "culprit"]);
    let ports = [8000, 8080, 8081, 8088];
    let container = lab.v4("container");
    lab.publish("tcp dport { 8000, 8080, 8081, 8088 }", format_args!("{container}:80"));
    let _service = serve_at(&lab, "container", 80);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for round in 0..2 {
        for port in ports {
            let service = SocketAddr::from((lab.victim_v4("client"), port));
            let answered = lab.inside("client", || echo(service));
            assert_eq!(answered, b"hello", "port {port}, round {round}");
        }
    }
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn web_and_ident_client_is_not_banned() {
    let lab = Lab::new(&["client", "culprit"]);
    let _services = Services::open(&lab, &[80]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (client, victim) = lab.ends_v4("client");
    for _ in 0..5 {
        assert!(lab.is_served("client", victim, 80, TIMEOUT));
        lab.probe("client", client, victim, &[443, 8443, 113]);
    }
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn late_answer_to_closed_socket_is_ignored() {
    let lab = Lab::new(&["server", "culprit"]);
    let _daemon = Daemon::start_configured(&lab, UDP_BLOCKS, &STRICT);
    let (server, victim) = lab.ends_v4("server");
    lab.inside("victim", || {
        for port in 720..730 {
            let socket = UdpSocket::bind((lab.victim_v4("server"), port)).unwrap();
            socket.send_to(b"question", (lab.v4("server"), 53)).unwrap();
        }
    });
    let mut wire = lab.wire("server");
    for port in 720..730 {
        wire.send(&raw::udp(server, victim, (53, port)));
    }
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn answers_in_wide_port_range_are_ignored() {
    let lab = Lab::new(&["server", "culprit"]);
    let range = "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start && \
                 echo 600 1000 >/proc/sys/net/ipv4/ip_local_port_range";
    lab.run("victim", "sh", &["-c", range]);
    let _service = serve_at(&lab, "server", 80);
    let _daemon = Daemon::start(&lab, &STRICT);
    let server = SocketAddr::from((lab.v4("server"), 80));
    let mut used = std::collections::BTreeSet::new();
    lab.inside("victim", || {
        for _ in 0..100 {
            let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).unwrap();
            used.insert(stream.local_addr().unwrap().port());
            stream.write_all(b"hello").unwrap();
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).unwrap();
        }
    });
    assert!(used.iter().all(|port| (600..=1000).contains(port)), "{used:?}");
    // Segments after the connection is forgotten: a repeated FIN/ACK, a late ACK, a reset.
    let (from, to) = lab.ends_v4("server");
    let mut wire = lab.wire("server");
    for port in used {
        for flags in [ACK, ACK | raw::FIN, ACK | RST, RST] {
            wire.send(&raw::packet(from, to, raw::TCP, &raw::segment(from, to, (80, port), flags)));
        }
    }
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn broadcast_and_multicast_cause_no_ban() {
    let lab = Lab::new(&["neighbour", "culprit"]);
    let daemon = Daemon::start_configured(&lab, "[udp]\nblock = true\nadvanced_exclude = \"\"\n", &STRICT);
    let source = lab.v4("neighbour").into();
    let mut wire = lab.wire("neighbour");
    for (group, port) in [([224, 0, 0, 251], 5353), ([239, 255, 255, 250], 1900), ([224, 0, 0, 9], 520)] {
        let group = Ipv4Addr::from(group);
        wire.multicast(group, &raw::udp(source, group.into(), (port, port)));
    }
    for (target, port) in [([255, 255, 255, 255], 67), ([10, 77, 1, 255], 137), ([10, 77, 1, 255], 138)] {
        wire.broadcast(&raw::udp(source, IpAddr::from(target), (port, port)));
        // Some hosts send a broadcast as a unicast frame to each host.
        wire.send(&raw::udp(source, IpAddr::from(target), (port, port)));
    }
    let source = lab.v6("neighbour").into();
    wire.send(&raw::udp(source, "ff02::fb".parse().unwrap(), (5353, 5353)));
    assert_only_culprit_is_banned(&lab);
    for neighbour in [IpAddr::from(lab.v4("neighbour")), source] {
        let lines = daemon.lines_with(&neighbour.to_string());
        assert!(lines.is_empty(), "{lines:?}");
    }
}

#[test]
fn traceroute_is_not_a_scan() {
    let lab = Lab::new(&["tracer", "culprit"]);
    let _daemon = Daemon::start_configured(&lab, UDP_BLOCKS, &STRICT);
    lab.inside("tracer", || {
        let socket = UdpSocket::bind((lab.v4("tracer"), 0)).unwrap();
        for (ttl, port) in (1..=30).zip(33_434_u16..) {
            socket.set_ttl(ttl).unwrap();
            // The kernel reports the refusals of earlier probes here.
            let _ = socket.send_to(b"traceroute", (lab.victim_v4("tracer"), port));
        }
    });
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn backscatter_is_not_a_scan() {
    let lab = Lab::new(&["victim2", "culprit"]);
    let _daemon = Daemon::start(&lab, &STRICT);
    for (source, target) in [
        (IpAddr::from(lab.v4("victim2")), IpAddr::from(lab.victim_v4("victim2"))),
        (lab.v6("victim2").into(), lab.victim_v6("victim2").into()),
    ] {
        let answers = (1..=100).flat_map(|port| [SYN | ACK, RST, RST | ACK].map(|flags| (port, flags)));
        lab.wire("victim2").pace(5_000, answers.map(|(port, flags)| raw::tcp(source, target, port, flags)));
    }
    assert_only_culprit_is_banned(&lab);
}

#[test]
fn clients_during_service_restart_are_not_banned() {
    let lab = Lab::new(&["client", "culprit"]);
    let ports = [800, 801, 802];
    let services = Services::open(&lab, &ports);
    let _daemon = Daemon::start(&lab, &STRICT);
    let (client, victim) = lab.ends_v4("client");
    assert_eq!(lab.served("client", victim, &ports, 1), 3);
    drop(services);
    for _ in 0..20 {
        lab.probe("client", client, victim, &ports);
        std::thread::sleep(Duration::from_millis(100));
    }
    let _services = Services::open(&lab, &ports);
    assert_eq!(lab.served("client", victim, &ports, 1), 3);
    let _others = Services::open(&lab, &EIGHT);
    assert_only_culprit_is_banned(&lab);
}

/// An echo service on any host.
fn serve_at(lab: &Lab, host: &str, port: u16) -> std::thread::JoinHandle<()> {
    let namespace = lab.namespace(host).name().to_owned();
    let listener = lab.inside(host, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    // The thread is not joined: it ends with the test process, and its listener keeps the namespace open until then.
    std::thread::spawn(move || {
        enter(&namespace);
        for mut stream in listener.incoming().flatten() {
            let mut message = [0; 5];
            if stream.read_exact(&mut message).is_ok() {
                let _ = stream.write_all(&message);
            }
        }
    })
}

fn echo(service: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect_timeout(&service, TIMEOUT).expect("the service answers");
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}
