//! Tests link-local addresses, which are unique only per link: another link may have another host of the same address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, SYN};
use netns_lab::scan::fetch;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually, slowness, soon};

const SHORTLY: Duration = Duration::from_millis(500);

fn link_local(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A victim that is fe80::1 on the link of each of these hosts, which are all fe80::77.
fn lab_of_twins(hosts: &[&str]) -> Lab {
    let lab = Lab::new(hosts);
    for host in hosts {
        lab.victim_ip(&format!("addr add fe80::1/64 dev {host} nodad"));
        lab.run(host, "ip", &["addr", "flush", "dev", "uplink", "scope", "link"]);
        lab.run(host, "ip", &["addr", "add", "fe80::77/64", "dev", "uplink", "nodad"]);
    }
    lab
}

fn index(lab: &Lab, host: &str, interface: &str) -> u32 {
    lab.run(host, "cat", &[&format!("/sys/class/net/{interface}/ifindex")]).trim().parse().unwrap()
}

/// True if a service of the victim answers the host by its link-local address.
fn is_served(lab: &Lab, host: &str, timeout: Duration) -> bool {
    let service = SocketAddr::V6(SocketAddrV6::new(link_local("fe80::1"), 80, 0, index(lab, host, "uplink")));
    lab.inside(host, || fetch(service, timeout * slowness()))
}

/// Sends SYNs to closed ports of the victim from a link-local address: enough for a ban of a source that has connected
/// to a service.
fn probe(lab: &Lab, host: &str, source: &str) {
    let mut wire = lab.wire(host);
    for port in [23, 79, 111, 119, 512, 513, 514, 540, 635, 1080] {
        wire.send(&raw::tcp(link_local(source).into(), link_local("fe80::1").into(), port, SYN));
    }
}

#[test]
fn link_local_ban_applies_to_one_link() {
    let lab = lab_of_twins(&["scanner", "twin"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let scanner = IpAddr::from(link_local("fe80::77"));
    assert!(is_served(&lab, "scanner", TIMEOUT) && is_served(&lab, "twin", TIMEOUT));
    probe(&lab, "scanner", "fe80::77");
    lab.expect_ban(scanner);
    let target = format!("fe80::77%{}", index(&lab, "victim", "scanner"));
    daemon.expect_line("Host fe80::77 has been blocked via nftables set inet portsentry blocked_link");
    assert!(!is_served(&lab, "scanner", SHORTLY), "it is blocked on its link");
    assert!(is_served(&lab, "twin", TIMEOUT), "the other link has another host of this address");
    assert_eq!(lab.banned(), [scanner], "one element");

    // The ban is restored for that link only, and found by its address.
    lab.nft("flush ruleset");
    lab.expect_ban(scanner);
    assert!(!is_served(&lab, "scanner", SHORTLY) && is_served(&lab, "twin", TIMEOUT));
    let known = lab.ask(&["explain", "fe80::77"]);
    assert_eq!(known["subject"], target, "{known}");
    assert_eq!(lab.ask(&["list"])["bans"][0]["subject"], target);
    daemon.stop();
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert!(!is_served(&lab, "scanner", SHORTLY) && is_served(&lab, "twin", TIMEOUT), "after a restart");

    // The twin is judged by its own packets.
    probe(&lab, "twin", "fe80::77");
    assert!(soon(|| lab.banned().len() == 2), "{:?}", lab.banned());
    let twin = format!("fe80::77%{}", index(&lab, "victim", "twin"));
    for (name, number) in [("scanner", &target), ("twin", &twin)] {
        for asked in [number.clone(), format!("fe80::77%{name}")] {
            let list = lab.ask(&["list", &asked]);
            let found: Vec<&str> =
                list["bans"].as_array().unwrap().iter().filter_map(|ban| ban["subject"].as_str()).collect();
            assert_eq!(found, [number], "{asked}");
            let known = lab.ask(&["explain", &asked]);
            assert_eq!([&known["address"], &known["subject"]], [number, number], "{asked}");
            assert!(lab.succeed(&["explain", &asked]).contains(&format!("{number}\n")), "{asked}");
        }
    }
    assert_eq!(lab.ask(&["list", "fe80::77"])["bans"].as_array().unwrap().len(), 2, "every link");
    let unknown = lab.ask(&["explain", "fe80::77%4000"]);
    assert_eq!((&unknown["subject"], &unknown["blocked"]), (&"fe80::77%4000".into(), &serde_json::Value::Null));
    lab.succeed(&["unblock", "fe80::77"]);
    assert!(lab.banned().is_empty(), "without a link the command applies to all links");
    assert!(is_served(&lab, "scanner", TIMEOUT) && is_served(&lab, "twin", TIMEOUT));

    // With its link, only the ban on that link is lifted. These sources have never connected.
    ["scanner", "twin"].iter().for_each(|host| probe(&lab, host, "fe80::66"));
    assert!(soon(|| lab.banned().len() == 2), "{:?}", lab.banned());
    let [lifted, other] = ["scanner", "twin"].map(|host| format!("fe80::66%{}", index(&lab, "victim", host)));
    assert_eq!(lab.succeed(&["unblock", "fe80::66%scanner"]), "bans lifted: 1\n", "{lifted}");
    assert_eq!(lab.ask(&["list"])["bans"][0]["subject"], other);
    assert_eq!(lab.banned().len(), 1);
    let refused = lab.operate(&["allow", &target]);
    assert!(
        refused.code == Some(2) && refused.err.contains("write fe80::77, which is that address on every link"),
        "{refused:?}"
    );
    assert_eq!(lab.succeed(&["allow", "fe80::77"]), "fe80::77 is allowed until `portsentry disallow fe80::77`\n");
    daemon.stop();
}

/// The kernel may give the index of a deleted interface to the next one.
#[test]
fn link_local_ban_ends_with_its_interface() {
    let lab = lab_of_twins(&["scanner", "twin"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for host in ["scanner", "twin"] {
        probe(&lab, host, "fe80::77");
    }
    eventually("both are banned", || lab.set("blocked_link").len() == 2);
    let kept = format!("fe80::77%{}", index(&lab, "victim", "twin"));
    lab.victim_ip("link del dev scanner");
    daemon.expect_line("Host fe80::77 has been unblocked by portsentry, because its interface no longer exists");
    let bans = lab.ask(&["list"])["bans"].as_array().unwrap().clone();
    assert!(bans.len() == 1 && bans[0]["subject"] == kept, "the other link still exists: {bans:?}");
    assert_eq!(lab.set("blocked_link").len(), 1);
    daemon.stop();
}

#[test]
fn block_without_link_is_on_every_link() {
    let lab = lab_of_twins(&["one", "two"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.succeed(&["block", "fe80::77"]);
    let known = lab.ask(&["explain", "fe80::77%two"]);
    assert!(known["subject"] == "fe80::77/128" && known["blocked"].is_object(), "the ban is in force there: {known}");
    assert_eq!(lab.ask(&["list", "fe80::77%two"])["bans"][0]["subject"], "fe80::77/128");
    assert!(!is_served(&lab, "one", SHORTLY) && !is_served(&lab, "two", SHORTLY));
    probe(&lab, "one", "fe80::77");
    probe(&lab, "one", "fe80::66");
    let other = lab.expect_ban(link_local("fe80::66").into()).address;
    assert_eq!(lab.set("blocked_link").len(), 1, "only {other} is added, because the first is already banned");
    lab.succeed(&["unblock", "fe80::77"]);
    assert!(is_served(&lab, "one", TIMEOUT) && is_served(&lab, "two", TIMEOUT));
    daemon.stop();
}

/// An address of the gateway or of this host gives no protection on another link.
#[test]
fn gateway_is_exempt_on_own_link() {
    let lab = lab_of_twins(&["uplink1", "guest"]);
    lab.victim_ip("addr add fe80::5/64 dev uplink1 nodad");
    lab.victim_ip("route add default via fe80::77 dev uplink1");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    for source in ["fe80::77", "fe80::5"] {
        probe(&lab, "uplink1", source);
    }
    daemon.expect_line("a gateway of this host");
    daemon.expect_line("an address of this host");
    assert!(lab.set("blocked_link").is_empty(), "{:?}", lab.banned());
    for source in ["fe80::77", "fe80::5"] {
        probe(&lab, "guest", source);
    }
    let both = [link_local("fe80::5"), link_local("fe80::77")].map(IpAddr::from);
    lab.expect_banned(&both);
    let refused = lab.operate(&["block", "fe80::77"]);
    assert!(refused.err.contains("a gateway of this host"), "{refused:?}");
    daemon.stop();
}
