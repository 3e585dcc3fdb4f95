//! Tests the look-up of tracked flows with real connections through real NAT.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use netns_lab::{Namespace, TIMEOUT, eventually, within};
use portsentry::netlink::conntrack::{Conntrack, TrackedFlow};
use portsentry::netlink::sock_diag::Connection;
use portsentry::types::Protocol;

/// A router between a client (198.51.100.0/24) and a server (192.168.9.0/24). It publishes the server's port 8080 and
/// masquerades the server.
struct Networks {
    router: Namespace,
    client: Namespace,
    server: Namespace,
}

const ROUTER: &str = "198.51.100.1";
const RULES: &str = "table ip nat {
    chain pre {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr 198.51.100.1 tcp dport 8080 dnat to 192.168.9.2
        ip daddr 198.51.100.1 tcp dport 8081 redirect to :9090
    }
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 192.168.9.0/24 oifname out masquerade
    }
}";

impl Networks {
    fn new() -> Self {
        let [router, client, server] = [(); 3].map(|()| Namespace::with_loopback());
        router.ip_batch(&format!(
            "link add out type veth peer name eth0 netns {}\n\
             link add dmz type veth peer name eth0 netns {}\n\
             address add {ROUTER}/24 dev out\n\
             address add 192.168.9.1/24 dev dmz\n\
             link set out up\n\
             link set dmz up\n",
            client.name(),
            server.name(),
        ));
        client.ip_batch("address add 198.51.100.7/24 dev eth0\nlink set eth0 up\n");
        server.ip_batch("address add 192.168.9.2/24 dev eth0\nlink set eth0 up\nroute add default via 192.168.9.1\n");
        router.run("sysctl", "-qw net.ipv4.ip_forward=1");
        Self { router, client, server }
    }

    fn translate(&self) {
        let mut nft = self.router.command("nft");
        assert!(nft.arg(RULES).status().unwrap().success());
    }
}

/// Accepts one connection and sends a byte, so that the kernel has seen it established.
fn accept(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"x").unwrap();
    stream
}

fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Waits until the kernel reports the expected flow; returns the last report.
fn wait_for_flow(
    router: &Namespace,
    ends: (SocketAddr, SocketAddr),
    protocol: Protocol,
    expected: TrackedFlow,
) -> TrackedFlow {
    router.inside(|| {
        let mut conntrack = Conntrack::open().unwrap();
        let mut flow = || conntrack.flow(protocol, ends.0, ends.1).unwrap();
        within(TIMEOUT, || Some(flow()).filter(|flow| *flow == expected)).unwrap_or_else(flow)
    })
}

fn serve(namespace: &Namespace, address: SocketAddr) -> TcpListener {
    namespace.inside(|| TcpListener::bind(address).unwrap())
}

/// Connects to `address`, where `listener` accepts; returns both ends.
fn meet(from: &Namespace, address: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| accept(listener));
        let stream = from.inside(|| connect(address));
        (stream, accepting.join().unwrap())
    })
}

#[test]
fn lookup_leaves_connection_tracking_off() {
    let networks = Networks::new();
    let listener = networks.router.inside(|| TcpListener::bind(at(ROUTER, 7000)).unwrap());
    let flow = |ends: (SocketAddr, SocketAddr)| {
        networks.router.inside(|| Conntrack::open().unwrap().flow(Protocol::Tcp, ends.0, ends.1).unwrap())
    };
    assert_eq!(flow((at("198.51.100.7", 1), at(ROUTER, 7000))), TrackedFlow::Untracked);
    let connecting = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| accept(&listener));
        let stream = networks.client.inside(|| connect(at(ROUTER, 7000)));
        (stream, accepting.join().unwrap())
    });
    let ends = (connecting.0.local_addr().unwrap(), at(ROUTER, 7000));
    assert_eq!(flow(ends), TrackedFlow::Untracked, "a lookup does not enable connection tracking");
}

#[test]
fn published_and_masqueraded_flows_are_recognized() {
    let networks = Networks::new();
    networks.translate();
    let backend = serve(&networks.server, at("192.168.9.2", 8080));
    let redirected = serve(&networks.router, at(ROUTER, 9090));
    let plain = serve(&networks.router, at(ROUTER, 7000));
    let outside = serve(&networks.client, at("198.51.100.7", 7001));
    let assert_flow =
        |ends, expected| assert_eq!(wait_for_flow(&networks.router, ends, Protocol::Tcp, expected), expected);

    let (one, _one) = meet(&networks.client, at(ROUTER, 8080), &backend);
    let client = one.local_addr().unwrap();
    assert_flow((client, at(ROUTER, 8080)), TrackedFlow::Published { assured: true });
    assert_flow((client, at(ROUTER, 8082)), TrackedFlow::Untracked);
    assert_flow((at("198.51.100.7", client.port() ^ 1), at(ROUTER, 8080)), TrackedFlow::Untracked);

    let (two, _two) = meet(&networks.client, at(ROUTER, 8081), &redirected);
    assert_flow((two.local_addr().unwrap(), at(ROUTER, 8081)), TrackedFlow::Published { assured: true });

    let (three, _three) = meet(&networks.client, at(ROUTER, 7000), &plain);
    assert_flow((three.local_addr().unwrap(), at(ROUTER, 7000)), TrackedFlow::Assured);

    let (four, _four) = meet(&networks.router, at("198.51.100.7", 7001), &outside);
    assert_flow((at("198.51.100.7", 7001), four.local_addr().unwrap()), TrackedFlow::Answer);

    let (_five, five) = meet(&networks.server, at("198.51.100.7", 7001), &outside);
    let seen = five.peer_addr().unwrap();
    assert_eq!(seen.ip(), at(ROUTER, 0).ip(), "the source is masqueraded");
    assert_flow((at("198.51.100.7", 7001), seen), TrackedFlow::Translated);

    let datagram = networks.client.inside(|| {
        let socket = UdpSocket::bind(at("198.51.100.7", 0)).unwrap();
        socket.send_to(b"x", at(ROUTER, 7000)).unwrap();
        socket
    });
    let ends = (datagram.local_addr().unwrap(), at(ROUTER, 7000));
    let flow = wait_for_flow(&networks.router, ends, Protocol::Udp, TrackedFlow::New);
    assert_eq!(flow, TrackedFlow::New, "the kernel tracks the flow although no socket received it");
}

/// One look-up is enough: when a program captures a packet to a published port, the entry of its flow already exists.
#[test]
fn published_flow_is_found_at_first_lookup() {
    const CONNECTIONS: usize = 50;
    let networks = Networks::new();
    networks.translate();
    let backend = networks.server.inside(|| TcpListener::bind(at("192.168.9.2", 8080)).unwrap());
    let mut capture = networks.router.inside(|| {
        let device = pcap::Capture::from_device("out").unwrap();
        device.immediate_mode(true).snaplen(96).timeout(10_000).open().unwrap()
    });
    capture.filter("tcp[tcpflags] = tcp-syn and dst host 198.51.100.1 and dst port 8080", true).unwrap();
    let mut conntrack = networks.router.inside(|| Conntrack::open().unwrap());
    let found = std::thread::scope(|scope| {
        scope.spawn(|| (0..CONNECTIONS).for_each(|_| drop(accept(&backend))));
        let client = &networks.client;
        scope.spawn(move || (0..CONNECTIONS).for_each(|_| client.inside(|| drop(connect(at(ROUTER, 8080))))));
        let mut is_found = || {
            let frame = capture.next_packet().unwrap();
            // Ethernet and an IPv4 header without options are 34 bytes.
            let port = u16::from_be_bytes([frame.data[34], frame.data[35]]);
            let flow = conntrack.flow(Protocol::Tcp, at("198.51.100.7", port), at(ROUTER, 8080)).unwrap();
            matches!(flow, TrackedFlow::Published { .. })
        };
        (0..CONNECTIONS).filter(|_| is_found()).count()
    });
    // The kernel may be preempted between the capture and the last rule.
    assert!(found >= CONNECTIONS * 9 / 10, "{found} of {CONNECTIONS}");
}

/// The kernel deletes the entry of a SYN that a reset answers, and adds none for a packet that a rule drops.
#[test]
fn probe_of_closed_port_leaves_no_entry() {
    let networks = Networks::new();
    networks.translate();
    let drops = "table inet drops { chain input {
        type filter hook input priority filter; policy accept;
        tcp dport 7002 drop
    }
    }";
    assert!(networks.router.command("nft").arg(drops).status().unwrap().success());
    for port in [7_001, 7_002] {
        let connect = || TcpStream::connect_timeout(&at(ROUTER, port), Duration::from_millis(100));
        assert!(networks.client.inside(connect).is_err(), "{port}");
    }
    let tracked = || {
        let count = networks.router.command("cat").arg("/proc/sys/net/netfilter/nf_conntrack_count").output().unwrap();
        String::from_utf8(count.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(tracked(), "0", "no probe has an entry, although connection tracking is on");
    let backend = networks.server.inside(|| TcpListener::bind(at("192.168.9.2", 8080)).unwrap());
    let _open = networks.client.inside(|| TcpStream::connect(at(ROUTER, 8080)).unwrap());
    assert_eq!(tracked(), "1", "a connection has one");
    drop(backend);
}

#[test]
fn ended_published_connections_are_listed() {
    let networks = Networks::new();
    networks.translate();
    let listeners = [
        (at(ROUTER, 8080), serve(&networks.server, at("192.168.9.2", 8080))),
        (at(ROUTER, 8081), serve(&networks.router, at(ROUTER, 9090))),
        (at(ROUTER, 7000), serve(&networks.router, at(ROUTER, 7000))),
    ];
    let outside = serve(&networks.client, at("198.51.100.7", 7001));
    let met = listeners.each_ref().map(|(address, listener)| meet(&networks.client, *address, listener));
    let masqueraded = meet(&networks.server, at("198.51.100.7", 7001), &outside);
    let refused = at(ROUTER, 8080);
    drop(listeners);
    // A process that another test has just started may hold a listener for a moment.
    eventually("the listeners are closed", || {
        let sockets = networks.server.command("ss").arg("-Hltn").output().unwrap();
        sockets.status.success() && sockets.stdout.is_empty()
    });
    networks.client.inside(|| TcpStream::connect(refused).expect_err("the published port has no service now"));

    let published = |most| networks.router.inside(|| Conntrack::open().unwrap().published(most).unwrap());
    let listed = || {
        let mut listed = published(100);
        listed.sort_unstable_by_key(|one| one.port);
        listed
    };
    let expected = [8080, 8081].map(|port| Connection {
        address: at(ROUTER, 0).ip(),
        port,
        peer: at("198.51.100.7", 0).ip(),
        interface: 0,
        is_published: true,
    });
    assert_eq!(listed(), expected, "no plain, masqueraded or refused connection");
    assert_eq!(published(1).len(), 1, "the list is bounded");
    drop((met, masqueraded));
    assert_eq!(listed(), expected, "the kernel keeps their entries for two minutes");
}
