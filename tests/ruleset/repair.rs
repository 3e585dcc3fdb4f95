//! Tests the repair of a table that other programs have altered.

use std::time::Duration;

use portsentry::enforce::nft::{Nft, Repaired, RulesetError, RulesetSpec, Trap};
use portsentry::netlink::nft::Set;
use portsentry::types::{Action, Expiry, Rate};

use super::{installed, installed_with, listing, nearly, nft, run, seconds, target};

fn repaired_result(difference: &str, emptied: &[Set]) -> Repaired {
    Repaired::Repaired { difference: difference.to_owned(), emptied: emptied.to_vec() }
}

/// Alters the table of `spec` with `nft` commands and repairs it. Afterwards the table must be as before, bans
/// included, and a second repair must change nothing.
fn repaired(spec: RulesetSpec, alter: &[&str]) -> Repaired {
    let mut done = None;
    installed_with(spec, |sets| {
        let bans = [(target("192.0.2.1"), seconds(600)), (target("2001:db8::"), seconds(600))];
        sets.block(&bans).unwrap();
        sets.replace_allow_list(&["10.0.0.0/8".parse().unwrap(), "2001:db8:7::/48".parse().unwrap()]).unwrap();
        // Without the remaining times, which change.
        let now = || {
            let text = listing();
            text.split_inclusive(' ').filter(|word| !word.starts_with(char::is_numeric)).collect::<String>()
        };
        let before = now();
        assert_eq!(sets.repair(&spec).unwrap(), Repaired::Unchanged);
        alter.iter().for_each(|command| drop(nft(command)));
        assert_ne!(now(), before, "{alter:?}");
        done = Some(sets.repair(&spec).unwrap());
        if !matches!(&done, Some(Repaired::Repaired { emptied, .. }) if !emptied.is_empty()) {
            assert_eq!(now(), before, "{alter:?}");
            assert!(bans.iter().all(|(target, _)| nearly(sets.table.time_left(*target).unwrap(), 600)), "{alter:?}");
        }
        assert_eq!(sets.repair(&spec).unwrap(), Repaired::Unchanged, "{alter:?}");
    });
    done.unwrap()
}

/// The handle of the first rule in chain `prerouting` that contains `part`.
fn handle(part: &str) -> String {
    let text = run("nft", &["-a", "list chain inet portsentry prerouting"]);
    let line = text.lines().find(|line| line.contains(part)).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn chain_changes_are_undone_with_bans() {
    let accepting = "another rule than `ip saddr @allowed accept` at position 1 of chain \"prerouting\"";
    let empty = "no rule `ip saddr @allowed accept` at position 1 of chain \"prerouting\"";
    let elsewhere = "a chain \"prerouting\" with another type, hook, priority or policy";
    let chain = "chain inet portsentry prerouting";
    for (alter, difference) in [
        (vec!["insert rule inet portsentry prerouting ip saddr 192.0.2.1 accept"], accepting),
        (vec!["add rule inet portsentry prerouting accept"], "7 rules in chain \"prerouting\" instead of 6"),
        (vec!["flush chain inet portsentry prerouting"], empty),
        (vec!["delete chain inet portsentry prerouting"], "no chain \"prerouting\""),
        (vec!["chain inet portsentry prerouting { policy drop; }"], elsewhere),
        (vec!["flush chain inet portsentry prerouting; add rule inet portsentry prerouting counter accept"], accepting),
        (vec!["delete chain inet portsentry prerouting; add chain inet portsentry prerouting"], elsewhere),
        (
            vec![
                "delete chain inet portsentry prerouting",
                "add chain inet portsentry prerouting { type filter hook input priority 0; policy drop; }",
                "add rule inet portsentry prerouting ip saddr @blocked accept",
            ],
            elsewhere,
        ),
        (
            vec!["add table inet portsentry { flags dormant; }"],
            "the flags 0x1 (1 dormant, 2 owned by a process, 4 persistent)",
        ),
        (
            vec!["add table inet portsentry { flags dormant; }", "delete chain inet portsentry prerouting"],
            "the flags 0x1 (1 dormant, 2 owned by a process, 4 persistent)",
        ),
    ] {
        assert_eq!(repaired(RulesetSpec::default(), &alter), repaired_result(difference, &[]), "{chain} {alter:?}");
    }
}

#[test]
fn deleted_rule_is_restored() {
    let third = "another rule than `ip saddr @blocked counter drop` at position 3 of chain \"prerouting\"";
    for command in
        ["delete rule inet portsentry prerouting handle H", "replace rule inet portsentry prerouting handle H accept"]
    {
        installed(|sets| {
            let before = listing();
            nft(&command.replace('H', &handle("ip saddr @blocked")));
            assert_eq!(sets.repair(&RulesetSpec::default()).unwrap(), repaired_result(third, &[]));
            assert_eq!(listing(), before);
        });
    }
}

#[test]
fn every_chain_of_a_variant_is_repaired() {
    let spec = RulesetSpec { action: Action::Reject, log_drops: "3/minute".parse().ok(), ..RulesetSpec::default() };
    for alter in [
        vec!["flush chain inet portsentry refuse"],
        vec!["insert rule inet portsentry refuse return"],
        vec!["flush chain inet portsentry prerouting", "delete chain inet portsentry refuse"],
        vec!["delete chain inet portsentry prerouting", "delete chain inet portsentry refuse"],
        vec![
            "delete chain inet portsentry prerouting; delete chain inet portsentry refuse",
            "add chain inet portsentry refuse { type filter hook forward priority 0; policy drop; }",
        ],
    ] {
        assert!(matches!(repaired(spec, &alter), Repaired::Repaired { .. }), "{alter:?}");
    }
    let trap = Trap {
        tcp: true,
        udp: true,
        forgiven: 2,
        window: Duration::from_secs(1_800),
        expiry: Expiry::Never,
        ceiling: Rate::per_minute(60),
        nat64: [None; 8],
        named_interfaces: false,
        hold: Some(Duration::from_millis(900)),
    };
    let spec = RulesetSpec { trap: Some(trap), ..RulesetSpec::default() };
    for alter in [
        vec!["flush chain inet portsentry trap_asked"],
        vec!["flush chain inet portsentry trap_asked", "delete chain inet portsentry trap_asked"],
        vec![
            "flush chain inet portsentry trap_asked; flush chain inet portsentry trap; delete set inet portsentry asked",
        ],
        vec!["flush chain inet portsentry trap_touch; delete set inet portsentry touched_udp"],
        vec![
            "flush chain inet portsentry trap_asked; flush chain inet portsentry trap; delete set inet portsentry trapped_udp",
        ],
        vec![
            "delete chain inet portsentry trap_asked",
            "add chain inet portsentry trap_asked { type filter hook forward priority 0; policy drop; }",
        ],
    ] {
        assert!(matches!(repaired(spec, &alter), Repaired::Repaired { .. }), "{alter:?}");
    }
}

#[test]
fn rules_of_other_variant_are_replaced() {
    let log = RulesetSpec { log_drops: "3/minute".parse().ok(), ..RulesetSpec::default() };
    installed_with(log, |sets| {
        assert!(matches!(sets.repair(&RulesetSpec::default()), Ok(Repaired::Repaired { .. })));
        assert!(!listing().contains("refuse"));
    });
}

#[test]
fn lost_sets_are_recreated_and_named() {
    installed(|sets| {
        sets.block(&[(target("192.0.2.1"), seconds(600)), (target("2001:db8::"), seconds(600))]).unwrap();
        nft(
            "flush chain inet portsentry prerouting; delete set inet portsentry blocked6; delete set inet portsentry allowed",
        );
        let done = sets.repair(&RulesetSpec::default()).unwrap();
        assert_eq!(done, repaired_result("no set \"allowed\"", &[Set::Blocked6, Set::Allowed]));
        assert!(nearly(sets.table.time_left(target("192.0.2.1")).unwrap(), 600));
        assert_eq!(sets.table.time_left(target("2001:db8::")).unwrap(), None);
        assert_eq!(sets.repair(&RulesetSpec::default()).unwrap(), Repaired::Unchanged);
    });
}

#[test]
fn lost_table_is_recreated() {
    installed(|sets| {
        let before = listing();
        nft("flush ruleset");
        assert_eq!(sets.repair(&RulesetSpec::default()).unwrap(), Repaired::Created);
        assert_eq!(listing(), before);
    });
}

#[test]
fn foreign_objects_need_no_repair() {
    installed(|sets| {
        nft("add set inet portsentry mine { type inet_service; elements = { 22 }; }");
        nft("add chain inet portsentry input { type filter hook input priority 0; }");
        nft("add rule inet portsentry input tcp dport @mine ip saddr @blocked counter");
        nft("add chain inet portsentry refuse");
        nft("add rule inet portsentry refuse counter");
        let theirs = listing();
        assert_eq!(sets.repair(&RulesetSpec::default()).unwrap(), Repaired::Unchanged);
        nft("insert rule inet portsentry prerouting accept");
        assert!(matches!(sets.repair(&RulesetSpec::default()), Ok(Repaired::Repaired { .. })));
        assert_eq!(sets.repair(&RulesetSpec::default()).unwrap(), Repaired::Unchanged);
        assert_eq!(listing(), theirs);
    });
}

#[test]
fn unrepairable_table_is_reported_unchanged() {
    let gone = "flush chain inet portsentry prerouting; delete set inet portsentry blocked";
    for (alter, part) in [
        ([gone, "add set inet portsentry blocked { type inet_service; }"], "has a set \"blocked\" of another type"),
        (
            [gone, "add set inet portsentry blocked { type ipv4_addr; flags dynamic,timeout; }"],
            "\"blocked\" without a size",
        ),
        (
            [
                "delete chain inet portsentry prerouting",
                "table inet portsentry { chain prerouting { }; chain mine { jump prerouting; }; }",
            ],
            "has rules of another program use objects that must be removed (deleting chain \"prerouting\")",
        ),
    ] {
        installed(|sets| {
            alter.iter().for_each(|command| drop(nft(command)));
            let before = listing();
            let refused = sets.repair(&RulesetSpec::default()).unwrap_err();
            assert!(matches!(&refused, RulesetError::Foreign { .. }), "{refused:?}");
            assert!(refused.to_string().contains(part), "{refused}");
            assert_eq!(listing(), before);
        });
    }
}

#[test]
fn owned_table_is_left_alone() {
    netns_lab::Namespace::with_loopback().inside(|| {
        // A table that disappears with its process. Linux before 5.12 has none.
        let owned = std::process::Command::new("nft").arg("add table inet probe { flags owner; }").status().unwrap();
        if !owned.success() {
            return;
        }
        let mut owner = std::process::Command::new("nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let table = "add table inet portsentry { flags owner; }\n";
        std::io::Write::write_all(owner.stdin.as_mut().unwrap(), table.as_bytes()).unwrap();
        netns_lab::eventually("the table exists", || listing().contains("owner"));
        let refused = Nft::open().unwrap().repair(&RulesetSpec::default()).unwrap_err().to_string();
        assert!(refused.contains("has the flags 0x2"), "{refused}");
        drop(owner.stdin.take());
        owner.wait().unwrap();
    });
}
