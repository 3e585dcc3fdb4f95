//! Tests the backend thread with a file: lines are added, expire with their bans, survive a restart, and are retried.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use portsentry::config::DEFAULT_DENY_LINE;
use portsentry::enforce::InlineBackend;
use portsentry::enforce::hosts_deny::HostsDeny;
use portsentry::enforce::slow_backends::{Adopted, BackendEvent, SlowBackends, SlowQueue, SlowTask, Stopped, Task};
use portsentry::types::{Backend, Backends, BanTarget, Expiry, Timestamp};
use tempfile::TempDir;

use super::{Bench, context, done, hosts_deny, target};
use netns_lab::slowness;

const LINE: [Backend; 1] = [Backend::HostsDeny];

fn setup() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("etc/hosts.deny");
    fs::create_dir(directory.path().join("etc")).unwrap();
    (directory, path)
}

fn held(path: &Path) -> Vec<BanTarget> {
    let mut held = HostsDeny::new(path, DEFAULT_DENY_LINE).unwrap().targets().unwrap();
    held.sort();
    held
}

#[test]
fn hosts_deny_line_follows_its_ban() {
    let (_directory, path) = setup();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    let long = context("2001:db8::7", 3_600);
    bench.block(long, &LINE);
    assert_eq!(bench.next(), done(long));
    let started = Instant::now();
    let short = context("192.0.2.7", 4 * u64::from(slowness()));
    bench.block(short, &LINE);
    assert_eq!(bench.next(), done(short));
    assert_eq!(held(&path), [short.target, long.target]);
    assert_eq!(bench.next(), BackendEvent::Released { targets: vec![short.target], backend: Backend::HostsDeny });
    assert!(started.elapsed() >= Duration::from_secs(4) * slowness());
    assert_eq!(held(&path), [long.target]);
    bench.put(Task::Release { targets: vec![long.target] });
    assert_eq!(bench.next(), BackendEvent::Released { targets: vec![long.target], backend: Backend::HostsDeny });
    assert_eq!(held(&path), []);
    assert_eq!(bench.stop(super::time_limit()).0, Stopped::Whole);
}

#[test]
fn extended_ban_keeps_its_line() {
    let (_directory, path) = setup();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    bench.block(context("192.0.2.7", 1), &LINE);
    bench.block(context("192.0.2.7", 3_600), &LINE);
    bench.next();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(held(&path), [target("192.0.2.7")]);
}

#[test]
fn lines_outlive_thread_and_are_adopted() {
    let (_directory, path) = setup();
    fs::write(&path, "sshd: .example.com\n").unwrap();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    let contexts = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|source| context(source, 3_600));
    contexts.iter().for_each(|context| bench.block(*context, &LINE));
    // Queued just before the end, and still written.
    assert_eq!(bench.stop(super::time_limit()).0, Stopped::Whole);
    assert_eq!(held(&path), contexts.map(|context| context.target));

    let bench = Bench::start(vec![hosts_deny(&path)]);
    let adopted =
        |context, left| Adopted { context, backends: Backend::HostsDeny.into(), done: Backends::default(), left };
    // A new ban before the adopted ones arrive; one adopted for six seconds; one whose line is missing and is restored.
    bench.block(contexts[2], &LINE);
    bench.next();
    let bare = context("192.0.2.9", 3_600);
    let soon = Expiry::After(Duration::from_secs(6) * slowness());
    let bans = vec![adopted(contexts[0], soon), adopted(bare, Expiry::Never)];
    bench.put(Task::Adopt { bans });
    assert_eq!(bench.next(), BackendEvent::Restored { targets: vec![bare.target], backend: Backend::HostsDeny });
    assert_eq!(bench.next(), BackendEvent::Released { targets: vec![contexts[1].target], backend: Backend::HostsDeny });
    assert_eq!(held(&path), [contexts[0].target, contexts[2].target, bare.target]);
    assert_eq!(bench.next(), BackendEvent::Released { targets: vec![contexts[0].target], backend: Backend::HostsDeny });
    assert_eq!(held(&path), [contexts[2].target, bare.target]);
    assert!(fs::read_to_string(&path).unwrap().starts_with("sshd: .example.com\n# portsentry: 192.0.2.3"));
}

#[test]
fn unwritable_file_is_retried() {
    let (directory, path) = setup();
    fs::remove_dir(directory.path().join("etc")).unwrap();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    let (first, second) = (context("192.0.2.7", 3_600), context("192.0.2.8", 3_600));
    bench.block(first, &LINE);
    let mut delays = Vec::new();
    for attempt in 1..=2 {
        let BackendEvent::Failed { targets, task, reason, attempt: count, again } = bench.next() else {
            panic!("it fails")
        };
        assert_eq!((targets, task, count), (vec![first.target], SlowTask::Ban(Backend::HostsDeny), attempt));
        assert!(reason.starts_with("cannot write /") && reason.contains("No such file"), "{reason}");
        delays.push(again.unwrap().as_secs());
    }
    assert_eq!(delays, [1, 2]);
    fs::create_dir(directory.path().join("etc")).unwrap();
    bench.block(second, &LINE);
    for _ in 0..2 {
        assert!(matches!(bench.next(), BackendEvent::Done { .. }));
    }
    assert_eq!(held(&path), [first.target, second.target]);
}

#[test]
fn expired_ban_is_never_written() {
    let (directory, path) = setup();
    fs::remove_dir(directory.path().join("etc")).unwrap();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    bench.block(context("192.0.2.7", 3_600), &LINE);
    assert!(matches!(bench.next(), BackendEvent::Failed { .. }));
    bench.put(Task::Release { targets: vec![target("192.0.2.7")] });
    fs::create_dir(directory.path().join("etc")).unwrap();
    bench.expect_no_event(Duration::from_millis(1_500));
    assert!(!path.exists());
    assert_eq!(bench.stop(super::time_limit()).0, Stopped::Whole);
}

#[test]
fn unwritten_lines_are_counted_at_end() {
    let (directory, path) = setup();
    fs::remove_dir(directory.path().join("etc")).unwrap();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    for last in 1..=3 {
        bench.block(context(&format!("192.0.2.{last}"), 3_600), &LINE);
    }
    let (stopped, _) = bench.stop(Duration::from_secs(5) * slowness());
    assert_eq!(stopped, Stopped::Left([(Backend::HostsDeny, 3)].into()));
}

#[test]
fn burst_beyond_queue_is_refused_and_reported() {
    let (_directory, path) = setup();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    let queue = bench.backends.as_ref().unwrap().tasks();
    let mut taken = Vec::new();
    let mut refused = 0;
    for n in 0..20_000_u32 {
        let context = context(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(), 3_600);
        match queue.send(Task::Block { context, backends: LINE.into() }) {
            Ok(()) => taken.push(context.target),
            Err(Task::Block { context: back, .. }) => {
                assert_eq!(back, context);
                refused += 1;
            }
            Err(other) => panic!("another task is returned: {other:?}"),
        }
    }
    let (stopped, events) = bench.stop(super::time_limit());
    assert_eq!(stopped, Stopped::Whole);
    assert_eq!(held(&path), taken);
    let lost: u64 =
        events.iter().map(|event| if let BackendEvent::Lost { tasks, .. } = event { *tasks } else { 0 }).sum();
    assert_eq!(lost, refused);
    assert_eq!(events.iter().filter(|event| matches!(event, BackendEvent::Done { .. })).count(), taken.len());
}

#[test]
fn full_queue_still_accepts_releases() {
    let (_directory, path) = setup();
    let (free, wait) = channel::<()>();
    let slow = SlowBackends::start(vec![hosts_deny(&path)], false, move |_| _ = wait.recv()).unwrap();
    let mut queue = SlowQueue::new(&slow, &LINE, false, false);
    let context = |n: u32| context(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(), 3_600);
    // The thread reports the first line, and waits there until the queue is full.
    let refused: Vec<_> =
        (0..20_000).flat_map(|n| queue.block(&[context(n)], Timestamp::ZERO).expect("no table to lose")).collect();
    assert!(refused.len() > 10_000, "{}", refused.len());
    queue.lift(&(0..20_000).map(|n| context(n).target).collect::<Vec<_>>()).unwrap();
    drop(free);
    assert_eq!(slow.stop(super::time_limit()), Stopped::Whole);
    assert_eq!(held(&path).len(), 0);
}

#[test]
fn missing_backend_is_reported_and_skipped() {
    let (_directory, path) = setup();
    let bench = Bench::start(vec![hosts_deny(&path)]);
    let context = context("192.0.2.7", 3_600);
    bench.block(context, &[Backend::Command, Backend::HostsDeny]);
    assert!(matches!(bench.next(), BackendEvent::Failed { task: SlowTask::Ban(Backend::Command), again: None, .. }));
    assert_eq!(bench.next(), done(context));
    assert_eq!(held(&path), [context.target]);
    bench.put(Task::Before { context });
    assert_eq!(bench.next(), BackendEvent::Ready { context }, "there is no command to wait for");
}
