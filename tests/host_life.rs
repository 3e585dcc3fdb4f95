//! Runs a short, seeded simulation of hosts (tests/simulation): months of restarts, reboots, mistakes and scans within
//! a few days. It tests the exceptions and thresholds of the engine and of the kernel's trap together.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use simulation::outcome::Outcome;
use simulation::picture::svg;
use simulation::replay::{Position, replay};
use simulation::{Options, run, run_host};

/// Behaviours that are never detected, by design.
const NEVER_FOUND: [&str; 9] = [
    // A single packet is not a scan of this host.
    "one port of the whole Internet (zmap)",
    // Within any window it probes no more ports than every source is forgiven.
    "knows the window: a port in 16 minutes",
    // Only reported, unless `detect.ack = "ban"` is set: late packets of closed connections look the same.
    "looks like connections: ACK",
    "looks like connections: FIN/ACK",
    // Only ports that mail programs guess, as every mail program with a wrong host name does.
    "knows related ports: mail alone",
    // Ports that are not monitored.
    "knows the list: 20000 to 20100",
    // Only reported, unless `udp.block` is set: the source of a datagram is easily forged.
    "nmap -sU",
    "nmap -sU -T1",
    "nmap -sU --max-retries 0",
];

/// Behaviours that are detected on some hosts or at some times only, by design.
const SOMETIMES_FOUND: [&str; 5] = [
    // Within any window it probes no more ports than a connected source is forgiven. It is detected when its connection
    // ends.
    "knows connected peers: 7 ports in 35 minutes",
    // Two ports are forgiven. It is detected if its victim made a mistake meanwhile, or is banned.
    "forger that holds a victim, two ports",
    // Services are remembered for a week. It is detected if the host never had them, or longer ago.
    "knows services of long ago",
    // It is not detected while the program runs, when the ports are open.
    "knows ports of a user's program",
    // On a mail server closed mail ports count as one, and one more port is forgiven. It is detected on all other
    // hosts.
    "knows related ports: mail",
];

fn options() -> Options {
    Options { pace: 40, ..Options::new(1, 7, Duration::from_secs(86_400)) }
}

fn run_short(options: &Options) -> Outcome {
    run(options, || ())
}

static SHORT_RUN: LazyLock<Outcome> = LazyLock::new(|| run_short(&options()));

#[test]
fn honest_behaviour_is_not_banned() {
    let banned = SHORT_RUN.banned_behaviours();
    assert!(banned.is_empty(), "{banned:?}\n{:#?}", SHORT_RUN.honest_bans);
}

/// An inventory probes a dozen ports of every device: that is a scan, and its purpose cannot be known.
#[test]
fn inventory_is_banned_unless_allowed() {
    let outcome = run_host(&INVENTORIES.options(), INVENTORIES.host, &|| ());
    let [seen] = outcome.authorised.values().collect::<Vec<_>>()[..] else { panic!("{:?}", outcome.authorised) };
    assert!(seen.sources > 5 && seen.bans * 2 > seen.sources, "some sources are banned already: {seen:?}");
    assert_eq!(outcome.count_honest_bans(false), 0, "it is counted apart");
    let mut options = INVENTORIES.options();
    options.engine.allows_lan = true;
    let outcome = run_host(&options, INVENTORIES.host, &|| ());
    assert!(outcome.authorised.values().all(|seen| seen.bans == 0 && seen.refused == 0), "{:?}", outcome.authorised);
}

#[test]
fn every_kind_of_scan_is_found() {
    assert!(SHORT_RUN.dishonest.len() >= 33, "{:?}", SHORT_RUN.dishonest.keys());
    for (behaviour, seen) in &SHORT_RUN.dishonest {
        assert!(seen.sources > 0, "{behaviour} did not occur: the run is too short");
        if NEVER_FOUND.contains(behaviour) {
            assert_eq!(seen.found, 0, "{behaviour} is detected: remove it from NEVER_FOUND");
        } else if SOMETIMES_FOUND.contains(behaviour) {
            assert!(seen.found > 0, "{behaviour} is never detected");
            assert!(seen.found < seen.sources, "{behaviour} is always detected: remove it from SOMETIMES_FOUND");
        } else {
            assert_eq!(seen.found, seen.sources, "{behaviour}: not detected: {:?}", seen.missed);
        }
    }
}

#[test]
fn picture_shows_every_behaviour() {
    let picture = svg(&SHORT_RUN);
    let names = SHORT_RUN.honest.keys().chain(SHORT_RUN.authorised.keys()).chain(SHORT_RUN.dishonest.keys());
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
    let mut options = OUTAGES.options();
    (options.daemon.service_memory, options.engine.related_ports) = (false, false);
    let outcome = run_host(&options, OUTAGES.host, &|| ());
    let ban = outcome.honest_bans.iter().find(|ban| !ban.forged).unwrap();
    let text = replay(&options, ban.replay.parse().unwrap());
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("BAN of {}", ban.target)) && last.contains(&ban.ports), "{ban:?}\n{text}");
    assert!(text.contains("stops") || text.contains("goes down"), "the replay shows events of the host: {text}");
    assert!(text.contains("engine: probe, 1 distinct"), "the replay shows the cause of the ban: {text}");
}

/// Sources that probed a booting host are judged without a packet of theirs.
#[test]
fn late_ban_replays_up_to_its_verdict() {
    let scenario = scenario(MAIL, 200, 6, &["reboot", "broken boot"]);
    let mut options = scenario.options();
    (options.daemon.service_memory, options.engine.related_ports) = (false, false);
    options.daemon.stores_listeners = false;
    let outcome = run_host(&options, scenario.host, &|| ());
    let bans: Vec<_> = outcome.honest_bans.iter().filter(|ban| !ban.forged).take(4).collect();
    let mut late = 0;
    for ban in bans {
        let text = replay(&options, ban.replay.parse().unwrap());
        let last = text.lines().last().unwrap_or_default();
        assert!(last.contains(&format!("BAN of {}", ban.target)) && last.contains(&ban.ports), "{ban:?}\n{text}");
        let probes = text.matches("engine: probe").count() + text.matches("BAN of").count();
        assert!(probes > 2, "the replay shows the probes of the source: {text}");
        late += u32::from(last.contains("waited while the host settled"));
    }
    assert!(late > 0, "{:#?}", outcome.honest_bans);
}

#[test]
fn missed_scan_replays_up_to_its_end() {
    let outcome = run_host(&SLOW_SCAN.options(), SLOW_SCAN.host, &|| ());
    assert_eq!(outcome.missed(), 0);
    let mut options = SLOW_SCAN.options();
    options.engine.scan_trigger = Some(15);
    let outcome = run_host(&options, SLOW_SCAN.host, &|| ());
    let seen = outcome.dishonest.values().next().unwrap();
    let text = replay(&options, seen.missed[0].parse().unwrap());
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains("knows the window") && last.contains("engine: "), "{text}");
    assert!(!text.contains("BAN of"), "the scan was not detected: {text}");
}

#[test]
fn scans_of_stopped_host_are_not_counted() {
    // The host is off most of the time: an hour of scans between two boots.
    let options =
        Options { pace: 4_000, only: &["reinstallation", "FIN"], ..Options::new(1, 1, Duration::from_secs(86_400)) };
    let outcome = run_host(&options, WEB, &|| ());
    let seen = &outcome.dishonest["FIN"];
    assert!(seen.packets > 0 && seen.sources > 0, "{seen:?}");
    assert_eq!(seen.found, seen.sources, "scans of a stopped host do not count: {:?}", seen.missed);
}

/// A number that increases if a rule is missing.
type Symptom = fn(&Outcome) -> u64;

fn honest_bans(outcome: &Outcome) -> u64 {
    outcome.count_honest_bans(false) as u64
}

/// Bans of scanners that ended early because a service started on their ports.
fn freed_scanners(outcome: &Outcome) -> u64 {
    outcome.dishonest.values().map(|seen| seen.freed).sum()
}

/// Seconds for which honest sources were banned, including bans caused by forged packets.
fn banned_seconds(outcome: &Outcome) -> u64 {
    outcome.honest_bans.iter().filter_map(|ban| ban.lasts).sum()
}

/// Bans of the kernel's trap that the program has to lift.
fn lifted_trap_bans(outcome: &Outcome) -> u64 {
    outcome.let_go
}

/// Bans of the kernel's trap that the program cannot explain.
fn shortened(outcome: &Outcome) -> u64 {
    outcome.shortened
}

/// Log-only verdicts on honest sources. A source that answers is also exempt because of its answer.
fn alarms(outcome: &Outcome) -> u64 {
    outcome.honest.values().map(|seen| seen.alarms).sum()
}

/// Bans of forged sources that are longer than the ceiling allows.
fn long_bans(outcome: &Outcome) -> u64 {
    outcome.dishonest.get("flood from forged sources").map_or(0, |seen| seen.long_bans)
}

/// Open ports that fast scanners learned.
fn learned_ports(outcome: &Outcome) -> u64 {
    let fast = ["nmap -T5", "nmap -T4", "nmap -T3"].iter().filter_map(|name| outcome.dishonest.get(name));
    fast.flat_map(|seen| &seen.ports_learned).map(|ports| u64::from(*ports)).sum()
}

/// Seconds for which forgers held honest sources.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
fn forged_holds(outcome: &Outcome) -> u64 {
    outcome.honest.values().map(|seen| seen.forged_hold_seconds).sum::<f64>() as u64
}

/// A rule or limit that is switched off, and a small scenario that shows the effect.
struct Case {
    rule: &'static str,
    symptom: Symptom,
    scenario: Scenario,
    /// A rule that is switched off in both runs, because it would have the same effect.
    without: Option<fn(&mut Options)>,
    change: fn(&mut Options),
}

#[derive(Clone, Copy)]
struct Scenario {
    /// The kind of host: its index in the list of profiles.
    host: u64,
    pace: u32,
    days: u64,
    only: &'static [&'static str],
}

impl Scenario {
    fn options(&self) -> Options {
        let span = Duration::from_secs(self.days * 86_400);
        Options { pace: self.pace, only: self.only, ..Options::new(3, 1, span) }
    }
}

const WEB: u64 = 0;
const MAIL: u64 = 1;
const CONTAINERS: u64 = 2;
const HOME: u64 = 3;
const RELAY: u64 = 4;
const VOICE: u64 = 5;
const WORKSTATION: u64 = 6;

const fn scenario(host: u64, pace: u32, days: u64, only: &'static [&'static str]) -> Scenario {
    Scenario { host, pace, days, only }
}

const fn case(rule: &'static str, symptom: Symptom, scenario: Scenario, change: fn(&mut Options)) -> Case {
    Case { rule, symptom, scenario, without: None, change }
}

const fn covered(case: Case, without: fn(&mut Options)) -> Case {
    Case { without: Some(without), ..case }
}

const SHORT_SERVICES: Scenario = scenario(WEB, 100, 5, &["short services"]);
const NEW_SERVICES: Scenario = scenario(WEB, 40, 5, &["new services"]);
const VISITS: Scenario = scenario(MAIL, 1, 1, &["regular client"]);
const SLIPS: Scenario = scenario(WEB, 1, 6, &["carrier NAT"]);
const SLOW_SCAN: Scenario = scenario(WEB, 60, 3, &["knows the window: a port in 14 minutes"]);
const FLOOD: Scenario = scenario(WEB, 60, 1, &["flood"]);
const FLOODS: Scenario = scenario(WEB, 200, 1, &["flood"]);
const OUTAGES: Scenario = scenario(MAIL, 60, 2, &["maintenance", "restart of all", "monitor", "pool"]);
const REINSTALLED: Scenario = scenario(MAIL, 100, 3, &["reinstallation", "monitor", "pool"]);
const INVENTORIES: Scenario = scenario(HOME, 60, 5, &["inventory"]);
const INTERRUPTED: Scenario = scenario(MAIL, 200, 3, &["user at work", "reboot"]);
const SHORT_AND_SCANNED: Scenario = scenario(WEB, 60, 5, &["short services", "knows ports that listened lately"]);
const MAIL_PROGRAMS: Scenario = scenario(RELAY, 400, 2, &["mail program"]);

const CASES: [Case; 48] = [
    case("recently open ports", honest_bans, SHORT_SERVICES, |all| all.engine.recent_ports = false),
    // These rules have the same effect: a source that answers has a socket, and its answer is remembered.
    covered(case("listeners", honest_bans, VISITS, |all| all.engine.listeners = false), |all| {
        (all.engine.socket_lookup, all.engine.recent_ports, all.engine.related_ports) = (false, false, false)
    }),
    case("socket look-up", alarms, NEW_SERVICES, |all| all.engine.socket_lookup = false),
    // Users behind a carrier's NAT nearly always have a connection.
    covered(case("forgiven ports", honest_bans, SLIPS, |all| all.engine.scan_trigger = Some(0)), |all| {
        all.daemon.known_peers = false;
    }),
    case("bound of forgiven ports", Outcome::missed, SLOW_SCAN, |all| all.engine.scan_trigger = Some(15)),
    case("length of the window", Outcome::missed, SLOW_SCAN, |all| all.engine.window = Some(Duration::from_secs(60))),
    covered(
        case("bound of the window", honest_bans, SLIPS, |all| all.engine.window = Some(Duration::from_secs(86_400))),
        |all| all.daemon.known_peers = false,
    ),
    case("ceiling of bans", long_bans, FLOOD, |all| all.engine.max_new_bans_per_minute = Some(1_000_000)),
    case("socket in the kernel", lifted_trap_bans, NEW_SERVICES, |all| all.kernel.socket = false),
    case("touched in the kernel", lifted_trap_bans, scenario(WEB, 60, 3, &["carrier NAT", "user at work"]), |all| {
        all.kernel.touched = false;
    }),
    case(
        "bound of the memory of open ports",
        Outcome::missed,
        scenario(WEB, 100, 3, &["short services", "knows ports that listened lately"]),
        |all| all.engine.bounds.recent = Duration::from_secs(7 * 86_400),
    ),
    case("memory of open ports of one second", honest_bans, SHORT_SERVICES, |all| {
        all.engine.bounds.recent = Duration::from_secs(1);
    }),
    // Nearly all ports of a mail server are related.
    covered(case("remembered services", honest_bans, OUTAGES, |all| all.daemon.service_memory = false), |all| {
        all.engine.related_ports = false;
    }),
    case(
        "bound of remembered services",
        Outcome::missed,
        scenario(WEB, 60, 5, &["test of ports", "knows ports of an old test"]),
        |all| all.daemon.bounded_services = false,
    ),
    case(
        "end of the memory of services",
        Outcome::missed,
        scenario(WEB, 60, 3, &["new services", "knows services of long ago"]),
        |all| all.daemon.forgets_services = false,
    ),
    case("settling", honest_bans, REINSTALLED, |all| all.daemon.settling = false),
    case("bound of settling", Outcome::missed, scenario(MAIL, 20, 20, &["broken boot"]), |all| {
        all.daemon.bounded_settling = false;
    }),
    case("related ports", honest_bans, MAIL_PROGRAMS, |all| all.engine.related_ports = false),
    case("bound of related ports", Outcome::missed, scenario(RELAY, 60, 2, &["knows related ports: mail"]), |all| {
        all.engine.bounds.related = u8::MAX;
    }),
    case("groups that are not served", honest_bans, scenario(WEB, 400, 2, &["mail program"]), |all| {
        all.engine.bounds.unrelated = None;
    }),
    // The memory of a test's ports makes mail a served group, with seven closed ports.
    case("served groups alone", honest_bans, scenario(VOICE, 200, 5, &["mail program", "test of ports"]), |all| {
        all.engine.bounds.unrelated = None;
    }),
    case("groups of a printer", honest_bans, scenario(WORKSTATION, 60, 3, &["printer"]), |all| {
        all.engine.bounds.unrelated = None;
    }),
    case("forgiven ports of a neighbour", honest_bans, scenario(WORKSTATION, 60, 3, &["shared files"]), |all| {
        all.engine.scan_trigger = Some(1);
    }),
    case(
        "bound of groups that are not served",
        Outcome::missed,
        scenario(WEB, 60, 2, &["knows related ports: mail"]),
        |all| {
            all.engine.bounds.unrelated = Some(u8::MAX);
        },
    ),
    case(
        "memory of published ports",
        honest_bans,
        scenario(CONTAINERS, 60, 10, &["reboot", "regular client"]),
        |all| {
            all.daemon.published_ports = false;
        },
    ),
    // With one forgiven port fewer mistakes show the effect.
    covered(
        case("memory of connected peers", honest_bans, SLIPS, |all| {
            all.daemon.peers_remembered = Some(Duration::ZERO);
        }),
        |all| all.engine.scan_trigger = Some(1),
    ),
    // Only sshd has sockets there.
    covered(
        case("connections through NAT", honest_bans, scenario(CONTAINERS, 1, 30, &["carrier NAT"]), |all| {
            all.daemon.published_peers = false;
        }),
        |all| all.engine.scan_trigger = Some(1),
    ),
    case(
        "end of the memory of connected peers",
        Outcome::missed,
        scenario(MAIL, 60, 2, &["knows connected peers: hours after its connection"]),
        |all| all.daemon.peers_remembered = Some(Duration::from_secs(30 * 86_400)),
    ),
    case("connected peers", honest_bans, scenario(MAIL, 60, 2, &["user at work"]), |all| {
        all.daemon.known_peers = false
    }),
    case(
        "bound of connected peers",
        Outcome::missed,
        scenario(MAIL, 60, 2, &["knows connected peers: a connection first"]),
        |all| (all.engine.bounds.peer_threshold, all.kernel.peer_forgiven) = (u8::MAX, u8::MAX),
    ),
    // Settling would leave nothing to lift.
    covered(case("lifting of bans", banned_seconds, REINSTALLED, |all| all.daemon.lifts_unfounded = false), |all| {
        all.daemon.settling = false
    }),
    // The kernel's own rules exempt most of this already.
    covered(
        case("excuses of what the trap caught", shortened, NEW_SERVICES, |all| all.engine.trap_excuses = false),
        |all| all.kernel.socket = false,
    ),
    case("hold", learned_ports, scenario(WEB, 60, 1, &["nmap -T3", "nmap -T4"]), |all| all.kernel.hold = false),
    case("bound of holds", forged_holds, scenario(MAIL, 60, 1, &["regular client", "holder"]), |all| {
        all.kernel.max_holds = 1_000_000;
    }),
    case("late segments are only reported", honest_bans, scenario(WEB, 1, 20, &["file server"]), |all| {
        all.engine.ack_bans = true;
    }),
    covered(
        case("asked in the kernel", lifted_trap_bans, scenario(WEB, 1, 20, &["file server"]), |all| {
            all.kernel.asked = false;
        }),
        |all| all.engine.udp_bans = true,
    ),
    case("age of a service", Outcome::missed, SHORT_AND_SCANNED, |all| all.daemon.services_last = false),
    case(
        "services of the system alone",
        Outcome::missed,
        scenario(WEB, 60, 5, &["program of a user", "knows ports of a user's program"]),
        |all| all.daemon.only_system_services = false,
    ),
    case(
        "bound of published ports",
        Outcome::missed,
        scenario(CONTAINERS, 60, 10, &["published range", "knows ports that were published"]),
        |all| all.daemon.bounded_published = false,
    ),
    case(
        "connection before the first probe",
        Outcome::missed,
        scenario(MAIL, 60, 2, &["knows connected peers: a connection after two ports"]),
        |all| all.daemon.peers_before_probe = false,
    ),
    case("strikes", Outcome::missed, scenario(MAIL, 60, 6, &["returning"]), |all| all.engine.strikes = false),
    case("peers across restarts", honest_bans, INTERRUPTED, |all| all.daemon.stores_peers = false),
    case(
        "bound of peers across restarts",
        Outcome::missed,
        scenario(MAIL, 300, 2, &["upgrade of the program", "knows connected peers: hours after its connection"]),
        |all| all.daemon.bounded_stored_peers = false,
    ),
    // Settling would leave nothing to lift.
    covered(
        case("lifting for new listeners", banned_seconds, REINSTALLED, |all| all.daemon.lifts_for_listeners = false),
        |all| all.daemon.settling = false,
    ),
    case("hour of lifting", freed_scanners, SHORT_AND_SCANNED, |all| all.daemon.lifts_within_hour = false),
    // The services are remembered, and nearly all ports of a mail server are related.
    covered(
        case(
            "open ports across restarts",
            honest_bans,
            scenario(MAIL, 60, 10, &["upgrade of everything", "monitor", "pool"]),
            |all| all.daemon.stores_listeners = false,
        ),
        |all| (all.daemon.service_memory, all.engine.related_ports) = (false, false),
    ),
    case(
        "bound of open ports across restarts",
        Outcome::missed,
        scenario(WEB, 60, 10, &["upgrade of everything", "knows ports that listened lately"]),
        |all| all.daemon.bounded_stored_listeners = false,
    ),
    covered(
        case("ceiling of bans that stand", long_bans, FLOODS, |all| all.engine.max_forgeable_bans = Some(1_000_000)),
        |all| all.engine.max_new_bans_per_minute = Some(1_000_000),
    ),
];

/// A cause of honest bans in earlier runs, and the rule that has removed it.
struct FixedCause {
    cause: &'static str,
    scenario: Scenario,
    /// Rules that are switched off in both runs, because they would have the same effect.
    without: fn(&mut Options),
    rule: fn(&mut Options),
}

/// The scenarios are listed instead of the positions of their bans, which change with every added behaviour. The
/// replayed position is that of the first honest ban without the rule.
const FIXED_CAUSES: [FixedCause; 8] = [
    FixedCause {
        cause: "clients return while several services are stopped",
        scenario: OUTAGES,
        without: |all| all.engine.related_ports = false,
        rule: |all| all.daemon.service_memory = false,
    },
    FixedCause {
        cause: "clients return before the services of a new installation are up",
        scenario: REINSTALLED,
        without: |_| (),
        rule: |all| all.daemon.settling = false,
    },
    FixedCause {
        cause: "a mail program guesses ports of a host without mail",
        scenario: scenario(WEB, 400, 2, &["mail program"]),
        without: |_| (),
        rule: |all| all.engine.bounds.unrelated = None,
    },
    FixedCause {
        cause: "a mail program guesses ports of a host that had mail lately",
        scenario: scenario(VOICE, 200, 5, &["mail program", "test of ports"]),
        without: |_| (),
        rule: |all| all.engine.bounds.unrelated = None,
    },
    FixedCause {
        cause: "a neighbour adds a printer",
        scenario: scenario(WORKSTATION, 60, 3, &["printer"]),
        without: |_| (),
        rule: |all| all.engine.bounds.unrelated = None,
    },
    FixedCause {
        cause: "containers take longer than the services after a boot",
        scenario: scenario(CONTAINERS, 60, 10, &["reboot", "regular client"]),
        without: |_| (),
        rule: |all| all.daemon.published_ports = false,
    },
    FixedCause {
        cause: "a connected user tries ports",
        scenario: scenario(MAIL, 60, 2, &["user at work"]),
        without: |_| (),
        rule: |all| all.daemon.known_peers = false,
    },
    FixedCause {
        cause: "a user continues to try ports after a reboot has ended the connection",
        scenario: INTERRUPTED,
        without: |_| (),
        rule: |all| all.daemon.stores_peers = false,
    },
];

#[test]
fn fixed_causes_replay_without_ban() {
    for_each(&FIXED_CAUSES, |FixedCause { cause, scenario, without, rule }| {
        let mut options = scenario.options();
        without(&mut options);
        let mut broken = options.clone();
        rule(&mut broken);
        let bans = run_host(&broken, scenario.host, &|| ()).honest_bans;
        let own = bans.iter().filter(|ban| !ban.forged);
        let first = own.map(|ban| (ban.replay.parse::<Position>().unwrap(), ban)).min_by_key(|(at, _)| at.step);
        let Some((position, ban)) = first else { panic!("{cause}: without the rule, no source is banned") };
        let text = replay(&broken, position);
        assert!(text.contains(&format!("BAN of {}", ban.target)), "{cause}: {text}");
        // Sources react to bans and holds, so the packets of this run can have other numbers.
        let outcome = run_host(&options, scenario.host, &|| ());
        assert_eq!(honest_bans(&outcome), 0, "{cause}: {:#?}", outcome.honest_bans);
    });
}

/// Works on `items` in two threads. A panic in either fails the test.
fn for_each<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let thread = || std::iter::from_fn(|| items.get(next.fetch_add(1, Ordering::Relaxed))).for_each(&work);
    std::thread::scope(|scope| {
        scope.spawn(thread);
        scope.spawn(thread);
    });
}

/// Datagrams ban only if the configuration says so. Then each UDP scan is found, and no honest source of datagrams is
/// banned.
#[test]
fn udp_scans_are_found_where_datagrams_ban() {
    let only = &[
        "nmap -sU",
        "nmap -sU -T1",
        "nmap -sU --max-retries 0",
        "regular client",
        "monitor",
        "browser",
        "DNS question",
        "NTP question",
        "file server",
        "call",
        "discovery",
        "new services",
    ];
    let reported = run_short(&Options { only, ..options() });
    let mut banning = Options { only, ..options() };
    banning.engine.udp_bans = true;
    let banned = run_short(&banning);
    for kind in ["nmap -sU", "nmap -sU -T1", "nmap -sU --max-retries 0"] {
        let seen = &reported.dishonest[kind];
        assert!(seen.found == 0 && seen.alarms >= seen.sources, "{kind} is reported: {seen:?}");
        let seen = &banned.dishonest[kind];
        assert!(seen.sources > 0 && seen.found == seen.sources, "{kind}: {:?}", seen.missed);
    }
    assert_eq!(honest_bans(&banned), 0, "{:#?}", banned.honest_bans);
}

/// The simulation can fail: without any single rule or limit, it shows a symptom more often than with all of them.
#[test]
fn disabled_rule_fails_its_scenario() {
    let failed = Mutex::new(Vec::new());
    for_each(&CASES, |Case { rule, symptom, scenario, without, change }| {
        let run_with = |changes: &[fn(&mut Options)]| {
            let mut options = scenario.options();
            changes.iter().for_each(|change| change(&mut options));
            symptom(&run_host(&options, scenario.host, &|| ()))
        };
        let covers: Vec<_> = without.iter().copied().collect();
        let (with, missing) = (run_with(&covers), run_with(&[covers.as_slice(), &[*change]].concat()));
        println!("without {rule}: {missing}, with it: {with}");
        if missing <= with {
            failed.lock().unwrap().push(*rule);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "without {failed:?} no symptom increased; see above");
}
