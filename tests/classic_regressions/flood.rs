//! Tests floods that would exhaust any memory that grows with remote traffic, and what remains afterwards.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use portsentry::control::client::Client;

use netns_lab::daemon::Daemon;
use netns_lab::raw::{self, SYN, forged};
use netns_lab::services::Services;
use netns_lab::{Lab, TIMEOUT, memory, slowness, soon, within};

/// Number of sources that probe one port each, more than the source table holds (65,536), and of sources that are
/// banned immediately, fewer than the set holds (131,072).
const SUSPECTS: u32 = 250_000;
const SCANNERS: u32 = 60_000;
/// The default of `block.max_new_bans_per_minute`, and the longest ban above it.
const CEILING: usize = 60;
const SHORT: Duration = Duration::from_secs(300);
/// The limit of the program's resident allocated memory, in KiB.
const MAX_RESIDENT_KIB: u64 = 64 << 10;

/// Resident memory in KiB, without the pages of the program's file.
fn resident(daemon: &Daemon) -> u64 {
    memory(daemon.id(), "RssAnon")
}

#[test]
fn flood_of_250000_sources_is_bounded() {
    let lab = Lab::new(&["forger", "scanner", "client"]);
    let services = Services::open(&lab, &[80]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v4("forger").into();
    let mut wire = lab.wire("forger");
    let begin = Instant::now();
    wire.pace(50_000, forged(SUSPECTS).map(|source| raw::tcp(source, target, 23, SYN)));
    wire.pace(50_000, forged(SCANNERS).map(|source| raw::tcp(source, target, 23, 0)));
    assert!(resident(&daemon) < MAX_RESIDENT_KIB, "{} KiB after the flood", resident(&daemon));
    // Packets are judged in order: this scanner's after those of the flood.
    let scanner = lab.provoke_ban("scanner");
    let bans = lab.set("blocked");
    let long = bans.iter().filter(|ban| ban.timeout.is_none_or(|timeout| timeout > SHORT)).count();
    // The flood may span more than one minute.
    let minutes = usize::try_from(begin.elapsed().as_secs() / 60).unwrap();
    assert!(long <= (4 + minutes) * CEILING, "{long} long bans of {}", bans.len());
    assert!(bans.len() <= (5 + minutes) * CEILING, "{} bans, the short ones included", bans.len());
    assert!(bans.iter().any(|ban| ban.address == scanner));
    assert!(lab.is_served("client", lab.victim_v4("client").into(), 80, TIMEOUT));
    drop(services);
    assert!(soon(|| resident(&daemon) < MAX_RESIDENT_KIB), "{} KiB at rest", resident(&daemon));
    daemon.stop();
}

#[test]
fn banned_source_has_one_line() {
    let lab = Lab::new(&["forger", "scanner"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let source = IpAddr::from(Ipv4Addr::new(10, 128, 0, 1));
    let target = lab.victim_v4("forger").into();
    let mut wire = lab.wire("forger");
    wire.pace(50_000, (0..100_000 / slowness()).map(|_| raw::tcp(source, target, 23, 0)));
    lab.expect_ban(source);
    lab.provoke_ban("scanner");
    let lines = daemon.stop().lines().filter(|line| line.contains(&source.to_string())).count();
    // The scan, the ban, and a summary for each minute in which it continued, at most two.
    assert!((2..=4).contains(&lines), "{lines} lines");
}

/// Size of the program's capture ring in bytes, which the kernel maps into the process.
fn ring(daemon: &Daemon) -> u64 {
    let size = |line: &str| {
        let (range, _) = line.split_once(' ').filter(|_| line.contains(" socket:["))?;
        let (begin, end) = range.split_once('-')?;
        Some(u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(begin, 16).ok()?)
    };
    let mapped = || fs::read_to_string(format!("/proc/{}/maps", daemon.id())).ok()?.lines().filter_map(size).max();
    within(TIMEOUT, mapped).expect("the program captures")
}

/// Frames that the program has seen or reported as lost.
fn accounted(lab: &Lab) -> u64 {
    let status = Client::connect(&lab.path("socket")).and_then(|mut client| client.status()).unwrap();
    status.packets.seen + status.packets.dropped
}

#[test]
fn flood_gets_larger_ring_without_loss() {
    let lab = Lab::new(&["forger", "scanner"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let usual = ring(&daemon);
    assert!(usual <= 4 << 20, "{usual} bytes when idle");
    let target = lab.victim_v4("forger").into();
    let source = IpAddr::from(Ipv4Addr::new(10, 128, 0, 1));
    let mut wire = lab.wire("forger");
    let packet = raw::tcp(source, target, 23, SYN);
    let mut sent = 0;
    // The rate depends on the machine and on the tests that run beside this one, so the flood lasts until the rate was
    // high enough for long enough.
    let begin = Instant::now();
    while ring(&daemon) < 16 << 20 {
        assert!(begin.elapsed() < 6 * TIMEOUT, "{} bytes after {sent} packets", ring(&daemon));
        (0..20_000).for_each(|_| wire.send(&packet));
        sent += 20_000;
    }
    (0..20_000).for_each(|_| wire.send(&packet));
    sent += 20_000;
    assert!(soon(|| accounted(&lab) >= sent), "{} of {sent}", accounted(&lab));
    assert_eq!(daemon.lines_with("cannot enlarge the capture's ring buffer"), Vec::<String>::new());
    lab.provoke_ban("scanner");
    daemon.stop();
}
