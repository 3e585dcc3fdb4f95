//! Tests files in root's directories, which a separate process writes for a daemon without root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, eventually, within};
use rustix::process::{Pid, Signal, kill_process};

use crate::rights::{NONE, field, threads};

/// A lab with a directory of root that other users can only read.
fn lab() -> Option<(Lab, PathBuf)> {
    if !netns_lab::has_other_users() {
        return None;
    }
    let lab = Lab::new(&["attacker"]);
    let directory = lab.path("roots");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    Some((lab, directory))
}

fn settings(directory: &Path) -> String {
    format!(
        "expire = \"1h\"\n[block]\nmethod = [\"nft\", \"hosts-deny\"]\n[block.hosts_deny]\nfile = {:?}\n[report]\n\
         json_file = {:?}\n",
        directory.join("hosts.deny"),
        directory.join("events.json")
    )
}

/// The helper process of the daemon.
fn helper(daemon: &Daemon) -> (i32, String) {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    let process: i32 = children.trim().parse().unwrap_or_else(|_| panic!("one process: {children}"));
    (process, fs::read_to_string(format!("/proc/{process}/status")).unwrap())
}

fn expect_text(path: &Path, holds: impl Fn(&str) -> bool) -> String {
    let text = within(TIMEOUT, || fs::read_to_string(path).ok().filter(|text| holds(text)));
    text.unwrap_or_else(|| panic!("{}: {:?}", path.display(), fs::read_to_string(path)))
}

#[test]
fn helper_writes_lines_for_unprivileged_daemon() {
    let Some((lab, directory)) = lab() else { return };
    let (deny, events) = (directory.join("hosts.deny"), directory.join("events.json"));
    fs::write(&deny, "sshd: x\n").unwrap();
    // The daemon's user cannot read the file.
    fs::set_permissions(&deny, Permissions::from_mode(0o600)).unwrap();
    let daemon = Daemon::start_configured(&lab, &settings(&directory), &["--scan-trigger", "0"]);
    for (name, status) in threads(&daemon) {
        assert_ne!(field(&status, "Uid").split_whitespace().next(), Some("0"), "{name}");
    }
    assert_eq!(daemon.lines_with("ERROR"), [""; 0]);
    let (_, status) = helper(&daemon);
    assert_eq!(field(&status, "Uid"), "0\t0\t0\t0");
    for set in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(field(&status, set), NONE, "{set}");
    }
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"));
    lab.probe_v4("attacker", &[23]);
    lab.expect_ban(lab.v4("attacker").into());
    let text = expect_text(&deny, |text| text.contains("ALL: "));
    assert!(text.starts_with("sshd: x\n# portsentry: "), "{text}");
    let found = fs::metadata(&deny).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o7777), (0, 0o600), "the file is unchanged");
    expect_text(&events, |text| text.contains("\"event\":\"block\""));
    // Rotation: root creates the file again.
    fs::rename(&events, directory.join("events.1")).unwrap();
    daemon.signal(Signal::HUP);
    daemon.expect_line("the configuration was reloaded");
    lab.succeed(&["unblock", &lab.v4("attacker").to_string()]);
    expect_text(&deny, |text| text == "sshd: x\n");
    expect_text(&events, |text| !text.is_empty());
    assert_eq!(fs::metadata(&events).unwrap().uid(), 0);
    daemon.stop();
}

#[test]
fn lines_of_previous_backend_are_removed() {
    let Some((lab, directory)) = lab() else { return };
    let deny = directory.join("hosts.deny");
    let daemon = Daemon::start_configured(&lab, &settings(&directory), &["--scan-trigger", "0"]);
    lab.probe_v4("attacker", &[23]);
    expect_text(&deny, |text| text.contains("ALL: "));
    daemon.stop();
    let without = settings(&directory).replace(", \"hosts-deny\"", "");
    let daemon = Daemon::start_configured(&lab, &without, &[]);
    expect_text(&deny, str::is_empty);
    daemon.stop();
}

#[test]
fn daemon_survives_loss_of_helper() {
    let Some((lab, directory)) = lab() else { return };
    let daemon = Daemon::start_configured(&lab, &settings(&directory), &["--scan-trigger", "0"]);
    let (process, _) = helper(&daemon);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(helper(&daemon).0, process, "the helper runs until the daemon ends");
    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    lab.probe_v4("attacker", &[23]);
    lab.expect_ban(lab.v4("attacker").into());
    daemon.expect_line(&format!("process {process}, which writes the file, has ended; restart portsentry"));
    assert!(!directory.join("hosts.deny").exists());
    daemon.stop();
}

#[test]
fn helper_ends_with_daemon() {
    let Some((lab, directory)) = lab() else { return };
    for killed in [false, true] {
        let daemon = Daemon::start_configured(&lab, &settings(&directory), &[]);
        let (process, _) = helper(&daemon);
        if killed {
            daemon.kill();
        } else {
            daemon.stop();
        }
        let status = || fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        eventually("it ends", || status().is_empty() || field(&status(), "State").starts_with('Z'));
    }
}
