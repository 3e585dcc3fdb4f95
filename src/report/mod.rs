//! The report on the bans in the ledger, as one HTML page or one JSON object. It reads nothing but the ledger and writes
//! nothing but the file that is named as output.
//!
//! [`ReportStats::read`] adds up the bans, [`html`] and [`json`] render the sums, [`save`] writes the result to a file. The
//! page is self-contained: it has no script and fetches nothing. All times are UTC.

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
pub use stats::{Ends, Network, Offender, OverTime, ReportStats, Top};

/// The name of this host as the kernel has it; `None` if none is set.
#[must_use]
pub fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}
