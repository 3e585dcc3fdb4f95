//! Blocking by routes against the kernel itself, in a network of namespaces: what `ip route` shows, what packets do, and
//! what happens to routes that are somebody else's.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

#[path = "../lab/mod.rs"]
mod lab;

mod lifecycle;
mod others;
mod packets;

use std::net::IpAddr;
use std::time::Duration;

use portsentry::enforce::route::{BlockError, Failed, Failure, Kind, PROTOCOL, Routes};
use portsentry::engine::Moment;
use portsentry::engine::subject::{Expiry, Subject};

use lab::Lab;

/// A back end in the victim, which belongs to its namespace wherever it is used.
fn open(lab: &Lab, kind: Kind) -> Routes {
    lab.inside("victim", || Routes::open(kind, 20_000)).unwrap()
}

/// The own routes of both families, as `ip` prints them, sorted and without padding.
fn own(lab: &Lab) -> Vec<String> {
    let protocol = PROTOCOL.to_string();
    let mut lines: Vec<String> = ["-4", "-6"]
        .iter()
        .flat_map(|family| {
            let words = [family, "route", "show", "table", "main", "proto", &protocol];
            let shown = lab.run("victim", "ip", &words);
            shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        })
        .collect();
    lines.sort();
    lines
}

/// What `ip route show` prints for one prefix, whoever laid it.
fn shown(lab: &Lab, prefix: &str) -> String {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    lab.run("victim", "ip", &[family, "route", "show", "exact", prefix]).trim().to_owned()
}

fn subject(text: &str) -> Subject {
    Subject::of(text.parse::<IpAddr>().unwrap())
}

fn for_ever(subjects: &[&str]) -> Vec<(Subject, Expiry)> {
    subjects.iter().map(|text| (subject(text), Expiry::Never)).collect()
}

fn at(seconds: u64) -> Moment {
    Moment::at(Duration::from_secs(seconds))
}

fn seconds(seconds: u64) -> Expiry {
    Expiry::After(Duration::from_secs(seconds))
}

/// The reason of the only failure.
fn only_failure(blocked: Result<(), BlockError>) -> Failure {
    match blocked {
        Err(BlockError::Failed { failed, .. }) => {
            let [Failed { reason, .. }] = failed.as_slice() else { panic!("{failed:?}") };
            reason.clone()
        }
        other => panic!("{other:?}"),
    }
}
