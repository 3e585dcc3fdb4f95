//! Measures what a scanner still learns: how many of eight open ports it knows at the end. nmap runs in one namespace
//! against the program in another, over IPv4 and IPv6, with and without the trap, with two thresholds, and among forged
//! SYNs. The baseline is a host without the program. Needs root.
//!
//! The replies that reach the scanner are counted, which are never fewer than nmap's results: a SYN/ACK, or a reply
//! over UDP. With `-sF`, where an open port is silent, a port counts if one that was probed after it has answered with
//! a reset. A scan is ended shortly after its source is banned: nothing gets through now, and nmap would wait for
//! minutes.
//!
//! `cargo bench --bench ports_learned -- default trap` measures only the rows with all of these words; `-- default -sT`
//! measures them with one kind of scan.
#![cfg(test)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netns_lab::Lab;
use netns_lab::bench::{self, Frames, Scanner};
use netns_lab::daemon::Daemon;
use netns_lab::raw::SYN;
use netns_lab::services::{EIGHT, Services};
use pcap::{Active, Capture};
use portsentry::wire::{self, LinkType, TcpFlags, Transport};

/// Runs of each cell, and of those without the program, which vary little.
const RUNS: usize = 9;
const UNGUARDED: usize = 3;
/// The eight services over UDP: all of them among the hundred ports of `-F`.
const UDP: [u16; 8] = [53, 123, 137, 161, 500, 514, 1900, 5353];
/// How long replies may arrive after the ban.
const AFTER: Duration = Duration::from_millis(150);
/// The time from the beginning of a scan to that of the next one: the ceiling of bans a minute is not reached.
const EVERY: Duration = Duration::from_millis(1_100);
/// The longest duration of a scan.
const LIMIT: Duration = Duration::from_secs(8);
/// The name of a scan, and nmap's arguments.
type Scan = (&'static str, &'static [&'static str]);
const SCANS: [Scan; 5] = [
    ("`-sS -T5 -p1-10000 --max-retries 0`", &["-sS", "-T5", "-p1-10000", "--max-retries", "0"]),
    ("`-sS`", &["-sS"]),
    ("`-sT`", &["-sT"]),
    ("`-sF`", &["-sF"]),
    ("`-sU -F`", &["-sU", "-F"]),
];
/// Forged SYNs per second during the scans of the last setting, each of them from another of a quarter of a million
/// sources.
const FORGED_RATE: u32 = 20_000;
const FORGED_SECONDS: u32 = 12;

/// How the program runs.
#[derive(Clone, Copy)]
struct Setting {
    /// The number of forgiven ports.
    forgiven: u8,
    /// The settings of the trap.
    trap: &'static str,
    /// Forged SYNs arrive at the same time.
    flooded: bool,
}

const fn quiet(forgiven: u8, trap: &'static str) -> Option<Setting> {
    Some(Setting { forgiven, trap, flooded: false })
}

const SETTINGS: [(&str, Option<Setting>); 7] = [
    ("no program", None),
    ("`scan_trigger = 0`", quiet(0, "tcp = false")),
    ("`scan_trigger = 2`", quiet(2, "tcp = false")),
    ("`scan_trigger = 0`, trap", quiet(0, "")),
    ("`scan_trigger = 2`, trap without hold", quiet(2, "hold = \"0s\"")),
    ("`scan_trigger = 2`, trap (default)", quiet(2, "")),
    ("default, among 20,000 forged SYNs/s", Some(Setting { forgiven: 2, trap: "", flooded: true })),
];

fn main() {
    let runs = bench::runs(RUNS);
    let both = |setting: &str, scan: &str| bench::is_selected(&format!("{setting} {scan}"));
    let settings = SETTINGS.iter().filter(|(setting, _)| SCANS.iter().any(|(scan, _)| both(setting, scan)));
    let scans: Vec<&Scan> =
        SCANS.iter().filter(|(scan, _)| SETTINGS.iter().any(|(name, _)| both(name, scan))).collect();
    let tables: Vec<_> = settings.map(|(name, setting)| (*name, guarded(*setting, &scans, runs))).collect();
    for (_, cells) in tables.iter().filter(|(name, _)| *name == SETTINGS[0].0) {
        let known = cells.iter().flatten().all(|learned| bench::median(learned) == 8.0);
        assert!(known, "nmap does not find unprotected ports: {cells:?}");
    }
    println!("\nOpen ports that nmap learns, of eight: median [least to most] and mean of {runs} runs");
    for (number, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let names: Vec<&str> = scans.iter().map(|(name, _)| *name).collect();
        println!("\n| {family} | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
        for (name, cells) in &tables {
            let cells: Vec<_> = cells.iter().map(|families| cell(&families[number])).collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
    println!("\nAgainst no program {} runs.", runs.min(UNGUARDED));
}

fn cell(learned: &[f64]) -> String {
    let [least, median, most] = [0.0, 0.5, 1.0].map(|share| bench::quantile(learned, share));
    let mean = learned.iter().sum::<f64>() / learned.len() as f64;
    format!("{median:.0} [{least:.0} to {most:.0}], mean {mean:.2}")
}

/// What each scan learned in each run, over IPv4 and over IPv6.
fn guarded(setting: Option<Setting>, scans: &[&Scan], runs: usize) -> Vec<[Vec<f64>; 2]> {
    let runs = if setting.is_none() { runs.min(UNGUARDED) } else { runs };
    let names: Vec<String> = (0..runs * scans.len()).map(|number| format!("s{number}")).collect();
    // A new scanner for each run, because a source is banned only once.
    let lab = Lab::new(&names.iter().map(String::as_str).chain(["forger"]).collect::<Vec<_>>());
    // Without this the kernel's ICMP rate limit alone would hide closed UDP ports.
    lab.run("victim", "sysctl", &["-q", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = setting.map(|Setting { forgiven, trap, .. }| {
        let text =
            format!("expire = \"1h\"\n[detect]\nscan_trigger = {forgiven}\n[trap]\n{trap}\n[udp]\nblock = true\n");
        Daemon::start_configured(&lab, &text, &[])
    });
    let stop = AtomicBool::new(false);
    let learned = std::thread::scope(|scope| {
        scope.spawn(|| lab.inside("victim", || echo(&stop)));
        if setting.is_some_and(|setting| setting.flooded) {
            scope.spawn(|| flood(&lab, &stop));
        }
        let one = |(place, (_, arguments)): (usize, &&Scan)| {
            let mut families = [Vec::new(), Vec::new()];
            for run in 0..runs {
                let host = &names[place * runs + run];
                let ends: [(IpAddr, IpAddr); 2] = [
                    (lab.v4(host).into(), lab.victim_v4(host).into()),
                    (lab.v6(host).into(), lab.victim_v6(host).into()),
                ];
                for (family, (source, target)) in families.iter_mut().zip(ends) {
                    family.push(once(&lab, host, (source, target), arguments) as f64);
                }
            }
            families
        };
        let learned = scans.iter().enumerate().map(one).collect();
        stop.store(true, Ordering::Release);
        learned
    });
    if let Some(daemon) = daemon {
        daemon.stop();
    }
    learned
}

/// Sends forged SYNs until `stop` is set.
fn flood(lab: &Lab, stop: &AtomicBool) {
    let mut seconds: Vec<Frames> = (0..FORGED_SECONDS)
        .map(|second| {
            let numbers = second * FORGED_RATE..(second + 1) * FORGED_RATE;
            let packets =
                numbers.map(|number| (bench::remote_source(number), u16::try_from(1 + number % 1_000).unwrap()));
            Frames::new(lab, "forger", SYN, packets)
        })
        .collect();
    while !stop.load(Ordering::Acquire) {
        for frames in &mut seconds {
            frames.send(Some(FORGED_RATE));
        }
    }
}

/// One scan from `source`; returns how many open ports it learned.
fn once(lab: &Lab, host: &str, (source, target): (IpAddr, IpAddr), arguments: &[&str]) -> usize {
    let over = AtomicBool::new(false);
    let mut tap = lab.inside(host, || tap(source));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = Seen::default();
            // Once more after the end, for packets left in the ring.
            loop {
                let last = over.load(Ordering::Acquire);
                let read = tap.dispatch(None, |packet| seen.take(source, packet.data));
                assert!(matches!(read, Ok(_) | Err(pcap::Error::TimeoutExpired)), "{read:?}");
                if last {
                    return seen.learned();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut scanner = Scanner::start(lab, host, target, arguments);
        let begin = Instant::now();
        let goes_on = || scanner.is_running() && begin.elapsed() <= LIMIT;
        let banned = bench::wait_for_ban(lab, source, Duration::from_millis(5), goes_on);
        if banned {
            std::thread::sleep(AFTER);
        }
        drop(scanner);
        std::thread::sleep(EVERY.saturating_sub(begin.elapsed()));
        over.store(true, Ordering::Release);
        reader.join().unwrap()
    })
}

fn tap(source: IpAddr) -> Capture<Active> {
    let tap = Capture::from_device("uplink").unwrap().immediate_mode(true).snaplen(128).buffer_size(16 << 20);
    let mut tap = tap.open().unwrap().setnonblock().unwrap();
    // libpcap's expressions find a transport header in IPv6 only without extension headers.
    tap.filter(&format!("host {source} and (tcp or udp)"), true).unwrap();
    tap
}

/// The packets to a target's ports and the replies from them.
#[derive(Default)]
struct Seen {
    /// The ports probed with a FIN, each with its position in the scan.
    probed: HashMap<u16, usize>,
    /// Ports that answered with a reset.
    closed: HashSet<u16>,
    /// Ports that answered as open.
    open: BTreeSet<(bool, u16)>,
}

impl Seen {
    fn take(&mut self, source: IpAddr, frame: &[u8]) {
        let Ok(packet) = wire::decode(LinkType::Ethernet, frame) else { return };
        let outgoing = packet.source == source;
        match packet.transport {
            Transport::Tcp { destination_port, flags, .. } if outgoing => {
                let position = self.probed.len();
                if flags.has(TcpFlags::FIN) {
                    self.probed.entry(destination_port).or_insert(position);
                }
            }
            Transport::Tcp { source_port, flags, .. } if flags.has(TcpFlags::SYN | TcpFlags::ACK) => {
                self.open.insert((true, source_port));
            }
            Transport::Tcp { source_port, flags, .. } if flags.has(TcpFlags::RST) => {
                self.closed.insert(source_port);
            }
            Transport::Udp { source_port, .. } if !outgoing => {
                self.open.insert((false, source_port));
            }
            _ => {}
        }
    }

    fn learned(&self) -> usize {
        let last = self.closed.iter().filter_map(|port| self.probed.get(port)).max();
        let silent = |port: &&u16| self.probed.get(port) < last && self.probed.contains_key(port);
        self.open.len() + EIGHT.iter().filter(|port| !self.open.contains(&(true, **port))).filter(silent).count()
    }
}

/// Eight UDP services that echo what they receive.
fn echo(stop: &AtomicBool) {
    let sockets = UDP.map(|port| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    });
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Acquire) {
        for socket in &sockets {
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let reply = if length == 0 { &b"?"[..] } else { &buffer[..length] };
                let _ = socket.send_to(reply, peer);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
