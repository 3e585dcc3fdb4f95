//! Tests which files a daemon in its sandbox can access: its configuration and its state, and no others.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::process::Signal;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, within};

#[test]
fn reload_recreates_rotated_file() {
    let lab = Lab::new(&["attacker"]);
    let (events, moved) = (lab.path("events"), lab.path("events.1"));
    let report = format!("[report]\njson_file = {events:?}\n");
    let daemon = Daemon::start_configured(&lab, &report, &["--scan-trigger", "0"]);
    within(TIMEOUT, || fs::metadata(&events).ok()).expect("it is made");
    fs::rename(&events, &moved).unwrap();
    // Another file of the same name, as an editor creates it.
    let fresh = lab.write("fresh", &format!("expire = \"2h\"\n{report}"));
    fs::rename(fresh, lab.path("portsentry.toml")).unwrap();
    daemon.signal(Signal::HUP);
    daemon.expect_line("the new configuration is in force; changed: expire");
    let text = within(TIMEOUT, || fs::read_to_string(&events).ok().filter(|text| text.contains("new configuration")));
    assert!(text.is_some(), "{:?}", fs::read_to_string(&moved));
    lab.probe_v4("attacker", &[23]);
    daemon.expect_line("has been blocked via nftables set inet portsentry blocked for 2h");
    daemon.stop();
}

#[test]
fn reload_refuses_file_outside_sandbox() {
    if !super::has_landlock() {
        return println!("skipped: this kernel has no Landlock, and no file is out of reach");
    }
    let lab = Lab::new(&[]);
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let ignore = elsewhere.path().display();
    let daemon = Daemon::start_configured(&lab, "", &[]);
    lab.write("portsentry.toml", &format!("expire = \"2h\"\n[allow]\nfiles = [\"{ignore}\"]\n"));
    daemon.signal(Signal::HUP);
    let line = daemon.expect_line("the old one stays in force");
    let why = format!(
        "allow.files: {ignore} cannot be read, because the sandbox from the start of portsentry forbids it; restart \
         portsentry"
    );
    assert!(line.ends_with(&why), "{line}");
    lab.write("portsentry.toml", "expire = \"3h\"\n[report]\njson_file = \"/var/tmp/portsentry-events\"\n");
    daemon.signal(Signal::HUP);
    let line = daemon.expect_line("report.json_file: ");
    assert!(line.contains("/var/tmp/portsentry-events cannot be written, because the sandbox"), "{line}");
    daemon.stop();
}

#[test]
fn landlock_denies_other_files() {
    if !super::has_landlock() {
        return println!("skipped: this kernel has no Landlock, and no file is out of reach");
    }
    let lab = Lab::new(&[]);
    let ignore = lab.write("ignore", "192.0.2.7\n");
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("secret"), "192.0.2.8\n").unwrap();
    let configuration = format!("[allow]\nfiles = [{ignore:?}]\n");
    let swap = |target: &std::path::Path| {
        let _ = fs::remove_file(lab.path("link"));
        symlink(target, lab.path("link")).unwrap();
        fs::rename(lab.path("link"), &ignore).unwrap();
    };
    let daemon = Daemon::start_configured(&lab, &configuration, &[]);
    for target in ["/etc/shadow".as_ref(), secret.path().join("secret").as_path()] {
        swap(target);
        within(TIMEOUT, || {
            (!daemon.lines_with("ignore: cannot read the file: Permission denied").is_empty()).then_some(())
        })
        .unwrap_or_else(|| panic!("{:?}", daemon.lines_with("ignore")));
        fs::remove_file(&ignore).unwrap();
        lab.write("ignore", "192.0.2.7\n");
        daemon.expect_line("was reloaded");
    }
    daemon.stop();
    // Without the sandbox the same link is followed, so the file's mode was not the reason.
    let daemon = Daemon::start_configured(&lab, &configuration, &["--no-sandbox"]);
    swap(&secret.path().join("secret"));
    daemon.expect_line("ignore was reloaded");
    daemon.stop();
}
