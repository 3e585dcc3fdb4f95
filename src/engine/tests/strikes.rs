//! Tests repeat offenders: longer bans, what counts as a strike, and when strikes are forgotten.

use std::time::Duration;

use super::scene::Gist::{Block, Probe, Repeated};
use super::scene::{DAY, SCANNER, Scene, nth_source, target};
use crate::engine::{CAPPED_BAN, Escalation, LastBan, StrikeHistory};
use crate::types::Expiry;

/// Bans `source`; returns its length in days and the number of earlier strikes.
fn banish(scene: &mut Scene, source: &str) -> (u64, u32) {
    scene.banish(source);
    (scene.ban().expiry.seconds().unwrap() / DAY.as_secs(), scene.ban().strikes)
}

/// Waits until the ban in the last verdict has ended.
fn serve(scene: &mut Scene) {
    scene.after(scene.ban().expiry.span().unwrap().as_secs_f64() + 1.0);
}

fn struck(source: &str, strikes: u32, last: LastBan) -> StrikeHistory {
    StrikeHistory { target: target(source), strikes, proven: 0, last }
}

#[test]
fn repeat_offender_is_banned_twice_as_long() {
    let mut scene = Scene::new();
    let mut bans = Vec::new();
    for _ in 0..7 {
        bans.push(banish(&mut scene, SCANNER));
        serve(&mut scene);
    }
    assert_eq!(bans, [(1, 0), (2, 1), (4, 2), (4, 3), (4, 4), (4, 5), (4, 6)], "SYNs can be forged");
    for days in [1, 2, 4, 8, 16, 30, 30] {
        scene.prove(SCANNER);
        assert_eq!(
            scene.ban().expiry,
            Expiry::After(DAY * days),
            "handshakes cannot be forged, and strikes on forgeable evidence do not count"
        );
        serve(&mut scene);
    }
    assert_eq!(banish(&mut scene, &nth_source(1)), (1, 0), "another source starts from the beginning");
}

#[test]
fn factor_one_keeps_ban_length() {
    let mut scene = Scene::with(|settings| settings.escalate.factor = 1);
    for n in 0..4 {
        assert_eq!(banish(&mut scene, SCANNER), (1, n));
        serve(&mut scene);
    }
}

#[test]
fn logged_only_ban_is_not_a_strike() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.udps(SCANNER, [7, 9, 11]);
        assert_eq!(scene.ban().strikes, 0);
        scene.after(3_600.0);
    }
    assert_eq!(banish(&mut scene, SCANNER), (1, 0));
}

#[test]
fn forged_flood_escalates_no_ban() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 1);
    // Another source reaches the ceiling each time, and SCANNER's evidence may be forged.
    for n in 0..6 {
        scene.banish(&nth_source(n));
        scene.syns(SCANNER, 201..=216);
        assert_eq!((scene.ban().capped, scene.ban().strikes), (true, 0));
        assert_eq!(scene.ban().expiry, Expiry::After(CAPPED_BAN));
        scene.after(400.0);
    }
    assert_eq!(banish(&mut scene, SCANNER), (1, 0));
}

#[test]
fn repeat_offender_above_ceiling_keeps_strikes() {
    let mut scene = Scene::with(|settings| settings.max_new_bans_per_minute = 1);
    banish(&mut scene, SCANNER);
    serve(&mut scene);
    scene.banish(&nth_source(1));
    scene.syns(SCANNER, 201..=216);
    assert_eq!((scene.ban().expiry, scene.ban().strikes), (Expiry::After(CAPPED_BAN), 1));
    assert!(scene.engine.lift(target(SCANNER)));
    assert_eq!(banish(scene.after(100.0), SCANNER), (2, 1), "the short ban was no strike, to add or to take back");
}

#[test]
fn lifted_ban_is_not_a_strike() {
    let mut scene = Scene::new();
    for _ in 0..5 {
        assert_eq!(banish(&mut scene, SCANNER), (1, 0));
        assert!(scene.engine.lift(target(SCANNER)));
        scene.after(5.0);
    }
    banish(&mut scene, SCANNER);
    serve(&mut scene);
    assert_eq!(scene.notices(), [], "the engine learns the time");
    assert!(scene.engine.lift(target(SCANNER)), "the table still holds the ban");
    assert_eq!(banish(&mut scene, SCANNER), (2, 1), "the ban had already ended");
}

#[test]
fn flushed_set_removes_no_strike() {
    let mut scene = Scene::new();
    banish(&mut scene, SCANNER);
    scene.engine.lift_all();
    assert_eq!(banish(&mut scene, SCANNER), (2, 1));
}

#[test]
fn strikes_are_forgotten_after_ninety_days() {
    let wait = |days: f64| {
        let mut scene = Scene::new();
        banish(&mut scene, SCANNER);
        scene.after(DAY.as_secs_f64() * days);
        banish(&mut scene, SCANNER)
    };
    assert_eq!((wait(90.9), wait(91.1)), ((2, 1), (1, 0)));
}

#[test]
fn remembered_strikes_count() {
    let mut scene = Scene::new();
    let day = |days: u32| DAY * days;
    for (n, last) in [
        (1, LastBan::Over(day(89))),
        (2, LastBan::Over(day(90))),
        (3, LastBan::Lasts(Expiry::After(day(1)))),
        (4, LastBan::Lasts(Expiry::Never)),
    ] {
        scene.engine.remember(scene.now, &struck(&nth_source(n), 2, last));
    }
    scene.engine.remember(scene.now, &struck("2001:db8:9::1", 1, LastBan::Over(day(1))));
    // The kernel's ban is adopted, before or after, and an operator unblocks it.
    for n in [3, 4] {
        scene.adopt(target(&nth_source(n)), Expiry::After(day(1)));
        assert_eq!(scene.syn(&nth_source(n), 21), Repeated);
        scene.engine.lift(target(&nth_source(n)));
    }
    let bans: Vec<_> = (1..5).map(|n| banish(&mut scene, &nth_source(n))).collect();
    assert_eq!(bans, [(4, 2), (1, 0), (2, 1), (2, 1)]);
    assert_eq!(banish(&mut scene, "2001:db8:9::77"), (2, 1), "a /64 is one target");
}

#[test]
fn longest_ban_is_configurable() {
    let max = Duration::from_secs(3 * 86_400);
    let mut scene =
        Scene::with(|settings| settings.escalate = Escalation { factor: 100, max, ..Escalation::default() });
    let mut bans = Vec::new();
    for _ in 0..3 {
        bans.push(banish(&mut scene, SCANNER).0);
        serve(&mut scene);
    }
    assert_eq!(bans, [1, 3, 3]);
    assert_eq!((scene.syn(SCANNER, 21), scene.syns(SCANNER, [22, 23])), (Probe(1), Block(3)));
}
