//! Tests all variants of the table: their rules, and the conversion of one into another.

use std::time::Duration;

use portsentry::enforce::nft::{DecoyRules, Installed, Nft, RulesetSpec, Trap};
use portsentry::types::{Action, Expiry, Rate};

use netns_lab::Namespace;
use netns_lab::slowness;

use super::{FILE, installed_with, listing, load, nearly, nft, seconds, target};

/// The specification of a table that rejects and logs.
const REJECT_LOG: &str = include_str!("../../nft/portsentry-reject-log.nft");

/// The specification of a table that blocks networks.
const NETWORKS: &str = include_str!("../../nft/portsentry-networks.nft");

/// The specification of a table with the sets of a fleet.
const FLEET: &str = include_str!("../../nft/portsentry-fleet.nft");
/// The specification of a table that drops frames with an own source address.
const OWN_SOURCE: &str = include_str!("../../nft/portsentry-own-source.nft");

/// The specification of a table with the trap.
const TRAPPING: &str = include_str!("../../nft/portsentry-trap.nft");

/// The specification of a table with the trap for datagrams as well.
const TRAPPING_BOTH: &str = include_str!("../../nft/portsentry-trap-udp.nft");

/// The specification of a table with decoys.
const DECOYS: &str = include_str!("../../nft/portsentry-decoys.nft");

const DECOY_RULES: DecoyRules = DecoyRules { v4: 40_001, v6: Some(40_003), max_new_tracked: None };

const TRAP: Trap = Trap {
    tcp: true,
    udp: false,
    forgiven: 2,
    window: Duration::from_secs(1_800),
    expiry: Expiry::After(Duration::from_secs(86_400)),
    ceiling: Rate::per_minute(60),
    nat64: [None; 8],
    named_interfaces: false,
    hold: Some(Duration::from_millis(900)),
};

const LOG: &str = "limit rate 3/minute burst 5 packets log prefix \"Portsentry: dropping: \"";

/// The sets and chains of a listing, sorted by name: their order of creation does not matter.
fn sorted(listing: &str) -> Vec<String> {
    let text = listing.trim().trim_end_matches('}').trim_end();
    let mut parts: Vec<String> = text.split("\n\n").map(|part| part.replace("table inet portsentry {\n", "")).collect();
    parts.sort();
    parts
}

/// Changes a table that drops into one that rejects and logs.
fn rejecting(text: &str) -> String {
    let refusing = |line: &str| match line.trim_start().starts_with("ip") && !line.contains("frag-off") {
        true => line.replace("counter drop", "counter jump refuse"),
        false => line.to_owned(),
    };
    let text = text.lines().map(refusing).collect::<Vec<_>>().join("\n");
    let (_, refuse) = REJECT_LOG.split_once("    chain refuse").unwrap();
    let end = text.rfind('}').unwrap();
    format!("{}\n    chain refuse{refuse}", &text[..end])
}

/// The text without these sets or chains.
fn without(text: &str, names: &[&str]) -> String {
    let mut text = text.to_owned();
    for name in names {
        let start = text.find(&format!("    {name} {{")).unwrap();
        let end = start + text[start..].find("    }\n").unwrap() + 6;
        text.replace_range(start..end, "");
    }
    text
}

/// Removes the holding of sources from a table with the trap.
fn without_hold(text: &str) -> String {
    let sets = ["held", "held_ports", "hold_counts", "hold_recent", "service_ports", "service_clients"];
    let sets = sets.iter().flat_map(|set| [format!("set {set}"), format!("set {set}6")]);
    let chains =
        ["fragment", "held", "full", "hold_new", "hold", "syn_hold", "syn"].map(|chain| format!("chain trap_{chain}"));
    let names: Vec<String> = sets.chain(chains).chain(["set related".to_owned(), "set services".to_owned()]).collect();
    let text = without(text, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let other = [
        "jump trap_h",
        "jump trap_fragment",
        "jump trap_syn",
        "dport @related",
        "0x1fff == 1 ",
        "!= syn counter drop",
        "tcp flags & (fin | syn) ",
        "tcp flags & (syn | rst",
    ];
    text.lines().filter(|line| other.iter().all(|part| !line.contains(part))).collect::<Vec<_>>().join("\n")
}

/// Restricts a table with the trap to named interfaces.
fn named_interfaces(text: &str) -> String {
    let ends = ["jump trap_touch", "jump trap_held", "jump trap_fragment", "jump trap_syn"];
    let selects = |line: &str| ends.iter().any(|end| line.ends_with(end)) || line.contains("0x1fff == 1 ");
    let line = |line: &str| match selects(line) {
        true => line.replacen("        ", "        iif @trap_interfaces ", 1),
        false => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Reduces the table with the trap for both protocols to UDP.
fn udp_alone() -> String {
    let text = without(
        &without_hold(TRAPPING_BOTH),
        &["set trapped", "set touched", "set touched6", "set answered", "set answered6"],
    );
    let is_tcp = |line: &&str| line.contains("tcp dport") || line.contains("tcp sport");
    text.lines().filter(|line| !is_tcp(line)).collect::<Vec<_>>().join("\n")
}

/// Changes a table with the trap so that the first probe bans permanently.
fn at_once(text: &str) -> String {
    let counts = |line: &&str| ["@touched", "@suspects", "@peer"].iter().all(|set| !line.contains(set));
    let (before, after) = text.split_once("chain trap_touch").unwrap();
    let text = after.lines().filter(counts).collect::<Vec<_>>().join("\n");
    let text = format!("{before}chain trap_touch{text}");
    text.replace("#     jump trap_ban", "jump trap_ban").replace(" timeout 1d", "")
}

/// Changes a table with decoys so that their connections are tracked.
fn tracked(text: &str) -> String {
    let text = without(text, &["chain decoy_untrack"]).replace("#     tcp flags", "tcp flags");
    text.lines().filter(|line| !line.contains("jump decoy_untrack")).collect::<Vec<_>>().join("\n")
}

/// All variants of the table, each with the text that specifies it.
fn variants() -> [(RulesetSpec, String); 22] {
    let plain = RulesetSpec::default();
    let own = RulesetSpec { own_source: true, ..plain };
    let (reject, log) = (Action::Reject, "3/minute".parse().ok());
    let reject_without = |words: &[&str]| {
        let kept = |line: &&str| !words.iter().any(|word| line.trim_start().starts_with(word));
        REJECT_LOG.lines().filter(kept).collect::<Vec<_>>().join("\n")
    };
    let only_log = reject_without(&["fib", "limit rate over", "meta", "reject"]).replace("#     drop", "drop");
    let first_touch = Trap { forgiven: 0, expiry: Expiry::Never, ..TRAP };
    let named = Trap { named_interfaces: true, ..TRAP };
    let both = Trap { udp: true, ..TRAP };
    let udp = Trap { tcp: false, hold: None, ..both };
    let brief = Trap { hold: Some(Duration::from_millis(100)), ..TRAP };
    let all = [
        (plain, FILE.to_owned()),
        (RulesetSpec { log_drops: log, ..plain }, only_log),
        (RulesetSpec { action: reject, ..plain }, reject_without(&["limit rate 3/minute"])),
        (RulesetSpec { action: reject, log_drops: log, ..plain }, REJECT_LOG.to_owned()),
        (RulesetSpec { prefix_sets: true, ..plain }, NETWORKS.to_owned()),
        (RulesetSpec { prefix_sets: true, action: reject, log_drops: log, ..plain }, rejecting(NETWORKS)),
        (RulesetSpec { fleet: Some(16_384), ..plain }, FLEET.to_owned()),
        (RulesetSpec { fleet: Some(16_384), action: reject, log_drops: log, ..plain }, rejecting(FLEET)),
        (own, OWN_SOURCE.to_owned()),
        (RulesetSpec { trap: Some(TRAP), ..plain }, without(TRAPPING, &["set guarded_interfaces", "chain own_source"])),
        (RulesetSpec { trap: Some(TRAP), ..own }, TRAPPING.to_owned()),
        (RulesetSpec { trap: Some(first_touch), action: reject, log_drops: log, ..own }, rejecting(&at_once(TRAPPING))),
        (RulesetSpec { trap: Some(named), ..own }, named_interfaces(TRAPPING)),
        (RulesetSpec { trap: Some(both), ..own }, TRAPPING_BOTH.to_owned()),
        (RulesetSpec { trap: Some(udp), ..own }, udp_alone()),
        (RulesetSpec { trap: Some(Trap { udp: true, ..first_touch }), ..own }, at_once(TRAPPING_BOTH)),
        (RulesetSpec { trap: Some(Trap { named_interfaces: true, ..both }), ..own }, named_interfaces(TRAPPING_BOTH)),
        (RulesetSpec { trap: Some(Trap { hold: None, ..TRAP }), ..own }, without_hold(TRAPPING)),
        (RulesetSpec { trap: Some(brief), ..own }, TRAPPING.replace("900ms", "100ms")),
        (RulesetSpec { decoys: Some(DECOY_RULES), ..plain }, DECOYS.to_owned()),
        (
            RulesetSpec { decoys: Some(DecoyRules { max_new_tracked: Some(65_536), ..DECOY_RULES }), ..plain },
            tracked(DECOYS),
        ),
        (
            RulesetSpec { decoys: Some(DecoyRules { v6: None, ..DECOY_RULES }), ..plain },
            DECOYS.lines().filter(|line| !line.contains("tproxy ip6")).collect::<Vec<_>>().join("\n"),
        ),
    ];
    assert!(all.iter().all(|(spec, text)| text.contains(LOG) == spec.log_drops.is_some()));
    all
}

#[test]
fn each_variant_is_what_its_file_creates() {
    let mut seen = Vec::new();
    for (spec, text) in variants() {
        let from_file = Namespace::with_loopback().inside(|| {
            load(&text);
            sorted(&listing())
        });
        installed_with(spec, |_| assert_eq!(sorted(&listing()), from_file, "{spec:?}"));
        seen.push(from_file);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 22, "all variants differ");
}

#[test]
fn ruleset_variants_convert_with_their_bans() {
    let variants = variants();
    let mut created: Vec<(RulesetSpec, Vec<String>)> = Vec::new();
    let step = usize::try_from(slowness()).unwrap();
    for (row, (before, text)) in variants.iter().enumerate() {
        // On a slow machine only some of the pairs, with each variant on both sides; some pairs convert a variant into
        // itself.
        let others = variants.iter().enumerate().filter(|(column, _)| (5 * row + column).is_multiple_of(step));
        for (_, (after, _)) in others {
            // A table with prefix bans keeps its network sets, or the bans would be lost.
            let after = &RulesetSpec { prefix_sets: before.prefix_sets || after.prefix_sets, ..*after };
            if created.iter().all(|(spec, _)| spec != after) {
                let listed = Namespace::with_loopback().inside(|| {
                    Nft::open().unwrap().install(after).unwrap();
                    sorted(&nft("list table inet portsentry"))
                });
                created.push((*after, listed));
            }
            let expected_listing = created.iter().find_map(|(spec, listed)| (spec == after).then_some(listed)).unwrap();
            Namespace::with_loopback().inside(|| {
                load(text);
                let mut sets = Nft::open().unwrap();
                sets.block(&[(target("192.0.2.1"), seconds(60))]).unwrap();
                let done = sets.install(after).unwrap();
                let expected = match before == after {
                    true => Installed::Adopted((131_072, 131_072)),
                    false => Installed::Rebuilt((131_072, 131_072)),
                };
                assert_eq!(done, expected, "{before:?} -> {after:?}");
                assert!(nearly(sets.table.time_left(target("192.0.2.1")).unwrap(), 60));
                sets.lift(&[target("192.0.2.1")]).unwrap();
                assert_eq!(&sorted(&nft("list table inet portsentry")), expected_listing, "{before:?} -> {after:?}");
            });
        }
    }
}

#[test]
fn changed_log_rate_rebuilds_table() {
    let spec = |rate: &str| RulesetSpec { log_drops: Some(rate.parse().unwrap()), ..RulesetSpec::default() };
    installed_with(spec("1000000/day"), |sets| {
        for rate in ["1/second", "7/hour", "1000000/second"] {
            assert!(matches!(sets.install(&spec(rate)), Ok(Installed::Rebuilt(_))), "{rate}");
            assert!(nft("list ruleset").contains(&format!("limit rate {rate} ")), "{rate}");
        }
    });
}

#[test]
fn variant_with_one_change_is_repaired() {
    for (from, to) in [
        ("burst 5", "burst 6"),
        ("limit rate 3/minute", "limit rate 3/week"),
        ("limit rate 3/minute", "limit rate over 3/minute"),
        ("\"Portsentry: dropping: \"", "\"Portsentry: dropped: \""),
        ("log prefix", "log level info prefix"),
        ("fib daddr type != local", "fib daddr type local"),
        ("fib daddr", "fib saddr"),
        ("100/second", "1000/second"),
        ("burst 100", "burst 101"),
        ("limit rate over 100", "limit rate 100"),
        ("reject with tcp reset", "drop"),
        ("icmpx port-unreachable", "icmpx admin-prohibited"),
        ("counter jump refuse", "counter drop"),
        ("counter jump refuse", "counter goto refuse"),
        ("        reject with", "        counter reject with"),
    ] {
        Namespace::with_loopback().inside(|| {
            assert!(REJECT_LOG.contains(from), "{from}");
            load(&REJECT_LOG.replacen(from, to, 1));
            for (number, (spec, _)) in variants().into_iter().enumerate() {
                let mut nft = Nft::open().unwrap();
                let result = nft.install(&spec);
                let as_expected = match number {
                    0 => matches!(result, Ok(Installed::Repaired { .. })),
                    _ => result.is_ok(),
                };
                assert!(as_expected, "{from} -> {to}, variant {number}: {result:?}");
                assert!(matches!(nft.install(&spec), Ok(Installed::Adopted(_))), "{from} -> {to}");
                assert!(nft.foreign_objects().unwrap().is_empty(), "{from} -> {to}: chains of the old kind are gone");
            }
        });
    }
}
