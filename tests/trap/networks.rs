//! Tests bans of whole networks, by an operator and by the program.

use std::net::IpAddr;
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually, slowness, within};

fn served(lab: &Lab, target: IpAddr) -> bool {
    lab.is_served("other", target, 80, Duration::from_millis(400) * slowness())
}

fn served_at_last(lab: &Lab, target: IpAddr) -> bool {
    lab.is_served("other", target, 80, TIMEOUT)
}

/// Waits until `network` is, or is not, among the networks that the kernel blocks.
fn expect_network(lab: &Lab, network: &str, there: bool) {
    let sets = || [lab.set_text("blocked_nets"), lab.set_text("blocked_nets6")].concat();
    let found = within(TIMEOUT, || (sets().contains(&format!("{network} ")) == there).then_some(()));
    assert!(found.is_some(), "{network} {there}: {}", sets());
}

#[test]
fn operator_network_ban_survives_flush_and_restart() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let bans: [(&str, IpAddr); 2] =
        [("10.77.1.2/31", lab.victim_v4("other").into()), ("fd77:0:0:100::/56", lab.victim_v6("other").into())];
    lab.run("other", "ip", &["addr", "add", "fd77:0:0:1ff::2/64", "dev", "uplink", "nodad"]);
    lab.victim_ip("route add fd77:0:0:1ff::/64 dev other");
    lab.run("other", "ip", &["route", "replace", "fd77:0:0:1::1", "dev", "uplink", "src", "fd77:0:0:1ff::2"]);
    assert!(!lab.nft("list ruleset").contains("nets"), "the network sets are not needed yet");
    for (network, target) in bans {
        assert!(served_at_last(&lab, target), "{network} before");
        lab.succeed(&["block", network, "--expire", "2h"]);
        expect_network(&lab, network, true);
        assert!(!served(&lab, target), "{network} blocked");
    }
    lab.nft("flush ruleset");
    daemon.expect_line("was missing and has been created again");
    for (network, target) in bans {
        expect_network(&lab, network, true);
        assert!(!served(&lab, target), "{network} after the flush");
    }

    daemon.stop();
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for (network, target) in bans {
        expect_network(&lab, network, true);
        assert!(!served(&lab, target), "{network} after the restart");
    }
    daemon.stop();

    lab.nft("delete table inet portsentry");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    daemon.expect_line("bans restored from the ledger with their remaining time: ");
    for (network, target) in bans {
        expect_network(&lab, network, true);
        assert!(!served(&lab, target), "{network} is restored from the ledger");
        lab.succeed(&["unblock", network]);
        expect_network(&lab, network, false);
        assert!(served_at_last(&lab, target), "{network} unblocked");
    }
    daemon.stop();
}

#[test]
fn overlapping_networks_are_one_reported_ban() {
    let lab = Lab::new(&["other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.succeed(&["block", "198.51.100.0/25", "--expire", "1h"]);
    lab.succeed(&["block", "198.51.100.0/24", "--expire", "2h"]);
    daemon.expect_line("198.51.100.0/25 has been unblocked by the ban of 198.51.100.0/24 around it");
    expect_network(&lab, "198.51.100.0/25", false);
    lab.succeed(&["block", "198.51.100.64/26", "--expire", "1h"]);
    let answer = lab.operate(&["block", "198.51.100.64/26", "--expire", "1d"]);
    let reason = "it is in the network 198.51.100.0/24, which is blocked for a shorter time";
    assert!(answer.code != Some(0) && answer.err.contains(reason), "{answer:?}");
    daemon.stop();
}

#[test]
fn replaced_network_ban_leaves_no_route() {
    let lab = Lab::new(&["other"]);
    let daemon = Daemon::start_configured(&lab, "[block]\nmethod = [\"nft\", \"route\"]\n", &["--expire", "24h"]);
    let has_routes = |networks: &[&str]| {
        let shown = lab.run("victim", "ip", &["-4", "route", "show", "proto", "112"]);
        let shown: Vec<&str> = shown.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        shown == networks
    };
    lab.succeed(&["block", "198.51.100.0/25", "--expire", "1d"]);
    eventually("the narrow route exists", || has_routes(&["198.51.100.0/25"]));
    lab.succeed(&["block", "198.51.100.0/24", "--expire", "2d"]);
    daemon.expect_line("198.51.100.0/25 has been unblocked by the ban of 198.51.100.0/24 around it");
    eventually("only the wide route exists", || has_routes(&["198.51.100.0/24"]));
    lab.succeed(&["unblock", "198.51.100.0/24"]);
    eventually("no route is left", || has_routes(&[]));
    daemon.stop();
}

#[test]
fn manual_changes_of_networks_are_reported() {
    let lab = Lab::new(&["other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.succeed(&["block", "198.51.100.0/24"]);
    lab.nft("delete element inet portsentry blocked_nets { 198.51.100.0/24 }");
    daemon.expect_line("198.51.100.0/24 has been unblocked by nft (process ");
    lab.nft("add element inet portsentry blocked_nets { 203.0.113.0/24 timeout 1h }");
    daemon.expect_line("203.0.113.0/24 has been blocked by nft (process ");
    // A ban added with `nft` is restored like any other.
    lab.nft("flush ruleset");
    daemon.expect_line("was missing and has been created again");
    expect_network(&lab, "203.0.113.0/24", true);
    expect_network(&lab, "198.51.100.0/24", false);
    daemon.stop();
}

#[test]
fn scanning_network_is_banned_where_configured() {
    let lab = Lab::new(&["other", "next"]);
    let sources = lab.add_addresses("other", 66..71);
    let settings = "[block]\nwidest_ipv4 = 29\n[tcp]\nports = \"7001-7003\"\n";
    let daemon = Daemon::start_configured(&lab, settings, &["-tcp"]);
    assert!(lab.nft("list ruleset").contains("set blocked_nets "), "the set is ready before it is needed");
    let target = lab.victim_v4("other").into();
    for source in &sources {
        lab.connect("other", (*source).into(), target, &[7001, 7002, 7003]);
    }
    expect_network(&lab, "10.77.1.64/29", true);
    daemon.expect_line("10.77.1.64/29");
    let known = lab.ask(&["explain", "10.77.1.70"]);
    assert_eq!(known["blocked"]["evidence"], "proven", "{known}");
    lab.connect("next", lab.v4("next").into(), lab.victim_v4("next").into(), &[7001, 7002, 7003]);
    lab.expect_ban(lab.v4("next").into());
    daemon.stop();
}

#[test]
fn forged_scans_block_no_network() {
    let lab = Lab::new(&["other", "next"]);
    let sources = lab.add_addresses("other", 66..72);
    let daemon = Daemon::start_configured(&lab, "[block]\nwidest_ipv4 = 29\n", &[]);
    for source in &sources {
        lab.probe("other", (*source).into(), lab.victim_v4("other").into(), &[901, 902, 903]);
        lab.expect_ban((*source).into());
    }
    lab.provoke_ban("next");
    assert!(!lab.set_text("blocked_nets").contains("elements"), "these SYNs can be forged, so they ban no network");
    let known = lab.ask(&["explain", "10.77.1.70"]);
    assert_eq!(known["blocked"]["evidence"], "forgeable", "{known}");
    daemon.stop();
}
