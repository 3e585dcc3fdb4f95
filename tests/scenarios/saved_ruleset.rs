//! Tests the loading of a ruleset that was saved with `nft list ruleset`, a common way to make rules permanent.

use std::net::IpAddr;
use std::time::Duration;

use netns_lab::daemon::Daemon;
use netns_lab::{Lab, TIMEOUT, soon, within};

/// Makes two bans, saves the ruleset, and lifts one ban. Returns both addresses and the saved file, which begins with
/// `flush ruleset` if `flushes`.
fn saved(lab: &Lab, flushes: bool) -> (IpAddr, IpAddr, String) {
    let kept: IpAddr = lab.v4("kept").into();
    lab.probe("kept", kept, lab.victim_v4("kept").into(), &[901, 902, 903]);
    lab.expect_ban(kept);
    let lifted = lab.provoke_ban("lifted");
    std::thread::sleep(Duration::from_secs(3));
    let file = lab.path("nftables.conf");
    let first = if flushes { "flush ruleset\n" } else { "" };
    let text = first.to_owned() + &lab.nft("list ruleset");
    assert!(text.contains(&lifted.to_string()) && text.contains("elements = {"), "{text}");
    std::fs::write(&file, text).unwrap();
    assert_eq!(lab.operate(&["unblock", &lifted.to_string()]).code, Some(0));
    lab.expect_banned(&[kept]);
    (kept, lifted, file.display().to_string())
}

/// Asserts that the ledger decides: only its ban is in force, with its time, and no ban is attributed to an operator.
fn expect_ledger_decides(lab: &Lab, kept: IpAddr, lifted: IpAddr) {
    lab.expect_banned(&[kept]);
    let left = || lab.ask(&["explain", &kept.to_string()])["blocked"]["left_s"].as_u64();
    let left = within(TIMEOUT, left).unwrap();
    let right_time = || {
        let bans = lab.set("blocked");
        bans.iter()
            .any(|ban| ban.expires.is_some_and(|expires| expires.abs_diff(Duration::from_secs(left)) < SLACK))
            .then_some(())
    };
    assert!(within(TIMEOUT, right_time).is_some(), "{left} s are left: {}", lab.set_text("blocked"));
    assert_eq!(lab.ask(&["explain", &lifted.to_string()])["blocked"], serde_json::Value::Null);
    let listed = lab.operate(&["list", "--json"]).out;
    assert!(
        !listed.contains("operator") && !listed.contains("import"),
        "no ban is attributed to an operator: {listed}"
    );
}

/// The saved times are older than the ledger's by three seconds and more.
const SLACK: Duration = Duration::from_secs(2);

#[test]
fn reloaded_ruleset_restores_no_lifted_ban() {
    for flushes in [true, false] {
        let lab = Lab::new(&["kept", "lifted", "other"]);
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        let (kept, lifted, file) = saved(&lab, flushes);
        lab.load_rules(&file);
        daemon.expect_line("loaded a ruleset with elements of table inet portsentry");
        expect_ledger_decides(&lab, kept, lifted);
        assert!(daemon.lines_with("by hand").is_empty());
        // A single added element is a ban by an operator, as always.
        lab.nft("add element inet portsentry blocked { 198.51.100.9 timeout 1h }");
        let listed = || lab.operate(&["list", "--json"]).out.contains("198.51.100.9");
        assert!(soon(listed));
        // The table works.
        lab.provoke_ban("other");
        daemon.stop();
    }
}

#[test]
fn ruleset_loaded_before_start_adds_no_ban() {
    let lab = Lab::new(&["kept", "lifted", "innocent", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (kept, lifted, _) = saved(&lab, true);
    // Saved again, with the trap armed and a longer time for the lifted ban.
    lab.trapped_ports();
    let text = "flush ruleset\n".to_owned() + &lab.nft("list ruleset");
    let text = text.replacen(&kept.to_string(), &format!("{lifted} timeout 2h expires 2h, {kept}"), 1);
    let file = lab.path("nftables.conf");
    std::fs::write(&file, text).unwrap();
    let recorded = || lab.read_ledger(portsentry::ledger::services::kernel_table).unwrap().map(drop);
    assert!(within(TIMEOUT, recorded).is_some());
    daemon.stop();
    lab.load_rules(&file);
    // While no daemon runs, the trap from the file bans a client; the daemon has no evidence for it.
    let (innocent, target) = lab.ends_v4("innocent");
    lab.probe("innocent", innocent, target, &[901, 902, 903]);
    lab.expect_ban(innocent);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    expect_loaded_file_reviewed(&lab, &daemon, (kept, lifted, innocent));
    lab.provoke_ban("other");
    daemon.stop();
    // An element that is added to the daemon's own table meanwhile is a ban by an operator.
    lab.nft("add element inet portsentry blocked { 198.51.100.9 timeout 1h }");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let listed = || lab.operate(&["list", "--json"]).out.contains("198.51.100.9");
    assert!(soon(listed));
    daemon.stop();
}

/// Fails unless `daemon` keeps only the bans of the ledger from a loaded file.
fn expect_loaded_file_reviewed(lab: &Lab, daemon: &Daemon, (kept, lifted, innocent): (IpAddr, IpAddr, IpAddr)) {
    daemon.expect_line(
        "a file loaded a ruleset with elements of table inet portsentry; bans, which keep their remaining time: 1",
    );
    expect_ledger_decides(lab, kept, lifted);
    assert_eq!(lab.ask(&["explain", &innocent.to_string()])["blocked"], serde_json::Value::Null);
}

/// True if `list` names a ban of `address`.
fn is_listed(lab: &Lab, address: &str) -> bool {
    soon(|| lab.operate(&["list", "--json"]).out.contains(address))
}

#[test]
fn ruleset_merged_before_start_adds_no_ban() {
    let lab = Lab::new(&["kept", "lifted", "innocent", "other"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.trapped_ports();
    // The saved times are those of the ledger at this moment.
    let (kept, lifted, file) = saved(&lab, false);
    daemon.stop();
    std::thread::sleep(SLACK + Duration::from_secs(1));
    lab.load_rules(&file);
    let (innocent, target) = lab.ends_v4("innocent");
    lab.probe("innocent", innocent, target, &[901, 902, 903]);
    lab.expect_ban(innocent);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    expect_loaded_file_reviewed(&lab, &daemon, (kept, lifted, innocent));
    daemon.stop();
    // The ledger has never seen this address, so it is an operator's ban, even if a file was loaded as well.
    lab.load_rules(&file);
    lab.nft("add element inet portsentry blocked { 198.51.100.9 timeout 1h }");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert!(is_listed(&lab, "198.51.100.9"));
    assert_eq!(lab.ask(&["explain", &lifted.to_string()])["blocked"], serde_json::Value::Null);
    lab.provoke_ban("other");
    daemon.stop();
}

/// Deletes the ledger of the stopped daemon, as on a host to which the file of another host was copied.
fn lose_ledger(lab: &Lab) {
    std::fs::remove_dir_all(netns_lab::own_state(&lab.path("state"))).unwrap();
}

#[test]
fn saved_ruleset_without_ledger_is_no_ban() {
    for flushes in [true, false] {
        let lab = Lab::new(&["kept", "lifted", "other"]);
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        let (kept, _, file) = saved(&lab, flushes);
        daemon.stop();
        lose_ledger(&lab);
        // The daemon's own table shows that no file was loaded.
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        daemon.expect_line("bans that were in the kernel's sets at the start and stay: 1");
        assert_eq!(lab.banned(), [kept]);
        daemon.stop();
        lose_ledger(&lab);
        lab.load_rules(&file);
        assert_eq!(lab.banned().len(), 2, "{}", lab.set_text("blocked"));
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        daemon.expect_line("bans, which keep their remaining time: 0, other elements, which were removed: 2");
        lab.expect_banned(&[]);
        assert_eq!(lab.operate(&["list", "--json"]).out.matches("subject").count(), 0);
        // From now on the ledger knows the table.
        let other = lab.provoke_ban("other");
        lab.nft("add element inet portsentry blocked { 198.51.100.9 timeout 1h }");
        assert!(is_listed(&lab, "198.51.100.9"));
        daemon.stop();
        lab.nft("add element inet portsentry blocked { 198.51.100.10 timeout 1h }");
        let daemon = Daemon::start(&lab, &["--expire", "24h"]);
        assert!(is_listed(&lab, "198.51.100.10"));
        assert!(lab.banned().contains(&other) && lab.banned().len() == 3);
        daemon.stop();
    }
}

/// Only the elements of one set, without rules, are loaded before the start.
#[test]
fn loaded_set_restores_no_lifted_ban() {
    let lab = Lab::new(&["kept", "lifted"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let (kept, lifted, file) = saved(&lab, false);
    let again = lab.operate(&["block", &lifted.to_string(), "--expire", "2h"]);
    assert_eq!(again.code, Some(0), "{}", again.err);
    let text = lab.nft("list set inet portsentry blocked");
    std::fs::write(&file, text).unwrap();
    assert_eq!(lab.operate(&["unblock", &lifted.to_string()]).code, Some(0));
    daemon.stop();
    std::thread::sleep(SLACK + Duration::from_secs(1));
    lab.load_rules(&file);
    assert!(lab.banned().contains(&lifted));
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    daemon.expect_line("other elements, which were removed: 1");
    expect_ledger_decides(&lab, kept, lifted);
    daemon.stop();
    // With a time that none of its bans had, it is a ban by an operator.
    let element = format!("add element inet portsentry blocked {{ {lifted} timeout 3h }}");
    lab.nft(&element);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert!(is_listed(&lab, &lifted.to_string()));
    lab.expect_banned(&[kept, lifted]);
    daemon.stop();
}

/// A crashed daemon left the trap armed. The trap bans for the same time as an earlier ban did, which does not mean
/// that a file was loaded.
#[test]
fn trap_ban_after_crash_stays() {
    let lab = Lab::new(&["scanner"]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    lab.trapped_ports();
    let source: IpAddr = lab.v4("scanner").into();
    let scan = |ports: &[u16]| {
        lab.probe("scanner", source, lab.victim_v4("scanner").into(), ports);
        lab.expect_ban(source);
    };
    scan(&[901, 902, 903]);
    let reviewed = || lab.set("caught").is_empty();
    assert!(soon(reviewed), "{}", lab.set_text("caught"));
    assert_eq!(lab.operate(&["unblock", &source.to_string()]).code, Some(0));
    lab.expect_banned(&[]);
    daemon.kill();
    // Other ports, because the trap counts each port once.
    scan(&[904, 905, 906]);
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    assert!(is_listed(&lab, &source.to_string()));
    lab.expect_banned(&[source]);
    daemon.stop();
}

#[test]
fn documented_command_saves_everything_else() {
    let lab = Lab::new(&["kept", "lifted"]);
    lab.nft("add table inet own; add chain inet own input");
    let daemon = Daemon::start(&lab, &["--expire", "24h"]);
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/nft/portsentry.nft")).unwrap();
    let command = documented.lines().find_map(|line| line.strip_prefix("#     nft list tables")).unwrap();
    let script = format!("nft list tables{command}").replace("/etc/nftables.conf", "/dev/stdout");
    let saved = lab.run("victim", "sh", &["-c", &script]);
    assert!(saved.contains("table inet own {") && !saved.contains("portsentry"), "{saved}");
    daemon.stop();
}
