//! Tests the hold: for about a second after a probe of a closed port the kernel drops the source's SYNs to this host.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually, raw, slowness, within};

use crate::Protocol::Tcp;
use crate::banned_at_last;

/// Longer than a hold, and shorter than the time until a SYN's second retransmission.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Holds an address for the whole test; the rules do not depend on the element's timeout.
fn hold(lab: &Lab, address: impl Into<IpAddr>) {
    let address = address.into();
    let set = if address.is_ipv4() { "held" } else { "held6" };
    lab.nft(&format!("add element inet portsentry {set} {{ {address} timeout 1h }}"));
}

fn release_all(lab: &Lab) {
    lab.nft("flush set inet portsentry held; flush set inet portsentry held6");
}

/// True if this source was ever held.
fn was_held(lab: &Lab, address: impl Into<IpAddr>) -> bool {
    let address = address.into();
    let set = if address.is_ipv4() { "hold_counts" } else { "hold_counts6" };
    lab.set_text(set).contains(&address.to_string())
}

/// Disables bans by the kernel while the program is stopped.
fn without_bans(lab: &Lab) {
    lab.nft("insert rule inet portsentry trap_ban return");
}

/// Connects from a host; returns the error, if any.
fn connect(lab: &Lab, host: &str, target: IpAddr, port: u16, timeout: Duration) -> Option<ErrorKind> {
    lab.inside(host, || TcpStream::connect_timeout(&SocketAddr::new(target, port), timeout).err().map(|e| e.kind()))
}

#[test]
fn probe_holds_source_briefly() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    lab.victim_ip("addr add fe80::77/64 dev other nodad");
    let daemon = Tcp.start(&lab, "");
    assert!(lab.succeed(&["status"]).contains("sources are held for 900 ms"));
    let ends = lab.ends("other");
    for (source, target) in ends {
        let before = lab.packets("trap_held");
        lab.probe("other", source, target, &[901]);
        eventually("the SYN is counted, then dropped", || lab.packets("trap_held") > before);
        // The retransmitted SYN is not a new probe.
        let refused = connect(&lab, "other", target, 902, TIMEOUT);
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{source}");
        assert!(lab.is_served("other", target, 80, TIMEOUT));
    }
    assert!(was_held(&lab, lab.v4("other")) && was_held(&lab, lab.v6_network("other")));
    let neighbour: IpAddr = "fe80::2".parse().unwrap();
    lab.wire("other").send(&raw::tcp(neighbour, "fe80::77".parse().unwrap(), 901, raw::SYN));
    eventually("a link-local address is held individually", || was_held(&lab, neighbour));
    eventually("holds end", || lab.set("held").is_empty() && lab.set("held6").is_empty());
    let explained = lab.succeed(&["explain", &lab.v4("other").to_string()]);
    assert!(explained.contains("at most 16 times in 30m"), "{explained}");
    assert!(explained.contains("the last new port was"), "{explained}");
    eventually("the dropped SYNs are among the metrics", || lab.ask(&["status"])["trap"]["held"].as_u64() > Some(1));
    assert_eq!(lab.ask(&["status"])["trap"]["hold_full"], 0);
    assert!(banned_at_last(&lab).is_empty());
    daemon.stop();
}

/// A mail program that guesses the settings of a mail server is held and not counted. A browser that tries HTTPS first
/// is not held.
#[test]
fn related_port_holds_without_counting() {
    let lab = Lab::new(&["mail", "browser"]);
    let _services = Services::open(&lab, &[993, 80]);
    let daemon = Tcp.start(&lab, "");
    let ends =
        |host| [(lab.v4(host).into(), lab.victim_v4(host).into()), (lab.v6(host).into(), lab.victim_v6(host).into())];
    daemon.frozen(|| {
        for (source, target) in ends("mail") as [(IpAddr, IpAddr); 2] {
            lab.probe("mail", source, target, &[143, 995, 110, 587]);
        }
        for (_, target) in ends("browser") {
            let refused = connect(&lab, "browser", target, 443, CONNECT_TIMEOUT);
            assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{target}");
        }
        assert!(was_held(&lab, lab.v4("mail")) && was_held(&lab, lab.v6_network("mail")));
        assert!(!was_held(&lab, lab.v4("browser")) && !was_held(&lab, lab.v6_network("browser")));
        assert!(lab.set("suspects").is_empty() && lab.set("suspects6").is_empty());
    });
    assert!(banned_at_last(&lab).is_empty());
    daemon.stop();
}

/// The SYN of a scanner is dropped at open and published ports as well, and passes when it is repeated. Forwarded and
/// allowed ones pass.
#[test]
fn scanner_syn_holds_at_any_port() {
    let lab = Lab::new(&["other", "container"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Tcp.start(&lab, "[allow]\nnetworks = [\"10.77.1.101\", \"10.77.1.102\"]\n");
    let (container, target) = (IpAddr::from(lab.v4("container")), IpAddr::from(lab.victim_v4("other")));
    // Port 8082 is not monitored: whether the program knows that it is published makes no difference.
    lab.publish(&format!("iif other ip daddr {target} tcp dport 8082"), format_args!("{container}:80"));
    let sources = lab.add_addresses("other", 101..107);
    let mut wire = lab.wire("other");
    let mut send = |source: usize, target, port| wire.send(&raw::scanner_syn(sources[source].into(), target, port));
    send(0, target, 80);
    send(2, container, 80);
    for (number, (source, target, port)) in (1..).zip([(3, target, 80), (4, target, 8_082), (5, target, 113)]) {
        send(source, target, port);
        eventually("the SYN is dropped", || lab.packets("trap_held") == number);
        assert!(was_held(&lab, sources[source]), "{port}");
        // A repeated SYN passes; otherwise the next count would be wrong.
        release_all(&lab);
        send(source, target, port);
    }
    assert!(!was_held(&lab, sources[0]) && !was_held(&lab, sources[2]), "allowed and forwarded SYNs");
    let (source, target) = (IpAddr::from(lab.v6("other")), IpAddr::from(lab.victim_v6("other")));
    wire.send(&raw::scanner_syn(source, target, 80));
    eventually("IPv6 sources are held as well", || was_held(&lab, lab.v6_network("other")));
    assert!(banned_at_last(&lab).is_empty() && lab.set("suspects").is_empty(), "a SYN to an open port is no evidence");
    daemon.stop();
}

/// A scanner sends SYNs to several services within milliseconds. A client that connects to a second service because of
/// an answer of the first one needs longer, and a browser may try HTTP and HTTPS.
#[test]
fn two_services_at_once_hold_source() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[22, 80, 443, 993]);
    lab.victim_ip("route add fd77:0:1::/48 dev other");
    let daemon = Tcp.start(&lab, "[allow]\nnetworks = [\"10.77.1.101\", \"fd77:0:1:101::/64\"]\n");
    eventually("the services are known", || lab.ports("services") == BTreeSet::from([22, 80, 443, 993]));
    let (v4, v6) = (IpAddr::from(lab.victim_v4("other")), IpAddr::from(lab.victim_v6("other")));
    let sources = |number: u8| -> [IpAddr; 2] {
        [format!("10.77.1.{number}"), format!("fd77:0:1:{number}::9")].map(|text| text.parse().unwrap())
    };
    let holds = |number: u8| {
        let network: IpAddr = format!("fd77:0:1:{number}::").parse().unwrap();
        [was_held(&lab, sources(number)[0]), was_held(&lab, network)]
    };
    let mut wire = lab.wire("other");
    let mut send = |number: u8, ports: &[u16]| {
        for (source, target) in sources(number).into_iter().zip([v4, v6]) {
            ports.iter().for_each(|port| wire.send(&raw::tcp(source, target, *port, raw::SYN)));
        }
    };
    daemon.frozen(|| {
        lab.nft(
            "add element inet portsentry peers { 10.77.1.102 }; add element inet portsentry peers6 { fd77:0:1:102:: }",
        );
        // Allowed and connected clients, a browser, two connections to one service, and a port that is not monitored.
        send(101, &[22, 80]);
        send(102, &[22, 80]);
        send(103, &[80, 443]);
        send(104, &[443, 80]);
        send(105, &[22, 22]);
        send(106, &[22, 113]);
        // On a busy machine the SYNs of one source may be too far apart.
        let held = (110..250).find(|number| {
            send(*number, &[22, 80, 993]);
            within(Duration::from_millis(100), || (holds(*number) == [true; 2]).then_some(())).is_some()
        });
        let held = held.expect("two services at once hold the source");
        release_all(&lab);
        let dropped = lab.packets("trap_held");
        send(held, &[80, 993]);
        send(107, &[901]);
        eventually("the last SYN was processed", || holds(107) == [true; 2]);
        assert_eq!(lab.packets("trap_held"), dropped + 2, "retransmitted SYNs arrive, those to a closed port do not");
        for number in 101..107 {
            assert_eq!(holds(number), [false; 2], "{number}");
        }
    });
    assert!(banned_at_last(&lab).is_empty(), "a SYN to an open port is no evidence");
    daemon.stop();
}

#[test]
fn held_source_reaches_no_port_of_host() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    let neighbour = lab.add_neighbour("other");
    let daemon = Tcp.start(&lab, &format!("[allow]\nnetworks = [\"{neighbour}/128\"]\n"));
    let (v4, v6) = (IpAddr::from(lab.victim_v4("other")), IpAddr::from(lab.victim_v6("other")));
    let listener = lab.inside("victim", || TcpListener::bind((v4, 8_080)).unwrap());
    let mut client = lab.inside("other", || TcpStream::connect((v4, 8_080)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    hold(&lab, lab.v4("other"));
    hold(&lab, lab.v6_network("other"));
    for (target, port) in [(v4, 80), (v4, 901), (v4, 8_080), (v4, 113), (v6, 80), (v6, 901)] {
        let ended = lab.inside("other", || {
            // From the held address, not from the allowed one.
            let source = if target.is_ipv4() { IpAddr::from(lab.v4("other")) } else { lab.v6("other").into() };
            connect_from(source, SocketAddr::new(target, port))
        });
        assert_eq!(ended, Some(ErrorKind::TimedOut), "{target} {port}");
    }
    let allowed = lab.inside("other", || connect_from(neighbour.into(), SocketAddr::new(v6, 80)));
    assert_eq!(allowed, None, "an allowed address of a held /64 connects");
    client.write_all(b"question").unwrap();
    let mut received = [0; 8];
    server.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"question", "an established connection works");
    server.write_all(b"response").unwrap();
    client.read_exact(&mut received).unwrap();
    release_all(&lab);
    assert!(lab.is_served("other", v4, 80, TIMEOUT) && lab.is_served("other", v6, 80, TIMEOUT));
    daemon.stop();
}

/// Connects from this address; returns the error, if any.
fn connect_from(source: IpAddr, target: SocketAddr) -> Option<ErrorKind> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::new(source, 0)).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(CONNECT_TIMEOUT)).unwrap();
    connect(&socket, &target).err().map(|errno| match errno {
        rustix::io::Errno::CONNREFUSED => ErrorKind::ConnectionRefused,
        rustix::io::Errno::INPROGRESS | rustix::io::Errno::AGAIN => ErrorKind::TimedOut,
        other => panic!("{other}"),
    })
}

/// On a router with a container, published ports belong to this host, forwarded ones do not.
#[test]
fn published_port_is_held_forwarded_is_not() {
    let lab = Lab::new(&["other", "container"]);
    let daemon = Tcp.start(&lab, "[tcp]\nadvanced_exclude = \"8080,113,139\"\n");
    let (container, target) = (IpAddr::from(lab.v4("container")), IpAddr::from(lab.victim_v4("other")));
    lab.publish(&format!("iif other ip daddr {target} tcp dport 8080"), format_args!("{container}:80"));
    let _listener = lab.inside("container", || TcpListener::bind((container, 80)).unwrap());
    let try_both =
        || [(container, 80), (target, 8_080)].map(|(ip, port)| connect(&lab, "other", ip, port, CONNECT_TIMEOUT));
    assert_eq!(try_both(), [None, None]);
    hold(&lab, lab.v4("other"));
    assert_eq!(try_both(), [None, Some(ErrorKind::TimedOut)]);
    release_all(&lab);
    assert_eq!(try_both(), [None, None]);
    daemon.stop();
}

/// Forged SYNs, each to a new port and sent when the previous hold has ended, while the ceilings prevent a ban.
#[test]
fn source_is_held_sixteen_times() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Tcp.start(&lab, "[trap]\nhold = \"100ms\"\n");
    let ends = lab.ends("other");
    let mut wire = lab.wire("other");
    daemon.frozen(|| {
        without_bans(&lab);
        for (source, target) in ends {
            let before = lab.packets("trap_held");
            for port in 901..941 {
                wire.send(&raw::tcp(source, target, port, raw::SYN));
                std::thread::sleep(Duration::from_millis(130));
            }
            assert_eq!(lab.packets("trap_held") - before, 16, "{source}");
            assert!(lab.is_served("other", target, 80, TIMEOUT));
        }
        assert_eq!(lab.packets("trap_full"), 0);
    });
    daemon.stop();
}

/// Forged SYNs that never stop. The ceiling of bans in force is reached, so neither the sensor nor the kernel bans
/// their source, although the kernel's own rate limit has room. They last longer than two windows, and each SYN extends
/// the window.
#[test]
fn forged_syns_cost_victim_sixteen_holds() {
    const HOLD: Duration = Duration::from_millis(200);
    let lab = Lab::new(&["other", "scanner"]);
    let _services = Services::open(&lab, &[80]);
    let text = "[detect]\nwindow = \"5s\"\n[trap]\nhold = \"200ms\"\n\
                [block]\nmax_new_bans_per_minute = 600\nmax_forgeable_bans = 1\n";
    let daemon = Tcp.start(&lab, text);
    let scanner = lab.v4("scanner").into();
    lab.probe("scanner", scanner, lab.victim_v4("scanner").into(), &[911, 912, 913]);
    eventually("the only ban that has room stands", || lab.banned() == [scanner]);

    let ends = lab.ends("other");
    let mut wire = lab.wire("other");
    let over = AtomicBool::new(false);
    let attempts = std::thread::scope(|scope| {
        let attempts = ends.map(|(_, target)| {
            let (lab, over) = (&lab, &over);
            scope.spawn(move || lab.inside("other", || attempts(SocketAddr::new(target, 80), over)))
        });
        for port in 901..949 {
            ends.iter().for_each(|(source, target)| wire.send(&raw::tcp(*source, *target, port, raw::SYN)));
            std::thread::sleep(HOLD + HOLD / 4);
        }
        over.store(true, Ordering::Relaxed);
        attempts.map(|thread| thread.join().unwrap())
    });
    for ((source, _), attempts) in ends.iter().zip(attempts) {
        let lost = EVERY * u32::try_from(attempts.iter().filter(|arrived| !**arrived).count()).unwrap();
        println!("{source}: {lost:?} of {:?}", EVERY * u32::try_from(attempts.len()).unwrap());
        assert!(lost >= HOLD * 8, "it is held: {lost:?}");
        // A hold of ten intervals drops eleven SYNs if the first one comes at once.
        assert!(lost <= (HOLD + EVERY) * 16, "and not longer than sixteen times: {lost:?}");
        let last = attempts.iter().rposition(|arrived| !arrived).unwrap();
        assert!(
            last < attempts.len() / 2,
            "no SYN is lost in the second half of the attack: {last} of {}",
            attempts.len()
        );
    }
    assert_eq!(lab.banned(), [scanner], "no ban ends it");
    daemon.stop();
}

/// The least time between the starts of two connections.
const EVERY: Duration = Duration::from_millis(20);

/// The time within which a SYN that was not dropped is answered. It is shorter than the time until a retransmission.
const ANSWERED_WITHIN: Duration = Duration::from_millis(600);

/// Starts one connection after the other until `over` is true; returns for each whether its first SYN was answered.
fn attempts(target: SocketAddr, over: &AtomicBool) -> Vec<bool> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let mut begun = VecDeque::new();
    let mut arrived = Vec::new();
    loop {
        let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
        let _ = connect(&socket, &target);
        begun.push_back((Instant::now(), TcpStream::from(socket)));
        while begun.front().is_some_and(|(since, _): &(Instant, _)| since.elapsed() > ANSWERED_WITHIN) {
            arrived.extend(begun.pop_front().map(|(_, stream)| stream.peer_addr().is_ok()));
        }
        if over.load(Ordering::Relaxed) {
            return arrived;
        }
        std::thread::sleep(EVERY);
    }
}

/// Adds `count` elements with ascending keys to a set.
fn fill(lab: &Lab, set: &str, count: u32, port: &str) {
    let mut text = String::new();
    for number in 0..count {
        let [_, b, c, d] = number.to_be_bytes();
        let separator = if number % 4_096 == 0 { "}\nadd element inet portsentry SET {" } else { "," };
        let _ = write!(text, "{}11.{b}.{c}.{d}{port} timeout 1h", separator.replace("SET", set));
    }
    let text = format!("{}}}\n", text.trim_start_matches("}\n"));
    let file = lab.write("fill.nft", &text);
    lab.load_rules(&file);
}

#[test]
fn full_trap_sets_still_hold_sources() {
    let lab = Lab::new(&["other", "second"]);
    let daemon = Tcp.start(&lab, "");
    daemon.frozen(|| {
        fill(&lab, "touched", 131_072, " . 901");
        fill(&lab, "suspects", 65_536, "");
        // The set that counts holds over the window is full, so they are counted for ten seconds.
        fill(&lab, "hold_counts", 65_536, "");
        for (number, host) in (1..).zip(["other", "second"]) {
            lab.probe_v4(host, &[901]);
            eventually("the SYN is dropped", || lab.packets("trap_held") == number);
        }
        assert!(!was_held(&lab, lab.v4("other")) && lab.set("suspects").len() == 65_536);
        assert_eq!(lab.packets("trap_full"), 0);
    });
    daemon.stop();
}

#[test]
fn full_hold_set_is_reported() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "[metrics]\nlisten = \"127.0.0.1:9777\"\n");
    fill(&lab, "held", 65_536, "");
    let target = lab.victim_v4("other").into();
    assert_eq!(connect(&lab, "other", target, 901, TIMEOUT), Some(ErrorKind::ConnectionRefused));
    eventually("the status reports it", || {
        lab.succeed(&["status"]).contains("packets passed because a set was full: 1")
    });
    let metrics = lab.inside("victim", || {
        let mut stream = TcpStream::connect("127.0.0.1:9777").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert!(metrics.contains("portsentry_hold_full_total 1.0"), "{metrics}");
    daemon.stop();
}

/// Without blocking there is no hold; with `--confirm` there is none before the operator confirms.
#[test]
fn no_source_is_held_without_blocking() {
    for (text, arguments) in [
        ("[trap]\nhold = \"0s\"\n", vec![]),
        ("[tcp]\nblock = false\n", vec![]),
        ("", vec!["--log-only"]),
        ("", vec!["--confirm", "1h"]),
    ] {
        let lab = Lab::new(&["other"]);
        let daemon = Daemon::start_configured(&lab, text, &arguments);
        let rules = lab.nft("list ruleset");
        assert!(!rules.contains("held") && !rules.contains("frag-off & 16383"), "{text} {arguments:?}");
        assert!(!lab.succeed(&["status"]).contains("are held"));
        assert_eq!(lab.ask(&["explain", "192.0.2.7"])["hold"], serde_json::Value::Null);
        let target = lab.victim_v4("other").into();
        assert_eq!(connect(&lab, "other", target, 901, TIMEOUT), Some(ErrorKind::ConnectionRefused));
        if arguments.len() == 2 {
            lab.reload("expire = \"2h\"\n");
            assert!(!lab.nft("list ruleset").contains("held"), "a reload does not confirm");
            lab.succeed(&["confirm"]);
            let holds = || lab.nft("list ruleset").contains("timeout 900ms");
            eventually("sources are held after the confirmation", holds);
        }
        daemon.stop();
    }
}

/// NULL, FIN, XMAS, SYN with FIN, SYN with RST, and all of them.
const ILLEGAL: [u16; 6] = [0, raw::FIN, 0x29, raw::SYN | raw::FIN, raw::SYN | raw::RST, 0x3f];

#[test]
fn illegal_flags_are_dropped_and_hold_source() {
    let lab = Lab::new(&["other"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Tcp.start(&lab, "");
    let sources = lab.add_addresses("other", 101..107);
    let target = lab.victim_v4("other").into();
    let mut wire = lab.wire("other");
    daemon.frozen(|| {
        for flags in ILLEGAL {
            // The trap does not apply to an open port.
            wire.send(&raw::tcp(lab.v4("other").into(), target, 80, flags));
        }
        for (source, flags) in sources.iter().zip(ILLEGAL) {
            wire.send(&raw::tcp((*source).into(), target, 901, flags));
            eventually("the source is held", || was_held(&lab, *source));
        }
        assert_eq!(lab.packets("trap_touch"), 6, "the packets are dropped, and so not answered");
        assert!(!was_held(&lab, lab.v4("other")));
        assert!(banned_at_last(&lab).is_empty() && lab.set("suspects").is_empty(), "the program bans, not the kernel");
    });
    let banned: Vec<IpAddr> = sources.iter().map(|source| IpAddr::from(*source)).collect();
    eventually("the program bans all of them", || banned.iter().all(|source| lab.banned().contains(source)));
    daemon.stop();
}

/// A reset from a closed port that is not trapped, such as 113, would distinguish it from open ports.
#[test]
fn illegal_flags_during_hold_get_no_reset() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let ends = lab.ends("other");
    hold(&lab, lab.v4("other"));
    hold(&lab, lab.v6_network("other"));
    let mut wire = lab.wire("other");
    daemon.frozen(|| {
        for (source, target) in ends {
            let before = lab.packets("trap_held");
            let mut send = |flags| wire.send(&raw::tcp(source, target, 113, flags));
            [0, raw::FIN, 0x29, raw::SYN | raw::FIN].into_iter().for_each(&mut send);
            eventually("they are dropped", || lab.packets("trap_held") == before + 4);
            // Segments that belong to connections, or end them.
            [raw::ACK, raw::RST, raw::RST | raw::ACK, raw::FIN | raw::ACK, raw::SYN | raw::ACK]
                .into_iter()
                .for_each(&mut send);
            send(raw::FIN);
            eventually("the last one is dropped", || lab.packets("trap_held") > before + 4);
            assert_eq!(lab.packets("trap_held"), before + 5, "{source}");
        }
    });
    daemon.stop();
}

/// A client of a closed port is refused when its SYN is retransmitted.
#[test]
fn closed_port_refuses_second_syn() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let target = lab.victim_v4("other").into();
    let begin = std::time::Instant::now();
    assert_eq!(connect(&lab, "other", target, 901, TIMEOUT), Some(ErrorKind::ConnectionRefused));
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert!(took < Duration::from_secs(3) * slowness(), "the source is not held again: {took:?}");
    daemon.stop();
}
