//! A million SYNs as fast as a link carries them, from one source and from a quarter of a million forged ones; as many at a
//! steady pace; and a real scanner among forged SYNs. What it costs, what is lost, and whether all is as before afterwards.
//! Against the same flood where no program runs. Needs root.
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
mod support;

use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::daemon::Daemon;
use lab::raw::SYN;
use lab::services::{EIGHT, Services};
use lab::{Lab, PATIENCE};
use portsentry::enforce::nft::Nft;
use portsentry::engine::subject::Subject;
use support::{Frames, stranger};

/// Packets of a flood.
const PACKETS: u32 = 1_000_000;
/// Sources of the forged ones.
const FORGED: u32 = 250_000;
/// Packets a second of the steady flood.
const STEADY: u32 = 240_000;
/// Packets a second among which the real scanner hides.
const AROUND: u32 = 20_000;
/// Runs of each measurement.
const RUNS: usize = 3;
/// How long a ban above the ceiling lasts at most.
const SHORT: Duration = Duration::from_secs(300);

type Packets = fn(u32) -> (IpAddr, u16);

/// The sensor alone: with the trap, it would see the same, but the kernel would answer.
const SETTINGS: &str = "expire = \"24h\"\n[trap]\ntcp = false\n";

fn main() {
    let runs = support::runs(RUNS);
    println!("\nA flood of {PACKETS} SYNs; median of {runs} runs, the memory and the losses of the worst\n");
    println!(
        "| flood | packets/s, no program | packets/s | lost by the capture | processor time for a million packets, s | \
         resident at most, MiB | bans of full length | afterwards as before |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let floods: [(String, Packets, Option<u32>); 4] = [
        ("one source, as fast as it goes".to_owned(), one, None),
        (format!("one source, {STEADY} packets/s"), one, Some(STEADY)),
        (format!("{FORGED} forged sources, as fast as it goes"), forged, None),
        (format!("{FORGED} forged sources, {STEADY} packets/s"), forged, Some(STEADY)),
    ];
    for (name, packets, pace) in floods {
        let alone: Vec<f64> = (0..runs).map(|_| unguarded(packets, pace)).collect();
        let runs: Vec<Run> = (0..runs).map(|_| guarded(packets, pace)).collect();
        let of = |figure: fn(&Run) -> f64| support::median(&runs.iter().map(figure).collect::<Vec<_>>());
        let most = |figure: fn(&Run) -> u64| runs.iter().map(figure).max().unwrap();
        println!(
            "| {name} | {:.0} | {:.0} | {} | {:.2} | {:.1} | {} | {} |",
            support::median(&alone),
            of(|run| run.rate),
            most(|run| run.lost),
            of(|run| run.processor),
            most(|run| run.peak) as f64 / 1024.0,
            most(|run| run.long),
            if runs.iter().all(|run| run.sound) { "yes" } else { "no" }
        );
    }
    println!(
        "\nA real scanner (`nmap -sS`) among {AROUND} forged SYNs a second: from its start to its ban, ms; each run\n"
    );
    println!("| first closed ports to ban | others blocked |");
    println!("|---|---|");
    for _ in 0..runs {
        hidden();
    }
}

fn one(_: u32) -> (IpAddr, u16) {
    (stranger(0), 23)
}

/// Each source asks for four ports in all, one after all the others have asked.
fn forged(number: u32) -> (IpAddr, u16) {
    (stranger(number % FORGED), [23, 79, 111, 512][(number / FORGED) as usize % 4])
}

struct Run {
    rate: f64,
    lost: u64,
    processor: f64,
    peak: u64,
    long: u64,
    sound: bool,
}

fn frames(lab: &Lab, packets: Packets) -> Frames {
    Frames::new(lab, "forger", SYN, (0..PACKETS).map(packets))
}

/// Packets a second where nobody looks at them.
fn unguarded(packets: Packets, pace: Option<u32>) -> f64 {
    let lab = Lab::new(&["forger"]);
    f64::from(PACKETS) / frames(&lab, packets).send(pace).as_secs_f64()
}

fn guarded(packets: Packets, pace: Option<u32>) -> Run {
    let lab = Lab::new(&["forger", "scanner", "client"]);
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let mut frames = frames(&lab, packets);
    let before = support::rest(&lab, &daemon);
    let took = frames.send(pace);
    let after = support::rest(&lab, &daemon);
    let judged = (after.seen - before.seen) as f64;
    let bans = lab.set("blocked");
    let long = bans.iter().filter(|ban| ban.timeout.is_none_or(|timeout| timeout > SHORT)).count();
    let served = lab.is_served("client", lab.victim_v4("client").into(), EIGHT[0], Duration::from_secs(3));
    let sound = served && lab.provoke_ban("scanner") == IpAddr::from(lab.v4("scanner"));
    daemon.stop();
    Run {
        rate: f64::from(PACKETS) / took.as_secs_f64(),
        lost: after.dropped - before.dropped,
        processor: (after.processor - before.processor).as_secs_f64() * 1e6 / judged,
        peak: after.peak,
        long: long as u64,
        sound,
    }
}

fn hidden() {
    let lab = Lab::new(&["forger", "scanner"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    // One SYN each: strangers whom nobody should block.
    let packets = (0..4 * AROUND).map(|number| (stranger(number), u16::try_from(1 + number % 1_000).unwrap()));
    let mut frames = Frames::new(&lab, "forger", SYN, packets);
    let took = std::thread::scope(|scope| {
        scope.spawn(|| frames.send(Some(AROUND)));
        std::thread::sleep(Duration::from_secs(1));
        let mut scanner = lab.command("scanner", "nmap");
        let target = lab.victim_v4("scanner").to_string();
        let mut scanner = scanner.args(["-sS", "-n", "-Pn", &target]).stdout(Stdio::null()).spawn().unwrap();
        let begin = Instant::now();
        let source = Subject::V4(lab.v4("scanner"));
        lab.inside("victim", || {
            let mut nft = Nft::open().unwrap();
            while nft.holds(source).unwrap().is_none() {
                assert!(begin.elapsed() < PATIENCE, "the real scanner is never blocked");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let took = begin.elapsed();
        let _ = scanner.kill();
        scanner.wait().unwrap();
        took
    });
    println!("| {:.0} | {} |", took.as_secs_f64() * 1e3, lab.banned().len() - 1);
    daemon.stop();
}
