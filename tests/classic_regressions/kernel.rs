//! Tests that the log agrees with the state of the kernel.

use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, SYN};
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, slowness, within};

const SHORTLY: Duration = Duration::from_millis(300);

#[test]
fn ban_can_return_after_expiry_or_deletion() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start(&lab, &["--expire", &format!("{}s", 6 * slowness())]);
    let victim = lab.victim_v4("attacker").into();
    let attacker = lab.provoke_ban("attacker");
    lab.expect_banned(&[]);
    assert!(lab.is_served("attacker", victim, 80, TIMEOUT));
    lab.probe_until_banned("attacker", victim);
    assert!(!lab.is_served("attacker", victim, 80, SHORTLY), "the ban is in the kernel, not only in the log");

    lab.nft("flush set inet portsentry blocked");
    assert!(lab.is_served("attacker", victim, 80, TIMEOUT));
    lab.probe_until_banned("attacker", victim);
    assert!(!lab.is_served("attacker", victim, 80, SHORTLY));
    let logged = || (daemon.lines_with(&format!("Host {attacker} has been blocked")).len() >= 3).then_some(());
    assert!(within(TIMEOUT, logged).is_some());
}

#[test]
fn repeated_packets_give_few_lines() {
    let lab = Lab::new(&["attacker", "culprit"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (source, target) = (lab.provoke_ban("attacker"), lab.victim_v4("attacker").into());
    let ports = (1..=100).cycle().take(10_000);
    lab.wire("attacker").pace(10_000, ports.map(|port| raw::tcp(source, target, port, SYN)));
    lab.provoke_ban("culprit");
    // A line counts as one packet, or as more if a line with their number follows.
    let repeated = format!("Host: {source}/{source} is already blocked Ignoring");
    let counted = format!("packets of Host {source} since its last line: ");
    let number = |line: &String| line.rsplit_once(": ").and_then(|(_, number)| number.parse::<u32>().ok());
    let all = within(TIMEOUT, || {
        let numbers: Vec<u32> =
            daemon.lines_with(&counted).iter().map(|line| number(line).expect("a number of packets")).collect();
        let single = daemon.lines_with(&repeated).len().saturating_sub(numbers.len());
        let sum = numbers.iter().sum::<u32>() + u32::try_from(single).unwrap();
        (sum >= 10_000).then_some(sum)
    });
    let lines = daemon.lines_with(&source.to_string());
    assert!(all.is_some(), "not all packets are accounted for: {lines:#?}");
    assert!(lines.len() < 12, "{lines:#?}");
}

#[test]
fn table_deleted_midway_returns_with_next_ban() {
    let lab = Lab::new(&["attacker", "gateway"]);
    let _services = Services::open(&lab, &[80]);
    lab.victim_ip(&format!("route add default via {}", lab.v4("gateway")));
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.nft("delete table inet portsentry");
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker]);
    daemon.expect_line("table inet portsentry was missing and has been created again");
    assert!(lab.set_text("allowed").contains(&lab.v4("gateway").to_string()), "the allow-list is restored too");
    assert!(!lab.is_served("attacker", lab.victim_v4("attacker").into(), 80, SHORTLY));
}

#[test]
fn refused_ban_is_reported_and_retried() {
    let lab = Lab::new(&["attacker"]);
    let mut daemon = Daemon::start(&lab, &["--expire", "24h"]);
    // Another program replaces the table by one whose set takes no IPv4 addresses.
    let foreign = "delete table inet portsentry; add table inet portsentry; \
                   add set inet portsentry blocked { type ether_addr; flags timeout; }";
    lab.nft(foreign);
    let (attacker, victim) = lab.ends_v4("attacker");
    lab.probe("attacker", attacker, victim, &[901, 902, 903]);
    daemon.expect_line(&format!("ERROR: Host {attacker} could not be blocked via nft: "));
    assert!(daemon.lines_with("has been blocked").is_empty());
    assert!(daemon.is_running());

    lab.nft("delete table inet portsentry");
    lab.probe_until_banned("attacker", victim);
    daemon.expect_line(&format!("Host {attacker} has been blocked"));
}
