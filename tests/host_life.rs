//! A short, seeded simulation of hosts' lives (tests/simulation): months of restarts, reboots, mistakes and scans packed into
//! a few days. It judges the excuses and thresholds of the engine and of the kernel's trap together.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use simulation::detector::EngineRules;
use simulation::kernel::KernelRules;
use simulation::outcome::Outcome;
use simulation::picture::svg;
use simulation::replay::replay;
use simulation::{Options, run, run_host};

/// Behaviours whose honest sources are banned today: at most how often in the short run, and the rule that is missing. An
/// entry goes as soon as its figure is 0.
const KNOWN_HONEST_BANS: [(&str, u64); 6] = [
    // After a reboot several services are not up yet, or in a maintenance several are stopped for longer than the two
    // minutes for which a port that was open is remembered. What would excuse it: a memory of the ports that are services here, and time
    // for services to start in.
    ("clients that lost their connections", 48),
    // The same, later.
    ("regular clients", 2),
    // The same, by a source that asks every service.
    ("monitoring", 1),
    // The same, and mistakes of three people within half an hour. What would excuse it: the standing of a source that is served here.
    ("people behind a carrier's NAT", 1),
    // Three closed ports of mail within a second. What would excuse it: ports that belong together count as one.
    ("mail programs that guess ports", 5),
    // A scan, by a neighbour. What would excuse it: sources on the local network are told apart from those of the Internet.
    ("neighbours that look at every device", 4),
];

/// Behaviours that detection does not claim to find.
const KNOWN_MISSED: [&str; 5] = [
    // One packet is no scan of this host.
    "one port of the whole Internet (zmap)",
    // Never more ports within the window than are forgiven.
    "knows the window: a port in 16 minutes",
    // Only reported, unless `detect.ack = "ban"` says otherwise.
    "looks like connections: ACK",
    "looks like connections: FIN/ACK",
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
fn picture_shows_every_behaviour() {
    let picture = svg(&SHORT_RUN);
    let names = SHORT_RUN.honest.keys().chain(SHORT_RUN.dishonest.keys());
    for name in names {
        assert!(picture.contains(&format!(">{name}</text>")), "{name} is not in the picture");
    }
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
}

#[test]
fn same_seed_repeats_packet_by_packet() {
    let few = Options { hosts: 2, span: Duration::from_secs(86_400), ..options() };
    assert_eq!(run_short(&few), run_short(&few));
    assert_ne!(run_short(&few), run_short(&Options { seed: 2, ..few }));
}

#[test]
fn honest_ban_replays_up_to_its_packet() {
    let ban = SHORT_RUN.honest_bans.iter().find(|ban| ban.behaviour == "clients that lost their connections").unwrap();
    let text = replay(&options(), ban.replay.parse().unwrap());
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("BAN of {}", ban.target)) && last.contains(&ban.ports), "{ban:?}\n{text}");
    assert!(text.contains("stops") || text.contains("goes down"), "it shows what happened on the host: {text}");
}

/// What shows that something is amiss.
type Symptom = fn(&Outcome) -> u64;

fn honest_bans(outcome: &Outcome) -> u64 {
    outcome.count_honest_bans(false) as u64
}

/// Bans of the kernel's trap that the program has to lift.
fn let_go(outcome: &Outcome) -> u64 {
    outcome.let_go
}

/// Verdicts on honest sources of protocols that are only logged. What answers is excused by its answer as well.
fn alarms(outcome: &Outcome) -> u64 {
    outcome.honest.values().map(|seen| seen.alarms).sum()
}

/// Bans by forged sources for longer than what the ceiling leaves.
fn long_bans(outcome: &Outcome) -> u64 {
    outcome.dishonest.get("flood from forged sources").map_or(0, |seen| seen.long_bans)
}

/// The simulation can fail: without any single rule it shows more of the symptom than with all of them.
#[test]
fn missing_rule_shows_in_short_run() {
    // A mail server, at a pace at which all of it happens within days.
    let all = Options { pace: 30, ..Options::new(3, 1, Duration::from_secs(60 * 3_600)) };
    let run_mail = |options: &Options| run_host(options, 1, &|| ());
    let engine = |change: fn(&mut EngineRules)| {
        let mut options = all.clone();
        change(&mut options.engine);
        options
    };
    let kernel = |change: fn(&mut KernelRules)| {
        let mut options = all.clone();
        change(&mut options.kernel);
        options
    };
    let cases: [(&str, Options, Symptom); 10] = [
        ("recently open ports", engine(|rules| rules.recent_ports = false), honest_bans),
        // Each of these covers for the others: what answers has a socket, and is remembered for its answer.
        (
            "listeners, look-up and recently open ports",
            engine(|rules| (rules.listeners, rules.socket_lookup, rules.recent_ports) = (false, false, false)),
            honest_bans,
        ),
        ("socket look-up", engine(|rules| rules.socket_lookup = false), alarms),
        ("forgiven ports", engine(|rules| rules.scan_trigger = Some(0)), honest_bans),
        ("bound of forgiven ports", engine(|rules| rules.scan_trigger = Some(15)), Outcome::missed),
        ("length of the window", engine(|rules| rules.window = Some(Duration::from_secs(60))), Outcome::missed),
        ("bound of the window", engine(|rules| rules.window = Some(Duration::from_secs(86_400))), honest_bans),
        ("ceiling of bans", engine(|rules| rules.max_new_bans_per_minute = Some(1_000_000)), long_bans),
        ("socket in the kernel", kernel(|rules| rules.socket = false), let_go),
        ("touched in the kernel", kernel(|rules| rules.touched = false), let_go),
    ];
    let with_all = run_mail(&all);
    let mut failed = false;
    for (rule, options, symptom) in cases {
        let (with, without) = (symptom(&with_all), symptom(&run_mail(&options)));
        println!("without {rule}: {without}, with it: {with}");
        failed |= without <= with;
    }
    assert!(!failed, "without one of these rules nothing got worse; see above");
}
