//! Provides helpers for the route tests: backends in the victim, and the output of `ip route`.

use std::net::IpAddr;
use std::time::Duration;

use portsentry::enforce::route::{BlockError, Failed, Failure, PROTOCOL, Routes};
use portsentry::types::{BanTarget, Expiry, RouteKind, Timestamp};

use netns_lab::Lab;

/// A backend in the victim. It stays bound to that namespace on every thread.
pub(crate) fn open(lab: &Lab, kind: RouteKind) -> Routes {
    lab.inside("victim", || Routes::open(kind, 20_000)).unwrap()
}

/// Our own routes of both families, as `ip` prints them, sorted and without padding.
pub(crate) fn own(lab: &Lab) -> Vec<String> {
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

/// The output of `ip route show` for one prefix, with routes of any program.
pub(crate) fn shown(lab: &Lab, prefix: &str) -> String {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    lab.run("victim", "ip", &[family, "route", "show", "exact", prefix]).trim().to_owned()
}

pub(crate) fn target(text: &str) -> BanTarget {
    BanTarget::containing(text.parse::<IpAddr>().unwrap())
}

pub(crate) fn for_ever(targets: &[&str]) -> Vec<(BanTarget, Expiry)> {
    targets.iter().map(|text| (target(text), Expiry::Never)).collect()
}

pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::at(Duration::from_secs(seconds))
}

pub(crate) fn seconds(seconds: u64) -> Expiry {
    Expiry::After(Duration::from_secs(seconds))
}

/// The reason of the only failure.
pub(crate) fn only_failure(blocked: Result<(), BlockError>) -> Failure {
    match blocked {
        Err(BlockError::Failed { failed, .. }) => {
            let [Failed { reason, .. }] = failed.as_slice() else { panic!("{failed:?}") };
            reason.clone()
        }
        other => panic!("{other:?}"),
    }
}
