//! Tests the ledger reader: every user with read access can read a ledger in any state, and reading does not change it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portsentry::ledger::{DATABASE, LedgerEntry, LedgerError, Reader, Rows};

use super::{DAY, ago, ban, now};
use crate::support::{State, intruder, source, target};

fn active(directory: &Path) -> Result<Rows<LedgerEntry>, LedgerError> {
    Reader::read(directory, |reader| reader.active(now()))
}

fn count_all(directory: &Path) -> Result<usize, LedgerError> {
    Reader::read(directory, |reader| {
        let mut count = 0;
        let _ = reader.each(|_| count += 1)?;
        Ok(count)
    })
}

fn refusal(directory: &Path) -> (LedgerError, String) {
    let error = active(directory).expect_err("the ledger must not be readable");
    let text = error.to_string();
    (error, text)
}

/// All contents of a directory: names, contents, owners, modes and times of the last change.
fn snapshot(directory: &Path) -> Vec<(String, Vec<u8>, String)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let found = path.metadata().unwrap();
            let content = fs::read(&path).unwrap();
            let (owner, mode) = ((found.uid(), found.gid()), found.mode());
            let marks = format!("{owner:?} {mode:o} {} {}", found.mtime(), found.mtime_nsec());
            (path.display().to_string(), content, marks)
        })
        .collect();
    files.sort();
    files
}

/// The state that a killed daemon leaves: a copy of the files while they are open.
fn killed(bans: u32) -> State {
    let (state, left) = (State::new(), State::new());
    let mut ledger = state.ledger();
    for number in 0..bans {
        ledger.record(&[ban(source(number), ago(60), DAY)]).unwrap();
    }
    fs::create_dir(left.path()).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        fs::copy(state.database(suffix), left.database(suffix)).unwrap();
    }
    assert!(left.database("-wal").metadata().unwrap().len() > 0);
    left
}

#[test]
fn closed_ledger_is_read_unchanged() {
    let repeater = target("2001:db8:1:2:3::4");
    let bans = [ban(repeater, ago(3 * DAY), DAY), ban(repeater, ago(60), DAY), ban(source(1), ago(30), DAY)];
    let state = State::with(&bans);
    let before = snapshot(&state.path());
    assert_eq!(before.len(), 1);
    let targets: Vec<_> = active(&state.path()).unwrap().items.iter().map(|entry| entry.ban.target).collect();
    assert_eq!(targets, [repeater, source(1)]);
    let history = Reader::read(&state.path(), |reader| reader.bans_of(repeater)).unwrap().items;
    assert_eq!(history.iter().map(|entry| entry.strikes).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(count_all(&state.path()).unwrap(), 3);
    assert_eq!(snapshot(&state.path()), before);
}

#[test]
fn fresh_writes_of_daemon_are_seen() {
    let state = State::with(&[]);
    let mut ledger = state.ledger();
    assert_eq!(state.count_in_other_process(), 0);
    for number in 1..=10 {
        ledger.record(&[ban(source(number), ago(60), DAY)]).unwrap();
        assert_eq!(state.count_in_other_process(), u64::from(number));
    }
    let before = snapshot(&state.path());
    assert_eq!(before.len(), 3, "the write-ahead log exists");
    assert_eq!(state.count_in_other_process(), 10);
    assert_eq!(snapshot(&state.path()), before);
}

#[test]
fn ledger_of_killed_daemon_is_read() {
    let state = killed(30);
    let before = snapshot(&state.path());
    assert_eq!(count_all(&state.path()).unwrap(), 30);
    assert_eq!(active(&state.path()).unwrap().items.len(), 30);
    assert_eq!(snapshot(&state.path()), before);
    assert_eq!(state.counts().1, 30, "the next daemon finds all bans");
}

#[test]
fn missing_log_index_is_reported() {
    let state = killed(3);
    fs::remove_file(state.database("-shm")).unwrap();
    let (error, text) = refusal(&state.path());
    assert!(matches!(error, LedgerError::Incomplete(_)), "{error:?}");
    assert!(text.contains("-shm is missing; copy all three files"), "{text}");
    assert!(!state.database("-shm").exists());
}

/// The daemon writes two bans per transaction and is restarted sometimes, while readers come and go.
#[test]
fn reader_sees_consistent_snapshot() {
    let state = State::with(&[]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !is_over.load(Ordering::Relaxed) {
                let mut ledger = state.ledger();
                for _ in 0..50 {
                    let pair = [number, number + 1].map(|number| ban(source(number), ago(60), DAY));
                    ledger.record(&pair).unwrap();
                    number += 2;
                }
                // Checkpointed into the database; the log is removed.
                drop(ledger);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let mut last = 0;
        let seen = std::panic::catch_unwind(|| (0..25).map(|_| state.count_in_other_process()).collect::<Vec<_>>());
        is_over.store(true, Ordering::Relaxed);
        for seen in seen.unwrap() {
            assert!(seen % 2 == 0 && seen >= last, "{seen} after {last}");
            last = seen;
        }
        assert!(last > 0);
    });
}

#[test]
fn missing_ledger_is_reported_and_not_created() {
    let state = State::new();
    let (error, text) = refusal(&state.path());
    assert!(matches!(error, LedgerError::Absent(_)), "{error:?}");
    assert!(text.contains("there is no ledger in /") && text.contains("--state-dir"), "{text}");
    fs::create_dir(state.path()).unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Absent(_)));
    fs::write(state.database(""), "").unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Absent(_)), "the daemon is just starting");
    assert_eq!(snapshot(&state.path()).len(), 1);
}

#[test]
fn foreign_database_is_not_a_ledger() {
    let state = State::new();
    fs::create_dir(state.path()).unwrap();
    fs::write(state.database(""), "no database at all, and long enough to be one ".repeat(100)).unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Damaged { .. }));

    fs::remove_file(state.database("")).unwrap();
    intruder(&state.path()).execute_batch("CREATE TABLE ban (subject TEXT)").unwrap();
    let (error, text) = refusal(&state.path());
    assert!(matches!(error, LedgerError::Damaged { .. }) && text.contains("another program"), "{text}");

    fs::remove_file(state.database("")).unwrap();
    drop(state.ledger());
    intruder(&state.path()).pragma_update(None, "user_version", 99).unwrap();
    let (error, text) = refusal(&state.path());
    assert!(matches!(error, LedgerError::Newer { found: 99, .. }), "{text}");

    fs::remove_file(state.database("")).unwrap();
    symlink("/etc/passwd", state.database("")).unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Link(_)));

    fs::remove_file(state.database("")).unwrap();
    fs::create_dir(state.database("")).unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Kind { wanted: "regular file", .. }));
}

#[test]
fn damaged_ledger_is_reported_and_kept() {
    let bans: Vec<_> = (0..2_000).map(|number| ban(source(number), ago(60), DAY)).collect();
    let state = State::with(&bans);
    let mut content = fs::read(state.database("")).unwrap();
    let pages = content.len() / 4096;
    content[4096 * 3..4096 * pages / 2].fill(0x5a);
    fs::write(state.database(""), &content).unwrap();
    let error = count_all(&state.path()).unwrap_err();
    assert!(error.is_damage(), "{error:?}");
    assert_eq!(fs::read(state.database("")).unwrap(), content);
}

/// Runs the program as user nobody; `None` if this test cannot change its user.
fn as_nobody(state: &State) -> Option<std::process::Output> {
    let program = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let copy = program.path().join("portsentry");
    netns_lab::install_program(Path::new(env!("CARGO_BIN_EXE_portsentry")), &copy);
    let mut command = std::process::Command::new(copy);
    command.args(["report", "--json", "--since", "10years", "--state-dir"]).arg(state.path()).uid(65_534).gid(65_534);
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if matches!(error.raw_os_error(), Some(1 | 22)) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn file_permission_decides_ledger_access() {
    for (state, bans) in [(State::with(&[ban(source(1), ago(60), DAY)]), 1), (killed(30), 30)] {
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(state.parent(), 0o755);
        open(&state.path(), 0o700);
        let Some(output) = as_nobody(&state) else { return };
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(&format!("this user cannot read {}", state.path().join(DATABASE).display())), "{text}");

        open(&state.path(), 0o755);
        let Some(output) = as_nobody(&state) else { return };
        assert_eq!(output.status.code(), Some(1), "access to the directory alone is not enough");

        for suffix in ["", "-wal", "-shm"].iter().filter(|suffix| state.database(suffix).exists()) {
            open(&state.database(suffix), 0o644);
        }
        let before = snapshot(&state.path());
        let Some(output) = as_nobody(&state) else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(figures["kept"], bans);
        assert_eq!(snapshot(&state.path()), before);
    }
}
