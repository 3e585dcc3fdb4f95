//! Attackers who hide behind something innocent, and names that are weapons.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{CLOSED, SHORTLY, recorded, scan, start};
use netns_lab::daemon::{Daemon, binary};
use netns_lab::{Lab, TIMEOUT, eventually, slowness};

/// Who is served is no less a scanner for it: an open connection neither forgives what goes on beside it nor outlives the ban.
#[test]
fn open_connection_excuses_no_other_probe() {
    let lab = Lab::new(&["attacker", "other"]);
    let listener = lab.inside("victim", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap());
    let daemon = start(&lab, "");
    let open = |host: &str| {
        let service = SocketAddr::new(lab.victim_v4(host).into(), 80);
        let client = lab.inside(host, || TcpStream::connect(service).unwrap());
        let (server, _) = listener.accept().unwrap();
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(SHORTLY * slowness())).unwrap();
        }
        (client, server)
    };
    let says = |(client, server): &mut (TcpStream, TcpStream), word: &[u8; 5]| {
        let mut heard = [0; 5];
        // Where it has been ended already, it cannot even be sent.
        client.write_all(word).is_ok() && server.read_exact(&mut heard).is_ok_and(|()| heard == *word)
    };
    let (mut kept, mut innocent) = (open("attacker"), open("other"));
    assert!(says(&mut kept, b"hello") && says(&mut innocent, b"hello"));
    // The kernel alone first: its trap asks for sockets, and finds none at the ports that are touched.
    let attacker = daemon.frozen(|| {
        let attacker = scan(&lab, "attacker");
        lab.expect_ban(attacker);
        assert!(!says(&mut kept, b"again"), "what is sent over the connection does not arrive");
        attacker
    });
    daemon.expect_line(&format!("attackalert: Host {attacker} has been blocked"));
    assert!(!says(&mut kept, b"still"));
    assert!(says(&mut innocent, b"again"), "and nobody else's connection is touched");
    assert_eq!(lab.banned(), [attacker]);
    daemon.stop();
}

/// A name as the kernel allows it for an interface and for a process: it clears the screen, and a shell would run a part.
const WEAPON: &str = "\x1b[2J$(id)";

/// Nobody outside chooses these, but a container does: what goes to a log or a terminal is never a command to either.
#[test]
fn interface_names_control_no_terminal() {
    let lab = Lab::new(&["attacker"]);
    lab.victim_ip(&format!("link add {WEAPON} type veth peer name second netns {}", lab.namespace("attacker").name()));
    lab.victim_ip(&format!("link set {WEAPON} up"));
    lab.victim_ip(&format!("addr add 192.0.2.1/24 dev {WEAPON}"));
    lab.run("attacker", "ip", &["link", "set", "second", "up"]);
    lab.run("attacker", "ip", &["addr", "add", "192.0.2.2/24", "dev", "second"]);
    let ended = Daemon::run_to_end(&lab, &[], &["--interface", "missing"]);
    assert!(!ended.status.success() && ended.log.contains("there is no interface missing"), "{ended:?}");
    let mut said = vec![ended.log];
    let daemon = start(&lab, "");
    let (attacker, target) = ("192.0.2.2".parse().unwrap(), "192.0.2.1".parse().unwrap());
    lab.touch("attacker", attacker, target, &CLOSED);
    lab.expect_ban(attacker);
    eventually("the ledger has it", || recorded(&lab) == [attacker]);
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
        let output = lab.command("victim", binary().to_str().unwrap()).args(words).output().unwrap();
        assert!(output.status.code().is_some_and(|code| code < 2), "{words:?}: {output:?}");
        said.extend([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    assert!(said.iter().any(|text| text.contains("[2J$(id)")), "the name is shown somewhere: {said:?}");
    // Somebody lifts it with a program whose name is a weapon as well.
    let (nft, weapon) = (lab.run("victim", "sh", &["-c", "command -v nft"]), lab.path(WEAPON));
    std::os::unix::fs::symlink(nft.trim(), &weapon).unwrap();
    lab.run("victim", weapon.to_str().unwrap(), &[&format!("delete element inet portsentry blocked {{ {attacker} }}")]);
    let line = daemon.expect_line(&format!("{attacker} has been unblocked by "));
    assert!(line.contains("?[2J$(id) (process "), "{line}");
    said.push(daemon.stop());
    for text in said {
        let harmful: Vec<char> = text.chars().filter(|letter| letter.is_control() && *letter != '\n').collect();
        assert!(harmful.is_empty(), "{harmful:?} in {text:?}");
    }
}

/// Eight who connect and say nothing: the ninth is hung up on, and after five seconds there is room again.
#[test]
fn metrics_clients_are_few_and_timed() {
    let lab = Lab::new(&["attacker"]);
    let daemon = start(&lab, "[metrics]\nlisten = \"127.0.0.1:9777\"\n");
    let figures = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9777);
    let connect = || {
        let stream = lab.inside("victim", || TcpStream::connect(figures).unwrap());
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    };
    let get = || {
        let (mut stream, mut text) = (connect(), String::new());
        // Hung up on, it may get an error instead of an end.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
        text
    };
    let begin = Instant::now();
    let mut slow: Vec<_> = (0..8).map(|_| connect()).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"GET /met").unwrap());
    // Before their time is over, if this machine is quick enough to say so.
    let ninth = get();
    assert!(ninth.is_empty() || begin.elapsed() > Duration::from_secs(5), "{ninth}");
    let attacker = scan(&lab, "attacker");
    lab.expect_ban(attacker);
    assert_eq!(lab.ask(&["status"])["running"], true, "nobody else waits for them");
    eventually("whoever is slow is hung up on", || get().contains("portsentry_trap_ports"));
    for mut stream in slow {
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert_eq!(text, "");
    }
    daemon.stop();
}

/// As it is answered to whom: an attacker at whom nobody looks cannot wait for the program to look elsewhere.
#[test]
fn scanner_over_both_families_is_banned_twice() {
    let lab = Lab::new(&["attacker"]);
    let daemon = start(&lab, "");
    let (v4, v6) = (lab.v4("attacker").into(), lab.v6("attacker").into());
    for port in CLOSED {
        lab.touch("attacker", v4, lab.victim_v4("attacker").into(), &[port]);
        lab.touch("attacker", v6, lab.victim_v6("attacker").into(), &[port]);
    }
    let both = [v4, lab.v6_network("attacker").into()];
    lab.expect_banned(&both);
    daemon.stop();
}
