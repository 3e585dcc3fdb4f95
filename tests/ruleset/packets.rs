//! Tests the rules with real packets.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use portsentry::enforce::nft::{KernelFeatures, Nft, RulesetSpec, Trap, TrapContents, trap_sets};
use portsentry::types::{BanTarget, Rate};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use netns_lab::Namespace;

use super::{nearly, run, seconds, target};

/// Two namespaces joined by a veth pair: the host with the table installed, and a remote host.
fn cabled(test: impl FnOnce(&mut Nft, &Namespace) + Send) {
    cabled_with(RulesetSpec { prefix_sets: true, ..RulesetSpec::default() }, test);
}

fn cabled_with(spec: RulesetSpec, test: impl FnOnce(&mut Nft, &Namespace) + Send) {
    let (host, remote) = (Namespace::with_loopback(), Namespace::with_loopback());
    run("ip", &["-n", host.name(), "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", remote.name()]);
    for (namespace, link, addresses) in [
        (&host, "v0", ["192.0.2.1/24", "2001:db8:0:1::1/32", "fe80::a/64"]),
        (&remote, "v1", ["192.0.2.2/24", "2001:db8:0:2::2/32", "fe80::b/64"]),
    ] {
        run("ip", &["-n", namespace.name(), "link", "set", link, "addrgenmode", "none"]);
        run("ip", &["-n", namespace.name(), "link", "set", link, "up"]);
        for address in addresses {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            run("ip", &[&["-n", namespace.name(), "addr", "add", address, "dev", link], nodad].concat());
        }
    }
    host.inside(|| {
        let mut nft = Nft::open().unwrap();
        nft.install(&spec).unwrap();
        test(&mut nft, &remote);
    });
}

/// If the trap bans a source while a transaction bans it as well, the kernel's set contains it twice.
#[test]
fn lift_removes_ban_that_trap_made_as_well() {
    let trap = Trap {
        tcp: true,
        udp: false,
        forgiven: 0,
        window: Duration::from_secs(60),
        expiry: seconds(60),
        ceiling: Rate::per_minute(600_000),
        nat64: [None; 8],
        named_interfaces: false,
        hold: None,
    };
    cabled_with(RulesetSpec { trap: Some(trap), ..RulesetSpec::default() }, |sets, remote| {
        trap_sets::arm(
            &mut sets.table,
            TrapContents { tcp: Some(&[(901, 905)]), ceiling_reached: Some(false), ..TrapContents::default() },
        )
        .unwrap();
        let source = target("192.0.2.2");
        let mut caught = 0;
        for round in 0..1_000 {
            let start = Barrier::new(2);
            thread::scope(|scope| {
                scope.spawn(|| {
                    remote.inside(|| {
                        start.wait();
                        for port in 901..=905 {
                            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
                            let _ = connect(&socket, &SocketAddr::from(([192, 0, 2, 1], port)));
                        }
                    });
                });
                start.wait();
                sets.block(&[(source, seconds(60))]).unwrap();
            });
            caught += trap_sets::trap_banned(&mut sets.table).unwrap().len();
            sets.table.kernel = [None, Some(KernelFeatures::default())][round % 2];
            if round % 4 > 1 {
                sets.block(&[(source, seconds(3_600))]).unwrap();
                assert!(nearly(sets.table.time_left(source).unwrap(), 3_600), "round {round}");
            }
            // Before the ban is lifted: until then, a late SYN is dropped before the trap.
            trap_sets::forget(&mut sets.table, &[source]).unwrap();
            sets.lift(&[source]).unwrap();
            if sets.table.time_left(source).unwrap().is_some() {
                assert_eq!(trap_sets::trap_banned(&mut sets.table).unwrap(), [source], "round {round}: no later SYN");
                sets.lift(&[source]).unwrap();
            }
        }
        assert!(caught > 10, "{caught} of 1,000");
    });
}

/// True if a datagram from the remote host's `from` reaches the host's `to`.
fn arrives(remote: &Namespace, from: &str, to: &str) -> bool {
    let local = |address: &str, link: &str, port| match address.parse().unwrap() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            let index = run("cat", &["/proc/net/dev_mcast"]);
            let index = index.lines().find(|line| line.split_whitespace().nth(1) == Some(link)).unwrap();
            let index = index.split_whitespace().next().unwrap().parse().unwrap();
            SocketAddr::V6(SocketAddrV6::new(v6, port, 0, index))
        }
        address => SocketAddr::new(address, port),
    };
    let receiver = UdpSocket::bind(local(to, "v0", 0)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let port = receiver.local_addr().unwrap().port();
    // The first packets may be lost during neighbour discovery.
    (0..3).any(|_| {
        remote.inside(|| {
            UdpSocket::bind(local(from, "v1", 0)).unwrap().send_to(b"probe", local(to, "v1", port)).unwrap();
        });
        receiver.recv(&mut [0; 16]).is_ok()
    })
}

#[test]
fn blocked_source_is_dropped_allowed_passes() {
    cabled(|sets, remote| {
        let paths = [("192.0.2.2", "192.0.2.1"), ("2001:db8:0:2::2", "2001:db8:0:1::1"), ("fe80::b", "fe80::a")];
        for (from, to) in paths {
            let source = target(from);
            assert!(arrives(remote, from, to), "{from} before");
            sets.block(&[(source, seconds(60))]).unwrap();
            assert!(!arrives(remote, from, to), "{from} blocked");
            let allowed = format!("{from}/{}", source.prefix_len()).parse().unwrap();
            sets.replace_allow_list(&[allowed]).unwrap();
            assert!(arrives(remote, from, to), "{from} allowed");
            sets.replace_allow_list(&[]).unwrap();
            assert!(!arrives(remote, from, to), "{from} blocked again");
            sets.lift(&[source]).unwrap();
            assert!(arrives(remote, from, to), "{from} lifted");
        }
    });
}

#[test]
fn blocked_network_is_dropped_until_lifted() {
    cabled(|sets, remote| {
        let paths =
            [("192.0.2.2", "192.0.2.1", "192.0.2.0/24"), ("2001:db8:0:2::2", "2001:db8:0:1::1", "2001:db8::/56")];
        for (from, to, network) in paths {
            let network = BanTarget::exactly(network.parse().unwrap()).unwrap();
            assert!(arrives(remote, from, to), "{network} before");
            sets.block(&[(network, seconds(60))]).unwrap();
            assert!(!arrives(remote, from, to), "{network} blocked");
            sets.replace_allow_list(&[format!("{from}/{}", target(from).prefix_len()).parse().unwrap()]).unwrap();
            assert!(arrives(remote, from, to), "{from} allowed");
            sets.replace_allow_list(&[]).unwrap();
            sets.lift(&[network]).unwrap();
            assert!(arrives(remote, from, to), "{network} lifted");
            sets.block(&[(network, seconds(1))]).unwrap();
            std::thread::sleep(Duration::from_millis(1_200));
            assert!(arrives(remote, from, to), "the ban has expired");
        }
    });
}

#[test]
fn link_local_neighbour_is_banned_alone() {
    cabled(|sets, remote| {
        sets.block(&[(target("fe80::c"), seconds(60))]).unwrap();
        assert!(arrives(remote, "fe80::b", "fe80::a"));
    });
}
