//! Implements `list --would-block`, which prints from the ledger the sources that would have been banned while their
//! protocol was only logged.

use std::io::Write;
use std::time::SystemTime;

use serde::Serialize;

use super::bans::unreadable_note;
use super::{ListError, ListOptions, in_locale, table, width};
use crate::control::print;
use crate::events::json::{PortRecord, rfc3339};
use crate::ledger::{Found, Logged, Reader};

/// The list as JSON.
#[derive(Serialize)]
struct Document<'a> {
    time: String,
    notes: &'a [String],
    would_block: Vec<Item<'a>>,
}

#[derive(Serialize)]
struct Item<'a> {
    #[serde(rename = "subject")]
    target: String,
    source: String,
    class: &'static str,
    reason: &'a str,
    ports: Vec<PortRecord>,
    probes: u32,
    first: String,
    last: String,
    times: u32,
}

impl<'a> From<&'a Logged> for Item<'a> {
    fn from(logged: &'a Logged) -> Self {
        Self {
            target: logged.target.to_string(),
            source: logged.source.to_string(),
            class: logged.class.key(),
            reason: &logged.reason,
            ports: logged.ports.iter().map(PortRecord::from).collect(),
            probes: logged.probes,
            first: rfc3339(logged.first),
            last: rfc3339(logged.last),
            times: logged.times,
        }
    }
}

/// Writes the list and returns notes for standard error.
pub(super) fn run(options: &ListOptions, now: SystemTime, out: &mut impl Write) -> Result<Vec<String>, ListError> {
    // No note without a daemon: the list is complete anyway, because it is about the past.
    let directory = options.directory(&mut Vec::new());
    let Found { mut items, unreadable } = Reader::read(&directory, Reader::logged)?;
    items.retain(|logged| {
        let wanted = options.target.is_none_or(|target| target.overlaps(logged.target));
        let begin = options.since.and_then(|since| now.checked_sub(since));
        wanted && begin.is_none_or(|begin| logged.last >= begin)
    });
    let notes = Vec::from_iter(unreadable_note(unreadable));
    let text = if options.json {
        let document =
            Document { time: rfc3339(now), notes: &notes, would_block: items.iter().map(Item::from).collect() };
        serde_json::to_string(&document).unwrap_or_default() + "\n"
    } else {
        in_locale(match items.is_empty() {
            true => format!("{} would have been blocked\n", options.no_source()),
            false => table::would_block(&items, width(), now),
        })
    };
    print(out, &text).map(|()| notes).map_err(ListError::Write)
}
