//! Tests attacks on the kernel's trap: sets filled with forged sources, bans provoked with forged addresses, services
//! that start and stop repeatedly.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::support::{CLOSED, SHORTLY, forge, recorded, scan};
use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, SYN, forged};
use netns_lab::scan::send_surely;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, eventually, session, slowness, within};

/// `size` of the set `suspects` in nft/portsentry-trap.nft.
const SUSPECTS: u32 = 65_536;

/// `size` of the set `touched_udp` in nft/portsentry-trap-udp.nft.
const TOUCHED_UDP: u32 = 65_536;

/// Some 132,000 packets: as many sources as the kernel can count, each below the threshold.
#[test]
fn full_trap_memory_hides_no_scanner() {
    let _guard = one_flood();
    let lab = Lab::new(&["forger", "scanner", "client", "late"]);
    lab.default_route("forger");
    let _services = Services::open(&lab, &EIGHT);
    // Long enough to send all packets on a busy machine.
    let daemon = Daemon::start_armed(&lab, &format!("[detect]\nwindow = \"{}s\"\n", 40 * slowness()));
    let target = lab.victim_v4("forger").into();
    let packets = [901, 902].into_iter().flat_map(|port| forged(SUSPECTS + 400).map(move |source| (source, port)));
    let scanner = daemon.frozen(|| {
        let packets = packets.map(|(source, port)| raw::tcp(source, target, port, SYN));
        lab.wire("forger").pace(1_000_000, packets);
        let suspects = || lab.set_text("suspects").matches("expires").count();
        eventually("the kernel's set is full", || suspects() == usize::try_from(SUSPECTS).unwrap());
        // The kernel counts no new source, and accepts the packets that it cannot count.
        let scanner = scan(&lab, "scanner");
        assert_eq!(lab.served("client", lab.victim_v4("client").into(), &EIGHT, 1), EIGHT.len());
        assert!(lab.banned().is_empty(), "{:?}", lab.banned());
        scanner
    });
    // The program works as without a trap.
    lab.probe_until_banned("scanner", lab.victim_v4("scanner").into());
    eventually("the ledger has the ban, despite the flood", || recorded(&lab) == [scanner]);
    daemon.expect_line(&format!("attackalert: Host {scanner} has been blocked"));
    assert_eq!(lab.banned(), [scanner], "no source that was forged below the threshold is banned");
    assert!(lab.is_served("client", lab.victim_v4("client").into(), 22, TIMEOUT));
    // After the window there is room again.
    let late = IpAddr::from(lab.v4("late"));
    let banned = within(2 * TIMEOUT, || {
        daemon.frozen(|| {
            lab.probe("late", late, lab.victim_v4("late").into(), &[905, 906, 907, 908]);
            std::thread::sleep(Duration::from_millis(300) * slowness());
            lab.banned().contains(&late).then_some(())
        })
    });
    assert!(banned.is_some(), "the kernel alone bans again");
    assert!(daemon.stop().lines().count() < 1_300, "the log does not grow with the number of forged sources");
}

/// The number of elements in the kernel's set, from the metrics.
fn element_count(lab: &Lab, set: &str) -> u32 {
    let text = lab.inside("victim", || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9777)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let name = format!("portsentry_trap_elements{{set=\"{set}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{text}"));
    value.split('.').next().unwrap().parse().unwrap()
}

/// Only one flood runs at a time, because two would wait for each other's elements to expire.
fn one_flood() -> MutexGuard<'static, ()> {
    static FLOOD: Mutex<()> = Mutex::new(());
    FLOOD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True if the kernel reports how many elements a set has (Linux 6.15).
fn counts_elements() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

/// Sends one datagram to each of more closed ports than are forgiven.
fn probe_by_udp(lab: &Lab, host: &str) -> IpAddr {
    lab.inside(host, || {
        let socket = UdpSocket::bind((lab.v4(host), 0)).unwrap();
        for port in CLOSED {
            send_surely(|| assert_eq!(socket.send_to(b"portscan", (lab.victim_v4(host), port)).unwrap(), 8));
        }
    });
    lab.v4(host).into()
}

/// The same with datagrams: sources below the threshold, far more than the set holds.
#[test]
fn forged_datagrams_fill_bounded_kernel_memory() {
    let _guard = one_flood();
    let lab = Lab::new(&["forger", "scanner", "client"]);
    lab.default_route("forger");
    let _services = Services::open(&lab, &EIGHT);
    // The window is longer than this test; the test above shows that there is room after it.
    let settings = "[detect]\nwindow = \"10m\"\n[udp]\nblock = true\n[trap]\nudp = true\n\
                    [metrics]\nlisten = \"127.0.0.1:9777\"\n";
    let daemon = Daemon::start_armed(&lab, settings);
    eventually("datagrams are counted", || lab.set_text("trapped_udp").contains("elements"));
    let target = lab.victim_v4("forger").into();
    let held = |set| u32::try_from(lab.set_text(set).matches("expires").count()).unwrap();
    let packets = [901, 902].into_iter().flat_map(|port| forged(SUSPECTS + 400).map(move |source| (source, port)));
    let scanner = daemon.frozen(|| {
        let packets = packets.map(|(source, port)| raw::udp(source, target, (40_000, port)));
        lab.wire("forger").pace(1_000_000, packets);
        eventually("the kernel's set is full", || held("suspects") == SUSPECTS);
        assert_eq!((held("touched_udp"), held("touched")), (TOUCHED_UDP, 0));
        // This host's own queries are recorded by port only, so remote hosts cannot add to them.
        assert_eq!(held("asked"), 0);
        let scanner = probe_by_udp(&lab, "scanner");
        assert_eq!(lab.served("client", lab.victim_v4("client").into(), &EIGHT, 1), EIGHT.len());
        assert!(lab.banned().is_empty(), "{:?}", lab.banned());
        scanner
    });
    // The program works as without a trap, and reports how full the kernel's set is.
    let mut highest = 0;
    eventually("the scanner is banned", || {
        highest = highest.max(element_count(&lab, "suspects"));
        probe_by_udp(&lab, "scanner");
        lab.banned().contains(&scanner)
    });
    eventually("the ledger has the ban, despite the flood", || recorded(&lab) == [scanner]);
    daemon.expect_line(&format!("attackalert: Host {scanner} has been blocked"));
    assert_eq!(lab.banned(), [scanner], "no source that was forged below the threshold is banned");
    assert!(lab.is_served("client", lab.victim_v4("client").into(), 22, TIMEOUT));
    eventually("the metrics show the number of elements", || {
        highest = highest.max(element_count(&lab, "suspects"));
        highest > 0 || !counts_elements()
    });
    assert!(highest <= SUSPECTS, "{highest}");
    assert!(daemon.stop().lines().count() < 1_300, "the log does not grow with the number of forged sources");
}

/// A source that the kernel could not add to its full set was never banned, so no removal may be reported.
#[test]
fn refused_elements_are_not_reported_lifted() {
    let lab = Lab::new(&["forger"]);
    lab.default_route("forger");
    let daemon = Daemon::start_armed(&lab, "[block]\nmax_new_bans_per_minute = 1000000\n[block.nft]\nsize = 64\n");
    let target = lab.victim_v4("forger").into();
    let probes = forged(100).flat_map(|source| [901, 902, 903].map(|port| raw::tcp(source, target, port, SYN)));
    lab.wire("forger").pace(10_000, probes);
    daemon.expect_line("set inet portsentry blocked is full (64 elements)");
    // Twice as long as the program waits before it reviews the kernel's bans.
    std::thread::sleep(Duration::from_secs(4) * slowness());
    // When packets and transactions add elements at the same time, the kernel's count is off by a few.
    let held = lab.set("blocked").len();
    assert!((64..100).contains(&held), "{held}");
    let untrue = daemon.lines_with("without valid evidence");
    assert!(untrue.is_empty(), "{untrue:?}");
    daemon.stop();
}

/// Gives the program a file with login sessions, in its own mount namespace.
const LOGGED_IN: &str = r#"mount -t tmpfs tmpfs /run && cp "$1" /run/utmp && shift && exec "$@""#;

/// The program is stopped meanwhile, so only the kernel's rules can exempt these sources.
#[test]
fn kernel_alone_bans_no_exempt_source() {
    let lab = Lab::new(&["forger"]);
    let own = lab.victim_v4("forger");
    lab.victim_ip("route add default via 10.77.1.250");
    lab.set_resolver("198.51.100.53".parse().unwrap());
    std::fs::write(lab.path("utmp"), session("203.0.113.9")).unwrap();
    let settings = lab.write("portsentry.toml", "[allow]\nnetworks = [\"192.0.2.77\"]\n");
    let utmp = lab.path("utmp");
    let wrapper = ["sh", "-c", LOGGED_IN, "sh", utmp.to_str().unwrap()];
    let daemon = Daemon::start_under(&lab, &wrapper, &["--expire", "24h", "--config", settings.to_str().unwrap()]);
    lab.trapped_ports();
    let own = own.to_string();
    let needed = ["10.77.1.250", "198.51.100.53", "203.0.113.9", "192.0.2.77", "127.9.9.9", &own];
    let other = "10.99.0.1";
    daemon.frozen(|| {
        let mut wire = lab.wire("forger");
        for source in needed.into_iter().chain([other]) {
            let source = source.parse().unwrap();
            forge(&mut wire, source, own.parse().unwrap());
        }
        lab.expect_ban(other.parse().unwrap());
        assert_eq!(lab.banned(), [other.parse::<IpAddr>().unwrap()]);
        assert_eq!(lab.set("suspects").len(), 1, "the others are not even counted: {}", lab.set_text("suspects"));
    });
    daemon.expect_line(&format!("attackalert: Host {other} has been blocked"));
    assert_eq!(lab.banned(), [other.parse::<IpAddr>().unwrap()]);
    daemon.stop();
}

/// Provoked bans of forged sources stay below the ceiling, however long an attacker tries.
#[test]
fn provoked_bans_count_against_ceiling() {
    let lab = Lab::new(&["forger"]);
    lab.default_route("forger");
    let daemon = Daemon::start_armed(&lab, "[block]\nmax_new_bans_per_minute = 3\n");
    let target = lab.victim_v4("forger").into();
    let mut wire = lab.wire("forger");
    let victims: Vec<_> = forged(30).collect();
    let begin = std::time::Instant::now();
    victims.iter().for_each(|source| forge(&mut wire, *source, target));
    let chosen = victims[0];
    lab.expect_ban(chosen);
    std::thread::sleep(Duration::from_secs(1) * slowness());
    // One more per twenty seconds, and the kernel's bans before the sensor counts them.
    let most = 3 + 3 + usize::try_from(begin.elapsed().as_secs() / 20).unwrap();
    let banned = lab.banned().len();
    assert!((3..=most).contains(&banned), "{banned} of 30");
    // After an unblock the next ban is treated as the first.
    lab.succeed(&["unblock", &chosen.to_string()]);
    assert!(!lab.banned().contains(&chosen));
    (901..=920).for_each(|port| wire.send(&raw::tcp(chosen, target, port, SYN)));
    lab.expect_ban(chosen);
    daemon.expect_line(&format!("attackalert: Host {chosen} has been blocked"));
    eventually("the second ban is reported", || {
        daemon.lines_with(&format!("attackalert: Host {chosen} has been blocked")).len() == 2
    });
    assert_eq!(daemon.lines_with(&format!("earlier bans of Host {chosen}:")), [""; 0]);
    daemon.stop();
}

/// Half a second up, half a second down: the kernel knows which ports are closed, but not which were open a moment ago.
#[test]
fn clients_of_flapping_services_are_not_banned() {
    let lab = Lab::new(&["client", "scanner"]);
    let daemon = Daemon::start_armed(&lab, "");
    let (client, target) = lab.ends_v4("client");
    let ports = [901, 902, 903, 904, 905];
    for _ in 0..5 {
        let services = Services::open(&lab, &ports);
        for _ in 0..5 {
            lab.probe("client", client, target, &ports);
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(services);
        for _ in 0..5 {
            lab.probe("client", client, target, &ports);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let _services = Services::open(&lab, &ports);
    eventually("the trap omits these ports", || ports.iter().all(|port| !lab.ports("trapped").contains(port)));
    // Bans by the kernel in the first moments are lifted.
    eventually("the kernel's bans are lifted", || !lab.banned().contains(&client));
    assert_eq!(lab.served("client", target, &ports, 1), ports.len());
    let lines = daemon.lines_with(&format!("attackalert: Host {client} has been blocked"));
    assert!(lines.is_empty(), "{lines:?}");
    lab.probe_v4("scanner", &[911, 912, 913]);
    let scanner = lab.v4("scanner").into();
    lab.expect_ban(scanner);
    assert!(!lab.is_served("scanner", lab.victim_v4("scanner").into(), 901, SHORTLY));
    daemon.stop();
}
