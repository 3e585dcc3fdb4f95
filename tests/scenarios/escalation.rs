//! Tests longer bans for repeat offenders, in the kernel and across restarts.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use portsentry::engine::{Class, Grade};
use portsentry::ledger::{BanAuthor, BanRecord, Ledger, LoadedState};
use portsentry::types::{Backend, BanTarget, Expiry};

use crate::support::{CLOSED, expect_held, expect_nothing_left, scan, scene, settings};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, slowness, soon, within};

/// How many seconds the first ban lasts.
fn first() -> u64 {
    2 * u64::from(slowness())
}

fn escalating() -> String {
    format!("expire = \"{}s\"\n[escalate]\nfactor = 3\n", first())
}

#[test]
fn unblock_all_removes_strikes() {
    let lab = Lab::new(&["attacker", "other"]);
    let settings = "expire = \"1h\"\n[escalate]\nfactor = 3\n";
    let daemon = Daemon::start_configured(&lab, settings, &[]);
    let hour = Some(Duration::from_secs(3_600));
    for word in ["--all", "--all", &lab.v4("attacker").to_string()] {
        for host in ["attacker", "other"] {
            let source = lab.provoke_ban(host);
            assert_eq!(lab.expect_ban(source).timeout, hour, "a lifted ban is no strike");
            // The ledger may not have the ban yet.
            let explained = || lab.ask(&["explain", &source.to_string()]);
            let agree = || explained()["history"][0]["strikes"] == explained()["strikes"];
            assert!(soon(agree), "history and summary count alike: {}", explained());
            assert_eq!(explained()["strikes"], 1, "only the ban in force");
        }
        lab.succeed(&["unblock", word]);
        lab.succeed(&["unblock", "--all"]);
        lab.expect_banned(&[]);
    }
    daemon.stop();
    // The ledger agrees.
    let daemon = Daemon::start_configured(&lab, settings, &[]);
    let source = lab.provoke_ban("attacker");
    assert_eq!(lab.expect_ban(source).timeout, hour);
    daemon.stop();
}

/// Makes the attacker scan, and waits until it is banned for `seconds`: the kernel's trap may ban it for the usual time
/// before the program judges it.
fn expect_ban_for(lab: &Lab, seconds: u64) {
    let (source, target) = lab.ends_v4("attacker");
    lab.probe("attacker", source, target, &CLOSED);
    let timeout = Some(Duration::from_secs(seconds));
    let banned = || lab.set("blocked").iter().any(|ban| (ban.address, ban.timeout) == (source, timeout));
    assert!(soon(banned), "not for {seconds} s: {:?}", lab.set("blocked"));
}

/// Asserts that the attacker is banned for `seconds`, and not longer.
fn blocked_for(lab: &Lab, seconds: u64) {
    expect_ban_for(lab, seconds);
    lab.expect_banned(&[]);
}

#[test]
fn second_ban_lasts_three_times_as_long() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, &escalating(), &[]);
    blocked_for(&lab, first());
    blocked_for(&lab, 3 * first());
    daemon.expect_line(&format!("for {}s", 3 * first()));
    daemon.expect_line(&format!("adminalert: earlier bans of Host {}: 1", lab.v4("attacker")));
    daemon.stop();
}

#[test]
fn second_ban_after_restart_is_longer() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, &escalating(), &[]);
    blocked_for(&lab, first());
    daemon.stop();
    let daemon = Daemon::start_configured(&lab, &escalating(), &[]);
    blocked_for(&lab, 3 * first());
    daemon.stop();
}

#[test]
fn first_ban_after_start_counts_strike() {
    let count = 50_000 / slowness();
    let lab = Lab::new(&["attacker"]);
    let now = SystemTime::now();
    let ban = |target, ago: u64| {
        let since = now - Duration::from_secs(ago);
        let ban = BanRecord::wanted_by(
            BanAuthor::Detector,
            target,
            since,
            Expiry::After(Duration::from_secs(60)),
            Backend::Nft,
        );
        BanRecord { class: Some(Class::Syn), ..ban }
    };
    // The strike of the oldest ban is loaded last.
    let others = (0..count).map(|number| ban(BanTarget::V4((0x0b00_0000 + number).into()), 3_600));
    let attacker = ban(BanTarget::containing(lab.v4("attacker").into()), 7_200);
    let (mut ledger, _) = Ledger::open(&netns_lab::own_state(&lab.path("state"))).unwrap();
    ledger.record(&others.chain([attacker]).collect::<Vec<_>>()).unwrap();
    drop(ledger);
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n[escalate]\nfactor = 3\n", &[]);
    expect_ban_for(&lab, 3 * 3_600);
    daemon.stop();
}

/// Makes one ban over IPv4; returns the strikes in the ledger.
fn strikes(backends: &[&str]) -> u32 {
    let lab = scene();
    let time = format!("{}s", 6 * slowness());
    let daemon = Daemon::start_configured(&lab, &settings(&lab, backends, ""), &["--expire", &time]);
    scan(&lab, false);
    backends.iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    expect_nothing_left(&lab);
    daemon.stop();
    let target = BanTarget::containing(IpAddr::from(lab.v4("attacker")));
    let hour = Duration::from_secs(3_600);
    let loaded = lab.read_ledger(|ledger| LoadedState::read(ledger, hour, SystemTime::now(), usize::MAX)).unwrap();
    loaded.histories.iter().find(|history| history.target == target).map_or(0, |history| history.strikes)
}

#[test]
fn ban_by_several_backends_is_one_strike() {
    let sets: [&[&str]; 5] =
        [&["nft"], &["nft", "route"], &["hosts-deny"], &["run"], &["nft", "hosts-deny", "run", "route"]];
    let counted = std::thread::scope(|scope| {
        let runs: Vec<_> = sets.iter().map(|backends| scope.spawn(|| (*backends, strikes(backends)))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(counted.iter().all(|(_, strikes)| *strikes == 1), "{counted:?}");
}

/// True if a scanner of twenty ports gets a short ban, with room for no full ban, one short ban in a day, and one short ban
/// `ago`, before the start.
fn gets_short_ban(ago: Duration) -> bool {
    let lab = Lab::new(&["scanner"]);
    let (mut ledger, _) = Ledger::open(&netns_lab::own_state(&lab.path("state"))).unwrap();
    let now = SystemTime::now();
    let ban = |number: u8, since, seconds| {
        let target = BanTarget::V4([192, 0, 2, number].into());
        let expiry = Expiry::After(Duration::from_secs(seconds));
        let ban = BanRecord::wanted_by(BanAuthor::Detector, target, since, expiry, Backend::Nft);
        BanRecord { class: Some(Class::Syn), grade: Some(Grade::Forgeable), ..ban }
    };
    let standing = (1..=30).map(|number| ban(number, now - Duration::from_secs(3_600), 86_400));
    let short = BanRecord { capped: true, ..ban(99, now - ago, 300) };
    ledger.record(&standing.chain([short]).collect::<Vec<_>>()).unwrap();
    drop(ledger);
    let settings = "[block]\nmax_forgeable_bans = 32\n[trap]\ntcp = false\n";
    let daemon = Daemon::start_configured(&lab, settings, &["--expire", "24h"]);
    assert!(soon(|| lab.banned().len() == 30), "{:?}", lab.banned());
    let (source, target) = lab.ends_v4("scanner");
    lab.probe("scanner", source, target, &(901..=920).collect::<Vec<_>>());
    let judged = within(TIMEOUT, || {
        let is_banned = lab.banned().contains(&source);
        let is_withheld = lab.ask(&["status"])["bans"]["withheld"] != 0;
        (is_banned || is_withheld).then_some(is_banned)
    });
    daemon.stop();
    judged.unwrap()
}

#[test]
fn restart_allows_no_more_short_bans() {
    let hour = Duration::from_secs(3_600);
    assert!(gets_short_ban(25 * hour), "the ceiling of yesterday");
    assert!(!gets_short_ban(23 * hour), "the ceiling of this day");
}
