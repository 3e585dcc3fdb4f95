//! Tests expiry, size limits, leftovers of a crash, links that go down, and a lost capability of route bans.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use portsentry::enforce::route::{BlockError, Failure, RouteError, Routes};
use portsentry::types::{BanTarget, Expiry, RouteKind};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::support::{at, for_ever, only_failure, open, own, seconds, target};
use netns_lab::Lab;

/// Runs `work` in the victim, on a thread without CAP_NET_ADMIN.
fn without_capability<T: Send>(lab: &Lab, work: impl FnOnce() -> T + Send) -> T {
    lab.inside("victim", || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        work()
    })
}

#[test]
fn existing_ban_gets_new_end() {
    let lab = Lab::new(&["attacker"]);
    let mut routes = open(&lab, RouteKind::Blackhole);
    let both = [target("192.0.2.1"), target("2001:db8:1::1")];
    routes.block(&both.map(|one| (one, seconds(10))), at(0)).unwrap();
    routes.block(&[(both[0], seconds(10)), (both[1], Expiry::Never)], at(5)).unwrap();
    assert_eq!(own(&lab).len(), 2);
    assert!(routes.due(at(14)).targets.is_empty());
    assert_eq!(routes.due(at(15)).targets, [both[0]]);
    assert_eq!((routes.next_due(), own(&lab).len()), (None, 1), "the second ban is now permanent");
    // A target listed twice in one request is one ban.
    routes.block(&[(both[0], seconds(10)), (both[0], seconds(20))], at(20)).unwrap();
    assert_eq!((routes.next_due(), own(&lab).len()), (Some(at(40)), 2));
}

#[test]
fn prefix_bans_stay_within_bound() {
    let lab = Lab::new(&["attacker"]);
    let mut routes = lab.inside("victim", || Routes::open(RouteKind::Blackhole, 2)).unwrap();
    routes.block(&[(target("192.0.2.1"), seconds(9)), (target("192.0.2.2"), seconds(99))], at(0)).unwrap();
    assert_eq!(only_failure(routes.block(&for_ever(&["192.0.2.3"]), at(1))), Failure::Full { size: 2 });
    assert_eq!(own(&lab), ["blackhole 192.0.2.1", "blackhole 192.0.2.2"]);
    routes.block(&[(target("192.0.2.2"), seconds(99))], at(2)).unwrap();
    assert_eq!(routes.due(at(9)).targets, [target("192.0.2.1")]);
    routes.block(&for_ever(&["192.0.2.3"]), at(9)).unwrap();
    assert_eq!(own(&lab), ["blackhole 192.0.2.2", "blackhole 192.0.2.3"]);
}

#[test]
fn ten_thousand_route_bans_end_in_rounds() {
    let lab = Lab::new(&["attacker"]);
    let v4 = (0..8_000_u32).map(|n| BanTarget::V4(Ipv4Addr::from_bits(0xc612_0000 + n)));
    let v6 = (0..2_000_u128).map(|n| BanTarget::V6(Ipv6Addr::from_bits((0x2001_0db8_0001_0000 + n) << 64)));
    let all: Vec<BanTarget> = v4.chain(v6).collect();
    let mut routes = open(&lab, RouteKind::Blackhole);
    routes.block(&all.iter().map(|one| (*one, seconds(60))).collect::<Vec<_>>(), at(0)).unwrap();
    assert_eq!(own(&lab).len(), all.len());
    assert!(routes.missing(&all).unwrap().is_empty());
    routes.lift(&all[..4_000]).unwrap();
    assert_eq!(routes.missing(&all).unwrap(), all[..4_000]);

    let mut over = HashSet::new();
    while routes.next_due().is_some_and(|due| due <= at(60)) {
        let lifted = routes.due(at(60));
        assert!(lifted.error.is_none() && (1..=1_000).contains(&lifted.targets.len()));
        over.extend(lifted.targets);
    }
    assert_eq!(over, all[4_000..].iter().copied().collect());
    assert!(own(&lab).is_empty());
}

#[test]
fn leftovers_of_crash_are_reconciled() {
    let lab = Lab::new(&["attacker"]);
    lab.victim_ip("route add blackhole 192.0.2.200");
    // Two runs with different kinds, and routes with our protocol number that the backend would not create.
    open(&lab, RouteKind::Prohibit).block(&for_ever(&["192.0.2.1", "192.0.2.2", "2001:db8:1::1"]), at(0)).unwrap();
    open(&lab, RouteKind::Unreachable).block(&for_ever(&["192.0.2.3", "2001:db8:2::1"]), at(0)).unwrap();
    lab.victim_ip("route add blackhole 100.0.0.0/7 proto 112 metric 7");
    lab.victim_ip("route add 203.0.113.9 dev attacker proto 112 scope link");
    assert_eq!(own(&lab).len(), 7);

    let mut routes = open(&lab, RouteKind::Prohibit);
    let expected = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "203.0.113.9", "2001:db8:1::", "2001:db8:2::"].map(target);
    assert_eq!(routes.leftovers().unwrap(), expected);
    let mut restored = for_ever(&["192.0.2.1", "192.0.2.3", "2001:db8:2::"]);
    restored[0].1 = seconds(30);
    routes.block(&restored, at(0)).unwrap();
    let mut removed = routes.remove_stale(at(0));
    removed.targets.sort();
    assert!(removed.error.is_none());
    assert_eq!(removed.targets, ["192.0.2.2", "203.0.113.9", "2001:db8:1::"].map(target));
    let prohibit = "prohibit 2001:db8:2::/64 dev lo metric 1 pref medium";
    assert_eq!(own(&lab), ["prohibit 192.0.2.1", "prohibit 192.0.2.3", prohibit]);
    assert_eq!(routes.due(at(30)).targets, [target("192.0.2.1")]);
    assert!(
        lab.run("victim", "ip", &["route"]).contains("blackhole 192.0.2.200"),
        "the administrator's own route stays"
    );
}

#[test]
fn ban_replaces_unclaimed_own_route() {
    let lab = Lab::new(&["attacker"]);
    open(&lab, RouteKind::Unreachable).block(&for_ever(&["192.0.2.1", "2001:db8:1::1"]), at(0)).unwrap();
    let mut routes = open(&lab, RouteKind::Blackhole);
    routes.block(&for_ever(&["192.0.2.1", "2001:db8:1::1"]), at(0)).unwrap();
    assert_eq!(own(&lab), ["blackhole 192.0.2.1", "blackhole 2001:db8:1::/64 dev lo metric 1 pref medium"]);
}

#[test]
fn routes_lost_with_link_are_restored() {
    let lab = Lab::new(&["attacker"]);
    let gateway = "10.77.1.200".parse().unwrap();
    let mut routes = open(&lab, RouteKind::Via(gateway));
    let (v4, v6) = (target("198.51.100.7"), target("2001:db8:1::"));
    let bans = [(v4, seconds(60)), (v6, seconds(60))];
    routes.block(&bans, at(0)).unwrap();
    assert!(routes.missing(&[v4, v6]).unwrap().is_empty());

    lab.victim_ip("link set attacker down");
    assert_eq!(routes.missing(&[v4, v6]).unwrap(), [v4]);
    let refused = only_failure(routes.block(&bans, at(1)));
    assert!(matches!(refused, Failure::Gateway { gateway: named, .. } if named == gateway), "{refused}");
    assert_eq!(routes.blocked().collect::<Vec<_>>(), [v6]);

    lab.victim_ip("link set attacker up");
    routes.block(&bans, at(2)).unwrap();
    assert!(routes.missing(&[v4, v6]).unwrap().is_empty());
    // The kernel ties IPv6 blackholes to the loopback device.
    lab.victim_ip("link set lo down");
    assert_eq!(routes.missing(&[v4, v6]).unwrap(), [v6]);
    lab.victim_ip("link set lo up");
    routes.block(&bans, at(3)).unwrap();
    assert!(routes.missing(&[v4, v6]).unwrap().is_empty());
    assert_eq!(routes.due(at(63)).targets, [v4, v6]);
    assert!(own(&lab).is_empty());
}

#[test]
fn failed_removal_is_retried() {
    let lab = Lab::new(&["attacker"]);
    let mut routes = open(&lab, RouteKind::Blackhole);
    let (first, second, third) = (target("192.0.2.1"), target("192.0.2.2"), target("192.0.2.3"));
    open(&lab, RouteKind::Blackhole).block(&[(third, Expiry::Never)], at(0)).unwrap();
    assert_eq!(routes.leftovers().unwrap(), [third]);
    routes.block(&[(first, seconds(10)), (second, Expiry::Never)], at(0)).unwrap();

    without_capability(&lab, || {
        let refused = routes.block(&for_ever(&["192.0.2.4"]), at(1));
        assert!(matches!(refused, Err(BlockError::System(RouteError::NotPermitted))), "{refused:?}");
        assert!(routes.lift(&[second]).is_err());
        assert!(routes.remove_stale(at(10)).error.is_some());
        let over = routes.due(at(10));
        assert!(over.targets.is_empty() && over.error.is_some(), "{over:?}");
        assert_eq!(routes.next_due(), Some(at(15)), "the removal is not retried at once");
    });
    assert_eq!(own(&lab).len(), 3);
    assert_eq!(routes.blocked().collect::<Vec<_>>(), [first]);

    let mut lifted = Vec::new();
    while routes.next_due().is_some_and(|due| due <= at(15)) {
        let over = routes.due(at(15));
        assert!(over.error.is_none(), "{over:?}");
        lifted.extend(over.targets);
    }
    lifted.sort();
    assert_eq!(lifted, [first, third], "the second removal was already reported");
    assert!(own(&lab).is_empty());
}
