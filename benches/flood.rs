//! Measures the costs and losses of floods, and whether the state afterwards is as before. The floods are a million
//! SYNs at link speed, from one source and from a quarter of a million forged ones; as many at a steady rate; and a
//! real scanner among forged SYNs. The same flood without the program is the baseline. Needs root. Answering with
//! resets takes as much time as the rest. So each flood is repeated with a firewall that drops it, without and with the
//! kernel's trap.
//!
//! `cargo bench --bench flood -- forged 240000` measures only the rows with all of these words, and the real scanner.
#![cfg(test)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netns_lab::bench::{self, Cost, Frames, Scanner, remote_source};
use netns_lab::daemon::Daemon;
use netns_lab::raw::SYN;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT};

/// Packets of a flood.
const PACKETS: u32 = 1_000_000;
/// Number of forged sources.
const FORGED: u32 = 250_000;
/// Packets per second of the steady flood.
const STEADY: u32 = 240_000;
/// Packets per second around the real scanner.
const AROUND: u32 = 20_000;
/// The probed ports: closed and monitored.
const PORTS: [u16; 4] = [23, 79, 111, 512];
/// Runs of each measurement.
const RUNS: usize = 3;
/// The maximum length of a ban above the ceiling.
const SHORT: Duration = Duration::from_secs(300);

type Packets = fn(u32) -> (IpAddr, u16);

/// The sensor alone, and with the trap: the sensor sees the same, and the kernel counts and bans as well.
const SETTINGS: &str = "expire = \"24h\"\n[trap]\ntcp = false\n";
const WITH_TRAP: &str = "expire = \"24h\"\n[trap]\ntcp = true\n";

fn main() {
    let runs = bench::runs(RUNS);
    bench::table(
        &format!("A flood of {PACKETS} SYNs; median of {runs} runs, the memory and the losses of the worst"),
        "flood | packets/s, no program | packets/s | lost by the capture | processor time for a million packets, s | \
         resident at most, MiB | bans of full length | afterwards as before",
    );
    let forgers = format!("{FORGED} forged sources");
    let floods: [(&str, Packets); 2] = [("one source", one), (&forgers, forged)];
    let paces = [("as fast as it goes".to_owned(), None), (format!("{STEADY} packets/s"), Some(STEADY))];
    let hosts = [
        ("", false, SETTINGS),
        (", behind a firewall that drops them", true, SETTINGS),
        (", behind a firewall that drops them, trap", true, WITH_TRAP),
    ];
    let all = floods.iter().flat_map(|flood| paces.iter().map(move |pace| (flood, pace)));
    let all = all.flat_map(|(flood, pace)| hosts.map(|host| (flood, pace, host)));
    for ((kind, packets), (how, pace), (host, firewall, settings)) in all {
        let name = format!("{kind}, {how}{host}");
        if !bench::is_selected(&name) {
            continue;
        }
        let flood = Flood { packets: *packets, pace: *pace, firewall, settings };
        let alone: Vec<f64> = (0..runs).map(|_| unguarded(&flood)).collect();
        let runs: Vec<Run> = (0..runs).map(|_| guarded(&flood)).collect();
        let of = |figure: fn(&Run) -> f64| bench::median(&runs.iter().map(figure).collect::<Vec<_>>());
        let most = |figure: fn(&Run) -> u64| runs.iter().map(figure).max().unwrap();
        println!(
            "| {name} | {:.0} | {:.0} | {} | {:.2} | {:.1} | {} | {} |",
            bench::median(&alone),
            of(|run| run.cost.rate),
            most(|run| run.cost.lost),
            of(|run| run.cost.processor),
            most(|run| run.cost.peak) as f64 / 1024.0,
            most(|run| run.long),
            if runs.iter().all(|run| run.sound) { "yes" } else { "no" }
        );
    }
    let hidden_among = format!("among {AROUND} forged SYNs a second: from its start to its ban, ms; each run");
    bench::table(
        &format!("A real scanner (`nmap -sS`) {hidden_among}"),
        "ports of each forged source | first closed ports to ban | others blocked",
    );
    for ports in [1, 4] {
        (0..runs).for_each(|_| hidden(ports));
    }
}

fn one(_: u32) -> (IpAddr, u16) {
    (remote_source(0), PORTS[0])
}

/// Each source probes four ports in total; all sources probe the first port, then all the second, and so on.
fn forged(number: u32) -> (IpAddr, u16) {
    (remote_source(number % FORGED), PORTS[(number / FORGED) as usize % PORTS.len()])
}

struct Flood {
    packets: Packets,
    /// Packets per second.
    pace: Option<u32>,
    /// A firewall drops the packets, so that the host sends no resets.
    firewall: bool,
    /// The program's configuration.
    settings: &'static str,
}

impl Flood {
    fn frames(&self, lab: &Lab) -> Frames {
        if self.firewall {
            let ports: Vec<String> = PORTS.iter().map(u16::to_string).collect();
            let drop = format!("tcp dport {{ {} }} drop", ports.join(", "));
            lab.run("victim", "nft", &["add table inet own"]);
            lab.run("victim", "nft", &["add chain inet own input { type filter hook input priority 0; }"]);
            lab.run("victim", "nft", &["add rule inet own input", &drop]);
        }
        Frames::new(lab, "forger", SYN, (0..PACKETS).map(self.packets))
    }
}

struct Run {
    cost: Cost,
    long: u64,
    sound: bool,
}

/// Packets per second without the program.
fn unguarded(flood: &Flood) -> f64 {
    let lab = Lab::new(&["forger"]);
    f64::from(PACKETS) / flood.frames(&lab).send(flood.pace).as_secs_f64()
}

fn guarded(flood: &Flood) -> Run {
    let lab = Lab::new(&["forger", "scanner", "client"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start_configured(&lab, flood.settings, &[]);
    let mut frames = flood.frames(&lab);
    let cost = bench::cost_of(&lab, &daemon, &mut frames, flood.pace);
    let bans = lab.set("blocked");
    let long = bans.iter().filter(|ban| ban.timeout.is_none_or(|timeout| timeout > SHORT)).count();
    let served = lab.is_served("client", lab.victim_v4("client").into(), EIGHT[0], Duration::from_secs(3));
    let sound = served && lab.provoke_ban("scanner") == IpAddr::from(lab.v4("scanner"));
    daemon.stop();
    Run { cost, long: long as u64, sound }
}

/// Starts a scanner among SYNs of forged sources, each of which probes this many ports.
fn hidden(ports: u32) {
    let lab = Lab::new(&["forger", "scanner"]);
    let daemon = Daemon::start_configured(&lab, WITH_TRAP, &[]);
    let packets =
        (0..4 * AROUND).map(|number| (remote_source(number / ports), u16::try_from(1 + number % 1_000).unwrap()));
    let mut frames = Frames::new(&lab, "forger", SYN, packets);
    let took = std::thread::scope(|scope| {
        scope.spawn(|| frames.send(Some(AROUND)));
        std::thread::sleep(Duration::from_secs(1));
        let _scanner = Scanner::start(&lab, "scanner", lab.victim_v4("scanner").into(), &["-sS"]);
        let begin = Instant::now();
        let within_timeout = || begin.elapsed() < TIMEOUT;
        let banned = bench::wait_for_ban(&lab, lab.v4("scanner").into(), Duration::from_millis(1), within_timeout);
        assert!(banned, "the real scanner was not banned");
        begin.elapsed()
    });
    println!("| {ports} | {:.0} | {} |", took.as_secs_f64() * 1e3, lab.banned().len() - 1);
    daemon.stop();
}
