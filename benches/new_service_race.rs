//! Measures how long a just started service stays in the kernel's set of trapped ports, and the effect on its first
//! client: twenty services one after another, each with a client that connects immediately. The threshold is zero, so a
//! single probe of a closed port leads to a ban. Needs root.
#![cfg(test)]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use netns_lab::Lab;
use netns_lab::bench;
use netns_lab::daemon::Daemon;
use netns_lab::services::Services;

/// Number of services, each on its own port.
const RUNS: usize = 20;
/// The first of the ports, which the program monitors and traps.
const FIRST: u16 = 700;
const SETTINGS: &str = "expire = \"1h\"\n[detect]\nscan_trigger = 0\n[trap]\ntcp = true\n";

fn main() {
    let runs = bench::runs(RUNS);
    let lab = Lab::new(&["client", "attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let ports: Vec<u16> = (FIRST..).take(runs).collect();
    for port in &ports {
        netns_lab::within(netns_lab::TIMEOUT, || trapped(&lab, *port).then_some(())).expect("the trap is armed");
    }
    let mut services = Vec::new();
    let (mut untrapped, mut served) = (Vec::new(), Vec::new());
    for (number, port) in (0_u32..).zip(&ports) {
        // At different fractions of a second, because the program checks once per second.
        std::thread::sleep(Duration::from_millis(700) + Duration::from_millis(137) * (number % 10));
        services.push(Services::open(&lab, &[*port]));
        let begin = Instant::now();
        let target = SocketAddr::new(lab.victim_v4("client").into(), *port);
        lab.inside("client", || TcpStream::connect_timeout(&target, netns_lab::TIMEOUT)).expect("the service answers");
        served.push(begin.elapsed().as_secs_f64() * 1e3);
        netns_lab::within(netns_lab::TIMEOUT, || (!trapped(&lab, *port)).then_some(()))
            .expect("the port leaves the set");
        untrapped.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let banned = lab.banned().len();
    assert_eq!(lab.provoke_ban("attacker"), std::net::IpAddr::from(lab.v4("attacker")), "the trap is not armed");
    daemon.stop();
    let title = format!("A service that has just started, {runs} of them, in milliseconds");
    bench::table(&title, "what | median | worst");
    for (label, spans) in
        [("until its first client is connected", &served), ("until its port has left `trapped`", &untrapped)]
    {
        println!("| {label} | {:.1} | {:.1} |", bench::median(spans), bench::quantile(spans, 1.0));
    }
    println!("\nClients banned for it: {banned} of {runs}");
}

/// True if the kernel's trap contains this port.
fn trapped(lab: &Lab, port: u16) -> bool {
    let element = format!("{{ {port} }}");
    let mut nft = lab.command("victim", "nft");
    let output = nft.args(["get", "element", "inet", "portsentry", "trapped", &element]).output().expect("nft runs");
    output.status.success()
}
