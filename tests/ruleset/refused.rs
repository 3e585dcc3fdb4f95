//! Tests which answers a blocked source gets from a table that rejects or logs.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use portsentry::enforce::nft::{Nft, RulesetSpec};
use portsentry::types::{Action, BanTarget};

use crate::{installed_with, nft, seconds, target};
use netns_lab::{Lab, TIMEOUT, eventually, raw, soon, within};

/// A victim that rejects the packets of `remote`, over IPv4 and IPv6.
fn rejecting() -> (Lab, Nft) {
    let lab = Lab::new(&["remote"]);
    // Neighbour solicitations of a blocked IPv6 neighbour are dropped as well. Static entries make the two hosts behave
    // as if a router were between them.
    for (host, interface, other) in [("remote", "uplink", "victim"), ("victim", "remote", "remote")] {
        let peer = if other == "victim" { "remote" } else { "uplink" };
        let hardware = lab.hardware_address(other, peer).map(|byte| format!("{byte:02x}")).join(":");
        for address in [lab.victim_v6("remote"), lab.v6("remote")] {
            let words =
                ["neigh", "replace", &address.to_string(), "lladdr", &hardware, "dev", interface, "nud", "permanent"];
            lab.run(host, "ip", &words);
        }
    }
    let sets = lab.inside("victim", || {
        let mut sets = Nft::open().unwrap();
        sets.install(&RulesetSpec { action: Action::Reject, ..RulesetSpec::default() }).unwrap();
        let sources: [IpAddr; 2] = [lab.v4("remote").into(), lab.v6("remote").into()];
        sets.block(&sources.map(|source| (BanTarget::containing(source), seconds(600)))).unwrap();
        sets
    });
    (lab, sets)
}

/// The packet count of the first counter in the line of `text` that contains `part`.
fn counted(text: &str, part: &str) -> u64 {
    let line = text.lines().find(|line| line.contains(part)).unwrap();
    line.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()).unwrap().parse().unwrap()
}

/// Packets of `remote` that the rules have refused.
fn refused(lab: &Lab) -> u64 {
    counted(&lab.nft("list chain inet portsentry prerouting"), "ip saddr @blocked")
}

/// From now on counts the resets that arrive at `remote`, from any source.
fn count_resets(lab: &Lab) {
    let table =
        "table inet count { chain every { type filter hook prerouting priority -500; tcp flags rst counter; }; }";
    lab.run("remote", "nft", &[table]);
}

fn resets(lab: &Lab) -> u64 {
    counted(&lab.run("remote", "nft", &["list", "table", "inet", "count"]), "rst")
}

#[test]
fn rejected_source_is_refused_immediately() {
    let (lab, mut sets) = rejecting();
    let victims = lab.ends("remote");
    for (source, victim) in victims {
        let (listener, receiver) = lab.inside("victim", || {
            let any = SocketAddr::new(victim, 0);
            (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
        });
        receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (tcp, udp) = (listener.local_addr().unwrap(), receiver.local_addr().unwrap());
        let connect = || lab.inside("remote", || TcpStream::connect_timeout(&tcp, Duration::from_secs(5)));
        let start = Instant::now();
        assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused, "{source}");
        let error = lab.inside("remote", || {
            let socket = UdpSocket::bind(SocketAddr::new(source, 0)).unwrap();
            socket.connect(udp).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.send(b"probe").unwrap();
            socket.recv(&mut [0; 16]).unwrap_err().kind()
        });
        assert_eq!(error, ErrorKind::ConnectionRefused, "{source}");
        assert!(start.elapsed() < Duration::from_secs(10), "{source}: {:?}", start.elapsed());
        assert!(receiver.recv(&mut [0; 16]).is_err(), "{source}: the datagram was not dropped");
        sets.lift(&[BanTarget::containing(source)]).unwrap();
        assert!(connect().is_ok(), "{source} connects after the ban");
    }
}

#[test]
fn flood_of_rejected_source_gets_limited_answers() {
    const FLOOD: u64 = 2_000;
    let (lab, _sets) = rejecting();
    count_resets(&lab);
    let (source, victim) = lab.ends_v4("remote");
    let mut wire = lab.wire("remote");
    let start = Instant::now();
    (0..FLOOD).for_each(|_| wire.send(&raw::tcp(source, victim, 9, raw::SYN)));
    eventually("the packets arrive", || refused(&lab) >= FLOOD);
    let most = 100 + 100 * (start.elapsed().as_secs() + 1);
    let answers = resets(&lab);
    assert!(most < FLOOD / 2, "this machine is too slow for this test: {:?}", start.elapsed());
    assert!((100..=most).contains(&answers), "{answers} answers, at most {most} are allowed");
}

#[test]
fn non_unicast_is_never_answered() {
    let (lab, _sets) = rejecting();
    count_resets(&lab);
    let source = lab.v4("remote").into();
    let mut wire = lab.wire("remote");
    // Each packet once to the host's hardware address, as from a router, and once as a broadcast.
    let others = ["10.77.1.255", "255.255.255.255", "224.0.0.1", "198.51.100.1"];
    for to in others {
        let packet = raw::tcp(source, to.parse().unwrap(), 9, raw::SYN);
        wire.send(&packet);
        wire.broadcast(&packet);
    }
    wire.send(&raw::tcp(source, lab.victim_v4("remote").into(), 9, raw::SYN));
    let sent = 2 * others.len() as u64 + 1;
    assert!(soon(|| refused(&lab) == sent), "{} of {sent}", refused(&lab));
    assert_eq!(resets(&lab), 1, "only the last packet is addressed to this host");
}

#[test]
fn logged_packets_stay_within_rate() {
    let spec = RulesetSpec { log_drops: Some("1/day".parse().unwrap()), ..RulesetSpec::default() };
    installed_with(spec, |sets| {
        sets.block(&[(target("127.0.0.1"), seconds(600))]).unwrap();
        // Kernel log lines are invisible in a namespace; a trace shows which rules a packet passes.
        nft("table inet trace { chain every { type filter hook prerouting priority -400; meta nftrace set 1; }; }");
        let mut monitor = Command::new("nft").args(["monitor", "trace"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(monitor.stdout.take().unwrap()).lines().map_while(Result::ok);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let (mut logged, dropped) = (0, AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Packets before `nft monitor` is ready are not traced.
                let traced = within(TIMEOUT, || {
                    socket.send_to(b"x", address).unwrap();
                    (dropped.load(Ordering::Relaxed) > 50).then_some(())
                });
                monitor.kill().unwrap();
                assert!(traced.is_some(), "no packet was dropped");
            });
            for line in lines {
                logged += u32::from(line.contains("portsentry refuse rule limit rate 1/day"));
                dropped.fetch_add(u32::from(line.contains("portsentry refuse rule drop")), Ordering::Relaxed);
            }
        });
        monitor.wait().unwrap();
        assert!(logged <= 5, "{logged} of {dropped:?} packets are logged");
        let rules = nft("list chain inet portsentry refuse");
        // Some versions of nft print the default burst of 5 packets, some do not.
        assert!(
            rules.replace(" burst 5 packets", "").contains("limit rate 1/day log prefix \"Portsentry: dropping: \"")
        );
    });
}
