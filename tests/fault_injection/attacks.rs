//! Tests attackers that exploit legitimate connections, and malicious names.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{CLOSED, SHORTLY, recorded, scan};
use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, eventually, slowness};

/// An open connection does not excuse other probes of its peer, and does not survive the ban.
#[test]
fn open_connection_excuses_no_other_probe() {
    let lab = Lab::new(&["attacker", "other"]);
    let listener = lab.inside("victim", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    let daemon = Daemon::start_armed(&lab, "");
    let open = |host: &str| {
        let service = SocketAddr::new(lab.victim_v4(host).into(), 80);
        let client = lab.inside(host, || TcpStream::connect(service).unwrap());
        let (server, _) = listener.accept().unwrap();
        (client, server)
    };
    let delivers = |(client, server): &mut (TcpStream, TcpStream), word: &[u8; 5], limit| {
        server.set_read_timeout(Some(limit)).unwrap();
        let mut received = [0; 5];
        // If the connection has been ended, not even the write succeeds.
        client.write_all(word).is_ok() && server.read_exact(&mut received).is_ok_and(|()| received == *word)
    };
    let shortly = SHORTLY * slowness();
    let (mut connection, mut innocent) = (open("attacker"), open("other"));
    assert!(delivers(&mut connection, b"hello", TIMEOUT) && delivers(&mut innocent, b"hello", TIMEOUT));
    // First with the kernel alone: its trap looks for sockets and finds none at the probed ports.
    let attacker = daemon.frozen(|| {
        let attacker = scan(&lab, "attacker");
        lab.expect_ban(attacker);
        assert!(!delivers(&mut connection, b"again", shortly), "data on the connection does not arrive");
        attacker
    });
    daemon.expect_line(&format!("attackalert: Host {attacker} has been blocked"));
    assert!(!delivers(&mut connection, b"still", shortly));
    assert!(delivers(&mut innocent, b"again", TIMEOUT), "other connections are not affected");
    assert_eq!(lab.banned(), [attacker]);
    daemon.stop();
}

/// A name that the kernel accepts for interfaces and processes: it clears the screen, and a shell would execute a part
/// of it.
const MALICIOUS_NAME: &str = "\x1b[2J$(id)";

/// Remote hosts cannot choose these names, but a container can. They must never control a log or a terminal.
#[test]
fn interface_names_are_escaped_for_terminal() {
    let lab = Lab::new(&["attacker"]);
    lab.victim_ip(&format!(
        "link add {MALICIOUS_NAME} type veth peer name second netns {}",
        lab.namespace("attacker").name()
    ));
    lab.victim_ip(&format!("link set {MALICIOUS_NAME} up"));
    lab.victim_ip(&format!("addr add 192.0.2.1/24 dev {MALICIOUS_NAME}"));
    lab.run("attacker", "ip", &["link", "set", "second", "up"]);
    lab.run("attacker", "ip", &["addr", "add", "192.0.2.2/24", "dev", "second"]);
    let ended = Daemon::run_to_end(&lab, &[], &["--interface", "missing"]);
    assert!(!ended.status.success() && ended.log.contains("there is no interface missing"), "{ended:?}");
    let mut outputs = vec![ended.log];
    let daemon = Daemon::start_armed(&lab, "");
    let (attacker, target) = ("192.0.2.2".parse().unwrap(), "192.0.2.1".parse().unwrap());
    lab.probe("attacker", attacker, target, &CLOSED);
    lab.expect_ban(attacker);
    eventually("the ledger has the ban", || recorded(&lab) == [attacker]);
    let (state, check) = (lab.path("state"), lab.path("portsentry.toml"));
    let [state, check] = [&state, &check].map(|path| path.to_str().unwrap());
    let socket = lab.path("socket");
    let socket = ["--socket", socket.to_str().unwrap()];
    for words in [
        &["status", socket[0], socket[1]][..],
        &["explain", "192.0.2.2", socket[0], socket[1]],
        &["list", "--state-dir", state],
        &["check", check],
    ] {
        let output = lab.portsentry().args(words).output().unwrap();
        assert!(output.status.code().is_some_and(|code| code < 2), "{words:?}: {output:?}");
        outputs.extend([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    assert!(outputs.iter().any(|text| text.contains("[2J$(id)")), "the name appears in an output: {outputs:?}");
    // The ban is lifted with a program of the same malicious name.
    let (nft, malicious) = (lab.run("victim", "sh", &["-c", "command -v nft"]), lab.path(MALICIOUS_NAME));
    std::os::unix::fs::symlink(nft.trim(), &malicious).unwrap();
    lab.run(
        "victim",
        malicious.to_str().unwrap(),
        &[&format!("delete element inet portsentry blocked {{ {attacker} }}")],
    );
    let line = daemon.expect_line(&format!("{attacker} has been unblocked by "));
    assert!(line.contains("?[2J$(id) (process "), "{line}");
    outputs.push(daemon.stop());
    for text in outputs {
        let harmful: Vec<char> = text.chars().filter(|letter| letter.is_control() && *letter != '\n').collect();
        assert!(harmful.is_empty(), "{harmful:?} in {text:?}");
    }
}

/// With 64 silent clients, the oldest gives way to the next; the others are disconnected after five seconds.
#[test]
fn metrics_clients_are_limited_and_timed() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_armed(&lab, "[metrics]\nlisten = \"127.0.0.1:9777\"\n");
    let metrics = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9777);
    let connect = || {
        let stream = lab.inside("victim", || TcpStream::connect(metrics).unwrap());
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    };
    let get = || {
        let (mut stream, mut text) = (connect(), String::new());
        // A disconnected client may get an error instead of the end of the stream.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
        text
    };
    let begin = Instant::now();
    let mut slow: Vec<_> = (0..64).map(|_| connect()).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"GET /met").unwrap());
    let next = get();
    assert!(next.contains("portsentry_trap_ports"), "the oldest silent client gives way to a new one: {next}");
    // Before the timeout of the others, unless this machine is too slow.
    slow[1].set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let kept = slow[1].read(&mut [0]).map_err(|error| error.kind());
    assert!(kept == Err(ErrorKind::WouldBlock) || begin.elapsed() > Duration::from_secs(5), "only one: {kept:?}");
    slow[1].set_read_timeout(Some(TIMEOUT)).unwrap();
    let attacker = scan(&lab, "attacker");
    lab.expect_ban(attacker);
    assert_eq!(lab.ask(&["status"])["running"], true, "other clients do not wait for them");
    for mut stream in slow {
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert_eq!(text, "");
    }
    daemon.stop();
}

/// Both families are judged, although probes over one family could draw attention from the other.
#[test]
fn scanner_over_both_families_is_banned_twice() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_armed(&lab, "");
    let (v4, v6) = (lab.v4("attacker").into(), lab.v6("attacker").into());
    for port in CLOSED {
        lab.probe("attacker", v4, lab.victim_v4("attacker").into(), &[port]);
        lab.probe("attacker", v6, lab.victim_v6("attacker").into(), &[port]);
    }
    let both = [v4, lab.v6_network("attacker").into()];
    lab.expect_banned(&both);
    daemon.stop();
}
