//! Tests user, capabilities and system calls of all threads of a running daemon.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};

use netns_lab::Lab;
use netns_lab::daemon::Daemon;

/// CAP_NET_ADMIN and CAP_NET_RAW, as the kernel prints them.
pub(super) const TWO: &str = "0000000000003000";
pub(super) const NONE: &str = "0000000000000000";

/// The kernel's data about each thread: its name and the lines of its status.
pub(super) fn threads(daemon: &Daemon) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    let read = |name: &str, task: &std::path::Path| fs::read_to_string(task.join(name));
    // A thread may end meanwhile.
    tasks.filter_map(|task| Some((read("comm", &task).ok()?, read("status", &task).ok()?))).collect()
}

pub(super) fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

pub(super) fn sandbox_status(lab: &Lab) -> Value {
    status(lab)["sandbox"].clone()
}

/// The complete output of `status`.
pub(super) fn status(lab: &Lab) -> Value {
    lab.ask(&["status"])
}

#[test]
fn every_thread_has_two_capabilities_only() {
    let lab = Lab::new(&["attacker"]);
    let events = lab.path("state/events");
    let configuration = format!("[report]\njson_file = {events:?}\n");
    let daemon = Daemon::start_configured(&lab, &configuration, &["--scan-trigger", "0"]);
    lab.probe_v4("attacker", &[23]);
    lab.expect_ban(lab.v4("attacker").into());
    let threads = threads(&daemon);
    let names: BTreeSet<&str> = threads.iter().map(|(name, _)| name.trim()).collect();
    for name in ["portsentry", "sensor", "ledger", "json-file"] {
        assert!(names.contains(name), "{names:?}");
    }
    for (name, status) in &threads {
        for (set, expected) in
            [("CapEff", TWO), ("CapPrm", TWO), ("CapBnd", TWO), ("CapInh", NONE), ("CapAmb", NONE), ("NoNewPrivs", "1")]
        {
            assert_eq!(field(status, set), expected, "{set} of {name}");
        }
        assert_eq!(field(status, "Seccomp"), "2", "a filter, for {name}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    let mut sandbox_status = sandbox_status(&lab);
    let version = sandbox_status.as_object_mut().unwrap().remove("landlock_abi").unwrap();
    assert_eq!(version.as_i64().is_some_and(|version| version >= 1), super::has_landlock(), "{version}");
    let uid = sandbox_status.as_object_mut().unwrap().remove("uid").unwrap();
    assert_eq!(uid != 0, netns_lab::has_other_users(), "{uid}");
    let expected = json!({
        "user": null,
        "capabilities": ["CAP_NET_ADMIN", "CAP_NET_RAW"],
        "no_new_privs": true,
        "seccomp": "allow-list",
        "core_dumps": false,
    });
    assert_eq!(sandbox_status, expected);
    daemon.stop();
}

#[test]
fn decoys_below_1024_need_one_capability() {
    let lab = Lab::new(&[]);
    for (ports, expected) in [("23", "0000000000003400"), ("2323", TWO)] {
        let configuration =
            format!("[tcp]\nmode = \"connect\"\nports = \"{ports}\"\n[udp]\nmode = \"off\"\nports = \"7\"\n");
        let daemon = Daemon::start_configured(&lab, &configuration, &[]);
        for (name, status) in threads(&daemon) {
            assert_eq!((field(&status, "CapEff"), field(&status, "CapBnd")), (expected, expected), "{name}");
        }
        daemon.stop();
    }
}

#[test]
fn no_sandbox_is_shown_by_status() {
    let lab = Lab::new(&[]);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let daemon = Daemon::start(&lab, &["--no-sandbox"]);
    for (name, status) in threads(&daemon) {
        for set in ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"] {
            assert_eq!(field(&status, set), field(&own, set), "{set} of {name}");
        }
    }
    let sandbox_status = sandbox_status(&lab);
    assert_eq!(
        (&sandbox_status["landlock_abi"], &sandbox_status["seccomp"], &sandbox_status["core_dumps"]),
        (&json!(null), &json!("off"), &json!(true))
    );
    daemon.stop();
}

#[test]
fn root_becomes_own_user() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let state = lab.path("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    // An earlier run as root has left a ledger.
    Daemon::start(&lab, &["--expire", "1h"]).stop();
    lab.add_service_user(4242, 4243);
    let directory = state.parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    let configuration = lab.write("portsentry.toml", "expire = \"1h\"\n");
    let socket = lab.path("run/socket");
    let socket = socket.to_str().unwrap();
    let arguments = ["--scan-trigger", "0", "--config", configuration.to_str().unwrap(), "--socket", socket];

    // The user cannot enter the directory. The daemon keeps the right to read and enter everything, and reports why.
    let daemon = Daemon::start(&lab, &arguments);
    let line = daemon.expect_line("the user portsentry cannot reach");
    assert!(line.contains("portsentry keeps CAP_DAC_READ_SEARCH"), "{line}");
    let (_, status) = threads(&daemon).swap_remove(0);
    assert_eq!((field(&status, "Uid"), field(&status, "CapEff")), ("4242\t4242\t4242\t4242", "0000000000003004"));
    daemon.stop();

    fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).unwrap();
    let daemon = Daemon::start(&lab, &arguments);
    for (name, status) in threads(&daemon) {
        assert_eq!(field(&status, "Uid"), "4242\t4242\t4242\t4242", "{name}");
        assert_eq!(field(&status, "Gid"), "4243\t4243\t4243\t4243", "{name}");
        assert_eq!((field(&status, "CapEff"), field(&status, "CapBnd")), (TWO, TWO), "{name}");
    }
    for directory in [&state, &lab.path("run")] {
        assert_eq!(fs::metadata(directory).unwrap().uid(), 4_242, "{}", directory.display());
    }
    assert_eq!(daemon.lines_with("ledger"), [""; 0], "the ledger belongs to the user");
    lab.probe_v4("attacker", &[23]);
    lab.expect_ban(lab.v4("attacker").into());
    lab.write("portsentry.toml", "expire = \"2h\"\n");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.expect_line("the new configuration is in force; changed: expire");
    daemon.stop();
}
