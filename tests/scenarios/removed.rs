//! Tests manual removals: a deleted route lifts its ban; a flush of all routes or of a hosts.deny line is undone.

use std::net::IpAddr;

use crate::support::{DENY, FAR_NETWORK, expect_held, expect_nothing_left, held, routes, scan, scene, settings, text};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, soon};

/// Blocks addresses of both families as an operator.
fn block_some(lab: &Lab) -> Vec<String> {
    let v4 = (1..=12).map(|end| format!("198.51.100.{end}"));
    let some: Vec<String> = v4.chain((1..=4).map(|end| format!("2001:db8:{end}::"))).collect();
    for one in &some {
        let output = lab.operate(&["block", one]);
        assert_eq!(output.code, Some(0), "{one}: {output:?}");
    }
    some
}

#[test]
fn deleted_route_lifts_whole_ban() {
    for v6 in [false, true] {
        let lab = scene();
        let daemon =
            Daemon::start_configured(&lab, &settings(&lab, &["route", "nft", "hosts-deny"], ""), &["--expire", "1h"]);
        assert_eq!(lab.operate(&["block", "192.0.2.77"]).code, Some(0));
        scan(&lab, v6);
        ["route", "nft", "hosts-deny"].iter().for_each(|backend| expect_held(&lab, backend, v6, &daemon));
        let (family, net) = match v6 {
            false => ("-4", lab.v4("attacker").to_string()),
            true => ("-6", format!("{FAR_NETWORK}/64")),
        };
        lab.run("victim", "ip", &[family, "route", "del", "blackhole", &net, "proto", "112"]);
        daemon.expect_line(&format!("adminalert: Host {net} has been unblocked by a program that deleted its route"));
        let other: IpAddr = "192.0.2.77".parse().unwrap();
        let lifted = || lab.banned() == [other] && !text(&lab, "hosts.deny").contains(net.trim_end_matches("/64"));
        assert!(soon(lifted), "{:?} {}", lab.banned(), text(&lab, "hosts.deny"));
        assert!(routes(&lab).contains("192.0.2.77"), "the other route stays: {}", routes(&lab));
        scan(&lab, v6);
        expect_held(&lab, "route", v6, &daemon);
        daemon.stop();
    }
}

#[test]
fn flushed_routes_are_restored_and_counted() {
    let lab = scene();
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["route"], ""), &["--expire", "1h"]);
    let some = block_some(&lab);
    let there = || some.iter().all(|one| routes(&lab).contains(one.as_str()));
    assert!(there(), "{}", routes(&lab));
    for family in ["-4", "-6"] {
        lab.run("victim", "ip", &[family, "route", "flush", "proto", "112"]);
        assert!(soon(there), "{family}: {}", routes(&lab));
    }
    daemon.expect_line("adminalert: bans that were missing in the kernel's routes and have been restored: ");
    let counted = || lab.ask(&["status"])["bans"]["repaired"] == some.len();
    assert!(soon(counted), "{}", lab.ask(&["status"]));
    assert!(daemon.lines_with("unblocked").is_empty(), "{:?}", daemon.lines_with("unblocked"));
    assert_eq!(lab.ask(&["unblock", "--all"])["unblocked"], some.len());
    expect_nothing_left(&lab);
    daemon.stop();
}

#[test]
fn administrators_route_prevents_ban_and_stays() {
    let lab = scene();
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["route"], ""), &["--expire", "1h"]);
    scan(&lab, false);
    expect_held(&lab, "route", false, &daemon);
    let attacker = lab.v4("attacker");
    lab.victim_ip(&format!("route replace {attacker}/32 dev attacker proto static"));
    daemon.expect_line(&format!(
        "adminalert: ERROR: cannot restore a missing route: {attacker}: another program has a route to"
    ));
    assert!(held(&lab, "route").is_empty(), "{}", held(&lab, "route"));
    daemon.stop();
}

#[test]
fn lost_hosts_deny_line_is_restored() {
    let lab = scene();
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["hosts-deny"], ""), &["--expire", "1h"]);
    scan(&lab, false);
    expect_held(&lab, "hosts-deny", false, &daemon);
    let blocked = text(&lab, "hosts.deny");
    let changed = format!("{DENY}# and another line\n");
    // Overwritten in place, and replaced by a new file, as editors do.
    for how in ["over", "anew"] {
        match how {
            "over" => drop(lab.write("hosts.deny", &changed)),
            _ => {
                let copy = lab.write("hosts.deny~", &changed);
                std::fs::rename(copy, lab.path("hosts.deny")).unwrap();
            }
        }
        expect_held(&lab, "hosts-deny", false, &daemon);
        assert_eq!(text(&lab, "hosts.deny"), changed.clone() + blocked.strip_prefix(DENY).unwrap(), "{how}");
    }
    std::fs::remove_file(lab.path("hosts.deny")).unwrap();
    expect_held(&lab, "hosts-deny", false, &daemon);
    daemon.expect_line(
        "adminalert: bans that were missing in hosts.deny and have been restored (portsentry unblock lifts one): 1",
    );
    let counted = || lab.ask(&["status"])["bans"]["repaired"] == 3;
    assert!(soon(counted), "{}", lab.ask(&["status"]));
    assert_eq!(daemon.lines_with("has been blocked via wrappers").len(), 1, "one ban is one line in the log");
    assert_eq!(lab.ask(&["unblock", &lab.v4("attacker").to_string()])["unblocked"], 1);
    let gone = || !text(&lab, "hosts.deny").contains(&lab.v4("attacker").to_string());
    assert!(soon(gone), "{}", text(&lab, "hosts.deny"));
    daemon.stop();
}
