//! Tests complete hosts in namespaces, each with its daemon and fleet process, and a shared server with TLS: a scanner
//! that one host proves is blocked by all, except targets that they protect.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use netns_lab::daemon::{Daemon, binary};
use netns_lab::fleet::{Engine, Users, key};
use netns_lab::{Lab, Namespace, TIMEOUT, eventually, slowness, soon, within};

use crate::tls;

const REPORT: &str = r#"{"v":1,"class":"connect","ports":7,"grade":"proven","seq":42}"#;

/// Decoys on ten ports, and a threshold of five handshakes for a ban.
const WATCH: &str =
    "[tcp]\nmode = \"connect\"\nports = \"7001-7010\"\n[udp]\nmode = \"off\"\n[detect]\nscan_trigger = 4\n";

/// A host: its network with a scanner of the same address everywhere, its daemon and its fleet process.
struct Host {
    lab: Lab,
    daemon: Daemon,
    fleet: FleetProcess,
}

/// Killed when dropped.
struct FleetProcess(Child);

impl FleetProcess {
    fn start(lab: &Lab) -> Self {
        let mut fleet = lab.command("victim", binary().to_str().unwrap());
        fleet.args(["fleet", "--config"]).arg(lab.path("portsentry.toml")).stdout(Stdio::null()).stderr(Stdio::null());
        Self(fleet.spawn().unwrap())
    }
}

impl Drop for FleetProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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
            engine.users().directory.path().join("ca.pem"),
        );
        let daemon = Daemon::start_configured(&lab, &config, &[]);
        let fleet = FleetProcess::start(&lab);
        Self { lab, daemon, fleet }
    }

    /// Ends both processes and starts them again.
    fn restart(self) -> Self {
        let Self { lab, daemon, fleet } = self;
        drop(fleet);
        daemon.stop();
        let path = lab.path("portsentry.toml");
        let daemon = Daemon::start(&lab, &["--config", path.to_str().unwrap()]);
        let fleet = FleetProcess::start(&lab);
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
    let directory = users.directory.path().to_owned();
    tls::authority(&directory, "ca");
    tls::certificate(&directory, "ca", "IP:10.78.1.2,IP:10.78.2.2,IP:10.78.3.2");
    let (options, network) = (tls::options(&directory), Namespace::with_loopback());
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let engine = Engine::start_in(Some(&network), users, &options);
    (network, engine)
}

/// A report in the name of host a, and its notice.
fn report(engine: &Engine, target: &str, millis: &str) {
    assert_eq!(engine.cli("a", &["SET", &key("a", target), REPORT, "PX", millis]), "OK");
    let notice = format!(r#"{{"v":1,"seq":42,"target":"{target}"}}"#);
    engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", &notice]);
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
        assert!(
            soon(|| host.blocks(scanner)),
            "{}\n{:?}",
            engine.admin(&["KEYS", "*"]),
            host.daemon.lines_with("fleet")
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(5) * slowness(), "{:?}", begun.elapsed());
    let _ = nmap.kill();
    let _ = nmap.wait();
    let target = b.lab.victim_v4("scanner").into();
    assert!(!b.lab.is_served("scanner", target, 7001, Duration::from_secs(1)), "b drops the scanner's packets");
    assert!(!a.blocks(scanner), "the author has its own ban");

    // From the report to the kernel of both others.
    let mut spans = Vec::new();
    for last in 1..=9 {
        let target = format!("198.51.100.{last}");
        let begun = Instant::now();
        report(&engine, &target, "3600000");
        for host in [b, c] {
            assert!(soon(|| host.blocks(target.parse().unwrap())), "{target}: {:?}", host.daemon.lines_with("fleet"));
            spans.push(begun.elapsed());
        }
    }
    spans.sort();
    assert!(spans[spans.len() / 2] < Duration::from_secs(1) * slowness(), "{spans:?}");
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
    let report = |target: &str| report(&engine, target, "3600000");
    for target in [gateway, resolver, own, Ipv4Addr::LOCALHOST.into(), "10.78.2.1".parse().unwrap()] {
        report(&target.to_string());
    }
    report("0.0.0.0/0");
    report("198.51.100.0/24");
    report("198.51.100.7");
    eventually("the valid report is enforced", || b.blocks("198.51.100.7".parse().unwrap()));
    let list = b.lab.nft("list set inet portsentry fleet");
    assert_eq!(list.matches("expires").count(), 1, "{list}");
    // None of these reports became a local ban or a report of host b.
    assert!(b.lab.banned().is_empty() && !engine.admin(&["KEYS", "*"]).contains("ban:b:"));
}

#[test]
fn partitioned_host_keeps_local_protection() {
    let (network, engine) = server();
    let hosts =
        [(1, "a"), (2, "b")].map(|(number, name)| Host::start(number, name, &network, &engine, "single = true"));
    await_members(&engine, 2);
    let [a, b] = &hosts;
    report(&engine, "198.51.100.7", "3600000");
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

#[test]
fn fleet_bans_run_out_without_server() {
    let (network, mut engine) = server();
    let b = Host::start(2, "b", &network, &engine, "single = true");
    await_members(&engine, 1);
    report(&engine, "198.51.100.7", "15000");
    report(&engine, "198.51.100.8", "3600000");
    eventually("both are enforced", || {
        ["198.51.100.7", "198.51.100.8"].iter().all(|one| b.blocks(one.parse().unwrap()))
    });
    engine.kill();
    b.daemon.expect_line("fleet: not connected to the server of lab");
    eventually("the ban runs out", || !b.blocks("198.51.100.7".parse().unwrap()));
    assert!(b.blocks("198.51.100.8".parse().unwrap()), "the server's absence lifts nothing");
    assert!(b.lab.succeed(&["status"]).contains("ALARM: not connected"));
    engine.restart();
    b.daemon.expect_line("fleet: connected to the server of lab");
    assert_eq!(b.daemon.lines_with("fleet: not connected").len(), 1, "one line");
    assert!(b.blocks("198.51.100.8".parse().unwrap()), "an empty server lifts nothing");
}

#[test]
fn stolen_credentials_stay_within_limits() {
    let (network, engine) = server();
    let fill = r#"for i = 0, 99999 do
        redis.call('SET', 'portsentry:lab:ban:a:45.' .. math.floor(i / 65536) .. '.' .. math.floor(i / 256) % 256 .. '.' .. i % 256,
            ARGV[1], 'PX', 3600000) end"#;
    engine.admin(&["EVAL", fill, "0", REPORT]);
    let b = Host::start(2, "b", &network, &engine, "single = true");
    let gateway = b.lab.v4("gateway").to_string();
    b.daemon.expect_line("fleet: a has reported more than 30 targets in an hour");
    for target in [&gateway, "0.0.0.0/0", "::/0", "198.51.100.0/24"] {
        report(&engine, target, "3600000");
    }
    engine.cli("a", &["SET", &key("a", "198.51.100.1"), REPORT]);
    engine.cli("a", &["SET", &key("a", "198.51.100.2"), REPORT, "PX", "90000000"]);
    engine.cli("a", &["SET", &key("a", "198.51.100.3"), "{", "PX", "3600000"]);
    for last in 1..=3 {
        let notice = format!(r#"{{"v":1,"seq":42,"target":"198.51.100.{last}"}}"#);
        engine.cli("a", &["PUBLISH", "portsentry:lab:news:a", &notice]);
    }
    assert!(engine.cli("a", &["SET", &key("c", "198.51.100.4"), REPORT]).starts_with("NOPERM"));
    // A valid report follows, so that all earlier ones have been handled.
    report(&engine, "198.51.100.5", "3600000");
    b.daemon.expect_line("fleet: a report by a is refused: its target is");
    let status = || b.lab.succeed(&["status"]);
    assert!(soon(|| status().contains("key is invalid (")), "the author of malformed keys is named: {}", status());
    assert!(status().contains("a: reported more than 30 targets in an hour"), "{}", status());
    let list = b.lab.nft("list set inet portsentry fleet");
    let bans = list.matches("expires").count();
    assert!((30..=120).contains(&bans), "an hour's worth, four at the start: {bans}");
    assert!(!list.contains("198.51.100.") && !list.contains(&gateway), "{list}");
    assert!(b.lab.banned().is_empty());
}

#[test]
fn lift_outlasts_its_key_and_restart() {
    let (network, engine) = server();
    let b = Host::start(2, "b", &network, &engine, "single = true");
    await_members(&engine, 1);
    let (lifted, other) = ("198.51.100.7".parse().unwrap(), "198.51.100.8".parse().unwrap());
    report(&engine, "198.51.100.7", "3600000");
    eventually("the report is enforced", || b.blocks(lifted));
    let lift = "portsentry:lab:lift:198.51.100.7";
    engine.cli("operator", &["SET", lift, r#"{"v":1}"#, "PX", "3600000"]);
    engine.cli("operator", &["PUBLISH", "portsentry:lab:news:@operator", r#"{"v":1,"seq":1,"target":"198.51.100.7"}"#]);
    eventually("the ban is lifted", || !b.blocks(lifted));
    engine.cli("operator", &["DEL", lift]);
    let b = b.restart();
    report(&engine, "198.51.100.8", "3600000");
    eventually("the scan of the start is over", || b.blocks(other));
    report(&engine, "198.51.100.7", "3600000");
    report(&engine, "198.51.100.9", "3600000");
    eventually("a later report is enforced", || b.blocks("198.51.100.9".parse().unwrap()));
    assert!(!b.blocks(lifted), "the report stands, and so does the lift");
    assert!(b.lab.succeed(&["explain", "198.51.100.7"]).contains("lifted by an operator"));
}
