//! Tests the command helper of a daemon that cannot start programs: the rights of the two processes, and what happens
//! when one of them ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::rights::{NONE, TWO, field, status, threads};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, within};

/// Writes the script as a command and returns its path.
fn hook(lab: &Lab, script: &str) -> PathBuf {
    let hook = lab.program("hook", &format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(&hook, Permissions::from_mode(0o700)).unwrap();
    hook
}

fn settings(hook: &Path, more: &str) -> String {
    format!("[block]\nmethod = [\"nft\", \"run\"]\n[block.run]\ncommand = [{hook:?}, \"$TARGET$\"]\n{more}")
}

fn start(lab: &Lab, script: &str, more: &str, arguments: &[&str]) -> Daemon {
    let text = settings(&hook(lab, script), more);
    Daemon::start_configured(lab, &text, &[&["--scan-trigger", "0"], arguments].concat())
}

fn scan(lab: &Lab) {
    lab.probe_v4("attacker", &[23]);
}

fn expect_banned(lab: &Lab) {
    lab.expect_ban(lab.v4("attacker").into());
}

/// The process id of the command helper, from `status`.
fn command_helper(lab: &Lab) -> i32 {
    let commands = &status(lab)["commands"];
    assert_eq!(commands["running"], json!(true), "{commands}");
    i32::try_from(commands["process"].as_i64().unwrap()).unwrap()
}

fn of(process: i32) -> String {
    fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default()
}

/// Waits until a process is gone or a zombie.
fn expect_gone(process: i32) {
    let gone = || {
        let status = of(process);
        (status.is_empty() || field(&status, "State").starts_with('Z')).then_some(())
    };
    within(TIMEOUT, gone).unwrap_or_else(|| panic!("{}", of(process)));
}

/// Waits for a complete line in a file.
fn line_of(path: &Path) -> String {
    let line = within(TIMEOUT, || fs::read_to_string(path).ok().filter(|text| text.ends_with('\n')));
    line.unwrap_or_else(|| panic!("{} has no line", path.display())).trim().to_owned()
}

/// The restrictions of a daemon without commands, each once.
fn given_up(daemon: &Daemon) -> Vec<String> {
    const KINDS: [&str; 8] =
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"];
    let threads = threads(daemon);
    let all = |kind: &str| -> Vec<String> {
        let mut found: Vec<_> = threads.iter().map(|(_, status)| field(status, kind).to_owned()).collect();
        found.sort();
        found.dedup();
        found
    };
    KINDS.iter().map(|kind| format!("{kind} {}", all(kind).join(" "))).collect()
}

#[test]
fn commands_keep_their_rights() {
    let lab = Lab::new(&["attacker"]);
    let plain = Daemon::start_configured(&lab, "", &[]);
    let (expected, before) = (given_up(&plain), status(&lab));
    assert_eq!(before["commands"], json!(null));
    plain.stop();

    // A file of root that a daemon in its sandbox cannot open.
    let note = tempfile::tempdir().unwrap();
    let note = note.path().join("note");
    let script = format!(
        "head -c 0 /etc/shadow && grep -E '^(Uid|Cap|NoNew|Seccomp)' /proc/self/status > {0}.new && mv {0}.new {0}",
        note.display()
    );
    let daemon = start(&lab, &script, "", &[]);
    assert_eq!(given_up(&daemon), expected);
    let line = daemon.expect_line("could change it");
    let reason = "is in a directory that portsentry can write";
    assert!(line.contains(&format!("{} {reason}", lab.path("hook").display())), "{line}");
    let now = status(&lab);
    assert_eq!(now["sandbox"], before["sandbox"]);
    assert_eq!(now["sandbox"]["seccomp"], json!("allow-list"));
    let version = now["sandbox"]["landlock_abi"].as_i64();
    assert_eq!(version.is_some_and(|version| version >= 1), super::has_landlock(), "{now}");
    let expected = json!({
        "user": "root",
        "uid": 0,
        "capabilities": ["CAP_NET_ADMIN", "CAP_NET_RAW"],
        "no_new_privs": true,
        "landlock_abi": null,
        "seccomp": "deny-list",
        "core_dumps": false,
    });
    assert_eq!(now["commands"]["sandbox"], expected);
    scan(&lab);
    expect_banned(&lab);
    daemon.expect_line("External command run for host: ");
    let rights = fs::read_to_string(&note).unwrap();
    assert_eq!(field(&rights, "Uid"), "0\t0\t0\t0");
    for (set, expected) in
        [("CapPrm", TWO), ("CapEff", TWO), ("CapBnd", TWO), ("CapAmb", NONE), ("NoNewPrivs", "1"), ("Seccomp", "2")]
    {
        assert_eq!(field(&rights, set), expected, "{set}");
    }
    // With Landlock, files elsewhere cannot be read, even with a command configured.
    let elsewhere = note.with_file_name("ignore");
    fs::write(&elsewhere, "").unwrap();
    fs::set_permissions(note.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    let expected = match super::has_landlock() {
        true => format!("{} cannot be read, because the sandbox", elsewhere.display()),
        false => "SIGHUP: the new configuration is in force; changed: allow".to_owned(),
    };
    lab.write("portsentry.toml", &settings(&lab.path("hook"), &format!("[allow]\nfiles = [{elsewhere:?}]\n")));
    daemon.signal(Signal::HUP);
    daemon.expect_line(&expected);
    let process = command_helper(&lab);
    daemon.stop();
    expect_gone(process);
}

#[test]
fn daemon_drops_root_and_commands_keep_it() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    lab.add_service_user(4242, 4243);
    let state = lab.path("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(state.parent().unwrap(), Permissions::from_mode(0o711)).unwrap();
    let note = tempfile::tempdir().unwrap();
    let note = note.path().join("note");
    // Only root can run this command and write there. The socket's directory is the daemon's own, and the warning says
    // so.
    let hook = note.with_file_name("hook");
    fs::rename(self::hook(&lab, &format!("id -u > {}", note.display())), &hook).unwrap();
    let text = settings(&hook, "");
    let configuration = lab.write("portsentry.toml", &text);
    fs::set_permissions(&configuration, Permissions::from_mode(0o644)).unwrap();
    // The socket is in its own directory, which can be given to the user; a link makes it reachable at the lab's path.
    let socket = lab.path("run/socket");
    std::os::unix::fs::symlink(&socket, lab.path("socket")).unwrap();
    let socket = socket.to_str().unwrap();
    let arguments = ["--scan-trigger", "0", "--config", configuration.to_str().unwrap(), "--socket", socket];
    let daemon = Daemon::start(&lab, &arguments);
    for (name, status) in threads(&daemon) {
        assert_eq!(field(&status, "Uid"), "4242\t4242\t4242\t4242", "{name}");
    }
    let process = command_helper(&lab);
    assert_eq!(field(&of(process), "Uid"), "0\t0\t0\t0");
    scan(&lab);
    let line = daemon.expect_line("adminalert: the command for Host ");
    assert!(line.contains(" succeeded"), "{line}");
    assert_eq!(line_of(&note), "0");
    assert_eq!(daemon.lines_with("could change it"), [""; 0]);
    daemon.stop();
    expect_gone(process);
}

#[test]
fn command_over_time_limit_is_ended() {
    let lab = Lab::new(&["attacker"]);
    let note = lab.path("note");
    let daemon = start(&lab, &format!("echo $$ > {}; exec sleep 1000", note.display()), "timeout = \"1s\"\n", &[]);
    scan(&lab);
    let process = line_of(&note).parse().unwrap();
    daemon.expect_line("was killed at its time limit after ");
    expect_gone(process);
    daemon.stop();
}

#[test]
fn blocking_works_without_command_helper() {
    let lab = Lab::new(&["attacker"]);
    let daemon = start(&lab, "true", "", &[]);
    let process = command_helper(&lab);
    // The service manager and a terminal signal all processes; the helper waits for the daemon instead.
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
    }
    assert_eq!(command_helper(&lab), process);
    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
    let line = daemon.expect_line("which runs commands, has ended");
    assert!(
        line.contains(&format!("process {process}, which runs commands, has ended (signal: 9 (SIGKILL))")),
        "{line}"
    );
    expect_gone(process);
    assert!(of(process).is_empty(), "the helper process was not reaped");
    scan(&lab);
    expect_banned(&lab);
    daemon.expect_line("could not be started: the process that runs commands has ended; restart portsentry");
    let now = status(&lab);
    assert_eq!((&now["state"], &now["commands"]["running"]), (&json!("blocking"), &json!(false)));
    assert!(now["bans"]["failed"].as_i64().is_some_and(|failed| failed >= 2), "{now}");
    daemon.stop();
}

#[test]
fn running_commands_end_with_daemon() {
    let lab = Lab::new(&["attacker"]);
    let note = lab.path("note");
    let end = |killed: bool| {
        let _ = fs::remove_file(&note);
        let daemon = start(&lab, &format!("echo $$ > {}; exec sleep 1000", note.display()), "", &[]);
        let process = command_helper(&lab);
        scan(&lab);
        let command = line_of(&note).parse().unwrap();
        let log = if killed {
            daemon.kill();
            String::new()
        } else {
            daemon.stop()
        };
        expect_gone(command);
        expect_gone(process);
        lab.nft("flush set inet portsentry blocked");
        fs::remove_dir_all(lab.path("state")).unwrap();
        log
    };
    end(true);
    // The program does not wait long for the end of a command: on a slow machine the report may be lost.
    let reported = (0..10).any(|_| end(false).contains("was killed because portsentry shuts down"));
    assert!(reported, "the end of the command was never reported");
}

#[test]
fn commands_without_sandbox_have_all_rights() {
    let lab = Lab::new(&["attacker"]);
    let note = lab.path("note");
    let daemon = start(&lab, &format!("grep ^CapEff /proc/self/status > {}", note.display()), "", &["--no-sandbox"]);
    scan(&lab);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&line_of(&note), "CapEff"), field(&own, "CapEff"));
    assert_eq!(status(&lab)["commands"]["sandbox"]["seccomp"], json!("off"));
    daemon.stop();
}

#[test]
fn unusable_commands_stop_start_with_remedy() {
    let lab = Lab::new(&[]);
    let hook = lab.write("hook", "");
    fs::set_permissions(&hook, Permissions::from_mode(0o644)).unwrap();
    let settings = lab.write("portsentry.toml", &settings(&hook, ""));
    let ended = Daemon::run_to_end(&lab, &[], &["--config", settings.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(
        ended.log.contains("block.run: ") && ended.log.contains(&format!("chmod 755 {}", hook.display())),
        "{}",
        ended.log
    );
    assert_eq!(ended.log.lines().count(), 1, "{}", ended.log);
}
