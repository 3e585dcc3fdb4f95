//! Tests the effect of a route ban on packets, and the error that each kind of route gives to local senders.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use portsentry::enforce::route::Routes;
use portsentry::types::{BanTarget, Expiry, RouteKind};
use rustix::io::Errno;

use crate::support::{at, for_ever, open, own, seconds, target};
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT};

const SHORTLY: Duration = Duration::from_millis(500);
const PORT: u16 = 80;

/// An IPv6 attacker behind a router, because a host in the victim's own /64 cannot be blocked. Returns the addresses of
/// attacker and victim.
fn from_afar(lab: &Lab) -> (IpAddr, IpAddr) {
    lab.run("attacker", "ip", &["addr", "add", "2001:db8:66:1::2/64", "dev", "uplink", "nodad"]);
    lab.victim_ip(&format!("route add 2001:db8:66::/48 via {}", lab.v6("attacker")));
    lab.victim_ip("addr add 2001:db8:99::1/128 dev lo");
    (target("2001:db8:66:1::2").element(), "2001:db8:99::1".parse().unwrap())
}

/// The error that the victim gets when it sends to `target`.
fn refusal(lab: &Lab, target: IpAddr) -> Option<Errno> {
    let local = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sent = lab.inside("victim", || UdpSocket::bind(local).unwrap().connect(SocketAddr::new(target, 9)));
    sent.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn blocked_attacker_connects_only_after_expiry() {
    let lab = Lab::new(&["attacker", "third"]);
    let _services = Services::open(&lab, &[PORT]);
    let (far, victim_v6) = from_afar(&lab);
    let victim_v4 = lab.victim_v4("attacker").into();
    let targets = [victim_v4, victim_v6];
    assert!(targets.iter().all(|target| lab.is_served("attacker", *target, PORT, TIMEOUT)), "before");

    for kind in [
        RouteKind::Blackhole,
        RouteKind::Unreachable,
        RouteKind::Prohibit,
        RouteKind::Via("10.77.1.200".parse().unwrap()),
    ] {
        let mut routes = open(&lab, kind);
        let bans = [BanTarget::containing(lab.v4("attacker").into()), BanTarget::containing(far)]
            .map(|target| (target, seconds(60)));
        routes.block(&bans, at(0)).unwrap();
        for target in targets {
            assert!(!lab.is_served("attacker", target, PORT, SHORTLY), "{kind}: {target} answers a blocked source");
        }
        assert!(lab.is_served("third", lab.victim_v4("third").into(), PORT, TIMEOUT), "{kind}: the others");

        assert_eq!(routes.next_due(), Some(at(60)));
        assert!(routes.due(at(59)).targets.is_empty());
        let mut over = routes.due(at(60));
        over.targets.sort();
        assert_eq!((over.targets, routes.next_due()), (bans.map(|(target, _)| target).to_vec(), None));
        for target in targets {
            assert!(lab.is_served("attacker", target, PORT, TIMEOUT), "{kind}: {target} after the ban");
        }
    }
}

#[test]
fn route_kinds_show_expected_errors() {
    let lab = Lab::new(&["attacker"]);
    let (v4, v6) = ("198.51.100.7", "2001:db8:5:6::7");
    lab.victim_ip(&format!("route add default via {}", lab.v4("attacker")));
    lab.victim_ip(&format!("route add default via {}", lab.v6("attacker")));
    let kinds = [
        (RouteKind::Blackhole, "blackhole", Errno::INVAL),
        (RouteKind::Unreachable, "unreachable", Errno::HOSTUNREACH),
        (RouteKind::Prohibit, "prohibit", Errno::ACCESS),
    ];
    for (kind, name, errno) in kinds {
        let mut routes = open(&lab, kind);
        routes.block(&for_ever(&[v4, v6]), at(0)).unwrap();
        let expected = [format!("{name} {v4}"), format!("{name} 2001:db8:5:6::/64 dev lo metric 1 pref medium")];
        assert_eq!(own(&lab), expected);
        // The whole /64 is blocked, and nothing outside it.
        for blocked in [v4, v6, "2001:db8:5:6:ffff::1"] {
            assert_eq!(refusal(&lab, blocked.parse().unwrap()), Some(errno), "{name} {blocked}");
        }
        for free in ["198.51.100.6", "198.51.100.8", "2001:db8:5:5::7", "2001:db8:5:7::7"] {
            assert_eq!(refusal(&lab, free.parse().unwrap()), None, "{name} {free}");
        }
        routes.lift(&[target(v4), target(v6)]).unwrap();
        assert!(own(&lab).is_empty());
        assert_eq!(refusal(&lab, v4.parse().unwrap()), None);
    }
}

#[test]
fn dead_gateway_serves_own_family_only() {
    let lab = Lab::new(&["attacker"]);
    let mut routes = open(&lab, RouteKind::Via("10.77.1.200".parse().unwrap()));
    routes.block(&for_ever(&["198.51.100.7", "2001:db8:5:6::7"]), at(0)).unwrap();
    let blackhole = "blackhole 2001:db8:5:6::/64 dev lo metric 1 pref medium";
    assert_eq!(own(&lab), ["198.51.100.7 via 10.77.1.200 dev attacker", blackhole]);
    assert!(routes.missing(&[target("198.51.100.7"), target("2001:db8:5:6::")]).unwrap().is_empty());

    let mut routes = open(&lab, RouteKind::Via("fd77:0:0:1::200".parse().unwrap()));
    routes.block(&for_ever(&["198.51.100.8", "2001:db8:5:7::7"]), at(0)).unwrap();
    let lines = own(&lab);
    assert!(lines.contains(&"blackhole 198.51.100.8".to_owned()), "{lines:?}");
    assert!(
        lines.contains(&"2001:db8:5:7::/64 via fd77:0:0:1::200 dev attacker metric 1 pref medium".to_owned()),
        "{lines:?}"
    );
}

/// Route bans stop replies, not incoming packets, as the manual says.
#[test]
fn datagram_of_blocked_source_arrives_without_nft() {
    let lab = Lab::new(&["attacker"]);
    // With reverse-path filtering the kernel would drop packets from a blackholed source.
    lab.sysctl("net.ipv4.conf.all.rp_filter=0");
    lab.sysctl("net.ipv4.conf.attacker.rp_filter=0");
    let mut routes: Routes = open(&lab, RouteKind::Blackhole);
    let attacker = lab.v4("attacker").into();
    routes.block(&[(BanTarget::containing(attacker), Expiry::Never)], at(0)).unwrap();

    let victim = SocketAddr::new(lab.victim_v4("attacker").into(), 5353);
    let socket = lab.inside("victim", || UdpSocket::bind(victim)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    lab.inside("attacker", || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"hello", victim)).unwrap();
    let (_, from) = socket.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(from.ip(), attacker);
    assert_eq!(socket.send_to(b"answer", from).unwrap_err().kind(), ErrorKind::InvalidInput);
}
