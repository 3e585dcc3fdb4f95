//! Tests the engine on captures of a network: [`Local::Any`] and [`Local::Prefixes`], where the destinations are
//! many hosts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::scene::Scene;
use crate::engine::{Class, Host, Local, ProtocolSettings, Verdict};
use crate::types::{Expiry, PortSet, Protocol, Response, Timestamp, at};
use crate::wire::fixtures::{packet, tcp};
use crate::wire::{Packet, TcpFlags};

fn v4(n: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, n).into()
}

fn syn(destination: IpAddr, port: u16) -> Packet<'static> {
    let source = if destination.is_ipv4() {
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9))
    } else {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 9))
    };
    packet(source, destination, tcp(40_000, port, TcpFlags::SYN))
}

/// The last verdict on these packets, which arrive one per second.
fn judge(local: Local, packets: impl IntoIterator<Item = Packet<'static>>) -> Verdict {
    let mut scene = Scene::with(|settings| {
        let ports: PortSet = "1-1024".parse().unwrap();
        settings.tcp = ProtocolSettings { ports: ports.clone(), response: Response::Block };
        settings.udp = ProtocolSettings { ports, response: Response::Log };
        (settings.icmp, settings.window, settings.expiry) = (true, Duration::from_secs(60), Expiry::Never);
        settings.max_new_bans_per_minute = 600;
    });
    (scene.host, scene.now) = (Host::new(local), Timestamp::default());
    for packet in packets {
        scene.after(1.0).see(&packet);
    }
    scene.verdict
}

fn is_block(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Block(_))
}

#[test]
fn single_ports_of_hosts_are_not_scan() {
    let one = [21, 22, 23].map(|port| syn(v4(1), port));
    let three = [(1, 21), (2, 22), (3, 23)].map(|(host, port)| syn(v4(host), port));
    let prefixes = || Local::Prefixes(vec!["198.51.100.0/24".parse().unwrap()]);
    assert!(is_block(&judge(Local::Any, one)) && is_block(&judge(prefixes(), one)));
    assert!(!is_block(&judge(Local::Any, three)) && !is_block(&judge(prefixes(), three)));
    let all = Local::own((1..=3).map(v4));
    assert!(is_block(&judge(all, three)), "at three addresses of one host they are a scan");
}

#[test]
fn pairs_beyond_first_address_have_own_threshold() {
    let own = || Local::own((1..=254).map(v4));
    let probes = |hosts: u8, ports: &[u16]| -> Vec<Packet> {
        (1..=hosts).flat_map(|host| ports.iter().map(move |port| syn(v4(host), *port))).collect()
    };
    assert!(is_block(&judge(own(), probes(17, &[22]))), "one port at sixteen addresses beyond the first");
    assert!(!is_block(&judge(own(), probes(16, &[22]))));
    assert!(is_block(&judge(own(), probes(9, &[22, 23]))), "two ports at eight addresses beyond the first");
    assert!(!is_block(&judge(own(), probes(8, &[22, 23]))));
    assert!(!is_block(&judge(own(), probes(3, &[443]))), "a crawler");
    let guessed = [110, 143, 993];
    assert!(!is_block(&judge(own(), probes(16, &guessed))), "a mail program tries each address of a name");
    let more = [probes(16, &guessed), probes(17, &[110]).split_off(16)].concat();
    assert!(is_block(&judge(own(), more)), "related ports of sixteen addresses beyond the first");
    let again = (0..100).map(|_| syn(v4(1), 443));
    assert!(!is_block(&judge(own(), again)), "one pair repeatedly");
    let few = (0..100).map(|n| syn(v4(n % 8 + 1), 443));
    assert!(!is_block(&judge(own(), few)), "the same few pairs repeatedly");
}

#[test]
fn each_host_is_counted_separately() {
    let mixed = [(1, 21), (2, 21), (3, 21), (1, 22), (2, 22), (1, 21), (1, 23)].map(|(host, port)| syn(v4(host), port));
    let Verdict::Block(ban) = judge(Local::Any, mixed) else { panic!("three ports of host 1") };
    assert_eq!((ban.hosts, ban.probe.observation.destination), (1, v4(1)));
    assert_eq!(ban.ports.iter().map(|(_, port, _)| port).collect::<Vec<_>>(), [21, 22, 23]);
}

#[test]
fn one_port_of_sixteen_hosts_is_scan() {
    let hosts = |count: u8| (1..=count).map(|host| syn(v4(host), 23)).collect::<Vec<_>>();
    assert!(!is_block(&judge(Local::Any, hosts(15))));
    let Verdict::Block(ban) = judge(Local::Any, hosts(16)) else { panic!("sixteen hosts") };
    assert_eq!((ban.hosts, ban.first), (16, at(1)));
    assert_eq!(ban.ports.iter().collect::<Vec<_>>(), [(Protocol::Tcp, 23, Class::Syn)]);
}

#[test]
fn repeated_dead_server_is_one_host() {
    let again = (0..200).map(|n| syn(v4(1 + n % 4), 443));
    assert!(!is_block(&judge(Local::Any, again)));
}

#[test]
fn ipv6_hosts_of_network_differ() {
    let host = |n: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, n));
    assert!(!is_block(&judge(Local::Any, (1..=3).map(|n| syn(host(n), 20 + n)))));
    assert!(is_block(&judge(Local::Any, (1..=3).map(|n| syn(host(1), 20 + n)))));
    assert!(is_block(&judge(Local::Any, (1..=16).map(|n| syn(host(n), 23)))));
}

#[test]
fn banned_source_is_recognised_at_every_host() {
    let mut scan = [21, 22, 23].map(|port| syn(v4(1), port)).to_vec();
    scan.push(syn(v4(2), 80));
    assert!(matches!(judge(Local::Any, scan), Verdict::Repeated(_)));
}
