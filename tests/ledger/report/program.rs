//! Tests `portsentry report` through the command line: its output, files and errors.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Output, Stdio};
use std::time::SystemTime;

use serde_json::Value;

use super::{DAY, ban};
use crate::support::{State, source};

/// A ledger with one recent ban.
fn state() -> State {
    State::with(&[ban(source(1), SystemTime::now(), DAY)])
}

fn failure(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty());
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn page_goes_to_output_or_named_file() {
    let state = state();
    for arguments in [&[][..], &["-o", "-"]] {
        let output = state.report(arguments);
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
        let page = String::from_utf8(output.stdout).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>\n") && page.ends_with("</html>\n"), "{page}");
        assert!(page.contains("<code>10.0.0.0/24</code>"), "{page}");
    }
    let output = state.report(&["--json"]);
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&figures["event"], &figures["bans"]), (&"report".into(), &1.into()));
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
}

#[test]
fn file_is_replaced_atomically_with_its_permissions() {
    let state = state();
    let file = state.parent().join("report.html");
    let name = file.to_str().unwrap();
    assert!(state.report(&["-o", name]).status.success());
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o604)).unwrap();
    let mut reader = fs::File::open(&file).unwrap();
    let link = state.parent().join("link.html");
    symlink(&file, &link).unwrap();
    let output = state.report(&["-o", link.to_str().unwrap()]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read_to_string(&file).unwrap().ends_with("</html>\n"));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o604);
    assert!(link.is_symlink());
    let mut old = String::new();
    reader.read_to_string(&mut old).unwrap();
    assert_eq!(old, "old", "a program that has the old file open can read all of it");
    assert_eq!(fs::read_dir(state.parent()).unwrap().count(), 3, "no other file is left");
}

#[test]
fn device_is_written_to_and_not_replaced() {
    let state = state();
    let output = state.report(&["-o", "/dev/stdout"]);
    assert!(output.status.success() && output.stdout.ends_with(b"</html>\n"));
    // The link itself, because its target, the standard output of the tests, may be a file.
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
    let (code, text) = failure(&state.report(&["-o", "/dev/full"]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("cannot write the report to /dev/full: No space left"), "{text}");
    assert!(!fs::metadata("/dev/full").unwrap().is_file());
}

#[test]
fn unwritable_output_fails_with_error() {
    let state = state();
    let parent = state.parent().to_str().unwrap();
    for file in [parent.to_owned(), format!("{parent}/missing/report.html"), "/proc/report.html".to_owned()] {
        let (code, text) = failure(&state.report(&["-o", &file]));
        assert_eq!(code, Some(1), "{text}");
        assert!(text.starts_with(&format!("portsentry: cannot write the report to {file}: ")), "{text}");
    }
    let (code, text) = failure(&State::new().report(&["-o", &format!("{parent}/never.html")]));
    assert_eq!(code, Some(1));
    assert!(text.starts_with("portsentry: there is no ledger in /"), "{text}");
    assert!(!state.parent().join("never.html").exists(), "without a ledger no page is written");
}

#[test]
fn closed_output_pipe_is_not_an_error() {
    let state = state();
    let mut child = state.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
