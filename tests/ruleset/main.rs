//! Tests the nftables backend against the kernel. Each test runs in its own network namespace, so it needs root; `nft`
//! independently shows the result.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail by panicking, as tests do")]

mod bans;
mod install;
mod kernels;
mod million;
mod networks;
mod packets;
mod protect;
mod refused;
mod repair;
mod variants;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use netns_lab::Namespace;
use portsentry::enforce::nft::{Installed, Nft, RulesetSpec};
use portsentry::engine::ActiveBan;
use portsentry::types::{BanTarget, Expiry};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft(command: &str) -> String {
    run("nft", &[command])
}

/// Loads `text` as an nft file.
fn load(text: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    run("nft", &["-f", file.path().to_str().unwrap()]);
}

/// The specification of the plain table.
const FILE: &str = include_str!("../../nft/portsentry.nft");

/// The ruleset as `nft` prints it, with all counters set to zero.
fn listing() -> String {
    let text = nft("list ruleset");
    let mut words: Vec<&str> = text.split_inclusive(char::is_whitespace).collect();
    for index in 1..words.len() {
        if matches!(words[index - 1].trim(), "packets" | "bytes") {
            words[index] = "0 ";
        }
    }
    words.concat()
}

/// Runs `test` in a fresh namespace with the table installed.
fn installed(test: impl FnOnce(&mut Nft) + Send) {
    installed_with(RulesetSpec::default(), test);
}

fn installed_with(spec: RulesetSpec, test: impl FnOnce(&mut Nft) + Send) {
    Namespace::with_loopback().inside(|| {
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.install(&spec).unwrap(), Installed::Created);
        test(&mut nft);
    });
}

fn target(text: &str) -> BanTarget {
    BanTarget::containing(text.parse().unwrap())
}

/// A ban with this whole duration, if known, and remaining time.
fn restored(target: BanTarget, length: Option<Duration>, left: Expiry) -> ActiveBan {
    ActiveBan { length, ..ActiveBan::new(target, left) }
}

fn seconds(seconds: u64) -> Expiry {
    Expiry::After(Duration::from_secs(seconds))
}

/// True if `left` is slightly less than `seconds`.
fn nearly(left: Option<Expiry>, seconds: u64) -> bool {
    let slack = 5 * u64::from(netns_lab::slowness());
    left.and_then(Expiry::span).is_some_and(|left| (seconds.saturating_sub(slack)..=seconds).contains(&left.as_secs()))
}
