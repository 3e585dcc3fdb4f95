//! Tests the differences between kernels on the running one: with its own features, and with those of the oldest
//! supported one.

use std::time::Duration;

use portsentry::enforce::nft::{KernelFeatures, Nft};
use portsentry::types::Expiry;

use netns_lab::{Namespace, eventually};

use super::{installed, nearly, nft, restored, run, seconds, target};

/// Runs `test` once per variant that this kernel supports, each time with a fresh table.
fn each(test: impl Fn(&mut Nft) + Copy + Send + Sync) {
    installed(test);
    installed(|sets| {
        sets.table.kernel = Some(KernelFeatures::default());
        test(sets);
    });
}

#[test]
fn feature_probe_leaves_nothing_behind() {
    installed(|sets| {
        let found = sets.table.kernel();
        assert_eq!(sets.table.elements().unwrap(), []);
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap(), numbers.next().unwrap());
        // For these versions the answer is certain; distributions backport features to others.
        match version {
            (6, 12..) | (7.., _) => assert!(found.destroys, "Linux {release}"),
            (..=5, _) => assert!(!found.destroys, "Linux {release}"),
            _ => {}
        }
    });
}

#[test]
fn last_expiry_of_ban_wins() {
    each(|sets| {
        let (new, there) = (target("192.0.2.7"), target("192.0.2.8"));
        let (wide, gone) = (target("2001:db8:1:2::5"), target("192.0.2.9"));
        sets.block(&[(there, seconds(60)), (wide, seconds(86_400))]).unwrap();
        sets.block(&[(gone, seconds(1))]).unwrap();
        eventually("the ban expires", || sets.table.time_left(gone).unwrap().is_none());
        // Missing, present, longer, and expired but perhaps not yet removed: all in one transaction.
        for span in [3_600, 120, 120] {
            let bans = [new, there, wide, gone].map(|source| (source, seconds(span)));
            sets.block(&bans).unwrap();
            for (source, _) in bans {
                assert!(nearly(sets.table.time_left(source).unwrap(), span), "{source} {span}");
            }
        }
        sets.block(&[(there, Expiry::Never)]).unwrap();
        assert_eq!(sets.table.time_left(there).unwrap(), Some(Expiry::Never));
        sets.replace(&[restored(there, Some(Duration::from_secs(3_600)), seconds(60))]).unwrap();
        assert!(nearly(sets.table.time_left(there).unwrap(), 60));
        let text = nft("list set inet portsentry blocked");
        assert!(text.contains("192.0.2.8 timeout 1h expires"), "{text}");
        // For a target listed twice the last expiry counts.
        sets.block(&[(there, seconds(60)), (there, seconds(7_200))]).unwrap();
        assert!(nearly(sets.table.time_left(there).unwrap(), 7_200));
    });
}

#[test]
fn lifted_source_may_be_banned_again() {
    each(|sets| {
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::1"].map(target);
        sets.lift(&all).unwrap();
        sets.block(&[(all[0], seconds(60)), (all[3], Expiry::Never)]).unwrap();
        sets.lift(&all).unwrap();
        assert_eq!(sets.table.elements().unwrap(), []);
    });
}

#[test]
fn lost_table_is_reported() {
    Namespace::with_loopback().inside(|| {
        for oldest in [false, true] {
            let mut sets = Nft::open().unwrap();
            sets.install(&Default::default()).unwrap();
            if oldest {
                sets.table.kernel = Some(KernelFeatures::default());
            }
            run("nft", &["delete", "table", "inet", "portsentry"]);
            let source = target("192.0.2.1");
            for failed in [sets.lift(&[source]), sets.block(&[(source, seconds(60))])] {
                assert!(matches!(failed, Err(portsentry::enforce::nft::BlockError::Gone)), "{failed:?}");
            }
        }
    });
}
