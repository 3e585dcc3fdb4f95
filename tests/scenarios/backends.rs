//! Tests every backend, alone and combined: it blocks, logs the ban, ends with it, and leaves nothing behind.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{
    DENY, FAR_NETWORK, SHORTLY, ends, expect_held, expect_nothing_left, held, is_served, is_served_at_last, ledger,
    routes, run_settings, scan, scene, settings, text,
};
use netns_lab::daemon::Daemon;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, eventually, slowness, soon, within};

/// Starts the program with these backends.
fn start(lab: &Lab, backends: &[&str]) -> Daemon {
    Daemon::start_configured(lab, &settings(lab, backends, ""), &["--expire", "1h"])
}

/// The number of recorded calls of the command that begin with `prefix`.
fn calls(lab: &Lab, prefix: &str) -> usize {
    text(lab, "calls").lines().filter(|line| line.starts_with(prefix)).count()
}

/// The number of calls of the command of this phase for `target`.
fn calls_for(lab: &Lab, phase: &str, target: &str) -> usize {
    calls(lab, &format!("{phase}|{target}|"))
}

/// Tests one backend alone: the attacker is blocked over both families, with one log line each, until the ban expires.
fn test_alone(backend: &str, more: &str, lines: [&str; 2]) {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let time = format!("{}s", 6 * slowness());
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &[backend], more), &["--expire", &time]);
    let keeps_out = matches!(backend, "nft" | "route");
    for (v6, line) in [(false, lines[0]), (true, lines[1])] {
        if keeps_out {
            assert!(is_served_at_last(&lab, v6), "{backend}: no source is blocked yet");
        }
        // More ports than are forgiven to a client of a service, if the program saw that connection.
        let (source, target) = ends(&lab, v6);
        lab.probe("attacker", source, target, &(901..=912).collect::<Vec<u16>>());
        expect_held(&lab, backend, v6, &daemon);
        if keeps_out {
            assert!(!is_served(&lab, v6), "{backend} {more:?} {v6}: {:?}", held(&lab, backend));
        }
        let source = if v6 { format!("{FAR_NETWORK}/64") } else { ends(&lab, v6).0.to_string() };
        daemon.expect_line(&line.replace("SOURCE", &source).replace("TIME", &time));
    }
    expect_nothing_left(&lab);
    assert!(is_served_at_last(&lab, false) && is_served_at_last(&lab, true), "{backend}: the bans have ended");
    if backend == "run" {
        commands_were_run(&lab);
    }
    daemon.stop();
    expect_nothing_left(&lab);
}

#[test]
fn nft_ban_drops_or_rejects_and_expires() {
    std::thread::scope(|scope| {
        let lines = [
            "attackalert: Host SOURCE has been blocked via nftables set inet portsentry blocked for TIME",
            "attackalert: Host SOURCE has been blocked via nftables set inet portsentry blocked6 for TIME",
        ];
        for more in ["", "[block.nft]\naction = \"reject\"\nlog_drops = \"3/minute\"\nend_connections = false\n"] {
            scope.spawn(move || test_alone("nft", more, lines));
        }
    });
}

#[test]
fn route_ban_of_each_kind_is_removed() {
    std::thread::scope(|scope| {
        let lines = ["attackalert: Host SOURCE has been blocked via dropped route for TIME"; 2];
        for kind in ["kind = \"blackhole\"", "kind = \"unreachable\"", "kind = \"prohibit\"", "via = \"10.77.1.254\""] {
            scope.spawn(move || test_alone("route", &format!("[block.route]\n{kind}\n"), lines));
        }
    });
}

#[test]
fn hosts_deny_line_leaves_other_bytes() {
    let v6 = format!("attackalert: Host SOURCE has been blocked via wrappers with string: \"ALL: [{FAR_NETWORK}]/64\"");
    test_alone(
        "hosts-deny",
        "",
        ["attackalert: Host SOURCE has been blocked via wrappers with string: \"ALL: SOURCE\"", &v6],
    );
}

#[test]
fn command_backend_runs_begin_and_end_commands() {
    let line = "attackalert: External command run for host: SOURCE using command: \"";
    test_alone("run", "", [line; 2]);
}

/// The command ran once per ban, and the end command once at each end.
fn commands_were_run(lab: &Lab) {
    let ended = within(TIMEOUT, || (text(lab, "calls").lines().count() == 4).then_some(()));
    let calls = text(lab, "calls");
    assert!(ended.is_some(), "{calls}");
    for (target, source) in
        [(lab.v4("attacker").to_string(), ends(lab, false).0), (format!("{FAR_NETWORK}/64"), ends(lab, true).0)]
    {
        for (phase, line) in
            ["begin", "end"].map(|word| (word, format!("{word}|{target}|903|atcp|TCP SYN/Normal scan|")))
        {
            let line = calls.lines().find(|call| call.starts_with(&line)).unwrap_or_else(|| panic!("{phase}: {calls}"));
            for variable in [
                format!("|PORTSENTRY_TARGET={target}|"),
                format!("|PORTSENTRY_SOURCE={source}|"),
                "|PORTSENTRY_PORT=903|".to_owned(),
                "|PORTSENTRY_PROTOCOL=tcp|".to_owned(),
                "|PORTSENTRY_MODE=atcp|".to_owned(),
                "|PORTSENTRY_REASON=TCP SYN/Normal scan|".to_owned(),
                "|LANG=C|".to_owned(),
            ] {
                assert!(line.contains(&variable), "{variable} in {line}");
            }
            assert!(
                !line.contains("|HOME=") && !line.contains("CARGO"),
                "the command gets a clean environment: {line}"
            );
        }
    }
}

#[test]
fn several_backends_ban_and_lift_together() {
    let sets: [&[&str]; 3] = [&["nft", "route"], &["hosts-deny", "run"], &["run", "hosts-deny", "route", "nft"]];
    std::thread::scope(|scope| {
        for backends in sets {
            scope.spawn(move || {
                let lab = scene();
                let time = format!("{}s", 6 * slowness());
                let daemon = Daemon::start_configured(&lab, &settings(&lab, backends, ""), &["--expire", &time]);
                for v6 in [false, true] {
                    scan(&lab, v6);
                    backends.iter().for_each(|backend| expect_held(&lab, backend, v6, &daemon));
                }
                expect_nothing_left(&lab);
                let log = daemon.stop();
                assert!(!log.contains("ERROR"), "{log}");
                expect_nothing_left(&lab);
            });
        }
    });
}

#[test]
fn first_command_ends_before_ban_within_limit() {
    std::thread::scope(|scope| {
        // A command that records whether its source was blocked when it ran.
        scope.spawn(|| {
            let lab = scene();
            let (path, notes) = (lab.path("on-ban"), lab.path("notes"));
            // The time limit is generous. The script is run by a shell, because a file that was just written may not be
            // executed while another thread forks.
            let command = format!("[\"/bin/sh\", \"{}\"]", path.display());
            let more = format!("[block.run]\ncommand = {command}\nfirst = true\ntimeout = \"60s\"\n");
            let script =
                format!("#!/bin/sh\nsleep 0.3\nnft list set inet portsentry blocked >>'{}'\n", notes.display());
            std::fs::write(&path, script).unwrap();
            let daemon = Daemon::start_configured(&lab, &settings(&lab, &["run", "nft"], &more), &["--expire", "1h"]);
            scan(&lab, false);
            expect_held(&lab, "nft", false, &daemon);
            let (notes, attacker) = (text(&lab, "notes"), lab.v4("attacker").to_string());
            assert!(notes.contains("set blocked") && !notes.contains(&attacker), "{notes}");
            daemon.expect_line(" before the block");
            daemon.stop();
        });
        // A command that hangs.
        scope.spawn(|| {
            let lab = scene();
            let more = "[block.run]\ncommand = [\"/bin/sleep\", \"600\"]\nfirst = true\ntimeout = \"1s\"\n";
            let daemon = Daemon::start_configured(&lab, &settings(&lab, &["run", "nft"], more), &["--expire", "1h"]);
            let begin = Instant::now();
            scan(&lab, false);
            expect_held(&lab, "nft", false, &daemon);
            let took = begin.elapsed();
            assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(60) * slowness(), "{took:?}");
            daemon.expect_line("was killed at its time limit");
            daemon.stop();
        });
    });
}

/// Reconciliation and repair do not enforce a ban early that waits for its command.
#[test]
fn waiting_ban_can_be_lifted() {
    let lab = scene();
    // A command that records its beginning.
    let command = format!("[\"/bin/sh\", \"-c\", \"echo begun >>'{}'; exec sleep 8\"]", lab.path("notes").display());
    let more = format!("[block.run]\ncommand = {command}\nfirst = true\ntimeout = \"60s\"\n");
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["run", "nft"], &more), &["--expire", "1h"]);
    let begin = Instant::now();
    scan(&lab, false);
    daemon.expect_line(&format!("from host: {0}/{0}", lab.v4("attacker")));
    lab.nft("flush ruleset");
    daemon.expect_line("table inet portsentry was missing and has been created again");
    while begin.elapsed() < Duration::from_millis(7_500) {
        let banned = lab.banned();
        assert!(
            banned.is_empty() || begin.elapsed() >= Duration::from_secs(8),
            "{banned:?} after {:?}",
            begin.elapsed()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    expect_held(&lab, "nft", false, &daemon);

    scan(&lab, true);
    let source = ends(&lab, true).0;
    daemon.expect_line(&format!("from host: {source}/{source}"));
    // A ban that is lifted before its command begins runs none.
    assert!(soon(|| text(&lab, "notes").lines().count() == 2), "{:?}", daemon.lines_with(""));
    let output = lab.operate(&["unblock", &source.to_string()]);
    assert_eq!(output.code, Some(0), "{} {}", output.out, output.err);
    assert!(soon(|| daemon.lines_with(" before the block").len() == 2), "{:?}", daemon.lines_with(""));
    // An effect would follow immediately.
    std::thread::sleep(Duration::from_secs(1) * slowness());
    assert!(!held(&lab, "nft").contains(&FAR_NETWORK.to_string()), "{}", held(&lab, "nft"));
    assert_eq!(lab.banned(), [IpAddr::from(lab.v4("attacker"))]);
    daemon.stop();
}

/// The packets of a source whose ban waits for its command neither lift nor repeat that ban.
#[test]
fn waiting_ban_outlasts_further_packets() {
    let lab = scene();
    let command = format!("[\"/bin/sh\", \"-c\", \"echo begun >>'{}'; exec sleep 4\"]", lab.path("notes").display());
    let more = format!("[block.run]\ncommand = {command}\nfirst = true\ntimeout = \"60s\"\n");
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["run", "nft"], &more), &["--expire", "1h"]);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        scan(&lab, false);
        std::thread::sleep(Duration::from_millis(500));
    }
    let attacker = IpAddr::from(lab.v4("attacker"));
    lab.expect_ban(attacker);
    assert_eq!(text(&lab, "notes").lines().count(), 1, "{:?}", daemon.lines_with(""));
    let vanished = daemon.lines_with("no longer in the kernel");
    assert!(vanished.is_empty(), "{vanished:?}");
    daemon.stop();
}

/// A full set refuses an operator's ban, which a route enforces.
#[test]
fn ban_refused_by_set_stays_in_route() {
    let lab = scene();
    let daemon = Daemon::start_configured(
        &lab,
        &settings(&lab, &["nft", "route"], "[trap]\ntcp = false\n[block.nft]\nsize = 4\n"),
        &["--expire", "1h"],
    );
    lab.nft("add element inet portsentry blocked { 192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4 }");
    daemon.expect_line("Host 192.0.2.4 has been blocked by nft");
    let source = lab.v4("attacker").to_string();
    let output = lab.operate(&["block", &source]);
    assert_eq!(output.code, Some(0), "{output:?}");
    daemon.expect_line("set inet portsentry blocked is full (4 elements)");
    expect_held(&lab, "route", false, &daemon);
    send_to_one_port(&lab);
    assert!(daemon.lines_with("no longer in the kernel").is_empty(), "{}", daemon.log());
    assert!(held(&lab, "route").contains(&source), "{}", held(&lab, "route"));
    assert!(lab.operate(&["list"]).out.contains(&source), "{:?}", lab.operate(&["list"]));
    daemon.stop();
}

/// A rule on the packet path deletes the element, so the kernel sends no notification.
#[test]
fn silently_vanished_ban_keeps_other_backends() {
    let lab = scene();
    let text = settings(&lab, &["nft", "route", "hosts-deny"], "[trap]\ntcp = false\n");
    let daemon = Daemon::start_configured(&lab, &text, &["--expire", "1h"]);
    scan(&lab, false);
    ["nft", "route", "hosts-deny"].iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    lab.nft("add chain inet portsentry thief { type filter hook prerouting priority -400; }");
    lab.nft("add rule inet portsentry thief tcp dport 950 delete @blocked { ip saddr }");
    send_to_one_port(&lab);
    lab.nft("flush chain inet portsentry thief");
    daemon.expect_line("adminalert: bans that were missing in the kernel's sets and have been restored: 1");
    ["nft", "route", "hosts-deny"].iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    assert!(daemon.lines_with("no longer in the kernel").is_empty(), "{}", daemon.log());
    daemon.stop();
}

/// The attacker sends packets to one port for longer than the sensor takes to verify its ban in the kernel.
fn send_to_one_port(lab: &Lab) {
    let (source, target) = ends(lab, false);
    for _ in 0..30 {
        lab.probe("attacker", source, target, &[950]);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn reject_answers_and_drop_does_not() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let more = "[block.nft]\naction = \"reject\"\n";
    let daemon = Daemon::start_configured(&lab, &settings(&lab, &["nft"], more), &["--expire", "1h"]);
    for v6 in [false, true] {
        scan(&lab, v6);
        expect_held(&lab, "nft", v6, &daemon);
        let (_, target) = ends(&lab, v6);
        let begin = Instant::now();
        assert!(!lab.is_served("attacker", target, EIGHT[0], TIMEOUT * slowness()));
        assert!(begin.elapsed() < TIMEOUT / 2 * slowness(), "{v6}: the refusal took {:?}", begin.elapsed());
    }
    daemon.stop();
}

#[test]
fn banned_source_loses_connections_if_configured() {
    let lab = scene();
    let banned: IpAddr = lab.v4("attacker").into();
    // A service that sends nothing, so that the connection stays.
    let service = lab.inside("victim", || std::net::TcpListener::bind((lab.victim_v4("attacker"), 22)).unwrap());
    let daemon = start(&lab, &["nft"]);
    let client = lab.inside("attacker", || std::net::TcpStream::connect((lab.victim_v4("attacker"), 22)).unwrap());
    let (mut server, _) = service.accept().unwrap();
    scan(&lab, false);
    lab.expect_ban(banned);
    server.set_read_timeout(Some(TIMEOUT)).unwrap();
    // A read that a signal interrupts is repeated.
    let read = std::io::Read::read_exact(&mut server, &mut [0]);
    let error = read.expect_err("nothing was sent");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted, "{error}");
    daemon.expect_line(&format!("adminalert: connections of Host {banned} that were ended: 1"));
    drop(client);
    std::thread::sleep(SHORTLY);
    daemon.stop();
}

fn is_alive([client, server]: &mut [TcpStream; 2]) -> bool {
    server.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.write_all(b"x").is_ok() && server.read_exact(&mut [0]).is_ok()
}

/// The scanner is in this host's own /64, as is everything that it might disturb.
#[test]
fn ban_leaves_connections_of_exempt_addresses() {
    let lab = Lab::new(&["attacker"]);
    let (own, gateway) = (IpAddr::from(lab.victim_v6("attacker")), IpAddr::from(lab.v6("attacker")));
    let scanner: IpAddr = lab.add_neighbour("attacker").into();
    let network = format!("{}/64", lab.v6_network("attacker"));
    lab.victim_ip(&format!("-6 route add 2001:db8:99::/48 via {gateway}"));
    let listen = |host| lab.inside(host, || TcpListener::bind("[::]:22").unwrap());
    let (here, there) = (listen("victim"), listen("attacker"));
    let daemon = Daemon::start_configured(&lab, "expire = \"1h\"\n", &[]);
    let open = |host, source, listener: &TcpListener, to| {
        let client = lab.open_from(host, source, SocketAddr::new(to, 22)).unwrap();
        [client, listener.accept().unwrap().0]
    };
    let mut exempt = [
        ("of a local program to an own address", open("victim", own, &here, own)),
        ("to the gateway", open("victim", own, &there, gateway)),
        ("of the gateway", open("attacker", gateway, &here, own)),
    ];
    let [mut client, _server] = open("attacker", scanner, &here, own);
    // A source with a connection to a service is banned at its eighth port.
    lab.probe("attacker", scanner, own, &EIGHT.map(|port| port + 900));
    lab.expect_ban(lab.v6_network("attacker").into());
    daemon.expect_line(&format!("adminalert: connections of Host {network} that were ended: 1"));
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert!(client.read(&mut [0]).is_err(), "the scanner's own connection is reset");
    for (which, connection) in &mut exempt {
        assert!(is_alive(connection), "the connection {which} was ended");
    }
    daemon.stop();
}

/// An address in the attacker's /64 that is not the attacker's own.
const FAR_NEIGHBOUR: &str = "2001:db8:66::9";

#[test]
fn prefix_with_exempt_address_is_refused() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let all = settings(&lab, &["nft", "hosts-deny", "run"], "");
    let allow = format!("[allow]\nnetworks = [\"{FAR_NEIGHBOUR}\"]\n");
    let daemon = Daemon::start_configured(&lab, &(all.clone() + &allow), &["--expire", "1h"]);
    scan(&lab, true);
    expect_held(&lab, "nft", true, &daemon);
    for backend in ["hosts-deny", "run"] {
        let refusal =
            format!("Host {FAR_NETWORK}/64 could not be blocked via {backend}: it overlaps {FAR_NEIGHBOUR}/128");
        daemon.expect_line(&refusal);
        assert_eq!(daemon.lines_with(&refusal).len(), 1, "one line for {backend}");
    }
    std::thread::sleep(SHORTLY);
    assert_eq!((text(&lab, "hosts.deny").as_str(), text(&lab, "calls").as_str()), (DENY, ""));
    assert!(!is_served(&lab, true), "nftables blocks the scanner");
    lab.run("attacker", "ip", &["-6", "addr", "add", &format!("{FAR_NEIGHBOUR}/64"), "dev", "uplink", "nodad"]);
    let neighbour: IpAddr = FAR_NEIGHBOUR.parse().unwrap();
    let service = SocketAddr::new(ends(&lab, true).1, EIGHT[0]);
    let mut client = lab.open_from("attacker", neighbour, service).expect("the allowed address passes");
    assert!(client.read(&mut [0]).is_ok_and(|read| read == 1), "it receives the banner");
    daemon.stop();
    let daemon = Daemon::start_configured(&lab, &(all + &allow), &["--expire", "1h"]);
    std::thread::sleep(SHORTLY);
    assert_eq!((text(&lab, "hosts.deny").as_str(), text(&lab, "calls").as_str()), (DENY, ""), "after a restart");
    daemon.stop();
}

#[test]
fn ban_ends_where_address_becomes_exempt() {
    let lab = scene();
    let backends = ["nft", "hosts-deny", "run"];
    let daemon = start(&lab, &backends);
    scan(&lab, true);
    backends.iter().for_each(|backend| expect_held(&lab, backend, true, &daemon));
    let counts = lab.ask(&["status"])["bans"].clone();
    assert_eq!((&counts["made"], &counts["failed"]), (&1.into(), &0.into()), "one ban with three backends: {counts}");
    lab.succeed(&["allow", FAR_NEIGHBOUR, "--for", "1h"]);
    daemon.expect_line(&format!("hosts.deny and the command no longer block {FAR_NETWORK}/64, because"));
    eventually("the line is removed", || text(&lab, "hosts.deny") == DENY);
    eventually("the command is undone", || calls(&lab, "end|") == 1);
    assert!(held(&lab, "nft").contains(&FAR_NETWORK.to_string()), "nftables blocks the rest of the /64");
    // A target that is exempt as a whole is unblocked, and that is the only line.
    scan(&lab, false);
    backends.iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    let attacker = lab.v4("attacker").to_string();
    lab.succeed(&["allow", &attacker, "--for", "1h"]);
    daemon.expect_line(&format!("Host {attacker} has been unblocked by the allow-list"));
    eventually("the line is removed", || text(&lab, "hosts.deny") == DENY);
    assert_eq!(daemon.lines_with("no longer block").len(), 1);
    daemon.stop();
}

/// The allow-list gains an entry while the program is down.
#[test]
fn restart_ends_ban_around_exempt_address() {
    let lab = scene();
    let all = settings(&lab, &["nft", "hosts-deny", "run"], "");
    let daemon = Daemon::start_configured(&lab, &all, &["--expire", "1h"]);
    scan(&lab, true);
    ["nft", "hosts-deny", "run"].iter().for_each(|backend| expect_held(&lab, backend, true, &daemon));
    // The ledger must have recorded the command.
    daemon.expect_line("on-ban");
    daemon.stop();
    let allow = format!("[allow]\nnetworks = [\"{FAR_NEIGHBOUR}\"]\n");
    let all = all + &allow;
    let daemon = Daemon::start_configured(&lab, &all, &["--expire", "1h"]);
    eventually("the line is removed", || text(&lab, "hosts.deny") == DENY);
    eventually("the command is undone", || calls(&lab, "end|") == 1);
    assert!(held(&lab, "nft").contains(&FAR_NETWORK.to_string()));
    eventually("the ledger knows", || lab.ask(&["list"])["bans"][0]["method"] == "nft");
    daemon.stop();
    let daemon = Daemon::start_configured(&lab, &all, &["--expire", "1h"]);
    std::thread::sleep(SHORTLY);
    assert_eq!(calls(&lab, "end|"), 1, "the command is undone once");
    daemon.stop();
}

#[test]
fn changed_method_leaves_no_routes_or_lines() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let daemon = start(&lab, &["route", "hosts-deny"]);
    for v6 in [false, true] {
        scan(&lab, v6);
        ["route", "hosts-deny"].iter().for_each(|backend| expect_held(&lab, backend, v6, &daemon));
    }
    daemon.stop();
    let daemon = start(&lab, &["nft"]);
    expect_methods(&lab, "nft", 2);
    daemon.expect_line("routes of earlier bans have been removed, because \"route\" is not in block.method: 2;");
    daemon.expect_line("lines of earlier bans are removed from ");
    [false, true].iter().for_each(|v6| expect_held(&lab, "nft", *v6, &daemon));
    let clean = || routes(&lab).is_empty() && text(&lab, "hosts.deny") == DENY;
    let left = || format!("{} {}", routes(&lab), text(&lab, "hosts.deny"));
    assert!(soon(clean), "left of the earlier bans: {}", left());
    lab.succeed(&["unblock", "--all"]);
    expect_nothing_left(&lab);
    daemon.stop();
}

/// Waits until `list` shows `method` for each of `bans` bans.
fn expect_methods(lab: &Lab, method: &str, bans: usize) {
    eventually("the list shows the new backend", || {
        let list = lab.ask(&["list"]);
        let bans = list["bans"].as_array().filter(|found| found.len() == bans);
        bans.is_some_and(|bans| bans.iter().all(|ban| ban["method"] == method))
    });
}

#[test]
fn earlier_bans_move_to_lone_command() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let daemon = start(&lab, &["nft"]);
    let banned = lab.provoke_ban("attacker").to_string();
    lab.succeed(&["block", "198.51.100.9"]);
    expect_methods(&lab, "nft", 2);
    daemon.stop();
    // nftables still blocks them.
    let daemon = start(&lab, &["nft", "run"]);
    expect_methods(&lab, "nft", 2);
    assert_eq!(calls(&lab, "begin"), 0, "the command runs for new bans only");
    daemon.stop();
    for _ in 0..2 {
        let daemon = start(&lab, &["run"]);
        expect_methods(&lab, "run", 2);
        eventually("the command blocks the sources", || calls(&lab, "begin") == 2);
        std::thread::sleep(SHORTLY);
        assert_eq!(
            (calls(&lab, "begin"), calls(&lab, "end")),
            (2, 0),
            "the command runs once: {}",
            text(&lab, "calls")
        );
        let notes = lab.ask(&["list"])["notes"].clone();
        assert_eq!(notes, serde_json::json!([]), "no table is needed");
        daemon.stop();
    }
    let daemon = start(&lab, &["run"]);
    lab.succeed(&["unblock", &banned]);
    eventually("the command is undone", || calls_for(&lab, "end", &banned) == 1);
    daemon.stop();
}

#[test]
fn command_left_out_of_method_is_undone() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let daemon = start(&lab, &["nft", "run"]);
    let begun = lab.provoke_ban("attacker").to_string();
    eventually("the command is run", || calls_for(&lab, "begin", &begun) == 1);
    // The ledger must have recorded the command.
    daemon.expect_line("on-ban");
    daemon.stop();
    let without = settings(&lab, &["nft"], &run_settings(&lab, ""));
    let daemon = Daemon::start_configured(&lab, &without, &["--expire", "1h"]);
    lab.succeed(&["block", "198.51.100.9"]);
    lab.succeed(&["unblock", "198.51.100.9"]);
    assert_eq!(calls_for(&lab, "end", &begun), 0, "the ban is still in force");
    lab.succeed(&["unblock", &begun]);
    eventually("the command is undone", || calls_for(&lab, "end", &begun) == 1);
    std::thread::sleep(SHORTLY);
    assert_eq!(text(&lab, "calls").lines().count(), 2, "no command runs for a ban without one");
    daemon.stop();
}

/// Bans these targets by hand for these times, and waits until the command has run for each and the ledger has them.
fn ban_by_hand(lab: &Lab, bans: &[(&str, &str)]) {
    for (target, time) in bans {
        let begun = calls_for(lab, "begin", target);
        lab.succeed(&["block", target, "--expire", time]);
        eventually("the command runs", || calls_for(lab, "begin", target) == begun + 1);
        let is_recorded = || ledger(lab).iter().any(|entry| entry.ban.target.to_string() == *target);
        eventually("the ban is recorded", is_recorded);
    }
}

/// Commands of bans that end while the daemon is down are undone by the next start, once.
fn test_undo_after_restart(end: impl Fn(Daemon)) {
    let lab = scene();
    let config = settings(&lab, &["nft", "run"], "");
    let start = || Daemon::start_configured(&lab, &config, &["--expire", "1h"]);
    let [short, again, deleted, long] = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.4"];
    let span = Duration::from_secs(6) * slowness();
    let time = format!("{}s", span.as_secs());
    let daemon = start();
    ban_by_hand(&lab, &[(again, &time), (again, "1h"), (deleted, "1h"), (long, "1h"), (short, &time)]);
    end(daemon);
    let ends = || [short, again, deleted, long].map(|target| calls_for(&lab, "end", target));
    assert_eq!(ends(), [0; 4], "all bans are in force");
    lab.nft(&format!("delete element inet portsentry blocked {{ {deleted} }}"));
    std::thread::sleep(span + Duration::from_secs(1));
    assert_eq!(ends(), [0; 4], "no process was running that could have undone it");
    let daemon = start();
    let is_undone = || ends() == [1, 0, 1, 0];
    assert!(soon(is_undone), "{}\n{}", text(&lab, "calls"), daemon.log());
    eventually("both ends are logged", || daemon.lines_with(" at the end of the ban").len() == 2);
    end(daemon);
    let daemon = start();
    std::thread::sleep(Duration::from_secs(1) * slowness());
    assert_eq!(ends(), [1, 0, 1, 0], "each command is undone once");
    lab.succeed(&["unblock", again]);
    eventually("the newer ban is undone at its own end", || ends() == [1, 1, 1, 0]);
    daemon.stop();
}

#[test]
fn stopped_daemon_undoes_ended_bans_later() {
    test_undo_after_restart(|daemon| drop(daemon.stop()));
}

#[test]
fn killed_daemon_undoes_ended_bans_later() {
    test_undo_after_restart(|daemon| {
        // The last changes are on their way to the ledger.
        std::thread::sleep(Duration::from_millis(500) * slowness());
        daemon.kill();
    });
}

#[test]
fn log_only_start_undoes_ended_bans() {
    let lab = scene();
    let config = settings(&lab, &["run"], "");
    let daemon = Daemon::start_configured(&lab, &config, &["--expire", "1h"]);
    let span = Duration::from_secs(6) * slowness();
    let target = "198.51.100.1";
    ban_by_hand(&lab, &[(target, &format!("{}s", span.as_secs()))]);
    daemon.kill();
    std::thread::sleep(span);
    assert_eq!(calls_for(&lab, "end", target), 0);
    for _ in 0..2 {
        let daemon = Daemon::start_configured(&lab, &config, &["--log-only"]);
        eventually("the command is undone", || calls_for(&lab, "end", target) > 0);
        std::thread::sleep(Duration::from_secs(1) * slowness());
        assert_eq!(calls_for(&lab, "end", target), 1);
        daemon.stop();
    }
}

#[test]
fn failed_start_keeps_table_of_earlier_method() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let daemon = start(&lab, &["nft"]);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    daemon.stop();
    // Its only port is in use, so the last check of the start fails.
    let busy = format!("[tcp]\nmode = \"connect\"\nports = \"{}\"\n[udp]\nmode = \"off\"\n", EIGHT[0]);
    let path = lab.write("busy.toml", &settings(&lab, &["route"], &busy));
    let ended = Daemon::run_to_end(&lab, &[], &["--config", path.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(held(&lab, "nft").contains(&ends(&lab, false).0.to_string()), "the ban is still enforced: {ended:?}");
    assert!(!is_served(&lab, false));
}

#[test]
fn removed_nft_backend_moves_its_bans() {
    let lab = scene();
    let _services = Services::open(&lab, &EIGHT[..1]);
    let daemon = start(&lab, &["nft"]);
    scan(&lab, false);
    expect_held(&lab, "nft", false, &daemon);
    daemon.stop();
    let daemon = start(&lab, &["route", "hosts-deny"]);
    daemon.expect_line(
        "table inet portsentry of an earlier run has been removed, because \"nft\" is not in block.method",
    );
    ["route", "hosts-deny"].iter().for_each(|backend| expect_held(&lab, backend, false, &daemon));
    expect_methods(&lab, "route hosts-deny", 1);
    assert!(soon(|| lab.nft("list ruleset").is_empty()));
    assert!(!is_served(&lab, false));
    assert_eq!(lab.operate(&["unblock", &ends(&lab, false).0.to_string()]).code, Some(0));
    expect_nothing_left(&lab);
    assert!(is_served_at_last(&lab, false));
    // The table of another program is left alone.
    daemon.stop();
    lab.nft("table inet portsentry { chain theirs { }; }");
    let daemon = start(&lab, &["route"]);
    assert!(lab.nft("list ruleset").contains("chain theirs"));
    daemon.stop();
}
