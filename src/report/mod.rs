//! Creates the report on the bans in the ledger, as one HTML page or one JSON object. It reads only the ledger, and
//! writes only the output file.
//!
//! [`ReportStats::read`] adds up the bans, [`html()`] and [`json()`] render the sums, and [`save()`] writes the result
//! to a file. The page is self-contained: it has no script and loads nothing. All times are UTC.

mod aggregate;
mod calendar;
mod format;
mod html;
mod json;
mod save;
mod sections;
mod services;
mod stats;

pub use html::html;
pub use json::json;
pub use save::{SaveError, save};
pub use stats::{Ends, Network, Offender, OverTime, RecentBan, ReportStats, Source, Top, WouldBlock};

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// Options of `report`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ReportOptions {
    /// Count bans that began within this time: 24h, 30d, 1y
    #[arg(long, value_name = "SPAN", default_value = "30d", value_parser = parse_since, allow_hyphen_values = true)]
    pub since: Duration,
    /// Write to this file instead of standard output
    #[arg(short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Directory of the ledger
    #[arg(long, value_name = "DIR", default_value = crate::ledger::DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Write the statistics as one JSON object instead of an HTML page
    #[arg(long)]
    pub json: bool,
}

/// Permitted range of `--since`: the finest bar is a minute, and the ledger keeps less than ten years.
const SINCE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(315_576_000);

fn parse_since(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).ok().filter(|span| SINCE.contains(span));
    span.ok_or_else(|| {
        "write a duration from one minute to ten years, for example \"24h\", \"30d\" or \"1y\"".to_owned()
    })
}

/// The host name of the kernel; `None` if none is set.
pub fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}
