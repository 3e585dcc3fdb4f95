//! Tests prefix bans: interval sets, which refuse overlapping elements.

use std::thread::sleep;
use std::time::Duration;

use portsentry::enforce::nft::{BlockError, Failure, Installed, Nft, RulesetSpec};
use portsentry::types::{BanTarget, Expiry};

use super::{installed, installed_with, nearly, nft, restored, seconds, target};

const WIDE: RulesetSpec = RulesetSpec {
    size: 131_072,
    action: portsentry::types::Action::Drop,
    log_drops: None,
    prefix_sets: true,
    own_source: false,
    fleet: None,
    trap: None,
    decoys: None,
};

fn network(text: &str) -> BanTarget {
    BanTarget::exactly(text.parse().unwrap()).unwrap()
}

/// The blocked targets in the kernel, sorted.
fn held(sets: &mut Nft) -> Vec<String> {
    let mut all: Vec<String> = sets.table.elements().unwrap().iter().map(|(target, _)| target.to_string()).collect();
    all.sort();
    all
}

fn why(result: Result<(), BlockError>) -> String {
    let Err(BlockError::Failed { failed, .. }) = result else { unreachable!("{result:?}") };
    failed.iter().map(|one| format!("{}: {}", one.target, one.reason)).collect()
}

#[test]
fn networks_and_sources_read_back_together() {
    installed_with(WIDE, |sets| {
        let all = ["198.51.100.0/24", "10.0.0.0/8", "255.255.255.128/25", "2001:db8:1:ff00::/56", "2001:db8:2::/48"];
        let mut bans: Vec<_> = all.iter().map(|text| (network(text), seconds(60))).collect();
        bans.push((target("192.0.2.7"), seconds(60)));
        sets.block(&bans).unwrap();
        let mut expected: Vec<&str> = all.iter().copied().chain(["192.0.2.7"]).collect();
        expected.sort_unstable();
        assert_eq!(held(sets), expected);
        assert!(bans.iter().all(|(target, _)| nearly(sets.table.time_left(*target).unwrap(), 60)
            && sets.table.has_exactly(*target).unwrap()));
        let text = nft("list set inet portsentry blocked_nets");
        assert!(text.contains("198.51.100.0/24 timeout 1m expires "), "{text}");
        assert_eq!(sets.table.missing(&[network("198.51.100.0/24"), network("198.51.101.0/24")]).unwrap().len(), 1);
        sets.lift(&[network("10.0.0.0/8"), network("2001:db8:2::/48"), network("203.0.113.0/24")]).unwrap();
        assert_eq!(held(sets).len(), 4);
    });
}

#[test]
fn target_spelled_differently_is_same_ban() {
    installed_with(WIDE, |sets| {
        let target = network("198.51.100.0/24");
        for (expiry, expected) in [(60, 60), (600, 600), (30, 30)] {
            sets.block(&[(target, seconds(expiry))]).unwrap();
            assert!(nearly(sets.table.time_left(target).unwrap(), expected), "{expiry}");
        }
        sets.replace(&[restored(target, Some(Duration::from_secs(86_400)), seconds(3_600))]).unwrap();
        assert!(
            nft("list ruleset").contains("timeout 1d expires ") && nearly(sets.table.time_left(target).unwrap(), 3_600)
        );
        sets.block(&[(target, Expiry::Never)]).unwrap();
        assert_eq!(sets.table.time_left(target).unwrap(), Some(Expiry::Never));
    });
}

#[test]
fn wider_network_replaces_inner_networks() {
    installed_with(WIDE, |sets| {
        let inside = ["10.1.0.0/24", "10.1.1.0/24", "10.1.255.254/31"];
        sets.block(&inside.map(|text| (network(text), seconds(600)))).unwrap();
        sets.block(&[(network("10.2.0.0/24"), seconds(600)), (network("10.1.0.0/16"), seconds(60))]).unwrap();
        assert_eq!(held(sets), ["10.1.0.0/16", "10.2.0.0/24"]);
        assert!(
            nearly(sets.table.time_left(network("10.1.255.254/31")).unwrap(), 60),
            "blocked by the surrounding network"
        );
        assert!(!sets.table.has_exactly(network("10.1.255.254/31")).unwrap());
    });
}

#[test]
fn inner_network_outlasting_outer_is_refused() {
    installed_with(WIDE, |sets| {
        sets.block(&[(network("10.1.0.0/16"), seconds(600))]).unwrap();
        // At the start, at the end and in the middle of the wider network.
        for inside in ["10.1.0.0/24", "10.1.255.0/24", "10.1.77.0/25"] {
            sets.block(&[(network(inside), seconds(60))]).unwrap();
            let text = why(sets.block(&[(network(inside), seconds(6_000))]));
            assert!(
                text.starts_with(&format!("{inside}: it is in the network 10.1.0.0/16, which is blocked for a sh")),
                "{text}"
            );
            why(sets.block(&[(network(inside), Expiry::Never)]));
            sets.lift(&[network(inside)]).unwrap();
        }
        assert_eq!(held(sets), ["10.1.0.0/16"]);
        assert!(nearly(sets.table.time_left(network("10.1.0.0/16")).unwrap(), 600));
        // Both in one call, where the inner ban does not outlast the outer one.
        let both = [(network("10.3.3.0/24"), seconds(60)), (network("10.3.0.0/16"), seconds(60))];
        sets.block(&both).unwrap();
        assert_eq!(held(sets), ["10.1.0.0/16", "10.3.0.0/16"]);
    });
}

#[test]
fn refused_network_stops_no_other_ban() {
    installed_with(WIDE, |sets| {
        sets.block(&[(network("10.1.0.0/16"), seconds(60))]).unwrap();
        let bans = ["10.1.1.0/24", "10.2.0.0/24"].map(|text| (network(text), seconds(600)));
        let bans = [&bans[..], &[(target("192.0.2.7"), seconds(60))]].concat();
        let Err(BlockError::Failed { asked: 3, failed }) = sets.block(&bans) else { panic!() };
        assert!(
            matches!(&failed[..], [one] if matches!(one.reason, Failure::Inside { around } if around == network("10.1.0.0/16")))
        );
        assert_eq!(held(sets), ["10.1.0.0/16", "10.2.0.0/24", "192.0.2.7"]);
    });
}

#[test]
fn foreign_interval_is_reported_and_kept() {
    installed_with(WIDE, |sets| {
        nft("add element inet portsentry blocked_nets { 10.0.0.4-10.0.0.11 timeout 1h }");
        assert_eq!(held(sets), ["10.0.0.4/30", "10.0.0.8/30"]);
        assert!(sets.table.time_left(network("10.0.0.8/30")).unwrap().is_some());
        assert!(sets.table.time_left(network("10.0.0.0/29")).unwrap().is_none(), "half of it is not blocked");
        assert!(why(sets.block(&[(network("10.0.0.0/29"), seconds(60))])).contains("10.0.0.0/29"));
        assert_eq!(held(sets), ["10.0.0.4/30", "10.0.0.8/30"]);
    });
}

#[test]
fn network_ban_expires_and_returns() {
    installed_with(WIDE, |sets| {
        let (inner, outer) = (network("10.1.1.0/24"), network("10.1.0.0/16"));
        sets.block(&[(inner, seconds(1))]).unwrap();
        sleep(Duration::from_millis(1_200));
        assert!(sets.table.time_left(inner).unwrap().is_none() && held(sets).is_empty());
        // The expired element may not have been removed yet.
        sets.block(&[(outer, seconds(1))]).unwrap();
        sleep(Duration::from_millis(1_200));
        sets.block(&[(inner, seconds(60))]).unwrap();
        assert_eq!(held(sets), ["10.1.1.0/24"]);
    });
}

#[test]
fn full_network_set_is_reported() {
    installed_with(WIDE, |sets| {
        let bans: Vec<_> = (0..9_000_u32)
            .map(|n| {
                (BanTarget::exactly(ipnet::Ipv4Net::new((n << 9).into(), 24).unwrap().into()).unwrap(), seconds(600))
            })
            .filter(|(target, _)| target.to_string() != "0.0.0.0/24")
            .collect();
        let text = why(sets.block(&bans));
        assert!(text.contains("set inet portsentry blocked_nets is full (8192 elements)"), "{}", &text[..200]);
        let held = held(sets).len();
        assert!((4_000..=8_192).contains(&held), "{held}");
    });
}

#[test]
fn network_sets_appear_when_needed() {
    installed(|sets| {
        sets.block(&[(target("192.0.2.7"), seconds(60))]).unwrap();
        assert!(matches!(sets.block(&[(network("10.1.0.0/16"), seconds(60))]), Err(BlockError::Gone)));
        sets.repair(&WIDE).unwrap();
        sets.block(&[(network("10.1.0.0/16"), seconds(60))]).unwrap();
        for spec in [RulesetSpec::default(), WIDE] {
            assert!(matches!(sets.install(&spec).unwrap(), Installed::Adopted(_)));
            sets.repair(&spec).unwrap();
            assert_eq!(held(sets), ["10.1.0.0/16", "192.0.2.7"]);
        }
        nft("delete table inet portsentry");
        sets.repair(&RulesetSpec::default()).unwrap();
        assert!(!nft("list ruleset").contains("nets"), "no bans in network sets are left");
    });
}

#[test]
fn table_with_one_set_gets_missing_set() {
    installed_with(WIDE, |sets| {
        sets.block(&[(network("2001:db8:2::/48"), seconds(60))]).unwrap();
        nft("flush chain inet portsentry prerouting; delete set inet portsentry blocked_nets");
        sets.repair(&WIDE).unwrap();
        assert_eq!(held(sets), ["2001:db8:2::/48"]);
        sets.block(&[(network("10.1.0.0/16"), seconds(60))]).unwrap();
    });
}
