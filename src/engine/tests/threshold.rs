//! Tests the threshold: the number of ports and the window.

use std::time::Duration;

use super::scene::Gist::{Block, Probe, Repeated};
use super::scene::{SCANNER, Scene, nth_source};
use crate::engine::MAX_EVIDENCE;
use crate::types::Timestamp;

#[test]
fn scan_trigger_forgives_distinct_ports() {
    for trigger in [0_u8, 1, 2, 15] {
        let mut scene = Scene::with(|settings| settings.scan_trigger = trigger);
        for port in 1..=u16::from(trigger) {
            assert_eq!(scene.syn(SCANNER, port), Probe(u8::try_from(port).unwrap()), "trigger {trigger}");
        }
        assert_eq!(scene.syn(SCANNER, 1_000), Block(trigger + 1), "trigger {trigger}");
        assert_eq!(scene.ban().ports.iter().count(), usize::from(trigger) + 1);
    }
}

#[test]
fn largest_trigger_fits_stored_ports() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 15);
    assert_eq!(scene.syns(SCANNER, 1..=16), Block(u8::try_from(MAX_EVIDENCE).unwrap()));
}

#[test]
fn two_ports_are_forgiven_however_often() {
    let mut scene = Scene::new();
    for _ in 0..5_000 {
        assert!(matches!(scene.after(0.5).syn(SCANNER, 22), Probe(1 | 2)));
        assert_eq!(scene.after(0.5).syn(SCANNER, 23), Probe(2));
    }
    assert_eq!(scene.syn(SCANNER, 24), Block(3));
}

#[test]
fn repeated_port_is_one_port() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 1);
    for _ in 0..10_000 {
        assert_eq!(scene.after(0.01).syn(SCANNER, 22), Probe(1));
    }
}

#[test]
fn ban_contains_first_probe_and_ports() {
    let mut scene = Scene::new();
    let first = scene.now;
    scene.syns(SCANNER, [21, 21, 21, 22]);
    assert_eq!(scene.after(5.0).syn(SCANNER, 23), Block(3));
    let ban = scene.ban();
    assert_eq!((ban.first, ban.probe.probes, ban.probe.observation.port), (first, 5, 23));
    assert_eq!(ban.ports.iter().map(|(_, port, _)| port).collect::<Vec<_>>(), [21, 22, 23]);
    assert_eq!(ban.probe.target.to_string(), SCANNER);
}

#[test]
fn port_counts_until_window_ends() {
    let window = 1_800.0;
    for (last, gist) in [(window, Block(3)), (window + 0.1, Probe(2))] {
        let mut scene = Scene::new();
        scene.syn(SCANNER, 21);
        scene.after(1.0).syn(SCANNER, 22);
        assert_eq!(scene.after(last - 1.0).syn(SCANNER, 23), gist, "after {last} s");
    }
}

#[test]
fn repeated_port_does_not_displace_others() {
    let mut scene = Scene::new();
    scene.syns(SCANNER, [21, 22]);
    scene.after(1_700.0).syn(SCANNER, 21);
    assert_eq!(scene.after(200.0).syn(SCANNER, 21), Probe(1), "the probe of 22 is too old");
}

#[test]
fn repeated_probe_restarts_its_window() {
    let mut scene = Scene::new();
    scene.syn(SCANNER, 21);
    scene.after(1_700.0).syn(SCANNER, 21);
    assert_eq!(scene.after(1_700.0).syn(SCANNER, 22), Probe(2));
}

/// Scans at this pace with the built-in settings; returns the number of probes until the ban.
fn probes_until_blocked(pace: f64) -> Option<usize> {
    let mut scene = Scene::new();
    (1..=20).position(|port| matches!(scene.after(pace).syn(SCANNER, port), Block(_))).map(|index| index + 1)
}

#[test]
fn nmap_timings_are_banned_at_third_port() {
    for (name, seconds) in [("T5", 0.000_3), ("T3", 0.01), ("T2", 0.4), ("T1", 15.0), ("T0", 300.0)] {
        assert_eq!(probes_until_blocked(seconds), Some(3), "-{name}");
    }
}

#[test]
fn slow_scan_beyond_window_is_not_banned() {
    assert_eq!(probes_until_blocked(901.0), None);
    assert_eq!(probes_until_blocked(3_600.0), None);
}

#[test]
fn four_ports_beyond_window_are_not_scan() {
    let mut scene = Scene::with(|settings| (settings.scan_trigger, settings.window) = (3, Duration::from_secs(60)));
    let seen = [21, 22, 23, 25].map(|port| scene.after(21.0).syn(SCANNER, port));
    assert_eq!(seen, [Probe(1), Probe(2), Probe(3), Probe(3)]);
}

#[test]
fn sources_are_counted_separately() {
    let mut scene = Scene::new();
    for n in 0..1_000 {
        assert_eq!(scene.syns(&nth_source(n), [22, 23]), Probe(2));
    }
    assert_eq!(scene.syn(&nth_source(500), 24), Block(3));
    assert_eq!(scene.syn(&nth_source(501), 22), Probe(2));
}

#[test]
fn backward_clock_neither_forgives_nor_bans() {
    let mut scene = Scene::new();
    scene.syns(SCANNER, [21, 22]);
    scene.now = Timestamp::at(Duration::from_secs(1));
    assert_eq!(scene.syn(SCANNER, 22), Probe(2));
    assert_eq!(scene.syn(SCANNER, 23), Block(3));
    scene.now = Timestamp::default();
    assert_eq!(scene.syn(SCANNER, 24), Repeated);
}

#[test]
fn time_zero_is_valid() {
    let mut scene = Scene::new();
    scene.now = Timestamp::default();
    scene.banish(SCANNER);
    assert_eq!(scene.syn(SCANNER, 24), Repeated);
}

#[test]
fn hash_keys_do_not_change_verdicts() {
    let run = |key| {
        let mut scene = Scene::keyed(key, |settings| settings.max_sources = 4_096);
        let probe = |n: u32| (nth_source(n % 150), u16::try_from(n * n % 7 + 20).unwrap());
        (0..2_000).map(probe).map(|(source, port)| scene.after(0.2).syn(&source, port)).collect::<Vec<_>>()
    };
    let verdicts = run(crate::engine::HashKey(1, 2));
    assert_eq!(verdicts, run(crate::engine::HashKey(u64::MAX, 77)));
    assert!(verdicts.contains(&Block(3)) && verdicts.contains(&Repeated));
}
