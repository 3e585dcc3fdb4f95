//! Tests scans with several classes or several sources, which do not fit into a row.

use std::net::IpAddr;

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, within};

#[test]
fn nmap_decoys_ban_no_exempt_source() {
    let lab = Lab::new(&["attacker"]);
    let [decoy, gateway, friend] =
        ["10.77.1.77", "10.77.1.88", "10.77.1.99"].map(|text| text.parse::<IpAddr>().unwrap());
    lab.victim_ip(&format!("route add default via {gateway}"));
    let settings = format!("[allow]\nnetworks = [\"{friend}\"]\n");
    let daemon = Daemon::start_configured(&lab, &settings, &["--expire", "1h"]);
    let decoys = format!("{decoy},{gateway},{friend},ME");
    let quick = ["-sS", "-p1-60", "--max-retries", "0", "--max-rtt-timeout", "100ms", "-D", &decoys];
    lab.nmap("attacker", lab.victim_v4("attacker").into(), &quick);

    lab.expect_ban(lab.v4("attacker").into());
    lab.expect_ban(decoy);
    assert_eq!(lab.banned().len(), 2, "{:?}", lab.banned());
    for exempt in [gateway, friend] {
        daemon.expect_line(&format!("adminalert: TCP SYN/Normal scan from {exempt} to TCP port "));
    }
}

#[test]
fn os_detection_is_banned() {
    let lab = Lab::new(&["four", "six"]);
    let _services = Services::open(&lab, &[22]);
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    let targets = [("four", IpAddr::from(lab.victim_v4("four"))), ("six", lab.victim_v6("six").into())];
    for (host, target) in targets {
        let (source, banned) = match target {
            IpAddr::V4(_) => (IpAddr::from(lab.v4(host)), IpAddr::from(lab.v4(host))),
            IpAddr::V6(_) => (lab.v6(host).into(), lab.v6_network(host).into()),
        };
        let ports = "-p22,23";
        // With retries, because the first SYN to the closed port holds the source for a moment.
        lab.nmap(host, target, &["-O", "--max-os-tries", "1", ports]);
        lab.expect_ban(banned);
        let illegal = [" XMAS scan", " illegal flags scan", " NULL scan"];
        let condemned = within(TIMEOUT, || {
            let lines = daemon.lines_with(&format!("from host: {source}/{source} to TCP port: 23"));
            lines.iter().any(|line| illegal.iter().any(|class| line.contains(class))).then_some(())
        });
        assert!(condemned.is_some(), "{:#?}", daemon.lines_with(&source.to_string()));
    }
}
