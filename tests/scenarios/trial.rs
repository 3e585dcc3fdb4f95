//! Tests `portsentry trial`: a running daemon only logs for a while, and then blocks again.

use crate::support::{expect_held, held, scan, scene, settings};
use netns_lab::daemon::Daemon;

const EVERY_BACKEND: [&str; 4] = ["nft", "route", "hosts-deny", "run"];

/// Adds a second host to the lab of [`scene`], which scans during the trial.
fn scan_other(lab: &netns_lab::Lab) {
    lab.probe_v4("other", &crate::support::CLOSED);
}

#[test]
fn trial_suspends_every_backend_and_keeps_bans() {
    let mut lab = scene();
    lab.join("other");
    let other = lab.v4("other");
    let trap = "[trap]\ntcp = true\nudp = true\n";
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &EVERY_BACKEND, trap), &["--expire", "1h"]);
    scan(&lab, false);
    EVERY_BACKEND.iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    assert!(lab.ask(&["status"])["trap"]["ports"].as_u64() > Some(0), "the trap is armed before");

    assert!(lab.ask(&["trial", "1d"])["until"].is_string());
    let started = daemon.expect_line("has started a trial: ");
    let end = started.split_once("until ").and_then(|(_, rest)| rest.split(' ').next()).unwrap();
    assert_eq!(end.len(), "2026-11-28T06:32:00Z".len(), "the end has no fraction of a second: {started}");
    let status = lab.ask(&["status"]);
    assert_eq!(
        (&status["state"], &status["tcp"]["block"]),
        (&"only logging".into(), &"only logged".into()),
        "{status}"
    );
    assert!(status["trial_left_s"].as_u64() > Some(86_000), "{status}");
    assert_eq!((&status["trap"]["ports"], &status["trap"]["udp_ports"]), (&0.into(), &0.into()), "{status}");
    assert!(lab.succeed(&["status"]).contains("`portsentry trial --end` resumes blocking"));
    let refused = lab.operate(&["block", "198.51.100.7"]);
    let why = "scans are only logged, because a trial is running; `portsentry trial --end` resumes blocking";
    assert!(refused.code == Some(1) && refused.err.contains(why), "{refused:?}");
    scan_other(&lab);
    lab.expect_would_block(other.into());
    let refused = lab.operate(&["block", "192.0.2.7"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.expect_line("SIGHUP: the configuration was reloaded");
    lab.run("other", "ip", &["addr", "add", &format!("{}/24", bystander(&lab)), "dev", "uplink"]);
    lab.probe("other", bystander(&lab).into(), lab.victim_v4("other").into(), &crate::support::CLOSED);
    lab.expect_would_block(bystander(&lab).into());
    for backend in EVERY_BACKEND {
        let now = held(&lab, backend);
        assert!(now.contains(&lab.v4("attacker").to_string()), "the earlier ban stays, {backend}: {now}");
        assert!(!now.contains(&other.to_string()) && !now.contains(&bystander(&lab).to_string()), "{backend}: {now}");
    }

    assert!(lab.ask(&["trial", "--end"])["until"].is_null());
    daemon.expect_line("the trial has ended (root");
    assert!(lab.ask(&["status"])["trap"]["ports"].as_u64() > Some(0), "the trap is armed again");
    scan_other(&lab);
    lab.expect_ban(other.into());
    let again = lab.operate(&["trial", "--end"]);
    assert!(again.code == Some(1) && again.err.contains("no trial is running"), "{again:?}");
    daemon.stop();
}

/// Another address of the second host.
fn bystander(lab: &netns_lab::Lab) -> std::net::Ipv4Addr {
    let [a, b, c, _] = lab.v4("other").octets();
    [a, b, c, 77].into()
}

#[test]
fn trial_continues_after_restart_until_ended() {
    let lab = scene();
    let start = || Daemon::start_configured(&lab, &settings(&lab, &["nft"], ""), &["--expire", "1h"]);
    let daemon = start();
    lab.succeed(&["trial", "1d"]);
    daemon.stop();
    let daemon = start();
    let continues = daemon.expect_line("the trial continues: scans are only logged for 23h ");
    assert!(continues.contains("m more; "), "two units: {continues}");
    scan(&lab, false);
    lab.expect_would_block(lab.v4("attacker").into());
    assert_eq!(held(&lab, "nft"), "");
    lab.succeed(&["trial", "--end"]);
    daemon.stop();
    let daemon = start();
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    let log = daemon.stop();
    assert!(!log.contains("the trial continues"), "{log}");
}

#[test]
fn trial_ends_by_itself() {
    let lab = scene();
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["nft"], ""), &["--expire", "1h"]);
    lab.succeed(&["trial", "1s"]);
    daemon.expect_line("the trial has ended (it has expired)");
    assert_eq!(lab.ask(&["status"])["state"], "blocking");
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    let refused = lab.operate(&["trial", "31d"]);
    assert!(refused.code == Some(2) && refused.err.contains("30 days"), "{refused:?}");
    daemon.stop();
}
