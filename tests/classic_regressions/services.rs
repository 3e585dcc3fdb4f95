//! Tests real services within the monitored ports: they can always start, and their clients are not banned.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, SYN};
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, enter};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use rustix::net::{AddressFamily, SocketType};

const PER_SECOND: u32 = 20_000;
const SECONDS: u32 = 2;

#[test]
fn service_starts_at_heavily_probed_port() {
    let lab = Lab::new(&["attacker", "third"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    // The kernel counts the SYN/ACKs that anything sends from a closed port.
    lab.nft(
        "table inet count { chain leaving { type filter hook output priority 0; \
           tcp sport 809 tcp flags & (syn | ack) == syn | ack counter; }; }",
    );
    let (source, target) = lab.ends_v4("attacker");
    let mut wire = lab.wire("attacker");
    let victim = lab.namespace("victim");
    let (done, starts) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            enter(victim.name());
            while !done.load(Ordering::Relaxed) {
                // A child process of another test may hold the previous listener for a moment.
                let limit = Instant::now() + TIMEOUT;
                let service = loop {
                    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, 808)) {
                        Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < limit => {}
                        bound => break bound,
                    }
                };
                drop(service.expect("the program never occupies the port"));
                starts.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // Two ports are forgiven, so no source is banned and every probe arrives.
        let packets = [808, 809].into_iter().cycle().map(|port| raw::tcp(source, target, port, SYN));
        wire.pace(PER_SECOND, packets.take((PER_SECOND * SECONDS) as usize));
        done.store(true, Ordering::Relaxed);
    });
    assert!(starts.load(Ordering::Relaxed) > 100, "{starts:?} starts");
    let counted = lab.nft("list table inet count");
    assert!(counted.contains("counter packets 0 "), "{counted}");
    assert_eq!(lab.provoke_ban("third"), IpAddr::from(lab.v4("third")));
    assert_eq!(lab.banned().len(), 1);
}

#[test]
fn first_clients_under_probing_are_not_banned() {
    let lab = Lab::new(&["attacker", "client", "culprit"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (source, target) = lab.ends_v4("attacker");
    let mut wire = lab.wire("attacker");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let packets = [700, 701].into_iter().cycle().map(|port| raw::tcp(source, target, port, SYN));
            wire.pace(PER_SECOND, packets.take((PER_SECOND * SECONDS) as usize));
        });
        // More services than forgiven ports, started one after another. Each is used as soon as it listens.
        for port in 700..708 {
            let _service = Services::open(&lab, &[port]);
            assert_eq!(lab.served("client", lab.victim_v4("client").into(), &[port], 3), 3);
        }
    });
    let culprit = lab.provoke_ban("culprit");
    assert_eq!(lab.banned(), [culprit]);
    assert!(daemon.lines_with(&lab.v4("client").to_string()).is_empty());
}

#[test]
fn service_connections_log_nothing() {
    let lab = Lab::new(&["client", "culprit"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start(&lab, &["--expire", "24h", "--scan-trigger", "0"]);
    for target in [IpAddr::from(lab.victim_v4("client")), lab.victim_v6("client").into()] {
        assert_eq!(lab.served("client", target, &EIGHT, 20), 160);
    }
    lab.provoke_ban("culprit");
    for client in [IpAddr::from(lab.v4("client")), lab.v6("client").into()] {
        let lines = daemon.lines_with(&client.to_string());
        assert!(lines.is_empty(), "{lines:?}");
    }
}

/// Opens `ports` of the victim on one interface alone (SO_BINDTODEVICE).
fn bound_listeners(lab: &Lab, interface: &str, ports: &[u16]) -> Vec<OwnedFd> {
    let open = |port: &u16| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        setsockopt(&socket, BindToDevice, &interface.into()).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port))).unwrap();
        rustix::net::listen(&socket, 64).unwrap();
        socket
    };
    lab.inside("victim", || ports.iter().map(open).collect())
}

#[test]
fn bound_listener_opens_port_on_its_interface() {
    const PORTS: [u16; 4] = [901, 902, 903, 904];
    let lab = Lab::new(&["inner", "outer"]);
    let _listeners = bound_listeners(&lab, "inner", &PORTS);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let probe = |host: &str| lab.probe_v4(host, &PORTS);
    for _ in 0..3 {
        probe("inner");
    }
    probe("outer");
    lab.expect_ban(lab.v4("outer").into());
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("outer"))], "clients on the listener's interface are served");
    daemon.stop();
}

/// A packet to a bridge arrives at one of its ports, where the capture sees it too.
#[test]
fn listener_bound_to_bridge_serves_its_ports() {
    const PORTS: [u16; 4] = [901, 902, 903, 904];
    let lab = Lab::new(&["guest", "other"]);
    for line in ["link add br0 type bridge", "addr flush dev guest", "link set guest master br0", "link set br0 up"] {
        lab.victim_ip(line);
    }
    lab.victim_ip("addr add 10.77.1.1/24 dev br0");
    let _listeners = bound_listeners(&lab, "br0", &PORTS);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for _ in 0..3 {
        lab.probe_v4("guest", &PORTS);
    }
    let provoked = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [provoked]);
    daemon.stop();
}
