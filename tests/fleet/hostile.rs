//! Tests a host with stolen credentials, and a malicious server.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;

use netns_lab::daemon::binary;
use netns_lab::fleet::{Member, Users, engine, key};

const REPORT: &str = r#"{"v":1,"class":"connect","ports":7,"grade":"proven","seq":42}"#;

#[test]
fn malformed_keys_name_their_author() {
    let engine = engine(&[]);
    let set = |target: &str, value: &str, rest: &[&str]| {
        let answer = engine.cli("a", &[&["SET", &key("a", target), value], rest].concat());
        assert_eq!(answer, "OK", "{target}");
    };
    let hour = &["PX", "3600000"];
    for target in
        ["0.0.0.0/0", "10.0.0.0/8", "::/0", "2001:db8::/48", "203.0.113.7/32", "localhost", "b:203.0.113.7", ""]
    {
        set(target, REPORT, hour);
    }
    set(&"7".repeat(100_000), REPORT, hour);
    set("203.0.113.1", REPORT, &[]);
    set("203.0.113.2", REPORT, &["PX", "14500000"]);
    for (host, value) in [(3, "{"), (4, ""), (5, r#"{"v":2}"#), (6, &"x".repeat(100_000)), (7, "[[[[[[[[")] {
        set(&format!("203.0.113.{host}"), value, hour);
    }
    set("203.0.113.99", REPORT, hour);
    let [b] = Member::fleet(["b"], &engine);
    let taken = b.daemon.received(|received| received.reports.iter().map(|one| one.target.clone()).collect::<Vec<_>>());
    assert_eq!(taken, ["203.0.113.99"], "only well-formed keys are accepted");
    b.eventually("the author is named", || b.log().contains("host a on the server is ignored: "));
    assert!(b.log().lines().count() < 10, "one line per key would be a flood: {}", b.log());
    b.eventually("the daemon knows the author", || {
        b.daemon.received(|received| received.ignored.first().is_some_and(|one| one.author == "a"))
    });

    // The same with notices instead of keys.
    for target in ["203.0.113.1", "203.0.113.3", "0.0.0.0/0"] {
        let notice = format!(r#"{{"v":1,"seq":1,"target":"{target}"}}"#);
        assert_eq!(engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", &notice]), "1");
    }
    engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", "{"]);
    let notice = r#"{"v":1,"seq":2,"target":"203.0.113.200"}"#;
    engine.cli("a", &["SET", &key("a", "203.0.113.200"), REPORT, "PX", "3600000"]);
    engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", notice]);
    b.eventually("a valid report still arrives", || b.daemon.has_report("a", "203.0.113.200"));
    assert_eq!(b.daemon.received(|received| received.reports.len()), 2);
}

#[test]
fn reports_of_one_author_are_limited() {
    let engine = engine(&[]);
    let fill = r#"for i = 0, 99999 do
        redis.call('SET', 'portsentry:lab:ban:a:10.' .. math.floor(i / 65536) .. '.' .. math.floor(i / 256) % 256 .. '.' .. i % 256,
            ARGV[1], 'PX', 3600000) end"#;
    engine.admin(&["EVAL", fill, "0", REPORT]);
    engine.cli("c", &["SET", &key("c", "203.0.113.7"), REPORT, "PX", "3600000"]);
    let [b] = Member::fleet(["b"], &engine);
    assert!(b.daemon.has_report("c", "203.0.113.7"), "other authors are read nevertheless");
    let of_a = b.daemon.received(|received| received.reports.iter().filter(|one| one.author == "a").count());
    assert!((9_000..=10_000).contains(&of_a), "{of_a}");
    b.eventually("the author is named", || b.log().contains("host a on the server is ignored: more than 10000 keys"));
    assert!(b.resident() < 64 << 10, "{} KiB", b.resident());
}

#[test]
fn flood_of_notices_delays_no_other_author() {
    let engine = engine(&[]);
    let [b, c] = Member::fleet(["b", "c"], &engine);
    let flood = r#"for i = 1, 20000 do
        redis.call('PUBLISH', 'portsentry:lab:news:a', '{"v":1,"seq":' .. i .. ',"target":"10.0.' .. math.floor(i / 256) % 256 .. '.' .. i % 256 .. '"}') end"#;
    engine.admin(&["EVAL", flood, "0"]);
    c.daemon.ban("203.0.113.7");
    b.eventually("the other report arrives", || b.daemon.has_report("c", "203.0.113.7"));
    b.eventually("the author is named", || b.log().contains("host a on the server is ignored: more than 600 notices"));
    assert!(b.resident() < 64 << 10, "{} KiB", b.resident());
}

#[test]
fn invented_authors_share_log_lines() {
    let engine = engine(&[]);
    let [b] = Member::fleet(["b"], &engine);
    let flood = "for i = 1, 2000 do redis.call('PUBLISH', 'portsentry:lab:news:h' .. i, '{') end";
    engine.admin(&["EVAL", flood, "0"]);
    let last = "no further lines about ignored data on the server for up to an hour";
    b.eventually("the last line says so", || b.log().contains(last));
    // A valid report after the flood: everything before it has been handled.
    engine.cli("a", &["SET", &key("a", "203.0.113.200"), REPORT, "PX", "3600000"]);
    engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", r#"{"v":1,"seq":1,"target":"203.0.113.200"}"#]);
    b.eventually("another author's report arrives", || b.daemon.has_report("a", "203.0.113.200"));
    let named = b.log().lines().filter(|line| line.contains(" on the server is ignored: ")).count();
    assert_eq!(named, 64, "the number of authors does not multiply the lines");
    assert_eq!(b.log().lines().filter(|line| line.contains(last)).count(), 1);
}

#[test]
fn megabyte_key_names_are_refused() {
    let engine = engine(&["--proto-max-bulk-len", "1mb"]);
    let fill = r#"for i = 1, 24 do
        redis.call('SET', 'portsentry:lab:ban:a:' .. i .. string.rep('x', 1000000), 'x', 'PX', 3600000) end"#;
    engine.admin(&["EVAL", fill, "0"]);
    for host in 1..=50 {
        engine.cli("c", &["SET", &key("c", &format!("203.0.113.{host}")), REPORT, "PX", "3600000"]);
    }
    let [b] = Member::fleet(["b"], &engine);
    let reports = b.daemon.received(|received| {
        received.reports.iter().map(|one| one.target.clone()).collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(reports.len(), 50, "{}", b.log());
    b.eventually("the author is named", || {
        b.log().contains("host a on the server is ignored: a key is invalid (it is too long)")
    });
    assert!(b.resident() < 64 << 10, "{} KiB", b.resident());
}

#[test]
fn endless_reply_of_server_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            // A string of half a gigabyte that never ends.
            let _ = stream.write_all(b"$536870912\r\n");
            while stream.write_all(&[b'x'; 65_536]).is_ok() {}
        }
    });
    let users = Users::new(&["a"]);
    let url = format!("url = \"unix://{}\"", path.display());
    let mut member = Member::start_with("a", &url, &users.password_file("a"), &mut Command::new(binary()));
    member.eventually("the reason is logged", || member.log().contains("a reply of the server is too large"));
    assert!(member.is_running() && member.resident() < 64 << 10, "{} KiB", member.resident());
}
