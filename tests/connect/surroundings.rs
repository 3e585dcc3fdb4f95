//! Tests decoys on every port next to other functions of a host: containers, forwarding, connection tracking, filters.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually, raw, slowness};

use crate::every_port::{ALL, exclusive_backlog};

fn attempt(lab: &Lab, host: &str, target: IpAddr, port: u16) -> Result<(), ErrorKind> {
    attempt_within(lab, host, target, port, TIMEOUT)
}

fn attempt_within(lab: &Lab, host: &str, target: IpAddr, port: u16, limit: Duration) -> Result<(), ErrorKind> {
    lab.inside(host, || TcpStream::connect_timeout(&SocketAddr::new(target, port), limit))
        .map(drop)
        .map_err(|error| error.kind())
}

const REFUSED: Result<(), ErrorKind> = Err(ErrorKind::ConnectionRefused);

#[test]
fn published_port_and_forwarded_traffic_are_untouched() {
    let lab = Lab::new(&["client", "container"]);
    lab.sysctl("net.ipv6.conf.all.forwarding=1");
    let (container, target) = (IpAddr::from(lab.v4("container")), IpAddr::from(lab.victim_v4("client")));
    lab.publish(&format!("ip daddr {target} tcp dport 8080"), format_args!("{container}:80"));
    let _listener = lab.inside("container", || TcpListener::bind((container, 80)).unwrap());
    let _six = lab.inside("container", || TcpListener::bind((IpAddr::from(lab.v6("container")), 80)).unwrap());
    let daemon = Daemon::start_armed(&lab, ALL);
    for _ in 0..20 {
        assert_eq!(attempt(&lab, "client", target, 8_080), Ok(()), "the container's port");
        assert_eq!(attempt(&lab, "client", container, 80), Ok(()), "forwarded");
        assert_eq!(attempt(&lab, "client", lab.v6("container").into(), 80), Ok(()), "forwarded");
    }
    assert_eq!(attempt(&lab, "client", container, 81), REFUSED, "a forwarded connection does not reach a decoy");
    assert_eq!(attempt(&lab, "client", lab.v6("container").into(), 81), REFUSED);
    assert_eq!(daemon.lines_with(&format!("Connect from host: {}", lab.v4("client"))), [""; 0]);
    assert!(lab.banned().is_empty());
    assert_eq!(attempt(&lab, "client", target, 8_081), Ok(()), "other ports are decoys");
    daemon.stop();
}

#[test]
fn own_connections_work_from_any_port() {
    let lab = Lab::new(&["server"]);
    let server = IpAddr::from(lab.v4("server"));
    let _listener = lab.inside("server", || TcpListener::bind((server, 80)).unwrap());
    let daemon = Daemon::start_armed(&lab, ALL);
    for _ in 0..100 {
        assert_eq!(attempt(&lab, "victim", server, 80), Ok(()));
    }
    assert_eq!(attempt(&lab, "victim", server, 81), REFUSED);
    assert_eq!(
        attempt(&lab, "victim", lab.victim_v4("server").into(), 81),
        REFUSED,
        "outgoing connections do not reach a decoy"
    );
    daemon.stop();
}

/// Entries of the victim's connection tracking table.
fn tracked(lab: &Lab) -> u32 {
    lab.run("victim", "cat", &["/proc/sys/net/netfilter/nf_conntrack_count"]).trim().parse().expect("a number")
}

/// Without NAT, decoy connections are not tracked, even in a flood; those of services are.
#[test]
fn decoys_stay_out_of_connection_tracking() {
    let _alone = exclusive_backlog();
    let lab = Lab::new(&["client", "forger"]);
    lab.default_route("forger");
    lab.nft(
        "add table inet f; add chain inet f i { type filter hook input priority 0; }; add rule inet f i ct state invalid drop",
    );
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let before = tracked(&lab);
    let target = lab.victim_v4("forger").into();
    let sources = raw::forged(20_000);
    lab.wire("forger").pace(1_000_000, sources.map(|source| raw::tcp(source, target, 901, raw::SYN)));
    lab.connect("client", lab.v4("client").into(), lab.victim_v4("client").into(), &[901, 902]);
    daemon.expect_line("to TCP port: 902");
    assert!(tracked(&lab) < before + 8, "{} entries, {before} before", tracked(&lab));
    assert!(lab.is_served("client", lab.victim_v4("client").into(), 80, TIMEOUT));
    assert!(tracked(&lab) > before, "the service's connection is tracked");
    daemon.stop();
}

/// With NAT, decoy connections are tracked, but fill at most half of the table.
#[test]
fn tracked_decoys_leave_room_in_table() {
    let _alone = exclusive_backlog();
    let lab = Lab::new(&["client", "forger"]);
    lab.default_route("forger");
    lab.nft(
        "add table ip nat; add chain ip nat prerouting { type nat hook prerouting priority dstnat; }; add rule ip nat prerouting tcp dport 1 accept",
    );
    let _services = Services::open(&lab, &[80]);
    let daemon = Daemon::start_armed(&lab, ALL);
    let limits = lab.run("victim", "cat", &["/proc/sys/net/netfilter/nf_conntrack_max"]);
    let burst = limits.trim().parse::<u32>().unwrap() / 4;
    let list = lab.nft("list table inet portsentry");
    assert!(list.contains(&format!("burst {burst} packets return")), "{list}");
    // The same rule with a small limit, which the test's flood exceeds by far.
    let rate = (burst / 120).max(1);
    lab.sysctl("net.ipv4.tcp_syncookies=1");
    daemon.frozen(|| {
        let find = lab.run("victim", "nft", &["-a", "list chain inet portsentry decoy_take"]);
        let line = find.lines().find(|line| line.contains("limit rate over")).unwrap();
        let handle = line.rsplit_once("# handle ").unwrap().1;
        let small = line.replace(&format!("{rate}/second burst {burst}"), "1/second burst 500");
        let small = small.split(" # handle").next().unwrap().trim();
        lab.nft(&format!("replace rule inet portsentry decoy_take handle {handle} {small}"));
        let target = lab.victim_v4("forger").into();
        let sources = raw::forged(5_000);
        lab.wire("forger").pace(1_000_000, sources.map(|source| raw::tcp(source, target, 901, raw::SYN)));
        let states = lab.nft("list chain inet portsentry decoy_take");
        let counted =
            states.split("counter packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u32>().unwrap();
        assert!((500..600).contains(&counted), "{counted} SYNs were accepted");
    });
    assert!(lab.is_served("client", lab.victim_v4("client").into(), 80, TIMEOUT));
    daemon.stop();
}

/// NAT rules that are added while the program runs, as by a container engine that starts later.
#[test]
fn nat_rules_added_later_work() {
    let lab = Lab::new(&["client", "container"]);
    let (container, target) = (IpAddr::from(lab.v4("container")), IpAddr::from(lab.victim_v4("client")));
    let _listener = lab.inside("container", || TcpListener::bind((container, 80)).unwrap());
    let daemon = Daemon::start_armed(&lab, ALL);
    let list = || lab.nft("list table inet portsentry");
    assert!(list().contains("notrack"), "without NAT decoys are not tracked");
    lab.publish(&format!("ip daddr {target} tcp dport 8080"), format_args!("{container}:80"));
    eventually("decoys are tracked", || !list().contains("notrack"));
    assert!(list().contains("limit rate over"), "their number is limited");
    assert_eq!(attempt(&lab, "client", target, 8_080), Ok(()));
    assert_eq!(daemon.lines_with("to TCP port: 8080"), [""; 0], "no decoy has accepted the connection");
    assert_eq!(attempt(&lab, "client", target, 8_081), Ok(()), "decoys still work");
    lab.nft("delete table ip nat");
    eventually("decoys are no longer tracked", || list().contains("notrack"));
    daemon.stop();
}

/// Tables with a filter, and how each chain drops: by its policy or by its last rule.
const FILTERS: [(&str, &str); 3] = [
    ("inet filter input", "policy drop; ct state established accept; tcp dport 22 accept; icmpv6 type != 1 accept"),
    // As ufw ends it.
    ("ip filter INPUT", "policy drop; ct state established accept; tcp dport 22 accept; jump track"),
    (
        "inet firewalld filter_INPUT",
        "policy accept; ct state established accept; icmpv6 type != 1 accept; reject with icmpx admin-prohibited",
    ),
];

#[test]
fn filter_that_silences_decoys_is_named() {
    for (chain, rules) in FILTERS {
        let lab = Lab::new(&["client"]);
        let (table, name) = chain.rsplit_once(' ').unwrap();
        let (policy, rules) = rules.split_once("; ").unwrap();
        let mut text = format!(
            "add table {table}; add chain {table} track; add chain {chain} {{ type filter hook input priority 0; {policy}; }}"
        );
        rules.split("; ").for_each(|rule| text += &format!("; add rule {table} {name} {rule}"));
        lab.nft(&text);
        let target = lab.victim_v4("client").into();
        let path = lab.write("checked.toml", ALL);
        let output = lab.portsentry().arg("check").arg(&path).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let line = match chain {
            "ip filter INPUT" => "iptables-nft -I INPUT -m socket --transparent --nowildcard -j ACCEPT".to_owned(),
            _ => format!("nft insert rule {chain} socket transparent 1 accept"),
        };
        assert!(output.contains(&line), "{output}");
        let daemon = Daemon::start_armed(&lab, ALL);
        let soon = Duration::from_millis(300) * slowness();
        assert!(attempt_within(&lab, "client", target, 901, soon).is_err(), "the filter decides");
        daemon.expect_line(&format!(
            "warning: tcp.mode: decoys cannot answer, because a firewall drops their packets (input chain {chain})"
        ));
        let warnings = || lab.ask(&["status"])["warnings"].to_string();
        assert!(warnings().contains(&line), "{}", warnings());
        let words: Vec<&str> = line.split(' ').collect();
        lab.run("victim", words[0], &words[1..]);
        assert_eq!(attempt(&lab, "client", target, 901), Ok(()), "{chain}");
        eventually("the warning is gone", || !warnings().contains("decoys cannot answer"));
        lab.nft(&format!("flush chain {chain}; {text}"));
        eventually("it is back after a reload of the filter", || warnings().contains(&line));
        daemon.stop();
    }
}

#[test]
fn owned_filter_names_its_setting() {
    let lab = Lab::new(&[]);
    let probe = ["-c", "add table inet firewalld { flags owner; }"];
    if !lab.command("victim", "nft").args(probe).output().unwrap().status.success() {
        return println!("not tested: tables have owners since Linux 5.12");
    }
    // The table exists as long as this process, and no other process may change it.
    let mut owner = lab.command("victim", "nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let table = "table inet firewalld { flags owner; chain filter_INPUT { type filter hook input priority 10; policy drop; }; }\n";
    owner.stdin.as_mut().unwrap().write_all(table.as_bytes()).unwrap();
    let exists = || lab.nft("list tables").contains("firewalld");
    eventually("the table exists", exists);
    let path = lab.write("checked.toml", ALL);
    let check = || {
        let output = lab.portsentry().arg("check").arg(&path).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let hint = "Only its owner may change table inet firewalld: first set NftablesTableOwner=no";
    assert!(check().contains(hint), "{}", check());
    drop(owner.stdin.take());
    owner.wait().unwrap();
    lab.nft(
        "add table inet firewalld; add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy drop; }",
    );
    let output = check();
    assert!(output.contains("decoys cannot answer") && !output.contains("Only its owner"), "{output}");
}

/// A filter that cannot be seen over netlink is noticed by the counters.
#[test]
fn filter_that_cannot_be_read_is_noticed() {
    let lab = Lab::new(&["forger"]);
    lab.default_route("forger");
    let rules = "add table inet f; add chain inet f i { type filter hook input priority 0; }; \
                 add rule inet f i tcp dport 900-1000 tcp dport != 80 drop";
    lab.nft(rules);
    let daemon = Daemon::start_armed(&lab, ALL);
    let target = lab.victim_v4("forger").into();
    let source = lab.v4("forger").into();
    lab.wire("forger").pace(1_000, (901..951).map(|port| raw::tcp(source, target, port, raw::SYN)));
    let line = daemon.expect_line("a firewall drops them");
    assert!(line.contains("SYNs to decoys was answered"), "{line}");
    daemon.stop();
}
