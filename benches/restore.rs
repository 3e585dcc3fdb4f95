//! How long the bans are gone: from the start of the program until all that the ledger remembers is in the kernel again, as
//! after a reboot, and from `nft flush ruleset` until the table is there again with all of them. The program itself, in a
//! network namespace. Needs root.
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

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use lab::Lab;
use lab::daemon::Daemon;
use portsentry::enforce::nft::Nft;
use portsentry::engine::subject::{Expiry, Subject};
use portsentry::ledger::{Author, Banned, Ledger, Method};

const BANS: [u32; 3] = [100, 10_000, 100_000];

/// Runs of each measurement.
const RUNS: usize = 5;

fn main() {
    println!("\nUntil all bans are in the kernel again, in milliseconds; median and worst of {RUNS} runs\n");
    println!(
        "| bans | after a start: median | worst | after `nft flush ruleset`: median | worst | put back, at least |"
    );
    println!("|---|---|---|---|---|---|");
    for bans in BANS {
        let runs: Vec<_> = (0..RUNS).map(|_| once(bans)).collect();
        let [started, flushed] = [runs.iter().map(|run| run.0).collect(), runs.iter().map(|run| run.1).collect()];
        let least = runs.iter().map(|run| run.2).min().unwrap();
        println!("| {bans} | {} | {} | {least} |", figures(started), figures(flushed));
    }
}

/// The median and the worst of them, as two cells.
fn figures(mut spans: Vec<Duration>) -> String {
    spans.sort();
    let millis = |span: Option<&Duration>| span.map_or(f64::NAN, |span| span.as_secs_f64() * 1e3);
    format!("{:.0} | {:.0}", millis(spans.get(spans.len() / 2)), millis(spans.last()))
}

/// A start with so many bans in the ledger and none in the kernel, and then a flush: how long each took to be undone, and
/// how many bans the program says that it put back after the flush.
fn once(bans: u32) -> (Duration, Duration, u32) {
    let lab = Lab::new(&["attacker"]);
    let source = |number: u32| Subject::V4(Ipv4Addr::from_bits(10 << 24 | 1 << 20 | number));
    let ban = |number| {
        let expiry = Expiry::After(Duration::from_secs(86_400));
        Banned::wanted_by(Author::Detector, source(number), SystemTime::now(), expiry, Method::Nft)
    };
    let (mut ledger, _) = Ledger::open(&lab.path("state")).unwrap();
    ledger.record(&(0..bans).map(ban).collect::<Vec<_>>()).unwrap();
    drop(ledger);
    let all: Vec<Subject> = (0..bans).map(source).collect();
    let begin = Instant::now();
    let daemon = Daemon::spawn(&lab, &[], &["--expire", "24h"]);
    daemon.expect_line("bans put back from the ledger with the time that they had left: ");
    // Asked one by one, because a dump of many takes longer than what is measured here. The last one first, which is
    // mostly the last to come.
    lab.inside("victim", || {
        let mut nft = Nft::open().unwrap();
        for subject in all.iter().rev() {
            while !matches!(nft.holds(*subject), Ok(Some(_))) {
                assert!(begin.elapsed() < lab::PATIENCE, "{subject} is not put back");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    });
    let started = begin.elapsed();
    let mut flush = lab.command("victim", "nft");
    let mut flush = flush.args(["flush", "ruleset"]).spawn().unwrap();
    assert!(flush.wait().unwrap().success());
    let begin = Instant::now();
    let line = daemon.expect_line("table inet portsentry was gone and is there again");
    let flushed = begin.elapsed();
    let count = line.rsplit(' ').next().and_then(|word| word.parse().ok());
    drop(daemon.stop());
    (started, flushed, count.unwrap())
}
