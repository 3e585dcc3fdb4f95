//! Tests `--confirm`: without a confirmation all bans end, so that an operator cannot lock himself out.

use std::time::Duration;

use crate::support::{
    expect_held, expect_nothing_left, held, is_served_at_last, run_settings, scan, scene, settings, text,
};
use netns_lab::daemon::Daemon;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{slowness, soon};

const EVERY_BACKEND: [&str; 4] = ["nft", "route", "hosts-deny", "run"];

const OVER: &str = "`portsentry confirm` was not run in time: all bans are lifted, and scans are only logged from now on; restart portsentry to block again";

#[test]
fn unconfirmed_trial_lifts_every_ban() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let limit = 15 * slowness();
    let time = format!("{limit}s");
    let arguments = ["--expire", "1h", "--confirm", &time];
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &EVERY_BACKEND, ""), &arguments);
    let status = lab.ask(&["status"]);
    assert_eq!(status["state"], "on trial", "{status}");
    assert!(status["trial_left_s"].as_u64().is_some_and(|left| left <= limit.into()), "{status}");
    for v6 in [false, true] {
        scan(&lab, v6);
        EVERY_BACKEND.iter().for_each(|backend| expect_held(&lab, backend, v6, &daemon));
    }
    daemon.expect_line(OVER);
    expect_nothing_left(&lab);
    assert!(soon(|| text(&lab, "calls").matches("end|").count() == 2), "{}", text(&lab, "calls"));
    assert!(is_served_at_last(&lab, false) && is_served_at_last(&lab, true));

    scan(&lab, false);
    daemon.expect_line("attackalert: Ignoring TCP response per configuration file setting.");
    assert!(is_served_at_last(&lab, false));
    let (status, output) = (lab.ask(&["status"]), lab.operate(&["confirm"]));
    assert_eq!(status["state"], "only logging", "{status}");
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("--confirm has timed out"), "{output:?}");
    let output = lab.operate(&["block", "192.0.2.7"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.expect_line("SIGHUP: the configuration was reloaded");
    scan(&lab, true);
    expect_nothing_left(&lab);
    assert!(is_served_at_last(&lab, true), "a reload does not confirm");
    daemon.stop();
    expect_nothing_left(&lab);
}

#[test]
fn confirmed_trial_keeps_blocking() {
    let lab = scene();
    let limit = Duration::from_secs(8) * slowness();
    let time = format!("{}s", limit.as_secs());
    let arguments = ["--expire", "1h", "--confirm", &time];
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["nft"], ""), &arguments);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    let output = lab.operate(&["confirm"]);
    assert_eq!((output.code, output.out.as_str()), (Some(0), "confirmed: blocking continues\n"), "{output:?}");
    assert_eq!(lab.operate(&["confirm"]).code, Some(1), "there is nothing more to confirm");
    std::thread::sleep(limit + Duration::from_millis(500));
    scan(&lab, true);
    expect_held(&lab, "nft", true, &daemon);
    expect_held(&lab, "nft", false, &daemon);
    let log = daemon.stop();
    assert!(!log.contains(OVER), "{log}");
}

#[test]
fn ban_waiting_for_command_ends_with_trial() {
    let lab = scene();
    let (time, longer) = (format!("{}s", 5 * slowness()), 8 * slowness());
    let more = run_settings(&lab, &format!("first = true\ntimeout = \"{}s\"\n", 5 * longer));
    lab.program("on-ban", &format!("#!/bin/sh\n[ \"$1\" = end ] || sleep {longer}\n"));
    let arguments = ["--expire", "1h", "--confirm", &time];
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["run", "nft", "hosts-deny"], &more), &arguments);
    scan(&lab, false);
    daemon.expect_line(OVER);
    daemon.expect_line(" before the block");
    // Time for the effects of the command's end.
    std::thread::sleep(Duration::from_millis(500));
    assert!(held(&lab, "nft").is_empty(), "{}", daemon.log());
    expect_nothing_left(&lab);
    daemon.stop();
}
