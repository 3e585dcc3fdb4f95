//! Measures how many sources the program bans per second, each by one packet, whether it loses any, and the cost of a
//! packet from a banned source. Compares it with a forked `nft add element` and with a single `nft -f` in the same run.
//! Needs root.
#![cfg(test)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use netns_lab::Lab;
use netns_lab::bench::{self, Cost, Frames, remote_source};
use netns_lab::daemon::Daemon;
use netns_lab::raw::SYN;
use portsentry::enforce::nft::Table;
use portsentry::types::BanTarget;

/// Sources of one measurement.
const SOURCES: u32 = 100_000;
/// Sources of a burst.
const BURST: u32 = 2_000;
/// Packets of the banned source.
const PACKETS: u32 = 1_000_000;
/// Runs of each measurement.
const RUNS: usize = 3;
/// The ceilings are high enough that every ban has its full length.
const SETTINGS: &str = "expire = \"1h\"\n[block]\nmax_new_bans_per_minute = 1000000\nmax_forgeable_bans = 1000000\n[block.nft]\nsize = 262144\n[trap]\ntcp = false\n";
/// The same with the kernel's trap, which bans at the first SYN.
const WITH_TRAP: &str = "expire = \"1h\"\n[detect]\nscan_trigger = 0\n[block]\nmax_new_bans_per_minute = 1000000\nmax_forgeable_bans = 1000000\n\
                         [block.nft]\nsize = 262144\n[trap]\ntcp = true\n";

fn main() {
    let runs = bench::runs(RUNS);
    let (forked, whole): (Vec<f64>, Vec<f64>) = (0..runs).map(|_| baseline()).unzip();
    let base = bench::median(&forked);
    bench::table(
        &format!("Blocks a second, each source by one packet; median of {runs} runs"),
        "what | blocks/s | times a forked nft | lost, at most",
    );
    println!("| `nft add element`, forked for each | {base:.0} | 1 | 0 |");
    let all = bench::median(&whole);
    println!("| `nft -f` of a file with {SOURCES} elements | {all:.0} | {:.0} | 0 |", all / base);
    // No flags: the sensor bans after one packet, and the trap ignores it.
    let (alone, trap) = ((SETTINGS, 0), (WITH_TRAP, SYN));
    for (name, count, pace, mode) in [
        (format!("{BURST} sources at once"), BURST, None, alone),
        (format!("{SOURCES} sources, 25,000 packets/s"), SOURCES, Some(25_000), alone),
        (format!("{SOURCES} sources, 60,000 packets/s"), SOURCES, Some(60_000), alone),
        (format!("{SOURCES} sources, at link speed"), SOURCES, None, alone),
        (format!("trap, {BURST} sources at once"), BURST, None, trap),
        (format!("trap, {SOURCES} sources, at link speed"), SOURCES, None, trap),
    ] {
        let runs: Vec<(f64, usize)> = (0..runs).map(|_| blocks(count, pace, mode)).collect();
        let rate = bench::median(&runs.iter().map(|run| run.0).collect::<Vec<_>>());
        let lost = runs.iter().map(|run| run.1).max().unwrap();
        println!("| portsentry, {name} | {rate:.0} | {:.0} | {lost} |", rate / base);
    }
    bench::table(
        &format!("One source that is blocked already, {PACKETS} packets at link speed; each run"),
        "packets/s | lost by the capture | processor time a packet, µs | lines in the log",
    );
    for _ in 0..runs {
        repeated_packets();
    }
}

/// Bans per second by one process each, and by one process for all.
fn baseline() -> (f64, f64) {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let count = 100;
    let begin = Instant::now();
    for number in 0..count {
        let element = format!("{{ {} timeout 1h }}", remote_source(number));
        lab.inside("victim", || {
            let mut nft = std::process::Command::new("nft");
            assert!(
                nft.args(["add", "element", "inet", "portsentry", "blocked", &element]).status().unwrap().success()
            );
        });
    }
    let forked = f64::from(count) / begin.elapsed().as_secs_f64();
    daemon.stop();
    let mut text = "add element inet portsentry blocked {".to_owned();
    (0..SOURCES).for_each(|number| write!(text, "{} timeout 2h,", remote_source(count + number)).unwrap());
    let file = lab.write("bans.nft", &(text + "}\n"));
    let begin = Instant::now();
    lab.run("victim", "nft", &["-f", file.to_str().unwrap()]);
    (forked, f64::from(SOURCES) / begin.elapsed().as_secs_f64())
}

/// Bans per second from the first packet to the last element, and the number of lost sources.
fn blocks(count: u32, pace: Option<u32>, (settings, flags): (&str, u16)) -> (f64, usize) {
    let lab = Lab::new(&["forger"]);
    let daemon = Daemon::start_configured(&lab, settings, &[]);
    let mut frames = Frames::new(&lab, "forger", flags, (0..count).map(|number| (remote_source(number), 23)));
    let targets: Vec<BanTarget> = (0..count).map(|number| BanTarget::containing(remote_source(number))).collect();
    let begin = Instant::now();
    frames.send(pace);
    let (took, lost) = lab.inside("victim", || {
        let mut table = Table::open().unwrap();
        // Bans are made in the order of the packets; the packet of the last source may be lost.
        let end = &targets[targets.len() - 100..];
        let mut last = (Instant::now(), table.missing(end).unwrap().len());
        while last.1 > 0 && last.0.elapsed() < Duration::from_secs(1) {
            let missing = table.missing(end).unwrap().len();
            if missing != last.1 {
                last = (Instant::now(), missing);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        (last.0 - begin, table.missing(&targets).unwrap().len())
    });
    daemon.kill();
    ((targets.len() - lost) as f64 / took.as_secs_f64(), lost)
}

fn repeated_packets() {
    let lab = Lab::new(&["forger"]);
    let daemon = Daemon::start_configured(&lab, SETTINGS, &[]);
    let mut frames = Frames::new(&lab, "forger", 0, (0..PACKETS).map(|_| (remote_source(1), 23)));
    lab.wire("forger").send(&netns_lab::raw::tcp(remote_source(1), lab.victim_v4("forger").into(), 23, 0));
    lab.expect_ban(remote_source(1));
    let Cost { rate, lost, processor, .. } = bench::cost_of(&lab, &daemon, &mut frames, None);
    let lines = daemon.lines_with("10.128.0.1").len();
    println!("| {rate:.0} | {lost} | {processor:.2} | {lines} |");
    daemon.stop();
}
