//! Tests the operator's commands as separate programs against the running daemon: their effects, their text and JSON
//! output, and their exit codes.

use std::net::IpAddr;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::CLOSED;
use netns_lab::daemon::{Daemon, binary};
use netns_lab::{Lab, TIMEOUT, within};

const SETTINGS: &str = "expire = \"1h\"\n";

#[test]
fn status_shows_activity_and_health() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let attacker = lab.provoke_ban("attacker");
    daemon.expect_line(&format!("Host {attacker} has been blocked"));
    let status = lab.ask(&["status"]);
    assert_eq!(status["running"], true);
    assert_eq!(status["process"], daemon.id());
    assert_eq!(status["state"], "blocking");
    assert_eq!(status["methods"], serde_json::json!(["nft"]));
    assert_eq!(
        (&status["bans"]["intended"], &status["bans"]["enforced"], &status["bans"]["made"]),
        (&1.into(), &1.into(), &1.into())
    );
    assert!(status["probes"].as_u64().is_some_and(|probes| probes >= 3), "{status}");
    let output = lab.operate(&["status"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    for part in
        ["blocking", "blocks      for 1h, by nft", "1 now, 1 of them in the kernel; since the start: 1 made, 0 failed"]
    {
        assert!(output.out.contains(part), "{part} in {}", output.out);
    }
    daemon.stop();
    let output = lab.operate(&["status", "--json"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let reply: serde_json::Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!(reply["running"], false);
    assert!(output.err.contains("portsentry is not running"), "{output:?}");
}

#[test]
fn block_and_unblock_change_kernel_set() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let output = lab.operate(&["block", "192.0.2.7", "--expire", "2h", "--reason", "a\nhunch"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.out.starts_with("192.0.2.7 is blocked until 2"), "{output:?}");
    let ban = lab.expect_ban("192.0.2.7".parse().unwrap());
    assert_eq!(ban.timeout, Some(Duration::from_secs(7_200)));
    daemon.expect_line("adminalert: Host 192.0.2.7 has been blocked by root");
    assert!(!daemon.lines_with(" for 2h: a hunch").is_empty(), "{:?}", daemon.lines_with("192.0.2.7"));

    let reply = lab.ask(&["block", "2001:db8:7::7"]);
    assert_eq!(reply["subject"], "2001:db8:7::/64");
    assert_eq!(lab.expect_ban("2001:db8:7::".parse().unwrap()).timeout, Some(Duration::from_secs(3_600)));
    assert_eq!(lab.ask(&["block", "192.0.2.8", "--expire", "never"])["expires"], "never");
    assert_eq!(lab.expect_ban("192.0.2.8".parse().unwrap()).timeout, None);

    let output = lab.operate(&["unblock", "192.0.2.7"]);
    assert_eq!((output.code, output.out.as_str()), (Some(0), "bans lifted: 1\n"), "{output:?}");
    daemon.expect_line("adminalert: Host 192.0.2.7 has been unblocked by root");
    let output = lab.operate(&["unblock", "192.0.2.7"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("192.0.2.7 is not blocked"), "{output:?}");
    assert_eq!(lab.ask(&["unblock", "--all"])["unblocked"], 2);
    assert!(lab.banned().is_empty());
    daemon.stop();
}

#[test]
fn exempt_target_is_blocked_only_by_force() {
    let lab = Lab::new(&["attacker"]);
    // An own address stays protected even within an allowed network.
    let daemon = Daemon::start_configured(&lab, "[allow]\nnetworks = [\"192.0.2.0/24\", \"10.77.1.0/24\"]\n", &[]);
    let own = lab.victim_v4("attacker").to_string();
    for words in [&["block", "192.0.2.7"][..], &["block", &own], &["block", &own, "--force"], &["block", "10.0.0.0/8"]]
    {
        let output = lab.operate(words);
        assert!(matches!(output.code, Some(1 | 2)), "{words:?}: {output:?}");
        assert!(!output.err.is_empty(), "{words:?}");
    }
    assert!(lab.banned().is_empty());
    assert_eq!(lab.operate(&["block", "192.0.2.7", "--force"]).code, Some(0));
    lab.expect_ban("192.0.2.7".parse().unwrap());
    assert_eq!(lab.operate(&["unblock", "192.0.2.7"]).code, Some(0));
    assert_eq!(lab.operate(&["block", "192.0.2.7"]).code, Some(1), "protected as before");
    daemon.stop();
}

#[test]
fn explain_and_allow_follow_an_address() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let (attacker, target) = lab.ends_v4("attacker");
    let text = attacker.to_string();
    lab.probe("attacker", attacker, target, &CLOSED[..1]);
    daemon.expect_line("to TCP port: 901");
    let reply = lab.ask(&["explain", &text]);
    assert_eq!(
        (&reply["blocked"], &reply["protected"]),
        (&serde_json::Value::Null, &serde_json::Value::Null),
        "{reply}"
    );
    assert_eq!(reply["suspected"][0]["distinct_ports"], 1, "{reply}");
    assert_eq!(reply["suspected"][0]["ports"][0], serde_json::json!({"proto": "tcp", "port": 901, "class": "syn"}));

    lab.provoke_ban("attacker");
    let reply = lab.ask(&["explain", &text]);
    assert!(reply["blocked"]["left_s"].as_u64().is_some_and(|left| (3_500..=3_600).contains(&left)), "{reply}");
    let output = lab.operate(&["explain", &text]);
    assert!(output.code == Some(0) && output.out.contains("blocked     yes, until 2"), "{output:?}");

    let output = lab.operate(&["allow", &text, "--for", "1h"]);
    assert!(output.code == Some(0) && output.out.starts_with(&format!("{text} is allowed until 2")), "{output:?}");
    daemon.expect_line(&format!("Host {attacker} has been unblocked by the allow-list"));
    lab.expect_banned(&[]);
    lab.probe("attacker", attacker, target, &CLOSED);
    daemon.expect_line(&format!(" from {attacker} to TCP port 901 does not count: the source is on the allow-list"));
    assert!(lab.banned().is_empty());
    let reply = lab.ask(&["explain", &text]);
    assert_eq!(reply["protected"], "on the allow-list", "{reply}");
    assert_eq!(reply["blocked"], serde_json::Value::Null, "{reply}");
    daemon.stop();
}

#[test]
fn address_in_blocked_network_is_shown_blocked() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    assert_eq!(lab.operate(&["block", "203.0.113.0/24", "--reason", "a rack of them"]).code, Some(0));
    let reply = lab.ask(&["explain", "203.0.113.9"]);
    assert_eq!((&reply["subject"], &reply["blocked"]["network"]), (&"203.0.113.9".into(), &"203.0.113.0/24".into()));
    assert!(reply["blocked"]["left_s"].as_u64().is_some_and(|left| left <= 3_600), "{reply}");
    let output = within(TIMEOUT, || {
        let output = lab.operate(&["explain", "203.0.113.9"]);
        output.out.contains("a rack of them").then_some(output)
    });
    assert!(output.is_some_and(|output| output.out.contains(" left), by the ban of 203.0.113.0/24")));
    let output = lab.operate(&["unblock", "203.0.113.9"]);
    let way_out = "is blocked by the ban of 203.0.113.0/24; unblock that network, or exempt only 203.0.113.9";
    assert!(output.code == Some(1) && output.err.contains(way_out), "{output:?}");
    assert_eq!(lab.operate(&["unblock", "203.0.113.0/24"]).code, Some(0));
    assert_eq!(lab.ask(&["explain", "203.0.113.9"])["blocked"], serde_json::Value::Null);
    daemon.stop();
}

#[test]
fn explain_shows_earlier_bans() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let attacker = lab.provoke_ban("attacker").to_string();
    lab.operate(&["unblock", &attacker]);
    let reply = within(TIMEOUT, || {
        let reply = lab.ask(&["explain", &attacker]);
        (reply["history"][0]["ended"]["how"].is_string()).then_some(reply)
    });
    let reply = reply.unwrap_or_else(|| panic!("{}", lab.ask(&["explain", &attacker])));
    assert_eq!(reply["bans"], 1, "{reply}");
    assert_eq!(reply["history"][0]["class"], "syn", "{reply}");
    assert!(
        reply["history"][0]["ended"]["how"].as_str().is_some_and(|how| how.starts_with("lifted by root")),
        "{reply}"
    );
    daemon.stop();
}

#[test]
fn usage_exits_2_configuration_exits_78() {
    let lab = Lab::new(&["attacker"]);
    let path = lab.write("portsentry.toml", SETTINGS);
    let daemon = Daemon::start(&lab, &["--config", path.to_str().unwrap()]);
    for words in [
        &["block", "nonsense"][..],
        &["block", "192.0.2.7", "--expire", "soon"],
        &["unblock"],
        &["explain", "192.0.2.0/24"],
        &["allow", "192.0.2.7", "--for", "never-ever"],
        &["status", "--loud"],
    ] {
        let output = lab.operate(words);
        assert_eq!(output.code, Some(2), "{words:?}: {output:?}");
        assert!(output.out.is_empty() && !output.err.is_empty(), "{words:?}: {output:?}");
    }
    let output = lab.operate(&["reload"]);
    assert_eq!(
        (output.code, output.out.as_str()),
        (Some(0), "configuration reloaded: nothing has changed\n"),
        "{output:?}"
    );
    std::fs::write(&path, "expire = \"2h\"\n[block.nft]\nsize = 1000\n").unwrap();
    let reply = lab.ask(&["reload"]);
    assert_eq!(reply["changed"], serde_json::json!(["expire", "block"]));
    assert_eq!(reply["needs_restart"], serde_json::json!(["block.nft.size"]));
    std::fs::write(&path, "expire = \"soon\"\n").unwrap();
    let output = lab.operate(&["reload"]);
    assert_eq!(output.code, Some(78), "{output:?}");
    assert!(output.err.contains("portsentry.toml:1:10: expire: \"soon\""), "{output:?}");
    assert_eq!(lab.ask(&["status"])["expire_s"], 7_200, "the old values stay in force");
    daemon.stop();
    let ended = Daemon::run_to_end(&lab, &[], &["--config", path.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    let mut nowhere = std::process::Command::new(binary());
    let nowhere = nowhere.args(["unblock", "--all", "--socket"]).arg(lab.path("nowhere")).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn hangup_applies_valid_configuration_only() {
    let lab = Lab::new(&["attacker", "friend"]);
    let path = lab.write("portsentry.toml", "expire = \"1h\"\n[detect]\nscan_trigger = 10\n");
    let daemon = Daemon::start(&lab, &["--config", path.to_str().unwrap()]);
    let ends = |host: &str| (IpAddr::from(lab.v4(host)), IpAddr::from(lab.victim_v4(host)));
    let (attacker, target) = ends("attacker");
    let friend = lab.v4("friend");
    lab.probe("attacker", attacker, target, &CLOSED);
    daemon.expect_line("to TCP port: 904");
    assert!(lab.banned().is_empty(), "ten ports are forgiven");

    std::fs::write(&path, "expire = \"2h\"\n[detect]\nscan_trigger = 0\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.expect_line("adminalert: SIGHUP: the new configuration is in force; changed: expire, detect");
    lab.probe("attacker", attacker, target, &[23]);
    assert_eq!(lab.expect_ban(attacker).timeout, Some(Duration::from_secs(7_200)));
    lab.provoke_ban("friend");

    std::fs::write(&path, format!("expire = \"2h\"\n[detect]\nscan_trigger = 0\n[allow]\nnetworks = [\"{friend}\"]\n"))
        .unwrap();
    daemon.signal(Signal::HUP);
    daemon.expect_line(&format!("Host {friend} has been unblocked by the allow-list"));
    lab.expect_banned(&[attacker]);

    std::fs::write(&path, "expire = \"2h\"\n[detect]\nscan_triger = 0\n").unwrap();
    daemon.signal(Signal::HUP);
    let line = daemon.expect_line("adminalert: ERROR: the new configuration is refused, the old one stays in force: ");
    assert!(line.contains("did you mean \"detect.scan_trigger\"?"), "{line}");
    let (source, target) = ends("friend");
    lab.probe("friend", source, target, &[23]);
    daemon.expect_line(&format!(" from {friend} to TCP port 23 does not count: the source is on the allow-list"));
    assert_eq!(lab.banned(), [attacker]);
    daemon.stop();
}

#[test]
fn events_prints_one_object_per_line() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let mut command = lab.command("victim", binary().to_str().unwrap());
    command.arg("events").arg("--socket").arg(lab.path("socket")).stdout(std::process::Stdio::piped());
    let mut watcher = command.spawn().unwrap();
    let output = watcher.stdout.take().unwrap();
    let (sender, events) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let lines = std::io::BufRead::lines(std::io::BufReader::new(output)).map_while(Result::ok);
        lines.for_each(|line| sender.send(serde_json::from_str(&line).unwrap()).unwrap_or_default());
    });
    // The command has subscribed once it prints its first event.
    let mut ends = 1..;
    let watches = within(TIMEOUT, || {
        let output = lab.operate(&["block", &format!("192.0.2.{}", ends.next().unwrap())]);
        assert_eq!(output.code, Some(0), "{output:?}");
        events.recv_timeout(Duration::from_millis(200)).ok()
    });
    assert!(watches.is_some_and(|event: serde_json::Value| event["event"] == "block"));
    let attacker = lab.provoke_ban("attacker").to_string();
    daemon.expect_line("has been blocked");
    daemon.stop();
    // The output ends with the command.
    let events: Vec<serde_json::Value> = events.iter().collect();
    let of = |name: &str| {
        let found = events.iter().find(|event| event["event"] == name && event["source"] == attacker);
        found.unwrap_or_else(|| panic!("{name}: {events:?}"))
    };
    assert_eq!(of("probe")["proto"], "tcp");
    assert!(of("block")["expires"].is_string());
    watcher.wait().unwrap();
}

#[test]
fn network_ban_is_listed_as_in_kernel() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let networks = ["203.0.113.0/24", "203.0.112.0/24", "198.51.100.6/31", "2001:db8:5::/48"];
    for network in networks {
        assert_eq!(lab.operate(&["block", network]).code, Some(0), "{network}");
    }
    let state = lab.path("state").display().to_string();
    let list = |words: &[&str]| {
        let out = lab.run("victim", binary().to_str().unwrap(), &[&["list", "--state-dir", &state], words].concat());
        (!out.is_empty()).then_some(out)
    };
    let known = || list(&["--json"]).filter(|out| networks.iter().all(|network| out.contains(network)));
    let reply: serde_json::Value = serde_json::from_str(&within(TIMEOUT, known).expect("all bans are listed")).unwrap();
    let bans = reply["bans"].as_array().unwrap();
    assert_eq!(bans.len(), networks.len(), "{reply}");
    let both = |ban: &serde_json::Value| ban["in_kernel"] == true && ban["in_ledger"] == true;
    let known = || {
        let reply: serde_json::Value = serde_json::from_str(&list(&["--json"]).unwrap()).unwrap();
        reply["bans"].as_array().unwrap().iter().all(both).then_some(())
    };
    assert!(within(TIMEOUT, known).is_some(), "{reply}");
    for words in [&[][..], &["203.0.113.9"], &["2001:db8:5::1"]] {
        let table = list(words).unwrap();
        assert!(table.lines().count() > 1 && !table.contains('!') && !table.contains('?'), "{table}");
    }
    daemon.stop();
}

#[test]
fn host_without_monitored_ports_warns() {
    let lab = Lab::new(&["attacker"]);
    let honeypot = "[tcp]\nmode = \"stealth\"\nports = \"23,2323\"\n[udp]\nmode = \"off\"\n";
    let daemon = Daemon::start_configured(&lab, honeypot, &[]);
    daemon.expect_line(
        "warning: detect.scan_trigger: no scan of this host can cause a ban: only 2 closed ports are monitored",
    );
    let status = lab.ask(&["status"]);
    assert!(status["warnings"][0].as_str().is_some_and(|text| text.contains("write 1 or less")), "{status}");
    assert!(lab.succeed(&["status"]).contains("warning     detect.scan_trigger: "));
    let config = lab.path("portsentry.toml");
    let check = lab.succeed(&["check", config.to_str().unwrap()]);
    assert!(check.contains("no scan of this host can cause a ban"), "{check}");
    lab.reload(&format!("{honeypot}[detect]\nscan_trigger = 1\n"));
    assert_eq!(lab.ask(&["status"])["warnings"], serde_json::json!([]));
    lab.probe_v4("attacker", &[23, 2323]);
    lab.expect_ban(lab.v4("attacker").into());
    daemon.stop();
}

#[test]
fn own_client_ports_are_followed() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, "[tcp]\nadvanced_ports = \"1-20000\"\n", &[]);
    assert_eq!(lab.ask(&["status"])["warnings"], serde_json::json!([]));
    lab.sysctl("net.ipv4.ip_local_port_range=1024 65535");
    let warned = within(TIMEOUT, || {
        let status = lab.ask(&["status"]);
        status["warnings"][0].as_str().is_some_and(|text| text.starts_with("tcp.advanced_ports: ")).then_some(())
    });
    assert!(warned.is_some(), "{}", lab.ask(&["status"]));
    daemon.stop();
}

#[test]
fn log_only_classic_is_named_at_start() {
    let lab = Lab::new(&["attacker"]);
    lab.write("portsentry.conf", "TCP_PORTS=\"1,11\"\nBLOCK_TCP=\"0\"\n");
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let line = daemon.expect_line("warning: tcp.block: scans are blocked, although");
    assert!(line.contains("only log (BLOCK_TCP is 0)") && line.contains("`portsentry trial 1d`"), "{line}");
    assert!(lab.succeed(&["status"]).contains("warning     tcp.block: "));
    lab.provoke_ban("attacker");
    daemon.stop();
}
