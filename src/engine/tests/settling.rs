//! Tests a boot: clients and scanners arrive before the services of this host are up.

use super::scene::Gist::{Block, Exempt, Ignored, Probe, Repeated};
use super::scene::{CLIENT, SCANNER, Scene, nth_source};
use crate::engine::{IgnoreReason, Protection, Verdict};
use crate::types::{Protocol, Timestamp};

fn booting() -> Scene {
    let ceilings = 9_999;
    let mut scene = Scene::with(|settings| {
        (settings.max_new_bans_per_minute, settings.max_forgeable_bans) = (ceilings, ceilings);
    });
    let until = scene.now.after(std::time::Duration::from_secs(60));
    scene.engine.start_settling(until);
    scene
}

/// Judges all waiting sources; returns those that are banned.
fn banned(scene: &mut Scene) -> Vec<String> {
    let mut banned = Vec::new();
    while let Some(verdict) = scene.judge_waiting() {
        let Verdict::Block(ban) = verdict else { panic!("{verdict:?}") };
        banned.push(ban.probe.target.to_string());
    }
    banned
}

#[test]
fn decoys_leave_ports_to_services() {
    let mut scene = Scene::with(|settings| settings.decoys = "21-25,80".parse().unwrap());
    let ports = |scene: &Scene| scene.engine.ports(scene.now, &scene.host).decoys().to_string();
    assert_eq!(ports(&scene), "21-25,80");
    scene.change(|host| host.tcp.insert([0; 4].into(), 22));
    assert_eq!(ports(&scene), "21,23-25,80", "a service of one family has the port in both");
    assert_eq!(scene.decoy(SCANNER, 22), Ignored(IgnoreReason::Open), "its port was a decoy a moment before");
    scene.change(|host| host.tcp = crate::engine::Listeners::default());
    assert_eq!(ports(&scene), "21,23-25,80", "a restarting service keeps its port");
    assert_eq!(scene.decoy(SCANNER, 22), Ignored(IgnoreReason::RecentlyOpen));
    scene.after(300.0);
    assert_eq!(ports(&scene), "21-25,80");
    scene.remember_service(80);
    assert_eq!(ports(&scene), "21-25");
    let until = scene.now.after(std::time::Duration::from_secs(60));
    scene.engine.start_settling(until);
    assert_eq!(ports(&scene), "", "services that are not known yet may be starting");
}

#[test]
fn client_of_late_services_is_not_banned() {
    let mut scene = booting();
    scene.syns(CLIENT, [80, 443, 25, 22]);
    assert_eq!(scene.syn(CLIENT, 80), Probe(4), "counted, but not banned");
    scene.after(20.0).change(|host| [80, 443].into_iter().for_each(|port| host.tcp.insert([0; 4].into(), port)));
    scene.truth.in_use.insert((Protocol::Tcp, 25));
    scene.engine.end_settling();
    assert_eq!(banned(&mut scene), [""; 0], "one closed port is left");
    assert_eq!(scene.syn(CLIENT, 23), Probe(2), "which still counts");
}

#[test]
fn scanner_of_booting_host_is_banned_afterwards() {
    let mut scene = booting();
    for port in 1..=100 {
        assert!(!matches!(scene.syn(SCANNER, port), Block(_)));
    }
    assert!(!matches!(scene.tcp(CLIENT, 23, 0), Block(_)), "not even for flags that no TCP stack sends");
    assert!(scene.closed_ports(Protocol::Tcp).is_empty(), "the kernel's trap is not armed");
    assert_eq!(banned(&mut scene), [""; 0], "not yet");
    assert_eq!(scene.engine.wake(), Some(Timestamp::at(std::time::Duration::from_secs(1_060))));
    scene.after(60.0);
    assert!(!scene.closed_ports(Protocol::Tcp).is_empty());
    assert_eq!(banned(&mut scene), [SCANNER, CLIENT], "banned when the time is over, even if no service has started");
    assert_eq!(scene.syn(SCANNER, 200), Repeated);
}

#[test]
fn waiting_protected_source_is_exempt() {
    let mut scene = booting();
    scene.syns(SCANNER, [21, 22, 23]);
    scene.change(|host| host.allow.insert("192.0.2.0/24".parse().unwrap(), Protection::Listed));
    let listed = matches!(scene.syn(SCANNER, 24), Exempt(_));
    scene.engine.end_settling();
    assert_eq!(banned(&mut scene).is_empty(), listed);
}

#[test]
fn sources_beyond_queue_are_judged_later() {
    let mut scene = booting();
    for n in 0..3_000 {
        scene.syns(&nth_source(n), [21, 22, 23]);
    }
    scene.engine.end_settling();
    let waited = banned(&mut scene).len();
    assert!((1_024..3_000).contains(&waited), "{waited}");
    assert!(matches!(scene.syn(&nth_source(2_999), 23), Block(3)), "at its next probe");
}

#[test]
fn stopped_remembered_service_is_not_evidence() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 0);
    scene.remember_service(80);
    assert_eq!(scene.syn(SCANNER, 80), Ignored(IgnoreReason::RememberedService));
    assert!(!scene.closed_ports(Protocol::Tcp).contains(80));
    assert_eq!(scene.syn(SCANNER, 81), Block(1), "no other port is excused");
}
