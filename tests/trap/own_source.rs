//! Tests the guard against incoming frames with a source address of this host, and legitimate traffic that looks alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket};
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::scan::fetch;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually, raw, slowness, soon, within};

use crate::Protocol::Tcp;

const PORT: u16 = 7_777;
const REPORT: &str = "as their source arrive on";

/// Frames that the chain has dropped.
fn dropped(lab: &Lab) -> u64 {
    lab.packets("own_source")
}

/// True if the set contains this interface.
fn is_guarded(lab: &Lab, interface: &str) -> bool {
    lab.set_text("guarded_interfaces").contains(&format!("\"{interface}\""))
}

fn guards_any(lab: &Lab) -> bool {
    lab.set_text("guarded_interfaces").contains("elements")
}

fn wait_until_guarded(lab: &Lab, interface: &str) {
    eventually("the interface is guarded", || is_guarded(lab, interface));
}

/// A socket of the victim on all its addresses, with a short timeout.
fn receiver(lab: &Lab) -> UdpSocket {
    lab.inside("victim", || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200) * slowness())).unwrap();
        socket
    })
}

fn receives(socket: &UdpSocket) -> bool {
    socket.recv_from(&mut [0; 64]).is_ok()
}

fn receives_at_last(socket: &UdpSocket) -> bool {
    soon(|| receives(socket))
}

#[test]
fn own_source_frames_are_dropped_and_reported() {
    let lab = Lab::new(&["other"]);
    let receiver = receiver(&lab);
    let (own4, own6) = (IpAddr::from(lab.victim_v4("other")), IpAddr::from(lab.victim_v6("other")));
    let forged = raw::udp(own6, own6, (9, PORT));
    let mut wire = lab.wire("other");
    wire.send(&forged);
    assert!(receives_at_last(&receiver), "without the program IPv6 accepts such a frame");

    let daemon = Tcp.start(&lab, "");
    wait_until_guarded(&lab, "other");
    for _ in 0..5 {
        wire.send(&forged);
        wire.send(&raw::udp(own4, own4, (9, PORT)));
        wire.send(&raw::tcp(own6, own6, 23, raw::SYN));
    }
    assert!(!receives(&receiver));
    eventually("each frame is counted", || dropped(&lab) == 15);
    let line = daemon.expect_line(REPORT);
    assert!(
        line.contains("frames with fd77:0:0:1::1, an address of this host, as their source arrive on other")
            && line.contains("the kernel drops them"),
        "{line}"
    );
    wire.send(&raw::udp(lab.v6("other").into(), own6, (9, PORT)));
    assert!(receives_at_last(&receiver), "frames of a neighbour pass");

    // Frames that a sysctl tells the kernel to accept are not dropped.
    lab.sysctl("net.ipv4.conf.other.accept_local=1");
    eventually("the interface is not guarded", || !is_guarded(&lab, "other"));
    wire.send(&forged);
    assert!(receives_at_last(&receiver));
    let log = daemon.stop();
    assert_eq!(log.matches(REPORT).count(), 1, "{log}");
    assert!(!guards_any(&lab), "no interface is guarded after the program has stopped");
}

/// Without a reverse-path filter the kernel accepts packets from the broadcast address and answers them to the whole
/// link, so a neighbour could scan with that source.
#[test]
fn frames_from_broadcast_address_are_dropped() {
    let lab = Lab::new(&["other"]);
    for interface in ["all", "other"] {
        lab.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter=0"));
    }
    let receiver = receiver(&lab);
    let own = lab.victim_v4("other");
    let [first, second, third, _] = own.octets();
    let broadcast = Ipv4Addr::new(first, second, third, 255);
    let mut wire = lab.wire("other");
    let forged = raw::udp(broadcast.into(), own.into(), (9, PORT));
    wire.send(&forged);
    assert!(receives_at_last(&receiver), "without the program the kernel accepts such a packet");

    let daemon = Tcp.start(&lab, "");
    wait_until_guarded(&lab, "other");
    wire.send(&forged);
    (1..=4).for_each(|port| wire.send(&raw::tcp(broadcast.into(), own.into(), port, raw::SYN)));
    assert!(!receives(&receiver));
    wire.send(&raw::tcp(broadcast.into(), own.into(), 23, 0));
    eventually("each packet is counted", || dropped(&lab) == 6);
    // Of these, the NULL segment alone would suffice for a ban.
    wire.send(&raw::udp(lab.v4("other").into(), own.into(), (9, PORT)));
    assert!(receives_at_last(&receiver), "packets of a neighbour pass");
    let provoked = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [provoked], "the kernel has answered none of them");
    daemon.stop();
}

/// A trial blocks nothing, and the guard covers only the configured `interfaces`.
#[test]
fn guard_covers_monitored_interfaces_outside_trial() {
    let lab = Lab::new(&["other", "left"]);
    let daemon = Daemon::start_configured(&lab, "interfaces = [\"other\"]\n", &["--expire", "24h"]);
    wait_until_guarded(&lab, "other");
    assert!(!is_guarded(&lab, "left") && !is_guarded(&lab, "lo"));
    lab.succeed(&["trial", "1h"]);
    eventually("a trial drops nothing", || !guards_any(&lab));
    lab.succeed(&["trial", "--end"]);
    wait_until_guarded(&lab, "other");
    lab.nft("flush ruleset");
    wait_until_guarded(&lab, "other");
    lab.nft("flush set inet portsentry guarded_interfaces");
    wait_until_guarded(&lab, "other");
    daemon.stop();
}

#[test]
fn own_multicast_and_broadcast_pass_guard() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    wait_until_guarded(&lab, "other");
    lab.victim_ip("route add 239.0.0.0/8 dev other");
    let own = lab.victim_v4("other");
    let index: u32 = lab.run("victim", "cat", &["/sys/class/net/other/ifindex"]).trim().parse().unwrap();
    lab.inside("victim", || {
        let (group4, group6) = (Ipv4Addr::new(239, 1, 2, 3), "ff05::1:3".parse::<Ipv6Addr>().unwrap());
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
        v4.join_multicast_v4(&group4, &own).unwrap();
        v4.set_broadcast(true).unwrap();
        let v6 = UdpSocket::bind((lab.victim_v6("other"), 0)).unwrap();
        let listener6 = UdpSocket::bind((group6, PORT + 1)).unwrap();
        listener6.join_multicast_v6(&group6, index).unwrap();
        for socket in [&v4, &listener6] {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        v4.send_to(b"multicast", (group4, PORT)).unwrap();
        assert!(receives(&v4), "multicast of this host comes back");
        v4.send_to(b"broadcast", (Ipv4Addr::new(10, 77, 1, 255), PORT)).unwrap();
        assert!(receives(&v4), "broadcast of this host comes back");
        v6.send_to(b"multicast", SocketAddrV6::new(group6, PORT + 1, 0, index)).unwrap();
        assert!(receives(&listener6), "IPv6 multicast of this host comes back");
    });
    assert_eq!(dropped(&lab), 0);
    daemon.stop();
}

/// The same link-local address may belong to this host on one link and to a neighbour on another.
#[test]
fn same_link_local_address_elsewhere_is_served() {
    let lab = Lab::new(&["other", "second"]);
    let _services = Services::open(&lab, &[80]);
    lab.victim_ip("addr add fe80::1/64 dev second nodad");
    lab.victim_ip("addr add fe80::5/64 dev other nodad");
    lab.run("other", "ip", &["addr", "add", "fe80::1/64", "dev", "uplink", "nodad"]);
    let daemon = Tcp.start(&lab, "");
    wait_until_guarded(&lab, "other");
    let index = lab.run("other", "cat", &["/sys/class/net/uplink/ifindex"]).trim().parse().unwrap();
    let [source, target] = ["fe80::1", "fe80::5"].map(|text| text.parse::<Ipv6Addr>().unwrap());
    let served = lab.inside("other", || {
        let socket = UdpSocket::bind(SocketAddrV6::new(source, 0, 0, index)).unwrap();
        socket.send_to(b"x", SocketAddrV6::new(target, 9, 0, index)).unwrap();
        fetch(SocketAddr::V6(SocketAddrV6::new(target, 80, 0, index)), TIMEOUT)
    });
    assert!(served && dropped(&lab) == 0, "{}", dropped(&lab));
    daemon.stop();
}

/// Connections that leave the host and come back, translated on the way, with an address of the host.
#[test]
fn hairpin_connections_pass_guard() {
    let lab = Lab::new(&["router", "container"]);
    let _services = Services::open(&lab, &[80]);
    for line in [
        "link add br0 type bridge",
        "addr flush dev container",
        "link set container master br0",
        "addr add 10.77.2.1/24 dev br0",
        "link set br0 up",
        "link set container type bridge_slave hairpin on",
    ] {
        lab.victim_ip(line);
    }
    for host in ["victim", "router"] {
        lab.run(host, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    }
    let daemon = Tcp.start(&lab, "[tcp]\nadvanced_exclude = \"8080,113,139\"\n");
    wait_until_guarded(&lab, "br0");
    let (own, router, container) = (lab.victim_v4("router"), lab.v4("router"), lab.v4("container"));
    let translate = |from: Ipv4Addr, to: Ipv4Addr, back: &str| {
        format!(
            "add table ip nat; add chain ip nat pre {{ type nat hook prerouting priority dstnat; }}; \
             add chain ip nat post {{ type nat hook postrouting priority srcnat; }}; \
             add rule ip nat pre ip daddr {from} tcp dport 8080 dnat to {to}:80; \
             add rule ip nat post ip saddr {back} ip daddr {to} masquerade"
        )
    };
    // A container connects to its own published port, and this host connects to a port of its router, which forwards it
    // back.
    lab.nft(&translate(own, container, &container.to_string()));
    lab.run("router", "nft", &[&translate(router, own, &own.to_string())]);
    let listener = lab.inside("container", || TcpListener::bind((container, 80)).unwrap());
    let published = lab.inside("container", || std::net::TcpStream::connect_timeout(&(own, 8_080).into(), TIMEOUT));
    assert!(published.is_ok(), "{published:?}");
    drop(listener);
    assert!(lab.is_served("victim", router.into(), 8_080, TIMEOUT), "the router forwards it back");
    assert_eq!(dropped(&lab), 0);
    daemon.stop();
}

/// Other own addresses: one of a macvlan on the same link, and one by a local route.
#[test]
fn further_own_addresses_are_served() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    for line in [
        "link add link other name second type macvlan mode bridge",
        "addr add 10.77.1.9/24 dev second",
        "link set second up",
        "route add local 10.88.9.0/24 dev lo",
    ] {
        lab.victim_ip(line);
    }
    let daemon = Tcp.start(&lab, "");
    wait_until_guarded(&lab, "second");
    for address in [Ipv4Addr::new(10, 77, 1, 9), Ipv4Addr::new(10, 88, 9, 7), lab.victim_v4("other")] {
        assert!(lab.is_served("other", address.into(), 80, TIMEOUT), "{address}");
        assert!(lab.is_served("victim", address.into(), 80, TIMEOUT), "{address} is served from this host");
    }
    assert_eq!(dropped(&lab), 0);
    let mut wire = lab.wire("other");
    let forged = raw::tcp("10.88.9.7".parse().unwrap(), lab.victim_v4("other").into(), 80, raw::SYN);
    let counted = within(TIMEOUT, || {
        wire.send(&forged);
        (dropped(&lab) > 0).then_some(())
    });
    assert!(counted.is_some(), "an address with a local route is an own one");
    daemon.stop();
}
