//! Tests that `portsentry check` and the start refuse the same configurations.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, within};
use portsentry::config::Config;

use crate::draws::{Draws, KEYS};

/// The number in an environment variable, or the built-in one: the seed, and the number of configurations to draw.
fn number(variable: &str, builtin: u64) -> u64 {
    std::env::var(variable).map_or(builtin, |text| text.parse().expect("a number"))
}

#[test]
fn check_and_start_refuse_alike() {
    let mut known: Vec<&str> = KEYS.iter().map(|(key, ..)| *key).collect();
    known.sort_unstable();
    assert_eq!(known, Config::keys(), "each key is drawn");
    let lab = Lab::new(&["attacker"]);
    let _taken = lab.inside("victim", || {
        [2323, 9800].map(|port| TcpListener::bind(("0.0.0.0", port)).expect("the namespace is new"))
    });
    let has_others = netns_lab::has_other_users();
    make_files(&lab, has_others);
    let notify = notify_socket(&lab);
    let mut draws = Draws::new(number("CHECK_SEED", 0));
    let (mut refused, mut accepted, mut disagree) = (0, 0, Vec::new());
    for round in 0..number("CHECK_ROUNDS", 60) {
        let place = |text: &str| text.replace("DIR", lab.path("").to_str().unwrap().trim_end_matches('/'));
        let around = draws.surroundings();
        let state = place(around.state);
        let text = place(&draws.configuration()).replace("STATE", &state);
        let file = lab.path("drawn.toml");
        let _ = std::fs::remove_file(&file);
        lab.write("drawn.toml", &text);
        let (mode, owner) = around.file;
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        if has_others {
            chown(&file, Some(owner), None).unwrap();
        }
        for name in ["passwd", "group"] {
            let text = std::fs::read_to_string(lab.path(name)).unwrap();
            let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("portsentry:")).collect();
            lab.write(name, &(others.join("\n") + "\n"));
        }
        if around.has_user && has_others {
            lab.add_service_user(4_100, 4_100);
        }
        // If an earlier table cannot be changed, this round uses it.
        let _ = lab.command("victim", "nft").arg(around.table).output().unwrap();
        let (file, socket) = (file.to_str().unwrap(), place(around.socket));
        let places = ["--state-dir", &state, "--socket", &socket];
        let (passes, output) = check(&lab, &[&[file], &places[..]].concat());
        let (starts, log) = start_with(&lab, &notify, &[&["--config", file], &places[..]].concat());
        if passes != starts {
            disagree.push(format!("round {round}\n{around:?}\n{text}\ncheck says:\n{output}\nthe start says:\n{log}"));
        }
        *(if starts { &mut accepted } else { &mut refused }) += 1;
    }
    assert!(disagree.is_empty(), "{} disagree:\n{}", disagree.len(), disagree.join("\n\n"));
    assert!(refused > 0 && accepted > 0, "{refused} refused, {accepted} accepted: the draws show something");
    println!("{refused} refused, {accepted} accepted");
}

/// The files that the values of [`KEYS`] name.
fn make_files(lab: &Lab, has_others: bool) {
    for directory in ["directory", "mixed", "foreign", "closed"] {
        std::fs::create_dir(lab.path(directory)).unwrap();
    }
    for (file, text, mode) in [
        ("hosts.deny", "", 0o644),
        ("closed/hosts.deny", "", 0o644),
        ("foreign/hosts.deny", "", 0o644),
        ("mixed/notes", "", 0o644),
        ("plain", "", 0o644),
        ("ignore", "192.0.2.0/24\n", 0o644),
        ("secret", "192.0.2.0/24\n", 0o600),
        ("closed/ignore", "192.0.2.0/24\n", 0o644),
        ("wrong", "monitor.example.org\n", 0o644),
        ("open", "#!/bin/sh\n", 0o777),
        ("theirs", "#!/bin/sh\n", 0o755),
        ("program", "#!/bin/sh\n", 0o755),
        ("closed/program", "#!/bin/sh\n", 0o755),
    ] {
        std::fs::set_permissions(lab.write(file, text), Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::symlink(lab.path("ignore"), lab.path("link")).unwrap();
    std::fs::set_permissions(lab.path("closed"), Permissions::from_mode(0o700)).unwrap();
    if has_others {
        for theirs in ["foreign", "foreign/hosts.deny", "theirs"] {
            chown(lab.path(theirs), Some(4_242), Some(4_243)).unwrap();
        }
    }
}

#[test]
fn check_and_start_agree_on_state() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let notify = notify_socket(&lab);
    let file = lab.write("state.toml", "");
    let file = file.to_str().unwrap();
    let states = ["missing", "roots", "mixed", "foreign", "foreign-file"].map(|name| lab.path(name));
    let [_, roots, mixed, foreign, foreign_file] = &states;
    for directory in [roots, mixed, foreign, foreign_file] {
        std::fs::create_dir(directory).unwrap();
    }
    lab.write("roots/ledger.sqlite-wal", "");
    lab.write("mixed/notes", "");
    let ledger = lab.write("foreign-file/ledger.sqlite", "");
    for path in [foreign, &ledger] {
        chown(path, Some(4_242), Some(4_243)).unwrap();
    }
    for (state, (refused, reason)) in states.iter().zip([
        (false, None),
        (false, None),
        (true, Some("it contains \"notes\", which is not a file of portsentry".to_owned())),
        (false, Some(format!("{} belongs to user 4242", foreign.display()))),
        (false, Some(format!("{} belongs to user 4242", ledger.display()))),
    ]) {
        let place = ["--state-dir", state.to_str().unwrap()];
        let (passes, output) = check(&lab, &[&[file], &place[..]].concat());
        let (starts, log) = start_with(&lab, &notify, &[&["--config", file], &place[..]].concat());
        assert_eq!((passes, starts), (!refused, !refused), "{}\n{output}\n{log}", state.display());
        match reason {
            None => assert!(!output.contains("--state-dir") && !log.contains("ERROR"), "{output}\n{log}"),
            Some(reason) => assert!(output.contains(&reason) && log.contains(&reason), "{reason}\n{output}\n{log}"),
        }
    }
}

#[test]
fn check_accepts_state_of_running_daemon() {
    if !netns_lab::has_other_users() {
        return;
    }
    // Without the package's user the daemon runs with an unused uid.
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &[]);
    let (state, socket) = (lab.path("state"), lab.path("socket"));
    let places = ["--state-dir", state.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    let (passes, output) = check(&lab, &places);
    assert!(passes && !output.contains("--state-dir"), "{output}");
    daemon.stop();
}

/// The socket on which the daemon reports readiness, as to systemd.
fn notify_socket(lab: &Lab) -> UnixDatagram {
    let socket = UnixDatagram::bind(lab.path("notify")).unwrap();
    socket.set_nonblocking(true).unwrap();
    std::fs::set_permissions(lab.path("notify"), Permissions::from_mode(0o777)).unwrap();
    socket
}

/// Runs `check`; returns whether it passes, and its output.
fn check(lab: &Lab, arguments: &[&str]) -> (bool, String) {
    let to_log = ["sh", "-c", "exec \"$@\" >&2", "sh"];
    let ended = Daemon::run_to_end(lab, &to_log, &[&["check"], arguments].concat());
    (ended.status.success(), ended.log)
}

/// Starts the daemon; returns whether it reports readiness to `notify`, and its log.
fn start_with(lab: &Lab, notify: &UnixDatagram, arguments: &[&str]) -> (bool, String) {
    let socket = format!("NOTIFY_SOCKET={}", lab.path("notify").display());
    let mut daemon = Daemon::spawn(lab, &["env", &socket], arguments);
    let watches = || {
        let mut message = [0; 512];
        while let Ok(length) = notify.recv(&mut message) {
            if message[..length].starts_with(b"READY=1") {
                return true;
            }
        }
        false
    };
    let started = within(TIMEOUT, || match (watches(), daemon.is_running()) {
        (true, _) => Some(true),
        (false, false) => Some(watches()),
        (false, true) => None,
    });
    let started = started.expect("it watches or exits");
    let log = if started { daemon.stop() } else { daemon.end().log };
    watches();
    (started, log)
}

#[test]
fn own_metrics_port_is_no_note() {
    let lab = Lab::new(&[]);
    let settings = |port: u16| format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    let _taken = lab.inside("victim", || TcpListener::bind(("127.0.0.1", 9_778)).expect("the namespace is new"));
    let daemon = Daemon::start_configured(&lab, &settings(9_777), &[]);
    assert_eq!(lab.ask(&["status"])["metrics"], "127.0.0.1:9777");
    let notes = |port| {
        let file = lab.write("other.toml", &settings(port));
        let report = lab.ask(&["check", file.to_str().unwrap(), "--state-dir", lab.path("state").to_str().unwrap()]);
        let notes = report["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap().to_owned());
        notes.filter(|note| note.starts_with("metrics.listen")).collect::<Vec<_>>()
    };
    assert_eq!(notes(9_777), Vec::<String>::new(), "the running daemon serves its metrics there");
    let note = "metrics.listen: 127.0.0.1:9778 is in use, by the running portsentry or by another program";
    assert_eq!(notes(9_778), [note]);
    daemon.stop();
}
