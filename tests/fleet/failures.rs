//! Tests failures of the server: killed, restarted, emptied, full, slow, or refusing this host.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use netns_lab::daemon::binary;
use netns_lab::fleet::{Member, engine, key};
use netns_lab::{Namespace, eventually};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn report_reaches_other_members() {
    let engine = engine(&[]);
    let [a, b, c] = Member::fleet(["a", "b", "c"], &engine);
    a.daemon.ban("203.0.113.7");
    for other in [&b, &c] {
        other.eventually("the report arrives", || other.daemon.has_report("a", "203.0.113.7"));
    }
    let report = b.daemon.received(|received| received.reports[0].clone());
    assert!((14_390..=14_400).contains(&report.remaining_s), "a day is reduced to four hours: {report:?}");
    assert_eq!((report.distinct_ports, report.class.as_str()), (5, "connect"));
    assert!(!a.daemon.has_report("a", "203.0.113.7"), "a host does not receive its own reports");
    let value = engine.admin(&["GET", &key("a", "203.0.113.7")]);
    let sequence = report.sequence;
    assert_eq!(value, format!(r#"{{"v":1,"class":"connect","ports":5,"grade":"proven","seq":{sequence}}}"#));
}

#[test]
fn late_joiner_is_complete_after_one_scan() {
    let engine = engine(&[]);
    let [a, b] = Member::fleet(["a", "b"], &engine);
    for host in 1..=20 {
        a.daemon.ban(&format!("203.0.113.{host}"));
        b.daemon.ban(&format!("2001:db8:0:{host:x}::/64"));
    }
    eventually("all reports are on the server", || engine.admin(&["DBSIZE"]) == "40");
    let [c] = Member::fleet(["c"], &engine);
    assert_eq!(c.daemon.received(|received| received.reports.len()), 40);
}

#[test]
fn missing_key_lifts_nothing() {
    let engine = engine(&[]);
    let [a, b] = Member::fleet(["a", "b"], &engine);
    a.daemon.ban("203.0.113.7");
    b.eventually("the report arrives", || b.daemon.has_report("a", "203.0.113.7"));
    a.daemon.unban("203.0.113.7");
    eventually("the key is deleted", || engine.admin(&["DBSIZE"]) == "0");
    assert_eq!(b.daemon.received(|received| received.lifts.len()), 0, "an expired key lifts nothing");
}

#[test]
fn operator_lift_reaches_all_hosts() {
    let engine = engine(&[]);
    let [a, b] = Member::fleet(["a", "b"], &engine);
    a.daemon.ban("203.0.113.7");
    b.eventually("the report arrives", || b.daemon.has_report("a", "203.0.113.7"));
    let config = engine.users().directory.path().join("operator.toml");
    fs::write(
        &config,
        format!("[fleet]\nname = \"lab\"\nhost = \"x\"\nurl = \"unix://{}\"\n", engine.socket().display()),
    )
    .unwrap();
    let lift = Command::new(binary())
        .args(["fleet", "lift", "203.0.113.7", "--for", "1h", "--config"])
        .arg(&config)
        .arg("--credentials")
        .arg(engine.users().password_file("operator"))
        .output()
        .unwrap();
    assert!(lift.status.success(), "{lift:?}");
    for member in [&a, &b] {
        member.eventually("the lift arrives", || member.daemon.received(|received| received.lifts == ["203.0.113.7"]));
    }
    let [c] = Member::fleet(["c"], &engine);
    assert!(!c.daemon.has_report("a", "203.0.113.7"), "a late joiner learns of the lift before the report");
    assert!(engine.admin(&["PTTL", "portsentry:lab:lift:203.0.113.7"]).parse::<u32>().unwrap() <= 3_600_000);
}

#[test]
fn restarted_server_gets_all_reports_again() {
    let mut engine = engine(&[]);
    let [a, b] = Member::fleet(["a", "b"], &engine);
    a.daemon.ban("203.0.113.7");
    b.eventually("the report arrives", || b.daemon.has_report("a", "203.0.113.7"));
    engine.kill();
    for member in [&a, &b] {
        member.eventually("it is away", || member.daemon.away().is_some());
        let lines = || member.log().lines().filter(|line| line.contains("detects and blocks scans as before")).count();
        member.eventually("the log says so", || lines() > 0);
        assert_eq!(lines(), 1, "{}", member.log());
    }
    // Meanwhile the hosts continue.
    a.daemon.ban("203.0.113.8");
    b.daemon.forget();
    assert!(!engine.users().directory.path().join("dump.rdb").exists(), "the server has saved nothing");
    engine.restart();
    b.eventually("it is connected again", || b.daemon.is_connected());
    b.eventually("the new report arrives", || b.daemon.has_report("a", "203.0.113.8"));
    eventually("the old report is on the server again", || engine.admin(&["DBSIZE"]) == "2");
    a.eventually("the log says so", || a.log().contains("connected to unix://") && a.log().contains(" again, after "));
    assert_eq!(b.daemon.received(|received| received.lifts.len()), 0, "an empty server lifts nothing");
}

#[test]
fn emptied_server_gets_all_reports_again() {
    let engine = engine(&[]);
    let [a] = Member::fleet(["a"], &engine);
    a.daemon.ban("203.0.113.7");
    eventually("the report is there", || engine.admin(&["DBSIZE"]) == "1");
    assert_eq!(engine.admin(&["FLUSHALL"]), "OK");
    a.eventually("the report is there again", || engine.admin(&["DBSIZE"]) == "1");
}

#[test]
fn full_server_is_reported_and_reports_follow() {
    let engine = engine(&["--maxmemory-policy", "noeviction"]);
    let [a, b] = Member::fleet(["a", "b"], &engine);
    assert_eq!(engine.admin(&["CONFIG", "SET", "maxmemory", "1"]), "OK");
    a.daemon.ban("203.0.113.7");
    a.eventually("the reason is logged", || a.log().contains("the server is out of memory"));
    assert!(a.daemon.is_connected() && a.log().contains("raise maxmemory"), "{}", a.log());
    assert_eq!(engine.admin(&["CONFIG", "SET", "maxmemory", "0"]), "OK");
    b.eventually("the report arrives later", || b.daemon.has_report("a", "203.0.113.7"));
}

#[test]
fn stopped_server_is_noticed_within_seconds() {
    let engine = engine(&[]);
    let [a] = Member::fleet(["a"], &engine);
    let id = Pid::from_raw(engine.id().try_into().unwrap()).unwrap();
    kill_process(id, Signal::STOP).unwrap();
    a.eventually("the missing reply is noticed", || a.daemon.away().is_some());
    assert!(a.daemon.away().unwrap().contains("did not answer within 5 s"), "{:?}", a.daemon.away());
    kill_process(id, Signal::CONT).unwrap();
    a.eventually("it is connected again", || a.daemon.is_connected());
}

#[test]
fn slow_server_delays_reports_only() {
    let engine = engine(&[]);
    let [a, b] = Member::fleet(["a", "b"], &engine);
    // Each answer takes longer than any page or report, and less than the time after which the server counts as away.
    assert_eq!(engine.admin(&["CLIENT", "PAUSE", "3000", "ALL"]), "OK");
    a.daemon.ban("203.0.113.7");
    b.eventually("the report arrives later", || b.daemon.has_report("a", "203.0.113.7"));
    for member in [&a, &b] {
        assert!(member.daemon.is_connected() && !member.log().contains("did not answer"), "{}", member.log());
    }
}

#[test]
fn gap_in_notices_finds_missed_report() {
    let engine = engine(&[]);
    let [a, b] = Member::fleet(["a", "b"], &engine);
    a.daemon.ban("203.0.113.7");
    b.eventually("the report arrives", || b.daemon.has_report("a", "203.0.113.7"));
    let scans = b.daemon.received(|received| received.scans);
    let sequence = b.daemon.received(|received| received.reports[0].sequence);
    // A report whose notice was lost, and the next notice.
    let value = format!(r#"{{"v":1,"class":"connect","ports":7,"grade":"proven","seq":{}}}"#, sequence + 1);
    engine.cli("a", &["SET", &key("a", "203.0.113.8"), &value, "PX", "3600000"]);
    let notice = format!(r#"{{"v":1,"seq":{},"target":"203.0.113.7"}}"#, sequence + 2);
    engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", &notice]);
    b.eventually("the scan finds it", || b.daemon.has_report("a", "203.0.113.8"));
    b.eventually("the scan ends", || b.daemon.received(|received| received.scans) > scans);
    assert_eq!(b.daemon.received(|received| received.scans), scans + 1, "one gap is one scan");
}

#[test]
fn wrong_password_or_rights_are_named() {
    let engine = engine(&[]);
    let url = format!("url = \"unix://{}\"", engine.socket().display());
    let other = engine.users().password_file("b");
    let mut refused = Member::start_with("a", &url, &other, &mut Command::new(binary()));
    refused
        .eventually("the reason is logged", || refused.log().contains("the server refused the user or the password"));
    refused.eventually("the daemon learns the reason", || {
        refused.daemon.away().is_some_and(|why| why.contains("password"))
    });
    assert!(refused.is_running());

    assert_eq!(engine.admin(&["ACL", "SETUSER", "c", "clearselectors"]), "OK");
    let denied = Member::start("c", &engine);
    denied.eventually("the reason is logged", || {
        denied.log().contains("compare the ACL with the output of `portsentry fleet acl`")
    });
}

#[test]
fn readable_password_file_ends_process() {
    let engine = engine(&[]);
    let path = engine.users().password_file("a");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let mut member = Member::start("a", &engine);
    member.eventually("it ends", || !member.log().is_empty());
    eventually("it ends", || !member.is_running());
    assert!(member.log().contains("(mode 0644); run: chmod 0600"), "{}", member.log());
}

#[test]
fn check_tries_password_and_server() {
    let engine = engine(&[]);
    let network = Namespace::with_loopback();
    let check = |user: &str| {
        let config = engine.users().directory.path().join("check.toml");
        let (socket, credentials) = (engine.socket().display(), engine.users().password_file(user));
        let text = format!(
            "[fleet]\nname = \"lab\"\nhost = \"a\"\nurl = \"unix://{socket}\"\ncredentials = {credentials:?}\n"
        );
        fs::write(&config, text).unwrap();
        let output = network.command(binary().to_str().unwrap()).arg("check").arg(&config).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let text = check("a");
    assert!(text.contains("the fleet's server accepts the user a"), "{text}");
    let text = check("b");
    assert!(text.contains("fleet.url") && text.contains("the server refused the user or the password"), "{text}");
    fs::set_permissions(engine.users().password_file("a"), Permissions::from_mode(0o644)).unwrap();
    let text = check("a");
    assert!(text.contains("fleet.credentials") && text.contains("other users can read"), "{text}");
}
