//! Tests complete hosts in namespaces, each with its daemon and fleet process, and a shared server with TLS: a scanner
//! that one host proves is blocked by all, except targets that they protect.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use netns_lab::daemon::{Daemon, binary};
use netns_lab::{Lab, Namespace, TIMEOUT, eventually, slowness, within};

use crate::engine::{Engine, Users};
use crate::member::key;
use crate::tls;

const REPORT: &str = r#"{"v":1,"class":"connect","ports":7,"grade":"proven","seq":42}"#;

/// Decoys on ten ports, and a threshold of five handshakes for a ban.
const WATCH: &str =
    "[tcp]\nmode = \"connect\"\nports = \"7001-7010\"\n[udp]\nmode = \"off\"\n[detect]\nscan_trigger = 4\n";

/// A host: its network with a scanner of the same address everywhere, its daemon and its fleet process.
struct Host {
    lab: Lab,
    daemon: Daemon,
    fleet: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.fleet.kill();
        let _ = self.fleet.wait();
    }
}

impl Host {
    /// Host number `number` of the fleet, with its own link to the server's network.
    fn start(number: u8, name: &str, server: &Namespace, engine: &Engine, accept: &str) -> Self {
        let lab = Lab::new(&["scanner", "gateway"]);
        lab.victim_ip(&format!("link add fleet type veth peer name host{number} netns {}", server.name()));
        lab.victim_ip(&format!("addr add 10.78.{number}.1/24 dev fleet"));
        lab.victim_ip("link set fleet up");
        server.ip(&format!("addr add 10.78.{number}.2/24 dev host{number}"));
        server.ip(&format!("link set host{number} up"));
        lab.victim_ip(&format!("route add default via {}", lab.v4("gateway")));
        let socket = lab.path("fleet.sock");
        let config = format!(
            "{WATCH}[fleet]\nname = \"lab\"\nhost = \"{name}\"\nurl = \"rediss://10.78.{number}.2:6379\"\nshadow = false\n\
             credentials = {:?}\nca_file = {:?}\nsocket = {socket:?}\n[fleet.accept]\n{accept}\n",
            engine.users().password_file(name),
            engine.users().folder.path().join("ca.pem"),
        );
        let daemon = Daemon::start_configured(&lab, &config, &[]);
        let mut fleet = lab.command("victim", binary().to_str().unwrap());
        fleet.args(["fleet", "--config"]).arg(lab.path("portsentry.toml")).stdout(Stdio::null()).stderr(Stdio::null());
        let fleet = fleet.spawn().unwrap();
        Self { lab, daemon, fleet }
    }

    /// True if the kernel blocks the address because of the fleet.
    fn blocks(&self, address: IpAddr) -> bool {
        let set = if address.is_ipv4() { "fleet" } else { "fleet6" };
        let list = self.lab.command("victim", "nft").args(["list", "set", "inet", "portsentry", set]).output().unwrap();
        String::from_utf8_lossy(&list.stdout).contains(&address.to_string())
    }
}

/// A server with TLS in its own network, for hosts a, b and c.
fn server() -> (Namespace, Engine) {
    let users = Users::new(&["a", "b", "c"]);
    let folder = users.folder.path().to_owned();
    tls::authority(&folder, "ca");
    tls::certificate(&folder, "ca", "IP:10.78.1.2,IP:10.78.2.2,IP:10.78.3.2");
    let (options, network) = (tls::options(&folder), Namespace::with_loopback());
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let engine = Engine::start_in(Some(&network), users, &options);
    (network, engine)
}

fn await_members(engine: &Engine, count: usize) {
    let connected = || engine.admin(&["CLIENT", "LIST"]).lines().filter(|line| line.contains("psub=1")).count();
    eventually("all are connected", || connected() >= count);
}

#[test]
fn proven_scanner_is_blocked_by_all() {
    let (network, engine) = server();
    let hosts = [(1, "a"), (2, "b"), (3, "c")]
        .map(|(number, name)| Host::start(number, name, &network, &engine, "single = true"));
    await_members(&engine, 3);
    let [a, b, c] = &hosts;
    let scanner = IpAddr::from(a.lab.v4("scanner"));
    assert!(!b.blocks(scanner) && b.lab.v4("scanner") == a.lab.v4("scanner"));
    let mut nmap = a.lab.command("scanner", "nmap");
    nmap.args(["-sT", "-n", "-Pn", "-p7001-7010", &a.lab.victim_v4("scanner").to_string()]);
    let mut nmap = nmap.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    a.lab.expect_ban(scanner);
    let begun = Instant::now();
    for host in [b, c] {
        let blocked = within(TIMEOUT, || host.blocks(scanner).then_some(()));
        assert!(blocked.is_some(), "{}\n{:?}", engine.admin(&["KEYS", "*"]), host.daemon.lines_with("fleet"));
    }
    assert!(begun.elapsed() < Duration::from_secs(5) * slowness(), "{:?}", begun.elapsed());
    let _ = nmap.kill();
    let _ = nmap.wait();
    let target = b.lab.victim_v4("scanner").into();
    assert!(!b.lab.is_served("scanner", target, 7001, Duration::from_secs(1)), "b drops the scanner's packets");
    assert!(!a.blocks(scanner), "the author has its own ban");
}

#[test]
fn protected_and_wide_targets_are_never_blocked() {
    let (network, engine) = server();
    let hosts =
        [(1, "a"), (2, "b")].map(|(number, name)| Host::start(number, name, &network, &engine, "single = true"));
    await_members(&engine, 2);
    let [_, b] = &hosts;
    let gateway = IpAddr::from(b.lab.v4("gateway"));
    let resolver: IpAddr = "10.77.255.53".parse().unwrap();
    let own = IpAddr::from(b.lab.victim_v4("scanner"));
    let report = |target: &str| {
        engine.cli("a", &["SET", &key("a", target), REPORT, "PX", "3600000"]);
        let notice = format!(r#"{{"v":1,"seq":42,"target":"{target}"}}"#);
        engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", &notice]);
    };
    for target in [gateway, resolver, own, Ipv4Addr::LOCALHOST.into(), "10.78.2.1".parse().unwrap()] {
        report(&target.to_string());
    }
    report("0.0.0.0/0");
    report("198.51.100.0/24");
    report("198.51.100.7");
    eventually("the valid report is enforced", || b.blocks("198.51.100.7".parse().unwrap()));
    let list = b.lab.run("victim", "nft", &["list", "set", "inet", "portsentry", "fleet"]);
    assert_eq!(list.matches("expires").count(), 1, "{list}");
    // Nothing of it became a ban or report of b's own.
    assert!(b.lab.banned().is_empty() && !engine.admin(&["KEYS", "*"]).contains("ban:b:"));
}

#[test]
fn partitioned_host_keeps_local_protection() {
    let (network, engine) = server();
    let hosts =
        [(1, "a"), (2, "b")].map(|(number, name)| Host::start(number, name, &network, &engine, "single = true"));
    await_members(&engine, 2);
    let [a, b] = &hosts;
    engine.cli("a", &["SET", &key("a", "198.51.100.7"), REPORT, "PX", "3600000"]);
    engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", r#"{"v":1,"seq":42,"target":"198.51.100.7"}"#]);
    eventually("the report is enforced", || b.blocks("198.51.100.7".parse().unwrap()));
    network.ip("link set host2 down");
    b.lab.connect(
        "scanner",
        b.lab.v4("scanner").into(),
        b.lab.victim_v4("scanner").into(),
        &[7001, 7002, 7003, 7004, 7005],
    );
    b.lab.expect_ban(b.lab.v4("scanner").into());
    assert!(b.blocks("198.51.100.7".parse().unwrap()), "the fleet's bans expire by themselves; they are not lifted");
    assert!(!a.blocks(b.lab.v4("scanner").into()));
    network.ip("link set host2 up");
    let blocked = within(TIMEOUT * 3, || a.blocks(b.lab.v4("scanner").into()).then_some(()));
    assert!(blocked.is_some(), "the report arrives after the partition");
}
