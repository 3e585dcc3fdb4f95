//! The bans in force, from the kernel's sets and the ledger, to a table or to JSON. Needs no running daemon and changes
//! nothing. In a process of its own: the ledger's reader must not be in the daemon's.

mod bans;
mod names;
mod table;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

pub use bans::{Bans, Held, ListError, Listed, read};

pub(crate) use table::{brief, shortened};

use crate::cli::{ListOptions, Order};
use crate::events::json::rfc3339;
use crate::ledger::{Banned, author_key};
use crate::types::Expiry;

/// Columns where there is no terminal that has any.
const COLUMNS: u16 = 80;

/// Writes the list that `options` ask for; what has to be said besides.
///
/// # Errors
/// Where neither the kernel nor the ledger tells anything, and where the list cannot be written.
pub fn run(options: &ListOptions, out: &mut impl Write) -> Result<Vec<String>, ListError> {
    let now = SystemTime::now();
    let Bans { mut bans, kernel, mut notes } = read(&options.state_dir, options.target, now)?;
    if let Some(since) = options.since {
        let begin = now.checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH);
        let unknown = bans.iter().filter(|ban| ban.remembered.is_none()).count();
        bans.retain(|ban| ban.remembered.as_ref().is_some_and(|entry| entry.ban.since >= begin));
        if unknown > 0 {
            notes.push(format!("left out: {unknown} of which only the kernel knows, and not since when"));
        }
    }
    sort(&mut bans, options.sort, now);
    let names = match options.names {
        true => names::look_up(bans.iter().filter_map(Listed::source).collect(), &mut notes),
        false => HashMap::new(),
    };
    let text = if options.json {
        let bans: Vec<Value> = bans.iter().map(|ban| object(ban, &names, options.names, now)).collect();
        format!("{}\n", json!({"time": rfc3339(now), "kernel": kernel, "notes": notes, "bans": bans}))
    } else {
        let columns = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| size.ws_col);
        let columns = columns.filter(|columns| *columns > 0).unwrap_or(COLUMNS);
        table::text(&bans, options.names.then_some(&names), columns.into(), now)
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has had enough is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ListError::Write(error)),
        _ => Ok(notes),
    }
}

/// The bans in this order; those that are alike in it by address.
fn sort(bans: &mut [Listed], order: Order, now: SystemTime) {
    let span = |ban: &Listed| match ban.left(now) {
        Expiry::Never => Duration::MAX,
        Expiry::After(left) => left,
    };
    let since = |ban: &Listed| ban.remembered.as_ref().map(|entry| entry.ban.since);
    let hits = |ban: &Listed| ban.remembered.as_ref().map(|entry| (entry.strikes, entry.ban.probes));
    match order {
        Order::Expires => bans.sort_by_cached_key(|ban| (span(ban), ban.subject)),
        Order::Since => bans.sort_by_cached_key(|ban| (Reverse(since(ban)), ban.subject)),
        Order::Hits => bans.sort_by_cached_key(|ban| (Reverse(hits(ban)), ban.subject)),
    }
}

fn object(listed: &Listed, names: &HashMap<IpAddr, String>, named: bool, now: SystemTime) -> Value {
    let ban = listed.remembered.as_ref().map(|entry| &entry.ban);
    let left = match listed.left(now) {
        Expiry::Never => None,
        Expiry::After(left) => Some(left),
    };
    let ports = |ban: &Banned| -> Vec<String> {
        ban.ports.iter().map(|(protocol, port)| format!("{}/{port}", protocol.key())).collect()
    };
    let mut object = json!({
        "subject": listed.subject.to_string(),
        "source": ban.map(|ban| ban.source.to_string()),
        "class": ban.and_then(|ban| ban.class).map(|class| class.key()),
        "ports": ban.map(ports),
        "probes": ban.map(|ban| ban.probes),
        "since": ban.map(|ban| rfc3339(ban.since)),
        "expires": left.and_then(|left| now.checked_add(left)).map_or("never".to_owned(), rfc3339),
        "left_s": left.map(|left| left.as_secs()),
        "strikes": listed.remembered.as_ref().map(|entry| entry.strikes),
        "author": ban.map(|ban| author_key(ban.author)),
        "method": ban.map(|ban| ban.methods.to_string()),
        "capped": ban.map(|ban| ban.capped),
        "in_kernel": match listed.held {
            Held::Unasked => Value::Null,
            Held::No => false.into(),
            Held::For(_) => true.into(),
        },
        "in_ledger": ban.is_some(),
    });
    if named && let Some(fields) = object.as_object_mut() {
        let name = listed.source().and_then(|source| names.get(&source));
        fields.insert("name".to_owned(), name.map(String::as_str).into());
    }
    object
}
