//! Tests bans in the kernel's sets: their timeouts, the size limit, and which targets are listed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use portsentry::enforce::nft::{BlockError, Failure, RulesetSpec};
use portsentry::types::{BanTarget, Expiry};

use netns_lab::eventually;

use super::{installed, installed_with, nearly, nft, restored, seconds, target};

#[test]
fn ban_has_requested_timeout() {
    installed(|sets| {
        let bans = [
            (target("192.0.2.7"), seconds(86_400)),
            (target("2001:db8:1:2:3:4:5:6"), seconds(3_600)),
            (target("fe80::17"), seconds(60)),
            (target("192.0.2.8"), Expiry::Never),
        ];
        sets.block(&bans).unwrap();
        assert!(nearly(sets.table.time_left(bans[0].0).unwrap(), 86_400));
        assert!(nearly(sets.table.time_left(bans[1].0).unwrap(), 3_600));
        assert!(nearly(sets.table.time_left(bans[2].0).unwrap(), 60));
        assert_eq!(sets.table.time_left(bans[3].0).unwrap(), Some(Expiry::Never));
        assert_eq!(sets.table.time_left(target("192.0.2.9")).unwrap(), None);
        let blocked = nft("list set inet portsentry blocked");
        assert!(blocked.contains("192.0.2.7 timeout 1d expires") && blocked.contains("192.0.2.8"), "{blocked}");
        let blocked6 = nft("list set inet portsentry blocked6");
        assert!(
            blocked6.contains("2001:db8:1:2:: timeout 1h") && blocked6.contains("fe80::17 timeout 1m"),
            "{blocked6}"
        );
    });
}

#[test]
fn blocking_again_sets_new_expiry() {
    installed(|sets| {
        let source = target("192.0.2.7");
        for expiry in [60, 3_600, 120, 120] {
            sets.block(&[(source, seconds(expiry))]).unwrap();
            assert!(nearly(sets.table.time_left(source).unwrap(), expiry), "{expiry}");
        }
        sets.block(&[(source, Expiry::Never)]).unwrap();
        assert_eq!(sets.table.time_left(source).unwrap(), Some(Expiry::Never));
        sets.block(&[(source, seconds(60))]).unwrap();
        assert!(nearly(sets.table.time_left(source).unwrap(), 60));
    });
}

#[test]
fn expired_ban_can_return() {
    installed(|sets| {
        let source = target("192.0.2.7");
        sets.block(&[(source, seconds(1))]).unwrap();
        let start = std::time::Instant::now();
        eventually("the ban expires", || sets.table.time_left(source).unwrap().is_none());
        assert!(start.elapsed() > Duration::from_millis(800));
        sets.lift(&[source]).unwrap();
        sets.block(&[(source, seconds(60))]).unwrap();
        assert!(nearly(sets.table.time_left(source).unwrap(), 60));
    });
}

#[test]
fn repeated_target_in_call_gets_last_expiry() {
    installed(|sets| {
        let source = target("192.0.2.7");
        sets.block(&[(source, seconds(60)), (source, seconds(3_600))]).unwrap();
        assert!(nearly(sets.table.time_left(source).unwrap(), 3_600));
    });
}

#[test]
fn full_set_names_refused_bans() {
    installed_with(RulesetSpec { size: 4, ..RulesetSpec::default() }, |sets| {
        let bans: Vec<_> = (1..=6).map(|n| (target(&format!("192.0.2.{n}")), seconds(60))).collect();
        let Err(BlockError::Failed { asked: 6, failed }) = sets.block(&bans) else { panic!() };
        assert_eq!(failed.len(), 2);
        for failure in &failed {
            assert!(matches!(failure.reason, Failure::Full { set: "blocked", size: 4 }), "{failure:?}");
            assert_eq!(sets.table.time_left(failure.target).unwrap(), None);
        }
        let alone = sets.block(&bans[5..]).unwrap_err().to_string();
        assert!(alone.contains("set inet portsentry blocked is full (4 elements)"), "{alone}");
        sets.block(&[(bans[0].0, seconds(3_600)), (target("2001:db8::1"), seconds(60))]).unwrap();
        assert!(nearly(sets.table.time_left(bans[0].0).unwrap(), 3_600));
        assert_eq!(sets.table.elements().unwrap().len(), 5);
    });
}

#[test]
fn lifting_removes_bans_and_skips_others() {
    installed(|sets| {
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::1"].map(target);
        sets.lift(&all).unwrap();
        sets.block(&[(all[0], seconds(60)), (all[2], seconds(60)), (all[3], Expiry::Never)]).unwrap();
        sets.lift(&all).unwrap();
        assert_eq!(sets.table.elements().unwrap(), []);
    });
}

#[test]
fn one_call_adds_ten_thousand_bans() {
    installed(|sets| {
        let bans: Vec<_> = (0..10_000_u32)
            .map(|n| {
                if n % 2 == 0 {
                    IpAddr::from((0x0a00_0000 + n).to_be_bytes())
                } else {
                    IpAddr::from((u128::from(n) << 64).to_be_bytes())
                }
            })
            .map(|address| (BanTarget::containing(address), seconds(3_600)))
            .collect();
        sets.block(&bans).unwrap();
        let found: HashMap<_, _> = sets.table.elements().unwrap().into_iter().collect();
        assert_eq!(found.len(), bans.len());
        assert!(bans.iter().all(|(source, _)| nearly(found.get(source).copied(), 3_600)));
        sets.lift(&bans.iter().map(|(source, _)| *source).collect::<Vec<_>>()).unwrap();
        assert_eq!(sets.table.elements().unwrap(), []);
    });
}

#[test]
fn manually_added_elements_are_listed() {
    installed(|sets| {
        nft("add element inet portsentry blocked { 192.0.2.1 timeout 2h comment \"by hand\" }");
        nft("add element inet portsentry blocked6 { 2001:db8:: }");
        let found: HashMap<_, _> = sets.table.elements().unwrap().into_iter().collect();
        assert!(nearly(found.get(&target("192.0.2.1")).copied(), 7_200));
        assert_eq!(found.get(&target("2001:db8::")), Some(&Expiry::Never));
        assert_eq!(found.len(), 2);
    });
}

#[test]
fn restored_ban_shows_full_and_remaining_time() {
    installed(|sets| {
        let (day, hour) = (Some(Duration::from_secs(86_400)), Duration::from_secs(3_600));
        let bans = [
            restored(target("192.0.2.7"), day, Expiry::After(hour)),
            restored(target("2001:db8::"), day, Expiry::After(hour)),
            restored(target("192.0.2.8"), None, Expiry::After(hour)),
            restored(target("192.0.2.9"), day, Expiry::Never),
        ];
        // Before the restore the ban is missing, shorter, longer or permanent.
        for before in [None, Some(seconds(60)), Some(seconds(172_800)), Some(Expiry::Never)] {
            if let Some(before) = before {
                sets.block(&bans.map(|ban| (ban.target, before))).unwrap();
            }
            sets.replace(&bans).unwrap();
            let blocked = nft("list set inet portsentry blocked");
            assert!(blocked.contains("192.0.2.7 timeout 1d expires "), "{blocked}");
            assert!(blocked.contains("192.0.2.8 timeout 1h expires "), "{blocked}");
            assert!(blocked.contains("192.0.2.9 }") || blocked.contains("192.0.2.9,"), "{blocked}");
            assert!(nft("list set inet portsentry blocked6").contains("2001:db8:: timeout 1d expires "));
            assert!(bans[..3].iter().all(|ban| nearly(sets.table.time_left(ban.target).unwrap(), 3_600)), "{before:?}");
            assert_eq!(sets.table.time_left(bans[3].target).unwrap(), Some(Expiry::Never));
        }
    });
}

#[test]
fn restored_ban_expires_on_time() {
    installed(|sets| {
        let source = target("192.0.2.7");
        let left = Expiry::After(Duration::from_secs(1));
        sets.replace(&[restored(source, Some(Duration::from_secs(86_400)), left)]).unwrap();
        assert!(sets.table.time_left(source).unwrap().is_some());
        eventually("the ban expires", || sets.table.time_left(source).unwrap().is_none());
    });
}

#[test]
fn missing_lists_only_absent_targets() {
    installed(|sets| {
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::", "2001:db8:0:1::", "fe80::1"].map(target);
        assert_eq!(sets.table.missing(&all).unwrap(), all);
        sets.block(&[(all[0], seconds(60)), (all[2], Expiry::Never), (all[4], seconds(60))]).unwrap();
        assert_eq!(sets.table.missing(&all).unwrap(), [all[1], all[3]]);
        assert_eq!(sets.table.missing(&[]).unwrap(), []);
        nft("delete table inet portsentry");
        assert!(matches!(sets.table.missing(&all), Err(BlockError::Gone)));
    });
}
