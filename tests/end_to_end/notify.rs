//! Tests the digests of bans that a command receives: contents, frequency, and handling of failures.

use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, eventually, json_lines};
use serde_json::json;

/// A script that appends each digest to a file, and the configuration that runs it.
fn script(lab: &Lab, name: &str, guard: &str) -> (std::path::PathBuf, String) {
    let output = lab.path(&format!("{name}.told"));
    let program = lab.program(name, &format!("#!/bin/sh\n{guard}\ncat >>{}\n", output.display()));
    (output, format!("[notify]\ncommand = [{program:?}]\ninterval = \"10s\"\n"))
}

#[test]
fn bans_of_an_interval_are_one_message() {
    let lab = Lab::new(&["attacker", "other"]);
    let (output, config) = script(&lab, "notify", "");
    let daemon = Daemon::start_configured(&lab, &config, &[]);
    let first = lab.provoke_ban("attacker").to_string();
    let second = lab.provoke_ban("other").to_string();
    lab.succeed(&["unblock", &second]);
    lab.succeed(&["block", "198.51.100.7", "--reason", "by hand"]);
    eventually("a digest comes", || !json_lines(&output).is_empty());
    let all = json_lines(&output);
    assert_eq!(all.len(), 1, "all bans are in one message: {all:?}");
    let digest = &all[0];
    let of = |key: &str| digest[key].clone();
    assert_eq!([of("count"), of("by_hand"), of("unnamed")], [json!(3), json!(1), json!(0)], "{digest}");
    let bans = digest["bans"].as_array().unwrap();
    let ban = bans.iter().find(|ban| ban["subject"] == first.as_str()).unwrap_or_else(|| panic!("{digest}"));
    assert!(ban["reason"].is_string() && ban["expires"].is_string(), "{ban}");
    assert_eq!(ban["evidence"], "forgeable", "{ban}");
    assert!(bans.iter().any(|ban| ban["note"] == "by hand"), "{digest}");
    assert_eq!(digest["lifted"]["count"], 1, "{digest}");
    assert_eq!(digest["lifted"]["named"][0]["subject"], second.as_str(), "{digest}");

    // A later ban is in the next digest, which is sent when the program ends.
    lab.succeed(&["unblock", &first]);
    daemon.stop();
    let all = json_lines(&output);
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!((&all[1]["count"], &all[1]["lifted"]["count"]), (&json!(0), &json!(1)), "{}", all[1]);
    assert!(all[1]["from"].as_str() > all[0]["from"].as_str(), "{all:?}");
}

#[test]
fn failing_command_is_reported_once() {
    let lab = Lab::new(&["attacker", "other"]);
    let works = lab.path("works");
    let (output, config) =
        script(&lab, "notify", &format!("[ -e {} ] || {{ echo no mail; exit 3; }}", works.display()));
    let daemon = Daemon::start_configured(&lab, &config, &[]);
    lab.provoke_ban("attacker");
    let line = daemon.expect_line("notify.command: ");
    assert!(line.contains("failed with exit status 3; output: no mail"), "{line}");
    lab.provoke_ban("other");
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(daemon.lines_with("notify.command: ").len(), 1, "a second failure is not reported again");
    assert!(json_lines(&output).is_empty());
    std::fs::write(&works, "").unwrap();
    daemon.expect_line("notify.command succeeds again");
    let all = json_lines(&output);
    assert_eq!((all.len(), &all[0]["count"]), (1, &json!(2)), "the digest has both bans: {all:?}");
    daemon.stop();
}

#[test]
fn reload_applies_another_command() {
    let lab = Lab::new(&["attacker"]);
    let (_, config) = script(&lab, "before", "exit 9");
    let (output, after) = script(&lab, "after", "");
    let daemon = Daemon::start_configured(&lab, &config, &[]);
    lab.reload(&after);
    lab.provoke_ban("attacker");
    eventually("the new command gets the digest", || !json_lines(&output).is_empty());
    lab.reload("[notify]\ncommand = [\"/no/such/program\"]\n");
    daemon.expect_line("notify.command cannot be changed");
    daemon.stop();
}

#[test]
fn first_command_needs_restart() {
    let lab = Lab::new(&["attacker"]);
    let (_, config) = script(&lab, "notify", "");
    let daemon = Daemon::start_configured(&lab, "", &[]);
    lab.reload(&config);
    daemon.expect_line("takes effect after a restart: notify.command");
    daemon.stop();
}

#[test]
fn forged_flood_is_one_short_message() {
    let lab = Lab::new(&["attacker"]);
    let (output, config) = script(&lab, "notify", "");
    let daemon = Daemon::start_configured(&lab, &format!("{config}[block]\nmax_new_bans_per_minute = 100\n"), &[]);
    for source in lab.add_addresses("attacker", 10..210) {
        lab.probe("attacker", source.into(), lab.victim_v4("attacker").into(), &[901, 902, 903]);
    }
    eventually("a digest comes", || !json_lines(&output).is_empty());
    daemon.stop();
    let all = json_lines(&output);
    assert!(all.len() <= 3, "{} messages", all.len());
    let sum = |key: &str| all.iter().map(|digest| digest[key].as_u64().unwrap()).sum::<u64>();
    assert!(sum("count") >= 50, "at least the bans below the ceiling: {}", sum("count"));
    let listed: Vec<usize> = all.iter().map(|digest| digest["bans"].as_array().unwrap().len()).collect();
    assert!(listed.iter().all(|bans| *bans <= 20), "at most 20 bans are listed: {listed:?}");
    let listed = u64::try_from(listed.iter().sum::<usize>()).unwrap();
    assert_eq!(sum("count") - listed, sum("unnamed"), "the other bans are counted");
    assert!(std::fs::metadata(&output).unwrap().len() < 128 << 10);
}

#[test]
fn hanging_command_at_end_is_counted() {
    let lab = Lab::new(&["attacker"]);
    let (_, config) = script(&lab, "notify", "sleep 1000");
    let daemon = Daemon::start_configured(&lab, &config, &[]);
    lab.provoke_ban("attacker");
    let log = daemon.stop();
    assert!(log.contains("notify.command did not deliver the last digest, of 1 ban"), "{log}");
}
