//! Floods from sources that are none.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use crate::lab::daemon::Daemon;
use crate::lab::raw::{self, SYN};
use crate::lab::{Lab, PATIENCE, within};

const PER_SECOND: u32 = 1_000;
/// What `block.max_new_bans_per_minute` is, built in.
const CEILING: usize = 600;
/// How long a ban above the ceiling lasts at most.
const SHORT: Duration = Duration::from_secs(300);

/// Sources that only this lab knows.
fn forged(count: u32) -> impl Iterator<Item = IpAddr> {
    (0..count).map(|number| Ipv4Addr::from_bits(0x0a63_0101 + number).into())
}

#[test]
fn among_a_thousand_forged_syns_a_second_the_real_scanner_is_blocked_and_nobody_else() {
    let lab = Lab::new(&["forger", "scanner"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v4("forger").into();
    let mut wire = lab.wire("forger");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let packets = forged(3 * PER_SECOND).zip((1..=1_000).cycle());
            wire.pace(PER_SECOND, packets.map(|(source, port)| raw::tcp(source, target, port, SYN)));
        });
        std::thread::sleep(Duration::from_secs(1));
        lab.provoke_ban("scanner");
    });
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("scanner"))]);
    let lines = daemon.stop().lines().count();
    assert!(lines < 700, "3,000 strangers are no reason for {lines} lines");
}

#[test]
fn a_burst_of_two_thousand_sources_is_blocked_to_the_last_and_the_log_stays_short() {
    let lab = Lab::new(&["forger"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v4("forger").into();
    // No flag at all: one packet is enough.
    lab.wire("forger").pace(100_000, forged(2_000).map(|source| raw::tcp(source, target, 23, 0)));
    let all = within(PATIENCE, || (lab.set("blocked").len() == 2_000).then_some(()));
    assert!(all.is_some(), "{} of 2,000; {:?}", lab.set("blocked").len(), daemon.lines_with("could not keep up"));
    let log = daemon.stop();
    // As many bans as the ceiling lets last, and as many lines about single events as a minute may have.
    let lines = log.lines().count();
    assert!((CEILING..=2 * CEILING + 20).contains(&lines), "{lines} lines");
}

#[test]
fn a_full_set_under_a_flood_is_said_in_a_bounded_number_of_lines() {
    let lab = Lab::new(&["forger"]);
    let daemon = Daemon::start_configured(&lab, "[block.nft]\nsize = 4\n", &["--expire", "24h"]);
    let target = lab.victim_v4("forger").into();
    // Fewer than a minute may have lines about probes, so that the last one has its own.
    lab.wire("forger").pace(10_000, forged(500).map(|source| raw::tcp(source, target, 23, 0)));
    daemon.expect_line("set inet portsentry blocked is full (4)");
    // A refused ban is slow, but it must not keep the sensor from what comes after.
    let begin = Instant::now();
    let last = forged(501).last().unwrap();
    lab.wire("forger").send(&raw::tcp(last, target, 24, SYN));
    daemon.expect_line(&format!("from host: {last}/{last} to TCP port: 24"));
    assert!(begin.elapsed() < Duration::from_secs(2), "it took {:?} to get there", begin.elapsed());
    assert_eq!(lab.set("blocked").len(), 4);
    let log = daemon.stop();
    let failures = log.matches("could not be blocked").count();
    assert!((1..=60).contains(&failures), "{failures} lines");
}

#[test]
fn a_forged_flood_that_does_enough_to_be_blocked_gets_short_bans_above_the_ceiling() {
    let lab = Lab::new(&["forger", "scanner"]);
    let _daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let target = lab.victim_v4("forger").into();
    let probes = forged(1_500).flat_map(|source| [23, 79, 111].map(|port| raw::tcp(source, target, port, SYN)));
    lab.wire("forger").pace(3 * PER_SECOND, probes);
    lab.expect_ban(lab.provoke_ban("scanner"));
    let bans = lab.set("blocked");
    let long = bans.iter().filter(|ban| ban.timeout.is_none_or(|timeout| timeout > SHORT)).count();
    assert!(long <= CEILING + CEILING / 10, "{long} long bans of {}", bans.len());
    assert!(bans.len() > CEILING, "the flood goes on being blocked, {} sources", bans.len());
}
