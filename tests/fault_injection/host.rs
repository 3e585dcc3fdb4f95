//! Tests changes of the host at run time: interfaces, addresses, and a kernel without IPv6.

use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;

use crate::support::{forge, scan};
use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually, slowness};

/// The kernel's trap identifies interfaces by index; a recreated interface gets a new one.
#[test]
fn returning_interface_is_trapped_again() {
    let lab = Lab::new(&["named", "other"]);
    let daemon = Daemon::start_armed(&lab, "interfaces = [\"named\"]\n");
    let is_trapped = || lab.set_text("trap_interfaces").contains("\"named\"");
    eventually("the trap contains the interface", is_trapped);
    lab.cut("named");
    eventually("the trap no longer contains it", || {
        lab.set_text("trap_interfaces").contains("elements = { 2147483647 }")
    });
    daemon.frozen(|| {
        scan(&lab, "other");
        std::thread::sleep(std::time::Duration::from_millis(300) * slowness());
        assert!(
            lab.banned().is_empty() && lab.set("suspects").is_empty(),
            "an empty list does not mean every interface"
        );
    });
    lab.link("named");
    eventually("the trap contains the interface again", is_trapped);
    let named = daemon.frozen(|| {
        scan(&lab, "other");
        let named = scan(&lab, "named");
        lab.expect_ban(named);
        named
    });
    daemon.expect_line(&format!("attackalert: Host {named} has been blocked"));
    assert_eq!(lab.banned(), [named]);
    daemon.stop();
}

/// A host gets other addresses: the old ones are no longer exempt.
#[test]
fn changed_addresses_are_monitored_and_exempt() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start_armed(&lab, "");
    let banned = lab.provoke_ban("other");
    for host in ["attacker", "other"] {
        lab.victim_ip(&format!("addr flush dev {host}"));
    }
    lab.victim_ip("addr add 10.88.1.1/24 dev attacker");
    lab.victim_ip("addr add fd88::1/64 dev attacker nodad");
    for address in ["10.88.1.2/24", "fd88::2/64"] {
        lab.run("attacker", "ip", &["addr", "add", address, "dev", "uplink", "nodad"]);
    }
    eventually("the new addresses are known", || {
        lab.set_text("allowed").contains("10.88.1.1") && !lab.set_text("allowed").contains("10.77.1.1")
    });
    assert_eq!(lab.banned(), [banned], "bans stay");
    let (own, old): (IpAddr, IpAddr) = ("10.88.1.1".parse().unwrap(), "10.77.1.1".parse().unwrap());
    let mut wire = lab.wire("attacker");
    for source in [own, old] {
        forge(&mut wire, source, own);
    }
    lab.expect_ban(old);
    daemon.expect_line(&format!("attackalert: Host {old} has been blocked"));
    for (source, target) in [("10.88.1.2", "10.88.1.1"), ("fd88::2", "fd88::1")] {
        lab.probe("attacker", source.parse().unwrap(), target.parse().unwrap(), &[901, 902, 903]);
    }
    for source in ["10.88.1.2", "fd88::"] {
        lab.expect_ban(source.parse().unwrap());
    }
    assert!(!lab.banned().contains(&own));
    daemon.stop();
}

/// Runs the program without IPv6, see no-ipv6.c. Features that the namespace does not need are switched off.
fn without_ipv6(lab: &Lab, settings: &str) -> Daemon {
    let (source, wrapper) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fault_injection/no-ipv6.c"), lab.path("no-ipv6"));
    // The compiler is present, because SQLite is built with it.
    let built = Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&wrapper).arg(source).status();
    assert!(built.expect("a C compiler is installed").success());
    lab.sysctl("net.ipv6.conf.all.disable_ipv6=1");
    lab.sysctl("net.ipv6.conf.default.disable_ipv6=1");
    let settings = lab.write("portsentry.toml", settings);
    let arguments = ["--expire", "24h", "--config", settings.to_str().unwrap()];
    Daemon::start_under(lab, &[wrapper.to_str().unwrap()], &arguments)
}

#[test]
fn blocking_works_without_ipv6() {
    let lab = Lab::new(&["attacker", "client"]);
    let daemon = without_ipv6(&lab, "");
    lab.trapped_ports();
    let attacker = daemon.frozen(|| {
        let attacker = scan(&lab, "attacker");
        lab.expect_ban(attacker);
        attacker
    });
    daemon.expect_line(&format!("attackalert: Host {attacker} has been blocked"));
    assert_eq!(lab.ask(&["status"])["running"], true);
    let log = daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn decoys_and_routes_work_without_ipv6() {
    let lab = Lab::new(&["attacker"]);
    let settings = "[tcp]\nmode = \"connect\"\nports = \"901-904\"\n[block]\nmethod = [\"route\", \"nft\"]\n";
    let daemon = without_ipv6(&lab, settings);
    lab.probe_until_banned("attacker", lab.victim_v4("attacker").into());
    daemon.expect_line(&format!("attackalert: Host {} has been blocked via dropped route", lab.v4("attacker")));
    daemon.stop();
}

#[test]
fn flapping_interface_keeps_bans_and_service() {
    let lab = Lab::new(&["attacker", "flapping", "client"]);
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start_armed(&lab, "");
    let attacker = lab.provoke_ban("attacker");
    for _ in 0..20 {
        lab.cut("flapping");
        lab.link("flapping");
    }
    assert!(lab.is_served("client", lab.victim_v4("client").into(), 80, TIMEOUT));
    assert_eq!(lab.banned(), [attacker]);
    lab.probe_until_banned("flapping", lab.victim_v4("flapping").into());
    let errors = daemon.lines_with("ERROR");
    assert!(errors.is_empty(), "{errors:?}");
    daemon.stop();
}

/// Each router that a neighbour invents gives the kernel another default route.
#[test]
fn invented_routers_hide_no_gateway() {
    let lab = Lab::new(&["attacker"]);
    lab.sysctl("net.ipv6.conf.attacker.accept_ra=2");
    let routes = || lab.run("victim", "ip", &["-6", "-o", "route", "show", "default"]).lines().count();
    let mut wire = lab.wire("attacker");
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xff);
    eventually("the router's route is accepted", || {
        wire.advertise(router);
        routes() == 1
    });
    let before = Daemon::start_armed(&lab, "").stop();
    assert!(!before.contains("ERROR"), "{before}");
    for number in 0..2_000_u16 {
        wire.advertise(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xbad, number));
        if number % 100 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    eventually("most routes are accepted", || routes() > 1_000);
    // Starts despite them, and follows changes.
    let daemon = Daemon::start_armed(&lab, "");
    let protected = || lab.ask(&["status"])["protected_networks"].as_u64().unwrap();
    assert!(protected() < 100, "{} networks are protected", protected());
    let is_gateway =
        |address: IpAddr| lab.ask(&["explain", &address.to_string()])["protected"] == "a gateway of this host";
    assert!(is_gateway(router.into()), "the oldest router is still protected");
    let other: IpAddr = "10.77.1.77".parse().unwrap();
    lab.victim_ip("route add 198.51.100.0/24 via 10.77.1.77");
    eventually("another gateway is protected", || is_gateway(other));
    let attacker = scan(&lab, "attacker");
    lab.expect_ban(attacker);
    daemon.stop();
}
