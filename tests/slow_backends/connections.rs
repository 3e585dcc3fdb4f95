//! Tests that only connections of a blocked source are ended, with real connections over veth pairs.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use portsentry::enforce::ExemptPrefixes;
use portsentry::enforce::slow_backends::{BackendEvent, SlowQueue};
use portsentry::netlink::sock_diag::{SockDiag, end_connections};
use portsentry::types::{Backend, BanTarget};

use super::{Bench, context};
use netns_lab::{Lab, TIMEOUT};

/// A connection from a host to the victim: the client's end and the victim's.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

fn connect(lab: &Lab, host: &str, listener: &TcpListener, to: IpAddr) -> Connection {
    let to = SocketAddr::new(to, listener.local_addr().unwrap().port());
    let client = lab.inside(host, || TcpStream::connect_timeout(&to, TIMEOUT).unwrap());
    let (server, _) = listener.accept().unwrap();
    for end in [&client, &server] {
        end.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
    Connection { client, server }
}

impl Connection {
    /// True if bytes still pass in both directions.
    fn is_alive(&mut self) -> bool {
        let pass =
            |mut from: &TcpStream, mut to: &TcpStream| from.write_all(b"x").is_ok() && to.read_exact(&mut [0]).is_ok();
        pass(&self.client, &self.server) && pass(&self.server, &self.client)
    }

    /// The error of the next read at the victim's end.
    fn error(&mut self) -> ErrorKind {
        self.server.read(&mut [0]).expect_err("no data comes").kind()
    }
}

#[test]
fn only_banned_source_loses_connections() {
    let lab = Lab::new(&["scanner", "client"]);
    let (old, dual) =
        lab.inside("victim", || (TcpListener::bind("0.0.0.0:8080").unwrap(), TcpListener::bind("[::]:8081").unwrap()));
    let (v4, v6) = (IpAddr::from(lab.victim_v4("scanner")), IpAddr::from(lab.victim_v6("scanner")));
    let mut to_end =
        [connect(&lab, "scanner", &old, v4), connect(&lab, "scanner", &dual, v4), connect(&lab, "scanner", &dual, v6)];
    let mut others = [
        connect(&lab, "client", &old, lab.victim_v4("client").into()),
        connect(&lab, "client", &dual, lab.victim_v4("client").into()),
        connect(&lab, "client", &dual, lab.victim_v6("client").into()),
    ];
    assert!(to_end.iter_mut().chain(&mut others).all(Connection::is_alive));
    // The thread's sockets belong to the namespace in which it starts.
    let bench = lab.inside("victim", || Bench::start_with(Vec::new(), true));
    let v4 = context(&lab.v4("scanner").to_string(), 60);
    bench.block(v4, &[]);
    // The IPv4 connections, one of them in an IPv6 socket.
    assert_eq!(bench.next(), BackendEvent::Connections { target: v4.target, ended: 2 });
    assert_eq!(to_end[0].error(), ErrorKind::ConnectionAborted);
    assert_eq!(to_end[1].error(), ErrorKind::ConnectionAborted);
    assert!(to_end[2].is_alive(), "its IPv6 address is another target");
    let v6 = context(&lab.v6("scanner").to_string(), 60);
    bench.block(v6, &[]);
    assert_eq!(bench.next(), BackendEvent::Connections { target: v6.target, ended: 1 });
    assert_eq!(to_end[2].error(), ErrorKind::ConnectionAborted);
    assert_eq!(
        to_end[2].client.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset,
        "the peer receives a reset"
    );
    assert!(others.iter_mut().all(Connection::is_alive));
    // The listeners still accept the scanner, because only another backend can block it.
    assert!(connect(&lab, "scanner", &old, v4_of(&lab)).is_alive());
    bench.expect_no_event(Duration::from_millis(100));
}

fn v4_of(lab: &Lab) -> IpAddr {
    lab.victim_v4("scanner").into()
}

#[test]
fn exempt_address_keeps_connection_within_ban() {
    let lab = Lab::new(&["scanner"]);
    let neighbour: IpAddr = lab.add_neighbour("scanner").into();
    let listener = lab.inside("victim", || TcpListener::bind("[::]:8080").unwrap());
    let to = SocketAddr::new(lab.victim_v6("scanner").into(), 8080);
    let open = |source: IpAddr| {
        let client = lab.open_from("scanner", source, to).unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(TIMEOUT)).unwrap();
        }
        Connection { client, server }
    };
    let (mut exempt, mut banned) = (open(lab.v6("scanner").into()), open(neighbour));
    let bench = lab.inside("victim", || Bench::start_with(Vec::new(), true));
    let mut queue = SlowQueue::new(bench.backends.as_ref().unwrap(), &[Backend::Nft], false, false);
    let exempt_addresses = [lab.v6("scanner"), lab.victim_v6("scanner")];
    queue.protect(ExemptPrefixes::new(exempt_addresses.map(|address| IpAddr::from(address).into())));
    // The ban covers the whole /64, which also contains this host's own address.
    let ban = context(&neighbour.to_string(), 60);
    assert!(ban.target.covers(lab.v6("scanner").into()) && ban.target.covers(to.ip()));
    bench.block(ban, &[]);
    assert_eq!(bench.next(), BackendEvent::Connections { target: ban.target, ended: 1 });
    assert_eq!(banned.error(), ErrorKind::ConnectionAborted);
    assert!(exempt.is_alive(), "nftables lets an exempt address pass, so its connection stays");
}

#[test]
fn half_closed_connection_to_source_counts() {
    let lab = Lab::new(&["scanner"]);
    let there = lab.inside("scanner", || TcpListener::bind("0.0.0.0:8080").unwrap());
    let mut outgoing = connect(&lab, "victim", &there, lab.v4("scanner").into());
    let here = lab.inside("victim", || TcpListener::bind("0.0.0.0:8080").unwrap());
    let half = connect(&lab, "scanner", &here, v4_of(&lab));
    half.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!((&half.server).read(&mut [0]).unwrap(), 0, "CLOSE-WAIT");
    let target = BanTarget::containing(lab.v4("scanner").into());
    lab.inside("victim", || {
        let mut diag = SockDiag::open().unwrap();
        let other = HashSet::from([BanTarget::containing("192.0.2.7".parse().unwrap())]);
        let unconnected = end_connections(&mut diag, &other, |_| false).unwrap();
        assert!(unconnected.connections.is_empty());
        let ended = end_connections(&mut diag, &HashSet::from([target]), |_| false).unwrap();
        assert_eq!((ended.connections[&target], ended.more), (2, false));
        let again = end_connections(&mut diag, &HashSet::from([target]), |_| false).unwrap();
        assert!(again.connections.is_empty(), "each connection is ended once");
        assert_eq!(diag.listeners().unwrap().len(), 1);
    });
    // In an outgoing connection the victim is the client.
    assert_eq!(outgoing.client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert!(!outgoing.is_alive());
}

#[test]
fn three_hundred_connections_end_in_one_call() {
    let lab = Lab::new(&["scanner"]);
    let listener = lab.inside("victim", || TcpListener::bind("0.0.0.0:8080").unwrap());
    let connections: Vec<Connection> = (0..300).map(|_| connect(&lab, "scanner", &listener, v4_of(&lab))).collect();
    let target = BanTarget::containing(lab.v4("scanner").into());
    let ended = lab.inside("victim", || {
        end_connections(&mut SockDiag::open().unwrap(), &HashSet::from([target]), |_| false).unwrap()
    });
    assert_eq!(ended.connections[&target], connections.len());
}

#[test]
fn missing_right_to_end_connections_is_reported() {
    let lab = Lab::new(&["scanner"]);
    let listener = lab.inside("victim", || TcpListener::bind("0.0.0.0:8080").unwrap());
    let mut connection = connect(&lab, "scanner", &listener, v4_of(&lab));
    let context = context(&lab.v4("scanner").to_string(), 60);
    let bench = lab.inside("victim", || {
        // A new thread inherits the remaining capabilities of its parent.
        let sets = rustix::thread::capabilities(None).unwrap();
        let without = rustix::thread::CapabilitySets {
            effective: sets.effective - rustix::thread::CapabilitySet::NET_ADMIN,
            ..sets
        };
        rustix::thread::set_capabilities(None, without).unwrap();
        Bench::start_with(Vec::new(), true)
    });
    bench.block(context, &[]);
    let BackendEvent::Unable { reason, .. } = bench.next() else { panic!("the failure is reported") };
    assert!(reason.contains("CAP_NET_ADMIN"), "{reason}");
    bench.block(context, &[]);
    bench.expect_no_event(Duration::from_millis(300));
    assert!(connection.is_alive());
}
