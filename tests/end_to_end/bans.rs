//! Tests that scanners are banned: how soon, for how long, and with which log lines.

use std::net::IpAddr;
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, slowness, soon};

const DAY: Duration = Duration::from_secs(86_400);
const SHORTLY: Duration = Duration::from_millis(500);

#[test]
fn nmap_scan_is_banned_for_a_day() {
    let lab = Lab::new(&["attacker", "third"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (attacker, victim) = (lab.v4("attacker"), lab.victim_v4("attacker").into());

    let ban = lab.nmap_until_banned("attacker", victim, attacker.into());
    assert_eq!(ban.timeout, Some(DAY), "{ban:?}");
    assert!(ban.expires.is_some_and(|left| left > DAY - Duration::from_secs(300)), "{ban:?}");

    let scan =
        daemon.expect_line(&format!("attackalert: TCP SYN/Normal scan from host: {attacker}/{attacker} to TCP port: "));
    let port: u16 = scan.rsplit(' ').next().and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{scan}"));
    assert!((1..=1024).contains(&port) && !EIGHT.contains(&port), "{scan}");
    daemon.expect_line(&format!(
        "attackalert: Host {attacker} has been blocked via nftables set inet portsentry blocked for 1day"
    ));

    let quick = ["-sS", "-p1-1024", "--max-retries", "0", "--max-rtt-timeout", "100ms"];
    let again = lab.nmap("attacker", victim, &quick);
    assert_eq!(again.count("filtered"), 1024, "a banned scanner learns nothing: {again:?}");
    assert_eq!(lab.served("third", lab.victim_v4("third").into(), &EIGHT, 1), 8, "other clients are served");
    assert_eq!(lab.banned(), [IpAddr::from(attacker)]);
    daemon.stop();
}

#[test]
fn ipv6_scanner_is_banned_by_64() {
    let lab = Lab::new(&["attacker", "third"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let victim = lab.victim_v6("attacker").into();

    let network = lab.v6_network("attacker");
    assert_eq!(lab.nmap_until_banned("attacker", victim, network.into()).timeout, Some(DAY));
    assert_eq!(lab.banned(), [IpAddr::from(network)]);
    daemon.expect_line(&format!("attackalert: TCP SYN/Normal scan from host: {0}/{0} to", lab.v6("attacker")));
    daemon.expect_line("has been blocked via nftables set inet portsentry blocked6 for 1day");

    assert!(!lab.is_served("attacker", victim, EIGHT[0], SHORTLY));
    assert_eq!(lab.served("third", lab.victim_v6("third").into(), &EIGHT, 1), 8);
}

#[test]
fn tcp_scan_kinds_are_banned() {
    let kinds: [(&str, &[&str]); 8] = [
        ("connect", &["-sT"]),
        ("null", &["-sN"]),
        ("fin", &["-sF"]),
        ("xmas", &["-sX"]),
        ("maimon", &["-sM"]),
        ("ack", &["-sA"]),
        ("window", &["-sW"]),
        ("pieces", &["-sS", "-f"]),
    ];
    let lab = Lab::new(&kinds.map(|(name, _)| name));
    let _services = Services::open(&lab, &EIGHT);
    let _daemon = Daemon::start_configured(&lab, "[detect]\nack = \"ban\"\n", &["--expire", "1h"]);
    for (name, arguments) in kinds {
        let quick = ["-p1-100", "--max-retries", "0", "--max-rtt-timeout", "100ms"];
        lab.nmap(name, lab.victim_v4(name).into(), &[arguments, &quick].concat());
        lab.expect_ban(lab.v4(name).into());
    }
}

#[test]
fn five_second_ban_ends_after_five_seconds() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT);
    // Longer on a slow machine.
    let five = Duration::from_secs(5) * slowness();
    let daemon = Daemon::start(&lab, &["--expire", &format!("{}s", five.as_secs())]);
    let attacker = lab.provoke_ban("attacker");
    let victim = lab.victim_v4("attacker").into();
    assert!(!lab.is_served("attacker", victim, EIGHT[0], SHORTLY), "a blocked source is not served");
    assert_eq!(lab.set("blocked").first().and_then(|ban| ban.timeout), Some(five));
    lab.expect_banned(&[]);
    assert_eq!(lab.served("attacker", victim, &EIGHT, 1), 8, "after the ban it is served again");

    assert_eq!(lab.provoke_ban("attacker"), attacker, "a new scan is banned again");
    let lines = || daemon.lines_with(&format!("Host {attacker} has been blocked"));
    assert!(soon(|| lines().len() == 2), "{:?}", lines());
}

#[test]
fn two_repeated_ports_are_forgiven() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (attacker, victim) = lab.ends_v4("attacker");
    for _ in 0..50 {
        lab.probe("attacker", attacker, victim, &[23, 79]);
    }
    let other = lab.provoke_ban("other");
    assert_eq!(lab.banned(), [other], "two ports are a mistake, not a scan");
    lab.probe("attacker", attacker, victim, &[111]);
    lab.expect_ban(attacker);
    daemon.expect_line(&format!("Host {attacker} has been blocked"));
}

#[test]
fn scan_trigger_zero_bans_first_port() {
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h", "--scan-trigger", "0"]);
    let attacker = lab.v4("attacker").into();
    lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &[23]);
    lab.expect_ban(attacker);
}

#[test]
fn repeated_probes_are_summarised() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let repeated = format!("attackalert: Host: {attacker}/{attacker} is already blocked Ignoring");
    let ports: Vec<u16> = (1..=1000).collect();
    for _ in 0..5 {
        lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &ports);
    }
    lab.provoke_ban("other");
    daemon.expect_line(&format!("adminalert: packets of Host {attacker} since its last line: "));
    assert!(daemon.lines_with(&repeated).iter().all(|line| *line == repeated), "a classic line has no suffix");
    let log = daemon.stop();
    let lines = log.matches(&repeated).count();
    assert!(lines <= 10, "5000 packets, {lines} lines");
    assert_eq!(log.matches(&format!("Host {attacker} has been blocked")).count(), 1, "{log}");
}

#[test]
fn daemon_reports_and_survives_full_set() {
    let lab = Lab::new(&["attacker", "third"]);
    let _services = Services::open(&lab, &EIGHT);
    // When packets and transactions add elements at the same time, the kernel's count is off by a few.
    let settings = "[trap]\ntcp = false\n[block.nft]\nsize = 4\n";
    let mut daemon = Daemon::start_configured(&lab, settings, &["--expire", "1h"]);
    for source in lab.add_addresses("attacker", 10..15) {
        lab.probe("attacker", source.into(), lab.victim_v4("attacker").into(), &[901, 902, 903, 904]);
    }
    daemon.expect_line("set inet portsentry blocked is full (4 elements)");
    assert_eq!(lab.set("blocked").len(), 4);
    assert!(daemon.is_running());
    assert_eq!(lab.served("third", lab.victim_v4("third").into(), &EIGHT, 1), 8);

    lab.nft("flush set inet portsentry blocked");
    assert_eq!(lab.provoke_ban("third"), IpAddr::from(lab.v4("third")), "with free space it bans again");
    daemon.stop();
}

#[test]
fn later_interface_and_address_are_monitored() {
    let mut lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.join("late");
    lab.victim_ip("addr add 10.77.1.77/24 dev attacker");

    lab.probe_until_banned("late", lab.victim_v4("late").into());
    lab.probe_until_banned("attacker", "10.77.1.77".parse().unwrap());
}

#[test]
fn interface_left_out_is_not_monitored() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start_configured(&lab, "interfaces = [\"!other\", \"!docker0\"]\n", &[]);
    lab.probe_v4("other", &[901, 902, 903, 904]);
    let attacker = lab.provoke_ban("attacker");
    assert_eq!(lab.banned(), [attacker], "all earlier packets have been judged");
    assert_eq!(daemon.lines_with(&lab.v4("other").to_string()), [""; 0]);
    daemon.stop();
}
