//! Tests sources that must never be banned. Each test ends with a ban of another source: packets are judged in order,
//! so all earlier ones have been judged by then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use rustix::net::{AddressFamily, SocketType};

use netns_lab::Lab;
use netns_lab::daemon::{Daemon, binary};
use netns_lab::raw::{self, SYN};
use netns_lab::services::{EIGHT, Services};

/// Closed ports for which any unprotected source would be banned.
const CLOSED: [u16; 6] = [23, 79, 111, 512, 513, 514];

#[test]
fn service_clients_are_not_banned() {
    let lab = Lab::new(&["attacker", "fourth"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert_eq!(lab.served("fourth", lab.victim_v4("fourth").into(), &EIGHT, 1000), 8000);
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker]);
    let fourth = lab.v4("fourth").to_string();
    assert!(daemon.lines_with(&fourth).is_empty(), "clients of a service are not logged");
}

#[test]
fn own_gateway_is_exempt_with_reason() {
    let lab = Lab::new(&["gateway", "attacker"]);
    let gateway = lab.v4("gateway");
    lab.victim_ip(&format!("route add default via {gateway}"));
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert_protected(&lab, &daemon, "gateway", gateway.into(), "gateway");
}

#[test]
fn ipv6_gateway_is_exempt_despite_neighbour() {
    let lab = Lab::new(&["gateway", "attacker", "other"]);
    let _services = Services::open(&lab, &EIGHT);
    let (gateway, victim) = (lab.v6("gateway"), lab.victim_v6("gateway").into());
    lab.victim_ip(&format!("route add default via {gateway}"));
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert_protected(&lab, &daemon, "gateway", gateway.into(), "gateway");

    let neighbour = lab.add_neighbour("gateway");
    lab.probe("gateway", neighbour.into(), victim, &CLOSED);
    lab.provoke_ban("other");
    let text = lab.set_text("allowed6");
    assert!(text.contains(&gateway.to_string()), "the kernel accepts the gateway despite any ban: {text}");
    // The neighbour's address is removed, so that the gateway connects with its own.
    lab.run("gateway", "ip", &["addr", "del", &format!("{neighbour}/64"), "dev", "uplink"]);
    assert_eq!(lab.served("gateway", victim, &EIGHT, 1), 8);
}

#[test]
fn later_gateway_is_protected() {
    let lab = Lab::new(&["gateway", "attacker"]);
    let gateway = lab.v4("gateway");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.victim_ip(&format!("route add default via {gateway}"));
    // The kernel's allow-list follows the routes: when it contains the gateway, the daemon knows it.
    let known = || lab.set_text("allowed").contains(&gateway.to_string()).then_some(());
    netns_lab::within(netns_lab::TIMEOUT, known).expect("the new gateway enters the kernel's `allowed`");
    assert_protected(&lab, &daemon, "gateway", gateway.into(), "gateway");
}

#[test]
fn own_resolver_is_exempt_with_reason() {
    let lab = Lab::new(&["resolver", "attacker"]);
    let resolver = lab.v4("resolver").into();
    lab.set_resolver(resolver);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert_protected(&lab, &daemon, "resolver", resolver, "resolver");
}

#[test]
fn allowed_networks_are_never_blocked() {
    let lab = Lab::new(&["friend", "attacker", "other"]);
    let configuration = "[allow]\nnetworks = [\"10.77.1.0/24\", \"fd77:0:0:1::/64\"]\n";
    let daemon = Daemon::start_configured(&lab, configuration, &["--expire", "24h"]);
    assert_protected(&lab, &daemon, "friend", lab.v4("friend").into(), "allow");
    let banned = lab.banned();
    lab.probe("friend", lab.v6("friend").into(), lab.victim_v6("friend").into(), &CLOSED);
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [&banned[..], &[other]].concat());
}

#[test]
fn log_only_reports_and_blocks_nothing() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start(&lab, &["--log-only"]);
    let attacker = lab.v4("attacker");
    // In the order of their numbers, because two related ports and another one would count as four.
    let scan = lab.nmap("attacker", lab.victim_v4("attacker").into(), &["-sS", "-r", "-p1-1024"]);
    assert_eq!(scan.open, EIGHT.into(), "{scan:?}");
    daemon.expect_line(&format!("attackalert: TCP SYN/Normal scan from host: {attacker}/{attacker} to TCP port: "));
    assert_eq!(lab.banned(), [] as [IpAddr; 0]);
    let would = lab.expect_would_block(attacker.into());
    assert_eq!((&would["class"], &would["times"]), (&"syn".into(), &1.into()), "{would}");
    assert_eq!(would["reason"], "3 distinct closed ports were probed");
    crate::schema::Schema::of("would-block").check(&lab.ask(&["list", "--would-block"]));
    assert!(lab.succeed(&["status"]).contains("`portsentry list --would-block`"), "the status names the command");
    let log = daemon.stop();
    assert!(!log.contains("has been blocked"), "{log}");
    // Without the daemon the ledger and the report still contain it.
    let (binary, state) = (binary(), lab.path("state"));
    let read = |words: &[&str]| {
        let state = ["--state-dir", state.to_str().expect("temporary paths are text")];
        lab.run("victim", binary.to_str().expect("paths are text"), &[words, &state].concat())
    };
    let table = read(&["list", "--would-block"]);
    assert!(table.contains(&format!("{attacker} ")) && table.contains("3 distinct "), "{table}");
    let page = read(&["report"]);
    assert!(page.contains("Would have been blocked") && page.contains(&attacker.to_string()), "{page}");
    assert!(read(&["report", "--json"]).contains("\"would_block\":{\"most\":[{"), "the JSON report contains it too");
}

#[test]
fn clients_of_later_service_are_not_banned() {
    let lab = Lab::new(&["third", "attacker"]);
    // With a trigger of zero a single port that is wrongly taken for closed would cause a ban.
    let _daemon = Daemon::start(&lab, &["--expire", "24h", "--scan-trigger", "0"]);
    for port in [808, 809, 810, 811, 812] {
        let _service = Services::open(&lab, &[port]);
        assert_eq!(lab.served("third", lab.victim_v4("third").into(), &[port], 1), 1);
        assert_eq!(lab.served("third", lab.victim_v6("third").into(), &[port], 1), 1);
    }
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker]);
}

#[test]
fn retries_during_service_restart_are_innocent() {
    let lab = Lab::new(&["third", "attacker"]);
    let services = Services::open(&lab, &[808, 809, 810]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h", "--scan-trigger", "0"]);
    let (third, victim) = lab.ends_v4("third");
    assert_eq!(lab.served("third", victim, &[808, 809, 810], 1), 3);
    drop(services);
    lab.probe("third", third, victim, &[808, 809, 810]);
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker], "a port that was open a moment ago is not closed");
}

#[test]
fn only_requested_interface_is_monitored() {
    let lab = Lab::new(&["attacker", "third"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h", "--interface", "attacker"]);
    lab.probe_v4("third", &CLOSED);
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker]);
}

#[test]
fn udp_scan_is_not_banned_by_default() {
    let lab = Lab::new(&["attacker", "culprit"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.v4("attacker");
    let quick = ["-sU", "-p1-60", "--max-retries", "0", "--max-rtt-timeout", "100ms"];
    lab.nmap("attacker", lab.victim_v4("attacker").into(), &quick);
    daemon.expect_line(&format!("attackalert: UDP scan from host: {attacker}/{attacker} to UDP port: "));
    let culprit = lab.provoke_ban("culprit");
    assert_eq!(lab.banned(), [culprit], "the source address of a UDP packet can be forged");
}

#[test]
fn clients_of_new_bound_listener_are_innocent() {
    let lab = Lab::new(&["third", "attacker"]);
    lab.victim_ip("addr add fe80::1/64 dev third nodad");
    let index = lab.run("victim", "cat", &["/sys/class/net/third/ifindex"]).trim().parse().unwrap();
    let strict = ["--expire", "24h", "--scan-trigger", "0"];
    let daemon = Daemon::start_configured(&lab, "[udp]\nblock = true\n", &strict);
    let link: Ipv6Addr = "fe80::1".parse().unwrap();
    // No host has the clients' addresses, so that the victim's answers never show that the port is open.
    let (client, neighbour): (IpAddr, IpAddr) = ("10.77.1.66".parse().unwrap(), "fe80::66".parse().unwrap());
    let target = lab.victim_v4("third").into();
    let mut wire = lab.wire("third");
    // They stay open, because on a busy machine the packets are judged later.
    let mut listeners = Vec::new();
    for port in 808..816 {
        let open = || {
            let on_device = |socket: &OwnedFd| setsockopt(socket, BindToDevice, &"third".into()).expect("a device");
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let tcp = socket(any, SocketType::STREAM, on_device);
            let udp = socket(any, SocketType::DGRAM, on_device);
            let local = socket(SocketAddrV6::new(link, port, 0, index).into(), SocketType::STREAM, |_| ());
            for listener in [&tcp, &local] {
                rustix::net::listen(listener, 8).expect("it listens");
            }
            [tcp, udp, local]
        };
        listeners.push(lab.inside("victim", open));
        wire.send(&raw::tcp(client, target, port, SYN));
        wire.send(&raw::udp(client, target, (40_404, port)));
        wire.send(&raw::tcp(neighbour, link.into(), port, SYN));
        // By the time of the next ones the list of listeners may have been read again.
        std::thread::sleep(Duration::from_millis(150) * netns_lab::slowness());
    }
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker], "{:?}", daemon.lines_with("blocked"));
}

fn socket(address: SocketAddr, kind: SocketType, prepare: impl FnOnce(&OwnedFd)) -> OwnedFd {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, kind, None).expect("a socket");
    prepare(&socket);
    rustix::net::bind(&socket, &address).expect("the port is free");
    socket
}

/// Asserts that `host`, at `address`, is not banned although it probes many closed ports. The log must name it with
/// `reason`, but in no line for which a filter like fail2ban's would ban it.
fn assert_protected(lab: &Lab, daemon: &Daemon, host: &str, address: IpAddr, reason: &str) {
    let target = if address.is_ipv4() { lab.victim_v4(host).into() } else { lab.victim_v6(host).into() };
    lab.probe(host, address, target, &CLOSED);
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker]);
    let named = netns_lab::within(netns_lab::TIMEOUT, || {
        let lines = daemon.lines_with(&address.to_string());
        lines.iter().any(|line| line.to_lowercase().contains(reason)).then_some(())
    });
    let lines = daemon.lines_with(&address.to_string());
    assert!(named.is_some(), "no line says {address} and {reason}: {lines:?}");
    assert!(!lines.iter().any(|line| line.contains("attackalert") || line.contains("Blocked")), "{lines:?}");
}

#[test]
fn tunnel_peer_is_never_blocked() {
    let lab = Lab::new(&["gateway", "attacker"]);
    let peer = lab.v4("gateway");
    lab.victim_ip(&format!("link add vpn type vxlan id 7 remote {peer} dstport 4789 dev gateway"));
    lab.victim_ip("addr add 10.200.0.1/24 dev vpn");
    lab.victim_ip("link set vpn up");
    lab.victim_ip("route add default via 10.200.0.2 dev vpn");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert_protected(&lab, &daemon, "gateway", peer.into(), "the far end of a tunnel");
    daemon.stop();
}

/// A policy that is added at run time, as by an IKE daemon.
#[test]
fn ipsec_peer_is_never_blocked() {
    let lab = Lab::new(&["gateway", "attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (peer, own) = (lab.v4("gateway"), lab.victim_v4("gateway"));
    // The lab's own traffic bypasses the tunnel.
    lab.victim_ip("xfrm policy add src 0.0.0.0/0 dst 10.77.0.0/16 dir out priority 1");
    let tunnel = format!("tmpl src {own} dst {peer} proto esp reqid 7 mode tunnel");
    let policy = format!("xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 9 {tunnel}");
    lab.victim_ip(&policy);
    netns_lab::eventually("the peer is on the kernel's allow-list", || {
        lab.set_text("allowed").contains(&peer.to_string())
    });
    assert_protected(&lab, &daemon, "gateway", peer.into(), "the far end of a tunnel");
    lab.victim_ip("xfrm policy delete src 0.0.0.0/0 dst 0.0.0.0/0 dir out");
    netns_lab::eventually("the peer is no longer on the allow-list", || {
        !lab.set_text("allowed").contains(&peer.to_string())
    });
    lab.probe_until_banned("gateway", own.into());
    daemon.stop();
}

#[test]
fn nat64_scanner_is_banned_by_address() {
    let lab = Lab::new(&["attacker", "other"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start_configured(&lab, "expire = \"24h\"\nnat64 = [\"2001:db8:64::/96\"]\n", &[]);
    let victim: IpAddr = lab.victim_v6("attacker").into();
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    for (prefix, scanner, innocent) in [
        ("64:ff9b::/96", "64:ff9b::cb00:7109", "64:ff9b::c633:6403"),
        ("2001:db8:64::/96", "2001:db8:64::cb00:7109", "2001:db8:64::c633:6403"),
    ] {
        // The attacker's link leads to the NAT64 translator.
        let hardware = lab.hardware_address("attacker", "uplink").map(|byte| format!("{byte:02x}")).join(":");
        lab.victim_ip(&format!("route add {prefix} dev attacker"));
        lab.victim_ip(&format!("neigh replace {innocent} lladdr {hardware} dev attacker nud permanent"));
        lab.run("attacker", "ip", &["addr", "add", &format!("{innocent}/128"), "dev", "uplink", "nodad"]);
        let mut wire = lab.wire("attacker");
        CLOSED.iter().for_each(|port| wire.send(&raw::tcp(address(scanner), victim, *port, SYN)));
        let banned = lab.expect_ban(address(scanner));
        assert_eq!(banned.address, address(scanner), "the ban is for one IPv4 host, not for the /64 of all of them");
        daemon.expect_line(&format!("Host {scanner} has been blocked"));
        assert!(!lab.set_text("blocked6").contains(&innocent.to_string()));
        let connects = lab.inside("attacker", || {
            let flags = rustix::net::SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None).unwrap();
            rustix::net::bind(&socket, &SocketAddr::new(address(innocent), 0)).unwrap();
            rustix::net::connect(&socket, &SocketAddr::new(victim, EIGHT[0])).is_ok()
        });
        assert!(connects, "{innocent} is another host");
    }
    daemon.stop();
}

#[test]
fn unspecified_source_is_never_banned() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let victim: IpAddr = lab.victim_v6("attacker").into();
    let mut wire = lab.wire("attacker");
    lab.victim_ip("route add 64:ff9b::/96 dev attacker");
    for source in ["::", "::2", "::ffff", "fe80::", "64:ff9b::"] {
        let source: IpAddr = source.parse().unwrap();
        CLOSED.iter().for_each(|port| wire.send(&raw::tcp(source, victim, *port, SYN)));
    }
    lab.provoke_ban("other");
    for set in ["blocked6", "caught6"] {
        let text = lab.set_text(set);
        assert!(!text.contains("::"), "neither a shared /64 nor the unspecified address is banned: {text}");
    }
    let refused = lab.operate(&["block", "::/64"]);
    assert!(refused.err.contains("unspecified"), "{refused:?}");
    daemon.stop();
}

#[test]
fn two_ports_at_many_addresses_are_scan() {
    let lab = Lab::new(&["attacker", "crawler"]);
    let own: Vec<Ipv4Addr> = (0..24).map(|n| Ipv4Addr::new(10, 99, 0, 1 + n)).collect();
    own.iter().for_each(|address| lab.victim_ip(&format!("addr add {address}/32 dev lo")));
    for host in ["attacker", "crawler"] {
        lab.run(host, "ip", &["route", "add", "10.99.0.0/24", "via", &lab.victim_v4(host).to_string()]);
    }
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let crawler = lab.v4("crawler").into();
    own.iter().take(3).for_each(|address| lab.probe("crawler", crawler, (*address).into(), &[443]));
    let attacker = lab.v4("attacker").into();
    own.iter().for_each(|address| lab.probe("attacker", attacker, (*address).into(), &[23, 79]));
    lab.expect_ban(attacker);
    assert_eq!(lab.banned(), [attacker], "one port at three addresses is no scan");
    daemon.stop();
}
