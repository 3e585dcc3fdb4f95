//! Clients that try related ports of one service, and the scanner that knows which they are.

use super::scene::Gist::{Block, Probe};
use super::scene::{SCANNER, Scene};
use crate::engine::Service;
use crate::types::Protocol;

const CLIENT: &str = "203.0.113.9";
const GUESSED: [u16; 5] = [143, 995, 110, 587, 25];

fn mail_server() -> Scene {
    let mut scene = Scene::new();
    scene.change(|host| [993, 465].into_iter().for_each(|port| host.tcp.insert_any_v4(port)));
    scene
}

#[test]
fn guessing_mail_client_counts_one_port() {
    let mut scene = mail_server();
    for (probes, port) in (1..).zip(GUESSED) {
        assert_eq!(scene.syn(CLIENT, port), Probe(probes));
    }
    assert_eq!(scene.syn(CLIENT, 23), Probe(6), "the usual two ports are forgiven: the mail, and this one");
    assert_eq!(scene.syn(CLIENT, 22), Block(7));
    let closed = scene.engine.closed_ports(scene.now, &scene.host, Protocol::Tcp);
    assert!(GUESSED.iter().all(|port| !closed.contains(*port)) && closed.contains(23), "the trap leaves them out");
}

#[test]
fn related_ports_excuse_at_most_four() {
    let mut scene = mail_server();
    scene.change(|host| [80, 515].into_iter().for_each(|port| host.tcp.insert_any_v4(port)));
    scene.after(121.0);
    for (probes, port) in (1..).zip(GUESSED) {
        assert_eq!(scene.syn(SCANNER, port), Probe(probes));
    }
    assert_eq!(scene.syn(SCANNER, 631), Probe(6), "another group is another port");
    assert_eq!(scene.syn(SCANNER, 23), Block(7), "all groups together excuse four ports of a source");
}

#[test]
fn related_ports_count_singly_without_service() {
    let mut scene = Scene::new();
    assert_eq!(scene.syns(SCANNER, [143, 995]), Probe(2));
    assert_eq!(scene.syn(SCANNER, 110), Block(3));
    let mut scene = Scene::new();
    let service = Service { protocol: Protocol::Tcp, port: 993, address: [0; 4].into() };
    scene.change(|host| host.services = [service].into_iter().collect());
    assert_eq!(scene.syns(SCANNER, [143, 995, 110]), Probe(3), "a service that is down is one of this host");
}
