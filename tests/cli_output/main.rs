//! Tests the command line from an operator's view: `portsentry list`, `watch` and `check`, and every other command as a
//! program. Ledgers and kernel state belong to the test.

#![cfg(test)]

mod check;
mod commands;
mod list;
mod watch;

use std::process::Output;

use serde_json::Value;

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The JSON of a command that exits with `code`, on one line.
fn json(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
    serde_json::from_slice(&output.stdout).unwrap()
}
