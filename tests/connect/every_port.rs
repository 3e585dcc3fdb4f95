//! Tests decoys on every unused port: what scanners see, what leads to a ban, and the effect of floods.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, enter, eventually, memory, raw, slowness, soon, within};

/// Connect mode on all ports. Its connections end without a banner.
pub(crate) const ALL: &str = "[tcp]\nmode = \"connect\"\nports = \"1-65535\"\n[udp]\nmode = \"off\"\n";

/// The kernel's packet backlog is shared by all namespaces, so a flood in one test drops packets of others. Floods take
/// this lock for writing, tests that send each packet once for reading.
static BACKLOG: RwLock<()> = RwLock::new(());

pub(crate) fn exclusive_backlog() -> RwLockWriteGuard<'static, ()> {
    BACKLOG.write().unwrap_or_else(PoisonError::into_inner)
}

fn shared_backlog() -> RwLockReadGuard<'static, ()> {
    BACKLOG.read().unwrap_or_else(PoisonError::into_inner)
}

/// Connections that decoys have accepted.
fn accepted(lab: &Lab) -> u64 {
    lab.ask(&["status"])["packets"]["connections"].as_u64().expect("a number")
}

/// Connects from this address and reads until the end of the connection.
fn visit(source: Ipv4Addr, target: SocketAddr) -> std::io::Result<String> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::new(source.into(), 0))?;
    for timeout in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, timeout, Some(TIMEOUT))?;
    }
    connect(&socket, &target)?;
    let mut received = String::new();
    TcpStream::from(socket).read_to_string(&mut received)?;
    Ok(received)
}

#[test]
fn half_open_scan_sees_every_port_open() {
    let _quiet = shared_backlog();
    let lab = Lab::new(&["sly"]);
    let _services = Services::open(&lab, &[22, 80]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let sockets = lab.run("victim", "ss", &["-Hltn"]).lines().filter(|line| !line.contains("0.0.0.0:22 ")).count();
    assert!(sockets < 12, "four listeners per family, and the sockets of the services: {sockets}");
    for target in [IpAddr::from(lab.victim_v4("sly")), lab.victim_v6("sly").into()] {
        let scan = lab.nmap("sly", target, &["-sS", "-p1-65535", "--disable-arp-ping"]);
        assert_eq!(scan.open.len(), 65_535, "all ports of {target} look open: {:?}", scan.states);
    }
    assert!(lab.banned().is_empty(), "a half-open scan proves nothing");
    assert_eq!(daemon.lines_with(&lab.v4("sly").to_string()), [""; 0]);
    assert_eq!(accepted(&lab), 0);
    daemon.stop();
}

/// With `half_open = "ban"` half-open connections count too, although they can be forged. nft calls the first IPv6
/// address of a network on the link anycast, but any neighbour can use it. If the decoys ignored it, its scan would
/// find the real services.
#[test]
fn decoys_answer_sources_of_any_type() {
    let lab = Lab::new(&["sly"]);
    let daemon = Daemon::start_armed(&lab, ALL);
    lab.run("sly", "ip", &["addr", "del", &format!("{}/64", lab.v6("sly")), "dev", "uplink"]);
    lab.run("sly", "ip", &["addr", "add", &format!("{}/64", lab.v6_network("sly")), "dev", "uplink", "nodad"]);
    let target = SocketAddr::new(lab.victim_v6("sly").into(), 901);
    let connected = lab.inside("sly", || TcpStream::connect_timeout(&target, TIMEOUT));
    assert!(connected.is_ok(), "closed ports look open from there as well: {connected:?}");
    daemon.stop();
}

#[test]
fn half_open_scan_is_banned_when_asked() {
    let _quiet = shared_backlog();
    let lab = Lab::new(&["sly", "slow", "client"]);
    let _services = Services::open(&lab, &[22]);
    let daemon = Daemon::start_armed(&lab, &ALL.replace("[udp]", "half_open = \"ban\"\n[udp]"));
    lab.probe_v4("slow", &[901, 902]);
    daemon
        .expect_line(&format!("attackalert: TCP SYN/Normal scan from host: {0}/{0} to TCP port: 902", lab.v4("slow")));
    lab.probe_until_banned("sly", lab.victim_v4("sly").into());
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("sly"))], "two ports are forgiven");
    let list = lab.ask(&["list"]);
    assert!(list.to_string().contains("\"forgeable\""), "{list}");
    for port in 8_001..8_011 {
        let _service = Services::open(&lab, &[port]);
        assert!(lab.is_served("client", lab.victim_v4("client").into(), port, TIMEOUT));
    }
    assert_eq!(lab.banned().len(), 1, "clients of just started services are not banned");
    daemon.stop();
}

#[test]
fn completed_connections_are_banned_at_third_port() {
    let _quiet = shared_backlog();
    let lab = Lab::new(&["connect", "version", "six", "curl"]);
    let _services = Services::open(&lab, &[22]);
    let daemon = Daemon::start_armed(&lab, ALL);
    // On a busy machine nmap may abandon a scan before it connects.
    let scan = |host: &str, target: IpAddr, kind: &str, banned: IpAddr| {
        let options = ["-p901-910", "--disable-arp-ping", "--max-retries", "0", "--host-timeout", "20s"];
        let scanned = within(TIMEOUT, || {
            lab.nmap(host, target, &[&[kind], &options[..]].concat());
            lab.banned().contains(&banned).then_some(())
        });
        assert!(scanned.is_some(), "{kind} was not banned");
    };
    scan("connect", lab.victim_v4("connect").into(), "-sT", lab.v4("connect").into());
    scan("version", lab.victim_v4("version").into(), "-sV", lab.v4("version").into());
    scan("six", lab.victim_v6("six").into(), "-sT", lab.v6_network("six").into());
    for port in [8_080, 8_443, 9_999] {
        let target = format!("http://{}:{port}/", lab.victim_v4("curl"));
        drop(lab.command("curl", "curl").args(["-s", "-m", "5", &target]).output());
        assert!(port == 9_999 || !lab.banned().contains(&lab.v4("curl").into()), "two ports are forgiven, not {port}");
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

/// 100,000 sources that exist only in this test, three ports each: if SYNs were evidence, all would be banned.
#[test]
fn forged_syns_ban_no_source() {
    let _alone = exclusive_backlog();
    let lab = Lab::new(&["forger", "client", "scanner"]);
    lab.default_route("forger");
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let memory = || memory(daemon.id(), "VmRSS");
    let before = memory();
    let target = lab.victim_v4("forger").into();
    let packets = (0..300_000_u32).map(|number| {
        let source = Ipv4Addr::from_bits(0x0a63_0000 + number / 3).into();
        raw::tcp(source, target, 1_000 + u16::try_from(number % 50_000).expect("it is less"), raw::SYN)
    });
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| lab.wire("forger").pace(1_000_000, packets));
        // During the flood services are reachable, and completed handshakes count.
        assert_eq!(lab.served("client", lab.victim_v4("client").into(), &[80], 20), 20);
        lab.connect("scanner", lab.v4("scanner").into(), lab.victim_v4("scanner").into(), &[901, 902, 903]);
        flood.join().expect("it sends");
    });
    let scanner = IpAddr::from(lab.v4("scanner"));
    lab.expect_ban(scanner);
    assert_eq!(lab.banned(), [scanner]);
    assert_eq!(accepted(&lab), 3, "no forged source completes a handshake");
    assert_ne!(cookies_sent(&lab), "0", "when its queue is full, a listener uses SYN cookies");
    let warning = "the kernel sends SYN cookies, because half-open connections fill the queue of a listener";
    daemon.expect_line(&format!("warning: tcp.mode: {warning}"));
    assert!(lab.succeed(&["status"]).contains(warning));
    assert!(memory() < before + 8_192, "{} kB, and {before} kB before the flood", memory());
    daemon.stop();
}

fn cookies_sent(lab: &Lab) -> String {
    let text = lab.run("victim", "nstat", &["-asz", "TcpExtSyncookiesSent"]);
    text.split_whitespace().skip_while(|word| !word.starts_with("TcpExt")).nth(1).expect("a number").to_owned()
}

/// A SYN cookie has fewer options than the answer of a service, and is not sent again.
#[test]
fn half_open_syn_flood_needs_no_cookies() {
    let _alone = exclusive_backlog();
    let lab = Lab::new(&["sly"]);
    lab.default_route("sly");
    let daemon = Daemon::start_armed(&lab, ALL);
    // An address without a host, so that no reset ends the connections.
    let (source, target) = (Ipv4Addr::new(10, 99, 0, 7).into(), lab.victim_v4("sly").into());
    let mut wire = lab.wire("sly");
    let half_open = |count: u16| {
        (1..=count).map(move |number| {
            raw::packet(source, target, raw::TCP, &raw::segment(source, target, (number, 1_000 + number), raw::SYN))
        })
    };
    wire.pace(20_000, half_open(6_000));
    eventually("all have arrived", || lab.run("victim", "ss", &["-Htn", "state", "syn-recv"]).lines().count() == 6_000);
    assert_eq!(cookies_sent(&lab), "0");
    daemon.stop();
}

/// A guessed cookie completes a handshake that never took place.
#[test]
fn handshake_from_cookie_is_forgeable_evidence() {
    let _quiet = shared_backlog();
    let lab = Lab::new(&["before", "cookies", "between", "after"]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let grade = |host: &str, target: IpAddr| {
        let (source, banned) = match target {
            IpAddr::V4(_) => (lab.v4(host).into(), lab.v4(host).into()),
            IpAddr::V6(_) => (lab.v6(host).into(), IpAddr::from(lab.v6_network(host))),
        };
        lab.connect(host, source, target, &[901, 902, 903]);
        lab.expect_ban(banned);
        let explained = lab.ask(&["explain", &banned.to_string()]);
        explained["blocked"]["evidence"].as_str().unwrap_or_else(|| panic!("{explained}")).to_owned()
    };
    let cookies = |value: &str| {
        lab.sysctl(&format!("net.ipv4.tcp_syncookies={value}"));
    };
    assert_eq!(grade("before", lab.victim_v4("before").into()), "proven");
    assert_eq!(grade("before", lab.victim_v6("before").into()), "proven");
    // Always, not only while a queue is full.
    cookies("2");
    assert_eq!(grade("cookies", lab.victim_v4("cookies").into()), "forgeable");
    assert_eq!(grade("cookies", lab.victim_v6("cookies").into()), "forgeable");
    daemon.expect_line(&format!("attackalert: Connect from host: {0}/{0} to TCP port: 903", lab.v4("cookies")));
    cookies("1");
    std::thread::sleep(Duration::from_millis(1_500));
    lab.connect("between", lab.v4("between").into(), lab.victim_v4("between").into(), &[901]);
    eventually("the connection was accepted", || accepted(&lab) > 12);
    assert_eq!(grade("after", lab.victim_v4("after").into()), "proven");
    assert_eq!(grade("after", lab.victim_v6("after").into()), "proven");
    daemon.stop();
}

#[test]
fn thousand_connections_per_second_are_all_accepted() {
    let _alone = exclusive_backlog();
    const THREADS: u32 = 4;
    const EACH: u32 = 1_250;
    let lab = Lab::new(&["friend"]);
    let daemon = Daemon::start_armed(&lab, &format!("allow.networks = [\"{}\"]\n{ALL}", lab.v4("friend")));
    let (target, done, began) = (lab.victim_v4("friend"), AtomicU32::new(0), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (lab, done) = (&lab, &done);
            scope.spawn(move || {
                enter(lab.namespace("friend").name());
                for number in 0..EACH {
                    // Evenly spaced, a thousand per second if the machine is fast enough.
                    let due = Duration::from_secs(1) * number * THREADS / 1_000;
                    std::thread::sleep(due.saturating_sub(began.elapsed()));
                    let port = u16::try_from(1_000 + thread * 10_000 + number).expect("it fits");
                    visit(lab.v4("friend"), SocketAddr::new(target.into(), port))
                        .expect("the port is open, and the connection closes cleanly");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} connections in {:?}", done.load(Ordering::Relaxed), began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60) * slowness());
    let all = u64::from(THREADS * EACH);
    assert!(soon(|| accepted(&lab) == all), "{} of {all}", accepted(&lab));
    daemon.stop();
}

#[test]
fn new_service_takes_over_decoy_port() {
    let lab = Lab::new(&["client"]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let target = lab.victim_v4("client").into();
    assert_eq!(
        visit_from(&lab, "client", SocketAddr::new(target, 8_001)).as_deref(),
        Some(""),
        "a decoy sends nothing"
    );
    for port in 8_001..8_021 {
        let _service = Services::open(&lab, &[port]);
        assert!(
            lab.is_served("client", target, port, TIMEOUT),
            "the service, not a decoy, answers its first client: {port}"
        );
    }
    assert!(lab.banned().is_empty(), "clients of services are not banned");
    assert_eq!(accepted(&lab), 1);
    daemon.stop();
}

fn visit_from(lab: &Lab, host: &str, target: SocketAddr) -> Option<String> {
    let source = lab.v4(host);
    lab.inside(host, || visit(source, target)).ok()
}

#[test]
fn listener_port_is_unreachable_from_outside() {
    let lab = Lab::new(&["other"]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let listening = lab.run("victim", "ss", &["-Hltn4"]);
    let port = listening.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")).expect("it listens");
    let port: u16 = port.parse().expect("a port");
    lab.sysctl("net.ipv4.conf.all.route_localnet=1");
    // From this host, at the loopback address: the connection is accepted and closed, and does not count as a decoy's.
    lab.inside("victim", || visit(Ipv4Addr::LOCALHOST, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))).ok();
    assert_eq!(accepted(&lab), 0);
    // From outside, the listener's port is an ordinary decoy.
    visit_from(&lab, "other", SocketAddr::new(lab.victim_v4("other").into(), port)).expect("a decoy");
    daemon.expect_line(&format!("attackalert: Connect from host: {0}/{0} to TCP port: {port}", lab.v4("other")));
    // Other hosts cannot reach the loopback address.
    lab.namespace("other").ip("route add 127.0.0.2/32 via 10.77.1.1 table 7");
    assert_eq!(accepted(&lab), 1);
    daemon.stop();
}

#[test]
fn decoys_survive_flush_and_end_with_program() {
    let lab = Lab::new(&["other"]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let target = SocketAddr::new(lab.victim_v4("other").into(), 901);
    lab.nft("flush ruleset");
    eventually("decoys are back", || {
        lab.ports("trapped").contains(&901) && visit_from(&lab, "other", target).is_some()
    });
    daemon.stop();
    assert_eq!(visit_from(&lab, "other", target), None, "nothing listens after the program has stopped");
    // The rules that a killed program leaves behind lead nowhere.
    let daemon = Daemon::start_armed(&lab, ALL);
    assert!(visit_from(&lab, "other", target).is_some());
    daemon.kill();
    assert_eq!(visit_from(&lab, "other", target), None);
}
