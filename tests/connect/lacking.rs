//! Tests connect mode on a kernel that lacks an expression of the decoys' rules.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;

use netns_lab::daemon::Daemon;
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, eventually};

/// Privileged and other ports, one of which belongs to a service.
const PORTS: &str = "[tcp]\nmode = \"connect\"\nports = \"901-903,7001-7004\"\n[udp]\nmode = \"off\"\n";

/// Starts the program as on a kernel without the expression `tproxy`, which no-tproxy.c simulates.
fn start_without_tproxy(lab: &Lab) -> Daemon {
    let (source, library) =
        (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/connect/no-tproxy.c"), lab.path("no-tproxy.so"));
    // The compiler is present, because SQLite is built with it.
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(&library).arg(source).status();
    assert!(built.expect("there is a C compiler").success());
    let preload = format!("LD_PRELOAD={}", library.display());
    let configuration = lab.write("portsentry.toml", PORTS);
    let arguments = ["--expire", "24h", "--config", configuration.to_str().expect("temporary paths are text")];
    Daemon::start_under(lab, &["env", &preload], &arguments)
}

/// The TCP ports on which programs of the victim listen.
fn listening(lab: &Lab) -> Vec<u16> {
    let sockets = lab.run("victim", "ss", &["-Hltn"]);
    let ports = sockets.lines().filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':')?.1.parse().ok());
    let mut ports: Vec<u16> = ports.collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn each_port_has_socket_without_tproxy() {
    let lab = Lab::new(&["scanner", "six"]);
    let _services = Services::open(&lab, &[7_002]);
    let daemon = start_without_tproxy(&lab);
    let refused = "connect mode opens one socket per port, because the kernel lacks nft_tproxy or nft_socket";
    let line = daemon.expect_line(refused);
    assert!(line.contains("the kernel refused the rule `meta nfproto ipv4 meta l4proto tcp tproxy ip to"), "{line}");
    assert!(line.contains("No such file or directory") && line.contains("Decoys: nft_fib_inet"), "{line}");
    assert_eq!(listening(&lab), [901, 902, 903, 7_001, 7_002, 7_003, 7_004], "the listener of all ports is closed");
    daemon.expect_line("no decoy is opened on ports that are in use: TCP 7002");

    let table = || lab.nft("list table inet portsentry");
    assert!(!table().contains("decoy"), "{}", table());
    // The first would change the decoys' rules, the second makes the daemon create its table again.
    let nat = "add table ip nat; add chain ip nat prerouting { type nat hook prerouting priority dstnat; }";
    for rules in [nat, "flush ruleset"] {
        lab.nft(rules);
        for (host, target) in
            [("scanner", IpAddr::from(lab.victim_v4("scanner"))), ("six", lab.victim_v6("six").into())]
        {
            let connected = lab.inside(host, || TcpStream::connect_timeout(&SocketAddr::new(target, 901), TIMEOUT));
            assert!(connected.is_ok(), "{host} after {rules}: {connected:?}");
        }
    }
    eventually("the table is back", || lab.nft("list ruleset").contains("blocked6"));
    lab.connect("scanner", lab.v4("scanner").into(), lab.victim_v4("scanner").into(), &[7_001, 902]);
    lab.connect("six", lab.v6("six").into(), lab.victim_v6("six").into(), &[7_001, 902]);
    lab.expect_ban(lab.v4("scanner").into());
    lab.expect_ban(lab.v6_network("six").into());
    assert!(lab.ask(&["list"]).to_string().contains("\"proven\""), "the handshake was completed");
    assert!(!table().contains("decoy"), "{}", table());
    let log = daemon.stop();
    assert_eq!(log.matches(refused).count(), 1, "{log}");
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
}
