//! Decoys on every port that is not in use: what scanners see, what bans them, and what floods cannot do.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, enter, eventually, raw, slowness, within};

/// Connect mode over all ports. The browser's own line would be a banner like any other.
pub(crate) const ALL: &str = "[tcp]\nmode = \"connect\"\nports = \"1-65535\"\n[udp]\nmode = \"off\"\n";

/// A flood of one test drops packets of all: the kernel's queue is one for all namespaces. What sends a packet once holds this
/// for reading, what floods for writing.
static LINE: RwLock<()> = RwLock::new(());

pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    LINE.write().unwrap_or_else(PoisonError::into_inner)
}

fn without_floods() -> RwLockReadGuard<'static, ()> {
    LINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the program and waits until decoys serve.
pub(crate) fn start(lab: &Lab, configuration: &str) -> Daemon {
    let daemon = Daemon::start_configured(lab, configuration, &["--expire", "24h"]);
    eventually("decoys have ports", || lab.ports("trapped").contains(&901));
    daemon
}

/// Connections that decoys have accepted.
fn accepted(lab: &Lab) -> u64 {
    lab.ask(&["status"])["packets"]["connections"].as_u64().expect("a number")
}

/// Connects from this address, and reads until the end: an error where either fails.
fn visit(source: Ipv4Addr, target: SocketAddr) -> std::io::Result<String> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::new(source.into(), 0))?;
    for timeout in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, timeout, Some(TIMEOUT))?;
    }
    connect(&socket, &target)?;
    let mut said = String::new();
    TcpStream::from(socket).read_to_string(&mut said)?;
    Ok(said)
}

#[test]
fn half_open_scan_sees_every_port_open() {
    let _quiet = without_floods();
    let lab = Lab::new(&["sly"]);
    let _services = Services::open(&lab, &[22, 80]);
    let daemon = start(&lab, ALL);
    let sockets = lab.run("victim", "ss", &["-Hltn"]).lines().filter(|line| !line.contains("0.0.0.0:22 ")).count();
    assert!(sockets < 8, "one listener for each family, and the services' own: {sockets}");
    for target in [IpAddr::from(lab.victim_v4("sly")), lab.victim_v6("sly").into()] {
        let scan = lab.nmap("sly", target, &["-sS", "-p1-65535", "--disable-arp-ping"]);
        assert_eq!(scan.open.len(), 65_535, "no port differs from another, at {target}: {:?}", scan.states);
    }
    assert!(lab.banned().is_empty(), "a half-open scan proves nothing");
    assert_eq!(daemon.lines_with(&lab.v4("sly").to_string()), [""; 0]);
    assert_eq!(accepted(&lab), 0);
    daemon.stop();
}

/// Where an operator asks for it, by evidence that can be forged.
#[test]
fn half_open_scan_is_banned_when_asked() {
    let _quiet = without_floods();
    let lab = Lab::new(&["sly", "slow", "client"]);
    let _services = Services::open(&lab, &[22]);
    let daemon = start(&lab, &ALL.replace("[udp]", "half_open = \"ban\"\n[udp]"));
    lab.touch("slow", lab.v4("slow").into(), lab.victim_v4("slow").into(), &[901, 902]);
    daemon
        .expect_line(&format!("attackalert: TCP SYN/Normal scan from host: {0}/{0} to TCP port: 902", lab.v4("slow")));
    lab.touch_until_banned("sly", lab.victim_v4("sly").into());
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("sly"))], "two ports are forgiven");
    let list = lab.ask(&["list"]);
    assert!(list.to_string().contains("\"forgeable\""), "{list}");
    for port in 8_001..8_011 {
        let _service = Services::open(&lab, &[port]);
        assert!(lab.is_served("client", lab.victim_v4("client").into(), port, TIMEOUT));
    }
    assert_eq!(lab.banned().len(), 1, "clients of services that have just started are no scanners");
    daemon.stop();
}

#[test]
fn completed_connections_are_banned_at_third_port() {
    let _quiet = without_floods();
    let lab = Lab::new(&["connect", "version", "six", "curl"]);
    let _services = Services::open(&lab, &[22]);
    let daemon = start(&lab, ALL);
    // On a busy machine nmap may give a scan up before it has connected.
    let scan = |host: &str, target: IpAddr, kind: &str, banned: IpAddr| {
        let options = ["-p901-910", "--disable-arp-ping", "--max-retries", "0", "--host-timeout", "20s"];
        let scanned = within(TIMEOUT, || {
            lab.nmap(host, target, &[&[kind], &options[..]].concat());
            lab.banned().contains(&banned).then_some(())
        });
        assert!(scanned.is_some(), "{kind} is never banned");
    };
    scan("connect", lab.victim_v4("connect").into(), "-sT", lab.v4("connect").into());
    scan("version", lab.victim_v4("version").into(), "-sV", lab.v4("version").into());
    scan("six", lab.victim_v6("six").into(), "-sT", lab.v6_network("six").into());
    for port in [8_080, 8_443, 9_999] {
        let target = format!("http://{}:{port}/", lab.victim_v4("curl"));
        drop(lab.command("curl", "curl").args(["-s", "-m", "5", &target]).output());
        assert!(port == 9_999 || !lab.banned().contains(&lab.v4("curl").into()), "two are forgiven: {port}");
    }
    for host in ["connect", "version", "six", "curl"] {
        let six = host == "six";
        lab.expect_ban(if six { lab.v6_network(host).into() } else { lab.v4(host).into() });
        let source = if six { lab.v6(host).to_string() } else { lab.v4(host).to_string() };
        daemon.expect_line(&format!(
            "attackalert: Host {}",
            if six { lab.v6_network(host).to_string() } else { source.clone() }
        ));
        let lines = daemon.lines_with(&format!("attackalert: Connect from host: {source}/"));
        assert_eq!(lines.len(), 3, "two ports are forgiven: {lines:?}");
    }
    daemon.stop();
}

/// 100,000 sources that only this lab knows, three ports each: enough for a ban of all of them, if it were evidence.
#[test]
fn forged_syns_ban_no_source() {
    let _alone = alone();
    let lab = Lab::new(&["forger", "client", "scanner"]);
    lab.victim_ip("route add default dev forger");
    let _services = Services::open(&lab, &[80]);
    let daemon = start(&lab, ALL);
    let memory = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).expect("it runs");
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).expect("proc has it");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("in kB")
    };
    let before = memory();
    let target = lab.victim_v4("forger").into();
    let packets = (0..300_000_u32).map(|number| {
        let source = Ipv4Addr::from_bits(0x0a63_0000 + number / 3).into();
        raw::tcp(source, target, 1_000 + u16::try_from(number % 50_000).expect("it is less"), raw::SYN)
    });
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| lab.wire("forger").pace(1_000_000, packets));
        // Meanwhile services are served, and a handshake that is completed counts.
        assert_eq!(lab.served("client", lab.victim_v4("client").into(), &[80], 20), 20);
        lab.connect("scanner", lab.v4("scanner").into(), lab.victim_v4("scanner").into(), &[901, 902, 903]);
        flood.join().expect("it sends");
    });
    let scanner = IpAddr::from(lab.v4("scanner"));
    lab.expect_ban(scanner);
    assert_eq!(lab.banned(), [scanner]);
    assert_eq!(accepted(&lab), 3, "no forged source completes a handshake");
    let cookies = lab.run("victim", "nstat", &["-asz", "TcpExtSyncookiesSent"]);
    let cookies = cookies.split_whitespace().skip_while(|word| !word.starts_with("TcpExt")).nth(1).expect("a number");
    assert_ne!(cookies, "0", "beyond its queue the listener keeps no half-open connection");
    assert!(memory() < before + 8_192, "{} kB, and {before} kB before the flood", memory());
    daemon.stop();
}

#[test]
fn thousand_connections_a_second_lose_none() {
    let _alone = alone();
    const THREADS: u32 = 4;
    const EACH: u32 = 1_250;
    let lab = Lab::new(&["friend"]);
    let daemon = start(&lab, &format!("allow.networks = [\"{}\"]\n{ALL}", lab.v4("friend")));
    let (target, done, began) = (lab.victim_v4("friend"), AtomicU32::new(0), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (lab, done) = (&lab, &done);
            scope.spawn(move || {
                enter(lab.namespace("friend").name());
                for number in 0..EACH {
                    // Evenly, so that it is a thousand a second where the machine can.
                    let due = Duration::from_secs(1) * number * THREADS / 1_000;
                    std::thread::sleep(due.saturating_sub(began.elapsed()));
                    let port = u16::try_from(1_000 + thread * 10_000 + number).expect("it fits");
                    visit(lab.v4("friend"), SocketAddr::new(target.into(), port))
                        .expect("it is open, and ends in order");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} connections in {:?}", done.load(Ordering::Relaxed), began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60) * slowness());
    let all = u64::from(THREADS * EACH);
    assert!(within(TIMEOUT, || (accepted(&lab) == all).then_some(())).is_some(), "{} of {all}", accepted(&lab));
    daemon.stop();
}

#[test]
fn new_service_has_its_port_at_once() {
    let lab = Lab::new(&["client"]);
    let daemon = start(&lab, ALL);
    let target = lab.victim_v4("client").into();
    assert_eq!(visit_from(&lab, "client", SocketAddr::new(target, 8_001)).as_deref(), Some(""), "a decoy says nothing");
    for port in 8_001..8_021 {
        let _service = Services::open(&lab, &[port]);
        assert!(lab.is_served("client", target, port, TIMEOUT), "the service answers from its first client on: {port}");
    }
    assert!(lab.banned().is_empty(), "clients of services are no scanners");
    assert_eq!(accepted(&lab), 1);
    daemon.stop();
}

fn visit_from(lab: &Lab, host: &str, target: SocketAddr) -> Option<String> {
    let source = lab.v4(host);
    lab.inside(host, || visit(source, target)).ok()
}

#[test]
fn listener_itself_is_out_of_reach() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, ALL);
    let listening = lab.run("victim", "ss", &["-Hltn4"]);
    let port = listening.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")).expect("it listens");
    let port: u16 = port.parse().expect("a port");
    lab.run("victim", "sysctl", &["-qw", "net.ipv4.conf.all.route_localnet=1"]);
    // From here, at the loopback address: it is taken and dropped, and is no decoy's.
    lab.inside("victim", || visit(Ipv4Addr::LOCALHOST, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))).ok();
    assert_eq!(accepted(&lab), 0);
    // From outside its number is a port like any other.
    visit_from(&lab, "other", SocketAddr::new(lab.victim_v4("other").into(), port)).expect("a decoy");
    daemon.expect_line(&format!("attackalert: Connect from host: {0}/{0} to TCP port: {port}", lab.v4("other")));
    // And no other host gets to the loopback address.
    lab.namespace("other").ip("route add 127.0.0.2/32 via 10.77.1.1 table 7");
    assert_eq!(accepted(&lab), 1);
    daemon.stop();
}

#[test]
fn decoys_survive_flush_and_end_with_program() {
    let lab = Lab::new(&["other"]);
    let daemon = start(&lab, ALL);
    let target = SocketAddr::new(lab.victim_v4("other").into(), 901);
    lab.run("victim", "nft", &["flush ruleset"]);
    eventually("decoys are back", || {
        lab.ports("trapped").contains(&901) && visit_from(&lab, "other", target).is_some()
    });
    daemon.stop();
    assert_eq!(visit_from(&lab, "other", target), None, "nothing listens any more");
    // What a program that was killed leaves leads nowhere.
    let daemon = start(&lab, ALL);
    assert!(visit_from(&lab, "other", target).is_some());
    daemon.kill();
    assert_eq!(visit_from(&lab, "other", target), None);
}
