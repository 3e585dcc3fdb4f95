//! Tests `kill -9` at random moments: no ban is lost, and none stays forever.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use portsentry::types::BanTarget;
use simulation::chance::Chance;

use crate::support::{CLOSED, DENY, expect_nothing_left, ledger, routes, scan, scene, settings, text};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, slowness, soon, within};

/// Takes the seed from `SEED` or from the clock, and prints it.
fn chance() -> Chance {
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let new = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::from(since.subsec_nanos()));
    let seed = given.unwrap_or_else(new);
    println!("SEED={seed}");
    Chance::new(seed, "kills", 0)
}

/// Runs `count` rounds of a start, a scan from a new address, and a kill at a random moment. If they cause too few
/// bans, up to `count` longer rounds follow. After each round `check` inspects the state and returns the number of
/// bans.
fn rounds(lab: &Lab, text: &str, count: u8, mut check: impl FnMut(usize) -> usize) {
    let count = (count / u8::try_from(slowness()).unwrap()).max(5);
    let enough = usize::from(count / 10 + 1);
    let path = lab.write("portsentry.toml", text);
    let arguments = ["--expire", "1h", "--config", path.to_str().unwrap()];
    let sources = lab.add_addresses("attacker", 10..10 + 2 * count);
    let begin = Instant::now();
    Daemon::start(lab, &arguments).kill();
    // From the start to shortly after the first ban.
    let longest = begin.elapsed() * 3 / 2 + Duration::from_millis(50);
    let mut chance = chance();
    let target = lab.victim_v4("attacker").into();
    let mut banned = 0;
    for (round, source) in sources.into_iter().enumerate() {
        if round >= count.into() && banned >= enough {
            break;
        }
        let longest = if round < count.into() { longest } else { 3 * longest };
        let daemon = Daemon::spawn(lab, &[], &arguments);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    lab.probe("attacker", source.into(), target, &CLOSED);
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            std::thread::sleep(chance.between(Duration::ZERO, longest));
            daemon.kill();
            done.store(true, Ordering::Relaxed);
        });
        banned = check(round);
    }
    assert!(banned >= enough, "{banned} bans in twice {count} rounds are too few");
}

fn recorded(lab: &Lab) -> BTreeSet<IpAddr> {
    ledger(lab).iter().map(|entry| entry.ban.target.element()).collect()
}

#[test]
fn hundred_kills_leave_correct_elements() {
    let lab = Lab::new(&["attacker"]);
    let mut known = BTreeSet::new();
    rounds(&lab, "", 100, |round| {
        let held: BTreeSet<IpAddr> = lab.banned().into_iter().collect();
        let lost: Vec<_> = known.difference(&held).collect();
        assert!(lost.is_empty(), "round {round}: {lost:?}");
        known = held;
        known.len()
    });
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    daemon.expect_line("bans that were in the kernel's sets at the start and stay: ");
    daemon.stop();
    let held: BTreeSet<IpAddr> = lab.banned().into_iter().collect();
    assert_eq!(held, known);
    assert_eq!(recorded(&lab), known, "the ledger and the kernel agree");
    let hour = Duration::from_secs(3_600);
    for ban in lab.set("blocked") {
        let sound = ban.timeout.is_some_and(|timeout| timeout <= hour) && ban.expires <= ban.timeout;
        assert!(sound, "{ban:?}");
    }
    assert!(ledger(&lab).iter().all(|entry| entry.ban.until.is_some()));

    // Simulates a reboot.
    lab.nft("delete table inet portsentry");
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    daemon.expect_line(&format!("bans restored from the ledger with their remaining time: {}", known.len()));
    assert_eq!(lab.banned().into_iter().collect::<BTreeSet<_>>(), known);
    daemon.stop();
}

/// The addresses blocked by routes, and those blocked by lines of hosts.deny.
fn held_by_routes_and_lines(lab: &Lab) -> [BTreeSet<IpAddr>; 2] {
    let (routes, lines) = (routes(lab), text(lab, "hosts.deny"));
    let routes = routes.lines().filter_map(|line| line.split_whitespace().find_map(|word| word.parse().ok()));
    let lines = lines.lines().filter_map(|line| line.strip_prefix("ALL: ")?.parse().ok());
    [routes.collect(), lines.collect()]
}

#[test]
fn kills_leave_only_ledger_bans() {
    let lab = scene();
    let configuration = settings(&lab, &["route", "hosts-deny"], "");
    let mut known = BTreeSet::new();
    rounds(&lab, &configuration, 20, |round| {
        let recorded = recorded(&lab);
        let lost: Vec<_> = known.difference(&recorded).collect();
        assert!(lost.is_empty(), "round {round}: the ledger has lost {lost:?}");
        known = recorded;
        known.len()
    });
    // Added just before a kill, perhaps without an entry in the ledger. They have one after the start.
    let left = held_by_routes_and_lines(&lab).into_iter().flatten();
    let expected: BTreeSet<_> = known.iter().copied().chain(left).collect();
    let daemon = Daemon::start_configured(&lab, &configuration, &["--expire", "1h"]);
    let agree = within(TIMEOUT, || {
        let recorded = recorded(&lab);
        (held_by_routes_and_lines(&lab) == [recorded.clone(), recorded.clone()]).then_some(recorded)
    });
    let agreed = agree.unwrap_or_else(|| panic!("{known:?}\n{:?}\n{}", held_by_routes_and_lines(&lab), daemon.log()));
    assert_eq!(agreed, expected, "{known:?}\n{}", daemon.log());
    assert!(text(&lab, "hosts.deny").starts_with(DENY));
    daemon.stop();
    assert_eq!(recorded(&lab), agreed);
}

#[test]
fn route_ban_of_killed_daemon_expires() {
    let lab = scene();
    let configuration = settings(&lab, &["route", "hosts-deny"], "");
    let daemon = Daemon::start_configured(&lab, &configuration, &["--expire", &format!("{}s", 6 * slowness())]);
    scan(&lab, false);
    crate::support::expect_held(&lab, "route", false, &daemon);
    crate::support::expect_held(&lab, "hosts-deny", false, &daemon);
    let written = || recorded(&lab).contains(&lab.v4("attacker").into());
    assert!(soon(written));
    daemon.kill();
    std::thread::sleep(Duration::from_secs(7) * slowness());
    assert!(!routes(&lab).is_empty(), "no process was running that could have removed it");
    let daemon = Daemon::start_configured(&lab, &configuration, &["--expire", "1h"]);
    expect_nothing_left(&lab);
    daemon.stop();
}

#[test]
fn ban_during_start_has_one_row() {
    let hosts = ["first", "second", "third", "fourth", "fifth", "sixth"];
    let lab = Lab::new(&hosts);
    for host in hosts {
        let daemon = Daemon::start(&lab, &["--expire", "1h"]);
        lab.provoke_ban(host);
        daemon.stop();
    }
    for host in hosts {
        let target = BanTarget::containing(lab.v4(host).into());
        let rows = lab.read_ledger(|ledger| ledger.bans_of(target)).unwrap().items;
        let [row] = &rows[..] else { panic!("{rows:#?}") };
        assert!(row.ended.is_none() && row.ban.class.is_some(), "{row:?}");
    }
}
