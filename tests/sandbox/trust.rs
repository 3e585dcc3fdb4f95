//! Tests that configuration files and commands that another user could change are refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use netns_lab::Lab;
use netns_lab::daemon::Daemon;

#[test]
fn changeable_files_stop_start_with_remedy() {
    let lab = Lab::new(&[]);
    let (directory, hook, ignore) = (lab.path("way"), lab.path("way/hook"), lab.write("ignore", ""));
    fs::create_dir(&directory).unwrap();
    fs::write(&hook, "#!/bin/sh\n").unwrap();
    let set = |path: &std::path::Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    [(&directory, 0o755), (&hook, 0o755)].iter().for_each(|(path, mode)| set(path, *mode));
    let text = format!(
        "[allow]\nfiles = [{ignore:?}]\n[block]\nmethod = [\"nft\", \"run\"]\n[block.run]\ncommand = [{hook:?}]\n"
    );
    let settings = lab.write("portsentry.toml", &text);
    set(&settings, 0o644);
    let arguments = ["--config", settings.to_str().unwrap()];
    for (path, good) in [(&settings, 0o644), (&ignore, 0o644), (&hook, 0o755), (&directory, 0o755)] {
        set(path, good | 0o022);
        let ended = Daemon::run_to_end(&lab, &[], &arguments);
        assert_eq!(ended.status.code(), Some(78), "{}", ended.log);
        let remedy = format!("run: chmod go-w {}", path.display());
        assert!(ended.log.trim_end().ends_with(&remedy), "{}", ended.log);
        set(path, good);
    }
    let daemon = Daemon::start(&lab, &arguments);
    set(&settings, 0o666);
    daemon.signal(Signal::HUP);
    let line = daemon.expect_line("the old one stays in force");
    assert!(line.contains("every user can write to"), "{line}");
    daemon.stop();
}
