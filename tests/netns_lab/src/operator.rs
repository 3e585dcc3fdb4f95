//! Runs the program's own commands in the victim, as an operator does.

use std::net::IpAddr;
use std::process::Command;

use serde_json::Value;

use crate::daemon::binary;
use crate::namespace::HIDE_UNITS;
use crate::{Lab, TIMEOUT, within};

/// The result of a command.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Lab {
    /// A command that runs the program in the victim.
    pub fn portsentry(&self) -> Command {
        let mut command = self.command("victim", "sh");
        command.args(["-ec", &format!("{HIDE_UNITS}exec \"$@\""), "sh"]).arg(binary());
        command
    }

    /// A command that runs the program with these arguments for the daemon on the lab's control socket.
    pub fn operator(&self, words: &[&str]) -> Command {
        let mut command = self.portsentry();
        command.args(words).arg("--socket").arg(self.path("socket"));
        command
    }

    /// Runs the program with these arguments.
    pub fn operate(&self, words: &[&str]) -> Answer {
        let output = self.operator(words).output().expect("ip runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Answer { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Runs the program and panics unless it succeeds; returns its output.
    pub fn succeed(&self, words: &[&str]) -> String {
        let answer = self.operate(words);
        assert_eq!(answer.code, Some(0), "{words:?}: {answer:?}");
        answer.out
    }

    /// Runs the program with `--json`; returns the object that it prints.
    pub fn ask(&self, words: &[&str]) -> Value {
        let out = self.succeed(&[words, &["--json"]].concat());
        assert_eq!(out.lines().count(), 1, "{words:?}: {out}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// Waits until `list --would-block` contains this source; returns its object.
    pub fn expect_would_block(&self, source: IpAddr) -> Value {
        let find = || {
            let answer = self.operate(&["list", "--would-block", "--json"]);
            let list: Value = serde_json::from_str(&answer.out).ok()?;
            list["would_block"].as_array()?.iter().find(|one| one["source"] == source.to_string()).cloned()
        };
        let found = within(TIMEOUT, find);
        found.unwrap_or_else(|| panic!("{source} is not listed: {:?}", self.operate(&["list", "--would-block"])))
    }

    /// Reloads the daemon of [`crate::daemon::Daemon::start_configured`] with another configuration.
    pub fn reload(&self, configuration: &str) {
        self.write("portsentry.toml", configuration);
        self.succeed(&["reload"]);
    }
}
