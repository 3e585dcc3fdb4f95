//! Tests changes of the wall clock, at run time or between two runs. The kernel's timers do not follow it. The ledger's
//! times do, but it must neither lose a ban nor extend it.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, SystemTime};

use portsentry::clock::boot_time;
use portsentry::ledger::LedgerEntry;
use portsentry::types::Timestamp;
use rustix::time::{ClockId, clock_gettime};

use crate::support::{expect_held, expect_nothing_left, ledger, scan, scene, settings};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, slowness, soon, within};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// The clock of the programs that it starts, see clock.c.
struct Clock {
    offset: File,
    environment: [String; 2],
}

impl Clock {
    fn new(lab: &Lab) -> Self {
        let (source, library) = (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios/clock.c"), lab.path("clock.so"));
        // The compiler is present, because SQLite is built with it.
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(&library).arg(source).status();
        assert!(built.expect("a C compiler is installed").success());
        let path = lab.write("clock", "");
        let offset = File::options().write(true).open(&path).unwrap();
        offset.write_all_at(&0_i64.to_ne_bytes(), 0).unwrap();
        let environment = [format!("LD_PRELOAD={}", library.display()), format!("CLOCK_OFFSET={}", path.display())];
        Self { offset, environment }
    }

    /// Sets the clock to this many seconds from the real time.
    fn set(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    fn start(&self, lab: &Lab, text: &str, expire: &str) -> Daemon {
        let path = lab.write("portsentry.toml", text);
        let [preload, offset] = &self.environment;
        let arguments = ["--expire", expire, "--config", path.to_str().unwrap()];
        Daemon::start_under(lab, &["env", preload, offset], &arguments)
    }
}

/// All entries of the ledger about an address, the newest last; waits for the first.
fn history(lab: &Lab, address: IpAddr) -> Vec<LedgerEntry> {
    let of = || {
        let target = portsentry::types::BanTarget::containing(address);
        let found = lab.read_ledger(|ledger| ledger.bans_of(target)).unwrap().items;
        (!found.is_empty()).then_some(found)
    };
    within(TIMEOUT, of).unwrap_or_else(|| panic!("the ledger has nothing about {address}"))
}

/// The difference between `time` and the clock that is off by `offset`.
fn distance(time: SystemTime, offset: i64) -> Duration {
    let span = Duration::from_secs(offset.unsigned_abs());
    let expected = if offset < 0 { SystemTime::now() - span } else { SystemTime::now() + span };
    time.duration_since(expected).unwrap_or_else(|error| error.duration())
}

/// The remaining time of a ban in the kernel.
fn left(lab: &Lab, address: IpAddr) -> Duration {
    lab.expect_ban(address).expires.expect("the ban has an end")
}

/// How many seconds a test may take.
fn slack() -> u64 {
    100 * u64::from(slowness())
}

#[test]
fn clock_changes_affect_no_kernel_ban() {
    let lab = Lab::new(&["first", "second", "third"]);
    let clock = Clock::new(&lab);
    let daemon = clock.start(&lab, "", "1h");
    let mut banned = Vec::new();
    for (host, offset) in [("first", 0), ("second", 2 * HOUR), ("third", -DAY)] {
        clock.set(offset);
        let address = lab.provoke_ban(host);
        banned.push(address);
        let entry = history(&lab, address).pop().unwrap();
        assert!(
            distance(entry.ban.since, offset) < Duration::from_secs(60) * slowness(),
            "{offset}: the clock is not that of {entry:?}"
        );
        for address in &banned {
            let left = left(&lab, *address).as_secs();
            assert!((3_600 - slack()..=3_600).contains(&left), "{offset}: {address} has {left} s left");
        }
        // Long enough for the check of the clock every second.
        std::thread::sleep(Duration::from_millis(1_500));
        lab.probe("first", banned[0], lab.victim_v4("first").into(), &[901, 902, 903, 904]);
    }
    assert_eq!(lab.banned(), banned);
    assert_eq!(daemon.lines_with("has been blocked via").len(), 3, "an existing ban is not repeated");
    daemon.stop();

    // At the next start, at the real time, the kernel's bans are kept.
    clock.set(0);
    let daemon = clock.start(&lab, "", "1h");
    daemon.expect_line("adminalert: bans that were in the kernel's sets at the start and stay: 3");
    let agree = || ledger(&lab).len() == 3;
    assert!(soon(agree), "{:?}", ledger(&lab));
    assert_eq!(lab.banned(), banned);
    for address in banned {
        assert!(left(&lab, address) <= Duration::from_secs(3_600));
    }
    daemon.stop();
}

#[test]
fn ban_after_reboot_follows_clock_within_bounds() {
    for (offset, passed, most) in [(0, 100, 3_600), (HOUR / 2, 100, 1_800), (-DAY, 10, 3_600)] {
        let lab = Lab::new(&["attacker"]);
        let clock = Clock::new(&lab);
        let daemon = clock.start(&lab, "", "1h");
        let attacker = lab.provoke_ban("attacker");
        history(&lab, attacker);
        daemon.stop();
        lab.nft("delete table inet portsentry");
        clock.set(offset);
        let daemon = clock.start(&lab, "", "24h");
        daemon.expect_line("bans restored from the ledger with their remaining time: 1");
        let ban = lab.expect_ban(attacker);
        let left = ban.expires.unwrap().as_secs();
        let least = most - passed * u64::from(slowness());
        assert!((least..=most).contains(&left), "{offset}: {ban:?}");
        assert_eq!(ban.timeout, Some(Duration::from_secs(3_600)), "{offset}");
        daemon.stop();
    }
}

#[test]
fn clock_set_back_extends_no_ban() {
    let lab = scene();
    let clock = Clock::new(&lab);
    let backends = ["nft", "route", "hosts-deny"];
    let configuration = settings(&lab, &backends, "[escalate]\nfactor = 1\n");
    let time = format!("{}s", 6 * slowness());
    let daemon = clock.start(&lab, &configuration, &time);
    scan(&lab, false);
    backends.iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    clock.set(-DAY);
    expect_nothing_left(&lab);
    // A new scan is banned again.
    scan(&lab, false);
    backends.iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    expect_nothing_left(&lab);
    daemon.stop();
    // By this clock the ledger's ban may look unexpired at the next start. It may then last no longer than its full
    // length.
    clock.set(-2 * DAY);
    let daemon = clock.start(&lab, &configuration, &time);
    std::thread::sleep(Duration::from_secs(1));
    expect_nothing_left(&lab);
    daemon.stop();
}

#[test]
fn clock_set_forward_ends_no_ledger_ban() {
    let lab = Lab::new(&["attacker", "second"]);
    let clock = Clock::new(&lab);
    let daemon = clock.start(&lab, "", "1h");
    let attacker = lab.provoke_ban("attacker");
    history(&lab, attacker);
    clock.set(5 * HOUR);
    daemon.expect_line(
        "adminalert: the clock was set forward by 5h, or the host was suspended; bans in force keep their remaining time",
    );
    // Another ban by the new clock is in force as well.
    let second = lab.provoke_ban("second");
    history(&lab, second);
    // Longer than the interval between two checks of the clock.
    std::thread::sleep(Duration::from_secs(3));
    for address in [attacker, second] {
        let [entry] = &history(&lab, address)[..] else { panic!("one ban is one entry") };
        assert_eq!(entry.ended, None, "{entry:?}");
        let end = entry.ban.until.unwrap();
        assert!(
            distance(end, 6 * HOUR) < Duration::from_secs(120) * slowness(),
            "the ledger's end is that of the kernel: {entry:?}"
        );
        lab.expect_ban(address);
    }
    assert!(daemon.lines_with("its ban has expired").is_empty(), "{:?}", daemon.lines_with("adminalert"));
    daemon.stop();
    // A reboot at the time that the clock has now.
    lab.nft("delete table inet portsentry");
    let daemon = clock.start(&lab, "", "1h");
    daemon.expect_line("bans restored from the ledger with their remaining time: 2");
    let left = left(&lab, attacker).as_secs();
    assert!((3_600 - 2 * slack()..=3_600).contains(&left), "{left}");
    daemon.stop();
}

/// The kernel's timers of bans stand still while the host is suspended, so the daemon's clock must as well.
#[test]
fn suspended_time_does_not_count() {
    const INSIDE: &str = "PORTSENTRY_TEST_SUSPENDED";
    if std::env::var_os(INSIDE).is_some() {
        let [monotonic, with_suspension] = [ClockId::Monotonic, ClockId::Boottime]
            .map(|clock| Timestamp::at(Duration::try_from(clock_gettime(clock)).unwrap()));
        assert!(with_suspension.since(monotonic) > Duration::from_secs(80_000), "the namespace has no effect");
        assert!(boot_time().since(monotonic) < Duration::from_secs(1_000));
        return;
    }
    // In this time namespace the clocks differ as after a day of suspension.
    let mut command = Command::new("unshare");
    command.args(["--time", "--boottime", "86400"]).arg(std::env::current_exe().unwrap());
    let ended = command.args(["--exact", "clock::suspended_time_does_not_count"]).env(INSIDE, "1").output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
}

#[test]
fn clock_set_back_extends_no_ledger_ban() {
    let lab = Lab::new(&["attacker"]);
    let clock = Clock::new(&lab);
    let daemon = clock.start(&lab, "", &format!("{}s", 8 * slowness()));
    let attacker = lab.provoke_ban("attacker");
    history(&lab, attacker);
    clock.set(-DAY);
    daemon.expect_line("adminalert: the clock was set back by 1day; bans in force keep their remaining time");
    daemon.expect_line(&format!("adminalert: Host {attacker} is no longer blocked: its ban has expired"));
    assert!(lab.banned().is_empty());
    assert!(history(&lab, attacker).iter().all(|entry| entry.ended.is_some()), "{:?}", history(&lab, attacker));
    daemon.stop();
}
