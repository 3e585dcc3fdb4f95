//! Tests that at most one daemon runs per network namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, eventually};
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, Signal};

#[test]
fn second_daemon_refuses_and_changes_nothing() {
    let lab = Lab::new(&[]);
    let first = Daemon::start(&lab, &[]);
    let before = lab.nft("list ruleset");
    for arguments in [&["--log-only"][..], &["--no-sandbox"]] {
        let ended = Daemon::run_to_end(&lab, &[], arguments);
        assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
        let expected = format!("portsentry is already running in this network namespace, as process {};", first.id());
        assert!(ended.log.contains(&expected) && ended.log.lines().count() == 1, "{}", ended.log);
    }
    assert_eq!(lab.nft("list ruleset"), before);
    assert!(lab.path("socket").exists(), "the first one's");
    // A crash leaves no obstacle behind.
    first.kill();
    Daemon::start(&lab, &[]).stop();
}

#[test]
fn daemons_run_in_separate_namespaces() {
    let (one, other) = (Lab::new(&[]), Lab::new(&[]));
    let first = Daemon::start(&one, &[]);
    Daemon::start(&other, &[]).stop();
    first.stop();
}

#[test]
fn answered_socket_is_never_replaced() {
    let (one, other) = (Lab::new(&[]), Lab::new(&[]));
    let first = Daemon::start(&one, &[]);
    let socket = one.path("socket");
    let before = fs::metadata(&socket).unwrap().ino();
    // It runs in another namespace, so only the socket prevents its start.
    let second = Daemon::start(&other, &["--socket", socket.to_str().unwrap()]);
    let refused = format!("another portsentry answers at {}; use another path with --socket", socket.display());
    second.expect_line(&refused);
    one.succeed(&["status"]);
    second.stop();
    assert_eq!(fs::metadata(&socket).unwrap().ino(), before, "at its end it leaves the first daemon's socket");
    one.succeed(&["status"]);
    // A socket that does not accept connections is still in use.
    first.frozen(|| {
        let second = Daemon::start(&other, &["--socket", socket.to_str().unwrap()]);
        second.expect_line(&refused);
        second.stop();
    });
    one.succeed(&["status"]);
    first.stop();
    assert!(!socket.exists(), "the daemon removes its socket");
}

#[test]
fn one_of_two_daemons_replaces_stale_socket() {
    let (one, other) = (Lab::new(&[]), Lab::new(&[]));
    let socket = one.path("socket");
    for _ in 0..3 {
        // A crash has left a socket.
        let _ = fs::remove_file(&socket);
        let crashed = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // A process that another test has just started may hold a closed socket for a moment.
        shutdown(&crashed, Shutdown::Both).unwrap();
        let daemons = [&one, &other].map(|lab| Daemon::spawn(lab, &[], &["--socket", socket.to_str().unwrap()]));
        daemons.iter().for_each(|daemon| drop(daemon.expect_line("is now active and listening")));
        let refused = daemons.iter().filter(|daemon| !daemon.lines_with("another portsentry answers").is_empty());
        assert_eq!(refused.count(), 1);
        one.succeed(&["status"]);
        for daemon in daemons {
            daemon.stop();
        }
    }
}

#[test]
fn unprivileged_lock_holder_prevents_no_start() {
    if !netns_lab::has_other_users() {
        return;
    }
    let lab = Lab::new(&[]);
    let script = r#"use Socket; $| = 1;
my $held; socket($held, AF_UNIX, SOCK_STREAM, 0) or die;
bind($held, pack_sockaddr_un("\0portsentry")) && listen($held, 8) or die;
print "holds\n"; sleep 600;"#;
    let mut command = lab.command("victim", "setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-e", script]);
    let mut holder = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(holder.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "holds\n");
    let daemon = Daemon::start(&lab, &[]);
    let doubt = daemon.expect_line("occupies the abstract socket @portsentry");
    assert!(doubt.contains("user 65534"), "{doubt}");
    daemon.stop();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn background_start_returns_when_monitoring() {
    let lab = Lab::new(&["attacker"]);
    let command = || {
        let mut command = lab.command("victim", netns_lab::daemon::binary().to_str().unwrap());
        command.args(["--daemon", "-atcp", "--state-dir"]).arg(lab.path("state"));
        command.arg("--socket").arg(lab.path("socket"));
        command
    };
    let first = command().output().unwrap();
    assert!(first.status.success(), "{first:?}");
    // Returns immediately: the other daemon already monitors.
    let status = lab.ask(&["status"]);
    let process = Pid::from_raw(i32::try_from(status["process"].as_u64().unwrap()).unwrap()).unwrap();
    assert_eq!(rustix::process::getsid(Some(process)).unwrap(), process, "the daemon has its own session");
    lab.provoke_ban("attacker");

    let second = command().output().unwrap();
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{errors}");
    assert!(errors.contains("is already running") && errors.contains("one process monitors TCP and UDP"), "{errors}");

    rustix::process::kill_process(process, Signal::TERM).unwrap();
    eventually("it has ended", || rustix::process::test_kill_process(process).is_err());
}

#[test]
fn background_start_reports_failures() {
    let lab = Lab::new(&[]);
    let config = lab.write("wrong.toml", "expire = \"soon\"\n");
    let mut command = lab.command("victim", netns_lab::daemon::binary().to_str().unwrap());
    let output = command.args(["--daemon", "--interface", "none", "--config"]).arg(config).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let mut command = lab.command("victim", netns_lab::daemon::binary().to_str().unwrap());
    command.args(["--daemon", "--interface", "none", "--state-dir"]).arg(lab.path("state"));
    let output = command.arg("--socket").arg(lab.path("socket")).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && errors.contains("there is no interface none"), "{errors}");
}

#[test]
fn classic_mode_in_foreground_names_daemon_option() {
    let lab = Lab::new(&[]);
    let daemon = Daemon::start(&lab, &["-atcp"]);
    daemon.expect_line("portsentry runs in the foreground, unlike classic PortSentry");
    daemon.stop();
}

/// systemd starts rc.local with this variable, and the daemon that it starts inherits it.
#[test]
fn script_of_service_gets_foreground_hint() {
    let lab = Lab::new(&[]);
    let daemon = Daemon::start_under(&lab, &["env", "INVOCATION_ID=0123456789abcdef0123456789abcdef"], &["-atcp"]);
    daemon.expect_line("portsentry runs in the foreground, unlike classic PortSentry");
    daemon.stop();
}
