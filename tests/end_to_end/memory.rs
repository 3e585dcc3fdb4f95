//! Tests the memory of bans: the ledger across restarts and simulated reboots.

use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, slowness, soon, within};

fn text(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(lab.path("state").join(name)).unwrap_or_default()
}

#[test]
fn bans_return_after_reboot_with_remaining_time() {
    let lab = Lab::new(&["attacker", "other"]);
    let attacker = {
        let daemon = Daemon::start(&lab, &["--expire", "1h"]);
        let attacker = lab.provoke_ban("attacker");
        daemon.stop();
        attacker
    };
    // The kernel's table is gone, as after a reboot.
    lab.nft("delete table inet portsentry");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    daemon.expect_line("adminalert: bans restored from the ledger with their remaining time: 1");
    let left = lab.expect_ban(attacker).expires.unwrap();
    let hour = Duration::from_secs(3_600);
    assert!(left <= hour && left > hour - Duration::from_secs(100) * slowness(), "{left:?}");
    lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &[901, 902, 903, 904]);
    daemon.expect_line(&format!("Host: {attacker}/{attacker} is already blocked Ignoring"));
    daemon.stop();
}

#[test]
fn expired_ban_stays_away_and_is_reported() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", &format!("{}s", 3 * slowness())]);
    let attacker = lab.provoke_ban("attacker");
    daemon.expect_line(&format!("adminalert: Host {attacker} is no longer blocked: its ban has expired"));
    daemon.stop();
    lab.nft("delete table inet portsentry");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.provoke_ban("attacker");
    let log = daemon.stop();
    assert!(!log.contains("restored from the ledger"), "{log}");
}

#[test]
fn ban_lifted_by_hand_stays_lifted() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    let (attacker, other) = (lab.provoke_ban("attacker"), lab.provoke_ban("other"));
    lab.nft(&format!("delete element inet portsentry blocked {{ {attacker} }}"));
    daemon.expect_line(&format!("adminalert: Host {attacker} has been unblocked by nft"));
    daemon.stop();
    lab.nft("delete table inet portsentry");
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    daemon.expect_line("bans restored from the ledger with their remaining time: 1");
    assert_eq!(lab.banned(), [other]);
    daemon.stop();
}

#[test]
fn classic_files_name_the_ban() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    let attacker = lab.provoke_ban("attacker");
    let named = format!(" Host: {attacker}/{attacker} Port: ");
    for name in ["portsentry.history", "portsentry.blocked"] {
        let line = || text(&lab, name).lines().find(|line| line.contains(&named)).map(str::to_owned);
        let line = within(TIMEOUT, line).unwrap_or_else(|| panic!("{name} does not name {attacker}"));
        assert!(line.ends_with(" TCP Blocked"), "{line}");
    }
    daemon.stop();
}

#[test]
fn missing_ledger_is_reported_while_blocking() {
    let lab = Lab::new(&["attacker"]);
    std::fs::create_dir(lab.path("state")).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(lab.path("state"), open).unwrap();
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    daemon.expect_line("blocking continues, but bans do not survive a reboot");
    lab.provoke_ban("attacker");
    daemon.stop();
}

#[test]
fn repeated_kills_lose_no_ban() {
    let hosts = ["first", "second", "third"];
    let lab = Lab::new(&hosts);
    let mut banned = Vec::new();
    for host in hosts {
        let daemon = Daemon::start(&lab, &["--expire", "1h"]);
        banned.push(lab.provoke_ban(host));
        let written = || text(&lab, "portsentry.history").lines().count() >= banned.len();
        assert!(soon(written));
        daemon.kill();
    }
    lab.nft("delete table inet portsentry");
    let daemon = Daemon::start(&lab, &[]);
    daemon.expect_line("bans restored from the ledger with their remaining time: 3");
    for address in banned {
        lab.expect_ban(address);
    }
    daemon.stop();
}
