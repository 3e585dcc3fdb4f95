//! Tests that no packets with forged addresses lead to a ban of an exempt source.

use super::scene::Gist::{Block, Exempt, Ignored, Probe, Repeated};
use super::scene::{HERE, SCANNER, Scene, nth_source, target, tcp};
use crate::engine::{IgnoreReason, Protection};
use crate::types::Expiry;
use crate::wire::{Packet, TcpFlags};

const GATEWAY: &str = "192.0.2.254";

#[test]
fn gateway_and_resolver_are_exempt_with_reason() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.protect("192.0.2.254/32", Protection::Gateway);
    scene.protect("203.0.113.53/32", Protection::Resolver);
    scene.protect("198.18.0.0/15", Protection::Listed);
    for (source, why) in [
        (GATEWAY, Protection::Gateway),
        ("203.0.113.53", Protection::Resolver),
        ("198.19.7.7", Protection::Listed),
        ("127.0.0.1", Protection::Loopback),
        ("::1", Protection::Loopback),
    ] {
        for port in 1..100 {
            assert_eq!(scene.syn(source, port), Exempt(why), "{source}");
        }
        assert_eq!(scene.tcp(source, 23, 0), Exempt(why), "{source}, NULL");
    }
    assert_eq!(scene.engine.tracked(), (0, 0));
}

#[test]
fn forged_own_address_is_exempt() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    assert_eq!(scene.syn(HERE, 23), Exempt(Protection::OwnAddress));
    assert_eq!(scene.tcp("2001:db8::1", 23, 0), Exempt(Protection::OwnAddress));
}

#[test]
fn neighbour_of_protected_address_is_unprotected() {
    let mut scene = Scene::new();
    scene.protect("10.77.0.1/32", Protection::Listed);
    assert_eq!(scene.syn("10.77.0.1", 22), Exempt(Protection::Listed));
    scene.banish("10.77.0.10");
    scene.banish("110.77.0.1");
}

#[test]
fn exempt_source_is_reported_once_a_minute() {
    let mut scene = Scene::new();
    scene.protect("192.0.2.254/32", Protection::Gateway);
    let mut lines = Vec::new();
    for _ in 0..1_300 {
        scene.after(0.1).syn(GATEWAY, 23);
        lines.extend(scene.report());
    }
    assert_eq!(lines, [1, 600, 600]);
}

#[test]
fn exempt_source_at_decoy_is_exempt() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.protect("192.0.2.254/32", Protection::Gateway);
    assert_eq!(scene.decoy(GATEWAY, 23), Exempt(Protection::Gateway));
}

#[test]
fn exempt_source_at_open_port_is_ignored() {
    let mut scene = Scene::new();
    scene.protect("192.0.2.254/32", Protection::Gateway);
    scene.listen(22);
    assert_eq!(scene.syn(GATEWAY, 22), Ignored(IgnoreReason::Open));
}

#[test]
fn later_protected_source_is_judged_again() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    scene.protect("198.51.100.0/24", Protection::Listed);
    assert_eq!(scene.syn(SCANNER, 24), Exempt(Protection::Listed));
}

#[test]
fn exempt_address_in_blocked_64_passes() {
    let mut scene = Scene::new();
    scene.protect("2001:db8:5::1/128", Protection::Gateway);
    scene.banish("2001:db8:5::bad");
    assert_eq!(scene.syn("2001:db8:5::1", 23), Exempt(Protection::Gateway));
    assert_eq!(scene.syn("2001:db8:5::2", 23), Repeated);
}

#[test]
fn own_address_in_blocked_64_stays_own() {
    let mut scene = Scene::new();
    scene.adopt(target("2001:db8::"), Expiry::Never);
    assert_eq!(scene.syn("2001:db8::1", 23), Exempt(Protection::OwnAddress));
}

#[test]
fn decoy_scan_bans_all_but_exempt() {
    let mut scene = Scene::new();
    scene.protect("192.0.2.254/32", Protection::Gateway);
    // nmap -D: every port is probed with each source address in turn.
    let sources = [nth_source(1), GATEWAY.to_owned(), nth_source(2), SCANNER.to_owned(), nth_source(3)];
    for (port, gist) in [(21, Probe(1)), (22, Probe(2)), (23, Block(3))] {
        for source in &sources {
            let expected = if source == GATEWAY { Exempt(Protection::Gateway) } else { gist };
            assert_eq!(scene.syn(source, port), expected, "{source}");
        }
    }
}

#[test]
fn many_exempt_sources_are_only_logged() {
    let mut scene = Scene::new();
    scene.protect("11.0.0.0/8", Protection::Listed);
    for n in 0..1_000 {
        assert_eq!(scene.syn(&nth_source(n), 23), Exempt(Protection::Listed));
    }
    assert_eq!(scene.syn(&nth_source(999), 23), Exempt(Protection::Listed));
    assert_eq!(scene.report(), None);
}

#[test]
fn loopback_and_unlisted_interfaces_are_ignored() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.change(|host| (host.loopback, host.interfaces) = (vec![1], vec![2, 3]));
    let on = |interface| Packet { interface, ..Scene::packet(SCANNER, tcp(40_000, 23, TcpFlags::SYN)) };
    assert_eq!(scene.see(&on(1)), Ignored(IgnoreReason::OtherInterface));
    assert_eq!(scene.see(&on(4)), Ignored(IgnoreReason::OtherInterface));
    assert_eq!(scene.see(&on(3)), Block(1));
    assert_eq!(scene.see(&on(4)), Ignored(IgnoreReason::OtherInterface), "a blocked source is ignored there too");
}
