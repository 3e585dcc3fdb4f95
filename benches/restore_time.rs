//! Measures how long bans are missing in two cases: from the start of the program until all bans of the ledger are in
//! the kernel, as after a reboot; and from `nft flush ruleset` until the table is restored with all of them. `nft -f`
//! with the same elements is the baseline. Then the same once with a million bans. The program runs in a network
//! namespace. Needs root.
//!
//! `RUNS=1` shortens it, `MILLION=no` omits the second table.
#![cfg(test)]

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use netns_lab::Lab;
use netns_lab::bench;
use netns_lab::daemon::{Daemon, binary};
use portsentry::enforce::nft::Table;
use portsentry::ledger::{BanAuthor, BanRecord, Ledger, LoadedState};
use portsentry::types::{Backend, BanTarget, Expiry};

const BANS: [u32; 3] = [100, 10_000, 100_000];

/// Runs of each measurement, unless `RUNS` is set.
const RUNS: usize = 5;

/// Bans of the second table.
const MILLION: u32 = 1_000_000;

/// The time limit for the second table.
const BOUND: Duration = Duration::from_secs(110);

const DAY: Duration = Duration::from_secs(86_400);

fn main() {
    let runs = bench::runs(RUNS);
    bench::table(
        &format!("Until all bans are in the kernel again, in milliseconds; median and worst of {runs} runs"),
        "bans | `nft -f` with a file: median | worst | after a start: median | worst | \
         after `nft flush ruleset`: median | worst | missing then | `recall`",
    );
    for bans in BANS {
        let runs: Vec<Run> = (0..runs).map(|_| once(bans)).collect();
        let cells = |of: fn(&Run) -> Duration| median_and_worst(runs.iter().map(of));
        let (file, started, flushed) = (cells(|run| run.file), cells(|run| run.started), cells(|run| run.flushed));
        let missing = runs.iter().map(|run| run.missing).max().unwrap();
        let strikes = median_and_worst(runs.iter().map(|run| run.strikes));
        let strikes = strikes.split(" | ").next().unwrap();
        println!("| {bans} | {file} | {started} | {flushed} | {missing} | {strikes} |");
    }
    if std::env::var("MILLION").as_deref() != Ok("no") {
        million();
    }
}

struct Run {
    file: Duration,
    started: Duration,
    flushed: Duration,
    missing: usize,
    strikes: Duration,
}

/// The median and the worst, as two cells.
fn median_and_worst(spans: impl Iterator<Item = Duration>) -> String {
    let millis: Vec<f64> = spans.map(|span| span.as_secs_f64() * 1e3).collect();
    format!("{:.0} | {:.0}", bench::median(&millis), bench::quantile(&millis, 1.0))
}

fn source(number: u32) -> BanTarget {
    BanTarget::V4(Ipv4Addr::from_bits((10 << 24 | 1 << 20) + number))
}

/// Fills a ledger with bans in force; returns how long it takes to read the data for a start.
fn fill_ledger(lab: &Lab, bans: u32) -> Duration {
    let now = SystemTime::now();
    let ban = |number| BanRecord::wanted_by(BanAuthor::Detector, source(number), now, Expiry::After(DAY), Backend::Nft);
    let (mut ledger, _) = Ledger::open(&lab.path("state")).unwrap();
    let all: Vec<u32> = (0..bans).collect();
    for part in all.chunks(50_000) {
        ledger.record(&part.iter().copied().map(ban).collect::<Vec<_>>()).unwrap();
    }
    let begin = Instant::now();
    let restored = LoadedState::read(ledger.reader(), 90 * DAY, now, usize::MAX).unwrap();
    assert_eq!(restored.histories.len(), all.len());
    begin.elapsed()
}

/// `nft -f` with a file of as many elements, in its own network namespace.
fn by_file(lab: &Lab, bans: u32) -> Duration {
    let mut text = String::from(
        "table inet portsentry { set blocked { type ipv4_addr; flags dynamic,timeout; size 131072; }\n}\n\
         add element inet portsentry blocked {\n",
    );
    (0..bans).for_each(|number| writeln!(text, "{} timeout 1d expires 23h,", source(number)).unwrap());
    let path = lab.write("elements.nft", &(text + "}\n"));
    let begin = Instant::now();
    lab.run("attacker", "nft", &["-f", path.to_str().unwrap()]);
    begin.elapsed()
}

/// Waits until the kernel holds all bans; returns how many are missing.
fn missing(lab: &Lab, bans: u32, limit: Duration) -> usize {
    let all: Vec<BanTarget> = (0..bans).map(source).collect();
    let begin = Instant::now();
    // They are looked up one by one, because a dump of many takes longer than the measured time. The last one comes
    // first, because it is usually restored last.
    lab.inside("victim", || {
        let mut table = Table::open().unwrap();
        for (place, target) in all.iter().rev().enumerate() {
            while !matches!(table.time_left(*target), Ok(Some(_))) {
                if begin.elapsed() > limit {
                    return all.len() - place;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        0
    })
}

/// Starts with this many bans in the ledger and none in the kernel, then flushes; returns the time of each restore.
fn once(bans: u32) -> Run {
    let lab = Lab::new(&["attacker"]);
    let strikes = fill_ledger(&lab, bans);
    let file = by_file(&lab, bans);
    let begin = Instant::now();
    let daemon = Daemon::spawn(&lab, &[], &["--expire", "24h"]);
    daemon.expect_line("bans restored from the ledger with their remaining time: ");
    // The last ban of the last part: parts are restored in order. It is polled slowly, because each query delays the
    // restore.
    for last in [source(0), source(bans - 1)] {
        let within_timeout = || begin.elapsed() < netns_lab::TIMEOUT;
        let back = bench::wait_for_ban(&lab, last.element(), Duration::from_millis(2), within_timeout);
        assert!(back, "{last} is not restored");
    }
    let started = begin.elapsed();
    assert_eq!(missing(&lab, bans, netns_lab::TIMEOUT), 0, "bans are missing after the start");
    let begin = Instant::now();
    lab.run("victim", "nft", &["flush", "ruleset"]);
    daemon.expect_line("table inet portsentry was missing and has been created again");
    let flushed = begin.elapsed();
    let missing = missing(&lab, bans, Duration::ZERO);
    drop(daemon.stop());
    Run { file, started, flushed, missing, strikes }
}

/// A million bans: each step once, with its time.
fn million() {
    bench::table("A million bans (`block.nft.size = 1100000`), each step once, in seconds", "step | s");
    let (lab, end) = (Lab::new(&["attacker"]), Instant::now() + BOUND);
    let row = |step: &str, begin: Instant, done: bool| {
        let took = begin.elapsed().as_secs_f64();
        if done { println!("| {step} | {took:.2} |") } else { println!("| {step} | not within {took:.0} |") }
    };
    let begin = Instant::now();
    let strikes = fill_ledger(&lab, MILLION);
    println!(
        "| writing the rows to the ledger, outside of the program | {:.2} |",
        (begin.elapsed() - strikes).as_secs_f64()
    );
    println!("| reading the state that a start needs | {:.2} |", strikes.as_secs_f64());
    let path = lab.write("portsentry.toml", "expire = \"24h\"\n[block.nft]\nsize = 1100000\n");
    let arguments = ["--config", path.to_str().unwrap()];
    let until = |condition: &dyn Fn() -> bool| {
        while !condition() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    };
    let says = |daemon: &Daemon, part: &str| until(&|| !daemon.lines_with(part).is_empty());
    let begin = Instant::now();
    let daemon = Daemon::spawn(&lab, &[], &arguments);
    let done = says(&daemon, "is now active and listening");
    row("start, until it monitors", begin, done);
    let all_back = |daemon: &Daemon| {
        let lines = daemon.lines_with("restored from the ledger with their remaining time: ");
        let counts =
            lines.iter().filter_map(|line| line.split("left: ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
        counts.sum::<u32>() >= MILLION
    };
    let done = until(&|| all_back(&daemon));
    row("start, until all are in the kernel", begin, done);
    let operate = |words: &[&str]| {
        let begin = Instant::now();
        let mut command = lab.command("victim", binary().to_str().unwrap());
        let place = if words[0] == "list" { ("--state-dir", "state") } else { ("--socket", "socket") };
        let output = command.args(words).arg(place.0).arg(lab.path(place.1)).output().unwrap();
        row(&format!("`portsentry {}`", words.join(" ")), begin, output.status.success());
    };
    operate(&["status"]);
    operate(&["list", "--json"]);
    let one = source(4_711).to_string();
    operate(&["list", &one]);
    operate(&["unblock", &one]);
    let begin = Instant::now();
    lab.run("victim", "nft", &["flush", "ruleset"]);
    row("`nft flush ruleset` itself", begin, true);
    let done = says(&daemon, "table inet portsentry was missing and has been created again");
    row("flush, until all are restored", begin, done);
    drop(daemon.end_by(rustix::process::Signal::TERM));
    let begin = Instant::now();
    let daemon = Daemon::spawn(&lab, &[], &arguments);
    let done = says(&daemon, "bans were in the kernel's sets at the start and stay");
    row("start, until the bans in the kernel are adopted", begin, done);
    daemon.kill();
}
