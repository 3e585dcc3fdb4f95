//! Tests the writer thread while the disk is full, the database locked or damaged, or the process killed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use portsentry::ledger::{BLOCKED, DATABASE, HISTORY, Ledger, Opened, Stopped, WriterEvent};

use super::support::{State, await_event, banned, intruder, source, time_limit, writer};
use netns_lab::{SmallDisk, eventually, slowness};

#[test]
fn full_disk_is_reported_once_without_loss() {
    let state = State::new();
    let disk = SmallDisk::mount(state.parent(), "2m");
    let (writer, recorder, events) = writer(&state.path(), true);
    let now = SystemTime::now();
    recorder.send(banned(0, now, 3600));
    eventually("the first ban", || recorder.written() == 1);
    disk.fill();
    let mut slowest = Duration::ZERO;
    for number in 1..3_000 {
        let start = Instant::now();
        assert!(recorder.send(banned(number, now, 3600)));
        slowest = slowest.max(start.elapsed());
    }
    let event = await_event(&events, "the full disk", |event| matches!(event, WriterEvent::Failing { .. }));
    assert!(event.to_string().contains("blocking continues"), "{event}");
    // After some retries.
    std::thread::sleep(Duration::from_secs(1));
    let failing = events.try_iter().filter(|event| matches!(event, WriterEvent::Failing { .. })).count();
    assert!(failing <= 2, "{failing} reports: one for the database, one for the text files");
    assert!(recorder.written() < 3_000);
    disk.empty();
    await_event(&events, "the recovery", |event| matches!(event, WriterEvent::Recovered { .. }));
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
    assert_eq!((recorder.written(), recorder.dropped()), (3_000, 0));
    let (ledger, opened) = state.open();
    assert_eq!(opened, Opened::Existing);
    assert_eq!(ledger.reader().active(now).unwrap().items.len(), 3_000);
    let history = state.read(HISTORY);
    assert_eq!(history.lines().count(), 3_000, "no line is missing, torn or duplicated");
    assert!(history.lines().all(|line| line.ends_with(" Blocked")));
    // No call here may block; the limit has a margin for a busy machine.
    assert!(slowest < Duration::from_secs(5) * slowness(), "{slowest:?}");
}

#[test]
fn unwritable_list_is_reported_once() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, recorder, events) = writer(directory.path(), true);
    let in_the_way = directory.path().join(format!("{BLOCKED}.new"));
    fs::create_dir(&in_the_way).unwrap();
    recorder.send(banned(0, SystemTime::now(), 3600));
    await_event(&events, "the list", |event| matches!(event, WriterEvent::Failing { .. }));
    // After several retries of the list. The history is writable all the time.
    for number in 1..40 {
        recorder.send(banned(number, SystemTime::now(), 3600));
        std::thread::sleep(Duration::from_millis(100));
    }
    let more: Vec<WriterEvent> = events.try_iter().collect();
    assert!(more.is_empty(), "{more:?}");
    fs::remove_dir(&in_the_way).unwrap();
    await_event(&events, "the recovery", |event| matches!(event, WriterEvent::Recovered { .. }));
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
    assert_eq!(fs::read_to_string(directory.path().join(BLOCKED)).unwrap().lines().count(), 40);
}

#[test]
fn full_disk_drops_newest_changes_without_waiting() {
    let state = State::new();
    let disk = SmallDisk::mount(state.parent(), "2m");
    let (writer, recorder, events) = writer(&state.path(), false);
    disk.fill();
    let now = SystemTime::now();
    let mut taken = 0;
    // More than the queue and the memory hold, even if the thread empties the queue quickly.
    for number in 0..100_000 {
        taken += u64::from(recorder.send(banned(number, now, 3600)));
    }
    assert!(taken < 100_000);
    assert_eq!(recorder.dropped(), 100_000 - taken);
    await_event(&events, "the loss", |event| matches!(event, WriterEvent::Lost { changes, .. } if *changes > 0));
    let (start, limit) = (Instant::now(), Duration::from_secs(8) * slowness());
    assert_eq!(writer.stop(limit), Stopped::Left(taken));
    assert!(start.elapsed() < 2 * limit, "{:?}", start.elapsed());
}

#[test]
fn full_disk_refuses_new_ledger() {
    let state = State::new();
    let disk = SmallDisk::mount(state.parent(), "1m");
    disk.fill();
    let error = Ledger::open(&state.path()).err().expect("the disk is full").to_string();
    assert!(error.contains("ledger") || error.contains("state"), "{error}");
}

/// Runs the ignored test `name` of this program as another process, with the ledger in `directory`.
fn child(name: &str, directory: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", name]).env("LEDGER", directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn ledger_of_the_child() -> PathBuf {
    std::env::var_os("LEDGER").expect("this test is run only by other tests").into()
}

#[test]
fn locked_database_is_reported_and_written_later() {
    let state = State::new();
    let (writer, recorder, events) = writer(&state.path(), false);
    let mut locker = child("trouble::subprocess_locks_database", &state.path());
    let mut lines = BufReader::new(locker.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("locked")));
    let now = SystemTime::now();
    recorder.send(banned(1, now, 3600));
    let event = await_event(&events, "the lock", |event| matches!(event, WriterEvent::Failing { .. }));
    assert!(event.to_string().contains("locked"), "{event}");
    assert_eq!(recorder.written(), 0);
    assert_eq!(state.counts().1, 0, "a reader is not locked out");
    drop(locker.stdin.take());
    await_event(&events, "the recovery", |event| matches!(event, WriterEvent::Recovered { .. }));
    assert!(locker.wait().unwrap().success());
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
    assert_eq!(state.ledger().reader().active(now).unwrap().items.len(), 1);
}

#[test]
#[ignore = "runs as a child process of a test above"]
fn subprocess_locks_database() {
    let connection = intruder(&ledger_of_the_child());
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    println!("locked");
    std::io::stdin().lines().for_each(drop);
    connection.execute_batch("ROLLBACK").unwrap();
}

#[test]
fn killed_process_loses_no_transaction() {
    for pause in [0, 1, 3, 10, 30, 100, 250] {
        let state = State::new();
        let mut process = child("trouble::subprocess_writes_forever", &state.path());
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut written = |least: usize| {
            let numbers =
                lines.by_ref().map_while(Result::ok).filter_map(|line| line.strip_prefix("written ")?.parse().ok());
            numbers.into_iter().find(|number| *number >= least)
        };
        written(1).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        process.kill().unwrap();
        process.wait().unwrap();
        // The number in the last complete line that the process wrote before it was killed.
        let mut last = 1;
        while let Some(more) = written(last + 1) {
            last = more;
        }
        let (ledger, opened) = state.open();
        assert_eq!(opened, Opened::Existing);
        let found = ledger.reader().active(SystemTime::now()).unwrap();
        assert_eq!(found.unreadable, 0);
        assert!(found.items.len() >= last, "{} of {last}", found.items.len());
        let numbers = (0..).map(source);
        assert!(found.items.iter().zip(numbers).all(|(entry, source)| entry.ban.target == source), "without a gap");
        let check: String = intruder(&state.path()).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let history = state.read(HISTORY);
        assert!(
            history.lines().filter(|line| !line.ends_with(" Blocked")).count() <= 1,
            "at most the last line is torn"
        );
    }
}

#[test]
#[ignore = "runs as a child process of a test above"]
fn subprocess_writes_forever() {
    let (_writer, recorder, _told) = writer(&ledger_of_the_child(), true);
    let mut out = std::io::stdout();
    for number in 0.. {
        while !recorder.send(banned(number, SystemTime::now(), 3600)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if number % 16 == 0 {
            // The name of the test, without a newline, stands before the first line.
            writeln!(out, "\nwritten {}", recorder.written()).unwrap();
        }
    }
}

#[test]
fn runtime_damage_starts_new_ledger() {
    let state = State::new();
    let now = SystemTime::now();
    {
        let (writer, recorder, _told) = writer(&state.path(), false);
        (0..2_000).for_each(|number| assert!(recorder.send(banned(number, now, 3600))));
        assert_eq!(writer.stop(time_limit()), Stopped::Whole);
    }
    let (writer, recorder, events) = writer(&state.path(), false);
    // A change by another program makes the thread read its pages again.
    let change = "UPDATE ban SET probes = probes + 1; PRAGMA wal_checkpoint(TRUNCATE)";
    intruder(&state.path()).execute_batch(change).unwrap();
    let file = fs::OpenOptions::new().write(true).open(state.file(DATABASE)).unwrap();
    let length = file.metadata().unwrap().len();
    // Overwrites all but the first pages, so that the next read of the thread fails.
    file.write_all_at(&vec![0xa5; usize::try_from(length).unwrap() - 4096], 4096).unwrap();
    recorder.send(banned(50_000, now, 3600));
    let event = await_event(&events, "the damage", |event| matches!(event, WriterEvent::Rebuilt { .. }));
    assert!(matches!(&event, WriterEvent::Rebuilt { aside: Some(aside), .. } if aside.exists()), "{event}");
    recorder.send(banned(50_001, now, 3600));
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
    let (ledger, opened) = state.open();
    assert_eq!(opened, Opened::Existing);
    let active: Vec<_> = ledger.reader().active(now).unwrap().items.iter().map(|entry| entry.ban.target).collect();
    assert!(active.ends_with(&[source(50_000), source(50_001)]), "{active:?}");
}

#[test]
fn removed_database_is_recreated_with_bans() {
    let state = State::new();
    let (writer, recorder, events) = writer(&state.path(), false);
    let now = SystemTime::now();
    (0..10).for_each(|number| assert!(recorder.send(banned(number, now, 3600))));
    eventually("ten bans", || recorder.written() == 10);
    for suffix in ["", "-wal", "-shm"] {
        fs::remove_file(state.file(&format!("{DATABASE}{suffix}"))).unwrap();
    }
    let event = await_event(&events, "the removal", |event| matches!(event, WriterEvent::Rebuilt { .. }));
    assert!(matches!(event, WriterEvent::Rebuilt { aside: None, carried: 10, .. }), "{event}");
    recorder.send(banned(10, now, 3600));
    assert_eq!(writer.stop(time_limit()), Stopped::Whole);
    assert_eq!(state.ledger().reader().active(now).unwrap().items.len(), 11);
}
