//! Tests log-only protocols next to blocking ones: UDP by default, TCP in a trial.

use super::scene::Gist::{Block, Probe, Repeated, Scan};
use super::scene::{SCANNER, Scene, target, udp};
use crate::engine::EngineNotice;
use crate::types::{Protocol, Response};

#[test]
fn udp_scan_is_named_once() {
    let mut scene = Scene::new();
    assert_eq!((scene.udp(SCANNER, 53), scene.udp(SCANNER, 161)), (Probe(1), Probe(2)));
    assert_eq!(scene.udp(SCANNER, 123), Scan(3));
    for port in 200..300 {
        assert_eq!(scene.udp(SCANNER, port), Repeated);
    }
    assert_eq!(scene.engine.counters().bans, 0);
    scene.after(2.0);
    let (target, protocol) = (target(SCANNER), Some(Protocol::Udp));
    let summary = EngineNotice::Repeated { target, response: Response::Log, protocol, packets: 100 };
    assert_eq!(scene.notices(), [summary]);
}

#[test]
fn logged_only_source_is_not_reconciled() {
    let mut scene = Scene::new();
    assert_eq!(scene.udps(SCANNER, [53, 161, 123]), Scan(3));
    for _ in 0..10 {
        assert_eq!(scene.after(1.5).udp(SCANNER, 69), Repeated);
        assert_eq!((scene.repeated().response, scene.repeated().verify), (Response::Log, false));
    }
}

#[test]
fn udp_scan_is_reported_again_after_window() {
    let mut scene = Scene::new();
    assert_eq!(scene.udps(SCANNER, [53, 161, 123]), Scan(3));
    scene.after(1_801.0);
    assert_eq!([53, 161, 123].map(|port| scene.udp(SCANNER, port)), [Probe(1), Probe(2), Scan(3)]);
}

#[test]
fn logged_only_datagrams_add_no_evidence() {
    let mut scene = Scene::new();
    scene.syns(SCANNER, [21, 22]);
    for port in 1..60 {
        let gist = scene.sees(SCANNER, udp(40_000, port));
        assert!(!matches!(gist, Block(_)), "port {port}");
    }
    assert_eq!(scene.syn(SCANNER, 22), Probe(2), "the datagrams did not count for TCP");
    assert_eq!(scene.syn(SCANNER, 23), Block(3));
    assert!(scene.ban().ports.iter().all(|(protocol, ..)| protocol == Protocol::Tcp));
}

#[test]
fn blocking_datagrams_count_with_tcp() {
    let mut scene = Scene::with(|settings| settings.udp.response = Response::Block);
    scene.syns(SCANNER, [21, 22]);
    assert_eq!(scene.udp(SCANNER, 161), Block(3));
    assert_eq!(scene.syn(SCANNER, 23), Repeated);
}

#[test]
fn trial_reports_bans_without_blocking() {
    let mut scene = Scene::with(|settings| settings.tcp.response = Response::Log);
    assert_eq!(scene.syns(SCANNER, [21, 22, 23]), Scan(3));
    assert_eq!((scene.syn(SCANNER, 24), scene.tcp(SCANNER, 25, 0)), (Repeated, Repeated));
    scene.listen(80);
    assert!(matches!(scene.syn(SCANNER, 80), super::scene::Gist::Ignored(_)), "it can still use a service");
    assert_eq!(scene.engine.counters().bans, 0);
}

#[test]
fn tcp_ban_recognises_datagrams() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    assert_eq!(scene.udp(SCANNER, 161), Repeated);
}
