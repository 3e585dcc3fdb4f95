//! Tests exhausted resources: file descriptors, and a database that another program has locked.

use std::time::Duration;

use portsentry::ledger::DATABASE;
use rusqlite::Connection;
use rustix::process::{Resource, getrlimit};

use crate::support::{recorded, scan, start};
use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, eventually};

/// Limits the program to this many descriptors, even if more are already open.
fn limit(daemon: &Daemon, descriptors: Option<u64>) {
    let soft = descriptors.or(getrlimit(Resource::Nofile).current).expect("a number");
    // The program is not root, and root may change limits of other users only with CAP_SYS_RESOURCE.
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
    let id = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command.arg(format!("--reuid={}", id("Uid:"))).arg(format!("--regid={}", id("Gid:"))).arg("--clear-groups");
    let done = command.args(["prlimit", "--pid", &daemon.id().to_string(), &format!("--nofile={soft}:")]).status();
    assert!(done.unwrap().success());
}

#[test]
fn descriptor_shortage_is_survived() {
    let mut lab = Lab::new(&["before", "during"]);
    let daemon = start(&lab, "[metrics]\nlisten = \"127.0.0.1:9777\"\n");
    let before = lab.provoke_ban("before");
    eventually("the ledger has the ban", || recorded(&lab) == [before]);
    limit(&daemon, Some(3));
    // Services on other ports than those of the scan, a new host and a new gateway cannot be read now.
    let services = Services::open(&lab, &[921, 922, 923]);
    lab.join("late");
    lab.victim_ip("route add default via 10.77.2.66");
    daemon.expect_line("Too many open files");
    let during = {
        lab.probe("during", lab.v4("during").into(), lab.victim_v4("during").into(), &[904, 905, 906]);
        lab.expect_ban(lab.v4("during").into()).address
    };
    daemon.expect_line(&format!("attackalert: Host {during} has been blocked"));
    assert_eq!(lab.served("late", lab.victim_v4("late").into(), &[921, 922, 923], 2), 6, "a client is not banned");
    std::thread::sleep(Duration::from_secs(4));
    let lines = daemon.lines_with("Too many open files");
    // One line for the host, and one for each file that could not be written.
    assert!(lines.len() <= 3, "the failure is not reported every second: {lines:#?}");

    limit(&daemon, None);
    daemon.expect_line("this host's addresses, routes and services can be read again");
    eventually("the service is known", || !lab.ports("trapped").contains(&921));
    eventually("the gateway is known", || lab.set_text("allowed").contains("10.77.2.66"));
    eventually("operators are answered", || lab.operate(&["status"]).code == Some(0));
    lab.probe("late", lab.v4("late").into(), lab.victim_v4("late").into(), &[911, 912, 913]);
    lab.expect_ban(lab.v4("late").into());
    let mut all = vec![before, during, lab.v4("late").into()];
    all.sort();
    assert_eq!(lab.banned(), all);
    eventually("the ledger has all bans", || recorded(&lab) == all);
    drop(services);
    daemon.stop();
}

/// Another program holds the database's lock, as a hanging backup would.
#[test]
fn locked_ledger_delays_no_ban() {
    let lab = Lab::new(&["first", "second"]);
    let daemon = start(&lab, "");
    let first = lab.provoke_ban("first");
    eventually("the ledger has the ban", || recorded(&lab) == [first]);
    let other = Connection::open(lab.path("state").join(DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let second = scan(&lab, "second");
    lab.expect_ban(second);
    daemon.expect_line(&format!("attackalert: Host {second} has been blocked"));
    daemon.expect_line("changes to the ledger that wait and are tried again: ");
    assert_eq!(lab.ask(&["status"])["running"], true);
    assert_eq!(recorded(&lab), [first]);
    other.execute_batch("ROLLBACK").unwrap();
    daemon.expect_line("the ledger is written again");
    eventually("the ledger has both bans", || recorded(&lab) == [first, second]);
    daemon.stop();
}
