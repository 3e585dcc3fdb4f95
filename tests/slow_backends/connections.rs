//! Connections of a blocked source are ended, and nobody else's: real ones, over veth pairs.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use portsentry::enforce::slow_backends::{BackendEvent, Settings};
use portsentry::netlink::sock_diag::SockDiag;
use portsentry::types::BanTarget;

use super::{Bench, case};
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
    /// That bytes still go both ways.
    fn is_alive(&mut self) -> bool {
        let pass =
            |mut from: &TcpStream, mut to: &TcpStream| from.write_all(b"x").is_ok() && to.read_exact(&mut [0]).is_ok();
        pass(&self.client, &self.server) && pass(&self.server, &self.client)
    }

    /// What the process at the victim's end gets from its next read.
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
    let mut condemned =
        [connect(&lab, "scanner", &old, v4), connect(&lab, "scanner", &dual, v4), connect(&lab, "scanner", &dual, v6)];
    let mut spared = [
        connect(&lab, "client", &old, lab.victim_v4("client").into()),
        connect(&lab, "client", &dual, lab.victim_v4("client").into()),
        connect(&lab, "client", &dual, lab.victim_v6("client").into()),
    ];
    assert!(condemned.iter_mut().chain(&mut spared).all(Connection::is_alive));
    // The kernel sees the thread's sockets in the namespace of whoever starts it.
    let bench = lab.inside("victim", || Bench::start(Settings { end_connections: true, ..Settings::default() }));
    let v4 = case(&lab.v4("scanner").to_string(), 60);
    bench.block(v4, &[]);
    // The IPv4 ones, of which one is in an IPv6 socket.
    assert_eq!(bench.next(), BackendEvent::Connections { target: v4.target, ended: 2 });
    assert_eq!(condemned[0].error(), ErrorKind::ConnectionAborted);
    assert_eq!(condemned[1].error(), ErrorKind::ConnectionAborted);
    assert!(condemned[2].is_alive(), "its IPv6 subject is another one");
    let v6 = case(&lab.v6("scanner").to_string(), 60);
    bench.block(v6, &[]);
    assert_eq!(bench.next(), BackendEvent::Connections { target: v6.target, ended: 1 });
    assert_eq!(condemned[2].error(), ErrorKind::ConnectionAborted);
    assert_eq!(
        condemned[2].client.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::ConnectionReset,
        "the peer hears of it"
    );
    assert!(spared.iter_mut().all(Connection::is_alive));
    // The listeners still listen, for the scanner too: to keep it out is another back end's work.
    assert!(connect(&lab, "scanner", &old, v4_of(&lab)).is_alive());
    bench.silence(Duration::from_millis(100));
}

fn v4_of(lab: &Lab) -> IpAddr {
    lab.victim_v4("scanner").into()
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
    let target = BanTarget::of(lab.v4("scanner").into());
    lab.inside("victim", || {
        let mut diag = SockDiag::open().unwrap();
        let nobody = diag.end_connections(&HashSet::from([BanTarget::of("192.0.2.7".parse().unwrap())])).unwrap();
        assert!(nobody.connections.is_empty());
        let ended = diag.end_connections(&HashSet::from([target])).unwrap();
        assert_eq!((ended.connections[&target], ended.more), (2, false));
        let again = diag.end_connections(&HashSet::from([target])).unwrap();
        assert!(again.connections.is_empty(), "each once");
        assert_eq!(diag.listeners().unwrap().len(), 1);
    });
    // Of an outgoing connection the victim's end is the client's.
    assert_eq!(outgoing.client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert!(!outgoing.is_alive());
}

#[test]
fn three_hundred_connections_end_in_one_go() {
    let lab = Lab::new(&["scanner"]);
    let listener = lab.inside("victim", || TcpListener::bind("0.0.0.0:8080").unwrap());
    let connections: Vec<Connection> = (0..300).map(|_| connect(&lab, "scanner", &listener, v4_of(&lab))).collect();
    let target = BanTarget::of(lab.v4("scanner").into());
    let ended = lab.inside("victim", || SockDiag::open().unwrap().end_connections(&HashSet::from([target])).unwrap());
    assert_eq!(ended.connections[&target], connections.len());
}

#[test]
fn missing_right_to_end_connections_is_reported() {
    let lab = Lab::new(&["scanner"]);
    let listener = lab.inside("victim", || TcpListener::bind("0.0.0.0:8080").unwrap());
    let mut connection = connect(&lab, "scanner", &listener, v4_of(&lab));
    let case = case(&lab.v4("scanner").to_string(), 60);
    let bench = lab.inside("victim", || {
        // Capabilities belong to a thread; the one that is started has what this one has left.
        let sets = rustix::thread::capabilities(None).unwrap();
        let without = rustix::thread::CapabilitySets {
            effective: sets.effective - rustix::thread::CapabilitySet::NET_ADMIN,
            ..sets
        };
        rustix::thread::set_capabilities(None, without).unwrap();
        Bench::start(Settings { end_connections: true, ..Settings::default() })
    });
    bench.block(case, &[]);
    let BackendEvent::Unable { reason, .. } = bench.next() else { panic!("it is said") };
    assert!(reason.contains("CAP_NET_ADMIN"), "{reason}");
    bench.block(case, &[]);
    bench.silence(Duration::from_millis(300));
    assert!(connection.is_alive());
}
