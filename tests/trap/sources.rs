//! Tests sources that the kernel leaves to the program, and those that never count.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use netns_lab::{Lab, eventually, raw, soon};

use crate::Protocol::Tcp;
use crate::{banned_at_last, is_banned};

const PORTS: [u16; 5] = [901, 902, 903, 904, 905];

#[test]
fn martian_sources_are_not_counted() {
    let lab = Lab::new(&["other"]);
    lab.victim_ip("route add default via 10.77.1.2");
    lab.victim_ip("route add default via fd77:0:0:1::2");
    let daemon = Tcp.start(&lab, "");
    let mut wire = lab.wire("other");
    let mut touch = |source: &str| {
        let source: IpAddr = source.parse().unwrap();
        let target =
            if source.is_ipv4() { lab.victim_v4("other").into() } else { IpAddr::from(lab.victim_v6("other")) };
        PORTS.iter().for_each(|port| wire.send(&raw::tcp(source, target, *port, raw::SYN)));
        source
    };
    daemon.frozen(|| {
        let martians = [
            "0.1.2.3",
            "127.0.0.9",
            "224.0.0.9",
            "240.0.0.9",
            "255.255.255.254",
            "::2",
            "::10.0.0.1",
            "::ffff:10.0.0.1",
        ];
        for source in martians {
            touch(source);
        }
        assert!(banned_at_last(&lab).is_empty());
        for set in ["suspects", "suspects6", "touched", "touched6"] {
            assert!(!lab.set_text(set).contains("elements"), "{}", lab.set_text(set));
        }
        // The last one is the first address of the link's network, which nft calls anycast.
        for source in ["198.51.100.7", "2001:db8:5::", "fd77:0:0:1::"] {
            assert!(is_banned(&lab, touch(source)), "{source}: with a valid source the same probes count");
        }
    });
    daemon.stop();
}

/// The kernel drops packets to loopback addresses from outside, but only after the trap. If they counted, a forged
/// frame could ban any source until the program lifts the ban.
#[test]
fn loopback_destinations_are_not_counted() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "");
    let mut wire = lab.wire("other");
    let ends = lab.ends("other");
    daemon.frozen(|| {
        for (source, loopback) in [(ends[0].0, "127.0.0.1"), (ends[0].0, "127.255.255.254"), (ends[1].0, "::1")] {
            PORTS.iter().for_each(|port| wire.send(&raw::tcp(source, loopback.parse().unwrap(), *port, raw::SYN)));
        }
        assert!(banned_at_last(&lab).is_empty());
        for set in ["suspects", "suspects6", "touched", "touched6", "held", "held6"] {
            assert!(!lab.set_text(set).contains("elements"), "{}", lab.set_text(set));
        }
        for (source, target) in ends {
            PORTS.iter().for_each(|port| wire.send(&raw::tcp(source, target, *port, raw::SYN)));
        }
        for banned in [ends[0].0, lab.v6_network("other").into()] {
            assert!(is_banned(&lab, banned), "{banned}: packets to an address of this host count");
        }
    });
    daemon.stop();
}

/// With strict reverse-path filtering (RFC 3704) the kernel drops such packets and the program ignores them. Without it
/// only the program judges them, because the source may be reachable by another route.
#[test]
fn source_of_another_interface_is_not_counted() {
    for strict in [true, false] {
        let lab = Lab::new(&["outer", "inner"]);
        let value = u8::from(strict);
        lab.sysctl(&format!("net.ipv4.conf.all.rp_filter={value}"));
        lab.sysctl(&format!("net.ipv4.conf.outer.rp_filter={value}"));
        let daemon = Tcp.start(&lab, "");
        let source = IpAddr::from(lab.v4("inner"));
        let mut wire = lab.wire("outer");
        daemon.frozen(|| {
            for port in PORTS {
                wire.send(&raw::tcp(source, lab.victim_v4("outer").into(), port, raw::SYN));
            }
            assert!(banned_at_last(&lab).is_empty());
            assert!(lab.set("suspects").is_empty(), "not even counted");
            lab.probe_v4("outer", &PORTS);
            assert!(is_banned(&lab, lab.v4("outer")), "a route leads back to this one");
        });
        if strict {
            lab.provoke_ban("inner");
            let blocked = format!("attackalert: Host {source} has been blocked");
            daemon.expect_line(&blocked);
            let lines = daemon.lines_with(&blocked);
            assert_eq!(lines.len(), 1, "for its own probes alone: {lines:?}");
        } else {
            assert!(is_banned(&lab, source), "with asymmetric routes the program judges it");
        }
        daemon.stop();
    }
}

/// The kernel's own rate limit has room, but the sensor's ceiling of bans in force is reached.
#[test]
fn kernel_bans_no_source_above_ceilings() {
    let lab = Lab::new(&["banned", "other"]);
    let daemon = Tcp.start(&lab, "[block]\nmax_new_bans_per_minute = 600\nmax_forgeable_bans = 10\n");
    let probe = |host, source: IpAddr, ports: &[u16]| lab.probe(host, source, lab.victim_v4(host).into(), ports);
    eventually("there is room for ten more bans", || lab.set_text("ceiling_reached").contains("type inet_proto"));
    assert_eq!(lab.set("ceiling_reached"), []);
    let banned = lab.v4("banned").into();
    probe("banned", banned, &[901, 902, 903]);
    daemon.expect_line("has been blocked via");
    eventually("there is room for only nine more bans", || lab.set_text("ceiling_reached").contains("tcp, udp"));
    let other = IpAddr::from(lab.v4("other"));
    // While the program is stopped, the kernel decides alone.
    daemon.frozen(|| {
        probe("other", other, &[901, 902, 903, 904]);
        assert_eq!(lab.banned(), [banned], "the kernel bans no further source by itself");
    });
    eventually("the sensor bans", || lab.banned().contains(&other));
    for source in [banned, other] {
        lab.operate(&["unblock", &source.to_string()]);
    }
    eventually("there is room for ten more bans again", || !lab.set_text("ceiling_reached").contains("tcp"));
    daemon.stop();
}

/// The kernel blocks twenty sources at once, and the sensor's ceiling has room for nineteen.
#[test]
fn trap_ban_above_ceilings_is_lifted() {
    let lab = Lab::new(&["other"]);
    let daemon = Tcp.start(&lab, "[block]\nmax_new_bans_per_minute = 600\nmax_forgeable_bans = 20\n");
    let v4 = lab.add_addresses("other", 10..20).into_iter().map(IpAddr::from);
    let v6 = (1..11).map(|number| Ipv6Addr::new(0xfd77, 0, 1, number, 0, 0, 0, 9).into());
    let sources: Vec<IpAddr> = v4.chain(v6).collect();
    daemon.frozen(|| {
        let mut wire = lab.wire("other");
        for source in &sources {
            let target = if source.is_ipv4() { lab.victim_v4("other").into() } else { lab.victim_v6("other").into() };
            [901, 902, 903].iter().for_each(|port| wire.send(&raw::tcp(*source, target, *port, raw::SYN)));
            // The kernel's rate limit permits a burst of ten bans, and ten a second.
            std::thread::sleep(Duration::from_millis(100));
        }
        eventually("the kernel has banned all", || lab.banned().len() == 20);
    });
    let lifted = daemon.expect_line("although a ceiling is reached: unblocked");
    let banned = lab.banned();
    assert_eq!(banned.len(), 19, "{banned:?}");
    assert!(lifted.contains("fd77:0:1:a::/64"), "the last one: {lifted}");
    assert!(soon(|| lab.set("caught").is_empty()));
    daemon.stop();
}
