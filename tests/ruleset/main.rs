//! The kernel side of blocking against the kernel itself. Each test has a network namespace of its own, so it needs root;
//! `nft` serves as the second opinion.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail by panicking, as tests do")]

#[cfg(test)]
#[path = "../lab/mod.rs"]
mod lab;

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

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use portsentry::enforce::nft::{Installed, Nft, RulesetSpec};
use portsentry::types::{BanTarget, Expiry};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace that lives as long as this.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("psnft{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let namespace = Self(name);
        run("ip", &["-n", &namespace.0, "link", "set", "lo", "up"]);
        namespace
    }

    /// Runs `test` on a thread inside; the processes that it starts are inside as well.
    fn within<T: Send>(&self, test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                test()
            });
            thread.join().unwrap_or_else(|failure| std::panic::resume_unwind(failure))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft(command: &str) -> String {
    run("nft", &[command])
}

/// Loads `text` as a file of nft's.
fn load(text: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    run("nft", &["-f", file.path().to_str().unwrap()]);
}

/// The specification of the plain table.
const FILE: &str = include_str!("../../nft/portsentry.nft");

/// What `nft` prints of the ruleset, every counter as zero.
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
    Namespace::new().within(|| {
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.install(&spec).unwrap(), Installed::Created);
        test(&mut nft);
    });
}

fn subject(text: &str) -> BanTarget {
    BanTarget::of(text.parse().unwrap())
}

fn seconds(seconds: u64) -> Expiry {
    Expiry::After(Duration::from_secs(seconds))
}

/// True where `remaining` is a little less than `seconds`.
fn nearly(remaining: Option<Option<Duration>>, seconds: u64) -> bool {
    let slack = 5 * u64::from(lab::slowness());
    remaining.flatten().is_some_and(|left| (seconds.saturating_sub(slack)..=seconds).contains(&left.as_secs()))
}
