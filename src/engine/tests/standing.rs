//! Who has been judged: recognised, summed up, checked against the kernel, lifted, judged anew.

use std::time::Duration;

use super::scene::Gist::{Block, Innocent, Probe, Repeated};
use super::scene::{CLIENT, DAY, SCANNER, Scene, stranger, subject};
use crate::engine::subject::{Expiry, Subject};
use crate::engine::{HashKey, Innocence, Notice, Standing, Verdict};

fn summary(source: &str, packets: u32) -> Notice {
    Notice::Repeated { subject: subject(source), standing: Standing::Blocked, packets }
}

#[test]
fn whatever_a_blocked_source_sends_is_a_repetition() {
    let mut scene = Scene::new();
    scene.listen(80);
    scene.banish(SCANNER);
    assert_eq!(scene.syn(SCANNER, 80), Repeated, "also to an open port: the kernel drops it");
    assert_eq!(scene.udp(SCANNER, 40_000), Repeated);
    assert_eq!(scene.tcp(SCANNER, 23, 0x12), Repeated);
    assert_eq!((scene.engine.counters().repeated, scene.engine.counters().bans), (3, 1));
}

#[test]
fn the_first_summary_comes_after_two_seconds_and_then_one_a_minute() {
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
fn a_source_that_falls_silent_is_summed_up_all_the_same() {
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
fn no_packet_is_summed_up_twice_and_none_is_lost() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    let mut said = 0;
    for n in 0..3_000 {
        scene.after(0.07).syn(SCANNER, 24);
        said += scene.report().unwrap_or(0);
        // The shell comes round now and then.
        if n % 7 == 0 {
            let packets = |notice| match notice {
                Notice::Repeated { packets, .. } => packets,
                other => panic!("{other:?}"),
            };
            said += scene.notices().into_iter().map(packets).sum::<u32>();
        }
    }
    let rest = scene.after(61.0).notices();
    assert_eq!(rest.len(), 1);
    assert_eq!(rest, [summary(SCANNER, 3_000 - said)]);
}

#[test]
fn several_silent_sources_are_summed_up_each_at_its_time() {
    let mut scene = Scene::new();
    for n in 0..5 {
        scene.after(0.2).banish(&stranger(n));
        scene.syns(&stranger(n), 30..32 + u16::try_from(n).unwrap());
    }
    let due = scene.after(1.7).notices();
    assert_eq!(due, [0, 1, 2].map(|n| summary(&stranger(n), n + 2)));
    assert_eq!(scene.after(1.0).notices(), [3, 4].map(|n| summary(&stranger(n), n + 2)));
}

#[test]
fn the_kernel_is_asked_about_a_source_at_most_once_a_second() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    let mut asked = 0;
    for _ in 0..1_000 {
        scene.after(0.01).syn(SCANNER, 24);
        let Verdict::Repeated(repeated) = scene.verdict else { panic!("repeated") };
        asked += u32::from(repeated.verify);
    }
    assert!((9..=10).contains(&asked), "{asked}");
}

#[test]
fn whose_ban_was_lifted_is_judged_anew_from_the_start() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    assert!(scene.engine.lift(subject(SCANNER)));
    assert!(!scene.engine.lift(subject(SCANNER)));
    assert_eq!(scene.syn(SCANNER, 24), Probe(1));
    assert_eq!(scene.syns(SCANNER, [25, 26]), Block(3));
}

#[test]
fn a_ban_that_could_not_be_carried_out_is_tried_again() {
    let mut scene = Scene::new();
    for start in [100, 200, 300] {
        assert_eq!(scene.syns(SCANNER, start..start + 3), Block(3));
        scene.engine.lift(subject(SCANNER));
    }
}

#[test]
fn after_its_ban_a_source_is_judged_anew() {
    let mut scene = Scene::new();
    scene.banish(SCANNER);
    assert_eq!(scene.after(DAY.as_secs_f64() - 0.1).syn(SCANNER, 24), Repeated);
    assert_eq!(scene.after(0.2).syn(SCANNER, 24), Probe(1));
    assert_eq!(scene.syns(SCANNER, [25, 26]), Block(3));
    assert_eq!(scene.syn(SCANNER, 27), Repeated);
}

#[test]
fn a_ban_for_ever_has_no_end() {
    let mut scene = Scene::with(|settings| settings.expiry = Expiry::Never);
    scene.banish(SCANNER);
    assert_eq!(scene.ban().expiry, Expiry::Never);
    assert_eq!(scene.after(100_000_000.0).syn(SCANNER, 24), Repeated);
}

#[test]
fn who_was_blocked_before_the_start_is_recognised() {
    let mut scene = Scene::new();
    scene.engine.adopt(scene.now, subject(SCANNER), Expiry::After(Duration::from_secs(100)));
    scene.engine.adopt(scene.now, Subject::from_element("2001:db8:9::".parse().unwrap()), Expiry::Never);
    assert_eq!((scene.syn(SCANNER, 22), scene.syn("2001:db8:9::77", 22)), (Repeated, Repeated));
    scene.after(101.0);
    assert_eq!((scene.syn(SCANNER, 22), scene.syn("2001:db8:9::78", 22)), (Probe(1), Repeated));
}

#[test]
fn a_flushed_set_frees_everybody() {
    let mut scene = Scene::new();
    for n in 0..20 {
        scene.banish(&stranger(n));
        scene.syn(&stranger(n), 24);
    }
    scene.engine.lift_all();
    assert_eq!(scene.engine.tracked(), (0, 0));
    assert_eq!(scene.after(100.0).notices(), []);
    scene.banish(&stranger(7));
}

#[test]
fn a_full_table_of_bans_forgets_the_one_that_ends_first() {
    let mut scene = Scene::keyed(HashKey(1, 2), |settings| settings.max_judged = 8);
    for n in 0..8_u32 {
        let expiry = Expiry::After(Duration::from_secs(if n == 3 { 50 } else { 500 + u64::from(n) }));
        scene.engine.adopt(scene.now, subject(&stranger(n)), expiry);
    }
    scene.banish(SCANNER);
    let seen: Vec<_> = (0..8).map(|n| scene.syn(&stranger(n), 24)).collect();
    assert_eq!(seen.iter().position(|gist| *gist == Probe(1)), Some(3));
    assert_eq!(seen.iter().filter(|gist| **gist == Repeated).count(), 7);
    assert_eq!(scene.syn(SCANNER, 24), Repeated);
}

#[test]
fn others_are_not_touched_by_a_ban() {
    let mut scene = Scene::new();
    scene.listen(80);
    scene.banish(SCANNER);
    assert_eq!(scene.syn(CLIENT, 80), Innocent(Innocence::Open));
    assert_eq!(scene.syn(CLIENT, 81), Probe(1));
}
