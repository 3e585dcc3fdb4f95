//! A short, seeded simulation of hosts' lives (tests/simulation): months of restarts, reboots, mistakes and scans packed into
//! a few days. It judges the excuses and thresholds of the engine and of the kernel's trap together.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use simulation::outcome::Outcome;
use simulation::replay::replay;
use simulation::{Options, run};

/// Behaviours whose honest sources are banned today: at most how often in the short run, and the rule that is missing. An
/// entry goes as soon as its figure is 0.
const KNOWN_HONEST_BANS: [(&str, u64); 5] = [
    // Clients of several services come back while these are still starting after a reboot, or are stopped for longer than
    // the two minutes for which a port that was open is remembered. Missing: a memory of the ports that are services here.
    ("regular clients", 2),
    // The same, by a source that asks every service.
    ("monitoring", 2),
    // The same, and mistakes of three people within half an hour. Missing: weight of a source that this host serves.
    ("people behind a carrier's NAT", 1),
    // Three closed ports of mail within a second. Missing: closed ports that belong together count as one.
    ("mail programs that guess ports", 5),
    // A scan, by a neighbour. Missing: sources on the local network are told apart from those of the Internet.
    ("neighbours that look at every device", 4),
];

/// Behaviours that detection does not claim to find.
const KNOWN_MISSED: [&str; 3] = [
    // One packet is no scan of this host.
    "one port of the whole Internet (zmap)",
    // Never more ports within the window than are forgiven.
    "knows the window: a port in 16 minutes",
    // Ports that are not on the list.
    "knows the list: 20000 to 20100",
];

fn options() -> Options {
    Options { pace: 20, ..Options::new(1, 5, Duration::from_secs(4 * 86_400)) }
}

fn run_short(options: &Options) -> Outcome {
    run(options, || ())
}

static SHORT_RUN: LazyLock<Outcome> = LazyLock::new(|| run_short(&options()));

#[test]
fn honest_behaviour_is_not_banned() {
    let banned = SHORT_RUN.banned_behaviours();
    let known: BTreeMap<&str, u64> = KNOWN_HONEST_BANS.into();
    for (behaviour, bans) in &banned {
        let most = known.get(behaviour).copied().unwrap_or(0);
        assert!(
            *bans <= most,
            "{behaviour}: {bans} honest bans, at most {most} are known\n{:#?}",
            SHORT_RUN.honest_bans
        );
    }
    for (behaviour, _) in KNOWN_HONEST_BANS {
        assert!(banned.contains_key(behaviour), "{behaviour} is not banned any more: remove it from KNOWN_HONEST_BANS");
    }
}

#[test]
fn every_kind_of_scan_is_found() {
    assert!(SHORT_RUN.dishonest.len() >= 24, "{:?}", SHORT_RUN.dishonest.keys());
    for (behaviour, seen) in &SHORT_RUN.dishonest {
        assert!(seen.sources > 0, "{behaviour} did not occur: the run is too short to say anything about it");
        if KNOWN_MISSED.contains(behaviour) {
            assert_eq!(seen.found, 0, "{behaviour} is found: remove it from KNOWN_MISSED");
        } else {
            assert_eq!(seen.found, seen.sources, "{behaviour}: sources that were not found");
        }
    }
}

#[test]
fn same_seed_repeats_packet_by_packet() {
    let few = Options { hosts: 2, ..options() };
    assert_eq!(run_short(&few), run_short(&few));
    assert_ne!(run_short(&few), run_short(&Options { seed: 2, ..few }));
}

#[test]
fn honest_ban_replays_up_to_its_packet() {
    let ban = SHORT_RUN.honest_bans.iter().find(|ban| ban.behaviour == "regular clients").unwrap();
    let text = replay(&options(), ban.replay.parse().unwrap());
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("BAN of {}", ban.target)) && last.contains(&ban.ports), "{ban:?}\n{text}");
    assert!(text.contains("stops") || text.contains("goes down"), "it shows what happened on the host: {text}");
}
