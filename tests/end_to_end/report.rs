//! Tests where the program reports events: the JSON file, syslog and the journal.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, eventually, json_lines, within};

/// Gives the program its own /dev, in which `log` links to the path given next.
const OWN_DEV_LOG: &str = r#"
set -e
mkdir "$0"
mount -t tmpfs tmpfs "$0"
for node in null zero random urandom; do : >"$0/$node"; mount --bind "/dev/$node" "$0/$node"; done
ln -s "$1" "$0/log"
mount --move "$0" /dev
shift
exec "$@"
"#;

/// Gives the program its own /run, in which the journal's socket links to the path given next.
const OWN_JOURNAL: &str = r#"
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal
ln -s "$0" /run/systemd/journal/socket
exec "$@"
"#;

/// Mounts a disk with 8 KiB of free space. Once the rest is free, it holds everything that the test writes.
const SMALL_DISK: &str = r#"
set -e
mkdir "$0"
mount -t tmpfs -o size=64k tmpfs "$0"
head -c 57344 /dev/zero >"$0/ballast"
exec "$@"
"#;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Waits for an event of this kind about `source`.
fn expect(path: &Path, kind: &str, source: Option<&str>) -> Value {
    let matches_event = |event: &Value| event["event"] == kind && source.is_none_or(|source| event["source"] == source);
    let found = within(TIMEOUT, || json_lines(path).into_iter().find(matches_event));
    found.unwrap_or_else(|| panic!("no {kind} of {source:?} in {:?}", std::fs::read_to_string(path)))
}

#[test]
fn json_file_has_every_event_despite_logrotate() {
    let lab = Lab::new(&["attacker", "other"]);
    let (path, moved) = (lab.path("events.json"), lab.path("events.json.1"));
    let daemon = Daemon::start_configured(&lab, &format!("[report]\njson_file = {path:?}\n"), &[]);
    let attacker = lab.provoke_ban("attacker").to_string();
    expect(&path, "start", None);
    let probe = expect(&path, "probe", Some(&attacker));
    assert_eq!((&probe["proto"], &probe["port"]), (&"tcp".into(), &901.into()), "{probe}");
    let ban = expect(&path, "block", Some(&attacker));
    assert!(ban["expires"].is_string() && ban["reason"].is_string(), "{ban}");

    std::fs::rename(&path, &moved).unwrap();
    daemon.signal(Signal::HUP);
    expect(&path, "note", None);
    let before = std::fs::read(&moved).unwrap();
    let other = lab.provoke_ban("other").to_string();
    expect(&path, "block", Some(&other));
    daemon.stop();
    expect(&path, "stop", None);
    assert_eq!(std::fs::read(&moved).unwrap(), before);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o137, 0, "{mode:o}");
}

#[test]
fn full_disk_is_reported_once() {
    let lab = Lab::new(&["attacker", "other"]);
    let disk = lab.path("disk");
    let path = disk.join("events.json");
    let config = lab.write("portsentry.toml", &format!("[report]\njson_file = {path:?}\n"));
    let wrapper = ["sh", "-c", SMALL_DISK, text(&disk)];
    let daemon = Daemon::start_under(&lab, &wrapper, &["--config", text(&config)]);
    let sources = lab.add_addresses("attacker", 10..110);
    for source in &sources {
        lab.probe("attacker", (*source).into(), lab.victim_v4("attacker").into(), &[23]);
    }
    let line = daemon.expect_line("cannot write events to");
    assert!(line.contains("No space left on device") && line.contains("report.json_file"), "{line}");
    let other = lab.provoke_ban("other");
    // The mounts exist only in the program's namespace.
    let inside = PathBuf::from(format!("/proc/{}/root{}", daemon.id(), disk.display()));
    let written = json_lines(&inside.join("events.json"));
    assert!(!written.is_empty() && written.len() < sources.len(), "{} events fit", written.len());
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(daemon.lines_with("cannot write events to").len(), 1);

    std::fs::remove_file(inside.join("ballast")).unwrap();
    std::fs::remove_file(inside.join("events.json")).unwrap();
    let line = daemon.expect_line("events are written to");
    assert!(line.contains("again; events lost: 0"), "{line}");
    expect(&inside.join("events.json"), "block", Some(&other.to_string()));
    daemon.stop();
}

fn next(socket: &UnixDatagram) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let length = socket.recv(&mut bytes).expect("something comes");
    bytes.truncate(length);
    bytes
}

fn receive_until(socket: &UnixDatagram, part: &str) -> String {
    loop {
        let line = String::from_utf8(next(socket)).expect("lines are text");
        if line.contains(part) {
            return line;
        }
    }
}

fn listen(path: &Path) -> UnixDatagram {
    let _ = std::fs::remove_file(path);
    let socket = UnixDatagram::bind(path).unwrap();
    // As with a syslog daemon: the program runs as another user.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

#[test]
fn restarted_syslog_gets_classic_lines() {
    let lab = Lab::new(&["attacker", "other"]);
    let path = lab.path("log");
    let syslog = listen(&path);
    let config = lab.write("portsentry.toml", "[report]\nlog = \"syslog\"\nfacility = \"local3\"\n");
    let dev = lab.path("dev");
    let wrapper = ["sh", "-c", OWN_DEV_LOG, text(&dev), text(&path)];
    let daemon = Daemon::start_elsewhere(&lab, &wrapper, &["--config", text(&config)]);
    let id = daemon.id();
    let line = receive_until(&syslog, "is now active");
    assert_eq!(line, format!("<157>portsentry[{id}]: adminalert: PortSentry is now active and listening."));
    let attacker = lab.provoke_ban("attacker");
    let line = receive_until(&syslog, "scan from host");
    let expected = format!("attackalert: TCP SYN/Normal scan from host: {attacker}/{attacker} to TCP port: 901");
    assert_eq!(line, format!("<156>portsentry[{id}]: {expected}"));
    receive_until(&syslog, "has been blocked via");
    // A process that another test has just started may hold the socket for a moment.
    syslog.shutdown(std::net::Shutdown::Both).unwrap();
    let syslog = listen(&path);
    let other = lab.provoke_ban("other");
    receive_until(&syslog, &format!("attackalert: Host {other} has been blocked"));
    daemon.stop();
    let line = receive_until(&syslog, "shutting down");
    assert_eq!(line, format!("<156>portsentry[{id}]: securityalert: PortSentry is shutting down"));
}

#[test]
fn missing_syslog_uses_standard_error() {
    let lab = Lab::new(&["attacker"]);
    let config = lab.write("portsentry.toml", "[report]\nlog = \"syslog\"\n");
    let (dev, nobody) = (lab.path("dev"), lab.path("nobody"));
    let wrapper = ["sh", "-c", OWN_DEV_LOG, text(&dev), text(&nobody)];
    let daemon = Daemon::start_under(&lab, &wrapper, &["--config", text(&config)]);
    let lines = daemon.lines_with("the syslog daemon at /dev/log is not available");
    assert!(lines.len() == 1 && lines[0].starts_with("adminalert: ERROR: "), "{lines:?}");
    let attacker = lab.provoke_ban("attacker");
    daemon.expect_line(&format!("Host {attacker} has been blocked via"));
    daemon.stop();
}

/// The fields of a message in the journal's native protocol: `NAME=value`, or the name, its length and the value.
fn fields(mut message: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some(end) = message.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(&message[..end]).into_owned();
        let rest = &message[end + 1..];
        if let Some((name, value)) = line.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            message = rest;
        } else {
            let (length, rest) = rest.split_at(8);
            let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
            fields.insert(line, String::from_utf8_lossy(&rest[..length]).into_owned());
            message = &rest[length + 1..];
        }
    }
    fields
}

#[test]
fn journal_gets_line_and_fields() {
    let lab = Lab::new(&["attacker"]);
    let path = lab.path("journal");
    let journal = listen(&path);
    let config = lab.write("portsentry.toml", "[report]\nlog = \"journal\"\n");
    let wrapper = ["sh", "-c", OWN_JOURNAL, text(&path)];
    let daemon = Daemon::start_elsewhere(&lab, &wrapper, &["--config", text(&config)]);
    let receive = |kind: &str| loop {
        let found = fields(&next(&journal));
        if found.get("PORTSENTRY_EVENT").is_some_and(|event| event == kind) {
            return found;
        }
    };
    receive("start");
    let attacker = lab.provoke_ban("attacker").to_string();
    let probe = receive("probe");
    let line = format!("attackalert: TCP SYN/Normal scan from host: {attacker}/{attacker} to TCP port: 901");
    for (name, value) in [
        ("MESSAGE", line.as_str()),
        ("SYSLOG_IDENTIFIER", "portsentry"),
        ("SYSLOG_FACILITY", "3"),
        ("PRIORITY", "4"),
        ("PORTSENTRY_SOURCE", &attacker),
        ("PORTSENTRY_PROTO", "tcp"),
        ("PORTSENTRY_PORT", "901"),
    ] {
        assert_eq!(probe.get(name).map(String::as_str), Some(value), "{name} in {probe:?}");
    }
    assert!(!probe.contains_key("PORTSENTRY_EXPIRES") && !probe.contains_key("PORTSENTRY_NAME"), "{probe:?}");
    let ban = receive("block");
    assert!(ban["PORTSENTRY_EXPIRES"].ends_with('Z') && !ban["PORTSENTRY_REASON"].is_empty(), "{ban:?}");
    let json: Value = serde_json::from_str(&ban["PORTSENTRY_JSON"]).unwrap();
    assert_eq!(json["source"], attacker);
    daemon.stop();
}

/// Starts the program with a journal that does not read, and adds so many bans with nft that their lines fill the queue of
/// the journal's socket.
/// Returns the banned addresses.
fn start_with_stalled_journal(lab: &Lab, path: &Path) -> (Daemon, Vec<String>) {
    let config = lab.write("portsentry.toml", "[report]\nlog = \"journal\"\n");
    let wrapper = ["sh", "-c", OWN_JOURNAL, text(path)];
    let daemon = Daemon::start_elsewhere(lab, &wrapper, &["--config", text(&config)]);
    eventually("the daemon answers", || lab.operate(&["status"]).code == Some(0));
    let limit = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").expect("it is readable");
    let limit: usize = limit.trim().parse().expect("it is a number");
    let addresses: Vec<String> = (1..=limit + 20).map(|n| format!("198.51.{}.{}", n / 200, 1 + n % 200)).collect();
    let elements = addresses.iter().map(|address| format!("{address} timeout 1h")).collect::<Vec<_>>().join(", ");
    lab.nft(&format!("add element inet portsentry blocked {{ {elements} }}"));
    (daemon, addresses)
}

#[test]
fn stalled_journal_delays_neither_operator_nor_end() {
    let lab = Lab::new(&["scanner"]);
    let path = lab.path("journal");
    let _stalled = listen(&path);
    let (daemon, _) = start_with_stalled_journal(&lab, &path);
    lab.provoke_ban("scanner");
    lab.victim_ip("route add 172.31.0.0/16 via 10.77.1.66");
    eventually("a new gateway is known", || lab.set_text("allowed").contains("10.77.1.66"));
    lab.succeed(&["status"]);
    let (ended, took) = daemon.end_by(Signal::TERM);
    assert!(ended.status.success() && took < Duration::from_secs(5) * netns_lab::slowness(), "{ended:?}, {took:?}");
}

#[test]
fn late_journal_gets_all_log_lines() {
    let lab = Lab::new(&["scanner"]);
    let path = lab.path("journal");
    let journal = listen(&path);
    let (daemon, addresses) = start_with_stalled_journal(&lab, &path);
    lab.provoke_ban("scanner");
    for address in addresses {
        // The datagrams are in the order of the lines.
        while fields(&next(&journal)).get("PORTSENTRY_SUBJECT") != Some(&address) {}
    }
    daemon.stop();
}

#[test]
fn single_probes_are_not_logged_if_disabled() {
    let lab = Lab::new(&["suspect", "attacker"]);
    let daemon = Daemon::start_configured(&lab, "[report]\nsingle_probes = false\n", &[]);
    let suspect = lab.v4("suspect");
    lab.probe("suspect", suspect.into(), lab.victim_v4("suspect").into(), &[901]);
    let attacker = lab.provoke_ban("attacker");
    daemon.expect_line(&format!("Host {attacker} has been blocked via"));
    assert_eq!(daemon.lines_with(&suspect.to_string()), [""; 0]);
    let log = daemon.stop();
    let line = log.lines().find(|line| line.contains("single probe")).unwrap_or_else(|| panic!("{log}"));
    let expected = "adminalert: 1 single probe within ";
    assert!(line.starts_with(expected), "the probes of the banned source are not counted: {line}");
    assert!(line.contains("s without log lines of their own"), "the span is that since the start: {line}");
}
