//! Tests the pauses of the monitor while many elements are restored.

use std::time::Duration;

use portsentry::enforce::nft::Nft;
use portsentry::engine::ActiveBan;
use portsentry::netlink::nft::RulesetSpec;
use portsentry::netlink::nft::monitor::Monitor;
use portsentry::netlink::nft::monitor::TableChange::{ElementAdded, TableGone, Unmonitored};
use portsentry::types::{BanTarget, Expiry};

use super::{assert_quiet, changes_after, next, nft, target, watched};
use netns_lab::Namespace;

const HOUR: Duration = Duration::from_secs(3_600);

fn bans(numbers: std::ops::Range<u32>) -> Vec<ActiveBan> {
    let source = |last: u32| BanTarget::V4((10 << 24 | last).into());
    numbers.map(|last| ActiveBan::new(source(last), Expiry::After(HOUR))).collect()
}

/// Runs `test` with the table, a backend that may pause the monitor, a second backend, and a monitor that ignores
/// neither.
fn with_pausable_monitor(test: impl AsyncFnOnce(&mut Monitor, &mut Nft, &mut Nft) + Send) {
    Namespace::new().inside_async(async || {
        let mut nft = Nft::open().unwrap();
        nft.install(&RulesetSpec::default()).unwrap();
        let mut monitor = Monitor::open().unwrap();
        nft.table.monitor_pause = Some(monitor.pause());
        let mut second = nft.try_clone().unwrap();
        test(&mut monitor, &mut nft, &mut second).await;
    });
}

#[test]
fn paused_restore_reports_nothing() {
    with_pausable_monitor(async |monitor, one, other| {
        assert!(one.restore_lost_unmonitored(&bans(0..5_000)).unwrap(), "nothing else changed the table meanwhile");
        other.restore_lost(&bans(5_000..9_000)).unwrap();
        let all: Vec<BanTarget> = bans(0..9_000).iter().map(|ban| ban.target).collect();
        assert_eq!(one.table.missing(&all).unwrap(), []);
        assert_quiet(monitor).await;
    });
}

#[test]
fn few_sources_are_reported_singly() {
    with_pausable_monitor(async |monitor, one, _| {
        one.restore_lost(&bans(0..1)).unwrap();
        assert!(matches!(next(monitor).await[..], [ElementAdded(..)]));
    });
}

#[test]
fn changes_during_pause_report_only_unmonitored() {
    watched(async |monitor, _| {
        let pause = monitor.pause().begin().unwrap();
        nft("delete table inet portsentry");
        pause.end(|| true);
        assert_eq!(next(monitor).await, [Unmonitored], "the report names no details");
        let again = changes_after(monitor, "add table inet portsentry; delete table inet portsentry").await;
        assert!(again.contains(&TableGone), "later changes are reported in full: {again:?}");
    });
}

#[test]
fn changes_during_restore_are_detected() {
    with_pausable_monitor(async |monitor, one, _| {
        // Any table will do: the monitor cannot tell which one changed.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|threads| {
            let busy = threads.spawn(move || {
                while let Err(std::sync::mpsc::TryRecvError::Empty) = stopped.try_recv() {
                    nft("add table ip another; delete table ip another");
                }
            });
            let disturbed = (0..200).any(|_| !one.restore_lost_unmonitored(&bans(0..5_000)).unwrap());
            drop(stop);
            busy.join().unwrap();
            assert!(disturbed);
        });
        assert_eq!(next(monitor).await, [Unmonitored]);
        assert_quiet(monitor).await;
    });
}

#[test]
fn dropped_pause_counts_as_change() {
    watched(async |monitor, _| {
        drop(monitor.pause().begin().unwrap());
        assert_eq!(next(monitor).await, [Unmonitored]);
        assert_quiet(monitor).await;
    });
}

#[test]
fn overlapping_pauses_last_until_both_end() {
    watched(async |monitor, _| {
        let (first, second) = (monitor.pause().begin().unwrap(), monitor.pause().begin().unwrap());
        first.end(|| false);
        nft("add element inet portsentry blocked { 192.0.2.1 }");
        second.end(|| false);
        let add = changes_after(monitor, "add element inet portsentry blocked { 192.0.2.2 }").await;
        assert_eq!(add, [ElementAdded(target("192.0.2.2"), Expiry::Never)]);
    });
}

#[test]
fn table_deleted_during_pause_is_reported() {
    with_pausable_monitor(async |monitor, one, _| {
        nft("delete table inet portsentry");
        assert!(next(monitor).await.contains(&TableGone));
        assert!(one.restore_lost_unmonitored(&bans(0..5_000)).is_err());
        assert_eq!(next(monitor).await, [Unmonitored]);
    });
}
