//! Tests scans that classic PortSentry did not see.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, DESTINATION, FRAGMENT, SYN, TCP};
use netns_lab::scan::fetch;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT};

const STRICT: [&str; 4] = ["--expire", "24h", "--scan-trigger", "0"];
const QUICK: [&str; 6] = ["-p1-60", "--max-retries", "0", "--max-rtt-timeout", "100ms", "-T4"];

/// A burst is faster than any program: only the kernel's rules can prevent an answer. `nmap -f` waits between its
/// probes.
#[test]
fn fragmented_scan_learns_nothing() {
    let lab = Lab::new(&["attacker", "burst"]);
    let _services = Services::open(&lab, &[22, 80]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v4("attacker").into();
    let closed = [&["-sS", "-f"][..], &QUICK].concat();
    lab.nmap("attacker", target, &closed);
    lab.expect_ban(lab.v4("attacker").into());
    let service = lab.nmap("attacker", target, &["-sS", "-f", "-p22", "--max-retries", "0"]);
    assert!(service.open.is_empty(), "{service:?}");

    let answers = || lab.run("victim", "nstat", &["-asz", "TcpOutSegs"]);
    let before = answers();
    let (v4, v6) = ((lab.v4("burst"), lab.victim_v4("burst")), (lab.v6("burst"), lab.victim_v6("burst")));
    let four = (1..400).flat_map(|port| {
        let segment = raw::segment(v4.0.into(), v4.1.into(), (40_404, port), SYN);
        [(0, true, &segment[..8]), (1, false, &segment[8..])]
            .map(|(offset, more, piece)| raw::identified(port, raw::ipv4(v4.0, v4.1, TCP, offset, more, piece)))
    });
    let six = (1..400).flat_map(|port| {
        // Linux reassembles first fragments that end between two headers (RFC 7112).
        let segment = raw::segment(v6.0.into(), v6.1.into(), (40_404, port), SYN);
        let chain = raw::options(DESTINATION, &raw::options(TCP, &segment));
        [(0, true, &chain[..8]), (1, false, &chain[8..])].map(|(offset, more, piece)| {
            let fragment = raw::fragment(DESTINATION, offset, more, piece);
            raw::identified(port, raw::ipv6(v6.0, v6.1, FRAGMENT, &fragment))
        })
    });
    let mut wire = lab.wire("burst");
    for burst in [four.collect::<Vec<_>>(), six.collect()] {
        burst.iter().for_each(|packet| wire.send(packet));
    }
    lab.expect_ban(v4.0.into());
    lab.expect_ban(lab.v6_network("burst").into());
    assert_eq!(answers(), before, "neither closed nor open ports answer");
}

#[test]
fn ack_maimon_and_window_scans_are_reported() {
    let kinds = [("ack", "-sA"), ("maimon", "-sM"), ("window", "-sW")];
    let lab = Lab::new(&kinds.map(|(name, _)| name));
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for (name, kind) in kinds {
        lab.nmap(name, lab.victim_v4(name).into(), &[&[kind][..], &QUICK].concat());
        daemon.expect_line(&format!("from host: {0}/{0} to", lab.v4(name)));
    }
    assert!(lab.banned().is_empty(), "late segments of legitimate peers look the same");
    daemon.stop();
    let daemon = Daemon::start_configured(&lab, "[detect]\nack = \"ban\"\n", &["--expire", "24h"]);
    for (name, kind) in kinds {
        lab.nmap(name, lab.victim_v4(name).into(), &[&[kind][..], &QUICK].concat());
        lab.expect_ban(lab.v4(name).into());
    }
    daemon.stop();
}

#[test]
fn ipv6_extension_headers_hide_nothing() {
    type Wrap = fn(&[u8]) -> (u8, Vec<u8>);
    let wraps: [(&str, Wrap); 2] = [
        ("atomic", |segment| (FRAGMENT, raw::fragment(TCP, 0, false, segment))),
        ("options", |segment| (DESTINATION, raw::options(TCP, segment))),
    ];
    let lab = Lab::new(&wraps.map(|(name, _)| name));
    let _daemon = Daemon::start(&lab, &STRICT);
    for (name, wrap) in wraps {
        let (source, target) = (lab.v6(name).into(), lab.victim_v6(name).into());
        let (next, payload) = wrap(&raw::segment(source, target, (40_404, 23), SYN));
        lab.wire(name).send(&raw::packet(source, target, next, &payload));
        lab.expect_ban(lab.v6_network(name).into());
    }
}

#[test]
fn link_local_scanner_is_banned_alone() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &[80]);
    lab.victim_ip("addr add fe80::1/64 dev attacker nodad");
    lab.run("attacker", "ip", &["addr", "add", "fe80::77/64", "dev", "uplink", "nodad"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let scanner: Ipv6Addr = "fe80::66".parse().unwrap();
    let target: Ipv6Addr = "fe80::1".parse().unwrap();
    let mut wire = lab.wire("attacker");
    for port in [23, 79, 111] {
        wire.send(&raw::tcp(scanner.into(), target.into(), port, SYN));
    }
    lab.expect_ban(scanner.into());
    assert_eq!(lab.banned(), [IpAddr::from(scanner)], "the address itself, not fe80::/64");
    daemon.expect_line("Host fe80::66 has been blocked via nftables set inet portsentry blocked_link");

    let scope = lab.run("attacker", "cat", &["/sys/class/net/uplink/ifindex"]).trim().parse().unwrap();
    let service = SocketAddr::V6(SocketAddrV6::new(target, 80, 0, scope));
    assert!(lab.inside("attacker", || fetch(service, TIMEOUT)), "fe80::77 is another neighbour");
}

#[test]
fn addresses_of_one_64_are_one_element() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let network = lab.v6_network("attacker");
    let target = lab.victim_v6("attacker").into();
    let sources = (0..500).map(|number| Ipv6Addr::from_bits(network.to_bits() + 0x1_0000 + number));
    let packets = sources.zip((1..=100_u16).cycle()).map(|(source, port)| raw::tcp(source.into(), target, port, SYN));
    lab.wire("attacker").pace(5_000, packets);
    lab.expect_ban(network.into());
    assert_eq!(lab.banned(), [IpAddr::from(network)]);
    daemon.expect_line("has been blocked");
    assert_eq!(daemon.lines_with("has been blocked").len(), 1);
}

#[test]
fn address_prefix_of_another_is_different() {
    let lab = Lab::new(&["attacker", "other"]);
    lab.victim_ip("addr add 10.77.1.10/24 dev attacker");
    let sources = [20, 200].map(|end| lab.add_addresses("attacker", end..end + 1)[0].into());
    let _daemon = Daemon::start(&lab, &STRICT);
    // As text 10.77.1.1 is a prefix of 10.77.1.10, and 10.77.1.20 of 10.77.1.200.
    let target = "10.77.1.10".parse().unwrap();
    for (number, source) in sources.into_iter().enumerate() {
        assert_eq!(lab.banned().len(), number, "{source} has not scanned yet");
        lab.probe("attacker", source, target, &[23]);
        lab.expect_ban(source);
    }
    assert_eq!(lab.banned(), sources);
}
