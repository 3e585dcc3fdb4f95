//! Tests interfaces that disappear and return.

use netns_lab::Lab;
use netns_lab::daemon::Daemon;

#[test]
fn returning_interface_is_monitored_again_unaided() {
    let lab = Lab::new(&["attacker", "other"]);
    let mut daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.cut("attacker");
    lab.provoke_ban("other");
    lab.link("attacker");
    lab.probe_until_banned("attacker", lab.victim_v4("attacker").into());
    assert!(daemon.is_running());
}

#[test]
fn returning_interface_is_monitored_again() {
    let lab = Lab::new(&["attacker", "other"]);
    let mut daemon = Daemon::start(&lab, &["--expire", "24h", "--interface", "attacker"]);
    let touch = || lab.probe_v4("other", &[901, 902, 903, 904]);
    touch();
    lab.cut("attacker");
    touch();
    lab.link("attacker");
    touch();
    lab.probe_until_banned("attacker", lab.victim_v4("attacker").into());
    assert_eq!(lab.banned(), [std::net::IpAddr::from(lab.v4("attacker"))]);
    assert!(daemon.is_running());
}
