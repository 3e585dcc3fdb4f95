//! Formats bans as a table that is not wider than the terminal: long fields are truncated with "…", and if that is not
//! enough, the least important columns are omitted. Lines are never wrapped.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::SystemTime;

use super::super::format::compact_ports;
use super::bans::{KernelState, ListedBan};
use crate::engine::{Class, Grade};
use crate::ledger::{BanAuthor, BanRecord, LedgerEntry, Logged};
use crate::types::printable::masked;
use crate::types::{Expiry, brief};

/// Space between two columns, and for the mark in front of them.
const GAP: usize = 2;

struct Column {
    head: &'static str,
    cells: Vec<String>,
    /// Minimum width.
    least: usize,
    right: bool,
    /// Current width; 0 if omitted.
    width: usize,
}

/// The table of `bans` for a terminal of `width` columns, with names if given.
pub(super) fn text(
    bans: &[ListedBan],
    names: Option<&HashMap<IpAddr, String>>,
    width: usize,
    now: SystemTime,
) -> String {
    let marks: Vec<char> = bans.iter().map(status_symbol).collect();
    let mut out = render(columns(bans, names, now), &marks, width);
    let kinds = [
        (NOT_HELD, "in the ledger, but not in the kernel: not blocked now"),
        (UNKNOWN, "in the kernel, but not in the ledger"),
    ];
    for (mark, meaning) in kinds.iter().filter(|(mark, _)| marks.contains(mark)) {
        let _ = writeln!(out, "{}", shortened(&format!("{mark} {meaning}"), width));
    }
    out
}

/// The table of the sources that would have been banned.
pub(super) fn would_block(sources: &[Logged], width: usize, now: SystemTime) -> String {
    let ago = |time| brief(now.duration_since(time).unwrap_or_default());
    let ports = |source: &Logged| compact_ports(source.ports.iter().copied());
    let columns = vec![
        column(sources, "ADDRESS", usize::MAX, false, |source| source.target.to_string()),
        column(sources, "REASON", 6, false, |source| source.reason.clone()),
        column(sources, "PORTS", 8, false, ports),
        column(sources, "FIRST", usize::MAX, true, |source| ago(source.first)),
        column(sources, "LAST", usize::MAX, true, |source| ago(source.last)),
        column(sources, "TIMES", usize::MAX, true, |source| source.times.to_string()),
    ];
    render(columns, &vec![' '; sources.len()], width)
}

/// Renders the head and one line for each mark.
fn render(mut columns: Vec<Column>, marks: &[char], width: usize) -> String {
    fit(&mut columns, width);
    let mut out = line(' ', &columns, |column| column.head);
    for (row, mark) in marks.iter().enumerate() {
        out += &line(*mark, &columns, |column| column.cells.get(row).map_or("", String::as_str));
    }
    out
}

const NOT_HELD: char = '!';
const UNKNOWN: char = '?';

fn status_symbol(ban: &ListedBan) -> char {
    match (ban.kernel, &ban.remembered) {
        (KernelState::Absent, _) => NOT_HELD,
        (_, None) => UNKNOWN,
        _ => ' ',
    }
}

/// A column with one cell for each row, at least `least` wide.
fn column<R>(rows: &[R], head: &'static str, least: usize, right: bool, cell: impl Fn(&R) -> String) -> Column {
    Column { head, cells: rows.iter().map(cell).collect(), least, right, width: 0 }
}

/// In the order on the screen.
fn columns(bans: &[ListedBan], names: Option<&HashMap<IpAddr, String>>, now: SystemTime) -> Vec<Column> {
    // A column of the ledger, in which a ban that only the kernel has shows `unknown`.
    let of_ledger = |head, least, right, unknown: &str, cell: &dyn Fn(&LedgerEntry) -> String| {
        column(bans, head, least, right, |ban| ban.remembered.as_ref().map_or_else(|| unknown.to_owned(), cell))
    };
    let mut columns = vec![column(bans, "ADDRESS", usize::MAX, false, |ban| ban.target.to_string())];
    if let Some(names) = names {
        let name = |ban: &ListedBan| ban.source().and_then(|source| names.get(&source)).cloned();
        columns.push(column(bans, "NAME", 12, false, |ban| name(ban).unwrap_or_else(|| "-".to_owned())));
    }
    let evidence = |entry: &LedgerEntry| entry.ban.grade.map_or("-", Grade::key).to_owned();
    let age = |entry: &LedgerEntry| brief(now.duration_since(entry.ban.since).unwrap_or_default());
    columns.extend([
        of_ledger("REASON", 6, false, "-", &|entry| reason(&entry.ban)),
        of_ledger("EVIDENCE", usize::MAX, false, "-", &evidence),
        of_ledger("PORTS", 8, false, "-", &|entry| ports(&entry.ban)),
        of_ledger("SINCE", usize::MAX, true, "-", &age),
        column(bans, "LEFT", usize::MAX, true, |ban| match ban.left(now) {
            Expiry::Never => "no end".to_owned(),
            Expiry::After(left) => brief(left),
        }),
        of_ledger("STRIKES", usize::MAX, true, "-", &|entry| entry.strikes.saturating_add(1).to_string()),
        of_ledger("BY", 4, false, "-", &|entry| entry.ban.author.key().to_owned()),
        of_ledger("METHOD", 6, false, "nft", &|entry| entry.ban.backends.to_string()),
    ]);
    columns
}

fn reason(ban: &BanRecord) -> String {
    match (ban.class, ban.author, &ban.note) {
        // A note may contain anything that an operator can type.
        (None, BanAuthor::Operator, Some(note)) => masked(note, ' ').collect(),
        (class, author, _) => class.map_or(author.label(), Class::key).to_owned(),
    }
}

fn ports(ban: &BanRecord) -> String {
    let text = compact_ports(ban.ports.iter().copied());
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Order in which columns get their minimum width. The first that does not fit and all after it are omitted.
const PRIORITY: [&str; 13] = [
    "ADDRESS", "LEFT", "LAST", "REASON", "NAME", "PORTS", "SINCE", "TIMES", "FIRST", "STRIKES", "BY", "METHOD",
    "EVIDENCE",
];
/// Order in which the remaining width is assigned to truncated columns.
const WIDEN: [&str; 6] = ["ADDRESS", "BY", "METHOD", "REASON", "NAME", "PORTS"];

/// Sets the width of each column for a total of `width`.
fn fit(columns: &mut [Column], width: usize) {
    let wanted = |column: &Column| column.cells.iter().map(|cell| count(cell)).fold(count(column.head), usize::max);
    let mut room = width.saturating_sub(GAP).max(1).saturating_add(GAP);
    for head in PRIORITY {
        let Some(column) = columns.iter_mut().find(|column| column.head == head) else { continue };
        let mut least = column.least.min(wanted(column));
        if head == "ADDRESS" {
            least = least.min(room - GAP);
        }
        if least + GAP > room {
            break;
        }
        column.width = least;
        room -= least + GAP;
    }
    for head in WIDEN {
        let Some(column) = columns.iter_mut().find(|column| column.head == head && column.width > 0) else { continue };
        let more = room.min(wanted(column) - column.width);
        column.width += more;
        room -= more;
    }
}

fn line<'a>(mark: char, columns: &'a [Column], cell: impl Fn(&'a Column) -> &'a str) -> String {
    let cells = columns.iter().filter(|column| column.width > 0).map(|column| {
        let (cell, width) = (shortened(cell(column), column.width), column.width);
        if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    });
    let text = format!("{mark} {}", cells.collect::<Vec<_>>().join("  "));
    format!("{}\n", text.trim_end())
}

/// Each character takes one column, because only addresses and names of letters and digits are shown.
fn count(text: &str) -> usize {
    text.chars().count()
}

/// `text` in at most `width` columns, truncated with "…" if it is longer.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if count(text) <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::types::{Backend, BanTarget, Protocol};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_242_733)
    }

    fn listed(text: &str, author: BanAuthor, kernel: KernelState) -> ListedBan {
        let target: BanTarget = text.parse().unwrap();
        let since = now() - Duration::from_secs(3_900);
        let mut ban =
            BanRecord::wanted_by(author, target, since, Expiry::After(Duration::from_secs(86_400)), Backend::Nft);
        if author == BanAuthor::Detector {
            ban.class = Some(Class::Syn);
            ban.grade = Some(Grade::Forgeable);
            ban.ports = vec![(Protocol::Tcp, 23), (Protocol::Tcp, 8080), (Protocol::Tcp, 5900), (Protocol::Udp, 53)];
        }
        ListedBan { target, remembered: Some(LedgerEntry { ban, strikes: 2, ended: None }), kernel }
    }

    fn some() -> Vec<ListedBan> {
        let left = |seconds| KernelState::Blocked(Some(Duration::from_secs(seconds)));
        let mut bans = vec![
            listed("203.0.113.77", BanAuthor::Detector, left(82_500)),
            listed("2001:db8:1:2::/64", BanAuthor::Operator, left(45)),
            listed("198.51.100.0/24", BanAuthor::Detector, KernelState::Absent),
        ];
        bans.push(ListedBan { remembered: None, ..listed("192.0.2.9", BanAuthor::Import, KernelState::Blocked(None)) });
        bans
    }

    #[test]
    fn table_of_80_columns_omits_only_evidence() {
        let expected = "  \
  ADDRESS            REASON   PORTS     SINCE    LEFT  STRIKES  BY        METHOD
  203.0.113.77       syn      tcp/23,…   1h5m  22h55m        3  detector  nft
  2001:db8:1:2::/64  by hand  -          1h5m     45s        3  operator  nft
! 198.51.100.0/24    syn      tcp/23,…   1h5m  22h55m        3  detector  nft
? 192.0.2.9          -        -             -  no end        -  -         nft
! in the ledger, but not in the kernel: not blocked now
? in the kernel, but not in the ledger
";
        assert_eq!(text(&some(), None, 80, now()), expected);
    }

    #[test]
    fn no_line_exceeds_terminal_width() {
        let names = [("203.0.113.77", "a-very-long-name.of-somebody.far-away.example.org")];
        let names: HashMap<IpAddr, String> =
            names.into_iter().map(|(address, name)| (address.parse().unwrap(), name.to_owned())).collect();
        let mut bans = some();
        bans.push(listed("2001:db8:1234:5678::/64", BanAuthor::Detector, KernelState::NotQueried));
        for width in 3..200 {
            for names in [None, Some(&names)] {
                let text = text(&bans, names, width, now());
                assert!(text.lines().all(|line| count(line) <= width), "{width}:\n{text}");
                assert_eq!(text.lines().count(), 8);
                let whole = text.lines().nth(1).unwrap().contains("203.0.113.77");
                assert!(whole || width < 26, "the address is never cut, {width}:\n{text}");
            }
        }
        let wide = text(&bans, Some(&names), 200, now());
        assert!(wide.contains("far-away.example.org") && wide.contains("tcp/23,5900,8080 udp/53"), "{wide}");
        assert!(wide.contains("syn      forgeable  tcp/23"), "{wide}");
    }

    #[test]
    fn note_of_operator_cannot_control_terminal() {
        let mut by_hand = listed("192.0.2.9", BanAuthor::Operator, KernelState::NotQueried);
        if let Some(entry) = &mut by_hand.remembered {
            entry.ban.note = Some("x\u{1b}[2J\nforged \u{202e}line".to_owned());
        }
        let text = text(&[by_hand], None, usize::MAX, now());
        assert!(text.contains("x [2J forged  line") && text.lines().count() == 2, "{text:?}");
    }
}
