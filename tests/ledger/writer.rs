//! Tests the writer thread in normal operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use portsentry::ledger::{BLOCKED, EndRecord, HISTORY, LedgerChange, Recorder, Stopped, WriterEvent};

use super::support::{State, await_event, banned, lifted, source, time_limit, writer};
use netns_lab::{eventually, slowness};

#[test]
fn queued_writes_are_done_at_stop() {
    let state = State::new();
    let (writer, recorder, _told) = writer(&state.path(), true);
    let now = SystemTime::now();
    let taken = (0..5_000).filter(|number| recorder.send(banned(*number, now, 3600))).count();
    assert_eq!(taken, 5_000);
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
    assert_eq!(state.ledger().reader().active(now).unwrap().items.len(), 5_000);
    assert_eq!(state.read(HISTORY).lines().count(), 5_000);
    assert_eq!(state.read(BLOCKED).lines().count(), 5_000);
    assert_eq!((recorder.written(), recorder.dropped()), (5_000, 0));
}

/// Asks again from within each answer, until `asked` is `u32::MAX`.
fn ask_again(recorder: &Recorder, asked: &Arc<AtomicU32>) {
    let (next, count) = (recorder.clone(), Arc::clone(asked));
    if asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1)).is_ok() {
        recorder.ask(move |_| ask_again(&next, &count));
    }
}

#[test]
fn endless_queries_do_not_delay_writes() {
    let state = State::new();
    let (writer, recorder, _told) = writer(&state.path(), true);
    let asked = Arc::new(AtomicU32::new(0));
    ask_again(&recorder, &asked);
    eventually("many queries are answered", || asked.load(Ordering::Relaxed) > 100);
    recorder.send(banned(1, SystemTime::now(), 3600));
    eventually("the ban is written", || recorder.written() == 1);
    asked.store(u32::MAX, Ordering::Relaxed);
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
}

#[test]
fn listed_bans_follow_changes() {
    let state = State::new();
    let (writer, recorder, events) = writer(&state.path(), true);
    let now = SystemTime::now();
    let has = |number| state.read(BLOCKED).contains(&format!("/{} Port", source(number)));
    recorder.send(banned(1, now, 3600));
    recorder.send(banned(2, now, 3600));
    recorder.send(banned(3, now, 8 * u64::from(slowness())));
    eventually("three bans in the list", || has(1) && has(2) && has(3));
    let how = lifted("alice");
    recorder.send(LedgerChange::Ended { target: source(1), ended: EndRecord { how, at: SystemTime::now() } });
    let expired = await_event(&events, "the end of the short ban", |event| matches!(event, WriterEvent::Expired(_)));
    assert!(matches!(&expired, WriterEvent::Expired(targets) if *targets == [source(3)]), "{expired}");
    eventually("one ban in the list", || !has(1) && has(2) && !has(3));
    assert_eq!(state.read(HISTORY).lines().count(), 3, "the history keeps all lines");
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
}

#[test]
fn list_is_rewritten_once_a_second() {
    use std::os::unix::fs::MetadataExt;
    let state = State::new();
    let (writer, recorder, _told) = writer(&state.path(), true);
    let start = Instant::now();
    let mut versions = Vec::new();
    let mut see_version = || {
        if let Ok(found) = std::fs::metadata(state.file(BLOCKED)) {
            versions.push((found.mtime(), found.mtime_nsec()));
            versions.dedup();
        }
        versions.len()
    };
    for number in 0..500 {
        recorder.send(banned(number, SystemTime::now(), 3600));
        std::thread::sleep(Duration::from_millis(4));
        see_version();
    }
    eventually("a second version", || see_version() >= 2);
    let whole = usize::try_from(start.elapsed().as_secs()).unwrap();
    assert!(versions.len() <= whole + 2, "{} versions in {whole} s", versions.len());
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
}
