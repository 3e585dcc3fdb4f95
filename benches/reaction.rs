//! How long a scanner has: from its first probe to the element in the kernel's set, on real packets between two network
//! namespaces, against what a forked `nft add element` takes in the same run. Needs root.
//!
//! The probe's time is the kernel's, taken when it comes in at the victim's interface; the element's time is when somebody
//! else who asks the kernel again and again first sees it there.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a benchmark stops at what goes wrong and prints figures"
)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use lab::Lab;
use lab::daemon::Daemon;
use pcap::{Active, Capture};
use portsentry::enforce::nft::Nft;
use portsentry::engine::subject::Subject;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

/// Runs of each measurement.
const RUNS: u8 = 50;
/// Closed ports that the program watches by default.
const PORTS: [u16; 3] = [23, 110, 445];

fn main() {
    let forked_nft = forked(&[]);
    let shell = forked(&["sh", "-c"]);
    println!("\nFrom the first probe to the ban, in microseconds; {RUNS} runs each\n");
    println!("| what | median | p90 | worst | times faster than a forked nft |");
    println!("|---|---|---|---|---|");
    let base = micros(&forked_nft, 0.5);
    row("`nft add element`, forked, alone", &forked_nft, base);
    row("the same through `sh -c`, as classic PortSentry runs it", &shell, base);
    for (trigger, name) in [("0", "portsentry, first probe blocks"), ("2", "portsentry, two ports forgiven (default)")]
    {
        row(&format!("{name}: first probe to element in the set"), &reaction(trigger), base);
    }
}

fn row(name: &str, spans: &[Duration], base: f64) {
    let [median, ninth, worst] = [0.5, 0.9, 1.0].map(|share| micros(spans, share));
    println!("| {name} | {median:.0} | {ninth:.0} | {worst:.0} | {:.1} |", base / median);
}

/// The span below which this share of them lies, in microseconds.
fn micros(spans: &[Duration], share: f64) -> f64 {
    let mut sorted = spans.to_vec();
    sorted.sort();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into fifty figures")]
    let index = ((sorted.len() - 1) as f64 * share) as usize;
    sorted.get(index).map_or(f64::NAN, |span| span.as_secs_f64() * 1e6)
}

/// Runs of `nft add element` as a process of its own, started directly or by the words of `shell`.
fn forked(shell: &[&str]) -> Vec<Duration> {
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
            start.elapsed()
        };
        (0..RUNS).map(run).collect()
    })
}

/// Runs of the real thing: each from an address of its own, watched from the victim by asking the kernel again and again.
fn reaction(trigger: &str) -> Vec<Duration> {
    let lab = Lab::new(&["attacker"]);
    let sources = lab.add_addresses("attacker", 100..100 + RUNS);
    let daemon = Daemon::start(&lab, &["--scan-trigger", trigger, "--expire", "1h"]);
    let count = usize::from(trigger.parse::<u8>().unwrap()) + 1;
    let ports = PORTS.get(..count).unwrap();
    let spans = sources.into_iter().map(|source| once(&lab, source, ports)).collect();
    drop(daemon.stop());
    spans
}

fn once(lab: &Lab, source: Ipv4Addr, ports: &[u16]) -> Duration {
    let target = lab.victim_v4("attacker");
    let watching = AtomicBool::new(false);
    let (came, seen) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            lab.inside("victim", || {
                let mut nft = Nft::open().unwrap();
                let deadline = Instant::now() + lab::PATIENCE;
                loop {
                    let held = nft.holds(Subject::V4(source)).unwrap().is_some();
                    let now = SystemTime::now();
                    watching.store(true, Ordering::Release);
                    if held {
                        return now;
                    }
                    assert!(Instant::now() < deadline, "{source} is not blocked");
                }
            })
        });
        let mut tap = lab.inside("victim", || tap(source));
        lab.inside("attacker", || {
            let sockets: Vec<_> = ports.iter().map(|_| probe_socket(source)).collect();
            while !watching.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            // The program sleeps by then, as it does on a quiet host.
            std::thread::sleep(Duration::from_millis(20));
            for (socket, port) in sockets.iter().zip(ports) {
                // Nonblocking: the SYN is on its way when this comes back, and nobody waits for an answer.
                let _ = connect(socket, &SocketAddr::new(IpAddr::V4(target), *port));
            }
        });
        let first = tap.next_packet().unwrap().header.ts;
        let micros = Duration::from_micros(u64::try_from(first.tv_sec * 1_000_000 + first.tv_usec).unwrap());
        (SystemTime::UNIX_EPOCH + micros, watcher.join().unwrap())
    });
    seen.duration_since(came).unwrap_or_default()
}

/// A capture of what comes from `source`, for the kernel's time stamps.
fn tap(source: Ipv4Addr) -> Capture<Active> {
    let tap = Capture::from_device("attacker").unwrap().immediate_mode(true).snaplen(64).timeout(1_000);
    let mut tap = tap.open().unwrap();
    tap.filter(&format!("src host {source} and tcp"), true).unwrap();
    tap
}

fn probe_socket(source: Ipv4Addr) -> rustix::fd::OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    bind(&socket, &SocketAddr::from((source, 0))).unwrap();
    socket
}
