//! Tests that routes of other programs and protected prefixes are left alone.

use portsentry::enforce::Overlap;
use portsentry::enforce::route::{Failure, Routes};
use portsentry::types::{Expiry, RouteKind};

use crate::support::{at, for_ever, only_failure, open, own, shown, target};
use netns_lab::Lab;

#[test]
fn administrators_route_refuses_route_ban() {
    let lab = Lab::new(&["attacker"]);
    let gateways = [lab.v4("attacker").to_string(), lab.v6("attacker").to_string()];
    // Routes with and without a metric, with another protocol number, and one that already blocks.
    let routes = [
        ("198.51.100.1/32", format!("route add 198.51.100.1 via {} proto static", gateways[0]), Some(4)),
        ("198.51.100.2/32", format!("route add 198.51.100.2 via {} metric 50 proto dhcp", gateways[0]), Some(16)),
        ("198.51.100.3/32", "route add blackhole 198.51.100.3".to_owned(), None),
        ("2001:db8:1:1::/64", format!("route add 2001:db8:1:1::/64 via {} proto static", gateways[1]), Some(4)),
        ("2001:db8:1:2::/64", format!("route add 2001:db8:1:2::/64 via {} metric 1 proto ra", gateways[1]), Some(9)),
        ("2001:db8:1:3::/64", "route add prohibit 2001:db8:1:3::/64 metric 1".to_owned(), None),
    ];
    for kind in [RouteKind::Blackhole, RouteKind::Prohibit] {
        let mut back_end = open(&lab, kind);
        for (prefix, words, protocol) in &routes {
            lab.victim_ip(words);
            let before = shown(&lab, prefix);
            assert!(!before.is_empty(), "{prefix}");
            let address = prefix.split('/').next().unwrap();
            let blocked = back_end.block(&for_ever(&[address, "203.0.113.9"]), at(0));
            assert_eq!(only_failure(blocked), Failure::Taken(*protocol), "{kind}: {prefix}");
            assert!(back_end.due(at(0)).targets.is_empty(), "nothing was blocked, so nothing expires");
            back_end.lift(&[target(address)]).unwrap();
            assert_eq!(shown(&lab, prefix), before, "{kind}");
            lab.victim_ip(&words.replace("route add", "route del"));
        }
        assert_eq!(own(&lab).len(), 1, "the other target is blocked nevertheless");
        back_end.lift(&[target("203.0.113.9")]).unwrap();
    }
}

#[test]
fn lifting_finds_only_own_route() {
    let lab = Lab::new(&["attacker"]);
    let (v4, v6) = (lab.v4("attacker"), lab.v6("attacker"));
    let others = [
        ("198.51.100.0/24", format!("route add 198.51.100.0/24 via {v4}")),
        ("2001:db8::/48", format!("route add 2001:db8::/48 via {v6}")),
        ("2001:db8:0:1::9/128", format!("route add 2001:db8:0:1::9/128 via {v6}")),
        // Blackholes for the same prefixes, with a higher metric than a ban.
        ("198.51.100.7/32", "route add blackhole 198.51.100.7 metric 50".to_owned()),
        ("2001:db8:0:1::/64", "route add blackhole 2001:db8:0:1::/64".to_owned()),
    ];
    others.iter().for_each(|(_, words)| lab.victim_ip(words));
    let before: Vec<String> = others.iter().map(|(prefix, _)| shown(&lab, prefix)).collect();

    let mut routes = open(&lab, RouteKind::Blackhole);
    routes.block(&for_ever(&["198.51.100.7", "2001:db8:0:1::7"]), at(0)).unwrap();
    assert_eq!(own(&lab).len(), 2);
    routes.lift(&[target("198.51.100.7"), target("2001:db8:0:1::7")]).unwrap();
    assert!(own(&lab).is_empty());
    // After a second attempt only the administrator's routes are left.
    routes.lift(&[target("198.51.100.7"), target("2001:db8:0:1::7")]).unwrap();
    let after: Vec<String> = others.iter().map(|(prefix, _)| shown(&lab, prefix)).collect();
    assert_eq!(before, after);
}

#[test]
fn administrators_route_replaces_ban_and_stays() {
    let lab = Lab::new(&["attacker"]);
    let mut routes = open(&lab, RouteKind::Blackhole);
    let hers = target("198.51.100.7");
    routes.block(&[(hers, Expiry::Never)], at(0)).unwrap();
    assert!(routes.missing(&[hers]).unwrap().is_empty());
    lab.victim_ip(&format!("route replace 198.51.100.7 via {}", lab.v4("attacker")));
    let his = shown(&lab, "198.51.100.7/32");
    assert_eq!(routes.missing(&[hers]).unwrap(), [hers]);
    assert_eq!(only_failure(routes.block(&[(hers, Expiry::Never)], at(1))), Failure::Taken(Some(3)));
    assert!(routes.blocked().next().is_none());
    assert!(routes.due(at(1)).targets.is_empty());
    assert_eq!((shown(&lab, "198.51.100.7/32"), routes.next_due()), (his, None));
}

#[test]
fn protected_prefix_gets_no_route() {
    let lab = Lab::new(&["attacker"]);
    let mut routes = open(&lab, RouteKind::Blackhole);
    let nets = ["10.77.1.1/32", "203.0.113.0/24", "2001:db8:53::53/128", "2001:db8:aaaa::/48"];
    let nets = nets.map(|text| text.parse().unwrap());
    assert!(routes.protect(&nets).error.is_none());
    let refused = |routes: &mut Routes, text: &str| only_failure(routes.block(&for_ever(&[text]), at(0)));
    for (text, net) in [
        ("10.77.1.1", nets[0]),
        ("203.0.113.200", nets[1]),
        // The resolver's whole /64, and one /64 of an allowed /48.
        ("2001:db8:53::bad", nets[2]),
        ("2001:db8:aaaa:7::1", nets[3]),
    ] {
        assert_eq!(refused(&mut routes, text), Failure::Protected(Overlap(net)), "{text}");
    }
    // This host's own network needs no protection: the kernel's own route covers exactly this /64.
    assert_eq!(refused(&mut routes, "fd77:0:0:1::2"), Failure::Taken(Some(2)));
    assert_eq!(refused(&mut routes, "fe80::1234"), Failure::LinkLocal);
    for no_host in ["0.0.0.0", "255.255.255.255", "224.0.0.251", "127.0.0.1", "::1", "ff02::1"] {
        assert_eq!(refused(&mut routes, no_host), Failure::NoHost, "{no_host}");
    }
    assert!(own(&lab).is_empty());
    // An IPv4 neighbour is a single host, so it can be blocked.
    routes.block(&for_ever(&["10.77.1.2"]), at(0)).unwrap();
    assert_eq!(own(&lab), ["blackhole 10.77.1.2"]);
}

#[test]
fn protected_target_is_lifted_after_crash() {
    let lab = Lab::new(&["attacker"]);
    let mut routes = open(&lab, RouteKind::Blackhole);
    routes.block(&for_ever(&["192.0.2.1", "192.0.2.2", "2001:db8:1:1::1", "2001:db8:1:2::1"]), at(0)).unwrap();
    let lifted = routes.protect(&["192.0.2.2/32", "2001:db8:1:1::53/128"].map(|text| text.parse().unwrap()));
    assert!(lifted.error.is_none());
    assert_eq!(lifted.targets, [target("192.0.2.2"), target("2001:db8:1:1::")]);
    assert_eq!(own(&lab), ["blackhole 192.0.2.1", "blackhole 2001:db8:1:2::/64 dev lo metric 1 pref medium"]);

    let mut later = open(&lab, RouteKind::Blackhole);
    assert_eq!(later.leftovers().unwrap().len(), 2);
    assert_eq!(later.protect(&["192.0.2.0/24".parse().unwrap()]).targets, [target("192.0.2.1")]);
    assert_eq!(own(&lab), ["blackhole 2001:db8:1:2::/64 dev lo metric 1 pref medium"]);
}
