//! Tests that bursts larger than the monitor's buffer are either read completely or reported as an overrun.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use portsentry::netlink::nft::monitor::{Monitor, TableChange};
use portsentry::types::BanTarget;
use rustix::net::sockopt;
use tokio::time::timeout;

use super::{assert_quiet, next, nft, watched};
use netns_lab::{TIMEOUT, slowness};

const MANY: u32 = 100_000;

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + n)
}

fn add_many(count: u32) -> String {
    let mut text = String::from("add element inet portsentry blocked { ");
    (0..count).for_each(|n| write!(text, "{} timeout 1h, ", address(n)).unwrap());
    text.push('}');
    text
}

fn element(change: TableChange) -> Option<BanTarget> {
    match change {
        TableChange::ElementAdded(target, _) | TableChange::ElementRemoved(target) => Some(target),
        _ => None,
    }
}

/// Reads `MANY` changes; cancels the future repeatedly and continues reading.
async fn read_many(monitor: &mut Monitor) -> HashSet<BanTarget> {
    let mut targets = HashSet::new();
    let end = Instant::now() + TIMEOUT * slowness();
    while targets.len() < MANY as usize && Instant::now() < end {
        let Ok(changes) = timeout(Duration::from_micros(100), monitor.next()).await else { continue };
        let changes = changes.unwrap();
        assert!(!changes.is_empty() && changes.len() < 5_000, "{}", changes.len());
        for change in changes {
            assert!(targets.insert(element(change).unwrap()), "{change:?} twice");
        }
    }
    targets
}

#[test]
fn cancelled_wait_loses_no_notification() {
    watched(async |monitor, _| {
        let buffer = sockopt::socket_recv_buffer_size(&*monitor).unwrap();
        if buffer < 32 << 20 {
            println!("skipped: the buffer is only {buffer} bytes without privileges, so a burst would overrun it");
            return;
        }
        let adding = std::thread::spawn(|| nft(&add_many(MANY)));
        assert_eq!(read_many(monitor).await.len(), MANY as usize);
        adding.join().unwrap();
        // These notifications are all queued before the first is read.
        nft("flush set inet portsentry blocked");
        let start = Instant::now();
        assert_eq!(read_many(monitor).await.len(), MANY as usize);
        println!("{MANY} deletions read in {:?}", start.elapsed());
        assert_quiet(monitor).await;
    });
}

#[test]
fn lost_notifications_are_reported_as_overrun() {
    watched(async |monitor, _| {
        sockopt::set_socket_recv_buffer_size(&*monitor, 16 << 10).unwrap();
        nft(&add_many(1_000));
        nft("flush ruleset");
        assert_eq!(next(monitor).await, [TableChange::Overrun]);
        assert_eq!(monitor.committer(), None);
        nft(include_str!("../../nft/portsentry.nft"));
        assert_eq!(next(monitor).await, [TableChange::RulesetChanged]);
        assert_quiet(monitor).await;
    });
}

#[test]
fn burst_elsewhere_does_not_delay_runtime() {
    watched(async |monitor, _| {
        nft("add table inet other\nadd set inet other s { type ipv4_addr; size 131072; }");
        let text = add_many(MANY).replace("portsentry blocked", "other s").replace(" timeout 1h", "");
        nft(&text);
        let ticks = async {
            let mut longest = Duration::ZERO;
            for _ in 0..20 {
                let start = Instant::now();
                tokio::task::yield_now().await;
                longest = longest.max(start.elapsed());
            }
            longest
        };
        let longest = tokio::select! {
            changes = monitor.next() => panic!("{changes:?}"),
            longest = ticks => longest,
        };
        assert!(longest < Duration::from_secs(5) * slowness(), "{longest:?}");
        assert_quiet(monitor).await;
    });
}

#[test]
fn flush_is_reported_within_milliseconds() {
    watched(async |monitor, _| {
        let mut delays = Vec::new();
        for _ in 0..20 {
            let flush = std::thread::spawn(|| {
                nft("flush ruleset");
                Instant::now()
            });
            assert_eq!(next(monitor).await, [TableChange::TableGone]);
            let reported = Instant::now();
            delays.push(reported.saturating_duration_since(flush.join().unwrap()));
            nft(include_str!("../../nft/portsentry.nft"));
            assert_eq!(next(monitor).await, [TableChange::RulesetChanged]);
        }
        delays.sort_unstable();
        let (median, longest) = (delays[10], delays[19]);
        println!("reported {median:?} (median), {longest:?} (maximum) after `nft` exited; 0 means before it exited");
        assert!(median < Duration::from_millis(200) * slowness(), "{delays:?}");
    });
}
