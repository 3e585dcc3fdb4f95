//! Tests many sources at once: forged floods, full tables, distributed scans, background noise.

use std::collections::HashSet;
use std::time::Duration;

use super::scene::Gist::{Block, Probe};
use super::scene::{DAY, SCANNER, Scene, nth_source, target};
use crate::engine::{ActiveBan, CAPPED_BAN, EngineNotice, Grade, HashKey, Verdict};
use crate::types::Expiry;
use crate::wire::TcpFlags;

/// The ports of a source with far more probes than a scan needs.
const SIXTEEN: std::ops::RangeInclusive<u16> = 201..=216;

#[test]
fn scans_above_ceiling_are_withheld() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 10);
    let banned = (0..50).filter(|n| scene.syns(&nth_source(*n), [21, 22, 23]) == Block(3)).count();
    assert_eq!(banned, 10);
    let again = scene.syns(&nth_source(20), [21, 22, 23]);
    assert_eq!(again, Probe(3), "each port is counted once");
    assert_eq!(scene.tcp(&nth_source(50), 21, 0), Probe(1), "even flags that no TCP stack sends are withheld");
    assert_eq!((scene.engine.counters().bans, scene.engine.counters().withheld), (10, 41));
    assert_eq!(scene.notices(), []);
    assert_eq!(scene.judge_waiting(), None);
    assert_eq!(scene.engine.wake(), Some(scene.now.after(Duration::from_millis(250))), "for the next free ban");
    assert_eq!(scene.after(60.0).judge_waiting(), None, "no source is banned that has been silent since");
    assert_eq!(scene.engine.wake(), Some(scene.now), "the summary is due");
    assert_eq!(scene.notices(), [EngineNotice::Capped { bans: 0, withheld: 41 }]);
    assert_eq!((scene.engine.wake(), scene.after(6.0).notices()), (None, vec![]));
    assert_eq!(scene.syn(&nth_source(20), 21), Block(3), "the source is judged again when there is room");
}

#[test]
fn sixteen_ports_get_few_short_bans() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 1);
    scene.banish(&nth_source(0));
    let banned = (1..50).filter(|n| scene.syns(&nth_source(*n), SIXTEEN) == Block(16)).count();
    assert_eq!((banned, scene.engine.counters().capped), (4, 4));
    scene.after(15.0).syns(SCANNER, SIXTEEN.take(15));
    assert_eq!(scene.syn(SCANNER, 300), Block(16));
    assert!(scene.ban().capped && scene.ban().expiry == Expiry::After(CAPPED_BAN));
    assert_eq!(scene.syn(SCANNER, 301), super::scene::Gist::Repeated);
}

/// Two forged packets a second must not ban the victim whose address they carry. The kernel's trap holds it at most
/// sixteen times.
#[test]
fn slow_source_gets_no_short_ban() {
    let mut scene = Scene::with(|settings| settings.max_forgeable_bans = 16);
    for n in 0..15 {
        scene.banish(&nth_source(n));
    }
    for port in (201..501).cycle().take(1_200) {
        assert!(matches!(scene.after(0.5).syn(SCANNER, port), Probe(_)), "port {port}");
    }
    let banned_at = (501..).position(|port| scene.after(0.25).syn(SCANNER, port) == Block(16));
    assert_eq!(banned_at, Some(9), "sixteen ports within five seconds");
}

#[test]
fn forged_flood_of_a_minute_bans_few() {
    for ports in [3, 16] {
        let mut scene = Scene::new();
        for n in 0..12_000 {
            scene.after(0.005).syns(&nth_source(n), 201..201 + ports);
        }
        let bans = scene.engine.counters().bans;
        assert!((110..=130).contains(&bans), "{bans} of 12,000 with {ports} ports each");
    }
}

/// Sends 1,500 SYNs a second of 1,000 forged sources with seventeen ports each, and lets `scan` send the packets of a
/// scanner every 150 ms; returns the number of its packets before its ban, if it is banned within a minute.
fn ban_among_forged_scans(scan: impl Fn(&mut Scene)) -> Option<u32> {
    let mut scene = Scene::new();
    let forge = |scene: &mut Scene, n: u32| {
        scene.syn(&nth_source(n % 1_000), 201 + u16::try_from(n / 1_000 % 17).unwrap());
    };
    (0..20_000).for_each(|n| forge(scene.after(1.0 / 1_500.0), n));
    for burst in 0..400 {
        for packet in 0..40 {
            scan(&mut scene);
            if matches!(scene.verdict, Verdict::Block(_)) {
                return Some(burst * 40 + packet);
            }
        }
        for n in 0..225 {
            forge(scene.after(1.0 / 1_500.0), 20_000 + burst * 225 + n);
        }
        while scene.judge_waiting().is_some() {}
        if scene.engine.bans().any(|ban| ban.target == target(SCANNER)) {
            return Some((burst + 1) * 40);
        }
    }
    None
}

#[test]
fn fast_scanner_is_banned_among_forged_scans() {
    let port = std::cell::Cell::new(1);
    let packets = ban_among_forged_scans(|scene| {
        scene.syn(SCANNER, port.replace(port.get() % 1_000 + 1));
    });
    assert!(packets.is_some_and(|packets| packets <= 400), "the forged sources take all bans: {packets:?}");
}

#[test]
fn hidden_ports_are_banned_among_forged_scans() {
    let packets = ban_among_forged_scans(|scene| {
        scene.sees(SCANNER, crate::wire::Transport::TinyFragment { ports: None });
    });
    assert!(packets.is_some_and(|packets| packets <= 400), "each may be for another port: {packets:?}");
}

#[test]
fn candidates_are_banned_without_another_probe() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 1);
    scene.banish(&nth_source(0));
    for n in 1..=30 {
        scene.syns(&nth_source(n), 201..206);
    }
    scene.syns(SCANNER, 201..212);
    assert_eq!(scene.judge_waiting(), None, "the bucket is empty");
    for _ in 0..6 {
        scene.after(9.0).syn(SCANNER, 205);
    }
    let Some(Verdict::Block(ban)) = scene.after(7.0).judge_waiting() else { panic!("the bucket has a token") };
    assert_eq!(ban.probe.target, target(SCANNER));
    assert!(scene.judge_waiting().is_none() && scene.after(120.0).judge_waiting().is_none(), "the flood is over");
    assert_eq!(scene.engine.bans().count(), 2);
}

#[test]
fn standing_forgeable_bans_have_a_ceiling() {
    let mut scene =
        Scene::with(|settings| (settings.max_new_bans_per_minute, settings.max_forgeable_bans) = (9_999, 64));
    let flood = |scene: &mut Scene, begin, end| {
        let before = scene.engine.counters().bans;
        for n in begin..end {
            scene.after(0.001).syns(&nth_source(n), SIXTEEN);
        }
        scene.engine.counters().bans - before
    };
    assert_eq!(flood(&mut scene, 0, 1_000), 62, "two short bans above the ceiling");
    assert_eq!(scene.engine.bans().count(), 62);
    scene.prove(SCANNER);
    assert_eq!(scene.engine.bans().count(), 63, "proven bans do not count");
    assert!(!scene.engine.has_room_for(scene.now, 1));
    assert_eq!(flood(scene.after(310.0), 2_000, 3_000), 0, "the short ones of this day are used up");
    assert_eq!(flood(scene.after(43_200.0), 3_000, 3_900), 1, "half of them half a day later");
    let lifted: Vec<_> = scene.engine.bans().map(|ban| ban.target).take(20).collect();
    assert!(lifted.iter().all(|target| scene.engine.lift(*target)));
    let banned = flood(&mut scene, 4_000, 5_000);
    assert!((16..=20).contains(&banned), "{banned} in place of twenty lifted ones");
    assert_eq!(flood(scene.after(100_000.0), 6_000, 7_000), 62, "a day later all have ended");
}

#[test]
fn restored_bans_count_against_the_ceiling() {
    let mut scene = Scene::with(|settings| settings.max_forgeable_bans = 10);
    for n in 0..10 {
        let ban = ActiveBan::new(target(&nth_source(n)), Expiry::After(DAY));
        scene.engine.adopt(scene.now, &ActiveBan { grade: Some(Grade::Forgeable), ..ban });
    }
    assert_eq!(scene.syns(&nth_source(10), SIXTEEN), Probe(16));
    scene.prove(SCANNER);
}

#[test]
fn simultaneous_bans_end_apart() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 600);
    let mut spans = Vec::new();
    for n in 0..232 {
        scene.banish(&nth_source(n));
        assert!(!scene.ban().capped);
        spans.push(scene.ban().expiry.span().unwrap());
    }
    let (few, many) = spans.split_at(32);
    assert!(few.iter().all(|span| *span == DAY), "a few bans keep the configured length");
    assert!(many.iter().all(|span| (DAY..=DAY * 21 / 20).contains(span)), "{many:?}");
    let ends: HashSet<_> = many.iter().collect();
    assert!(ends.len() > 180 && spans.iter().all(|span| span.subsec_nanos() == 0), "{} ends of 200", ends.len());
    scene.after(61.0).banish(SCANNER);
    assert_eq!(scene.ban().expiry, Expiry::After(DAY), "a minute later a single ban has its exact length");
}

#[test]
fn permanent_ban_has_no_jitter() {
    let mut scene = Scene::with(|settings| (settings.expiry, settings.max_new_bans_per_minute) = (Expiry::Never, 600));
    for n in 0..100 {
        scene.banish(&nth_source(n));
        assert_eq!(scene.ban().expiry, Expiry::Never);
    }
}

#[test]
fn short_ban_never_exceeds_usual_length() {
    let short = Expiry::After(Duration::from_secs(30));
    for (expiry, lasts) in [(short, short), (Expiry::Never, Expiry::After(CAPPED_BAN))] {
        let mut scene = Scene::with(|settings| (settings.max_new_bans_per_minute, settings.expiry) = (1, expiry));
        scene.banish(&nth_source(1));
        assert_eq!(scene.syns(SCANNER, SIXTEEN), Block(16));
        assert_eq!((scene.ban().capped, scene.ban().expiry), (true, lasts));
    }
}

#[test]
fn proven_evidence_has_its_own_ceiling() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 1);
    scene.banish(&nth_source(0));
    let banned = (1..1_000).filter(|n| [1, 7, 9].map(|port| scene.decoy(&nth_source(*n), port))[2] == Block(3)).count();
    assert_eq!((banned, scene.engine.counters().capped), (600, 0));
    assert_eq!(scene.syns(&nth_source(2_000), [21, 22, 23]), Probe(3), "the other ceiling is as full as before");
}

#[test]
fn scanner_among_200000_forged_is_found() {
    let mut scene = Scene::new();
    let mut forged = 0;
    let mut flood = |scene: &mut Scene, sources: u32| {
        for _ in 0..sources {
            forged += 1;
            assert_eq!(scene.after(0.000_05).syn(&nth_source(forged), 23), Probe(1));
        }
    };
    flood(&mut scene, 100_000);
    // nmap -T2 with 0.4 s between probes, while 20,000 forged SYNs arrive per second.
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
fn full_table_evicts_least_suspicious_source() {
    let mut scene = Scene::keyed(HashKey(3, 4), |settings| settings.max_sources = 64);
    for n in 0..8 {
        scene.syns(&nth_source(n), [22, 23]);
    }
    for n in 1_000..3_000 {
        scene.after(0.01).syn(&nth_source(n), 23);
    }
    let caught = (0..8).filter(|n| scene.syn(&nth_source(*n), 24) == Block(3)).count();
    assert_eq!(caught, 8, "two thousand new sources with one port each do not evict a source with two");
    assert!(scene.engine.tracked().0 <= 64);
}

#[test]
fn full_table_evicts_old_suspicion() {
    let mut scene = Scene::keyed(HashKey(3, 4), |settings| settings.max_sources = 8);
    for n in 0..8 {
        scene.syns(&nth_source(n), [22, 23]);
    }
    scene.after(1_801.0);
    for n in 100..108 {
        scene.syns(&nth_source(n), [22, 23]);
    }
    assert!((100..108).all(|n| scene.syn(&nth_source(n), 24) == Block(3)));
}

#[test]
fn distributed_scan_is_logged_without_ban() {
    let mut scene = Scene::new();
    for port in 1..=100_u16 {
        let source = nth_source(u32::from(port % 50));
        assert!(matches!(scene.after(1.0).syn(&source, 200 + port), Probe(1 | 2)));
    }
    let notices = scene.notices();
    let [EngineNotice::DistributedScan(scan)] = notices.as_slice() else { panic!("{notices:?}") };
    assert!(scan.ports >= 50 && (45..=55).contains(&scan.sources), "{scan:?}");
    assert!(scan.span <= Duration::from_secs(100));
    assert_eq!(scene.engine.counters().bans, 0);
}

#[test]
fn background_noise_is_not_distributed_scan() {
    let mut scene = Scene::new();
    for n in 0..10_000 {
        let port = [22, 23, 80, 443, 445, 3_389, 5_900, 8_080, 81, 21][n as usize % 10];
        scene.after(0.5).syn(&nth_source(n), port);
    }
    assert_eq!(scene.notices(), []);
}

#[test]
fn one_scanner_is_not_distributed_scan() {
    let mut scene = Scene::with(|settings| settings.scan_trigger = 15);
    for n in 0..5 {
        scene.syns(&nth_source(n), 200..216);
    }
    assert_eq!(scene.engine.counters().bans, 5);
    assert_eq!(scene.notices(), []);
}

/// A day of forged packets of every kind, with the built-in settings. The kernel's trap bans ten sources each time that
/// the engine has room for them, and the engine has seen the packets of none of them.
#[test]
fn forged_flood_of_a_day_bans_few() {
    let mut scene = Scene::new();
    let (mut banned, mut most) = (HashSet::new(), 0);
    let mut source = 0..;
    let mut next = move || nth_source(source.next().unwrap());
    for second in 0..86_400_u32 {
        scene.after(1.0);
        let mut condemned = Vec::new();
        let mut note = |scene: &Scene| {
            if let Verdict::Block(ban) = scene.verdict {
                condemned.push(ban.probe.target);
            }
        };
        scene.syns(&next(), [21, 22, 23]);
        note(&scene);
        scene.tcp(&next(), 21, TcpFlags::FIN | TcpFlags::PSH | TcpFlags::URG);
        note(&scene);
        if second % 4 == 0 {
            scene.syns(&next(), SIXTEEN);
            note(&scene);
            scene.syns(&format!("2001:db8:{:x}:{:x}::7", 1 + second / 65_536, second % 65_536), [21, 22, 23]);
            note(&scene);
        }
        while let Some(verdict) = scene.judge_waiting() {
            scene.verdict = verdict;
            note(&scene);
        }
        if scene.engine.has_room_for(scene.now, 10) {
            for _ in 0..10 {
                let target = target(&next());
                if scene.engine.adopt_capped(scene.now, target) {
                    condemned.push(target);
                }
            }
        }
        banned.extend(condemned);
        if second % 600 == 0 {
            most = most.max(scene.engine.bans().count());
        }
    }
    println!("{most} bans at one time, {} sources banned in a day", banned.len());
    assert!((3_500..=4_096).contains(&most), "{most} bans at one time");
    assert!((3_500..=4_096).contains(&banned.len()), "{} sources banned in a day", banned.len());
}
