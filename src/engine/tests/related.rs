//! Tests clients that try related ports of one service, and scanners that exploit this rule.

use std::time::Duration;

use super::scene::Gist::{Block, Probe};
use super::scene::{CLIENT, SCANNER, Scene, target};
use crate::types::Protocol;

const GUESSED: [u16; 5] = [143, 995, 110, 587, 25];

fn mail_server() -> Scene {
    let mut scene = Scene::new();
    scene.change(|host| [993, 465].into_iter().for_each(|port| host.tcp.insert([0; 4].into(), port)));
    scene
}

#[test]
fn guessing_mail_client_counts_one_port() {
    let mut scene = mail_server();
    for (probes, port) in (1..).zip(GUESSED) {
        assert_eq!(scene.syn(CLIENT, port), Probe(probes));
    }
    assert_eq!(scene.syn(CLIENT, 23), Probe(6), "two ports are forgiven as usual: mail, and this one");
    assert_eq!(scene.syn(CLIENT, 22), Block(7));
    let closed = scene.closed_ports(Protocol::Tcp);
    assert!(GUESSED.iter().all(|port| !closed.contains(*port)) && closed.contains(23), "the trap does not count them");
    let related = scene.engine.ports(scene.now, &scene.host).related();
    assert!(GUESSED.iter().all(|port| related.contains(*port)), "and holds their sources");
    assert!(![23, 993, 465].iter().any(|port| related.contains(*port)), "{related}");
}

/// Each visit of a browser to a server without HTTPS may begin at port 443.
#[test]
fn browser_is_not_held() {
    let mut scene = Scene::new();
    scene.change(|host| host.tcp.insert([0; 4].into(), 80));
    let related = scene.engine.ports(scene.now, &scene.host).related();
    let closed = scene.closed_ports(Protocol::Tcp);
    assert!(!related.contains(443) && !closed.contains(443) && closed.contains(143));
}

#[test]
fn related_ports_excuse_at_most_four() {
    let mut scene = mail_server();
    scene.change(|host| [80, 515].into_iter().for_each(|port| host.tcp.insert([0; 4].into(), port)));
    scene.after(121.0);
    for (probes, port) in (1..).zip(GUESSED) {
        assert_eq!(scene.syn(SCANNER, port), Probe(probes));
    }
    assert_eq!(scene.syn(SCANNER, 631), Probe(6), "another group is another port");
    assert_eq!(scene.syn(SCANNER, 23), Block(7), "all groups together excuse four ports of a source");
}

#[test]
fn served_group_is_not_stricter() {
    let mut scene = Scene::new();
    scene.remember_service(465);
    scene.change(|host| host.tcp.insert([0; 4].into(), 443));
    assert_eq!(
        scene.syns(CLIENT, [80, 993, 143, 995, 110, 587, 25]),
        Probe(7),
        "a mail program that guesses all ports"
    );
    assert_eq!(scene.syn(CLIENT, 23), Block(8), "with an unrelated port, the served groups excuse four ports");
}

#[test]
fn unserved_groups_alone_count_as_one() {
    let mut scene = Scene::new();
    assert_eq!(scene.syns(CLIENT, GUESSED), Probe(5), "a mail program that guesses at a host without mail");
    assert_eq!(scene.syn(CLIENT, 515), Probe(6), "a printer driver behind the same address");
    let is_tolerated = scene.engine.is_tolerated_related(scene.now, target(CLIENT), &scene.host);
    assert!(is_tolerated, "the trap's ban has to be lifted");
    let closed = scene.closed_ports(Protocol::Tcp);
    assert!(GUESSED.iter().all(|port| closed.contains(*port)), "the trap counts them nevertheless");
    assert_eq!(scene.syn(CLIENT, 23), Block(7), "with an unrelated port each of them counts");
}

#[test]
fn related_ports_of_connected_peer_are_forgiven() {
    let mut scene = mail_server();
    scene.engine.set_peers(scene.now, &[(target(CLIENT), Duration::from_secs(60))]);
    assert_eq!(scene.syns(CLIENT, GUESSED.into_iter().chain(1..=4)), Probe(9), "five of them count");
    let is_tolerated = scene.engine.is_tolerated_peer(scene.now, target(CLIENT), &scene.host);
    assert!(is_tolerated, "the trap's ban, for eight ports, has to be lifted");
    assert_eq!(scene.syns(CLIENT, 5..=7), Block(12));
}

#[test]
fn unrelated_port_first_counts_every_port() {
    let mut scene = Scene::new();
    assert_eq!(scene.syns(SCANNER, [23, 143]), Probe(2));
    assert_eq!(scene.syn(SCANNER, 995), Block(3));
}

#[test]
fn three_groups_are_scan() {
    let mut scene = Scene::new();
    scene.change(|host| host.tcp.insert([0; 4].into(), 22));
    assert_eq!(scene.syns(SCANNER, [25, 143, 515, 631]), Probe(4));
    assert_eq!(scene.syn(SCANNER, 80), Block(5));
}

#[test]
fn group_counts_while_unrelated_port_counts() {
    let mut scene = Scene::new();
    assert_eq!(scene.syn(CLIENT, 23), Probe(1));
    scene.after(1_801.0);
    assert_eq!(scene.syns(CLIENT, GUESSED), Probe(5));
}

#[test]
fn remembered_service_makes_group_served() {
    let mut scene = Scene::new();
    scene.remember_service(993);
    assert_eq!(scene.syns(SCANNER, [143, 995, 110, 23]), Probe(4), "a service that is down is one of this host");
}
