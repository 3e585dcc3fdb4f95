//! Tests host names in the log: they come from name servers that remote hosts control.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use regex::Regex;

use crate::name_server::{NameServer, Query};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, eventually, slowness};

const NAMED: &str = "[report]\nresolve_host = true\n";
const PTR: u16 = 12;
const CNAME: u16 = 5;
const A: u16 = 1;

/// The reply of a name server about an address.
#[derive(Clone)]
enum Reply {
    /// A name, as the bytes of its labels.
    Name(Vec<Vec<u8>>),
    /// The same, after a delay.
    Late(Duration, Vec<Vec<u8>>),
    /// Another name, which is an alias of itself.
    Loop,
    /// Raw data of a PTR record.
    Raw(Vec<u8>),
    /// A header without further data.
    Cut,
    Nothing,
}

fn name(text: &str) -> Reply {
    Reply::Name(labels(text))
}

fn labels(text: &str) -> Vec<Vec<u8>> {
    text.split('.').map(|label| label.as_bytes().to_vec()).collect()
}

fn encoded(labels: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        labels.iter().flat_map(|label| [&[u8::try_from(label.len()).unwrap()][..], label].concat()).collect();
    bytes.push(0);
    bytes
}

/// Starts a malicious name server on `host`. Every name resolves to all of the addresses with replies, except
/// `victim.lab.example`, which belongs to another host.
fn hostile_server(lab: &Lab, host: &str, replies: BTreeMap<Ipv4Addr, Reply>) -> NameServer {
    NameServer::start(lab, host, move |query| answer(query, &replies))
}

fn answer(query: &Query<'_>, replies: &BTreeMap<Ipv4Addr, Reply>) -> Option<(Duration, Vec<u8>)> {
    let &Query { id, question, name, kind } = query;
    let queried_name = text(name);
    let message = |records: &[(Vec<u8>, u16, Vec<u8>)]| {
        let records: Vec<u8> = records
            .iter()
            .flat_map(|(owner, kind, data)| {
                let length = u16::try_from(data.len()).unwrap().to_be_bytes();
                [owner, &kind.to_be_bytes()[..], &[0, 1, 0, 0, 0, 1], &length, data].concat()
            })
            .collect();
        records
    };
    let whole = |records: &[(Vec<u8>, u16, Vec<u8>)]| {
        let count = u16::try_from(records.len()).unwrap().to_be_bytes();
        [id, &[0x81, 0x80, 0, 1], &count, &[0; 4], question, &message(records)].concat()
    };
    let itself = vec![0xc0, 12];
    let now = Duration::ZERO;
    let Some(reverse) = queried_name.strip_suffix(".in-addr.arpa") else {
        let addresses: Vec<Ipv4Addr> = match queried_name.as_str() {
            "victim.lab.example" => vec![Ipv4Addr::new(10, 0, 0, 1)],
            _ => replies.keys().copied().collect(),
        };
        let records = addresses.iter().filter(|_| kind == A);
        let records: Vec<_> = records.map(|address| (itself.clone(), A, address.octets().to_vec())).collect();
        return Some((now, whole(&records)));
    };
    let octets: Vec<u8> = reverse.split('.').rev().map(|octet| octet.parse().unwrap()).collect();
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(octets).unwrap());
    Some(match replies.get(&address)? {
        Reply::Name(labels) => (now, whole(&[(itself, PTR, encoded(labels))])),
        Reply::Late(after, labels) => (*after, whole(&[(itself, PTR, encoded(labels))])),
        Reply::Loop => {
            let looped = encoded(&labels("loop.lab.example"));
            (now, whole(&[(itself, CNAME, looped.clone()), (looped.clone(), CNAME, looped)]))
        }
        Reply::Raw(data) => (now, whole(&[(itself, PTR, data.clone())])),
        Reply::Cut => (now, [id, &[0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0]].concat()),
        Reply::Nothing => return None,
    })
}

fn text(labels: &[u8]) -> String {
    let (mut rest, mut found) = (labels, Vec::new());
    while let Some((length, after)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, others) = after.split_at(usize::from(*length));
        found.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        rest = others;
    }
    found.join(".")
}

/// The pattern for fail2ban's `<HOST>`: an address or, since fail2ban resolves names, a name.
const HOST: &str = r"(?:::f{4,6}:)?(?P<host>[\w\-.^_:]*\w)";

/// fail2ban's stock filters for both lines of PortSentry, and common custom ones.
fn filters() -> Vec<Regex> {
    let filters = [
        r"\/<HOST> Port\: [0-9]+ (TCP|UDP) Blocked$",
        r"Scan from: \[<HOST>\] .* protocol: \[(TCP|UDP)\] port: \[\d+\] type: \[.+\]",
        r"attackalert: .* from host: .*/<HOST> to (TCP|UDP) port: \d+",
        r"attackalert: Host: \S+/<HOST> is already blocked",
        r"attackalert: Host <HOST> has been blocked",
        r"[Hh]ost: \S*/<HOST>(?:\s|$)",
    ];
    filters.iter().map(|filter| Regex::new(&filter.replace("<HOST>", HOST)).unwrap()).collect()
}

#[test]
fn hostile_names_are_not_logged() {
    let lab = Lab::new(&["attacker", "names"]);
    let cases: Vec<(Reply, Option<&str>)> = vec![
        // The first two addresses in notations that getaddrinfo(3) accepts: these names do resolve to the source.
        (name("0x0a4d010a"), None),
        (name("172818699"), None),
        (name("scanner.lab.example"), Some("scanner.lab.example")),
        (name("Under_Score-1.LAB.example"), Some("under_score-1.lab.example")),
        (Reply::Late(Duration::from_secs(1) / slowness(), labels("slow.lab.example")), Some("slow.lab.example")),
        (name("victim.lab.example"), None),
        (name("localhost"), None),
        (name("10.0.0.1"), None),
        (name("127.1"), None),
        (Reply::Name(vec![b"10.0.0.1".to_vec()]), None),
        (name("a/10"), None),
        (Reply::Name(vec![b"a/10.0.0.1 Port: 23 TCP Blocked".to_vec()]), None),
        (Reply::Name(vec![b"x/10.0.0.1 to TCP port: 1".to_vec(), b"example".to_vec()]), None),
        (Reply::Name(vec![b"\x1b[2J\x1b]0;owned\x07".to_vec()]), None),
        (Reply::Name(vec![b"a\nattackalert: TCP SYN/Normal scan from host: b".to_vec()]), None),
        (Reply::Name(vec![b"nul\0nul".to_vec(), b"example".to_vec()]), None),
        (Reply::Name(vec![b"b\xffc".to_vec(), b"example".to_vec()]), None),
        (Reply::Name(vec![b"$(reboot)".to_vec(), b"example".to_vec()]), None),
        (Reply::Name(vec![vec![b'a'; 63]; 4]), None),
        (Reply::Name(vec![vec![b'a'; 63]; 8]), None),
        (Reply::Raw([&[255][..], &[b'a'; 255], &[0]].concat()), None),
        (Reply::Raw(vec![0xc0, 0xff]), None),
        (Reply::Raw(Vec::new()), None),
        (Reply::Raw(vec![0]), None),
        (Reply::Loop, None),
        (Reply::Cut, None),
        (Reply::Nothing, None),
    ];
    let end = u8::try_from(10 + cases.len()).unwrap();
    let sources = lab.add_addresses("attacker", 10..end);
    let replies = sources.iter().copied().zip(cases.iter().map(|(reply, _)| reply.clone())).collect();
    let names = hostile_server(&lab, "names", replies);
    let daemon = Daemon::start_configured(&lab, NAMED, &[]);

    let target: IpAddr = lab.victim_v4("attacker").into();
    // The name server itself is protected, because it is the resolver.
    lab.probe_v4("names", &[23, 79, 111, 512]);
    for source in &sources {
        let before = daemon.lines_with("attackalert:").len();
        lab.probe("attacker", (*source).into(), target, &[23]);
        daemon.expect_line(&format!("/{source} to TCP port: 23"));
        assert_eq!(daemon.lines_with("attackalert:").len(), before + 1, "{:?}", daemon.lines_with(""));
    }
    assert!(names.query_count() >= cases.len());
    for (source, (_, expected)) in sources.iter().zip(&cases) {
        let shown = expected.map_or_else(|| source.to_string(), ToString::to_string);
        let line = format!("attackalert: TCP SYN/Normal scan from host: {shown}/{source} to TCP port: 23");
        assert_eq!(daemon.lines_with(&format!("/{source} ")), [line]);
    }
    let attacker = lab.provoke_ban("attacker");
    daemon.expect_line(&format!("Host {attacker} has been blocked via"));
    let log = daemon.stop();
    assert!(log.lines().any(|line| line.contains(&format!("from {} to TCP port", lab.v4("names")))), "{log}");
    let tags = ["adminalert: ", "attackalert: ", "securityalert: "];
    let clean = |line: &str| {
        tags.iter().any(|tag| line.starts_with(tag)) && line.bytes().all(|byte| (0x20..0x7f).contains(&byte))
    };
    assert!(log.lines().all(clean), "{log:?}");
    let attackers: Vec<String> = sources.iter().map(ToString::to_string).chain([attacker.to_string()]).collect();
    let mut found = 0;
    for filter in filters() {
        for host in log.lines().filter_map(|line| filter.captures(line)) {
            found += 1;
            assert!(attackers.contains(&host["host"].to_owned()), "{filter} finds {host:?}");
        }
    }
    assert!(found > cases.len(), "the filters match at least the genuine lines");
}

#[test]
fn silent_name_server_delays_line_only() {
    let lab = Lab::new(&["attacker", "names"]);
    let names = hostile_server(&lab, "names", BTreeMap::new());
    let daemon = Daemon::start_configured(&lab, NAMED, &[]);
    let begin = Instant::now();
    let attacker = lab.provoke_ban("attacker");
    let blocked = daemon.expect_line(&format!("Host {attacker} has been blocked via"));
    // The look-up takes two seconds.
    let ban = lab.expect_ban(attacker);
    let age = ban.timeout.unwrap() - ban.expires.unwrap();
    assert!(age >= Duration::from_secs(1), "the ban did not wait for the look-up: {ban:?}");
    assert!(begin.elapsed() < Duration::from_secs(15) * slowness(), "{:?}", begin.elapsed());
    assert!(names.query_count() > 0);
    let lines = daemon.lines_with(&attacker.to_string());
    let scan = format!("attackalert: TCP SYN/Normal scan from host: {attacker}/{attacker} to TCP port: 901");
    let place = |line: &str| lines.iter().position(|other| other == line).unwrap_or_else(|| panic!("{lines:?}"));
    assert!(place(&scan) < place(&blocked), "{lines:?}");
    // The look-up is still running.
    daemon.stop();
}

#[test]
fn names_are_resolved_after_reload_only() {
    let lab = Lab::new(&["attacker", "names"]);
    let sources = lab.add_addresses("attacker", 10..12);
    let replies = sources.iter().map(|source| (*source, name("scanner.lab.example"))).collect();
    let names = hostile_server(&lab, "names", replies);
    let daemon = Daemon::start_configured(&lab, "", &[]);
    let target: IpAddr = lab.victim_v4("attacker").into();
    let [first, second] = sources[..] else { unreachable!() };
    lab.probe("attacker", first.into(), target, &[23]);
    daemon.expect_line(&format!("attackalert: TCP SYN/Normal scan from host: {first}/{first} to TCP port: 23"));
    assert_eq!(names.query_count(), 0);
    lab.write("portsentry.toml", NAMED);
    daemon.signal(rustix::process::Signal::HUP);
    daemon.expect_line("the new configuration is in force; changed: report");
    lab.probe("attacker", second.into(), target, &[23]);
    eventually("the name server is asked", || names.query_count() > 0);
    daemon.expect_line(&format!("from host: scanner.lab.example/{second} to TCP port: 23"));
    daemon.stop();
}
