//! What the trials share: a scene with both families, what each way holds, and the operator's commands.

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use portsentry::ledger::{Entry, Ledger};

use netns_lab::daemon::Daemon;
use netns_lab::services::EIGHT;
use netns_lab::{Lab, TIMEOUT, slowness, within};

/// How long somebody who gets no answer waits for it.
pub(crate) const SHORTLY: Duration = Duration::from_millis(300);

/// Ports that nobody serves; more than are forgiven.
pub(crate) const CLOSED: [u16; 4] = [901, 902, 903, 904];

/// What the administrator has written into hosts.deny.
pub(crate) const DENY: &str = "# Nobody but the office\nsshd: 203.0.113.5 # no end of trouble\n\nALL: .example.net\n";

/// The attacker's IPv6 address, out of no network of the victim's: no route may cut that off.
const FAR: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 2);

/// The first address of its /64.
pub(crate) const FAR_NETWORK: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 0);

/// A lab with one `attacker`, whose IPv6 address is [`FAR`] and none else.
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

/// The attacker's address of one family, and the victim's to it.
pub(crate) fn ends(lab: &Lab, v6: bool) -> (IpAddr, IpAddr) {
    match v6 {
        false => (lab.v4("attacker").into(), lab.victim_v4("attacker").into()),
        true => (FAR.into(), lab.victim_v6("attacker").into()),
    }
}

/// The attacker touches more closed ports than are forgiven.
pub(crate) fn scan(lab: &Lab, v6: bool) {
    let (source, target) = ends(lab, v6);
    lab.touch("attacker", source, target, &CLOSED);
}

/// Whether the attacker gets an answer of a service soon.
pub(crate) fn is_served(lab: &Lab, v6: bool) -> bool {
    lab.is_served("attacker", ends(lab, v6).1, EIGHT[0], SHORTLY * slowness())
}

/// Whether the attacker is served, however long that takes.
pub(crate) fn is_served_at_last(lab: &Lab, v6: bool) -> bool {
    lab.is_served("attacker", ends(lab, v6).1, EIGHT[0], TIMEOUT)
}

/// The own routes of both families, in whatever table.
pub(crate) fn routes(lab: &Lab) -> String {
    let shown = |family| lab.run("victim", "ip", &[family, "route", "show", "table", "all", "proto", "112"]);
    shown("-4") + &shown("-6")
}

/// What stands in a file of the lab's.
pub(crate) fn text(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(lab.path(name)).unwrap_or_default()
}

/// Everything that one way holds, as text in which a blocked source's address stands.
pub(crate) fn held(lab: &Lab, way: &str) -> String {
    match way {
        "nft" => lab.banned().iter().map(|address| format!("{address} ")).collect(),
        "route" => routes(lab),
        "hosts-deny" => text(lab, "hosts.deny"),
        "run" => text(lab, "calls"),
        other => panic!("there is no way {other}"),
    }
}

/// Waits until `way` holds the attacker's address of this family.
pub(crate) fn expect_held(lab: &Lab, way: &str, v6: bool, daemon: &Daemon) {
    let word = if v6 { FAR_NETWORK.to_string() } else { lab.v4("attacker").to_string() };
    let found = within(TIMEOUT, || held(lab, way).contains(&word).then_some(()));
    let log = || daemon.lines_with("").join("\n");
    assert!(found.is_some(), "{way} never held {word}: {:?}\n{}", held(lab, way), log());
}

/// Waits until nothing is left of any ban: no element, no route, and a hosts.deny as it was before.
pub(crate) fn expect_nothing_left(lab: &Lab) {
    let clean = || lab.banned().is_empty() && routes(lab).is_empty() && text(lab, "hosts.deny") == DENY;
    let left = || format!("{:?} {:?} {:?}", lab.banned(), routes(lab), text(lab, "hosts.deny"));
    assert!(within(TIMEOUT, || clean().then_some(())).is_some(), "left: {}", left());
}

/// Settings for these ways, with what the lab has for each.
pub(crate) fn settings(lab: &Lab, ways: &[&str], more: &str) -> String {
    let methods: Vec<String> = ways.iter().map(|way| format!("\"{way}\"")).collect();
    let deny = lab.path("hosts.deny").display().to_string();
    let mut text = format!("[block]\nmethod = [{}]\n[block.hosts_deny]\nfile = \"{deny}\"\n", methods.join(", "));
    if ways.contains(&"run") && !more.contains("[block.run]") {
        text += &run_settings(lab, "");
    }
    text + more
}

/// The section for the command, which notes its arguments and its environment in `calls`.
pub(crate) fn run_settings(lab: &Lab, more: &str) -> String {
    let (script, words) = (script(lab), "\"$TARGET$\", \"$PORT$\", \"$MODE$\", \"$REASON$\", \"$EXPIRES$\"");
    let script = script.display();
    format!(
        "[block.run]\ncommand = [\"{script}\", \"begin\", {words}]\nexpire_command = [\"{script}\", \"end\", {words}]\n{more}"
    )
}

/// One line for each call: the arguments, each with a `|` behind it, and the environment.
fn script(lab: &Lab) -> PathBuf {
    let calls = lab.path("calls").display().to_string();
    let text =
        format!("#!/bin/sh\nline=$(printf '%s|' \"$@\"; env | sort | tr '\\n' '|')\necho \"$line\" >>'{calls}'\n");
    lab.program("on-ban", &text)
}

/// The bans that the ledger says are in force now.
pub(crate) fn ledger(directory: &Path) -> Vec<Entry> {
    let copy = netns_lab::copy_of_state(directory);
    let (ledger, _) = Ledger::open(copy.path()).unwrap();
    let active = ledger.active(std::time::SystemTime::now()).unwrap();
    assert_eq!(active.unreadable, 0);
    active.items
}
