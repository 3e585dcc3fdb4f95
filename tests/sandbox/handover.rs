//! Tests which files root gives to the service's user, and which it must not give.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use netns_lab::Lab;
use netns_lab::daemon::Daemon;

use crate::dynamic::owner;

const USER: u32 = 4_242;

/// A lab whose directory the service user can enter.
fn lab() -> Option<Lab> {
    if !netns_lab::has_other_users() {
        return None;
    }
    let lab = Lab::new(&[]);
    lab.add_service_user(USER, 4_243);
    fs::set_permissions(lab.path(""), Permissions::from_mode(0o711)).unwrap();
    fs::create_dir(lab.path("home")).unwrap();
    fs::set_permissions(lab.path("home"), Permissions::from_mode(0o755)).unwrap();
    Some(lab)
}

/// Expects a start to fail with `reason` and to change nothing.
fn expect_refusal(lab: &Lab, wrapper: &[&str], arguments: &[&str], reason: &str) {
    let before = lab.nft("list ruleset");
    let ended = Daemon::run_to_end(lab, wrapper, arguments);
    assert_eq!(ended.status.code(), Some(78), "{arguments:?}: {}", ended.log);
    assert!(ended.log.contains(reason), "{arguments:?}: {}", ended.log);
    assert!(ended.log.contains("--state-dir, --socket or fleet.socket"), "the error names the remedy: {}", ended.log);
    assert_eq!(lab.nft("list ruleset"), before);
    assert!(!lab.path("state").exists(), "no directory is created before the refusal");
}

#[test]
fn directory_with_foreign_files_stops_start() {
    let Some(lab) = lab() else { return };
    let home = lab.path("home");
    let key = lab.write("home/key", "secret");
    let socket = home.join("ps.sock");
    let in_home = ["sh", "-c", "cd \"$0\" && exec \"$@\"", home.to_str().unwrap()];
    let reason = "contains \"key\", which is not a file of portsentry";
    expect_refusal(&lab, &[], &["--socket", socket.to_str().unwrap()], reason);
    expect_refusal(&lab, &[], &["--state-dir", home.to_str().unwrap()], reason);
    expect_refusal(&lab, &in_home, &["--state-dir", "."], reason);
    expect_refusal(&lab, &in_home, &["--socket", "./ps.sock"], reason);
    // A hard link to a file of another user is not the program's own file, regardless of its name.
    fs::rename(&key, lab.path("key")).unwrap();
    fs::hard_link(lab.path("key"), home.join("portsentry.history")).unwrap();
    expect_refusal(&lab, &[], &["--state-dir", home.to_str().unwrap()], "contains \"portsentry.history\"");
    fs::remove_file(home.join("portsentry.history")).unwrap();
    symlink(lab.path("key"), home.join("ledger.sqlite")).unwrap();
    expect_refusal(&lab, &[], &["--state-dir", home.to_str().unwrap()], "contains \"ledger.sqlite\"");
    for path in [&home, &lab.path("key"), &home.join("ledger.sqlite")] {
        assert_eq!(owner(path), 0, "{}", path.display());
    }
}

#[test]
fn empty_system_directory_stops_start() {
    let Some(lab) = lab() else { return };
    // In its own mount namespace. The last line of the log is the directory's owner afterwards.
    let script = "mount -t tmpfs -o mode=755 tmpfs /etc/ssl; mount -t tmpfs -o mode=755 tmpfs /srv; ln -s /etc \"$0/link\"; \
                  \"$@\"; code=$?; stat -c 'owner %u' /srv /etc/ssl >&2; rm \"$0/link\"; exit $code";
    let home = lab.path("home");
    let linked = lab.path("home/link/ssl/ps.sock");
    let wrapper = ["sh", "-c", script, home.to_str().unwrap()];
    for arguments in [
        ["--socket", "/srv/ps.sock"],
        ["--state-dir", "/srv/../srv"],
        ["--state-dir", "/etc/ssl/"],
        ["--socket", linked.to_str().unwrap()],
    ] {
        expect_refusal(&lab, &wrapper, &arguments, "it is a system directory");
        expect_refusal(&lab, &wrapper, &arguments, "owner 0\nowner 0");
    }
}

#[test]
fn only_own_files_in_directory_change_owner() {
    let Some(lab) = lab() else { return };
    let state = lab.path("state");
    let socket = lab.path("run/socket");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    chown(&state, Some(USER), Some(4_243)).unwrap();
    let secret = lab.write("secret", "owned by root");
    fs::hard_link(&secret, state.join("portsentry.history.1")).unwrap();
    symlink(&secret, state.join("portsentry.history.2")).unwrap();
    let [notes, rotated] = ["state/notes", "state/portsentry.history.3"].map(|name| lab.write(name, ""));
    Daemon::start(&lab, &["--socket", socket.to_str().unwrap()]).stop();
    assert_eq!(owner(&secret), 0, "the directory contains a hard link to it");
    assert_eq!(owner(&state.join("portsentry.history.2")), 0, "a link");
    assert_eq!(owner(&notes), 0, "by its name the file is not the program's");
    assert_eq!((owner(&rotated), owner(&lab.path("run"))), (USER, USER));
}

#[test]
fn shared_new_directory_is_given_to_user() {
    let Some(lab) = lab() else { return };
    let (state, socket) = (lab.path("home/own/state"), lab.path("home/own/socket"));
    fs::create_dir(lab.path("home/own")).unwrap();
    fs::set_permissions(lab.path("home/own"), Permissions::from_mode(0o755)).unwrap();
    let arguments = ["--state-dir", state.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    for _ in 0..2 {
        let daemon = Daemon::start(&lab, &arguments);
        assert_eq!([owner(&state), owner(&socket), owner(&lab.path("home/own"))], [USER; 3]);
        daemon.stop();
    }
}
