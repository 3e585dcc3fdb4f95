//! Provides helpers for the scenarios: a lab with both families, the state of each backend, and the operator's
//! commands.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use portsentry::ledger::LedgerEntry;

use netns_lab::daemon::Daemon;
use netns_lab::services::EIGHT;
use netns_lab::{Lab, TIMEOUT, slowness, soon};

/// Timeout of a client without an answer.
pub(crate) const SHORTLY: Duration = Duration::from_millis(300);

/// Closed ports; more than are forgiven.
pub(crate) const CLOSED: [u16; 4] = [901, 902, 903, 904];

/// The administrator's own lines in hosts.deny.
pub(crate) const DENY: &str = "# Nobody but the office\nsshd: 203.0.113.5 # no end of trouble\n\nALL: .example.net\n";

/// The attacker's IPv6 address, outside the victim's own networks, so that a route may block it.
const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 2);

/// The first address of its /64.
pub(crate) const FAR_NETWORK: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 0);

/// A lab with one `attacker`, whose only IPv6 address is [`FAR`].
pub(crate) fn scene() -> Lab {
    let lab = Lab::new(&["attacker"]);
    lab.victim_ip("route add 2001:db8:66::/48 dev attacker");
    let ip = |line: &str| lab.run("attacker", "ip", &line.split(' ').collect::<Vec<_>>());
    ip("-6 addr del fd77:0:0:1::2/64 dev uplink");
    ip(&format!("-6 addr add {FAR}/64 dev uplink nodad"));
    ip("-6 route add fd77:0:0:1::/64 dev uplink");
    lab.write("hosts.deny", DENY);
    lab
}

/// The attacker's address of one family, and the victim's address for it.
pub(crate) fn ends(lab: &Lab, v6: bool) -> (IpAddr, IpAddr) {
    match v6 {
        false => lab.ends_v4("attacker"),
        true => (FAR.into(), lab.victim_v6("attacker").into()),
    }
}

/// The attacker probes more closed ports than are forgiven.
pub(crate) fn scan(lab: &Lab, v6: bool) {
    let (source, target) = ends(lab, v6);
    lab.probe("attacker", source, target, &CLOSED);
}

/// True if a service answers the attacker soon.
pub(crate) fn is_served(lab: &Lab, v6: bool) -> bool {
    lab.is_served("attacker", ends(lab, v6).1, EIGHT[0], SHORTLY * slowness())
}

/// True if a service answers the attacker within the time limit.
pub(crate) fn is_served_at_last(lab: &Lab, v6: bool) -> bool {
    lab.is_served("attacker", ends(lab, v6).1, EIGHT[0], TIMEOUT)
}

/// Our own routes of both families, in any table.
pub(crate) fn routes(lab: &Lab) -> String {
    let shown = |family| lab.run("victim", "ip", &[family, "route", "show", "table", "all", "proto", "112"]);
    shown("-4") + &shown("-6")
}

/// The contents of a file in the lab.
pub(crate) fn text(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(lab.path(name)).unwrap_or_default()
}

/// The state of a backend as text, which contains the addresses of blocked sources.
pub(crate) fn held(lab: &Lab, backend: &str) -> String {
    match backend {
        "nft" => lab.banned().iter().map(|address| format!("{address} ")).collect(),
        "route" => routes(lab),
        "hosts-deny" => text(lab, "hosts.deny"),
        "run" => text(lab, "calls"),
        other => panic!("unknown backend {other}"),
    }
}

/// Waits until `backend` blocks the attacker's address of this family.
pub(crate) fn expect_held(lab: &Lab, backend: &str, v6: bool, daemon: &Daemon) {
    let word = if v6 { FAR_NETWORK.to_string() } else { lab.v4("attacker").to_string() };
    assert!(
        soon(|| held(lab, backend).contains(&word)),
        "{backend} never blocked {word}: {:?}\n{}",
        held(lab, backend),
        daemon.log()
    );
}

/// Waits until nothing is left of any ban: no element, no route, and the original hosts.deny.
pub(crate) fn expect_nothing_left(lab: &Lab) {
    let clean = || lab.banned().is_empty() && routes(lab).is_empty() && text(lab, "hosts.deny") == DENY;
    let left = || format!("{:?} {:?} {:?}", lab.banned(), routes(lab), text(lab, "hosts.deny"));
    assert!(soon(clean), "left: {}", left());
}

/// Configuration with these backends, with the lab's file or command for each.
pub(crate) fn settings(lab: &Lab, backends: &[&str], more: &str) -> String {
    let methods: Vec<String> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    let deny = lab.path("hosts.deny").display().to_string();
    let mut text = format!("[block]\nmethod = [{}]\n[block.hosts_deny]\nfile = \"{deny}\"\n", methods.join(", "));
    if backends.contains(&"run") && !more.contains("[block.run]") {
        text += &run_settings(lab, "");
    }
    text + more
}

/// The section for the command, which appends its arguments and its environment to `calls`.
pub(crate) fn run_settings(lab: &Lab, more: &str) -> String {
    let (script, words) = (script(lab), "\"$TARGET$\", \"$PORT$\", \"$MODE$\", \"$REASON$\", \"$EXPIRES$\"");
    let script = script.display();
    format!(
        "[block.run]\ncommand = [\"{script}\", \"begin\", {words}]\nexpire_command = [\"{script}\", \"end\", {words}]\n{more}"
    )
}

/// A script that writes one line per call: the arguments, each followed by `|`, and the environment.
fn script(lab: &Lab) -> PathBuf {
    let calls = lab.path("calls").display().to_string();
    let text =
        format!("#!/bin/sh\nline=$(printf '%s|' \"$@\"; env | sort | tr '\\n' '|')\necho \"$line\" >>'{calls}'\n");
    lab.program("on-ban", &text)
}

/// The bans in force according to the ledger.
pub(crate) fn ledger(lab: &Lab) -> Vec<LedgerEntry> {
    let active = lab.read_ledger(|ledger| ledger.active(std::time::SystemTime::now())).unwrap();
    assert_eq!(active.unreadable, 0);
    active.items
}
