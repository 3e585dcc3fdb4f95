//! What many sources do together: forged floods, full tables, shared scans, and the noise of the Internet.

use std::collections::HashSet;
use std::time::Duration;

use super::scene::Gist::{Block, Probe};
use super::scene::{DAY, SCANNER, Scene, stranger};
use crate::engine::{CAPPED_BAN, HashKey, Notice};
use crate::types::Expiry;

#[test]
fn bans_above_the_ceiling_are_short_and_summed_up_in_one_line() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 10);
    let mut capped = Vec::new();
    for n in 0..50 {
        scene.banish(&stranger(n));
        capped.push(scene.ban().capped);
        // The thirty-third ban of a minute and those after it do not end all at once.
        let plain = if scene.ban().capped { CAPPED_BAN } else { DAY };
        let Expiry::After(span) = scene.ban().expiry else { panic!("a ban that ends") };
        assert!(
            if n < 32 { span == plain } else { (CAPPED_BAN * 9 / 10..=CAPPED_BAN).contains(&span) },
            "{n}: {span:?}"
        );
    }
    assert_eq!(capped.iter().position(|capped| *capped), Some(10));
    assert_eq!((scene.engine.counters().bans, scene.engine.counters().capped), (50, 40));
    assert_eq!(scene.notices(), []);
    assert_eq!(scene.engine.wake(), Some(scene.now.after(Duration::from_secs(60))));
    assert_eq!(scene.after(60.0).notices(), [Notice::Capped { bans: 40 }]);
    assert_eq!((scene.engine.wake(), scene.after(600.0).notices()), (None, vec![]));
}

#[test]
fn bans_that_fall_together_do_not_end_together() {
    let mut scene = Scene::new();
    let mut spans = Vec::new();
    for n in 0..232 {
        scene.banish(&stranger(n));
        assert!(!scene.ban().capped);
        let Expiry::After(span) = scene.ban().expiry else { panic!("a ban that ends") };
        spans.push(span);
    }
    let (few, many) = spans.split_at(32);
    assert!(few.iter().all(|span| *span == DAY), "a few keep the time that was asked for");
    assert!(many.iter().all(|span| (DAY..=DAY * 21 / 20).contains(span)), "{many:?}");
    let ends: HashSet<_> = many.iter().collect();
    assert!(ends.len() > 180 && spans.iter().all(|span| span.subsec_nanos() == 0), "{} ends of 200", ends.len());
    scene.after(61.0).banish(SCANNER);
    assert_eq!(scene.ban().expiry, Expiry::After(DAY), "a minute later a single ban is one again");
}

#[test]
fn a_ban_for_ever_is_not_spread() {
    let mut scene = Scene::with(|settings| settings.expiry = Expiry::Never);
    for n in 0..100 {
        scene.banish(&stranger(n));
        assert_eq!(scene.ban().expiry, Expiry::Never);
    }
}

#[test]
fn a_short_ban_ends_after_five_minutes_and_the_ceiling_fills_again() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 1);
    scene.banish(&stranger(1));
    scene.banish(SCANNER);
    assert!(scene.ban().capped);
    assert_eq!(scene.after(CAPPED_BAN.as_secs_f64() + 1.0).syn(SCANNER, 22), Probe(1));
    scene.banish(SCANNER);
    assert!(!scene.ban().capped);
}

#[test]
fn a_ban_that_is_shorter_anyway_stays_as_it_is_above_the_ceiling() {
    let short = Expiry::After(Duration::from_secs(30));
    let mut scene = Scene::with(|settings| (settings.max_new_bans_per_minute, settings.expiry) = (1, short));
    scene.banish(&stranger(1));
    scene.banish(SCANNER);
    assert_eq!((scene.ban().capped, scene.ban().expiry), (true, short));
    let mut scene = Scene::with(|settings| (settings.max_new_bans_per_minute, settings.expiry) = (1, Expiry::Never));
    scene.banish(&stranger(1));
    scene.banish(SCANNER);
    assert_eq!(scene.ban().expiry, Expiry::After(CAPPED_BAN));
}

#[test]
fn a_completed_connection_cannot_be_forged_and_knows_no_ceiling() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 1);
    scene.banish(&stranger(0));
    for n in 1..50 {
        assert_eq!([1, 7, 9].map(|port| scene.decoy(&stranger(n), port)), [Probe(1), Probe(2), Block(3)]);
        assert!(!scene.ban().capped);
    }
    scene.banish(&stranger(99));
    assert!(scene.ban().capped, "a SYN does");
}

#[test]
fn a_scanner_among_two_hundred_thousand_forged_sources_is_still_found() {
    let mut scene = Scene::new();
    let mut forged = 0;
    let mut flood = |scene: &mut Scene, sources: u32| {
        for _ in 0..sources {
            forged += 1;
            assert_eq!(scene.after(0.000_05).syn(&stranger(forged), 23), Probe(1));
        }
    };
    flood(&mut scene, 100_000);
    // nmap -T2, 0.4 s a probe, while 20,000 forged SYNs arrive every second.
    assert_eq!(scene.syn(SCANNER, 21), Probe(1));
    flood(&mut scene, 8_000);
    assert_eq!(scene.syn(SCANNER, 22), Probe(2));
    flood(&mut scene, 92_000);
    assert_eq!(scene.syn(SCANNER, 25), Block(3));
    let (suspects, judged) = scene.engine.tracked();
    assert!(suspects <= 65_536 && judged == 1, "{suspects} suspects");
    let counters = scene.engine.counters();
    assert_eq!((counters.bans, counters.packets), (1, 200_003));
    assert!(counters.evicted >= 200_000 - 65_536);
}

#[test]
fn in_a_full_table_the_least_suspicious_goes() {
    let mut scene = Scene::keyed(HashKey(3, 4), |settings| settings.max_sources = 64);
    for n in 0..8 {
        scene.syns(&stranger(n), [22, 23]);
    }
    for n in 1_000..3_000 {
        scene.after(0.01).syn(&stranger(n), 23);
    }
    let caught = (0..8).filter(|n| scene.syn(&stranger(*n), 24) == Block(3)).count();
    assert_eq!(caught, 8, "two thousand newcomers with one port each do not push out who has two");
    assert!(scene.engine.tracked().0 <= 64);
}

#[test]
fn in_a_full_table_old_suspicion_makes_room() {
    let mut scene = Scene::keyed(HashKey(3, 4), |settings| settings.max_sources = 8);
    for n in 0..8 {
        scene.syns(&stranger(n), [22, 23]);
    }
    scene.after(1_801.0);
    for n in 100..108 {
        scene.syns(&stranger(n), [22, 23]);
    }
    assert!((100..108).all(|n| scene.syn(&stranger(n), 24) == Block(3)));
}

#[test]
fn a_scan_that_many_sources_share_is_named_and_nobody_is_blocked_for_it() {
    let mut scene = Scene::new();
    for port in 1..=100_u16 {
        let source = stranger(u32::from(port % 50));
        assert!(matches!(scene.after(1.0).syn(&source, 200 + port), Probe(1 | 2)));
    }
    let notices = scene.notices();
    let [Notice::DistributedScan(sweep)] = notices.as_slice() else { panic!("{notices:?}") };
    assert!(sweep.ports >= 50 && (45..=55).contains(&sweep.sources), "{sweep:?}");
    assert!(sweep.span <= Duration::from_secs(100));
    assert_eq!(scene.engine.counters().bans, 0);
}

#[test]
fn the_noise_of_the_internet_is_no_sweep() {
    let mut scene = Scene::new();
    for n in 0..10_000 {
        let port = [22, 23, 80, 443, 445, 3_389, 5_900, 8_080, 81, 21][n as usize % 10];
        scene.after(0.5).syn(&stranger(n), port);
    }
    assert_eq!(scene.notices(), []);
}

#[test]
fn one_scanner_is_a_ban_and_no_sweep() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 15);
    for n in 0..5 {
        scene.syns(&stranger(n), 200..216);
    }
    assert_eq!(scene.engine.counters().bans, 5);
    assert_eq!(scene.notices(), []);
}
