//! What others do to the table while the program runs.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::lab::daemon::Daemon;
use crate::lab::{Lab, PATIENCE, within};

const HEALED: &str = "adminalert: table inet portsentry was gone and is there again";

fn nft(lab: &Lab, command: &str) {
    lab.run("victim", "nft", &[command]);
}

/// Waits until the table is there again with a ban of `address`; panics where it is not.
fn wait_for_ban(lab: &Lab, address: IpAddr) {
    let table = || lab.command("victim", "nft").args(["list", "set", "inet", "portsentry", "blocked"]).output().ok();
    let there = || table().filter(|output| String::from_utf8_lossy(&output.stdout).contains(&address.to_string()));
    assert!(within(PATIENCE, there).is_some(), "{address} is not blocked again");
}

#[test]
fn after_a_flush_of_the_ruleset_the_bans_are_back_with_the_time_that_they_had_left() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let before = lab.expect_ban(attacker);
    for (round, sweep) in ["flush ruleset", "delete table inet portsentry"].into_iter().enumerate() {
        nft(&lab, sweep);
        let swept = Instant::now();
        wait_for_ban(&lab, attacker);
        // Far more than it takes; what it takes is for a benchmark.
        assert!(swept.elapsed() < Duration::from_secs(5), "{sweep}: {:?}", swept.elapsed());
        let after = lab.expect_ban(attacker);
        let (before, after) = (before.expires.unwrap(), after.expires.unwrap());
        assert!(after.abs_diff(before) < Duration::from_secs(30), "{before:?} became {after:?}");
        assert!(within(PATIENCE, || (daemon.lines_with(HEALED).len() == round + 1).then_some(())).is_some());
    }
    lab.touch_until_banned("other", lab.victim_v4("other").into());
    daemon.stop();
}

#[test]
fn a_ruleset_that_is_loaded_anew_with_the_table_in_it_gets_its_bans_back() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let own = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/nft/portsentry.nft")).unwrap();
    let file = lab.write("ruleset.nft", &format!("flush ruleset\n{own}"));
    lab.run("victim", "nft", &["-f", file.to_str().unwrap()]);
    wait_for_ban(&lab, attacker);
    daemon.expect_line(HEALED);
    daemon.stop();
}

#[test]
fn what_an_administrator_does_by_hand_is_known_and_said() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    nft(&lab, &format!("delete element inet portsentry blocked {{ {attacker} }}"));
    daemon.expect_line(&format!("adminalert: Host {attacker} has been unblocked by nft (process "));
    assert!(lab.banned().is_empty(), "and stays so");

    nft(&lab, &format!("add element inet portsentry blocked {{ {attacker} timeout 1h }}"));
    daemon.expect_line(&format!("adminalert: Host {attacker} has been blocked by nft (process "));
    lab.touch("attacker", attacker, lab.victim_v4("attacker").into(), &[901, 902, 903, 904]);
    daemon.expect_line(&format!("Host: {attacker}/{attacker} is already blocked Ignoring"));
    assert_eq!(lab.expect_ban(attacker).timeout, Some(Duration::from_secs(3600)), "his ban is not overruled");
    daemon.stop();
}

#[test]
fn the_kernels_allow_list_is_put_back() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let own = lab.victim_v4("attacker").to_string();
    assert!(lab.set_text("allowed").contains(&own));
    nft(&lab, "flush set inet portsentry allowed");
    daemon.expect_line("changed the kernel's allow-list; it is put back");
    assert!(within(PATIENCE, || lab.set_text("allowed").contains(&own).then_some(())).is_some());
    daemon.stop();
}
