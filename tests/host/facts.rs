//! Tests the reading of addresses, gateways and interfaces, and of their changes, with real links and routes.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use portsentry::engine::Protection;
use portsentry::host::network::{HostError, HostFacts, HostReader, Watcher};
use portsentry::host::resolv_conf::ResolverFiles;
use portsentry::host::snapshot::snapshot;
use tokio::time::timeout;

use super::network;

async fn read() -> HostFacts {
    HostReader::default().read(&no_resolvers()).await.unwrap().facts
}

fn no_resolvers() -> ResolverFiles {
    ResolverFiles { main: "/nonexistent/resolv.conf".into(), upstream: Vec::new() }
}

fn gateways(facts: &HostFacts) -> Vec<String> {
    let on_links = facts.link_gateways.iter().map(|(_, gateway)| gateway);
    facts.gateways.iter().chain(on_links).map(IpAddr::to_string).collect()
}

/// Waits until the watcher has reported the construction of its namespace.
async fn settle(watcher: &mut Watcher) {
    while timeout(Duration::from_millis(200), watcher.changed()).await.is_ok_and(|change| change.is_ok()) {}
}

#[test]
fn addresses_are_those_of_namespace() {
    let net = network();
    net.ip("link add ptp type veth peer name ptpfar");
    net.ip("address add 198.51.100.1 peer 198.51.100.2/32 dev ptp");
    let facts = net.inside_async(read);
    let of = |name: &str| facts.interfaces.iter().find(|interface| interface.name == name).unwrap();
    assert!(of("lo").loopback && of("lo").up);
    assert!(!of("out").loopback && of("out").up);
    assert!(!of("ptp").up);
    let has = |name: &str, net: &str| facts.addresses.contains(&(of(name).index, net.parse::<IpNet>().unwrap()));
    assert!(has("lo", "127.0.0.1/8") && has("lo", "::1/128"));
    assert!(has("out", "192.0.2.1/24") && has("out", "2001:db8::1/64"));
    assert!(has("ptp", "198.51.100.1/32"), "the host's own end of the link, not its peer's: {:?}", facts.addresses);
    assert!(has("out", "fe80::1/64"));
    assert_eq!(facts.gateways, Vec::<IpAddr>::new());
}

#[test]
fn tentative_address_is_an_address() {
    let net = network();
    net.ip("address add 2001:db8::2/64 dev out");
    let facts = net.inside_async(read);
    assert!(facts.addresses.iter().any(|(_, net)| net.to_string() == "2001:db8::2/64"));
}

#[test]
fn gateways_of_every_route_are_found() {
    let net = network();
    net.ip_batch(
        "route add default via 192.0.2.254\n\
         route add default via fe80::254 dev out\n\
         route add 198.51.100.0/24 via 192.0.2.253 table 77\n\
         route add 2001:db8:77::/48 via 2001:db8::253 table 77\n\
         route add 203.0.113.0/24 nexthop via 192.0.2.11 weight 1 nexthop via 192.0.2.12 weight 1\n\
         route add 2001:db8:78::/48 nexthop via 2001:db8::11 nexthop via 2001:db8::12\n\
         route add 198.18.0.0/24 via inet6 2001:db8::99 dev out\n\
         nexthop add id 5 via 192.0.2.55 dev out\n\
         route add 198.18.1.0/24 nhid 5\n\
         route add blackhole 198.18.2.0/24\n",
    );
    let facts = net.inside_async(read);
    assert_eq!(
        gateways(&facts),
        [
            "192.0.2.11",
            "192.0.2.12",
            "192.0.2.55",
            "192.0.2.253",
            "192.0.2.254",
            "2001:db8::11",
            "2001:db8::12",
            "2001:db8::99",
            "2001:db8::253",
            "fe80::254"
        ]
    );
}

#[test]
fn gateways_of_next_hop_objects_are_found() {
    let net = network();
    net.run("sysctl", "-qw net.ipv4.nexthop_compat_mode=0");
    net.ip_batch(
        "nexthop add id 5 via 192.0.2.55 dev out\n\
         nexthop add id 6 via 2001:db8::66 dev out\n\
         nexthop add id 7 group 5\n\
         route add default nhid 7\n\
         route add 2001:db8:79::/48 nhid 6\n",
    );
    assert_eq!(gateways(&net.inside_async(read)), ["192.0.2.55", "2001:db8::66"]);
}

#[test]
fn gateway_is_found_among_ten_thousand_blackholes() {
    let net = network();
    let mut commands: String =
        (0..10_000).map(|n| format!("route add blackhole 10.{}.{}.0/24\n", n / 250, n % 250)).collect();
    commands.push_str("route add default via 192.0.2.254\n");
    net.ip_batch(&commands);
    assert_eq!(gateways(&net.inside_async(read)), ["192.0.2.254"]);
}

#[test]
fn resolvers_are_read_with_network_facts() {
    let directory = tempfile::tempdir().unwrap();
    let files = ResolverFiles { main: directory.path().join("resolv.conf"), upstream: Vec::new() };
    std::fs::write(&files.main, "nameserver 192.0.2.53\n").unwrap();
    let directory = ResolverFiles { main: directory.path().into(), upstream: Vec::new() };
    network().inside_async(async || {
        let facts = HostReader::default().read(&files).await.unwrap().facts;
        assert_eq!(facts.resolvers, ["192.0.2.53".parse::<IpAddr>().unwrap()]);
        assert!(matches!(HostReader::default().read(&directory).await, Err(HostError::Resolvers(..))));
    });
}

#[test]
fn each_later_change_is_noticed_and_read() {
    let net = network();
    let changes = [
        "address add 192.0.2.2/24 dev out",
        "-6 address add 2001:db8::2/64 dev out nodad",
        "route add default via 192.0.2.254",
        "-6 route add default via 2001:db8::254",
        "route del default",
        "address del 192.0.2.2/24 dev out",
        "link add new type veth peer name newfar",
        "link set out down",
    ];
    net.inside_async(async || {
        let mut watcher = Watcher::open().unwrap();
        settle(&mut watcher).await;
        let mut before = read().await;
        for change in changes {
            net.ip(change);
            timeout(Duration::from_secs(60), watcher.changed()).await.expect(change).unwrap();
            let after = read().await;
            assert_ne!(after, before, "{change}");
            before = after;
        }
    });
}

#[test]
fn changed_next_hop_is_noticed() {
    let net = network();
    net.ip("nexthop add id 5 via 192.0.2.55 dev out");
    net.ip("route add default nhid 5");
    net.inside_async(async || {
        let mut watcher = Watcher::open().unwrap();
        settle(&mut watcher).await;
        net.ip("nexthop replace id 5 via 192.0.2.56 dev out");
        timeout(Duration::from_secs(60), watcher.changed()).await.unwrap().unwrap();
        assert_eq!(gateways(&read().await), ["192.0.2.56"]);
    });
}

#[test]
fn blackhole_routes_are_not_a_change() {
    let net = network();
    net.inside_async(async || {
        let mut watcher = Watcher::open().unwrap();
        settle(&mut watcher).await;
        net.ip("route add blackhole 198.51.100.7/32");
        net.ip("-6 route add unreachable 2001:db8:1::/64");
        assert!(timeout(Duration::from_millis(300), watcher.changed()).await.is_err());
        net.ip("route add default via 192.0.2.254");
        timeout(Duration::from_secs(60), watcher.changed()).await.unwrap().unwrap();
    });
}

#[test]
fn burst_is_one_change() {
    let net = network();
    let burst: String = (2..200).map(|n| format!("address add 192.0.2.{n}/24 dev out\n")).collect();
    net.inside_async(async || {
        let mut watcher = Watcher::open().unwrap();
        settle(&mut watcher).await;
        net.ip_batch(&burst);
        timeout(Duration::from_secs(60), watcher.changed()).await.unwrap().unwrap();
        assert!(timeout(Duration::from_millis(300), watcher.changed()).await.is_err());
        assert_eq!(
            read().await.addresses.iter().filter(|(_, net)| net.to_string().starts_with("192.0.2.")).count(),
            199
        );
    });
}

#[test]
fn endless_changes_are_reported_within_bound() {
    let net = network();
    let churn = "route add 198.51.100.0/24 dev out\nroute del 198.51.100.0/24 dev out\n".repeat(2_000);
    let reported = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Runs until the test ends, on machines of any speed.
        scope.spawn(|| {
            while !reported.load(Ordering::SeqCst) {
                net.ip_batch(&churn);
            }
        });
        net.inside_async(async || {
            let mut watcher = Watcher::open().unwrap();
            let answers = async {
                watcher.changed().await.unwrap();
                watcher.changed().await.unwrap();
            };
            let bounded = timeout(Duration::from_secs(10), answers).await;
            reported.store(true, Ordering::SeqCst);
            bounded.expect("a stream of changes does not delay the report");
        });
    });
}

#[test]
fn change_during_dropped_future_is_reported_later() {
    let net = network();
    net.inside_async(async || {
        let mut watcher = Watcher::open().unwrap();
        settle(&mut watcher).await;
        for end in 2.. {
            net.ip(&format!("address add 192.0.2.{end}/24 dev out"));
            // Long enough to read the notification, shorter than the quiet period unless this machine is busy.
            if timeout(Duration::from_millis(10), watcher.changed()).await.is_err() {
                break;
            }
        }
        timeout(Duration::from_secs(60), watcher.changed()).await.unwrap().unwrap();
    });
}

#[test]
fn lost_notifications_count_as_change() {
    let net = network();
    let flood: String = (0..5_000).map(|n| format!("route add 10.{}.{}.0/24 dev out\n", n / 250, n % 250)).collect();
    net.inside_async(async || {
        let mut watcher = Watcher::open().unwrap();
        settle(&mut watcher).await;
        net.ip_batch(&flood);
        timeout(Duration::from_secs(60), watcher.changed()).await.unwrap().unwrap();
        settle(&mut watcher).await;
        net.ip("route add default via 192.0.2.254");
        timeout(Duration::from_secs(60), watcher.changed()).await.unwrap().unwrap();
    });
}

#[test]
fn tunnel_peers_are_found_on_links() {
    let net = network();
    for line in [
        "link add vx type vxlan id 7 remote 198.51.100.1 dstport 4789 dev out",
        "link add vx6 type vxlan id 8 remote 2001:db8:9::1 dstport 4789 dev out",
        "link add down type vxlan id 9 remote 198.51.100.9 dstport 4789 dev out",
        "link add many type vxlan id 10 group 239.1.1.1 dstport 4789 dev out",
    ] {
        net.ip(line);
    }
    ["vx", "vx6", "many"].iter().for_each(|name| net.ip(&format!("link set {name} up")));
    // Not every kernel supports these.
    let mut expected = vec!["198.51.100.1", "2001:db8:9::1"];
    for (kind, name, peer) in
        [("gre", "g4", "198.51.100.2"), ("ipip", "i4", "198.51.100.3"), ("sit", "s4", "198.51.100.4")]
    {
        let add = ["link", "add", name, "type", kind, "local", "192.0.2.1", "remote", peer];
        if net.command("ip").args(add).status().unwrap().success() {
            net.ip(&format!("link set {name} up"));
            expected.push(peer);
        }
    }
    let mut found: Vec<String> = net.inside_async(read).tunnel_peers.iter().map(IpAddr::to_string).collect();
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// The peer of a policy for a single address is a remote worker, not a gateway.
#[test]
fn ipsec_peers_of_networks_are_found() {
    let net = network();
    let tunnel = |selector: &str, direction: &str, own: &str, peer: &str, mode: &str| {
        net.ip(&format!(
            "xfrm policy add {selector} dir {direction} tmpl src {own} dst {peer} proto esp reqid 7 mode {mode}"
        ));
    };
    tunnel("src 0.0.0.0/0 dst 0.0.0.0/0", "out", "192.0.2.1", "198.51.100.1", "tunnel");
    tunnel("src 0.0.0.0/0 dst 10.1.0.0/16", "out", "192.0.2.1", "198.51.100.2", "tunnel");
    tunnel("src ::/0 dst ::/0", "out", "2001:db8::1", "2001:db8:9::1", "tunnel");
    tunnel("src 0.0.0.0/0 dst 10.2.0.9/32", "out", "192.0.2.1", "198.51.100.3", "tunnel");
    tunnel("src 192.0.2.1/32 dst 10.3.0.0/16", "out", "0.0.0.0", "0.0.0.0", "transport");
    tunnel("src 0.0.0.0/0 dst 192.0.2.1/32", "in", "198.51.100.4", "192.0.2.1", "tunnel");
    let found: Vec<String> = net.inside_async(read).tunnel_peers.iter().map(IpAddr::to_string).collect();
    assert_eq!(found, ["198.51.100.1", "198.51.100.2", "2001:db8:9::1"]);
}

#[test]
fn low_preference_router_is_not_a_gateway() {
    let net = network();
    net.ip_batch(
        "route add default via fe80::254 dev out proto ra metric 1024 pref medium\n\
         route add default via fe80::bad dev out proto ra metric 1025 pref low\n\
         route add default via fe80::7 dev out proto static metric 2000 pref low\n",
    );
    assert_eq!(
        gateways(&net.inside_async(read)),
        ["fe80::7", "fe80::254"],
        "a static route was chosen by the administrator"
    );
    net.ip("-6 route del default via fe80::254 dev out proto ra metric 1024");
    assert_eq!(gateways(&net.inside_async(read)), ["fe80::7", "fe80::bad"], "the router in use has low preference");
}

#[test]
fn late_ipv6_routes_keep_their_gateways() {
    let net = network();
    net.ip_batch("route add 198.51.100.0/24 via 192.0.2.254\nroute add 2001:db8:a::/48 via fe80::254 dev out\n");
    let mut reader = HostReader::default();
    let [first, late, again] = net.inside_async(async || {
        let first = reader.read(&no_resolvers()).await.unwrap();
        reader.limit(Duration::ZERO);
        net.ip("route add 203.0.113.0/24 via 192.0.2.253");
        let late = reader.read(&no_resolvers()).await.unwrap();
        reader.limit(Duration::from_secs(60));
        [first, late, reader.read(&no_resolvers()).await.unwrap()]
    });
    assert!(first.late.is_none() && !first.is_owed);
    assert_eq!(gateways(&first.facts), ["192.0.2.254", "fe80::254"]);
    assert!(matches!(late.late, Some(HostError::Late)) && late.is_owed);
    assert_eq!(gateways(&late.facts), ["192.0.2.253", "192.0.2.254", "fe80::254"], "other lists are complete");
    assert!(again.late.is_none() && !again.is_owed && again.facts == late.facts);
}

#[test]
fn first_reading_may_lack_ipv6_routes() {
    let net = network();
    net.ip_batch("route add 198.51.100.0/24 via 192.0.2.254\nroute add 2001:db8:a::/48 via fe80::254 dev out\n");
    let mut reader = HostReader::default();
    reader.limit(Duration::ZERO);
    let late = net.inside_async(async || reader.read(&no_resolvers()).await.unwrap());
    assert!(late.late.is_some());
    assert_eq!(gateways(&late.facts), ["192.0.2.254"]);
    assert_eq!(late.facts.addresses, net.inside_async(read).addresses, "own addresses are protected");
}

#[test]
fn advertised_network_adds_no_gateway() {
    let net = network();
    net.ip_batch(
        "route add 2001:db8:a::/48 via fe80::bad dev out proto ra metric 1024 pref low\n\
         route add 2001:db8:b::/48 via fe80::bad dev out proto ra metric 1024 pref high\n\
         route add 2001:db8:c::/48 via fe80::7 dev out proto static\n\
         route add default via fe80::254 dev out proto ra metric 1024 pref medium\n\
         route add 2001:db8:d::/48 via fe80::254 dev out proto ra metric 1024 pref medium\n",
    );
    assert_eq!(
        gateways(&net.inside_async(read)),
        ["fe80::7", "fe80::254"],
        "a route to a network (Route Information option) protects its sender only if that is the default router in use"
    );
}

/// systemd-networkd creates next-hop objects for advertised routers.
#[test]
fn advertised_object_counts_with_default_route() {
    let net = network();
    net.run("sysctl", "-qw net.ipv4.nexthop_compat_mode=0");
    net.ip_batch(
        "nexthop add id 1 via fe80::254 dev out proto ra\n\
         nexthop add id 2 via fe80::bad dev out proto ra\n\
         nexthop add id 3 via fe80::7 dev out proto static\n\
         route add default nhid 1 proto ra metric 1024 pref medium\n\
         route add 2001:db8:a::/48 nhid 2 proto ra metric 1024 pref medium\n",
    );
    assert_eq!(gateways(&net.inside_async(read)), ["fe80::7", "fe80::254"]);
}

/// The kernel may accept segments with any checksum at `out`, which is a veth, and at interfaces to which its frames
/// go.
#[test]
fn interfaces_without_wire_are_known() {
    let net = network();
    net.ip_batch(
        "link add other type bridge\n\
         link add port type veth peer name portfar\n\
         link add guests type bridge\n\
         link set port master guests\n",
    );
    let mut virtual_links = vec!["out", "far", "port", "guests"];
    // Not every kernel has these.
    if net.command("ip").args("link add v5 link out type vlan id 5".split(' ')).status().unwrap().success() {
        net.ip("link add v6 link v5 type vlan id 6");
        virtual_links.extend(["v5", "v6"]);
    }
    let facts = net.inside_async(read);
    let found = snapshot(&[], &[], &facts, &[]).virtual_links;
    let is_found = |name: &str| found.contains(&facts.interfaces.iter().find(|one| one.name == name).unwrap().index);
    for name in virtual_links {
        assert!(is_found(name), "{name}");
    }
    for name in ["lo", "other"] {
        assert!(!is_found(name), "{name}");
    }
    assert!(found.is_sorted(), "the engine searches it");
}

#[test]
fn addresses_of_local_routes_are_own() {
    let net = network();
    net.ip("route add local 198.51.100.7/32 dev lo");
    net.ip("route add local 203.0.113.0/28 dev lo");
    let facts = net.inside_async(read);
    let host = snapshot(&[], &[], &facts, &[]);
    for own in ["198.51.100.7", "203.0.113.9"].map(|text| text.parse().unwrap()) {
        assert!(host.local.contains(own), "{own}");
        assert_eq!(host.allow.protects(own), Some(Protection::OwnAddress), "{own}");
    }
    let is_link_local = |network: &IpNet| matches!(network, IpNet::V6(v6) if v6.addr().is_unicast_link_local());
    assert!(facts.local.iter().any(is_link_local), "{:?}", facts.local);
    assert!(!host.allow.prefixes().any(|prefix| is_link_local(&prefix)), "protected on one link only");
}

#[test]
fn anycast_addresses_of_router_are_read() {
    let net = network();
    let facts = net.inside_async(read);
    assert!(facts.anycast.is_empty(), "no router: {:?}", facts.anycast);
    net.run("sysctl", "-qw net.ipv6.conf.all.forwarding=1");
    let anycast = net.inside_async(read).anycast;
    assert!(anycast.contains(&"2001:db8::/128".parse().unwrap()), "{anycast:?}");
}

#[test]
fn frame_filters_are_read_for_each_family() {
    let net = network();
    let filters = || {
        let facts = net.inside_async(read);
        facts.interfaces.iter().find(|one| one.name == "out").unwrap().filters_frames
    };
    assert_eq!(filters(), [false, false]);
    net.run("sysctl", "-qw net.ipv6.conf.out.drop_unicast_in_l2_multicast=1");
    assert_eq!(filters(), [false, true]);
    net.run("sysctl", "-qw net.ipv4.conf.all.drop_unicast_in_l2_multicast=1");
    assert_eq!(filters(), [true, true]);
}
