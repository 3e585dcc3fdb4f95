//! Tests the look-up of listeners and of the owners of packets with real sockets.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use netns_lab::eventually;
use portsentry::netlink::sock_diag::{Bound, Listener, Owner, SockDiag};
use portsentry::types::Protocol;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, netdevice, socket_with, sockopt};
use tokio::net::TcpSocket;

use super::network;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn one(text: &str) -> Bound {
    Bound::One(text.parse::<IpAddr>().unwrap())
}

/// A listening TCP or a bound UDP socket.
fn open(protocol: Protocol, address: &str, v6_only: bool) -> OwnedFd {
    let address = at(address);
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let fd = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, v6_only).unwrap();
    }
    bind(&fd, &address).unwrap();
    if protocol == Protocol::Tcp {
        listen(&fd, 8).unwrap();
    }
    fd
}

fn index(name: &str) -> u32 {
    netdevice::name_to_index(UdpSocket::bind("127.0.0.1:0").unwrap(), name).unwrap()
}

/// Listening address, IPV6_V6ONLY, the address in a dump, and whether the socket receives packets to 192.0.2.1, to
/// 2001:db8::1 and to 127.0.0.1.
const KINDS: [(&str, bool, &str, [bool; 3]); 7] = [
    ("0.0.0.0", false, "v4", [true, false, true]),
    ("192.0.2.1", false, "192.0.2.1", [true, false, false]),
    ("127.0.0.1", false, "127.0.0.1", [false, false, true]),
    ("[::]", false, "both", [true, true, true]),
    ("[::]", true, "v6", [false, true, false]),
    ("[2001:db8::1]", false, "2001:db8::1", [false, true, false]),
    ("[::ffff:192.0.2.1]", false, "192.0.2.1", [true, false, false]),
];

fn bound(text: &str) -> Bound {
    match text {
        "v4" => Bound::AnyV4,
        "v6" => Bound::AnyV6,
        "both" => Bound::Any,
        address => one(address),
    }
}

#[test]
fn listeners_are_found_until_closed() {
    network().inside(|| {
        let mut diag = SockDiag::open().unwrap();
        assert_eq!(diag.listeners().unwrap(), []);
        let mut expected = Vec::new();
        let mut sockets = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (port, (address, v6_only, reads, _)) in (1000..).zip(KINDS) {
                sockets.push(open(protocol, &format!("{address}:{port}"), v6_only));
                expected.push(Listener { protocol, port, bound: bound(reads), interface: 0, user: 0 });
            }
        }
        expected.sort_unstable();
        assert_eq!(diag.listeners().unwrap(), expected);
        drop(sockets);
        // A child process of another test holds copies of the sockets until its exec.
        eventually("they are closed", || diag.listeners().unwrap().is_empty());
    });
}

#[test]
fn bound_or_connected_socket_is_not_listener() {
    network().inside(|| {
        let mut diag = SockDiag::open().unwrap();
        let bound_only = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&bound_only, &at("192.0.2.1:1000")).unwrap();
        let resolver_query = UdpSocket::bind("192.0.2.1:1001").unwrap();
        resolver_query.connect("192.0.2.53:53").unwrap();
        assert_eq!(diag.listeners().unwrap(), []);
        let mut owner = |protocol, source, to| diag.owner(protocol, at(source), at(to), 0).unwrap();
        assert_eq!(owner(Protocol::Tcp, "192.0.2.7:9", "192.0.2.1:1000"), Owner::None);
        assert_eq!(owner(Protocol::Udp, "192.0.2.53:53", "192.0.2.1:1001"), Owner::Flow, "the answer to the query");
        assert_eq!(owner(Protocol::Udp, "192.0.2.53:54", "192.0.2.1:1001"), Owner::None, "another port");
        assert_eq!(owner(Protocol::Udp, "192.0.2.7:53", "192.0.2.1:1001"), Owner::None, "another host");
    });
}

#[test]
fn lookup_finds_listener_of_packet() {
    network().inside(|| {
        let mut diag = SockDiag::open().unwrap();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            // One port per socket: a child process of another test holds copies until its exec.
            for (port, (address, v6_only, _, owns)) in (1000..).zip(KINDS) {
                let listener = open(protocol, &format!("{address}:{port}"), v6_only);
                let packets = [
                    ("192.0.2.7:9", "192.0.2.1"),
                    ("[2001:db8::7]:9", "[2001:db8::1]"),
                    ("127.0.0.1:9", "127.0.0.1"),
                    ("[::ffff:192.0.2.7]:9", "[::ffff:192.0.2.1]"),
                ];
                for ((source, to), owned) in packets.into_iter().zip([owns[0], owns[1], owns[2], owns[0]]) {
                    let mut owner =
                        |port| diag.owner(protocol, at(source), at(&format!("{to}:{port}")), index("out")).unwrap();
                    let expected = if owned { Owner::Listener } else { Owner::None };
                    assert_eq!(owner(port), expected, "{protocol:?} {address} {v6_only}: {source} to {to}");
                    assert_eq!(owner(port + 1), Owner::None);
                }
                drop(listener);
            }
        }
    });
}

#[test]
fn bound_listener_is_found_on_its_device() {
    network().inside_async(async || {
        let mut diag = SockDiag::open().unwrap();
        let tcp = TcpSocket::new_v4().unwrap();
        tcp.bind_device(Some(b"out")).unwrap();
        tcp.bind(at("0.0.0.0:1000")).unwrap();
        let tcp = tcp.listen(8).unwrap();
        let udp = tokio::net::UdpSocket::bind("[::]:1000").await.unwrap();
        udp.bind_device(Some(b"out")).unwrap();
        let interface = index("out");
        let expected = [
            Listener { protocol: Protocol::Tcp, port: 1000, bound: Bound::AnyV4, interface, user: 0 },
            Listener { protocol: Protocol::Udp, port: 1000, bound: Bound::Any, interface, user: 0 },
        ];
        assert_eq!(diag.listeners().unwrap(), expected);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut owner =
                |interface| diag.owner(protocol, at("192.0.2.7:9"), at("192.0.2.1:1000"), interface).unwrap();
            assert_eq!(owner(interface), Owner::Listener);
            assert_eq!(owner(index("far")), Owner::None);
            assert_eq!(owner(0), Owner::None, "an unknown interface has no listener");
        }
        drop((tcp, udp));
    });
}

#[test]
fn connection_is_flow_until_time_wait_ends() {
    network().inside(|| {
        let mut diag = SockDiag::open().unwrap();
        for address in ["127.0.0.1:1000", "[::1]:1000"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(address).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let unconnected = SocketAddr::new(peer.ip(), 9);
            let mut owner = |source, to| diag.owner(Protocol::Tcp, source, to, 0).unwrap();
            assert_eq!(owner(peer, at(address)), Owner::Flow);
            assert_eq!(owner(at(address), peer), Owner::Flow);
            assert_eq!(owner(unconnected, at(address)), Owner::Listener);
            drop(listener);
            // A child process of another test holds copies of the socket until its exec.
            eventually("it is closed", || owner(unconnected, at(address)) == Owner::None);
            assert_eq!(owner(peer, at(address)), Owner::Flow, "an accepted connection outlives its listener");
            drop(client);
            assert_eq!(owner(at(address), peer), Owner::Flow, "FIN-WAIT");
            drop(server);
            assert_eq!(owner(at(address), peer), Owner::Flow, "TIME-WAIT");
            assert_eq!(owner(unconnected, peer), Owner::None);
        }
    });
}

#[test]
fn half_open_connection_is_flow() {
    let net = network();
    // The client never receives the SYN/ACK, so the server stays in SYN-RECEIVED.
    net.run("nft", "add table inet t");
    net.run("nft", "add chain inet t in { type filter hook input priority 0 ; }");
    net.run("nft", "add rule inet t in tcp flags & (syn|ack) == syn|ack drop");
    net.inside_async(async || {
        let mut diag = SockDiag::open().unwrap();
        let listener = TcpListener::bind("127.0.0.1:1000").unwrap();
        let client = TcpSocket::new_v4().unwrap();
        client.bind(at("127.0.0.1:2000")).unwrap();
        let waiting = client.connect(at("127.0.0.1:1000"));
        let answer = tokio::time::timeout(Duration::from_millis(100), waiting);
        let look = async {
            tokio::task::yield_now().await;
            diag.owner(Protocol::Tcp, at("127.0.0.1:2000"), at("127.0.0.1:1000"), 0).unwrap()
        };
        let (answer, owner) = tokio::join!(answer, look);
        assert!(answer.is_err(), "the handshake completed");
        assert_eq!(owner, Owner::Flow);
        drop(listener);
    });
}

#[test]
fn mptcp_listener_is_tcp_listener() {
    network().inside(|| {
        let mut diag = SockDiag::open().unwrap();
        let fd = match socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP))
        {
            // A kernel without MPTCP, such as Debian's 5.10, has no such listeners.
            Err(Errno::PROTONOSUPPORT) => return,
            fd => fd.unwrap(),
        };
        bind(&fd, &at("[::]:1000")).unwrap();
        listen(&fd, 8).unwrap();
        let expected = Listener { protocol: Protocol::Tcp, port: 1000, bound: Bound::Any, interface: 0, user: 0 };
        assert_eq!(diag.listeners().unwrap(), [expected]);
        let owner = diag.owner(Protocol::Tcp, at("192.0.2.7:9"), at("192.0.2.1:1000"), 0).unwrap();
        assert_eq!(owner, Owner::Listener);
    });
}

#[test]
fn thousand_listeners_are_in_one_list() {
    network().inside(|| {
        let mut diag = SockDiag::open().unwrap();
        let mut sockets = Vec::new();
        for port in 10_000..11_000 {
            sockets.push(open(Protocol::Tcp, &format!("[::]:{port}"), false));
            sockets.push(open(Protocol::Udp, &format!("0.0.0.0:{port}"), false));
        }
        let listeners = diag.listeners().unwrap();
        let ports = |protocol| listeners.iter().filter(move |l| l.protocol == protocol).map(|l| l.port);
        assert!(ports(Protocol::Tcp).eq(10_000..11_000));
        assert!(ports(Protocol::Udp).eq(10_000..11_000));
    });
}

#[test]
fn many_listeners_on_port_are_one() {
    network().inside(|| {
        let mut diag = SockDiag::open().unwrap();
        let worker = || {
            let fd = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
            sockopt::set_socket_reuseport(&fd, true).unwrap();
            bind(&fd, &at("0.0.0.0:1000")).unwrap();
            listen(&fd, 8).unwrap();
            fd
        };
        let workers: Vec<OwnedFd> = (0..4).map(|_| worker()).collect();
        assert_eq!(diag.listeners().unwrap().len(), 1);
        drop(workers);
    });
}

#[test]
fn each_namespace_shows_its_own_sockets() {
    let (one, other) = (network(), network());
    one.inside(|| {
        let mut here = SockDiag::open().unwrap();
        let mut there = other.inside(|| SockDiag::open().unwrap());
        let listener = TcpListener::bind("0.0.0.0:1000").unwrap();
        assert_eq!((here.listeners().unwrap().len(), there.listeners().unwrap().len()), (1, 0));
        drop(listener);
    });
}
