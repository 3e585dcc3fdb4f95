//! Tests conditions in which the program refuses to run: it names the problem and the remedy, and exits.

use netns_lab::daemon::{Daemon, Ended};
use netns_lab::{Lab, eventually};

#[test]
fn foreign_table_is_left_alone_with_remedy() {
    let lab = Lab::new(&["attacker"]);
    lab.nft("table inet portsentry {\n chain mine {\n counter accept\n }\n }");
    let before = lab.nft("list ruleset");
    let ended = Daemon::run_to_end(&lab, &[], &["--expire", "24h"]);
    assert_refused(&ended);
    assert!(ended.log.contains("nft delete table inet portsentry"), "{ended:?}");
    assert_eq!(lab.nft("list ruleset"), before);
}

#[test]
fn missing_cap_net_admin_ends_with_message() {
    assert_refused_without("net_admin", "CAP_NET_ADMIN");
}

#[test]
fn missing_cap_net_raw_ends_with_message() {
    assert_refused_without("net_raw", "CAP_NET_RAW");
}

#[test]
fn failed_start_leaves_the_host_unchanged() {
    let mut lab = Lab::new(&[]);
    let taken = lab.inside("victim", || std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = taken.local_addr().unwrap().to_string();
    let metrics = lab.write("metrics.toml", &format!("[metrics]\nlisten = \"{address}\"\n"));
    // The only port of connect mode is in use by another program, and so is that of the metrics.
    let port = taken.local_addr().unwrap().port();
    let _other = lab.inside("victim", || std::net::TcpListener::bind(("0.0.0.0", 2323)).unwrap());
    let decoys = "[tcp]\nmode = \"connect\"\nports = \"2323\"\n[block]\nmethod = [\"nft\", \"route\"]\n";
    let decoys = lab.write("decoys.toml", decoys);
    let both = format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n[block]\nmethod = [\"route\", \"nft\"]\n");
    let both = lab.write("both.toml", &both);
    // Without CAP_NET_RAW, and with ports in use by another program.
    let failures: [(&[&str], &[&str]); 4] = [
        (&["setpriv", "--bounding-set=-net_raw"], &[]),
        (&[], &["--config", metrics.to_str().unwrap()]),
        (&[], &["--config", decoys.to_str().unwrap()]),
        (&[], &["--config", both.to_str().unwrap()]),
    ];
    let fail = |lab: &Lab| {
        for (wrapper, arguments) in failures {
            assert_refused(&Daemon::run_to_end(lab, wrapper, arguments));
        }
    };
    // Without elements, many of which expire within seconds. The bans are compared separately.
    let rules = |lab: &Lab| lab.run("victim", "nft", &["--stateless", "--terse", "list", "ruleset"]);
    fail(&lab);
    assert_eq!(rules(&lab), "", "no table is left");
    // The table of the previous run stays in force.
    lab.join("attacker");
    let daemon = Daemon::start(&lab, &["--scan-trigger", "0"]);
    let banned = lab.provoke_ban("attacker");
    daemon.stop();
    let is_held = || lab.set_text("held").contains(&banned.to_string());
    eventually("a source is held for less than a second", || !is_held());
    let before = rules(&lab);
    fail(&lab);
    assert_eq!(rules(&lab), before);
    assert_eq!(lab.banned(), [banned]);
}

#[test]
fn configuration_error_exits_78_with_position() {
    let lab = Lab::new(&[]);
    let path = lab.write("bad.toml", "[detect]\nscan_trigger = 2\nwindow = \"90x\"\n");
    let path = path.to_str().unwrap();
    let ended = Daemon::run_to_end(&lab, &[], &["--config", path]);
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.log.contains(&format!("{path}:3:10: detect.window: \"90x\"")), "{ended:?}");
    assert!(lab.set("blocked").is_empty());
}

#[test]
fn unreadable_configuration_exits_78() {
    let lab = Lab::new(&[]);
    let ended = Daemon::run_to_end(&lab, &[], &["--config", "/nonexistent/portsentry.toml"]);
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.log.contains("/nonexistent/portsentry.toml"), "{ended:?}");
}

#[test]
fn unknown_flag_exits_2() {
    let lab = Lab::new(&[]);
    let ended = Daemon::run_to_end(&lab, &[], &["--exipre", "24h"]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.log.contains("--expire"), "the error suggests the right option: {ended:?}");
}

#[test]
fn missing_interface_is_refused_by_name() {
    let lab = Lab::new(&["attacker"]);
    let ended = Daemon::run_to_end(&lab, &[], &["--interface", "nosuch0"]);
    assert_refused(&ended);
    assert!(ended.log.contains("nosuch0"), "{ended:?}");
}

fn assert_refused_without(capability: &str, name: &str) {
    let lab = Lab::new(&["attacker"]);
    let bounding = format!("--bounding-set=-{capability}");
    let ended = Daemon::run_to_end(&lab, &["setpriv", &bounding], &["--expire", "24h"]);
    assert_refused(&ended);
    assert!(ended.log.contains(name), "{ended:?}");
}

/// Asserts that the program failed with an error message, without a panic, before it began to monitor.
fn assert_refused(ended: &Ended) {
    assert!(ended.status.code().is_some_and(|code| code != 0 && code != 101), "{ended:?}");
    assert!(!ended.log.contains("now active and listening"), "{ended:?}");
    assert!(!ended.log.contains("panicked"), "{ended:?}");
    assert!(!ended.log.trim().is_empty(), "the error must be reported");
}
