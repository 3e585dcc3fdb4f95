//! Tests `portsentry allow`, `allowed` and `disallow`: temporary allowances outlive the daemon.

use crate::support::CLOSED;
use netns_lab::Lab;
use netns_lab::daemon::Daemon;

const SETTINGS: &str = "expire = \"1h\"\n[allow]\nnetworks = [\"203.0.113.0/24\"]\n";

#[test]
fn allowance_survives_restart_until_revoked() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let attacker = lab.provoke_ban("attacker");
    let text = attacker.to_string();
    let allowed = lab.ask(&["allow", &text]);
    assert_eq!((&allowed["lifted"], &allowed["bans"][0]), (&1.into(), &text.as_str().into()), "{allowed}");
    assert!(allowed["until"].is_null(), "{allowed}");
    lab.expect_banned(&[]);
    daemon.stop();

    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let scan = || lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &CLOSED);
    scan();
    daemon.expect_line(&format!(" from {attacker} to TCP port 901 does not count: the source is on the allow-list"));
    let list = lab.ask(&["allowed"]);
    let [by_hand, configured] = &list["allowed"].as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!(by_hand["network"], text, "{list}");
    assert!(by_hand["by"].as_str().unwrap().starts_with("root") && by_hand["since"].is_string(), "{list}");
    let allow_networks = serde_json::json!(
        {"network": "203.0.113.0/24", "by": "allow.networks", "since": null, "until": null}
    );
    assert_eq!(*configured, allow_networks);
    let refused = lab.operate(&["disallow", "203.0.113.0/24"]);
    assert!(refused.code == Some(1) && refused.err.contains("is allowed by allow.networks ("), "{refused:?}");
    lab.succeed(&["allow", "198.51.100.0/24"]);
    for (network, expected) in [
        ("198.51.100.7", "; run `portsentry disallow 198.51.100.0/24`"),
        ("127.0.0.1", "is protected without an allowance: it is an address of this host"),
        ("192.0.2.99", "192.0.2.99 is not allowed; "),
    ] {
        let refused = lab.operate(&["disallow", network]);
        assert!(refused.code == Some(1) && refused.err.contains(expected), "{network}: {refused:?}");
    }
    lab.succeed(&["disallow", "198.51.100.0/24"]);

    assert_eq!(lab.succeed(&["disallow", &text]), format!("the allowance of {text} is revoked\n"));
    scan();
    lab.expect_ban(attacker);
    daemon.stop();
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    assert_eq!(lab.ask(&["allowed"])["allowed"].as_array().map(Vec::len), Some(1), "revoked for good");
    daemon.stop();
}

#[test]
fn wide_allowance_needs_force_and_is_shown() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    lab.provoke_ban("attacker");
    assert_eq!(lab.operate(&["allow", "0.0.0.0/0"]).code, Some(1));
    assert_eq!(lab.banned().len(), 1, "a refused allowance lifts no ban");
    let output = lab.succeed(&["allow", "0.0.0.0/0", "--for", "1h", "--force"]);
    assert!(output.contains(&format!("bans lifted: 1 ({})", lab.v4("attacker"))), "{output}");
    lab.expect_banned(&[]);
    let status = lab.ask(&["status"]);
    assert_eq!(status["allows_all"], serde_json::json!(["IPv4"]), "{status}");
    assert!(lab.succeed(&["status"]).contains("all of IPv4 is allowed"));
    lab.succeed(&["disallow", "0.0.0.0/0"]);
    assert_eq!(lab.ask(&["status"])["allows_all"], serde_json::json!([]));
    daemon.stop();
}

#[test]
fn timed_allowance_ends() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    lab.succeed(&["allow", &lab.v4("attacker").to_string(), "--for", "1s"]);
    daemon.expect_line("has expired");
    lab.provoke_ban("attacker");
    daemon.stop();
}
