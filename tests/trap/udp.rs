//! Tests the kernel's own counting of UDP ports, and the program's verdict about it.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, raw, soon};

use crate::Protocol::Udp;
use crate::{BLOCKING, banned_at_last, is_banned};

/// The ruleset as nft prints it.
fn table(lab: &Lab) -> String {
    lab.nft("list ruleset")
}

/// If both protocols block, the kernel counts their ports together, as the program does.
#[test]
fn tcp_and_udp_ports_count_together() {
    let lab = Lab::new(&["other"]);
    let daemon = Udp.start(&lab, "");
    let (source, target) = lab.ends_v4("other");
    daemon.frozen(|| {
        lab.probe("other", source, target, &[901]);
        Udp.probe(&lab, "other", source, target, &[901]);
        assert!(banned_at_last(&lab).is_empty());
        lab.probe("other", source, target, &[901, 902]);
        assert!(is_banned(&lab, source));
    });
    daemon.expect_line(&format!("attackalert: Host {source} has been blocked"));
    assert!(daemon.lines_with("without valid evidence").is_empty());
    daemon.stop();
}

#[test]
fn udp_trap_works_without_tcp_trap() {
    let lab = Lab::new(&["other"]);
    let daemon = Daemon::start_configured(&lab, &format!("{BLOCKING}tcp = false\n"), &["--expire", "24h"]);
    assert!(soon(|| !Udp.watched(&lab).is_empty()));
    assert!(!table(&lab).contains("tcp"));
    let (source, target) = lab.ends_v4("other");
    daemon.frozen(|| {
        lab.probe("other", source, target, &[901, 902, 903, 904]);
        assert!(banned_at_last(&lab).is_empty());
        Udp.probe(&lab, "other", source, target, &[901, 902, 903]);
        assert!(is_banned(&lab, source));
    });
    daemon.stop();
}

/// The ports are scanned in order, so that the result does not depend on luck: closed ports answer with an ICMP error,
/// and only forgiven probes are answered.
#[test]
fn nmap_learns_only_forgiven_closed_ports() {
    let lab = Lab::new(&["other"]);
    let daemon = Udp.start(&lab, "");
    let target = lab.victim_v4("other").into();
    let arguments = [
        "-sU",
        "-r",
        "-T5",
        "-p901-930",
        "--max-retries",
        "0",
        "--min-parallelism",
        "30",
        "--max-rtt-timeout",
        "200ms",
    ];
    // Without this the kernel's ICMP rate limit would hide closed ports, whether or not they are blocked.
    lab.sysctl("net.ipv4.icmp_ratelimit=0");
    let scan = daemon.frozen(|| lab.nmap("other", target, &arguments));
    assert!(scan.count("closed") <= 2, "of 30 ports, with the kernel alone: {scan:?}");
    lab.expect_ban(lab.v4("other").into());
    daemon.stop();
}

#[test]
fn uncounted_datagrams_fill_no_set() {
    let lab = Lab::new(&["other"]);
    for text in [
        "[udp]\nblock = true\n",
        "[trap]\nudp = true\n",
        "[udp]\nblock = true\nmode = \"connect\"\n[trap]\nudp = true\n",
    ] {
        let daemon = Daemon::start_configured(&lab, text, &[]);
        assert!(soon(|| !lab.ports("trapped").is_empty()));
        assert!(!table(&lab).contains("udp") && !table(&lab).contains("@asked"), "{text}");
        daemon.stop();
    }
}

#[test]
fn udp_trap_follows_reload_crash_and_stop() {
    let lab = Lab::new(&["other"]);
    let daemon = Udp.start(&lab, "");
    let reload = |text: &str, is_applied: &dyn Fn() -> bool| {
        lab.reload(text);
        assert!(soon(is_applied), "{text}: {}", table(&lab));
    };
    let lists = |udp: &str| table(&lab).contains(&format!("elements = {{ {udp} }}"));
    reload("[udp]\nblock = true\n", &|| !table(&lab).contains("udp"));
    reload(&BLOCKING.replace("[udp]\n", "[udp]\nadvanced_ports = \"901-903\"\n"), &|| lists("901-903"));
    reload(BLOCKING, &|| Udp.watched(&lab).contains(&904));
    let before = Udp.watched(&lab);
    for harm in [
        "flush ruleset",
        "flush set inet portsentry trapped_udp",
        "flush chain inet portsentry trap_asked",
        "flush chain inet portsentry trap; flush chain inet portsentry trap_asked; delete set inet portsentry trapped_udp",
    ] {
        lab.nft(harm);
        let whole = || table(&lab).contains("update @asked") && Udp.watched(&lab) == before;
        assert!(soon(whole), "{harm}");
    }
    daemon.kill();
    assert!(!Udp.watched(&lab).is_empty(), "a crash leaves the trap armed");
    let daemon = Daemon::start(&lab, &["--log-only"]);
    assert!(Udp.watched(&lab).is_empty() && lab.ports("trapped").is_empty());
    daemon.stop();
    let daemon = Udp.start(&lab, "");
    daemon.stop();
    assert!(Udp.watched(&lab).is_empty(), "an armed trap would ban without review");
}

/// UDP sockets accept a datagram for this host in a broadcast or multicast frame.
#[test]
fn datagrams_in_group_frames_are_counted() {
    let lab = Lab::new(&["first", "second"]);
    let udp = |host: &str, port| raw::udp(lab.v4(host).into(), lab.victim_v4(host).into(), (40_404, port));
    let socket = lab.inside("victim", || UdpSocket::bind("0.0.0.0:700").unwrap());
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let daemon = Udp.start(&lab, "");
    lab.wire("first").broadcast(&udp("first", 700));
    assert_eq!(socket.recv(&mut [0; 99]).unwrap(), 8, "the kernel takes it");
    daemon.frozen(|| {
        let mut wire = lab.wire("first");
        for port in 901..=903 {
            wire.broadcast(&udp("first", port));
        }
        assert!(is_banned(&lab, lab.v4("first")), "by the kernel alone");
    });
    daemon.expect_line(&format!("attackalert: Host {} has been blocked", lab.v4("first")));
    daemon.stop();

    let daemon = Daemon::start_configured(&lab, "[udp]\nblock = true\n", &["--expire", "24h"]);
    for port in 901..=903 {
        lab.wire("second").frame([0x33, 0x33, 0, 0, 0, 1], &udp("second", port));
    }
    lab.expect_ban(lab.v4("second").into());
    daemon.stop();
}

/// With the sysctl, the kernel drops them only after the trap has counted them.
#[test]
fn filtered_group_frames_cause_no_ban() {
    let lab = Lab::new(&["other"]);
    lab.sysctl("net.ipv4.conf.other.drop_unicast_in_l2_multicast=1");
    let daemon = Udp.start(&lab, "");
    let source = IpAddr::from(lab.v4("other"));
    let mut wire = lab.wire("other");
    for port in 901..=903 {
        wire.broadcast(&raw::udp(source, lab.victim_v4("other").into(), (40_404, port)));
    }
    daemon.expect_line(&format!("the kernel's trap blocked {source} without valid evidence: unblocked"));
    assert!(!banned_at_last(&lab).contains(&source));
    daemon.stop();
}

/// A router has the first address of each of its IPv6 networks (RFC 4291). It accepts datagrams there, but no TCP.
#[test]
fn anycast_address_of_router_is_monitored() {
    let lab = Lab::new(&["first", "second"]);
    lab.sysctl("net.ipv6.conf.all.forwarding=1");
    let socket = lab.inside("victim", || UdpSocket::bind("[::]:700").unwrap());
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let anycast = |host: &str| IpAddr::from(lab.v6_network(host));
    let udp = |host: &str, port| raw::udp(lab.v6(host).into(), anycast(host), (40_404, port));
    let daemon = Udp.start(&lab, "");
    lab.wire("first").send(&udp("first", 700));
    assert_eq!(socket.recv(&mut [0; 99]).unwrap(), 8, "the kernel takes it");
    daemon.frozen(|| {
        let mut wire = lab.wire("first");
        for port in 901..=905 {
            wire.send(&raw::tcp(lab.v6("first").into(), anycast("first"), port, raw::SYN));
        }
        assert!(banned_at_last(&lab).is_empty(), "the kernel answers no TCP there");
        for port in 901..=903 {
            wire.send(&udp("first", port));
        }
        assert!(is_banned(&lab, lab.v6_network("first")), "by the kernel alone");
    });
    daemon.expect_line("has been blocked");
    daemon.stop();

    let daemon = Daemon::start_configured(&lab, "[udp]\nblock = true\n", &["--expire", "24h"]);
    let mut wire = lab.wire("second");
    for port in 901..=905 {
        wire.send(&raw::tcp(lab.v6("second").into(), anycast("second"), port, raw::SYN));
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(!lab.banned().contains(&anycast("second")));
    for port in 901..=903 {
        wire.send(&udp("second", port));
    }
    lab.expect_ban(anycast("second"));
    daemon.stop();
}
