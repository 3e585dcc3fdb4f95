//! Tests when the ledger refuses to open, and its error messages.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use portsentry::ledger::{DATABASE, Ledger, LedgerError};
use rustix::fs::{FileType, Mode};

use super::support::{State, intruder};

fn refusal(directory: &Path) -> (LedgerError, String) {
    let error = Ledger::open(directory).err().expect("the ledger must not open");
    let text = error.to_string();
    (error, text)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn new_files_are_for_owner_only() {
    let (state, mut ledger) = State::open_new();
    ledger.record(&[super::support::ban(super::support::source(1), super::support::at(0), 60)]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&state.path()), 0o700);
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(&state.file(&format!("{DATABASE}{suffix}"))), 0o600, "{suffix:?}");
    }
}

#[test]
fn writable_directory_is_refused_with_remedy() {
    let state = State::with(&[]);
    for mode in [0o777, 0o770, 0o702, 0o1777] {
        set_mode(&state.path(), mode);
        let (error, text) = refusal(&state.path());
        assert!(matches!(error, LedgerError::Mode { .. }), "{error:?}");
        assert!(text.contains(&format!("mode {mode:04o}")) && text.contains("chmod 0700 /"), "{text}");
    }
    set_mode(&state.path(), 0o755);
    drop(state.ledger());
}

#[test]
fn accessible_database_is_refused() {
    let state = State::with(&[]);
    for mode in [0o644, 0o660, 0o602, 0o400] {
        set_mode(&state.file(DATABASE), mode);
        let (error, text) = refusal(&state.path());
        assert!(matches!(error, LedgerError::Mode { .. }), "{error:?}");
        assert!(text.contains("chmod 0600"), "{text}");
    }
}

#[test]
fn symbolic_link_is_refused_as_state() {
    let state = State::with(&[]);
    let link = State::new();
    symlink(state.path(), link.path()).unwrap();
    assert!(matches!(refusal(&link.path()).0, LedgerError::Link(_)));

    let elsewhere = state.file("elsewhere");
    fs::rename(state.file(DATABASE), &elsewhere).unwrap();
    symlink(&elsewhere, state.file(DATABASE)).unwrap();
    let (error, text) = refusal(&state.path());
    assert!(matches!(error, LedgerError::Link(_)), "{error:?}");
    assert!(text.contains("ledger.sqlite is a symbolic link"), "{text}");

    fs::remove_file(&elsewhere).unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Link(_)), "so does a dangling link");
}

#[test]
fn symbolic_link_on_path_is_accepted() {
    let state = State::new();
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(state.path()).unwrap();
    symlink(state.path(), parent.path().join("var")).unwrap();
    assert!(Ledger::open(&parent.path().join("var/portsentry")).is_ok());
}

#[test]
fn file_of_another_user_is_refused() {
    let state = State::with(&[]);
    for path in [state.file(DATABASE), state.path()] {
        if let Err(error) = chown(&path, Some(1), None) {
            // In a user namespace with a single user files cannot be given away, but files of the system belong to
            // another user.
            assert!(!rustix::process::geteuid().is_root() || error.raw_os_error() == Some(22), "{error}");
            assert!(matches!(refusal(Path::new("/proc/sys")).0, LedgerError::Owner { .. }));
            return;
        }
        let (error, text) = refusal(&state.path());
        assert!(matches!(error, LedgerError::Owner { owner: 1, .. }), "{error:?}");
        assert!(text.contains("belongs to user 1"), "{text}");
        chown(&path, Some(0), None).unwrap();
    }
    drop(state.ledger());
}

#[test]
fn wrong_file_type_is_refused() {
    let state = State::new();
    fs::write(state.path(), "x").unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Kind { wanted: "directory", .. }));
    fs::remove_file(state.path()).unwrap();
    fs::create_dir(state.path()).unwrap();
    fs::create_dir(state.file(DATABASE)).unwrap();
    assert!(matches!(refusal(&state.path()).0, LedgerError::Kind { wanted: "regular file", .. }));
}

/// SQLite would wait for ever for the writer of a FIFO in place of a rollback journal.
#[test]
fn special_file_beside_database_is_refused() {
    let state = State::with(&[]);
    for suffix in ["-wal", "-shm", "-journal"] {
        let path = state.file(&format!("{DATABASE}{suffix}"));
        let _ = fs::remove_file(&path);
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (error, text) = refusal(&state.path());
        assert!(matches!(error, LedgerError::Kind { wanted: "regular file", .. }), "{error:?}");
        assert!(text.contains(suffix), "{text}");
        fs::remove_file(&path).unwrap();
        symlink("/nowhere", &path).unwrap();
        assert!(matches!(refusal(&state.path()).0, LedgerError::Link(_)));
        fs::remove_file(&path).unwrap();
    }
    drop(state.ledger());
}

#[test]
fn ledger_of_later_release_is_untouched() {
    let state = State::with(&[]);
    intruder(&state.path()).pragma_update(None, "user_version", 99).unwrap();
    let (error, text) = refusal(&state.path());
    assert!(matches!(error, LedgerError::Newer { found: 99, .. }), "{error:?}");
    assert!(text.contains("install the newer version"), "{text}");
    assert!(state.file(DATABASE).exists());
}
