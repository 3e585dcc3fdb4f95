//! Tests the HTML report and the ledger reader: with real databases, with and without a daemon that writes to them, and
//! through the command line.

mod markup;
mod program;
mod reader;
mod stats;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portsentry::ledger::BanRecord;
use portsentry::types::{BanTarget, Protocol};

use super::support;

const DAY: u64 = 86_400;

/// 2026-11-21T06:32:13Z, a Saturday.
const NOW: u64 = 1_795_242_733;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// `seconds` before [`now`].
fn ago(seconds: u64) -> SystemTime {
    now() - Duration::from_secs(seconds)
}

/// A ban by the detector: a SYN scan of two ports with seven probes.
fn ban(target: BanTarget, since: SystemTime, seconds: u64) -> BanRecord {
    BanRecord {
        source: target.element(),
        ports: vec![(Protocol::Tcp, 23), (Protocol::Tcp, 8080)],
        guest_port: None,
        ..support::ban(target, since, seconds)
    }
}
