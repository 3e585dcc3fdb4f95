//! Tests what counts as one source: an IPv4 address, an IPv6 /64, a link-local neighbour.

use super::scene::Gist::{Block, Ignored, Probe, Repeated};
use super::scene::{Scene, target};
use crate::engine::{IgnoreReason, Local, NoLookup, Verdict};
use crate::wire::fixtures::hex;
use crate::wire::{Checksum, LinkType, Packet, decode};

#[test]
fn addresses_of_one_64_are_one_source() {
    let mut scene = Scene::new();
    let source = |n: u16| format!("2001:db8:7:7:{n:x}::{n:x}");
    assert_eq!((scene.syn(&source(1), 21), scene.syn(&source(2), 22)), (Probe(1), Probe(2)));
    assert_eq!(scene.syn(&source(3), 23), Block(3));
    assert_eq!(scene.ban().probe.target.to_string(), "2001:db8:7:7::/64");
    for n in 4..500 {
        assert_eq!(scene.syn(&source(n), n), Repeated);
    }
    assert_eq!(scene.engine.tracked(), (0, 1));
}

#[test]
fn next_64_is_another_source() {
    let mut scene = Scene::new();
    scene.syns("2001:db8:7:7::1", [21, 22]);
    assert_eq!(scene.syn("2001:db8:7:8::1", 23), Probe(1));
}

#[test]
fn link_local_neighbours_are_separate_sources() {
    let mut scene = Scene::new();
    for n in 1..200 {
        assert_eq!(scene.syn(&format!("fe80::{n:x}"), 200 + n), Probe(1));
    }
    scene.banish("fe80::bad");
    assert_eq!(scene.ban().probe.target.to_string(), "fe80::bad/128");
    assert_eq!(scene.syn("fe80::1", 201), Probe(1));
}

#[test]
fn similar_address_texts_are_independent() {
    let mut scene = Scene::new();
    for source in ["10.77.0.1", "10.77.0.10", "10.77.0.100", "110.77.0.1"] {
        assert_eq!(scene.syns(source, [22, 23]), Probe(2), "{source}");
    }
    assert_eq!(scene.syn("10.77.0.1", 24), Block(3));
    assert_eq!(scene.syn("10.77.0.10", 23), Probe(2));
}

#[test]
fn ipv4_and_ipv6_with_same_bits_differ() {
    let mut scene = Scene::new();
    scene.banish("198.51.100.7");
    assert_eq!(scene.syn("c633:6407::", 23), Probe(1));
    assert_eq!(scene.syn("64:ff9b::c633:6407", 23), Probe(1), "NAT64");
    assert_ne!(target("64:ff9b::c633:6407"), target("c633:6407::"));
}

#[test]
fn prefixes_replace_unknown_host_addresses() {
    let mut scene = Scene::new();
    scene.host.local = Local::Prefixes(vec!["192.0.2.0/24".parse().unwrap()]);
    assert_eq!(scene.syn_to("192.0.2.77", "198.51.100.7", 22), Probe(1));
    assert_eq!(scene.syn_to("192.0.3.77", "198.51.100.7", 23), Ignored(IgnoreReason::NotOurs));
    scene.host.local = Local::Any;
    assert_eq!(scene.syn_to("192.0.3.77", "198.51.100.7", 23), Probe(1), "another host, counted separately");
}

/// A SYN from 2001:db8:9::`source` to 2001:db8::1, behind `chain`, whose first header is `next`.
fn ipv6_syn(source: u8, port: u8, next: u8, chain: &str) -> Vec<u8> {
    let length = 20 + hex(chain).len();
    hex(&format!(
        "60000000{length:04x}{next:02x}40 20010db80009000000000000000000{source:02x} 20010db8000000000000000000000001
         {chain} 9c4000{port:02x}0000000000000000 5002040000000000"
    ))
}

#[test]
fn real_bytes_behind_headers_are_counted() {
    let frames = [
        ipv6_syn(1, 21, 6, ""),
        // Hop-by-hop options with padding, then destination options.
        ipv6_syn(2, 22, 0, "3c00010400000000 0600010400000000"),
        // A fragment header at offset 0 without more fragments (RFC 6946).
        ipv6_syn(3, 23, 44, "0600000000000007"),
    ];
    let mut scene = Scene::new();
    let verdicts = frames.map(|frame| {
        // The frames are artificial and have no checksums.
        let packet = Packet { checksum: Checksum::Good.into(), ..decode(LinkType::Raw, &frame).unwrap() };
        assert!(!packet.fragmented);
        scene.engine.observe(scene.now, &packet, &scene.host, &mut NoLookup)
    });
    let [.., Verdict::Block(ban)] = verdicts else { panic!("{verdicts:?}") };
    assert_eq!((ban.probe.distinct, ban.probe.target.to_string().as_str()), (3, "2001:db8:9::/64"));
}
