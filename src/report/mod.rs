//! Creates the report on the bans in the ledger, as one HTML page or one JSON object. It reads only the ledger, and
//! writes only the output file.
//!
//! [`ReportStats::read`] adds up the bans, [`html()`] and [`json()`] render the sums, and [`save()`] writes the result
//! to a file. The page is self-contained: it has no script and loads nothing. All times are UTC.

mod aggregate;
mod calendar;
mod format;
mod html;
mod sections;
mod services;
mod stats;

pub use html::html;
pub use stats::{Ends, Network, Offender, OverTime, RecentBan, ReportStats, SourceStats, Top, WouldBlock};

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::atomic_file::{AtomicFile, TemporaryName};

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
    let system = rustix::system::uname();
    let name = system.nodename().to_str().ok().filter(|name| !name.is_empty() && *name != "(none)");
    name.map(str::to_owned)
}

/// Renders the report about `host` as one JSON object, with the same names as the JSON events.
pub fn json(stats: &ReportStats, host: Option<&str>) -> String {
    #[derive(Serialize)]
    struct JsonReport<'a> {
        event: &'static str,
        host: Option<&'a str>,
        #[serde(flatten)]
        stats: &'a ReportStats,
    }
    // Cannot fail: all keys are strings.
    serde_json::to_string(&JsonReport { event: "report", host, stats }).unwrap_or_default()
}

/// Why the report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report to {}: {error}", path.display())]
pub struct SaveError {
    path: PathBuf,
    error: io::Error,
}

/// Writes `text` to `path` atomically: a reader such as a web server sees either the old or the new report. An existing
/// file is replaced and keeps its permissions. If `path` is a symbolic link, the file that it points to is replaced. A
/// pipe or a device, such as /dev/stdout, is written to directly.
///
/// # Errors
/// The error of the system; an existing file is then unchanged.
pub fn save(path: &Path, text: &str) -> Result<(), SaveError> {
    let result = match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            path.canonicalize().and_then(|path| replace(&path, text, Some(found.permissions())))
        }
        // Replacing a device with a file would break all other programs that use it.
        Ok(_) => OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(path, text, None),
        Err(error) => Err(error),
    };
    result.map_err(|error| SaveError { path: path.to_owned(), error })
}

fn replace(path: &Path, text: &str, permissions: Option<Permissions>) -> io::Result<()> {
    AtomicFile::write(path, TemporaryName::Random, 0o666, |file| {
        permissions.map_or(Ok(()), |permissions| file.set_permissions(permissions))?;
        file.write_all(text.as_bytes())
    })?
    .replace()
}
