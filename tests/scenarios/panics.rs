//! Tests that a panic in the ledger, the backends or the control server leaves the protection working, and that one in
//! the sensor ends the program, so that systemd restarts it. A development build panics where PORTSENTRY_TRIP says.
#![cfg(debug_assertions)]

use crate::support::{expect_held, ledger, routes, scan, scene, settings, text};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, eventually};

fn tripping(lab: &Lab, failpoint: &str, backends: &[&str]) -> Daemon {
    let path = lab.write("portsentry.toml", &settings(lab, backends, ""));
    let variable = format!("PORTSENTRY_TRIP={failpoint}");
    Daemon::start_under(lab, &["env", &variable], &["--expire", "1h", "--config", path.to_str().unwrap()])
}

fn expect_report(daemon: &Daemon, failpoint: &str, thread: &str) {
    let line = daemon.expect_line("internal error (panic)");
    assert!(line.contains(&format!("thread {thread}, src/")), "{line}");
    assert!(line.contains(&format!("failpoint in the {failpoint},?requested by a test; please report it")), "{line}");
}

#[test]
fn panic_in_answer_ends_nothing_else() {
    let lab = scene();
    let daemon = tripping(&lab, "event-loop", &["nft"]);
    let said = lab.operate(&["status"]);
    assert_ne!(said.code, Some(0), "{said:?}");
    expect_report(&daemon, "event-loop", "main");
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    daemon.expect_line("has been blocked");
    let said = lab.operate(&["status"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("1 now, 1 of them in the kernel"), "{said:?}");
    daemon.stop();
}

#[test]
fn panic_in_ledger_loses_no_ban() {
    let lab = scene();
    let daemon = tripping(&lab, "ledger", &["nft"]);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    expect_report(&daemon, "ledger", "ledger");
    scan(&lab, true);
    expect_held(&lab, "nft", true, &daemon);
    eventually("two bans in the ledger", || ledger(&lab).len() == 2);
    daemon.stop();
}

#[test]
fn panic_in_slow_backend_loses_no_ban() {
    let lab = scene();
    let daemon = tripping(&lab, "slow-backends", &["nft", "hosts-deny"]);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    expect_report(&daemon, "slow-backends", "slow-backends");
    scan(&lab, true);
    expect_held(&lab, "nft", true, &daemon);
    expect_held(&lab, "hosts-deny", true, &daemon);
    assert!(text(&lab, "hosts.deny").contains("203.0.113.5"));
    daemon.stop();
}

#[test]
fn panic_during_restore_loses_no_ban() {
    let lab = scene();
    let path = lab.write("portsentry.toml", &settings(&lab, &["nft"], ""));
    let first = Daemon::start(&lab, &["--expire", "1h", "--config", path.to_str().unwrap()]);
    for v6 in [false, true] {
        scan(&lab, v6);
        expect_held(&lab, "nft", v6, &first);
    }
    eventually("two bans in the ledger", || ledger(&lab).len() == 2);
    first.stop();
    // Simulates a reboot.
    lab.nft("delete table inet portsentry");
    let daemon = tripping(&lab, "adopt", &["nft"]);
    expect_report(&daemon, "adopt", "adopt");
    for v6 in [false, true] {
        expect_held(&lab, "nft", v6, &daemon);
    }
    eventually("the mark of an interrupted start is taken away", || !lab.path("state").join("restoring").exists());
    assert_eq!(ledger(&lab).len(), 2, "no ban was mistaken for a lifted one");
    daemon.stop();
}

#[test]
fn reconciler_and_route_monitor_survive_panics() {
    let lab = scene();
    let daemon = tripping(&lab, "comparison,routes", &["route"]);
    scan(&lab, false);
    expect_held(&lab, "route", false, &daemon);
    let expect_panic = |failpoint: &str| {
        let line = format!("failpoint in the {failpoint},?");
        eventually("the panic is reported", || !daemon.lines_with(&line).is_empty());
    };
    expect_panic("comparison");
    let address = lab.v4("attacker").to_string();
    let delete = || lab.run("victim", "ip", &["route", "del", "blackhole", &address, "proto", "112"]);
    // The route monitor panics over the first deletion, so the reconciler, which has panicked before, must find it.
    delete();
    expect_panic("routes");
    expect_held(&lab, "route", false, &daemon);
    eventually("it is counted", || lab.ask(&["status"])["bans"]["repaired"] == 1);
    assert_eq!(daemon.lines_with("unblocked"), [""; 0]);
    // The second deletion is reported although the route monitor has panicked.
    delete();
    daemon.expect_line(&format!("adminalert: Host {address} has been unblocked by a program that deleted its route"));
    assert_eq!(routes(&lab), "");
    daemon.stop();
}

#[test]
fn sensor_panic_ends_program_with_bans_kept() {
    let lab = scene();
    let path = lab.write("portsentry.toml", &settings(&lab, &["nft"], ""));
    let arguments = ["--expire", "1h", "--config", path.to_str().unwrap()];
    let first = Daemon::start(&lab, &arguments);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &first);
    first.kill();
    let ended = Daemon::run_to_end(&lab, &["env", "PORTSENTRY_TRIP=sensor"], &arguments);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(ended.log.contains("thread sensor, src/"), "{}", ended.log);
    assert!(ended.log.contains("portsentry: the sensor thread panicked"), "{}", ended.log);
    assert_eq!(lab.banned().len(), 1);
}

#[test]
fn reload_without_new_capture_changes_nothing() {
    let mut lab = scene();
    let daemon = tripping(&lab, "capture", &["nft"]);
    let old = text(&lab, "portsentry.toml");
    let new = format!("[tcp]\nadvanced_ports = \"1-2000\"\n[allow]\nnetworks = [\"198.51.100.0/24\"]\n{old}");
    lab.write("portsentry.toml", &new);
    let refused = lab.operate(&["reload"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    expect_report(&daemon, "capture", "tokio-rt-worker");
    // A change of the host makes the program create a new snapshot.
    lab.join("late");
    lab.victim_ip("route add default via 10.77.2.66");
    eventually("the gateway is known", || lab.set_text("allowed").contains("10.77.2.66"));
    assert_eq!(lab.set_text("allowed").matches("198.51.100").count(), 0);
    lab.succeed(&["reload"]);
    eventually("the new network is allowed", || lab.set_text("allowed").contains("198.51.100"));
    daemon.stop();
}
