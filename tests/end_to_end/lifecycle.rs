//! Tests start, end, crash and restart: what the kernel keeps enforcing, and what the next start finds.

use std::time::Duration;

use rustix::process::Signal;

use netns_lab::daemon::{Daemon, trace_file};
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, slowness, within};

/// Asserts that `end` takes less than a second. A few retries allow for a busy machine.
fn within_a_second(end: impl Fn() -> Duration) {
    let mut all = Vec::new();
    while all.len() < 5 {
        all.push(end());
        if all.last().is_some_and(|took| *took < Duration::from_secs(1) * slowness()) {
            return;
        }
    }
    panic!("it took {all:?}");
}

#[test]
fn signals_end_program_and_keep_bans() {
    for signal in [Signal::TERM, Signal::INT] {
        within_a_second(|| {
            let lab = Lab::new(&["attacker"]);
            let daemon = Daemon::start(&lab, &["--expire", "24h"]);
            let attacker = lab.provoke_ban("attacker");
            let (ended, took) = daemon.end_by(signal);
            assert_eq!(ended.status.code(), Some(0), "{signal:?}: {ended:?}");
            assert_eq!(lab.banned(), [attacker], "the kernel keeps the bans");
            took
        });
    }
}

#[test]
fn daemon_ends_within_second_of_flood() {
    within_a_second(end_during_flood);
}

fn end_during_flood() -> Duration {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.provoke_ban("attacker");
    let (source, target) = lab.ends_v4("attacker");
    let ports: Vec<u16> = (1..=1000).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                lab.probe("attacker", source, target, &ports);
            }
        });
        daemon.expect_line("is already blocked Ignoring");
        let (ended, took) = daemon.end_by(Signal::TERM);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        took
    })
}

#[test]
fn killed_during_scan_leaves_working_rules() {
    let lab = Lab::new(&["first", "second", "third"]);
    let _services = Services::open(&lab, &EIGHT);
    let bystander = lab.victim_v4("third").into();
    for host in ["first", "second"] {
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        let before = lab.banned();
        let (source, target) = (lab.v4(host).into(), lab.victim_v4(host).to_string());
        let mut scanner = lab.command(host, "nmap");
        scanner.args(["-n", "-Pn", "-sS", "-p1-1024", "--max-retries", "1", &target]);
        let mut scanner = scanner.stdout(std::process::Stdio::null()).spawn().expect("nmap runs");
        daemon.expect_line(&format!("scan from host: {source}/{source}"));
        daemon.kill();

        let after = lab.banned();
        assert!(before.iter().all(|address| after.contains(address)), "{before:?} became {after:?}");
        assert!(!lab.nft("list chain inet portsentry prerouting").is_empty());
        assert_eq!(lab.served("third", bystander, &EIGHT, 1), 8);
        if after.contains(&source) {
            assert!(!lab.is_served(host, target.parse().unwrap(), EIGHT[0], Duration::from_millis(300)));
        }
        scanner.kill().expect("it is a child process of the test");
        scanner.wait().expect("nmap ends");

        let next = Daemon::start(&lab, &["--expire", "24h"]);
        assert!(lab.banned().starts_with(&after), "the next start keeps {after:?}");
        lab.probe(host, source, target.parse().unwrap(), &[901, 902, 903, 904]);
        lab.expect_ban(source);
        assert_eq!(lab.served("third", bystander, &EIGHT, 1), 8);
        next.stop();
    }
}

#[test]
fn second_start_keeps_remaining_times() {
    let lab = Lab::new(&["attacker", "other"]);
    let attacker = {
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        let attacker = lab.provoke_ban("attacker");
        daemon.stop();
        attacker
    };
    let before = lab.expect_ban(attacker);
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    let after = lab.expect_ban(attacker);
    assert_eq!(after.timeout, before.timeout);
    assert!(after.expires <= before.expires, "{before:?} became {after:?}");

    lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &[901, 902, 903, 904]);
    daemon.expect_line(&format!("Host: {attacker}/{attacker} is already blocked Ignoring"));
    let other = lab.provoke_ban("other");
    assert_eq!(lab.expect_ban(other).timeout, Some(Duration::from_secs(3600)), "new bans get the new expiry");
}

#[test]
fn new_scan_after_unblock_bans_again() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    lab.nft(&format!("delete element inet portsentry blocked {{ {attacker} }}"));
    lab.probe_until_banned("attacker", lab.victim_v4("attacker").into());
    assert_eq!(lab.banned(), [attacker]);
    daemon.stop();
}

#[test]
fn daemon_runs_no_other_program() {
    let lab = Lab::new(&["attacker"]);
    let trace = trace_file(&lab);
    // -D: the tracer detaches, so that the signalled process is the program itself.
    let tracer = ["strace", "-D", "-f", "-e", "trace=execve,execveat", "-o", trace.to_str().unwrap()];
    let daemon = Daemon::start_under(&lab, &tracer, &["--expire", "24h"]);
    lab.provoke_ban("attacker");
    let (ended, _) = daemon.end_by(Signal::TERM);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");

    let read = || std::fs::read_to_string(&trace).ok().filter(|text| text.contains("+++ exited with 0 +++"));
    let text = within(TIMEOUT, read).expect("the trace is complete");
    let executed: Vec<_> = text.lines().filter(|line| line.contains("exec")).collect();
    assert_eq!(executed.len(), 1, "it executes nothing after its own start: {executed:#?}");
}
