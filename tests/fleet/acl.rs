//! Tests on a real server that a host can only write its own keys: each refusal protects the author in a key's name.

use netns_lab::fleet::{Engine, Users};

const REPORT: &str = r#"{"v":1,"class":"connect","ports":7,"grade":"proven","seq":42}"#;

fn engine() -> Engine {
    Engine::start(Users::new(&["web-1", "web-10"]), &[])
}

#[test]
fn host_writes_its_own_reports() {
    let engine = engine();
    let key = "portsentry:lab:ban:web-1:203.0.113.7";
    assert_eq!(engine.cli("web-1", &["SET", key, REPORT, "PX", "60000"]), "OK");
    assert_eq!(engine.cli("web-10", &["GETRANGE", key, "0", "256"]), REPORT, "all may read");
    assert!(engine.cli("web-10", &["PTTL", key]).parse::<u32>().is_ok_and(|left| left > 50_000));
    assert!(engine.cli("web-10", &["SCAN", "0", "MATCH", "portsentry:lab:ban:*"]).contains(key));
    assert_eq!(engine.cli("web-1", &["PUBLISH", "portsentry:lab:news:web-1", "x"]), "0");
    assert_eq!(engine.cli("web-1", &["PING"]), "PONG");
    assert_eq!(engine.cli("web-1", &["DEL", key]), "1");
}

#[test]
fn operator_lifts_and_does_not_report() {
    let engine = engine();
    let lift = "portsentry:lab:lift:203.0.113.7";
    assert_eq!(engine.cli("operator", &["SET", lift, r#"{"v":1}"#, "PX", "60000"]), "OK");
    assert_eq!(engine.cli("operator", &["PUBLISH", "portsentry:lab:news:@operator", "x"]), "0");
    assert_eq!(engine.cli("operator", &["DEL", lift]), "1");
    for words in [
        &["SET", "portsentry:lab:ban:web-1:203.0.113.7", REPORT][..],
        &["PUBLISH", "portsentry:lab:news:web-1", "x"],
        &["FLUSHALL"],
    ] {
        let answer = engine.cli("operator", words);
        assert!(answer.starts_with("NOPERM"), "{words:?}: {answer}");
    }
}

#[test]
fn other_requests_of_host_are_refused() {
    let engine = engine();
    let (own, other) = ("portsentry:lab:ban:web-1:203.0.113.7", "portsentry:lab:ban:web-10:203.0.113.7");
    engine.admin(&["SET", "portsentry:other:ban:a:203.0.113.7", "x"]);
    engine.admin(&["SET", "other", "x"]);
    let refused: &[&[&str]] = &[
        // Writing reports of other hosts.
        &["SET", other, REPORT, "PX", "60000"],
        &["DEL", other],
        &["SET", "portsentry:lab:ban:web-1", "x"],
        &["SET", "portsentry:lab:ban:*", "x"],
        &["SET", "portsentry:lab:lift:203.0.113.7", r#"{"v":1}"#],
        &["DEL", "portsentry:lab:lift:203.0.113.7"],
        &["SET", "portsentry:other:ban:web-1:203.0.113.7", REPORT],
        &["SET", "other", "x"],
        // Publishing on channels of other hosts.
        &["PUBLISH", "portsentry:lab:news:web-10", "x"],
        &["PUBLISH", "portsentry:lab:news:@operator", "x"],
        &["PUBLISH", "portsentry:lab:news:*", "x"],
        &["PUBLISH", "portsentry:lab:news:web-1:x", "x"],
        &["PUBLISH", "other", "x"],
        &["SPUBLISH", "portsentry:lab:news:web-1", "x"],
        // Reading or subscribing to other keys and channels.
        &["GETRANGE", "other", "0", "256"],
        &["GETRANGE", "portsentry:other:ban:a:203.0.113.7", "0", "256"],
        &["PTTL", "other"],
        &["PSUBSCRIBE", "*"],
        &["PSUBSCRIBE", "portsentry:*"],
        &["PSUBSCRIBE", "portsentry:other:news:*"],
        &["SUBSCRIBE", "portsentry:lab:news:web-10"],
        // Other commands that write.
        &["GET", own],
        &["SETEX", own, "60", REPORT],
        &["SETRANGE", own, "0", "x"],
        &["APPEND", own, "x"],
        &["MSET", own, "x"],
        &["GETSET", own, "x"],
        &["RENAME", own, other],
        &["COPY", own, other],
        &["EXPIRE", own, "60"],
        &["PERSIST", own],
        &["UNLINK", own],
        &["LPUSH", own, "x"],
        &["HSET", own, "x", "y"],
        &["RESTORE", other, "0", "x"],
        &["EVAL", "return 1", "0"],
        &["FUNCTION", "LIST"],
        &["MULTI"],
        // Administration.
        &["KEYS", "*"],
        &["FLUSHALL"],
        &["FLUSHDB"],
        &["CONFIG", "GET", "*"],
        &["CONFIG", "SET", "maxmemory", "0"],
        &["ACL", "LIST"],
        &["ACL", "SETUSER", "web-1", "+@all"],
        &["CLIENT", "LIST"],
        &["CLIENT", "KILL", "TYPE", "normal"],
        &["CLIENT", "TRACKING", "ON"],
        &["PUBSUB", "CHANNELS"],
        &["SHUTDOWN"],
        &["REPLICAOF", "NO", "ONE"],
        &["MONITOR"],
        &["INFO"],
        &["DBSIZE"],
        &["SELECT", "1"],
        &["SWAPDB", "0", "1"],
    ];
    for words in refused {
        let answer = engine.cli("web-1", words);
        assert!(answer.starts_with("NOPERM"), "{words:?}: {answer}");
    }
    let stolen = engine.cli("default", &["PING"]);
    assert!(stolen.contains("WRONGPASS") || stolen.contains("NOAUTH"), "{stolen}");
    assert_eq!(engine.admin(&["DBSIZE"]), "2", "nothing was written");
}
