//! Bans of whole networks: intervals of sets that refuse what overlaps.

use std::thread::sleep;
use std::time::Duration;

use portsentry::enforce::nft::{BlockError, Failure, Installed, Nft, RulesetSpec};
use portsentry::types::{BanTarget, Expiry};

use super::{installed, installed_with, nearly, nft, seconds, subject};

const WIDE: RulesetSpec = RulesetSpec {
    size: 131_072,
    action: portsentry::enforce::nft::Action::Drop,
    log_drops: None,
    wide: true,
    own_source: false,
    fleet: None,
    trap: None,
    decoys: None,
};

fn network(text: &str) -> BanTarget {
    BanTarget::exactly(text.parse().unwrap()).unwrap()
}

/// What the kernel blocks, sorted.
fn held(sets: &mut Nft) -> Vec<String> {
    let mut all: Vec<String> = sets.elements().unwrap().iter().map(|(subject, _)| subject.to_string()).collect();
    all.sort();
    all
}

fn why(result: Result<(), BlockError>) -> String {
    let Err(BlockError::Failed { failed, .. }) = result else { unreachable!("{result:?}") };
    failed.iter().map(|one| format!("{}: {}", one.subject, one.reason)).collect()
}

#[test]
fn networks_and_single_sources_are_blocked_together_and_read_back() {
    installed_with(WIDE, |sets| {
        let all = ["198.51.100.0/24", "10.0.0.0/8", "255.255.255.128/25", "2001:db8:1:ff00::/56", "2001:db8:2::/48"];
        let mut bans: Vec<_> = all.iter().map(|text| (network(text), seconds(60))).collect();
        bans.push((subject("192.0.2.7"), seconds(60)));
        sets.block(&bans).unwrap();
        let mut wanted: Vec<&str> = all.iter().copied().chain(["192.0.2.7"]).collect();
        wanted.sort_unstable();
        assert_eq!(held(sets), wanted);
        assert!(bans.iter().all(|(who, _)| nearly(sets.holds(*who).unwrap(), 60) && sets.has(*who).unwrap()));
        let text = nft("list set inet portsentry blocked_nets");
        assert!(text.contains("198.51.100.0/24 timeout 1m expires "), "{text}");
        assert_eq!(sets.missing(&[network("198.51.100.0/24"), network("198.51.101.0/24")]).unwrap().len(), 1);
        sets.lift(&[network("10.0.0.0/8"), network("2001:db8:2::/48"), network("203.0.113.0/24")]).unwrap();
        assert_eq!(held(sets).len(), 4);
    });
}

#[test]
fn a_ban_by_another_name_is_extended_shortened_and_made_permanent() {
    installed_with(WIDE, |sets| {
        let who = network("198.51.100.0/24");
        for (expiry, wanted) in [(60, 60), (600, 600), (30, 30)] {
            sets.block(&[(who, seconds(expiry))]).unwrap();
            assert!(nearly(sets.holds(who).unwrap(), wanted), "{expiry}");
        }
        sets.restore(&[(who, Some(Duration::from_secs(86_400)), seconds(3_600))]).unwrap();
        assert!(nft("list ruleset").contains("timeout 1d expires ") && nearly(sets.holds(who).unwrap(), 3_600));
        sets.block(&[(who, Expiry::Never)]).unwrap();
        assert_eq!(sets.holds(who).unwrap(), Some(None));
    });
}

#[test]
fn a_wider_network_takes_the_place_of_those_inside_it() {
    installed_with(WIDE, |sets| {
        let inside = ["10.1.0.0/24", "10.1.1.0/24", "10.1.255.254/31"];
        sets.block(&inside.map(|text| (network(text), seconds(600)))).unwrap();
        sets.block(&[(network("10.2.0.0/24"), seconds(600)), (network("10.1.0.0/16"), seconds(60))]).unwrap();
        assert_eq!(held(sets), ["10.1.0.0/16", "10.2.0.0/24"]);
        assert!(nearly(sets.holds(network("10.1.255.254/31")).unwrap(), 60), "blocked with what is around it");
        assert!(!sets.has(network("10.1.255.254/31")).unwrap());
    });
}

#[test]
fn a_network_inside_one_that_lasts_as_long_is_blocked_already_and_one_that_outlasts_it_is_refused() {
    installed_with(WIDE, |sets| {
        sets.block(&[(network("10.1.0.0/16"), seconds(600))]).unwrap();
        // With the first address of the wider one, with its last, and amid it.
        for inside in ["10.1.0.0/24", "10.1.255.0/24", "10.1.77.0/25"] {
            sets.block(&[(network(inside), seconds(60))]).unwrap();
            let text = why(sets.block(&[(network(inside), seconds(6_000))]));
            assert!(
                text.starts_with(&format!("{inside}: it is part of 10.1.0.0/16, which is blocked for a sh")),
                "{text}"
            );
            why(sets.block(&[(network(inside), Expiry::Never)]));
            sets.lift(&[network(inside)]).unwrap();
        }
        assert_eq!(held(sets), ["10.1.0.0/16"]);
        assert!(nearly(sets.holds(network("10.1.0.0/16")).unwrap(), 600));
        // Together, in either order, and one that outlasts nothing.
        let both = [(network("10.3.3.0/24"), seconds(60)), (network("10.3.0.0/16"), seconds(60))];
        sets.block(&both).unwrap();
        assert_eq!(held(sets), ["10.1.0.0/16", "10.3.0.0/16"]);
    });
}

#[test]
fn one_network_that_is_refused_keeps_nobody_else_from_being_blocked() {
    installed_with(WIDE, |sets| {
        sets.block(&[(network("10.1.0.0/16"), seconds(60))]).unwrap();
        let bans = ["10.1.1.0/24", "10.2.0.0/24"].map(|text| (network(text), seconds(600)));
        let bans = [&bans[..], &[(subject("192.0.2.7"), seconds(60))]].concat();
        let Err(BlockError::Failed { asked: 3, failed }) = sets.block(&bans) else { panic!() };
        assert!(
            matches!(&failed[..], [one] if matches!(one.reason, Failure::Inside { around } if around == network("10.1.0.0/16")))
        );
        assert_eq!(held(sets), ["10.1.0.0/16", "10.2.0.0/24", "192.0.2.7"]);
    });
}

#[test]
fn an_interval_of_somebody_else_that_is_no_network_is_told_in_parts_and_not_overwritten() {
    installed_with(WIDE, |sets| {
        nft("add element inet portsentry blocked_nets { 10.0.0.4-10.0.0.11 timeout 1h }");
        assert_eq!(held(sets), ["10.0.0.4/30", "10.0.0.8/30"]);
        assert!(sets.holds(network("10.0.0.8/30")).unwrap().is_some());
        assert!(sets.holds(network("10.0.0.0/29")).unwrap().is_none(), "half of it is free");
        assert!(why(sets.block(&[(network("10.0.0.0/29"), seconds(60))])).contains("10.0.0.0/29"));
        assert_eq!(held(sets), ["10.0.0.4/30", "10.0.0.8/30"]);
    });
}

#[test]
fn a_ban_of_a_network_ends_by_itself_and_can_come_again() {
    installed_with(WIDE, |sets| {
        let (inner, outer) = (network("10.1.1.0/24"), network("10.1.0.0/16"));
        sets.block(&[(inner, seconds(1))]).unwrap();
        sleep(Duration::from_millis(1_200));
        assert!(sets.holds(inner).unwrap().is_none() && held(sets).is_empty());
        // The dead element may still lie there.
        sets.block(&[(outer, seconds(1))]).unwrap();
        sleep(Duration::from_millis(1_200));
        sets.block(&[(inner, seconds(60))]).unwrap();
        assert_eq!(held(sets), ["10.1.1.0/24"]);
    });
}

#[test]
fn a_set_of_networks_has_an_end_and_says_so() {
    installed_with(WIDE, |sets| {
        let bans: Vec<_> = (0..9_000_u32)
            .map(|n| {
                (BanTarget::exactly(ipnet::Ipv4Net::new((n << 9).into(), 24).unwrap().into()).unwrap(), seconds(600))
            })
            .filter(|(subject, _)| subject.to_string() != "0.0.0.0/24")
            .collect();
        let text = why(sets.block(&bans));
        assert!(text.contains("set inet portsentry blocked_nets is full (8192)"), "{}", &text[..200]);
        let held = held(sets).len();
        assert!((4_000..=8_192).contains(&held), "{held}");
    });
}

#[test]
fn the_sets_of_networks_come_when_they_are_needed_and_stay_with_what_they_hold() {
    installed(|sets| {
        sets.block(&[(subject("192.0.2.7"), seconds(60))]).unwrap();
        assert!(matches!(sets.block(&[(network("10.1.0.0/16"), seconds(60))]), Err(BlockError::Gone)));
        sets.repair(&WIDE).unwrap();
        sets.block(&[(network("10.1.0.0/16"), seconds(60))]).unwrap();
        for spec in [RulesetSpec::default(), WIDE] {
            assert!(matches!(sets.install(&spec).unwrap(), Installed::Adopted { .. }));
            sets.repair(&spec).unwrap();
            assert_eq!(held(sets), ["10.1.0.0/16", "192.0.2.7"]);
        }
        nft("delete table inet portsentry");
        sets.repair(&RulesetSpec::default()).unwrap();
        assert!(!nft("list ruleset").contains("nets"), "nobody is blocked in them any more");
    });
}

#[test]
fn a_table_with_one_of_the_two_sets_gets_the_other() {
    installed_with(WIDE, |sets| {
        sets.block(&[(network("2001:db8:2::/48"), seconds(60))]).unwrap();
        nft("flush chain inet portsentry prerouting; delete set inet portsentry blocked_nets");
        sets.repair(&WIDE).unwrap();
        assert_eq!(held(sets), ["2001:db8:2::/48"]);
        sets.block(&[(network("10.1.0.0/16"), seconds(60))]).unwrap();
    });
}
