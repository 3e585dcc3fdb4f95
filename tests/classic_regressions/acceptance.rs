//! Tests that packets which the kernel drops before the socket look-up are not evidence, and that others are.

use std::net::{IpAddr, Ipv4Addr};

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, DESTINATION, FIN, TCP};
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, within};

/// No flags: a single such packet leads to a ban.
const NULL: u16 = 0;

/// Sends the packets and then a packet that surely leads to a ban: its source must be the only one that is banned.
fn assert_blocks_nothing(lab: &Lab, host: &str, packets: impl IntoIterator<Item = Vec<u8>>) {
    let mut wire = lab.wire(host);
    packets.into_iter().for_each(|packet| wire.send(&packet));
    let provoked = lab.provoke_ban(host);
    assert_eq!(lab.banned(), [provoked]);
}

#[test]
fn damaged_segments_block_nothing() {
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v4("attacker").into();
    let source = |last| IpAddr::from(Ipv4Addr::new(10, 77, 1, last));
    let damaged = (0..4_u8).map(|number| {
        let mut packet = raw::tcp(source(100 + number), target, 23, [NULL, FIN, 0x29, 0x3f][usize::from(number)]);
        // The window field; in the last packet the identification, which only the IP header's checksum covers.
        packet[if number == 3 { 4 } else { 34 }] ^= 0x10;
        packet
    });
    assert_blocks_nothing(&lab, "attacker", damaged);
    // As with checksum offload in network cards and veth: the sum of the pseudo-header only.
    let mut offloaded = raw::tcp(source(104), target, 23, NULL);
    let pseudo = u16::from_be_bytes([10, 77]) * 2 + u16::from_be_bytes([1, 104]) + u16::from_be_bytes([1, 1]) + 6 + 24;
    offloaded[36..38].copy_from_slice(&pseudo.to_be_bytes());
    lab.wire("attacker").send(&offloaded);
    lab.expect_ban(source(104));
}

/// If a guest marks its segments as not yet summed (`CHECKSUM_PARTIAL`), this host accepts them with any checksum.
#[test]
fn guest_with_garbage_checksums_is_banned() {
    let lab = Lab::new(&["guest"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start_configured(&lab, "[trap]\ntcp = false\n", &["--expire", "24h"]);
    // On a veth, the segments of local sockets have this mark, and the kernel does not verify their checksums.
    let garbage =
        "table ip garbage { chain sums { type filter hook postrouting priority 0; tcp checksum set 0xdead; }; }";
    lab.run("guest", "nft", &[garbage]);
    let target = lab.victim_v4("guest").into();
    assert_eq!(lab.served("guest", target, &[80], 1), 1, "the kernel takes these segments");
    assert!(lab.banned().is_empty());
    lab.probe_until_banned("guest", target);
    daemon.stop();
}

#[test]
fn martian_packets_block_nothing() {
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (v4, v6) = (lab.victim_v4("attacker").into(), lab.victim_v6("attacker").into());
    let sources = [
        ("240.0.0.9", v4),
        ("0.1.2.3", v4),
        ("224.0.0.9", v4),
        ("255.255.255.255", v4),
        ("127.0.0.9", v4),
        ("::10.0.0.1", v6),
        ("::ffff:10.0.0.1", v6),
        ("::", v6),
        ("::1", v6),
        ("ff02::9", v6),
        ("10.77.1.99", "127.0.0.1".parse().unwrap()),
    ];
    let packets = sources.map(|(source, target)| raw::tcp(source.parse().unwrap(), target, 23, NULL));
    assert_blocks_nothing(&lab, "attacker", packets);
}

#[test]
fn strict_reverse_path_protects_inner_sources() {
    let lab = Lab::new(&["outer", "inner"]);
    lab.sysctl("net.ipv4.conf.all.rp_filter=1");
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let inner = IpAddr::from(lab.v4("inner"));
    let forged = raw::tcp(inner, lab.victim_v4("outer").into(), 23, NULL);
    assert_blocks_nothing(&lab, "outer", [forged.clone()]);
    lab.wire("inner").send(&raw::tcp(inner, lab.victim_v4("inner").into(), 23, NULL));
    lab.expect_ban(inner);

    // The sysctl is followed: without the filter the kernel accepts the packet, and its source is judged.
    lab.sysctl("net.ipv4.conf.all.rp_filter=0");
    lab.sysctl("net.ipv4.conf.outer.rp_filter=0");
    let other = IpAddr::from(Ipv4Addr::new(10, 77, 2, 99));
    let mut wire = lab.wire("outer");
    let judged = within(TIMEOUT, || {
        wire.send(&raw::tcp(other, lab.victim_v4("outer").into(), 23, NULL));
        lab.banned().contains(&other).then_some(())
    });
    assert!(judged.is_some(), "{:?}", lab.banned());
}

/// libpcap itself filters the first frame after it has set a filter.
#[test]
fn first_frame_may_have_priority_tag() {
    let lab = Lab::new(&["attacker"]);
    // No message of neighbour discovery may come first.
    for host in ["victim", "attacker"] {
        lab.run(host, "sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    }
    let source = Ipv4Addr::new(10, 77, 1, 98).into();
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.wire("attacker").tagged(0, &raw::tcp(source, lab.victim_v4("attacker").into(), 23, NULL));
    lab.expect_ban(source);
}

#[test]
fn only_scan_in_own_vlan_is_blocked() {
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (first, second) = (Ipv4Addr::new(10, 77, 1, 98), Ipv4Addr::new(10, 77, 1, 99));
    let target = lab.victim_v4("attacker").into();
    let mut wire = lab.wire("attacker");
    wire.tagged(5, &raw::tcp(first.into(), target, 23, NULL));
    assert_blocks_nothing(&lab, "attacker", None);
    // Tag 0 is only a priority: the kernel accepts the packet as if it were untagged.
    wire.tagged(0, &raw::tcp(second.into(), target, 23, NULL));
    lab.expect_ban(second.into());
    let add = ["link", "add", "link", "attacker", "name", "own5", "type", "vlan", "id", "5"];
    if !lab.command("victim", "ip").args(add).status().expect("ip runs").success() {
        eprintln!("skipped: this kernel has no VLAN devices");
        return;
    }
    lab.victim_ip("link set own5 up");
    wire.tagged(5, &raw::tcp(first.into(), target, 23, NULL));
    lab.expect_ban(first.into());
}

#[test]
fn addresses_by_local_route_are_monitored() {
    let lab = Lab::new(&["attacker"]);
    lab.victim_ip("route add local 10.88.9.0/24 dev lo");
    lab.victim_ip("route add local fd88:9::/64 dev lo");
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let mut wire = lab.wire("attacker");
    let [v4, v6, later] = ["198.51.100.1", "2001:db8:5::1", "198.51.100.2"].map(|text| text.parse().unwrap());
    wire.send(&raw::tcp(v4, "10.88.9.7".parse().unwrap(), 23, NULL));
    wire.send(&raw::tcp(v6, "fd88:9::7".parse().unwrap(), 23, NULL));
    lab.expect_ban(v4);
    lab.expect_ban("2001:db8:5::".parse().unwrap());
    lab.victim_ip("route add local 10.88.10.0/24 dev lo");
    let judged = within(TIMEOUT, || {
        wire.send(&raw::tcp(later, "10.88.10.7".parse().unwrap(), 23, NULL));
        lab.banned().contains(&later).then_some(())
    });
    assert!(judged.is_some(), "a route that is added at run time");
}

/// Linux removes any number of tags with number 0, and answers.
#[test]
fn stacked_zero_tags_hide_no_scan() {
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start_configured(&lab, "[trap]\ntcp = false\n", &["--expire", "24h"]);
    let (v4, v6) = (lab.victim_v4("attacker").into(), lab.victim_v6("attacker").into());
    // libpcap itself filters the first frame after a new filter, and does not see its tag.
    lab.provoke_ban("attacker");
    let mut wire = lab.wire("attacker");
    for tags in [2, 3, 5, 6, 12, 60] {
        let stack = vec![0; tags];
        let sources = [format!("198.51.100.{tags}"), format!("2001:db8:{tags}::1")].map(|text| text.parse().unwrap());
        for (source, target) in sources.into_iter().zip([v4, v6]) {
            // More tags than a network has are evidence themselves.
            let ports = if tags > 5 { 23..=23 } else { 23..=25 };
            ports.for_each(|port| wire.stacked(&stack, &raw::tcp(source, target, port, raw::SYN)));
            lab.expect_ban(if source.is_ipv4() { source } else { format!("2001:db8:{tags}::").parse().unwrap() });
        }
    }
    let before = lab.banned().len();
    let foreign = IpAddr::from([198, 51, 100, 99]);
    wire.stacked(&[0, 5], &raw::tcp(foreign, v4, 23, NULL));
    wire.stacked(&[0, 0, 0, 5], &raw::tcp(foreign, v4, 23, NULL));
    // Another frame with stacked tags shows that these have been judged by then.
    wire.stacked(&[0; 9], &raw::tcp(IpAddr::from([198, 51, 100, 98]), v4, 23, NULL));
    lab.expect_ban(IpAddr::from([198, 51, 100, 98]));
    assert_eq!(lab.banned().len(), before + 1, "VLAN 5 is not this host's");
}

#[test]
fn flow_label_like_tag_hides_no_scan() {
    let lab = Lab::new(&["guest"]);
    // As with segmentation offload, which gives a guest packets of this length on any link.
    lab.victim_ip("link set guest mtu 65535");
    lab.run("guest", "ip", &["link", "set", "uplink", "mtu", "65535"]);
    let _daemon = Daemon::start_configured(&lab, "[trap]\ntcp = false\n", &["--expire", "24h"]);
    let (source, target): (IpAddr, IpAddr) = ("2001:db8:7::1".parse().unwrap(), lab.victim_v6("guest").into());
    let mut wire = lab.wire("guest");
    for port in 23..=25 {
        let segment = raw::segment_with(source, target, (40_404, port), raw::SYN, &[0; 0x6000]);
        let mut packet = raw::packet(source, target, raw::TCP, &segment);
        packet[2..4].copy_from_slice(&[0x86, 0xdd]);
        wire.send(&packet);
    }
    lab.expect_ban("2001:db8:7::".parse().unwrap());
}

#[test]
fn frames_on_foreign_bridge_ban_nothing() {
    let lab = Lab::new(&["guest", "client"]);
    lab.victim_ip("link add tenants type bridge");
    lab.victim_ip("link set tenants up");
    lab.victim_ip("addr flush dev guest");
    lab.victim_ip("link set guest master tenants");
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let source = Ipv4Addr::new(198, 51, 100, 77);
    lab.wire("guest").frame([2, 0, 0, 0, 1, 2], &raw::tcp(source.into(), lab.victim_v4("client").into(), 23, NULL));
    let provoked = lab.provoke_ban("client");
    assert_eq!(lab.banned(), [provoked]);
}

#[test]
fn scan_behind_long_ipv6_options_is_seen() {
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v6("attacker").into();
    let mut wire = lab.wire("attacker");
    // One destination options header of this length, with an option that receivers skip.
    for (network, bytes) in [(0_u16, 88_usize), (1, 248), (2, 288), (3, 296), (4, 1_200)] {
        let source = format!("2001:db8:{network:x}::1").parse().unwrap();
        let mut payload = vec![0; bytes];
        let units = u8::try_from(bytes / 8 - 1).unwrap();
        let length = u8::try_from((bytes - 4).min(250)).unwrap();
        payload[..4].copy_from_slice(&[TCP, units, 0x1e, length]);
        payload.extend(raw::segment(source, target, (40_404, 23), NULL));
        wire.send(&raw::packet(source, target, DESTINATION, &payload));
        lab.expect_ban(format!("2001:db8:{network:x}::").parse().unwrap());
    }
    // Many short headers. Linux follows any number of them.
    for (network, headers) in [(5_u16, 17_usize), (6, 36), (7, 37), (8, 100)] {
        let source = format!("2001:db8:{network:x}::1").parse().unwrap();
        let mut payload = [DESTINATION, 0, 0x1e, 4, 0, 0, 0, 0].repeat(headers);
        payload[(headers - 1) * 8] = TCP;
        payload.extend(raw::segment(source, target, (40_404, 23), NULL));
        wire.send(&raw::packet(source, target, DESTINATION, &payload));
        lab.expect_ban(format!("2001:db8:{network:x}::").parse().unwrap());
    }
}

/// Linux accepts an IPv6 packet of length zero that begins with a hop-by-hop header, as far as the frame extends.
#[test]
fn scan_with_ipv6_length_zero_is_seen() {
    const HOP_BY_HOP: u8 = 0;
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v6("attacker").into();
    let mut wire = lab.wire("attacker");
    // A destination options header of this length, behind a hop-by-hop header. One probe with hidden flags suffices.
    for (network, bytes, ports) in
        [(1_u16, 8_usize, 23..26_u16), (2, 248, 23..26), (3, 600, 23..24), (4, 1_200, 23..24)]
    {
        let source = format!("2001:db8:{network:x}::1").parse().unwrap();
        let units = u8::try_from(bytes / 8 - 1).unwrap();
        let length = u8::try_from((bytes - 4).min(250)).unwrap();
        for port in ports {
            let mut payload = vec![0; 8 + bytes];
            payload[..4].copy_from_slice(&[DESTINATION, 0, 0x1e, 4]);
            payload[8..12].copy_from_slice(&[TCP, units, 0x1e, length]);
            payload.extend(raw::segment(source, target, (40_404, port), NULL));
            let mut packet = raw::packet(source, target, HOP_BY_HOP, &payload);
            packet[4..6].fill(0);
            wire.send(&packet);
        }
        lab.expect_ban(format!("2001:db8:{network:x}::").parse().unwrap());
    }
}
