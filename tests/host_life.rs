//! A short, seeded simulation of hosts' lives (tests/simulation): months of restarts, reboots, mistakes and scans packed into
//! a few days. It judges the excuses and thresholds of the engine and of the kernel's trap together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use simulation::outcome::Outcome;
use simulation::picture::svg;
use simulation::replay::replay;
use simulation::{Options, run, run_host};

/// Behaviours whose honest sources are banned today: at most how often in the short run, and why. An entry goes as soon as
/// its figure is 0.
const KNOWN_HONEST_BANS: [(&str, u64); 2] = [
    // At this pace the service of their session often restarts, and without a connection they are forgiven no more than others.
    ("connected users that try ports", 8),
    // A dozen ports within seconds, by a neighbour: that is a scan, and no program can tell that it is meant well.
    ("neighbours that look at every device", 20),
];

/// Behaviours that detection does not claim to find, or not always.
const KNOWN_MISSED: [&str; 12] = [
    // One packet is no scan of this host.
    "one port of the whole Internet (zmap)",
    // Never more ports within the window than are forgiven.
    "knows the window: a port in 16 minutes",
    "knows connected peers: 7 ports in 35 minutes",
    "forger that holds a victim, two ports",
    // Random ports of a victim that has a connection: eight of them are needed.
    "forger with a victim of choice",
    // Only reported, unless `detect.ack = "ban"` says otherwise.
    "looks like connections: ACK",
    "looks like connections: FIN/ACK",
    // Ports that are not on the list.
    "knows the list: 20000 to 20100",
    // Excused for a week, for two minutes, and while a test or its memory lasts.
    "knows services of long ago",
    "knows ports that listened lately",
    "knows ports of an old test",
    // Where mail is served the three that are closed count as one.
    "knows related ports: mail",
];

fn options() -> Options {
    Options { pace: 40, ..Options::new(1, 6, Duration::from_secs(86_400)) }
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
    assert!(SHORT_RUN.dishonest.len() >= 33, "{:?}", SHORT_RUN.dishonest.keys());
    for (behaviour, seen) in &SHORT_RUN.dishonest {
        assert!(seen.sources > 0, "{behaviour} did not occur: the run is too short to say anything about it");
        if KNOWN_MISSED.contains(behaviour) {
            assert!(seen.found < seen.sources, "{behaviour} is always found: remove it from KNOWN_MISSED");
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
    let ban = SHORT_RUN.honest_bans.iter().find(|ban| !ban.forged).unwrap();
    let text = replay(&options(), ban.replay.parse().unwrap());
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("BAN of {}", ban.target)) && last.contains(&ban.ports), "{ban:?}\n{text}");
    assert!(text.contains("engine: probe, 1 distinct"), "it shows what led to the ban: {text}");
}

/// What shows that something is amiss.
type Symptom = fn(&Outcome) -> u64;

fn honest_bans(outcome: &Outcome) -> u64 {
    outcome.count_honest_bans(false) as u64
}

/// Seconds for which honest sources were banned, be it for forged packets.
fn banned_seconds(outcome: &Outcome) -> u64 {
    outcome.honest_bans.iter().filter_map(|ban| ban.lasts).sum()
}

/// Bans of the kernel's trap that the program has to lift.
fn let_go(outcome: &Outcome) -> u64 {
    outcome.let_go
}

/// Those that it cannot explain.
fn shortened(outcome: &Outcome) -> u64 {
    outcome.shortened
}

/// Verdicts on honest sources of protocols that are only logged. What answers is excused by its answer as well.
fn alarms(outcome: &Outcome) -> u64 {
    outcome.honest.values().map(|seen| seen.alarms).sum()
}

/// Bans by forged sources for longer than what the ceiling leaves.
fn long_bans(outcome: &Outcome) -> u64 {
    outcome.dishonest.get("flood from forged sources").map_or(0, |seen| seen.long_bans)
}

/// Open ports that fast scanners learned.
fn learned(outcome: &Outcome) -> u64 {
    let fast = ["nmap -T5", "nmap -T4", "nmap -T3"].iter().filter_map(|name| outcome.dishonest.get(name));
    fast.flat_map(|seen| &seen.ports_learned).map(|ports| u64::from(*ports)).sum()
}

/// Seconds for which forgers held honest sources.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
fn forged_holds(outcome: &Outcome) -> u64 {
    outcome.honest.values().map(|seen| seen.forged_hold_seconds).sum::<f64>() as u64
}

/// One rule less, or one bound less.
struct Case {
    rule: &'static str,
    /// The kind of host that shows it: its number in the order of the profiles.
    host: u64,
    /// What is switched off in both runs, because it would cover for the rule.
    without: Option<fn(&mut Options)>,
    change: fn(&mut Options),
    symptom: Symptom,
}

const WEB: u64 = 0;
const MAIL: u64 = 1;
const RELAY: u64 = 4;

const fn case(rule: &'static str, host: u64, symptom: Symptom, change: fn(&mut Options)) -> Case {
    Case { rule, host, without: None, change, symptom }
}

const CASES: [Case; 26] = [
    case("recently open ports", MAIL, honest_bans, |all| all.engine.recent_ports = false),
    // Each of these covers for the others: what answers has a socket, and is remembered for its answer.
    case("listeners, look-up and recently open ports", MAIL, honest_bans, |all| {
        (all.engine.listeners, all.engine.socket_lookup, all.engine.recent_ports) = (false, false, false);
    }),
    case("socket look-up", MAIL, alarms, |all| all.engine.socket_lookup = false),
    case("forgiven ports", MAIL, honest_bans, |all| all.engine.scan_trigger = Some(0)),
    case("bound of forgiven ports", MAIL, Outcome::missed, |all| all.engine.scan_trigger = Some(15)),
    case("length of the window", MAIL, Outcome::missed, |all| all.engine.window = Some(Duration::from_secs(60))),
    case("bound of the window", MAIL, honest_bans, |all| all.engine.window = Some(Duration::from_secs(86_400))),
    case("ceiling of bans", MAIL, long_bans, |all| all.engine.max_new_bans_per_minute = Some(1_000_000)),
    case("socket in the kernel", MAIL, let_go, |all| all.kernel.socket = false),
    case("touched in the kernel", MAIL, let_go, |all| all.kernel.touched = false),
    case("bound of the memory of open ports", WEB, Outcome::missed, |all| {
        all.engine.bounds.recent = Duration::from_secs(7 * 86_400);
    }),
    case("memory of open ports of one second", WEB, honest_bans, |all| {
        all.engine.bounds.recent = Duration::from_secs(1);
    }),
    case("remembered services", MAIL, honest_bans, |all| all.daemon.service_memory = false),
    case("bound of remembered services", WEB, Outcome::missed, |all| all.daemon.bounded_services = false),
    case("end of the memory of services", WEB, Outcome::missed, |all| all.daemon.forgets_services = false),
    case("settling", MAIL, honest_bans, |all| all.daemon.settling = false),
    case("bound of settling", MAIL, Outcome::missed, |all| all.daemon.bounded_settling = false),
    case("related ports", MAIL, honest_bans, |all| all.engine.related_ports = false),
    case("bound of related ports", RELAY, Outcome::missed, |all| all.engine.bounds.related = u8::MAX),
    case("connected peers", MAIL, honest_bans, |all| all.daemon.known_peers = false),
    case("bound of connected peers", MAIL, Outcome::missed, |all| {
        (all.engine.bounds.peer_threshold, all.kernel.peer_forgiven) = (u8::MAX, u8::MAX);
    }),
    // Settling leaves nothing to lift.
    Case {
        rule: "lifting of bans",
        host: MAIL,
        without: Some(|all| all.daemon.settling = false),
        change: |all| all.daemon.lifts_unfounded = false,
        symptom: banned_seconds,
    },
    case("excuses of what the trap caught", MAIL, shortened, |all| all.engine.trap_excuses = false),
    case("hold", MAIL, learned, |all| all.kernel.hold = false),
    case("bound of holds", MAIL, forged_holds, |all| all.kernel.max_holds = 1_000_000),
    Case {
        rule: "ceiling of bans that stand",
        host: WEB,
        without: Some(|all| all.engine.max_new_bans_per_minute = Some(1_000_000)),
        change: |all| all.engine.max_forgeable_bans = Some(1_000_000),
        symptom: long_bans,
    },
];

/// The simulation can fail: without any single rule, and without any bound of one, it shows more of a symptom than with all.
#[test]
fn missing_rule_shows_in_short_run() {
    // At a pace at which all of it happens within a day.
    let all = Options { pace: 60, ..Options::new(3, 1, Duration::from_secs(20 * 3_600)) };
    let run_with = |changes: [Option<fn(&mut Options)>; 2], host| {
        let mut options = all.clone();
        changes.into_iter().flatten().for_each(|change| change(&mut options));
        run_host(&options, host, &|| ())
    };
    let whole: BTreeMap<u64, Outcome> = [WEB, MAIL, RELAY].map(|host| (host, run_with([None, None], host))).into();
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Case { rule, host, without, change, symptom } = case;
            let with = match without {
                Some(_) => symptom(&run_with([*without, None], *host)),
                None => symptom(&whole[host]),
            };
            let missing = symptom(&run_with([*without, Some(*change)], *host));
            println!("without {rule}: {missing}, with it: {with}");
            if missing <= with {
                failed.lock().unwrap().push(*rule);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "without {failed:?} nothing got worse; see above");
}
