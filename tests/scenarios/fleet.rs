//! Tests reports of other hosts, as the fleet process passes them to the daemon, with the running program and real
//! packets. Accepted targets are blocked; a compromised fleet process is limited by the rules.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, eventually, has_other_users, soon, within};
use portsentry::engine::Grade;
use portsentry::fleet::protocol::{
    FleetReply, FleetReport, FleetRequest, LineMessage as _, LinkState, MAX_REPORTS, OwnBanEvent, ReportOutcome,
};
use portsentry::types::BanTarget;

use crate::support::{FAR_NETWORK, is_served, is_served_at_last, scene};

const HOUR: u64 = 3_600;

/// The lab's configuration of a fleet member; `more` is added to `[fleet]`.
fn settings(lab: &Lab, more: &str) -> String {
    let socket = lab.path("fleet.sock").display().to_string();
    format!(
        "expire = \"1h\"\n[fleet]\nurl = \"unix:///run/valkey/fleet.sock\"\nhost = \"victim\"\nsocket = \"{socket}\"\n{more}"
    )
}

fn report(author: &str, target: impl ToString) -> FleetReport {
    FleetReport {
        author: author.to_owned(),
        target: target.to_string(),
        remaining_s: HOUR,
        grade: Grade::Proven,
        distinct_ports: 5,
        class: "connect".to_owned(),
        sequence: 1,
    }
}

/// A connection in the role of the fleet process.
struct Peer(BufReader<UnixStream>);

impl Peer {
    fn connect(lab: &Lab) -> Self {
        let stream = UnixStream::connect(lab.path("fleet.sock")).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(BufReader::new(stream))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn ask(&mut self, request: &FleetRequest) -> FleetReply {
        self.0.get_mut().write_all(request.to_line().as_bytes()).unwrap();
        FleetReply::parse(self.line().as_bytes()).unwrap()
    }

    fn report(&mut self, reports: &[FleetReport]) -> Vec<ReportOutcome> {
        match self.ask(&FleetRequest::Reports { reports: reports.to_vec(), scan_ends: false }) {
            FleetReply::Reports { outcomes } => outcomes,
            other => panic!("{other:?}"),
        }
    }

    /// Ends the initial scan, in which more reports per author are allowed.
    fn end_scan(&mut self) {
        self.ask(&FleetRequest::Reports { reports: Vec::new(), scan_ends: true });
    }

    fn event(&mut self) -> OwnBanEvent {
        let line = self.line();
        OwnBanEvent::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

fn blocked(lab: &Lab) -> Vec<IpAddr> {
    let mut all: Vec<_> = ["fleet", "fleet6"].iter().flat_map(|set| lab.set(set)).map(|ban| ban.address).collect();
    all.sort();
    all
}

fn reason(outcome: &ReportOutcome) -> &str {
    match outcome {
        ReportOutcome::Refused { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_reports_block_a_source() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT);
    let daemon = Daemon::start_configured(&lab, &settings(&lab, "shadow = false\n"), &[]);
    let mut peer = Peer::connect(&lab);
    let (v4, v6) = (lab.v4("attacker"), format!("{FAR_NETWORK}/64"));
    assert_eq!(
        peer.report(&[report("a", v4), report("a", &v6), report("a", v4)]),
        [const { ReportOutcome::Waiting { authors: 1 } }; 3],
        "reports of a single author are not enough"
    );
    assert!(is_served_at_last(&lab, false) && is_served_at_last(&lab, true) && blocked(&lab).is_empty());
    assert_eq!(peer.report(&[report("b", v4), report("b", &v6)]), [ReportOutcome::Accepted, ReportOutcome::Accepted]);
    assert_eq!(blocked(&lab), [IpAddr::from(v4), FAR_NETWORK.into()]);
    assert!(!is_served(&lab, false) && !is_served(&lab, true), "its packets are dropped");
    assert!(lab.banned().is_empty(), "it is not a ban of this host");
    let line = daemon.expect_line(&format!("fleet: {v4} is blocked, "));
    assert!(line.contains("reported by a (proven, connect, 5 ports, ") && line.contains(", b (proven"), "{line}");

    let explained = lab.ask(&["explain", &v4.to_string()]);
    assert_eq!(explained["fleet"]["state"], "blocked", "{explained}");
    assert_eq!(explained["fleet"]["reports"][1]["author"], "b", "{explained}");
    assert!(explained["blocked"].is_null() && explained["strikes"] == 0, "{explained}");
    let list = lab.succeed(&["list"]);
    assert!(list.contains("a (proven, connect, 5 ports") && list.contains(&v4.to_string()), "{list}");
    assert_eq!(lab.ask(&["list"])["fleet"].as_array().map(Vec::len), Some(2));

    assert_eq!(lab.succeed(&["unblock", &v4.to_string()]), "bans lifted: 1\n");
    assert!(is_served_at_last(&lab, false) && !is_served(&lab, true));
    assert!(reason(&peer.report(&[report("c", v4)])[0]).contains("an operator has lifted"));
    assert!(is_served_at_last(&lab, false), "the lift is in force");
    assert_eq!(
        peer.ask(&FleetRequest::Lift { target: v6.parse().unwrap() }),
        FleetReply::Lifted { lifted: true },
        "an operator of the fleet"
    );
    assert!(is_served_at_last(&lab, true) && blocked(&lab).is_empty());
    daemon.stop();
}

#[test]
fn reports_block_nothing_if_host_only_logs() {
    let lab = scene();
    for more in ["shadow = false\n", "shadow = true\n"] {
        let daemon = Daemon::start_configured(&lab, &settings(&lab, more), &["--log-only"]);
        let mut peer = Peer::connect(&lab);
        let v4 = lab.v4("attacker");
        assert_eq!(
            peer.report(&[report("a", v4), report("b", v4)]),
            [ReportOutcome::Waiting { authors: 1 }, ReportOutcome::Shadowed]
        );
        assert_eq!(lab.ask(&["status"])["fleet"]["shadow"], true);
        assert_eq!(lab.nft("list tables"), "");
        let log = daemon.stop();
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[test]
fn fleet_bans_survive_flush_and_restart() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT);
    let text = settings(&lab, "shadow = false\n[fleet.accept]\nsingle = true\n");
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    let v4: IpAddr = lab.v4("attacker").into();
    assert_eq!(Peer::connect(&lab).report(&[report("a", v4)]), [ReportOutcome::Accepted]);
    for flush in ["flush ruleset", "delete table inet portsentry", "flush chain inet portsentry prerouting"] {
        lab.nft(flush);
        assert!(soon(|| blocked(&lab) == [v4] && !is_served(&lab, false)), "after {flush}: {:?}", blocked(&lab));
    }
    // A ruleset that was saved while another address was blocked.
    let saved = lab.nft("list table inet portsentry");
    let saved = lab.write("saved.nft", &format!("flush ruleset\n{}", saved.replacen(&v4.to_string(), "192.0.2.9", 1)));
    lab.load_rules(&saved);
    assert!(soon(|| blocked(&lab) == [v4]), "no other: {:?}", blocked(&lab));
    let left = lab.set("fleet")[0].expires.unwrap();
    assert!(left > Duration::from_secs(HOUR - 300) && left <= Duration::from_secs(HOUR), "{left:?}");
    daemon.stop();
    assert!(!is_served(&lab, false), "the kernel keeps blocking");
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    assert_eq!(blocked(&lab), [v4]);
    assert!(lab.succeed(&["explain", &v4.to_string()]).contains("the reports date from before a restart"));
    lab.nft("flush ruleset");
    assert!(soon(|| blocked(&lab) == [v4]), "reports from before the start count too");
    daemon.stop();
    // A host that leaves its fleet blocks nothing for it.
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    assert_eq!(lab.set_text("fleet"), "");
    assert!(is_served_at_last(&lab, false));
    daemon.stop();
}

#[test]
fn lifts_survive_restart_and_crash() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT);
    let text = settings(&lab, "shadow = false\n[fleet.accept]\nsingle = true\n");
    let v4: IpAddr = lab.v4("attacker").into();
    let reports = [report("a", v4), report("a", "192.0.2.7"), report("a", "192.0.2.8")];
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    let mut peer = Peer::connect(&lab);
    assert_eq!(peer.report(&reports), [const { ReportOutcome::Accepted }; 3]);
    lab.succeed(&["unblock", &v4.to_string()]);
    let lift = FleetRequest::Lift { target: "192.0.2.7".parse().unwrap() };
    assert_eq!(peer.ask(&lift), FleetReply::Lifted { lifted: true }, "an operator of the fleet");
    daemon.stop();

    let refused = |again: &str| {
        let mut peer = Peer::connect(&lab);
        let outcomes = peer.report(&reports);
        assert!(reason(&outcomes[0]).contains("an operator has lifted"), "{again}: {outcomes:?}");
        assert!(reason(&outcomes[1]).contains("an operator has lifted"), "{again}: {outcomes:?}");
        assert_eq!(outcomes[2], ReportOutcome::Accepted, "{again}: its report stands");
        assert!(is_served_at_last(&lab, false), "{again}");
        assert_eq!(blocked(&lab), ["192.0.2.8".parse::<IpAddr>().unwrap()], "{again}");
        let explained = lab.ask(&["explain", &v4.to_string()]);
        assert_eq!(explained["fleet"]["state"], "lifted", "{again}: {explained}");
        let left = explained["fleet"]["left_s"].as_u64().unwrap();
        assert!((4 * HOUR - 300..=4 * HOUR).contains(&left), "{again}: {left} s");
    };
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    refused("after a restart");
    daemon.kill();
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    refused("after a crash");

    // A lift reaches the disk soon, not only at an orderly end.
    lab.succeed(&["unblock", "192.0.2.8"]);
    let ledger = rusqlite::Connection::open(lab.path("state").join(portsentry::ledger::DATABASE)).unwrap();
    let kept = "SELECT count(*) FROM fleet_lift WHERE target = '192.0.2.8'";
    let kept = || ledger.query_row(kept, [], |row| row.get::<_, u32>(0)).is_ok_and(|rows| rows == 1).then_some(());
    assert!(within(TIMEOUT, kept).is_some());
    drop(ledger);
    daemon.kill();
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    let outcomes = Peer::connect(&lab).report(&reports);
    assert!(outcomes.iter().all(|one| reason(one).contains("an operator has lifted")), "{outcomes:?}");
    assert!(blocked(&lab).is_empty());
    daemon.stop();
}

#[test]
fn shadow_mode_reports_without_blocking() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT);
    let accept = "[fleet.accept]\nsingle = true\n";
    let daemon = Daemon::start_configured(&lab, &settings(&lab, accept), &[]);
    let v4: IpAddr = lab.v4("attacker").into();
    let mut peer = Peer::connect(&lab);
    assert_eq!(peer.report(&[report("a", v4)]), [ReportOutcome::Shadowed]);
    daemon.expect_line(&format!("fleet: {v4} would be blocked, "));
    assert!(blocked(&lab).is_empty() && is_served_at_last(&lab, false));
    assert!(lab.succeed(&["list"]).contains("would be blocked"));
    lab.reload(&settings(&lab, &format!("shadow = false\n{accept}")));
    eventually("known targets are blocked now", || blocked(&lab) == [v4]);
    lab.reload(&settings(&lab, accept));
    assert!(soon(|| blocked(&lab).is_empty()), "and no longer blocked");
    daemon.stop();
}

#[test]
fn protected_addresses_are_never_blocked() {
    let lab = Lab::new(&["attacker", "office"]);
    let _services = Services::open(&lab, &EIGHT);
    lab.victim_ip(&format!("route add default via {}", lab.v4("attacker")));
    let office: IpAddr = lab.v4("office").into();
    let text = format!(
        "{}[allow]\nnetworks = [\"203.0.113.0/24\"]\n",
        settings(&lab, "shadow = false\n[fleet.accept]\nsingle = true\n")
    );
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    let mut peer = Peer::connect(&lab);
    let gateway = lab.v4("attacker");
    for (target, why) in [
        (gateway.to_string(), "gateway"),
        (lab.victim_v4("attacker").to_string(), "an address of this host"),
        (format!("{}/64", lab.v6_network("attacker")), "an address of this host"),
        ("127.0.0.2".to_owned(), "loopback"),
        ("203.0.113.9".to_owned(), "allow-list"),
        ("0.0.0.0/0".to_owned(), "neither an IPv4 address nor an IPv6 /64"),
        ("198.51.100.0/31".to_owned(), "neither"),
        ("::/0".to_owned(), "neither"),
        ("2001:db8::/63".to_owned(), "neither"),
        ("fe80::1/128".to_owned(), "neither"),
        ("224.0.0.1".to_owned(), "neither"),
    ] {
        let outcomes = peer.report(&[report("a", &target)]);
        assert!(reason(&outcomes[0]).contains(why), "{target}: {outcomes:?}");
    }
    daemon.expect_line("fleet: a report by a is refused: its target is");
    assert_eq!(daemon.lines_with("a report by a").len(), 1, "the refusal is logged once");
    assert!(blocked(&lab).is_empty());

    // A target that becomes allowed is unblocked and stays so.
    assert_eq!(peer.report(&[report("a", office)]), [ReportOutcome::Accepted]);
    assert_eq!(blocked(&lab), [office]);
    lab.succeed(&["allow", &office.to_string()]);
    assert!(soon(|| blocked(&lab).is_empty()));
    assert!(reason(&peer.report(&[report("b", office)])[0]).contains("allow-list"));
    daemon.stop();
}

#[test]
fn compromised_fleet_process_is_limited() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT);
    let text = settings(&lab, "shadow = false\n[fleet.accept]\nsingle = true\nmax_bans_per_hour = 100\nsize = 1000\n");
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    let mut peer = Peer::connect(&lab);
    peer.end_scan();
    let flood = |author: &str, third: u8| -> Vec<FleetReport> {
        (0..100).map(|last| report(author, format!("198.51.{third}.{last}"))).collect()
    };
    let accepted = |outcomes: &[ReportOutcome]| outcomes.iter().filter(|one| **one == ReportOutcome::Accepted).count();
    assert_eq!(accepted(&peer.report(&flood("mallory", 1))), 30, "an author may report 30 targets per hour");
    daemon.expect_line("fleet: mallory has reported more than 30 targets in an hour and is ignored for an hour");
    assert!(reason(&peer.report(&[report("mallory", "198.51.1.0")])[0]).contains("ignored for an hour"));
    let all: usize = (2..42).map(|author| accepted(&peer.report(&flood(&format!("m-{author}"), author)))).sum();
    assert_eq!(all, 70, "invented authors are limited by the ceiling");
    assert_eq!(blocked(&lab).len(), 100);

    daemon.expect_line("fleet: reports are refused: all hosts together have exceeded fleet.accept.max_bans_per_hour");

    // Only fleet commands are accepted.
    for line in [
        "{\"command\":\"status\"}",
        "{\"command\":\"unblock\",\"all\":true}",
        "{\"command\":\"block\",\"target\":\"192.0.2.1\"}",
        "{\"command\":\"allow\",\"target\":\"0.0.0.0/0\"}",
        "{\"command\":\"reload\"}",
        "not JSON",
    ] {
        peer.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        assert!(matches!(FleetReply::parse(peer.line().as_bytes()), Ok(FleetReply::Refused { .. })), "{line}");
    }
    daemon.expect_line("fleet: a request of the fleet process was refused; invalid request on the fleet socket");
    let many = FleetRequest::Reports { reports: vec![report("a", "192.0.2.1"); MAX_REPORTS + 1], scan_ends: false };
    assert!(matches!(peer.ask(&many), FleetReply::Refused { .. }));
    let forged = |change: &dyn Fn(&mut FleetReport)| {
        let mut one = report("victim-2", "192.0.2.1");
        change(&mut one);
        one
    };
    for (one, why) in [
        (forged(&|one| one.author = "victim".to_owned()), "names this host"),
        (forged(&|one| one.author = "x\n:*".to_owned()), "the name of its author"),
        (forged(&|one| one.remaining_s = 0), "expired"),
        (forged(&|one| one.remaining_s = 4 * HOUR + 1), "longer than four hours"),
        (forged(&|one| one.grade = Grade::Forgeable), "can be forged"),
        (forged(&|one| one.distinct_ports = 4), "fewer than 5"),
        (forged(&|one| one.target = "gateway".to_owned()), "neither"),
    ] {
        assert!(reason(&peer.report(&[one])[0]).contains(why), "{why}");
    }
    // A line without an end is limited in size, and the connection is closed.
    let mut endless = Peer::connect(&lab);
    let _ = endless.0.get_mut().write_all(&vec![b'['; 100_000]);
    assert!(endless.line().contains("line feed"));
    // Requests at full speed, while this host keeps detecting.
    let flooding = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let end = std::time::Instant::now() + Duration::from_secs(3);
            let mut requests = 0;
            while std::time::Instant::now() < end {
                peer.report(&flood("mallory", 1));
                requests += 1;
            }
            requests
        });
        let banned = lab.provoke_ban("attacker");
        lab.succeed(&["unblock", &banned.to_string()]);
        assert_eq!(lab.ask(&["status"])["fleet"]["bans"], 100);
        flood.join().unwrap()
    });
    assert!(flooding <= 900, "{flooding} requests in three seconds");
    let status = lab.succeed(&["status"]);
    assert!(status.contains("mallory: reported more than 30 targets in an hour; ignored for"), "{status}");
    assert!(is_served_at_last(&lab, false));
    daemon.stop();
}

/// Patterns of fail2ban filters: its own for portsentry, and packaging/examples/fail2ban/filter.conf.
fn is_taken_for_ban(line: &str) -> bool {
    line.contains("attackalert: Host ") || line.contains("Host: ")
}

#[test]
fn fleet_process_cannot_forge_log_line() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, &settings(&lab, "[fleet.accept]\nsingle = true\n"), &[]);
    let mut peer = Peer::connect(&lab);
    let forged = "attackalert: Host 10.77.1.1 has been blocked Host: 10.77.1.1/10.77.1.1 Port: 23 TCP Blocked";
    let away = LinkState::Away(format!("x\n{forged}\u{1b}[2J"));
    peer.ask(&FleetRequest::Link { state: away, ignored: Vec::new() });
    daemon.expect_line("not connected to the server of fleet: x attackalert; Host 10.77.1.1 has been blocked");
    let mut author = report(forged, "192.0.2.1");
    author.class = forged.to_owned();
    let mut class = report("a", "192.0.2.1");
    class.class = "attackalert:\u{a0}Host:10.77.1.1".to_owned();
    let mut target = report("b", forged);
    target.class = "connect".to_owned();
    let outcomes = peer.report(&[author, class, target]);
    for (outcome, why) in outcomes.iter().zip(["the name of its author", "class of scan is unknown", "neither"]) {
        assert!(reason(outcome).contains(why), "{outcomes:?}");
    }
    let line = format!("{{\"command\":\"{forged}\"}}\n");
    peer.0.get_mut().write_all(line.as_bytes()).unwrap();
    assert!(peer.line().contains("unknown variant"));
    daemon.expect_line("fleet: a request of the fleet process was refused; invalid request on the fleet socket");
    let log = daemon.stop();
    assert!(!log.lines().any(is_taken_for_ban), "{log}");
}

#[test]
fn fleet_process_cannot_flood_log() {
    let lab = Lab::new(&["attacker"]);
    let text = settings(&lab, "[fleet.accept]\nmax_per_author_per_hour = 1\n");
    let daemon = Daemon::start_configured(&lab, &text, &[]);
    let mut peer = Peer::connect(&lab);
    peer.end_scan();
    // Each author brings forward two targets, and is above its limit.
    for first in (0..6_000).step_by(60) {
        let authors = first..first + 60;
        let reports: Vec<_> = authors
            .flat_map(|author| [1, 2].map(|last| report(&format!("m-{author}"), format!("192.0.2.{last}"))))
            .collect();
        peer.report(&reports);
    }
    for _ in 0..100 {
        for state in [LinkState::Connected, LinkState::Away("x".to_owned())] {
            peer.ask(&FleetRequest::Link { state, ignored: Vec::new() });
        }
        peer.0.get_mut().write_all(b"{}\n").unwrap();
        peer.line();
    }
    assert_eq!(lab.ask(&["status"])["fleet"]["ignored"].as_array().map(Vec::len), Some(64));
    let log = daemon.stop();
    let lines = log.lines().filter(|line| line.contains("fleet: ")).count();
    assert!((30..=120).contains(&lines), "{lines} lines");
}

#[test]
fn connection_changes_are_reported_once() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, &settings(&lab, ""), &[]);
    let mut peer = Peer::connect(&lab);
    let mut link = |state: LinkState| peer.ask(&FleetRequest::Link { state, ignored: Vec::new() });
    let away = || LinkState::Away("the password is wrong".to_owned());
    for state in [LinkState::Connected, LinkState::Connected, away(), away(), LinkState::Connected] {
        assert_eq!(link(state), FleetReply::Noted);
    }
    let connected = || daemon.lines_with("fleet: connected to the server of fleet").len();
    assert!(soon(|| connected() == 2), "{} lines", connected());
    assert_eq!(daemon.lines_with("fleet: not connected to the server of fleet: the password is wrong").len(), 1);
    assert_eq!(lab.ask(&["status"])["fleet"]["link"], "connected");
    link(away());
    let status = lab.succeed(&["status"]);
    assert!(status.contains("ALARM: not connected: the password is wrong"), "{status}");
    daemon.stop();
}

#[test]
fn own_bans_are_sent_with_grade() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, &settings(&lab, ""), &[]);
    let watch = || {
        let mut peer = Peer::connect(&lab);
        assert_eq!(peer.ask(&FleetRequest::Watch {}), FleetReply::Watching);
        peer
    };
    let mut peer = watch();
    let banned = BanTarget::containing(lab.provoke_ban("attacker"));
    let event = peer.event();
    let OwnBanEvent::Ban { target, remaining_s: Some(left), grade: Grade::Forgeable, .. } = &event else {
        panic!("{event:?}");
    };
    assert!(*target == banned && (HOUR - 60..=HOUR * 2).contains(left), "{event:?}");
    assert!(
        matches!(watch().event(), OwnBanEvent::Ban { target, .. } if target == banned),
        "a later subscriber receives existing bans"
    );
    lab.succeed(&["unblock", &banned.to_string()]);
    assert_eq!(peer.event(), OwnBanEvent::Lift { target: banned });
    daemon.stop();
}

#[test]
fn other_users_are_refused() {
    if !has_other_users() {
        return;
    }
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start_configured(&lab, &settings(&lab, ""), &[]);
    let script =
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(s.makefile().readline())";
    let socket = lab.path("fleet.sock").display().to_string();
    let output = lab
        .command("victim", "setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "python3", "-c", script, &socket])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.contains("only root") || output.contains("Permission denied"), "{output}");
    daemon.stop();
}
