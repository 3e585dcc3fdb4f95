//! Tests the restore of as many bans as a busy host accumulates in months.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use portsentry::enforce::nft::Table;
use portsentry::ledger::{BanAuthor, BanRecord, Ledger};
use portsentry::types::{Backend, BanTarget, Expiry};

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, within};

const BANS: u32 = 100_000;

/// The time limit on a busy machine.
const BOUND: Duration = Duration::from_secs(180);

fn source(number: u32) -> BanTarget {
    BanTarget::V4(Ipv4Addr::from_bits(10 << 24 | 1 << 20 | number))
}

/// A ledger with `BANS` bans in force, an hour old, of two hours and more.
fn fill_ledger(lab: &Lab) {
    let since = SystemTime::now() - Duration::from_secs(3_600);
    let (mut ledger, _) = Ledger::open(&netns_lab::own_state(&lab.path("state"))).unwrap();
    let bans = (0..BANS).map(|number| {
        let length = Duration::from_secs(7_200 + u64::from(number % 100) * 60);
        BanRecord::wanted_by(BanAuthor::Detector, source(number), since, Expiry::After(length), Backend::Nft)
    });
    ledger.record(&bans.collect::<Vec<_>>()).unwrap();
}

/// All elements in the kernel, once there are `all`. A dump silently omits some while the kernel's table grows, as it
/// does here.
fn elements(lab: &Lab, all: usize) -> Option<Vec<(BanTarget, Expiry)>> {
    let read = || lab.inside("victim", || Table::open().unwrap().elements().ok());
    within(BOUND, || read().filter(|elements| elements.len() >= all))
}

#[test]
fn restore_of_100000_bans_delays_no_verdict() {
    let lab = Lab::new(&["attacker"]);
    let filled = Instant::now();
    fill_ledger(&lab);
    let begin = Instant::now();
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let started = begin.elapsed();
    // The scanner is banned during the restore.
    let attacker = lab.v4("attacker");
    lab.probe("attacker", attacker.into(), lab.victim_v4("attacker").into(), &[901, 902, 903, 904]);
    daemon.expect_line(&format!("Host {attacker} has been blocked"));
    let blocked = begin.elapsed();
    let restored = || {
        let lines = daemon.lines_with("bans restored from the ledger with their remaining time: ");
        let counts = lines
            .iter()
            .filter_map(|line| line.split("remaining time: ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
        (counts.sum::<u32>() == BANS).then_some(())
    };
    assert!(within(BOUND, restored).is_some(), "{:?}", daemon.lines_with("adminalert"));
    println!(
        "{BANS} bans put back {:.1} s after the start ({:.1} s until it watches; a scanner blocked at {:.1} s)",
        begin.elapsed().as_secs_f64(),
        started.as_secs_f64(),
        blocked.as_secs_f64()
    );
    let all = usize::try_from(BANS).unwrap() + 1;
    let elements = elements(&lab, all).expect("all are there");
    assert_eq!(elements.len(), all);
    let held: HashSet<BanTarget> = elements.iter().map(|(target, _)| *target).collect();
    assert!((0..BANS).all(|number| held.contains(&source(number))));
    for (target, left) in elements {
        let BanTarget::V4(address) = target else { panic!("{target}") };
        let number = u64::from(address.to_bits() & 0xf_ffff);
        let expected = 3_600 + if address == attacker { 0 } else { number % 100 * 60 };
        let (left, passed) = (left.seconds().unwrap(), filled.elapsed().as_secs());
        assert!(left <= expected && left + passed + 2 >= expected, "{target}: {left} s of {expected} after {passed} s");
    }
    daemon.stop();
}

#[test]
fn killed_start_loses_no_ban() {
    let lab = Lab::new(&["attacker"]);
    fill_ledger(&lab);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    daemon.expect_line("bans restored from the ledger with their remaining time: ");
    daemon.kill();
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let all = usize::try_from(BANS).unwrap();
    let found = elements(&lab, all);
    assert!(found.is_some(), "{:?}", daemon.lines_with("adminalert"));
    daemon.stop();
    assert_eq!(crate::support::ledger(&lab).len(), all);
}

#[test]
fn flush_during_restore_loses_no_ban() {
    let lab = Lab::new(&["attacker"]);
    fill_ledger(&lab);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let holds = |number: u32| lab.inside("victim", || Table::open().unwrap().time_left(source(number)));
    // Another program changes other tables all the time. Then everything is flushed, after the first bans are restored
    // but usually before the last.
    lab.nft("add table ip another; delete table ip another");
    assert!(within(BOUND, || holds(0).ok().flatten()).is_some(), "{:?}", daemon.lines_with("adminalert"));
    lab.nft("flush ruleset");
    assert!(
        elements(&lab, usize::try_from(BANS).unwrap()).is_some(),
        "not all bans are restored: {:?}",
        daemon.lines_with("adminalert")
    );
    assert_eq!(crate::support::ledger(&lab).len(), usize::try_from(BANS).unwrap());
    daemon.stop();
}

#[test]
fn flush_restores_100000_bans_with_times() {
    let lab = Lab::new(&["attacker"]);
    fill_ledger(&lab);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let all = usize::try_from(BANS).unwrap();
    let before: HashMap<BanTarget, Expiry> = elements(&lab, all).expect("all are there").into_iter().collect();
    let flushed = Instant::now();
    lab.nft("flush ruleset");
    let line = daemon.expect_line("table inet portsentry was missing and has been created again");
    println!("{all} bans put back {:.2} s after a flush", flushed.elapsed().as_secs_f64());
    assert!(line.ends_with(&format!(": {all}")), "not all of {all} were restored: {line}");
    let took = flushed.elapsed();
    let after = elements(&lab, all).expect("all bans are restored");
    assert_eq!(after.len(), all);
    for (target, left) in after {
        let (was, is) = (before[&target].span().unwrap(), left.span().unwrap());
        // The remaining time is computed before all bans are sent, and runs from when the kernel reads them.
        assert!(is <= was + took && was < is + BOUND, "{target}: {was:?} became {is:?}");
    }
    daemon.stop();
}

#[test]
fn bulk_changes_by_hand_are_recorded_completely() {
    let lab = Lab::new(&["attacker"]);
    let begin = Instant::now();
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let change = |verb: &str, timeout: &str| {
        let elements: Vec<_> = (0..BANS).map(|number| format!("{}{timeout}", source(number))).collect();
        let text = format!("{verb} element inet portsentry blocked {{ {} }}\n", elements.join(", "));
        let path = lab.write("elements.nft", &text);
        lab.load_rules(&path);
    };
    let all = usize::try_from(BANS).unwrap();
    // Reading 100,000 rows takes time from the daemon.
    let in_force = || {
        std::thread::sleep(Duration::from_secs(2));
        crate::support::ledger(&lab).len()
    };
    let expect = |bans: usize| {
        let found = within(BOUND * 4, || (in_force() == bans).then_some(()));
        assert!(found.is_some(), "{} of {bans} in the ledger: {:?}", in_force(), daemon.lines_with("ERROR"));
    };
    change("add", " timeout 1h");
    expect(all);
    change("delete", "");
    expect(0);
    // The comparison with the kernel restores bans that are missing without a notification.
    std::thread::sleep(Duration::from_secs(10) * netns_lab::slowness());
    assert!(elements(&lab, 0).expect("the set can be read").is_empty(), "{:?}", daemon.lines_with("restored"));
    let log = daemon.stop();
    // Six hundred per minute, and a few about the suppressed ones.
    let most = 700 + 600 * (1 + usize::try_from(begin.elapsed().as_secs() / 60).unwrap());
    let lines = log.lines().count();
    assert!((600..most).contains(&lines), "{lines} lines about {BANS} bans and their ends, fewer than {most} allowed");
    assert!(log.contains("lines suppressed above 600 per minute: "), "the log counts the others");
    assert!(!log.contains("lost, because the queue was full"), "no change is lost");
}
