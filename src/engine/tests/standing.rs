//! Tests banned sources: recognised, summarised, reconciled with the kernel, lifted, judged again.

use std::collections::HashSet;
use std::time::Duration;

use super::scene::Gist::{Block, Ignored, Probe, Repeated};
use super::scene::{CLIENT, DAY, SCANNER, Scene, nth_source, target};
use crate::engine::{ActiveBan, EngineNotice, HashKey, IgnoreReason};
use crate::types::{BanTarget, Expiry, Protocol, Response};

fn summary(source: &str, packets: u32) -> EngineNotice {
    EngineNotice::Repeated { target: target(source), response: Response::Block, protocol: Some(Protocol::Tcp), packets }
}

#[test]
fn banned_source_is_always_repeated() {
    let mut scene = Scene::new();
    scene.listen(80);
    scene.banish(SCANNER);
    assert_eq!(scene.syn(SCANNER, 80), Repeated, "also at an open port: the kernel drops the packet");
    assert_eq!(scene.udp(SCANNER, 40_000), Repeated);
    assert_eq!(scene.tcp(SCANNER, 23, 0x12), Repeated);
    assert_eq!((scene.engine.counters().repeated, scene.engine.counters().bans), (3, 1));
}

#[test]
fn first_summary_follows_after_two_seconds() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    let mut lines = Vec::new();
    for tenth in 1..=1_300 {
        scene.after(0.1).syn(SCANNER, 24);
        lines.extend(scene.report().map(|packets| (tenth, packets)));
    }
    assert_eq!(lines, [(20, 20), (620, 600), (1_220, 600)]);
}

#[test]
fn silent_source_is_summarised() {
    let mut scene = Scene::new();
    assert_eq!(scene.engine.wake(), None);
    scene.banish(SCANNER);
    let ban = scene.now;
    scene.after(0.5).syns(SCANNER, 100..140);
    assert_eq!(scene.notices(), []);
    assert_eq!(scene.engine.wake(), Some(ban.after(Duration::from_secs(2))));
    scene.now = scene.engine.wake().unwrap();
    assert_eq!(scene.notices(), [summary(SCANNER, 40)]);
    assert_eq!((scene.engine.wake(), scene.after(10_000.0).notices()), (None, vec![]));
}

#[test]
fn summary_names_protocol_of_first_packet() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    scene.after(0.5).udp(SCANNER, 40_000);
    scene.syn(SCANNER, 24);
    let protocol = |notice: &EngineNotice| match notice {
        EngineNotice::Repeated { protocol, packets, .. } => (*protocol, *packets),
        other => panic!("{other:?}"),
    };
    assert_eq!(scene.after(2.0).notices().iter().map(protocol).collect::<Vec<_>>(), [(Some(Protocol::Udp), 2)]);
    scene.after(60.0).udp(SCANNER, 40_000);
    assert_eq!((scene.repeated().protocol, scene.report()), (Some(Protocol::Udp), Some(1)));
}

#[test]
fn packets_are_summarised_exactly_once() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    let mut reported = 0;
    for n in 0..3_000 {
        scene.after(0.07).syn(SCANNER, 24);
        reported += scene.report().unwrap_or(0);
        // The event loop reads notices now and then.
        if n % 7 == 0 {
            let packets = |notice| match notice {
                EngineNotice::Repeated { packets, .. } => packets,
                other => panic!("{other:?}"),
            };
            reported += scene.notices().into_iter().map(packets).sum::<u32>();
        }
    }
    let rest = scene.after(61.0).notices();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest, [summary(SCANNER, 3_000 - reported)]);
}

#[test]
fn silent_sources_are_summarised_separately() {
    let mut scene = Scene::new();
    for n in 0..5 {
        scene.after(0.2).banish(&nth_source(n));
        scene.syns(&nth_source(n), 30..32 + u16::try_from(n).unwrap());
    }
    let due = scene.after(1.7).notices();
    assert_eq!(due, [0, 1, 2].map(|n| summary(&nth_source(n), n + 2)));
    assert_eq!(scene.after(1.0).notices(), [3, 4].map(|n| summary(&nth_source(n), n + 2)));
}

#[test]
fn kernel_is_checked_once_a_second() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    let mut verified = 0;
    for _ in 0..1_000 {
        scene.after(0.01).syn(SCANNER, 24);
        verified += u32::from(scene.repeated().verify);
    }
    assert!((9..=10).contains(&verified), "{verified}");
}

#[test]
fn lifted_source_starts_from_zero() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    assert!(scene.engine.lift(target(SCANNER)));
    assert!(!scene.engine.lift(target(SCANNER)));
    assert_eq!(scene.syn(SCANNER, 24), Probe(1));
    assert_eq!(scene.syns(SCANNER, [25, 26]), Block(3));
}

#[test]
fn refused_ban_is_retried() {
    let mut scene = Scene::new();
    for start in [100, 200, 300] {
        assert_eq!(scene.syns(SCANNER, start..start + 3), Block(3));
        scene.engine.lift(target(SCANNER));
    }
}

#[test]
fn expired_source_is_judged_again() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    assert_eq!(scene.after(DAY.as_secs_f64() - 0.1).syn(SCANNER, 24), Repeated);
    assert_eq!(scene.after(0.2).syn(SCANNER, 24), Probe(1));
    assert_eq!(scene.syns(SCANNER, [25, 26]), Block(3));
    assert_eq!(scene.syn(SCANNER, 27), Repeated);
}

#[test]
fn permanent_ban_has_no_end() {
    let mut scene = Scene::with(|settings| settings.expiry = Expiry::Never);
    scene.banish(SCANNER);
    assert_eq!(scene.ban().expiry, Expiry::Never);
    assert_eq!(scene.after(100_000_000.0).syn(SCANNER, 24), Repeated);
}

#[test]
fn earlier_ban_is_recognised() {
    let mut scene = Scene::new();
    scene.adopt(target(SCANNER), Expiry::After(Duration::from_secs(100)));
    scene.adopt(BanTarget::from_element("2001:db8:9::".parse().unwrap()), Expiry::Never);
    assert_eq!((scene.syn(SCANNER, 22), scene.syn("2001:db8:9::77", 22)), (Repeated, Repeated));
    scene.after(101.0);
    assert_eq!((scene.syn(SCANNER, 22), scene.syn("2001:db8:9::78", 22)), (Probe(1), Repeated));
}

#[test]
fn flushed_set_ends_all_bans() {
    let mut scene = Scene::new();
    for n in 0..20 {
        scene.banish(&nth_source(n));
        scene.syn(&nth_source(n), 24);
    }
    scene.engine.lift_all();
    assert_eq!(scene.engine.tracked(), (0, 0));
    assert_eq!(scene.after(100.0).notices(), []);
    scene.banish(&nth_source(7));
}

#[test]
fn full_ban_table_evicts_earliest_end() {
    let mut scene = Scene::keyed(HashKey(1, 2), |settings| settings.max_judged = 8);
    for n in 0..8_u32 {
        let expiry = Expiry::After(Duration::from_secs(if n == 3 { 50 } else { 500 + u64::from(n) }));
        scene.adopt(target(&nth_source(n)), expiry);
    }
    scene.banish(SCANNER);
    let seen: Vec<_> = (0..8).map(|n| scene.syn(&nth_source(n), 24)).collect();
    assert_eq!(seen.iter().position(|gist| *gist == Probe(1)), Some(3));
    assert_eq!(seen.iter().filter(|gist| **gist == Repeated).count(), 7);
    assert_eq!(scene.syn(SCANNER, 24), Repeated);
}

#[test]
fn ban_affects_no_other_source() {
    let mut scene = Scene::new();
    scene.listen(80);
    scene.banish(SCANNER);
    assert_eq!(scene.syn(CLIENT, 80), Ignored(IgnoreReason::Open));
    assert_eq!(scene.syn(CLIENT, 81), Probe(1));
}

#[test]
fn restored_ban_keeps_length_and_remaining_time() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    let hours = |hours: u32| Duration::from_secs(3_600) * hours;
    let adopted =
        ActiveBan { target: target(CLIENT), length: Some(hours(48)), grade: None, left: Expiry::After(hours(30)) };
    scene.engine.adopt(scene.now, &adopted);
    scene.adopt(target(&nth_source(1)), Expiry::After(hours(8)));
    scene.adopt(target(&nth_source(2)), Expiry::Never);
    // Beyond the range of the engine's clock: it is accepted nevertheless.
    scene.adopt(target(&nth_source(3)), Expiry::After(Duration::from_secs(u64::MAX)));
    scene.after(3.0 * 3_600.0).notices();
    let mut bans: Vec<_> = scene.engine.bans().map(|ban| (ban.target, (ban.length, ban.left))).collect();
    bans.sort_unstable_by_key(|(target, _)| *target);
    let known: Vec<_> = bans.iter().map(|(target, _)| *target).collect();
    assert_eq!(known, [&nth_source(1), &nth_source(2), &nth_source(3), SCANNER, CLIENT].map(target));
    let [alone, endless, long, own, adopted] = bans.as_slice() else { panic!("{bans:?}") };
    assert_eq!(own.1, (Some(DAY), Expiry::After(hours(21))));
    assert_eq!(adopted.1, (Some(hours(48)), Expiry::After(hours(27))));
    assert_eq!((alone.1, endless.1), ((None, Expiry::After(hours(5))), (None, Expiry::Never)));
    assert!(matches!(long.1, (None, Expiry::After(_))));
    assert_eq!(scene.after(22.0 * 3_600.0).notices(), []);
    assert_eq!(
        scene.engine.bans().filter(|ban| [SCANNER, &nth_source(1)].map(target).contains(&ban.target)).count(),
        0
    );
}

#[test]
fn reused_slot_forgets_old_ban_length() {
    let mut scene = Scene::keyed(HashKey(1, 2), |settings| settings.max_judged = 1);
    for n in 0..50 {
        scene.banish(&nth_source(n));
        scene.after(1.0).adopt(target(&nth_source(100 + n)), Expiry::Never);
    }
    assert!(scene.engine.bans().all(|ban| ban.length.is_none()), "permanent bans evicted those with an end");
    assert_eq!(scene.engine.bans().count(), 8);
}

#[test]
fn samples_reach_every_ban() {
    let mut scene = Scene::keyed(HashKey(1, 2), |settings| settings.max_judged = 1_024);
    let sample = |scene: &mut Scene, n| {
        let mut found = Vec::new();
        scene.engine.sample(scene.now, &mut |target| found.push(target), n);
        found
    };
    assert_eq!(sample(&mut scene, 100), []);
    let all: HashSet<_> = (0..40).map(|n| target(&nth_source(n))).collect();
    all.iter().for_each(|target| scene.adopt(*target, Expiry::After(DAY)));
    scene.adopt(target(SCANNER), Expiry::After(Duration::from_secs(9)));
    scene.udps(CLIENT, [7, 9, 11]);
    let first = sample(&mut scene, 16);
    let rest = [sample(&mut scene, 16), sample(&mut scene, 8)].concat();
    assert_eq!((first.len(), rest.len()), (16, 24));
    assert_eq!(
        first.iter().chain(&rest).copied().collect::<HashSet<_>>(),
        all,
        "neither log-only sources nor bans about to end"
    );
    assert_eq!(sample(&mut scene, 16), first, "then again from the beginning");
    assert_eq!(sample(&mut scene, 0), []);
    assert_eq!(sample(&mut scene, 1_000).len(), 40, "no source twice");
    scene.after(DAY.as_secs_f64());
    assert_eq!(sample(&mut scene, 1_000), []);
}
