//! Measures the time from a scanner's packets to the element in the kernel's set, and compares it with a forked `nft
//! add element` in the same run. The packets are real and cross two network namespaces. Needs root.
//!
//! Two clocks are used. The program's own clock runs from the kernel's timestamp of the deciding packet to the kernel's
//! acknowledgement. It is used in many runs, also with busy processors and with noise from other sources. The external
//! clock runs from the same timestamp until another process, which polls the kernel, sees the element.
//!
//! The lower bound is the bare capture: a thread with the sensor's priority receives the same packets and reads the
//! clock.
//!
//! `cargo bench --bench block_latency -- "first probe" busy` measures only the rows with all of these words.
#![cfg(test)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use netns_lab::Lab;
use netns_lab::bench::{self, Frames, remote_source};
use netns_lab::daemon::Daemon;
use netns_lab::raw::SYN;
use pcap::{Active, Capture};
use portsentry::enforce::nft::Table;
use portsentry::types::BanTarget;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// Runs of each measurement by the external clock, and by the program's own.
const RUNS: usize = 50;
const OWN_RUNS: usize = 500;
/// Packets per second of the noise, each from a new source.
const NOISE: u32 = 5_000;
/// Closed ports that the program monitors by default.
const PORTS: [u16; 3] = [23, 110, 445];

fn main() {
    let runs = u8::try_from(bench::runs(RUNS).min(100)).unwrap();
    let forked_nft = forked(&[], runs);
    let shell = forked(&["sh", "-c"], runs);
    bench::table(
        "From the packets to the ban, in microseconds",
        "what | runs | median | p90 | p99 | worst | times faster than a forked nft",
    );
    let base = bench::median(&forked_nft);
    row("`nft add element`, forked, alone", || forked_nft, base);
    row("the same through `sh -c`, as classic PortSentry runs it", || shell, base);
    for (trigger, trap, name) in [
        (0, false, "first probe blocks"),
        (2, false, "two ports forgiven"),
        (0, true, "first probe blocks, trap"),
        (2, true, "two ports forgiven, trap (default)"),
    ] {
        let name = format!("{name}: last probe to element, seen by another process");
        row(&name, || reaction(trigger, trap, runs), base);
    }
    for around in [Around::Quiet, Around::Awake] {
        let name = format!("bare capture, {}: probe to the receiving thread", around.name());
        row(&name, || bare(around), base);
    }
    for (trigger, name) in [(0, "first probe blocks"), (2, "two ports forgiven")] {
        for around in [Around::Quiet, Around::Awake, Around::Noisy] {
            let name = format!("{name}, {}: last probe to acknowledgement", around.name());
            row(&name, || own(trigger, around), base);
        }
    }
}

/// The other load of the machine.
#[derive(Clone, Copy, PartialEq)]
enum Around {
    /// None: each probe wakes a processor.
    Quiet,
    /// Other threads compute on every processor.
    Awake,
    /// Other threads compute, and there is noise on the link.
    Noisy,
}

impl Around {
    fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Awake => "every processor busy",
            Self::Noisy => "noise, every processor busy",
        }
    }

    /// Runs `work` under this load.
    fn during<T>(self, lab: &Lab, work: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if self != Self::Quiet {
                for _ in 0..std::thread::available_parallelism().unwrap().get() {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                    });
                }
            }
            if self == Self::Noisy {
                scope.spawn(|| {
                    let packets = (0..NOISE).map(|number| (remote_source(1_000_000 + number), 23));
                    let mut frames = Frames::new(lab, "noise", SYN, packets);
                    while !over.load(Ordering::Relaxed) {
                        frames.trickle(5, Duration::from_millis(1), &over);
                    }
                });
            }
            let result = work();
            over.store(true, Ordering::Relaxed);
            result
        })
    }
}

/// Captures the same probes without judging them.
fn bare(around: Around) -> Vec<f64> {
    let lab = Lab::new(&["attacker", "noise"]);
    let runs = u32::try_from(bench::runs(OWN_RUNS)).unwrap();
    let mut frames = Frames::new(&lab, "attacker", SYN, (0..runs).map(|run| (remote_source(run), 23)));
    around.during(&lab, || {
        std::thread::scope(|scope| {
            let (ready, opened) = std::sync::mpsc::channel();
            let lab = &lab;
            let waiter = scope.spawn(move || {
                lab.inside("victim", || {
                    use_sensor_priority();
                    let tap = Capture::from_device("attacker").unwrap().immediate_mode(true).snaplen(64);
                    let mut tap = tap.timeout(1_000).open().unwrap();
                    tap.filter("tcp dst port 23", true).unwrap();
                    ready.send(()).unwrap();
                    let mut spans = Vec::new();
                    while spans.len() < runs as usize {
                        let Ok(packet) = tap.next_packet() else { continue };
                        let came = Duration::from_secs(u64::try_from(packet.header.ts.tv_sec).unwrap())
                            + Duration::from_micros(u64::try_from(packet.header.ts.tv_usec).unwrap());
                        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                        spans.push(now.saturating_sub(came).as_secs_f64() * 1e6);
                    }
                    spans
                })
            });
            opened.recv().unwrap();
            frames.trickle(1, Duration::from_millis(10), &AtomicBool::new(false));
            waiter.join().unwrap()
        })
    })
}

/// The sensor's real-time policy, if it is permitted.
fn use_sensor_priority() {
    let _ = set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::try_from(1).unwrap(),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin),
    );
}

/// Measures and prints, unless the command line selects other rows.
fn row(name: &str, measure: impl FnOnce() -> Vec<f64>, base: f64) {
    if !bench::is_selected(name) {
        return;
    }
    let spans = &measure();
    let [median, ninth, late, worst] = [0.5, 0.9, 0.99, 1.0].map(|share| bench::quantile(spans, share));
    let runs = spans.len();
    println!("| {name} | {runs} | {median:.0} | {ninth:.0} | {late:.0} | {worst:.0} | {:.1} |", base / median);
}

fn settings(trigger: u8, trap: bool, more: &str) -> String {
    format!(
        "expire = \"1h\"\n[detect]\nscan_trigger = {trigger}\n[trap]\ntcp = {trap}\n\
         [block]\nmax_new_bans_per_minute = 1000000\nmax_forgeable_bans = 1000000\n{more}"
    )
}

/// The program's own measurement of each ban.
fn own(trigger: u8, around: Around) -> Vec<f64> {
    let lab = Lab::new(&["attacker", "noise"]);
    let file = lab.path("events.json");
    let report = format!("[report]\njson_file = \"{}\"\n", file.display());
    let daemon = Daemon::start_configured(&lab, &settings(trigger, false, &report), &[]);
    let runs = u32::try_from(bench::runs(OWN_RUNS)).unwrap();
    let ports = &PORTS[..=usize::from(trigger)];
    let probes = (0..runs).flat_map(|run| ports.iter().map(move |port| (remote_source(run), *port)));
    let mut frames = Frames::new(&lab, "attacker", SYN, probes);
    around.during(&lab, || {
        // One at a time, when the program sleeps again, as on a quiet host.
        frames.trickle(ports.len(), Duration::from_millis(10), &AtomicBool::new(false));
        let reported = || std::fs::read_to_string(&file).unwrap_or_default().matches("\"reaction_us\"").count();
        let all = netns_lab::within(netns_lab::TIMEOUT, || (reported() >= runs as usize).then_some(()));
        assert!(all.is_some(), "{} of {runs} were banned", reported());
    });
    daemon.stop();
    let text = std::fs::read_to_string(&file).unwrap();
    let times = text.lines().filter_map(|line| line.split_once("\"reaction_us\":")).map(|(_, rest)| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    });
    times.collect()
}

/// Runs `nft add element` as a separate process, started directly or by the words of `shell`.
fn forked(shell: &[&str], runs: u8) -> Vec<f64> {
    let lab = Lab::new(&["attacker"]);
    let _daemon = Daemon::start(&lab, &[]);
    lab.inside("victim", || {
        let run = |run: u8| {
            let element = format!("add element inet portsentry blocked {{ 192.0.2.{run} timeout 1h }}");
            let mut command = match shell {
                [program, words @ ..] => {
                    let mut command = Command::new(program);
                    command.args(words).arg(format!("nft '{element}'"));
                    command
                }
                [] => {
                    let mut command = Command::new("nft");
                    command.arg(element);
                    command
                }
            };
            let start = Instant::now();
            assert!(command.status().unwrap().success());
            start.elapsed().as_secs_f64() * 1e6
        };
        (0..runs).map(run).collect()
    })
}

/// Runs with the real program: each scan has a new address, and the victim polls the kernel.
fn reaction(trigger: u8, trap: bool, runs: u8) -> Vec<f64> {
    let lab = Lab::new(&["attacker"]);
    let sources = lab.add_addresses("attacker", 100..100 + runs);
    let daemon = Daemon::start_configured(&lab, &settings(trigger, trap, ""), &[]);
    let ports = &PORTS[..=usize::from(trigger)];
    let spans = sources.into_iter().map(|source| once(&lab, source, ports).as_secs_f64() * 1e6).collect();
    daemon.stop();
    spans
}

fn once(lab: &Lab, source: Ipv4Addr, ports: &[u16]) -> Duration {
    let target = lab.victim_v4("attacker");
    let watching = AtomicBool::new(false);
    let (came, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            lab.inside("victim", || {
                // Otherwise the scheduling of the watcher would be measured.
                use_sensor_priority();
                let mut table = Table::open().unwrap();
                let deadline = Instant::now() + netns_lab::TIMEOUT;
                loop {
                    let held = table.time_left(BanTarget::V4(source)).unwrap().is_some();
                    let now = SystemTime::now();
                    watching.store(true, Ordering::Release);
                    if held {
                        return now;
                    }
                    assert!(Instant::now() < deadline, "{source} is not banned");
                }
            })
        });
        let mut tap = lab.inside("victim", || tap(source));
        lab.inside("attacker", || {
            let sockets: Vec<_> = ports.iter().map(|_| probe_socket(source)).collect();
            while !watching.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            // The program sleeps by then, as on a quiet host.
            std::thread::sleep(Duration::from_millis(20));
            for (socket, port) in sockets.iter().zip(ports) {
                // Nonblocking: the SYN has been sent on return, and nothing waits for a reply.
                let _ = connect(socket, &SocketAddr::new(IpAddr::V4(target), *port));
            }
        });
        let stamps = ports.iter().map(|_| tap.next_packet().unwrap().header.ts);
        let last = stamps.last().unwrap();
        let micros = Duration::from_micros(u64::try_from(last.tv_sec * 1_000_000 + last.tv_usec).unwrap());
        (SystemTime::UNIX_EPOCH + micros, watcher.join().unwrap())
    });
    seen.duration_since(came).unwrap_or_default()
}

/// A capture of the packets from `source`, for the kernel's timestamps.
fn tap(source: Ipv4Addr) -> Capture<Active> {
    let tap = Capture::from_device("attacker").unwrap().immediate_mode(true).snaplen(64).timeout(1_000);
    let mut tap = tap.open().unwrap();
    tap.filter(&format!("src host {source} and tcp[tcpflags] == tcp-syn"), true).unwrap();
    tap
}

fn probe_socket(source: Ipv4Addr) -> rustix::fd::OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    bind(&socket, &SocketAddr::from((source, 0))).unwrap();
    socket
}
