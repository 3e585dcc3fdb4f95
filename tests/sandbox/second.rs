//! One daemon for each network namespace.

use netns_lab::Lab;
use netns_lab::daemon::Daemon;

#[test]
fn a_second_daemon_refuses_and_names_the_first_and_touches_nothing() {
    let lab = Lab::new(&[]);
    let first = Daemon::start(&lab, &[]);
    let before = lab.run("victim", "nft", &["list", "ruleset"]);
    for arguments in [&["--log-only"][..], &["--no-sandbox"]] {
        let ended = Daemon::run_to_end(&lab, &[], arguments);
        assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
        let expected = format!("portsentry runs already in this network namespace, as process {};", first.id());
        assert!(ended.log.contains(&expected) && ended.log.lines().count() == 1, "{}", ended.log);
    }
    assert_eq!(lab.run("victim", "nft", &["list", "ruleset"]), before);
    assert!(lab.path("socket").exists(), "the first one's");
    // A crash leaves nothing behind that would be in the way.
    first.kill();
    Daemon::start(&lab, &[]).stop();
}

#[test]
fn another_network_namespace_has_its_own() {
    let (one, other) = (Lab::new(&[]), Lab::new(&[]));
    let first = Daemon::start(&one, &[]);
    Daemon::start(&other, &[]).stop();
    first.stop();
}

#[test]
fn a_user_without_rights_who_holds_the_name_keeps_no_daemon_from_starting() {
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
    let mut said = std::io::BufReader::new(holder.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "holds\n");
    let daemon = Daemon::start(&lab, &[]);
    let doubt = daemon.expect_line("holds the abstract socket @portsentry");
    assert!(doubt.contains("user 65534"), "{doubt}");
    daemon.stop();
    holder.kill().unwrap();
    holder.wait().unwrap();
}
