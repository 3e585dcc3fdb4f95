//! Tests a start that only logs: bans of earlier runs stay in force until they end or an operator lifts them.

use crate::support::{CLOSED, DENY, expect_held, expect_nothing_left, held, routes, scan, scene, settings, text};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, eventually, slowness, soon, within};

const BACKENDS: [&str; 3] = ["nft", "route", "hosts-deny"];

/// Targets that are banned by hand before the start that only logs, each named after the way in which its ban ends.
const UNBLOCKED: &str = "198.51.100.7";
const ALLOWED: &str = "198.51.100.8";
const OTHER: &str = "198.51.100.9";
const EXPIRED: &str = "198.51.100.6";

fn is_held(lab: &Lab, backend: &str, address: &str) -> bool {
    held(lab, backend).contains(address)
}

fn expect_released(lab: &Lab, address: &str, why: &str) {
    for backend in BACKENDS {
        assert!(
            soon(|| !is_held(lab, backend, address)),
            "{why}: {backend} still blocks {address}: {}",
            held(lab, backend)
        );
    }
}

#[test]
fn earlier_bans_stay_liftable_and_end() {
    let mut lab = scene();
    lab.join("other");
    let config = settings(&lab, &[&BACKENDS[..], &["run"]].concat(), "");
    let daemon = Daemon::start_configured(&lab, &config, &["--expire", "1h"]);
    scan(&lab, false);
    BACKENDS.iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    let short = format!("{}s", 20 * slowness());
    lab.succeed(&["block", EXPIRED, "--expire", &short]);
    for address in [UNBLOCKED, ALLOWED, OTHER] {
        lab.succeed(&["block", address]);
    }
    let calls = |phase: &str| text(&lab, "calls").lines().filter(|call| call.starts_with(phase)).count();
    eventually("hosts.deny and the command follow", || is_held(&lab, "hosts-deny", OTHER) && calls("begin|") == 5);
    daemon.stop();

    let daemon = Daemon::start_configured(&lab, &config, &["--expire", "1h", "--log-only"]);
    let adopted = || (lab.ask(&["status"])["bans"]["intended"] == 5).then_some(());
    let status = || lab.succeed(&["status"]);
    assert!(within(TIMEOUT, adopted).is_some(), "{}", status());
    assert_eq!(lab.ask(&["status"])["state"], "only logging");
    assert!(status().contains("no further source; 5 earlier bans in force"), "{}", status());
    assert_eq!(lab.ask(&["status"])["trap"]["ports"], 0, "{}", status());
    let attacker = lab.v4("attacker").to_string();
    assert!(lab.succeed(&["list"]).contains(&attacker), "{}", lab.succeed(&["list"]));
    let explained = lab.ask(&["explain", &attacker]);
    assert!(explained["blocked"]["left_s"].as_u64() > Some(3_000), "{explained}");
    for backend in BACKENDS {
        assert!(is_held(&lab, backend, &attacker) && is_held(&lab, backend, OTHER), "{backend}: the bans stay");
    }
    let other = lab.v4("other");
    lab.probe("other", other.into(), lab.victim_v4("other").into(), &CLOSED);
    lab.expect_would_block(other.into());
    assert!(BACKENDS.iter().all(|backend| !is_held(&lab, backend, &other.to_string())), "no new ban begins");
    assert_eq!(lab.operate(&["block", "192.0.2.7"]).code, Some(1), "nor does one by hand");

    lab.succeed(&["unblock", UNBLOCKED]);
    expect_released(&lab, UNBLOCKED, "unblock lifts an earlier ban");
    assert_eq!(lab.ask(&["allow", ALLOWED])["lifted"], 1);
    expect_released(&lab, ALLOWED, "allow lifts an earlier ban");
    let allowed = lab.nft("list set inet portsentry allowed");
    assert!(allowed.contains(ALLOWED), "the kernel lets it pass: {allowed}");
    expect_released(&lab, EXPIRED, "an earlier ban ends");
    assert!(
        soon(|| lab.ask(&["status"])["bans"]["intended"] == 2),
        "the attacker and {OTHER} are left: {}{}",
        status(),
        lab.succeed(&["list"])
    );
    assert_eq!(lab.ask(&["unblock", "--all"])["unblocked"], 2);
    expect_nothing_left(&lab);
    eventually("the command is undone for every ban", || calls("end|") == 5);
    assert_eq!(calls("begin|"), 5, "no command begins a ban");
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn changed_backend_takes_over_earlier_bans() {
    let lab = scene();
    let config = settings(&lab, &["nft", "hosts-deny"], "");
    let daemon = Daemon::start_configured(&lab, &config, &["--expire", "1h"]);
    lab.succeed(&["block", OTHER]);
    eventually("hosts.deny follows", || is_held(&lab, "hosts-deny", OTHER));
    daemon.stop();

    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["route"], ""), &["--log-only"]);
    eventually("the ban has moved", || {
        let tables = lab.nft("list tables");
        is_held(&lab, "route", OTHER) && tables.is_empty() && text(&lab, "hosts.deny") == DENY
    });
    assert_eq!(lab.ask(&["unblock", OTHER])["unblocked"], 1);
    expect_nothing_left(&lab);
    daemon.stop();
}

#[test]
fn nothing_is_created_without_earlier_bans() {
    let lab = scene();
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &BACKENDS, ""), &["--log-only"]);
    scan(&lab, false);
    lab.expect_would_block(lab.v4("attacker").into());
    assert_eq!(lab.nft("list tables"), "");
    assert_eq!(routes(&lab), "");
    assert!(lab.succeed(&["status"]).contains("nothing; `portsentry list --would-block`"));
    daemon.stop();
    expect_nothing_left(&lab);
}

#[test]
fn confirm_has_no_effect_without_blocking() {
    let lab = scene();
    let config = settings(&lab, &["nft"], "");
    let daemon = Daemon::start_configured(&lab, &config, &[]);
    lab.succeed(&["block", OTHER]);
    daemon.stop();
    let daemon = Daemon::start_configured(&lab, &config, &["--log-only", "--confirm", "1s"]);
    assert!(lab.ask(&["status"])["trial_left_s"].is_null(), "{}", lab.succeed(&["status"]));
    assert_eq!(lab.operate(&["confirm"]).code, Some(1));
    assert!(is_held(&lab, "nft", OTHER));
    daemon.stop();
}
