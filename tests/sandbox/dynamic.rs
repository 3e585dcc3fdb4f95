//! Tests a start as root on a host without the user `portsentry`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, eventually};

use crate::rights::{TWO, field, status, threads};

/// The range that systemd reserves for dynamic users.
const RANGE: std::ops::RangeInclusive<u32> = 61_184..=65_519;

pub(super) fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

/// The user id of the threads, which must all have the same one, also as group id.
fn uid(daemon: &Daemon) -> u32 {
    let mut numbers: Vec<u32> = Vec::new();
    for (_, status) in threads(daemon) {
        for name in ["Uid", "Gid"] {
            numbers.extend(field(&status, name).split_whitespace().map(|number| number.parse::<u32>().unwrap()));
        }
        assert_eq!(field(&status, "Groups"), numbers[0].to_string());
        assert_eq!((field(&status, "CapEff"), field(&status, "CapBnd")), (TWO, TWO));
    }
    numbers.dedup();
    assert_eq!(numbers.len(), 1, "{numbers:?}");
    numbers[0]
}

#[test]
fn root_becomes_unused_uid_and_keeps_it() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let state = lab.path("state");
    // An earlier version has run as root.
    Daemon::start(&lab, &["--no-sandbox", "--expire", "1h"]).stop();
    assert_eq!(owner(&state), 0);
    let first = {
        let daemon = Daemon::start(&lab, &["--expire", "1h"]);
        let first = uid(&daemon);
        assert!(RANGE.contains(&first), "{first}");
        assert_eq!([owner(&state), owner(&state.join("ledger.sqlite")), owner(&lab.path("socket"))], [first; 3]);
        assert_eq!(daemon.lines_with("ERROR"), [""; 0]);
        lab.provoke_ban("attacker");
        daemon.stop();
        first
    };
    assert!(!lab.path("socket").exists(), "the daemon removes its socket");
    lab.nft("delete table inet portsentry");
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    assert_eq!(uid(&daemon), first, "the user id that owns the state");
    lab.expect_ban(lab.v4("attacker").into());
    assert_eq!(status(&lab)["sandbox"]["uid"], first);
    daemon.stop();

    // Another process uses the id meanwhile, so the state gets a new owner.
    let mut other = Command::new("setpriv");
    let other = other.args([&format!("--reuid={first}"), "--regid=65534", "--clear-groups", "sleep", "1000"]).spawn();
    let mut other = other.unwrap();
    let comes =
        |name: &str| fs::read_to_string(format!("/proc/{}/comm", other.id())).is_ok_and(|comm| comm.trim() == name);
    eventually("it runs", || comes("sleep"));
    let daemon = Daemon::spawn(&lab, &[], &["--expire", "1h"]);
    daemon.expect_line(&format!("belongs to user {first}, but portsentry runs as user"));
    daemon.stop();
    other.kill().unwrap();
    other.wait().unwrap();
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    assert_eq!(daemon.lines_with("ERROR"), [""; 0]);
    daemon.stop();
}

#[test]
fn state_of_removed_user_is_taken_over() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let users = fs::read_to_string(lab.path("passwd")).unwrap();
    lab.add_service_user(4242, 4243);
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    lab.provoke_ban("attacker");
    daemon.stop();
    assert_eq!(owner(&lab.path("state")), 4_242);
    lab.write("passwd.before", &users);
    let daemon = Daemon::start(&lab, &["--no-sandbox", "--expire", "1h"]);
    assert_eq!(owner(&lab.path("state/ledger.sqlite")), 0, "root takes the state back");
    assert_eq!(daemon.lines_with("ERROR"), [""; 0]);
    daemon.stop();
    let daemon = Daemon::start(&lab, &["--expire", "1h"]);
    assert_eq!(owner(&lab.path("state/ledger.sqlite")), 4_242, "and gives it to the user again");
    assert_eq!(daemon.lines_with("ERROR"), [""; 0]);
    daemon.stop();
}

#[test]
fn socket_in_directory_of_root_works() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let directory = lab.path("roots");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
    lab.write("roots/other", "");
    let socket = directory.join("socket");
    std::os::unix::fs::symlink(&socket, lab.path("socket")).unwrap();
    for _ in 0..2 {
        let daemon = Daemon::start(&lab, &["--socket", socket.to_str().unwrap()]);
        assert_eq!(daemon.lines_with("ERROR"), [""; 0]);
        let number = uid(&daemon);
        assert_eq!(status(&lab)["sandbox"]["uid"], number);
        assert_eq!([owner(&directory), owner(&lab.path("roots/other"))], [0; 2], "neither file is given away");
        daemon.stop();
    }
    // The state must get its new owner.
    fs::create_dir(lab.path("mixed")).unwrap();
    lab.write("mixed/other", "");
    let mixed = lab.path("mixed");
    let ended = Daemon::run_to_end(&lab, &[], &["--state-dir", mixed.to_str().unwrap()]);
    assert!(ended.log.contains("contains \"other\", which is not a file of portsentry"), "{}", ended.log);
    assert_eq!((ended.status.code(), owner(&mixed)), (Some(78), 0));
}

#[test]
fn directory_of_foreign_user_is_left() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&[]);
    let state = lab.path("state");
    fs::create_dir(&state).unwrap();
    chown(&state, Some(4_242), Some(4_243)).unwrap();
    let daemon = Daemon::start(&lab, &[]);
    daemon.expect_line("belongs to user 4242");
    daemon.stop();
    assert_eq!(owner(&state), 4_242);
}
