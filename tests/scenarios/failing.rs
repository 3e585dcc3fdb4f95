//! Tests that a failing backend is reported and retried while the others work.

use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::{DENY, expect_held, held, scan, scene, settings, text};
use netns_lab::daemon::Daemon;

#[test]
fn unwritable_hosts_deny_is_written_later() {
    let lab = scene();
    std::fs::remove_file(lab.path("hosts.deny")).unwrap();
    symlink(lab.path("elsewhere"), lab.path("hosts.deny")).unwrap();
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["hosts-deny", "nft"], ""), &["--expire", "1h"]);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    daemon.expect_line("adminalert: ERROR: hosts.deny: ");
    assert!(!daemon.lines_with("is a symbolic link; configure the file that it points to").is_empty());
    assert!(!lab.path("elsewhere").exists(), "a link is not followed");

    std::fs::remove_file(lab.path("hosts.deny")).unwrap();
    lab.write("hosts.deny", DENY);
    expect_held(&lab, "hosts-deny", false, &daemon);
    daemon.expect_line("has been blocked via wrappers with string:");
    assert!(text(&lab, "hosts.deny").starts_with(DENY));
    daemon.stop();
}

#[test]
fn administrators_route_delays_route_ban() {
    let lab = scene();
    let attacker = lab.v4("attacker");
    lab.victim_ip(&format!("route add {attacker}/32 dev attacker proto static"));
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["route", "nft"], ""), &["--expire", "1h"]);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    let line =
        format!("adminalert: ERROR: Host {attacker} could not be blocked via route: another program has a route to");
    daemon.expect_line(&line);
    assert!(held(&lab, "route").is_empty(), "{}", held(&lab, "route"));
    let shown = || lab.run("victim", "ip", &["route", "show", "exact", &format!("{attacker}/32")]);
    assert!(shown().contains("proto static"), "{}", shown());

    lab.victim_ip(&format!("route del {attacker}/32 dev attacker"));
    expect_held(&lab, "route", false, &daemon);
    daemon.expect_line(&format!("attackalert: Host {attacker} has been blocked via dropped route"));
    assert_eq!(daemon.lines_with("could not be blocked via route").len(), 1, "the failure is reported once");
    daemon.stop();
}

#[test]
fn missing_command_is_reported_and_retried() {
    let lab = scene();
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["run", "nft"], ""), &["--expire", "1h"]);
    let (script, aside) = (lab.path("on-ban"), lab.path("aside"));
    std::fs::rename(&script, &aside).unwrap();
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    daemon.expect_line("could not be started: ");
    assert!(text(&lab, "calls").is_empty());
    std::fs::rename(&aside, &script).unwrap();
    expect_held(&lab, "run", false, &daemon);
    daemon.expect_line("succeeded after ");
    assert_eq!(text(&lab, "calls").lines().count(), 1);
    daemon.stop();
}

#[test]
fn untrusted_command_stops_start() {
    let lab = scene();
    let start = |more: &str| {
        let path = lab.write("portsentry.toml", &settings(&lab, &["run"], more));
        Daemon::run_to_end(&lab, &[], &["--config", path.to_str().unwrap()])
    };
    let ended = start("[block.run]\ncommand = [\"/no/such/program\"]\n");
    assert!(!ended.status.success() && ended.log.contains("/no/such/program"), "{ended:?}");
    let open = lab.write("open", "#!/bin/sh\n");
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    let ended = start(&format!("[block.run]\ncommand = [\"{}\"]\n", open.display()));
    assert!(!ended.status.success() && ended.log.contains("chmod go-w"), "{ended:?}");
    assert_eq!(lab.nft("list ruleset"), "", "no route was added");
}
