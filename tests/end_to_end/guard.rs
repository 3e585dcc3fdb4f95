//! Tests the reaction to changes that other programs make to the table at run time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use portsentry::enforce::nft::Table;
use portsentry::types::BanTarget;

use netns_lab::daemon::Daemon;
use netns_lab::services::{EIGHT, Services};
use netns_lab::{Lab, TIMEOUT, slowness, soon, within};

const RESTORED: &str = "adminalert: table inet portsentry was missing and has been created again";

/// Waits until the table is restored with a ban of `address`; panics at the time limit.
fn wait_for_ban(lab: &Lab, address: IpAddr) {
    let table = || lab.command("victim", "nft").args(["list", "set", "inet", "portsentry", "blocked"]).output().ok();
    let there = || table().filter(|output| String::from_utf8_lossy(&output.stdout).contains(&address.to_string()));
    assert!(within(TIMEOUT, there).is_some(), "{address} is not blocked again");
}

#[test]
fn flush_restores_bans_with_remaining_times() {
    let lab = Lab::new(&["attacker", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let before = lab.expect_ban(attacker);
    for (round, flush) in ["flush ruleset", "delete table inet portsentry"].into_iter().enumerate() {
        lab.nft(flush);
        let swept = Instant::now();
        wait_for_ban(&lab, attacker);
        // Far more than needed; a benchmark measures the time.
        assert!(swept.elapsed() < Duration::from_secs(20) * slowness(), "{flush}: {:?}", swept.elapsed());
        let after = lab.expect_ban(attacker);
        let (before, after) = (before.expires.unwrap(), after.expires.unwrap());
        assert!(after.abs_diff(before) < Duration::from_secs(30) * slowness(), "{before:?} became {after:?}");
        assert!(soon(|| daemon.lines_with(RESTORED).len() == round + 1));
    }
    lab.probe_until_banned("other", lab.victim_v4("other").into());
    daemon.stop();
}

#[test]
fn reloaded_ruleset_gets_its_bans_back() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let own = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/nft/portsentry-trap.nft")).unwrap();
    let file = lab.write("ruleset.nft", &format!("flush ruleset\n{own}"));
    lab.load_rules(&file);
    wait_for_ban(&lab, attacker);
    daemon.expect_line(RESTORED);
    daemon.stop();
}

#[test]
fn manual_changes_of_bans_are_reported() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    lab.nft(&format!("delete element inet portsentry blocked {{ {attacker} }}"));
    daemon.expect_line(&format!("adminalert: Host {attacker} has been unblocked by nft (process "));
    assert!(lab.banned().is_empty(), "and stays so");

    lab.nft(&format!("add element inet portsentry blocked {{ {attacker} timeout 1h }}"));
    daemon.expect_line(&format!("adminalert: Host {attacker} has been blocked by nft (process "));
    lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &[901, 902, 903, 904]);
    daemon.expect_line(&format!("Host: {attacker}/{attacker} is already blocked Ignoring"));
    assert_eq!(
        lab.expect_ban(attacker).timeout,
        Some(Duration::from_secs(3600)),
        "the administrator's ban is not changed"
    );
    daemon.stop();
}

#[test]
fn element_with_host_bits_becomes_its_network() {
    let lab = Lab::new(&["attacker"]);
    let _services = Services::open(&lab, &EIGHT[..1]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (source, network) = (lab.v6("attacker"), lab.v6_network("attacker"));
    let target = lab.victim_v6("attacker").into();
    assert!(lab.is_served("attacker", target, EIGHT[0], TIMEOUT));
    let add = format!("add element inet portsentry blocked6 {{ {source} timeout 1h }}");
    lab.nft(&add);
    lab.expect_banned(&[network.into()]);
    daemon.expect_line(&format!("added {source} to set inet portsentry blocked6, where only a /64 matches packets"));
    assert_eq!(lab.expect_ban(network.into()).timeout, Some(Duration::from_secs(3600)));
    assert!(!lab.is_served("attacker", target, EIGHT[0], Duration::from_millis(300) * slowness()), "bans are enforced");
    lab.succeed(&["unblock", &source.to_string()]);
    lab.expect_banned(&[]);
    daemon.stop();

    lab.nft(&add);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.expect_banned(&[network.into()]);
    assert!(
        !lab.is_served("attacker", target, EIGHT[0], Duration::from_millis(300) * slowness()),
        "the ban works after a restart too"
    );
    lab.succeed(&["unblock", "--all"]);
    lab.expect_banned(&[]);
    daemon.stop();
}

#[test]
fn kernel_allow_list_is_restored() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let own = lab.victim_v4("attacker").to_string();
    assert!(lab.set_text("allowed").contains(&own));
    lab.nft("flush set inet portsentry allowed");
    daemon.expect_line("changed the kernel's allow-list, which was restored");
    assert!(soon(|| lab.set_text("allowed").contains(&own)));
    daemon.stop();
}

const REPAIRED: &str = "adminalert: table inet portsentry had been changed (by nft (process ";

/// The table's rules without their counters, sorted by chain.
fn rules(lab: &Lab) -> Option<String> {
    let output = lab.command("victim", "nft").args(["-s", "list", "table", "inet", "portsentry"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // The text before the chain are the sets, whose times change.
    let (sets, rules) = text.split_once("\tchain ")?;
    let mut chains: Vec<&str> =
        rules.split("\tchain ").map(str::trim_end).map(|chain| chain.trim_end_matches(['}', '\n'])).collect();
    chains.sort_unstable();
    Some(format!("{} chain {}", sets.contains("dormant"), chains.join("chain ")))
}

/// Waits until the rules are `expected` again.
fn expect_rules(lab: &Lab, expected: &str, after: &str) {
    let same = || rules(lab).filter(|rules| rules == expected);
    assert!(within(TIMEOUT, same).is_some(), "after {after:?}: {:?}, not {expected:?}", rules(lab));
}

#[test]
fn rule_changes_are_undone_with_bans() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let ban = lab.expect_ban(attacker);
    let expected = rules(&lab).unwrap();
    let accept = format!("insert rule inet portsentry prerouting ip saddr {attacker} accept");
    let altered = [
        (accept.as_str(), "another rule than `ip saddr @allowed accept` at position 1 of chain \"prerouting\""),
        (
            "flush chain inet portsentry prerouting",
            "no rule `ip saddr @allowed accept` at position 1 of chain \"prerouting\"",
        ),
        ("delete chain inet portsentry prerouting", "no chain \"prerouting\""),
        ("add table inet portsentry { flags dormant; }", "the flags 0x1"),
    ];
    for (index, (command, difference)) in altered.into_iter().enumerate() {
        lab.nft(command);
        let line = within(TIMEOUT, || daemon.lines_with(REPAIRED).into_iter().nth(index));
        let line = line.unwrap_or_else(|| panic!("no report about {command:?}"));
        assert!(line.contains(difference) && line.ends_with(") and has been restored"), "{line}");
        expect_rules(&lab, &expected, command);
    }
    let after = lab.expect_ban(attacker);
    assert_eq!(after.timeout, ban.timeout);
    assert!(after.expires.unwrap() <= ban.expires.unwrap(), "the ban was not touched: {ban:?}, {after:?}");
    daemon.stop();
}

#[test]
fn deleted_set_returns_with_bans() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let own = lab.victim_v4("attacker").to_string();
    let expected = rules(&lab).unwrap();
    let sets = "delete set inet portsentry blocked; delete set inet portsentry allowed";
    // The sets are used by rules, which must be removed first.
    lab.nft(&format!("flush table inet portsentry; {sets}"));
    wait_for_ban(&lab, attacker);
    expect_rules(&lab, &expected, sets);
    assert!(lab.set_text("allowed").contains(&own));
    daemon.expect_line("and has been restored; bans restored with their remaining time: 1");
    daemon.stop();
}

#[test]
fn foreign_chain_beside_ours_is_kept() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.nft("add chain inet portsentry mine { type filter hook input priority 0; }");
    lab.nft("add rule inet portsentry mine ip saddr @blocked counter");
    lab.nft("add set inet portsentry mine { type inet_service; }");
    daemon.expect_line(
        "table inet portsentry contains another set \"mine\", another chain \"mine\" (hook input, policy accept)",
    );
    let theirs = rules(&lab).unwrap();
    // Later changes are processed later.
    lab.nft("add element inet portsentry blocked { 192.0.2.99 timeout 1h }");
    daemon.expect_line("Host 192.0.2.99 has been blocked by nft");
    lab.nft("insert rule inet portsentry prerouting accept");
    daemon.expect_line(REPAIRED);
    expect_rules(&lab, &theirs, "insert rule");
    assert_eq!(daemon.lines_with("portsentry had been").len(), 1, "only our own rules were repaired");
    lab.provoke_ban("attacker");
    daemon.stop();
    let again = Daemon::start(&lab, &["--expire", "24h"]);
    again.expect_line("table inet portsentry contains another set \"mine\"");
    expect_rules(&lab, &theirs, "a restart");
    lab.nft("delete chain inet portsentry mine; delete set inet portsentry mine");
    again.expect_line("table inet portsentry no longer contains objects of other programs");
    again.stop();
}

#[test]
fn table_returns_after_looping_foreign_changes() {
    let lab = Lab::new(&["attacker"]);
    let mut daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let expected = rules(&lab).unwrap();
    let script = format!(
        "for n in $(seq {}); do
            nft insert rule inet portsentry prerouting accept
            nft flush set inet portsentry allowed
            [ $((n % 10)) -ne 0 ] || nft flush ruleset
        done 2>/dev/null; true",
        300 / slowness()
    );
    let start = Instant::now();
    lab.run("victim", "sh", &["-c", &script]);
    wait_for_ban(&lab, attacker);
    expect_rules(&lab, &expected, &script);
    assert!(daemon.is_running());
    let own = lab.victim_v4("attacker").to_string();
    assert!(soon(|| lab.set_text("allowed").contains(&own)));
    let lines = daemon.lines_with("table inet portsentry").len() + daemon.lines_with("allow-list").len();
    let took = start.elapsed();
    let minutes = usize::try_from(took.as_secs() / 60).unwrap() + 1;
    assert!(lines <= 20 * minutes, "{lines} lines in {took:?}");
    daemon.stop();
}

#[test]
fn silently_vanished_ban_is_restored() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    // When a rule on the packet path deletes an element, the kernel sends no notification.
    let chain = "add chain inet portsentry thief { type filter hook prerouting priority -400; }";
    let steal = "add rule inet portsentry thief tcp dport 4242 counter delete @blocked { ip saddr }";
    lab.nft(&format!("{chain}; {steal}"));
    lab.probe("attacker", attacker, lab.victim_v4("attacker").into(), &[4242]);
    // The ban may be restored before the test sees it missing.
    let thief = || lab.nft("list chain inet portsentry thief");
    assert!(soon(|| thief().contains("counter packets 1 ")), "the rule does not work: {}", thief());
    lab.nft("flush chain inet portsentry thief");
    daemon.expect_line("adminalert: bans that were missing in the kernel's sets and have been restored: 1");
    let ban = lab.expect_ban(attacker);
    assert_eq!(ban.timeout, Some(Duration::from_secs(86_400)), "as it was");
    assert!(ban.expires < ban.timeout);
    daemon.stop();
}

#[test]
fn table_flushed_in_loop_is_repaired_promptly() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let attacker = lab.provoke_ban("attacker");
    let mut table = lab.inside("victim", || Table::open().unwrap());
    let mut times = Vec::new();
    for _ in 0..40 {
        let begin = Instant::now();
        lab.nft("flush ruleset");
        let banned = || table.time_left(BanTarget::containing(attacker)).ok().flatten();
        assert!(within(TIMEOUT, banned).is_some(), "{attacker} is not blocked again");
        times.push(begin.elapsed());
    }
    // Other load delays some of the repairs, a pause before a repair delays all of them.
    let fastest = times[20..].iter().min().unwrap();
    assert!(*fastest < Duration::from_millis(250) * slowness(), "even late repairs follow at once: {times:?}");
    let line = daemon.expect_line(" keeps changing table inet portsentry; stop that process");
    assert!(line.contains("nft (process "), "the process is named: {line}");
    daemon.stop();
}

#[test]
fn many_bans_are_restored_after_repeated_flushes() {
    let lab = Lab::new(&["attacker"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let elements: Vec<String> = (0..3_000).map(|n| format!("9.0.{}.{} timeout 1h", n / 250, n % 250 + 1)).collect();
    let add = format!("add element inet portsentry blocked {{ {} }}\n", elements.join(", "));
    let file = lab.write("bans.nft", &add);
    lab.load_rules(&file);
    daemon.expect_line("has been blocked by nft (process ");
    let attacker = lab.provoke_ban("attacker");
    for _ in 0..20 {
        lab.nft("flush ruleset");
        // The most recently seen sources are restored first.
        wait_for_ban(&lab, attacker);
    }
    let all = || (lab.set_text("blocked").matches("expires").count() == 3_001).then_some(());
    assert!(within(TIMEOUT, all).is_some(), "all bans follow");
    daemon.stop();
}
