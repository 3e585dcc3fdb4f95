//! Tests datagrams to closed ports, or to ports that look closed to the kernel, that are not evidence of a scan.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, raw, soon, within};

use crate::Protocol::Udp;
use crate::{BLOCKING, banned_at_last, is_banned};

/// The ports from which this host has sent, according to the kernel. nft prints them with their times.
pub(crate) fn asked(lab: &Lab) -> BTreeSet<u16> {
    let text = lab.set_text("asked");
    let elements = text.split_once("elements = {").map_or("", |(_, elements)| elements);
    let numbers = elements.split([',', '}']).filter_map(|element| element.split_whitespace().next());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Asserts that no source is blocked and no probe was counted.
fn assert_untouched(lab: &Lab) {
    assert!(banned_at_last(lab).is_empty());
    assert!(lab.set("suspects").is_empty() && lab.set("suspects6").is_empty(), "no probe was counted");
}

/// A resolver closes its socket after its timeout, and the answer comes later. The program is stopped: the kernel
/// itself has seen the query.
#[test]
fn answers_to_closed_socket_are_not_counted() {
    let lab = Lab::new(&["server", "scanner"]);
    let daemon = Udp.start(&lab, "");
    let ports = [901, 902, 903, 904, 905];
    let v4 = (IpAddr::from(lab.v4("server")), IpAddr::from(lab.victim_v4("server")));
    let v6 = (IpAddr::from(lab.v6("server")), IpAddr::from(lab.victim_v6("server")));
    daemon.frozen(|| {
        for (server, own) in [v4, v6] {
            let answering = lab.inside("server", || UdpSocket::bind((server, 53)).unwrap());
            answering.set_read_timeout(Some(TIMEOUT)).unwrap();
            let clients = lab.inside("victim", || {
                let ask = |port| {
                    let socket = UdpSocket::bind((own, port)).unwrap();
                    socket.send_to(b"question", (server, 53)).unwrap();
                };
                ports.map(ask)
            });
            assert_eq!(clients.len(), ports.len());
            for _ in ports {
                let (_, client) = answering.recv_from(&mut [0; 64]).unwrap();
                assert!(ports.contains(&client.port()));
                answering.send_to(b"too late", client).unwrap();
            }
            assert_untouched(&lab);
            assert_eq!(asked(&lab), ports.into());
        }
        assert!(
            ports.iter().all(|port| Udp.watched(&lab).contains(port)),
            "the kernel has not been told about these ports"
        );
        // Ports without a query still count.
        let scanner = lab.v4("scanner").into();
        Udp.probe(&lab, "scanner", scanner, lab.victim_v4("scanner").into(), &[901, 906, 907, 908]);
        assert!(is_banned(&lab, scanner));
    });
    // The program agrees.
    let out = || ports.iter().all(|port| !Udp.watched(&lab).contains(port));
    assert!(soon(out));
    assert!(daemon.lines_with("without valid evidence").is_empty());
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("scanner"))]);
    daemon.stop();
}

/// A client behind NAT chooses its source port. If that counted as this host's own use, the client could remove any
/// port from the trap.
#[test]
fn forwarded_queries_open_no_port() {
    let lab = Lab::new(&["other", "container"]);
    let daemon = Udp.start(&lab, "");
    lab.sysctl("net.ipv4.ip_forward=1");
    let rules = "add table ip nat; add chain ip nat postrouting { type nat hook postrouting priority srcnat; }; \
                 add rule ip nat postrouting oif other udp sport 901 masquerade";
    lab.nft(rules);
    let server: IpAddr = lab.v4("other").into();
    daemon.frozen(|| {
        let listening = lab.inside("other", || UdpSocket::bind((server, 53)).unwrap());
        listening.set_read_timeout(Some(TIMEOUT)).unwrap();
        for port in [902, 901] {
            lab.inside("container", || {
                let socket = UdpSocket::bind((lab.v4("container"), port)).unwrap();
                socket.send_to(b"question", (server, 53)).unwrap();
            });
            let (_, from) = listening.recv_from(&mut [0; 64]).unwrap();
            let sender = if port == 901 { lab.victim_v4("other") } else { lab.v4("container") };
            assert_eq!(from, SocketAddr::from((sender, port)));
            assert!(asked(&lab).is_empty(), "this host has sent no query itself");
        }
    });
    assert_eq!(lab.provoke_ban("other"), server);
    assert!(Udp.watched(&lab).contains(&901) && Udp.watched(&lab).contains(&902), "the program learned no open ports");
    daemon.stop();
}

#[test]
fn new_service_is_not_counted() {
    let lab = Lab::new(&["other"]);
    let daemon = Udp.start(&lab, "");
    let ports = [901, 902, 903, 904, 905];
    daemon.frozen(|| {
        let bound = lab.inside("victim", || ports.map(|port| UdpSocket::bind(("::", port)).unwrap()));
        let (v4, v6) = ((lab.v4("other"), lab.victim_v4("other")), (lab.v6("other"), lab.victim_v6("other")));
        for (source, target) in [(IpAddr::from(v4.0), IpAddr::from(v4.1)), (v6.0.into(), v6.1.into())] {
            Udp.probe(&lab, "other", source, target, &ports);
        }
        for socket in &bound {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            for _ in 0..2 {
                socket.recv_from(&mut [0; 64]).unwrap();
            }
        }
        drop(bound);
        // Connected sockets receive only from their peer.
        let source: SocketAddr = (v4.0, 911).into();
        let connected = lab.inside("victim", || {
            ports.map(|port| {
                // A process that another test has just started may hold the first socket for a moment.
                let bind = || UdpSocket::bind((v4.1, port)).ok();
                let socket = within(TIMEOUT, bind).expect("the port is free");
                socket.connect(source).unwrap();
                socket
            })
        });
        lab.inside("other", || {
            let socket = UdpSocket::bind(source).unwrap();
            for port in ports {
                assert_eq!(socket.send_to(b"hello", (v4.1, port)).unwrap(), 5);
            }
        });
        for socket in connected {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.recv(&mut [0; 64]).unwrap();
        }
        assert!(
            ports.iter().all(|port| Udp.watched(&lab).contains(port)),
            "the kernel has not been told about these ports"
        );
        assert!(asked(&lab).is_empty());
        assert_untouched(&lab);
    });
    daemon.stop();
}

#[test]
fn trap_ignores_excluded_ports_and_allowed_sources() {
    let lab = Lab::new(&["other", "friend"]);
    let _bound = lab.inside("victim", || [901, 902].map(|port| UdpSocket::bind(("0.0.0.0", port)).unwrap()));
    lab.sysctl("net.ipv4.ip_local_port_range=20000 20999");
    let friend = lab.v4("friend");
    let more = format!("[allow]\nnetworks = [\"{friend}\"]\n");
    let text = BLOCKING.replace("[udp]\n", "[udp]\nadvanced_ports = \"53-999,19999-21000,32768\"\n");
    let daemon = Daemon::start_configured(&lab, &format!("{more}{text}"), &["--expire", "24h"]);
    let mut expected: BTreeSet<u16> = (53..=999).chain([19_999, 21_000, 32_768]).collect();
    // The excluded ports are DHCP, NetBIOS and RIP chatter.
    expected.retain(|port| ![67, 68, 137, 138, 520, 546, 901, 902].contains(port));
    assert!(soon(|| Udp.watched(&lab) == expected), "{:?}", Udp.watched(&lab));
    daemon.frozen(|| {
        let (source, target) = lab.ends_v4("other");
        Udp.probe(&lab, "other", source, target, &[67, 68, 137, 138, 20_000, 20_001, 20_002, 901, 902]);
        Udp.probe(&lab, "friend", friend.into(), lab.victim_v4("friend").into(), &[903, 904, 905, 906]);
        assert_untouched(&lab);
    });
    daemon.stop();
}

#[test]
fn broadcast_and_multicast_are_not_counted() {
    let lab = Lab::new(&["other"]);
    let daemon = Udp.start(&lab, "");
    let (source, target) = (lab.v4("other"), lab.victim_v4("other"));
    let [a, b, c, _] = target.octets();
    let mut wire = lab.wire("other");
    daemon.frozen(|| {
        for port in 901..=905 {
            let to = |target: Ipv4Addr| raw::udp(source.into(), target.into(), (40_404, port));
            wire.broadcast(&to(Ipv4Addr::BROADCAST));
            wire.broadcast(&to(Ipv4Addr::new(a, b, c, 255)));
            let group = Ipv4Addr::new(224, 0, 0, 251);
            wire.multicast(group, &to(group));
            wire.send(&raw::udp(lab.v6("other").into(), "ff02::1".parse().unwrap(), (40_404, port)));
        }
        assert_untouched(&lab);
        for port in 901..=903 {
            wire.send(&raw::udp(source.into(), target.into(), (40_404, port)));
        }
        assert!(is_banned(&lab, source), "as unicast the same probes count");
    });
    daemon.stop();
}

/// Only the first fragment of a datagram has ports. In later ones, other bytes are at that offset: those of a long
/// answer, or the IPv6 flow label.
#[test]
fn only_first_fragments_have_ports() {
    let lab = Lab::new(&["other"]);
    let daemon = Udp.start(&lab, "");
    let (source, target) = (lab.v4("other"), lab.victim_v4("other"));
    let mut wire = lab.wire("other");
    daemon.frozen(|| {
        for port in 901_u16..=905 {
            let payload = [&40_404_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 24, 0, 0], &[0; 16]].concat();
            wire.send(&raw::ipv4(source, target, raw::UDP, 3, false, &payload));
        }
        for port in 901_u16..=905 {
            let piece = raw::fragment(raw::UDP, 3, false, &[0; 24]);
            let mut packet = raw::ipv6(lab.v6("other"), lab.victim_v6("other"), raw::FRAGMENT, &piece);
            packet[2..4].copy_from_slice(&port.to_be_bytes());
            wire.send(&packet);
        }
        assert_untouched(&lab);
        for port in 901_u16..=903 {
            let payload = [&40_404_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 48, 0, 0], &[0; 16]].concat();
            wire.send(&raw::ipv4(source, target, raw::UDP, 0, true, &payload));
        }
        assert!(is_banned(&lab, source));
    });
    daemon.expect_line(&format!("attackalert: Host {source} has been blocked"));
    daemon.stop();
}
