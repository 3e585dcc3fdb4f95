//! Records real input for the corpus: replies and notifications of this kernel in a network namespace, and a ledger.
//! Run it by hand:
//!
//!     cargo test --lib -- --ignored record

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::corpus::directory;
use crate::engine::ActiveBan;
use crate::netlink::nft::{self, Batch, RulesetSpec};
use crate::netlink::socket;
use crate::types::{BanTarget, Expiry, Rate};

/// Writes datagrams into the corpus of a target.
fn keep(target: &str, name: &str, datagrams: impl IntoIterator<Item = Vec<u8>>) {
    for (number, bytes) in datagrams.into_iter().filter(|bytes| !bytes.is_empty()).enumerate() {
        fs::write(directory(target).join(format!("{name}_{number}")), bytes).unwrap();
    }
}

/// A socket with a short timeout in these multicast groups.
fn open(protocol: isize, groups: &[u32]) -> Socket {
    let mut socket = Socket::new(protocol).unwrap();
    socket.bind_auto().unwrap();
    groups.iter().for_each(|group| socket.add_membership(*group).unwrap());
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(300))).unwrap();
    socket
}

fn arrived(socket: &Socket) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| {
        let mut datagram = Vec::with_capacity(1 << 16);
        socket.recv(&mut datagram, 0).ok().map(|_| datagram)
    })
    .collect()
}

fn answers(protocol: isize, request: &[u8]) -> Vec<Vec<u8>> {
    let socket = open(protocol, &[]);
    socket.send_to(request, &SocketAddr::new(0, 0), 0).unwrap();
    arrived(&socket)
}

fn ip(words: &str) {
    assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "ip {words}");
}

fn target(text: &str) -> BanTarget {
    text.parse().unwrap()
}

fn nf_tables() {
    let monitor = open(NETLINK_NETFILTER, &[7]);
    let mut socket = socket::Socket::open().unwrap();
    let trap = nft::Trap {
        tcp: true,
        udp: false,
        forgiven: 2,
        window: Duration::from_secs(60),
        expiry: Expiry::After(Duration::from_secs(3600)),
        ceiling: Rate::per_minute(100),
        nat64: [None; 8],
        named_interfaces: false,
        hold: Some(Duration::from_millis(900)),
    };
    let spec = RulesetSpec { size: 65_536, prefix_sets: true, trap: Some(trap), ..RulesetSpec::default() };
    nft::install(&mut socket, &spec).unwrap();
    let mut batch = Batch::new();
    let hour = Expiry::After(Duration::from_secs(3600));
    nft::put_bans(
        &mut batch,
        nft::KernelFeatures::default(),
        &[ActiveBan::new(target("192.0.2.7"), hour), ActiveBan::new(target("198.51.100.1"), Expiry::Never)],
    );
    nft::put_bans(&mut batch, nft::KernelFeatures::default(), &[ActiveBan::new(target("2001:db8:1:2::/64"), hour)]);
    nft::put_prefix_ban(&mut batch, &ActiveBan::new(target("203.0.113.0/24"), hour));
    nft::put_allowed(&mut batch, nft::Set::Allowed, &["192.0.2.128/25".parse().unwrap()]);
    nft::put_trapped(&mut batch, nft::TrapContents { tcp: Some(&[(1, 21), (23, 79)]), ..nft::TrapContents::default() });
    socket.transact(&mut batch).unwrap();
    batch.clear();
    nft::put_lift(&mut batch, nft::KernelFeatures::default(), target("192.0.2.7"));
    nft::put_flush(&mut batch, nft::Set::Probed);
    socket.transact(&mut batch).unwrap();
    let mut whole = Vec::new();
    for (number, request) in nft::fuzzing::requests().into_iter().enumerate() {
        let answers = answers(NETLINK_NETFILTER, &request);
        // The table, its sets, its chains and its rules form one input.
        if number < 4 {
            whole.extend(answers.concat());
        } else {
            keep("nft", &format!("elements_{number}"), answers);
        }
    }
    keep("nft", "ruleset", [whole]);
    assert!(Command::new("nft").args(["delete", "table", "inet", "portsentry"]).status().unwrap().success());
    // The messages of a transaction form one input.
    keep("nft", "notifications", [arrived(&monitor).concat()]);
    keep("nft", "refusal", answers(NETLINK_NETFILTER, &nft::fuzzing::requests()[1]));
    keep("nft", "no_table", answers(NETLINK_NETFILTER, &nft::fuzzing::requests()[0]));
}

fn rtnetlink() {
    // RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, _NEXTHOP
    let monitor = open(NETLINK_ROUTE, &[1, 5, 7, 9, 11, 32]);
    ip("link set lo up");
    ip("link add veth0 type veth peer name veth1");
    ip("link set veth0 up");
    ip("link set veth1 up");
    ip("address add 192.0.2.2/24 dev veth0");
    ip("address add 198.51.100.1 peer 198.51.100.2 dev veth0");
    ip("address add 2001:db8::2/64 dev veth0 nodad");
    ip("route add default via 192.0.2.1");
    ip("route add 203.0.113.0/24 nexthop via 192.0.2.3 nexthop via 192.0.2.4");
    ip("route add default via 2001:db8::1");
    ip("route add blackhole 198.51.100.7 proto 112");
    ip("route add unreachable 2001:db8:1:2::/64 proto 112 metric 1");
    ip("route del blackhole 198.51.100.7 proto 112");
    ip("route add prohibit 198.51.100.8 proto 112");
    ip("nexthop add id 7 via 192.0.2.9 dev veth0");
    let routes = |family| {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        RouteNetlinkMessage::GetRoute(request)
    };
    for (name, request) in [
        ("links", RouteNetlinkMessage::GetLink(LinkMessage::default())),
        ("addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default())),
        ("routes", routes(AddressFamily::Inet)),
        ("routes6", routes(AddressFamily::Inet6)),
    ] {
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        keep("rtnetlink", name, answers(NETLINK_ROUTE, &bytes));
    }
    let mut next_hops = [0; 24];
    next_hops[..8].copy_from_slice(&[24, 0, 0, 0, 106, 0, 1, 3]);
    keep("rtnetlink", "next_hops", answers(NETLINK_ROUTE, &next_hops));
    next_hops[4] = 250;
    keep("rtnetlink", "refusal", answers(NETLINK_ROUTE, &next_hops));
    let notifications = arrived(&monitor).into_iter().filter(|datagram| datagram[4] > 19 || datagram.len() < 200);
    keep("rtnetlink", "told", notifications);
}

fn sock_diag() {
    let listeners = ["127.0.0.1:7001", "[::1]:7002", "0.0.0.0:7003"].map(|at| TcpListener::bind(at).unwrap());
    for (name, family, id) in [("tcp", AF_INET, SocketId::new_v4()), ("tcp6", AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: id,
        };
        let mut request = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        request.header.sequence_number = 1;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        keep("sock_diag", name, answers(NETLINK_SOCK_DIAG, &bytes));
        let mut one = bytes.clone();
        one[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        keep("sock_diag", &format!("{name}_refusal"), answers(NETLINK_SOCK_DIAG, &one));
    }
    drop(listeners);
}

#[test]
#[ignore = "rewrites the corpus"]
fn record_kernel_messages() {
    netns_lab::Namespace::new().inside(|| {
        rtnetlink();
        nf_tables();
        sock_diag();
    });
}

#[test]
#[ignore = "rewrites the corpus"]
fn record_a_ledger() {
    use crate::ledger::{BanAuthor, BanRecord, Ending, Ledger};
    let directory = tempfile::tempdir().unwrap();
    let (mut ledger, _) = Ledger::open(&directory.path().join("state")).unwrap();
    let ban = |text: &str, note: Option<&str>| BanRecord {
        target: target(text),
        source: target(text).element(),
        since: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        until: None,
        class: None,
        grade: None,
        ports: vec![(crate::types::Protocol::Tcp, 23)],
        probes: 3,
        interface: Some("eth0".to_owned()),
        guest_port: None,
        backends: "nft".parse().unwrap(),
        author: BanAuthor::Detector,
        capped: false,
        note: note.map(str::to_owned),
    };
    ledger
        .record(&[ban("192.0.2.7", None), ban("2001:db8:1:2::/64", Some("a note")), ban("203.0.113.0/24", None)])
        .unwrap();
    ledger.ended(target("192.0.2.7"), Ending::Expired, UNIX_EPOCH + Duration::from_secs(1_800_000_100)).unwrap();
    let path = directory.path().join("state").join(crate::ledger::DATABASE);
    drop(ledger);
    keep("ledger", "database", [fs::read(path).unwrap()]);
}
