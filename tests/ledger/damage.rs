//! Tests the ledger with damaged or foreign files.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use portsentry::ledger::{DATABASE, Ledger, LedgerError, LoadedState, Opened};
use proptest::prelude::*;
use rusqlite::Connection;

use super::support::{State, at, ban, intruder, source, target};

/// A closed ledger of 300 bans, a third of them expired.
fn filled() -> State {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let (state, mut ledger) = State::open_new();
        let bans: Vec<_> =
            (0..300).map(|number| ban(source(number * 7919), at(0), 10 + u64::from(number % 3) * 3600)).collect();
        ledger.record(&bans).unwrap();
        let _ = ledger.expire(at(11)).unwrap();
        drop(ledger);
        fs::read(state.file(DATABASE)).unwrap()
    });
    let state = State::with(&[]);
    fs::write(state.file(DATABASE), &*CONTENT).unwrap();
    state
}

#[test]
fn non_database_is_quarantined() {
    let state = State::with(&[]);
    fs::write(state.file(DATABASE), "192.0.2.7\n".repeat(500)).unwrap();
    let (mut ledger, opened) = state.open();
    let Opened::Rebuilt { aside, damage } = opened else { panic!("{opened:?}") };
    assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("ledger.sqlite.corrupt-"), "{aside:?}");
    assert!(damage.contains("not a database"), "{damage}");
    assert_eq!(fs::read_to_string(aside).unwrap(), "192.0.2.7\n".repeat(500));
    ledger.record(&[ban(source(1), at(0), 60)]).unwrap();
    drop(ledger);
    assert_eq!(state.open().1, Opened::Existing);
}

#[test]
fn foreign_database_is_quarantined_unchanged() {
    for sql in ["CREATE TABLE ban (name TEXT)", "CREATE TABLE users (name TEXT); PRAGMA user_version = 1"] {
        let state = State::with(&[]);
        fs::remove_file(state.file(DATABASE)).unwrap();
        drop(OpenOptions::new().write(true).create_new(true).open(state.file(DATABASE)).unwrap());
        fs::set_permissions(state.file(DATABASE), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        intruder(&state.path()).execute_batch(sql).unwrap();
        let (_ledger, opened) = state.open();
        let Opened::Rebuilt { aside, .. } = opened else { panic!("{opened:?}") };
        let tables = "SELECT count(*) FROM sqlite_schema";
        let tables: i64 = Connection::open(aside).unwrap().query_row(tables, [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 1);
    }
}

#[test]
fn ledger_with_other_columns_is_damaged() {
    let state = filled();
    intruder(&state.path()).execute_batch("ALTER TABLE ban RENAME COLUMN until TO til").unwrap();
    let (_ledger, opened) = state.open();
    assert!(matches!(opened, Opened::Rebuilt { .. }), "{opened:?}");
}

#[test]
fn quarantined_ledgers_are_limited() {
    let state = State::new();
    for _ in 0..6 {
        drop(state.ledger());
        fs::write(state.file(DATABASE), "x".repeat(8192)).unwrap();
    }
    drop(state.ledger());
    let names = fs::read_dir(state.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.contains("corrupt")).count(), 3);
}

#[test]
fn invalid_row_is_skipped_and_counted() {
    let (state, mut ledger) = State::open_new();
    let bans: Vec<_> = (0..20).map(|number| ban(source(number), at(0), 3600)).collect();
    ledger.record(&bans).unwrap();
    let spoiled = [
        "subject = 'somebody'",
        "subject = '10.0.0.1/8'",
        "subject = '10.0.0.1' || char(0)",
        "subject = ''",
        "source = '::1::'",
        "source = ''",
        "class = 'SYN'",
        "ports = 'tcp/99999'",
        "ports = 'tcp/1;udp/2'",
        "probes = -1",
        "probes = 9223372036854775807",
        "strikes = -1",
        "method = 'magic'",
        "author = ''",
        "since = -9223372036854775807, until = 9223372036854775807",
        "capped = 2",
    ];
    let intruder = intruder(&state.path());
    for (id, change) in (1..).zip(spoiled) {
        assert_eq!(intruder.execute(&format!("UPDATE ban SET {change} WHERE id = ?"), [id]).unwrap(), 1, "{change}");
    }
    // Text that is not UTF-8.
    intruder.execute("UPDATE ban SET interface = CAST(x'ff2f' AS TEXT) WHERE id = 17", []).unwrap();
    let active = ledger.reader().active(at(1)).unwrap();
    // The row with times far in the future or past is valid.
    assert_eq!((active.items.len(), active.unreadable), (5, 15));
    let restored = LoadedState::read(ledger.reader(), std::time::Duration::MAX, at(1), 100).unwrap();
    // Columns that a start does not need may hold anything: the ban is restored nevertheless.
    assert_eq!((restored.active.len(), restored.histories.len(), restored.unreadable), (11, 14, 9));
    let expired = ledger.expire(at(7200)).unwrap();
    assert_eq!((expired.items.len(), expired.unreadable), (15, 4), "only targets are read here");
    assert_eq!(ledger.reader().bans_of(source(5)).unwrap().unreadable, 1);
    assert_eq!(ledger.reader().bans_of(source(19)).unwrap().items.len(), 1);
}

#[test]
fn foreign_trigger_or_view_has_no_effect() {
    let state = State::with(&[]);
    let sql = "CREATE TRIGGER free AFTER INSERT ON ban BEGIN DELETE FROM ban; END";
    intruder(&state.path()).execute_batch(sql).unwrap();
    let mut ledger = state.ledger();
    ledger.record(&[ban(target("192.0.2.7"), at(0), 60)]).unwrap();
    assert_eq!(ledger.reader().active(at(1)).unwrap().items.len(), 1);
}

/// Uses every function of a ledger until it reports damage.
fn use_it(ledger: &mut Ledger) -> Result<(), LedgerError> {
    let _ = ledger.reader().active(at(1))?;
    let _ = ledger.reader().bans_of(source(0))?;
    let _ = LoadedState::read(ledger.reader(), std::time::Duration::from_secs(60), at(1), 10)?;
    ledger.record(&(0..50).map(|number| ban(source(number * 7919), at(20), 60)).collect::<Vec<_>>())?;
    ledger.ended(source(7919), portsentry::ledger::Ending::Expired, at(30))?;
    let _ = ledger.expire(at(3600 * 24))?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_ledger_is_used_or_quarantined(
        place in any::<prop::sample::Index>(), early in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 1..64), cut in 0..8_u8
    ) {
        let state = filled();
        let path = state.file(DATABASE);
        let length = fs::metadata(&path).unwrap().len();
        // Half of the damage hits the structure of the file.
        let offset = place.index(if early { 200 } else { length.try_into().unwrap() }) as u64;
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        if cut == 0 {
            file.set_len(offset).unwrap();
        } else {
            file.write_at(&bytes, offset).unwrap();
        }
        drop(file);
        let mut ledger = match Ledger::open(&state.path()) {
            Ok((ledger, _)) => ledger,
            // The version number of the format was hit.
            Err(LedgerError::Newer { .. }) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        if let Err(error) = use_it(&mut ledger) {
            prop_assert!(error.is_damage(), "{}", error);
            let aside = ledger.quarantine().unwrap();
            prop_assert!(aside.exists());
            let (mut ledger, opened) = state.open();
            prop_assert_eq!(opened, Opened::Fresh);
            use_it(&mut ledger).unwrap();
        }
    }
}

#[test]
fn torn_log_loses_only_last_writes() {
    let (state, mut ledger) = State::open_new();
    for number in 0..20 {
        ledger.record(&[ban(source(number), at(0), 3600)]).unwrap();
    }
    // After a power cut: the ledger was not closed, and the last pages of the log are missing.
    let copy = State::new();
    fs::create_dir(copy.path()).unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{DATABASE}{suffix}");
        fs::copy(state.file(&name), copy.file(&name)).unwrap();
    }
    let log = OpenOptions::new().write(true).open(copy.file("ledger.sqlite-wal")).unwrap();
    log.set_len(log.metadata().unwrap().len() - 5000).unwrap();
    let (ledger, opened) = copy.open();
    assert_eq!(opened, Opened::Existing);
    let active = ledger.reader().active(at(1)).unwrap().items;
    assert!((15..20).contains(&active.len()), "{}", active.len());
    assert!(active.iter().zip(0..).all(|(entry, number)| entry.ban.target == source(number)), "the first ones");
}
