//! The ledger's bans to one page for people, or the same figures as one JSON object. Reads nothing but the ledger, and
//! changes nothing but the file that it is told to write.
//!
//! [`Figures::read`] adds up, [`html`] and [`json`] say it, [`save`] puts it in a file. The page is complete in itself: no
//! script, and nothing that it would fetch from elsewhere. Its times are UTC.

mod calendar;
mod figures;
mod html;
mod json;
mod markup;
mod save;
mod sections;
mod services;
mod tally;

pub use figures::{Ends, Figures, Network, Offender, Top};
pub use html::html;
pub use json::json;
pub use save::{SaveError, save};

/// The name of this host, where the kernel tells one.
#[must_use]
pub fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}
