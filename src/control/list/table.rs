//! Formats bans as a table that is not wider than the terminal: long fields are truncated with "…", and if that is not
//! enough, the least important columns are omitted. Lines are never wrapped.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use super::super::format::compact_ports;
use crate::clock::WallTime;
use crate::control::ban_info::BanInfo;
use crate::ledger::{BanAuthor, Logged};
use crate::types::brief;
use crate::types::printable::masked;

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

/// The table of `bans` for a terminal of `width` columns, with names if they were looked up.
pub(super) fn text(bans: &[BanInfo], width: usize, now: SystemTime) -> String {
    let marks: Vec<char> = bans.iter().map(status_symbol).collect();
    let mut out = render(columns(bans, now), &marks, width);
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

fn status_symbol(ban: &BanInfo) -> char {
    match (ban.in_kernel, ban.in_ledger) {
        (Some(false), _) => NOT_HELD,
        (_, false) => UNKNOWN,
        _ => ' ',
    }
}

/// A column with one cell for each row, at least `least` wide.
fn column<R>(rows: &[R], head: &'static str, least: usize, right: bool, cell: impl Fn(&R) -> String) -> Column {
    Column { head, cells: rows.iter().map(cell).collect(), least, right, width: 0 }
}

/// In the order on the screen.
fn columns(bans: &[BanInfo], now: SystemTime) -> Vec<Column> {
    // A column whose field is null for a ban that only the kernel has.
    let of_ledger = |head, least, right, cell: &dyn Fn(&BanInfo) -> Option<String>| {
        column(bans, head, least, right, |ban| cell(ban).unwrap_or_else(|| "-".to_owned()))
    };
    let mut columns = vec![column(bans, "ADDRESS", usize::MAX, false, |ban| ban.target.to_string())];
    if bans.iter().any(|ban| ban.name.is_some()) {
        columns.push(of_ledger("NAME", 12, false, &|ban| ban.name.clone().flatten()));
    }
    let age = |WallTime(since): WallTime| brief(now.duration_since(since).unwrap_or_default());
    columns.extend([
        of_ledger("REASON", 6, false, &reason),
        of_ledger("EVIDENCE", usize::MAX, false, &|ban| ban.evidence.map(|grade| grade.key().to_owned())),
        of_ledger("PORTS", 8, false, &|ban| Some(compact_ports(ban.ports())).filter(|text| !text.is_empty())),
        of_ledger("SINCE", usize::MAX, true, &|ban| ban.since.map(age)),
        column(bans, "LEFT", usize::MAX, true, |ban| {
            ban.left_s.map_or("no end".to_owned(), |left| brief(Duration::from_secs(left)))
        }),
        of_ledger("STRIKES", usize::MAX, true, &|ban| ban.strikes.map(|strikes| strikes.to_string())),
        of_ledger("BY", 4, false, &|ban| ban.author.map(|author| author.key().to_owned())),
        column(bans, "METHOD", 6, false, |ban| ban.method.map_or("nft".to_owned(), |method| method.to_string())),
    ]);
    columns
}

fn reason(ban: &BanInfo) -> Option<String> {
    match (ban.class, ban.author?, &ban.note) {
        // A note may contain anything that an operator can type.
        (None, BanAuthor::Operator, Some(note)) => Some(masked(note, ' ').collect()),
        (class, author, _) => Some(author.label(class).to_owned()),
    }
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
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::engine::{Class, Grade};
    use crate::ledger::{BanRecord, LedgerEntry};
    use crate::types::{Backend, BanTarget, Expiry, Protocol};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_242_733)
    }

    fn listed(text: &str, author: BanAuthor, kernel: Option<Expiry>) -> BanInfo {
        let target: BanTarget = text.parse().unwrap();
        let since = now() - Duration::from_secs(3_900);
        let mut ban =
            BanRecord::wanted_by(author, target, since, Expiry::After(Duration::from_secs(86_400)), Backend::Nft);
        if author == BanAuthor::Detector {
            ban.class = Some(Class::Syn);
            ban.grade = Some(Grade::Forgeable);
            ban.ports = vec![(Protocol::Tcp, 23), (Protocol::Tcp, 8080), (Protocol::Tcp, 5900), (Protocol::Udp, 53)];
        }
        BanInfo::new(target, Some(&LedgerEntry { ban, strikes: 2, ended: None }), kernel, now())
    }

    fn some() -> Vec<BanInfo> {
        let left = |seconds| Some(Expiry::After(Duration::from_secs(seconds)));
        let absent = listed("198.51.100.0/24", BanAuthor::Detector, None);
        vec![
            listed("203.0.113.77", BanAuthor::Detector, left(82_500)),
            listed("2001:db8:1:2::/64", BanAuthor::Operator, left(45)),
            BanInfo { in_kernel: Some(false), ..absent },
            BanInfo::new("192.0.2.9".parse().unwrap(), None, Some(Expiry::Never), now()),
        ]
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
        assert_eq!(text(&some(), 80, now()), expected);
    }

    #[test]
    fn no_line_exceeds_terminal_width() {
        let mut bans = some();
        bans.push(listed("2001:db8:1234:5678::/64", BanAuthor::Detector, None));
        let mut named = bans.clone();
        named.iter_mut().for_each(|ban| ban.name = Some(None));
        named[0].name = Some(Some("a-very-long-name.of-somebody.far-away.example.org".to_owned()));
        for width in 3..200 {
            for bans in [&bans, &named] {
                let text = text(bans, width, now());
                assert!(text.lines().all(|line| count(line) <= width), "{width}:\n{text}");
                assert_eq!(text.lines().count(), 8);
                let whole = text.lines().nth(1).unwrap().contains("203.0.113.77");
                assert!(whole || width < 26, "the address is never cut, {width}:\n{text}");
            }
        }
        let wide = text(&named, 200, now());
        assert!(wide.contains("far-away.example.org") && wide.contains("tcp/23,5900,8080 udp/53"), "{wide}");
        assert!(wide.contains("syn      forgeable  tcp/23"), "{wide}");
    }

    #[test]
    fn note_of_operator_cannot_control_terminal() {
        let mut by_hand = listed("192.0.2.9", BanAuthor::Operator, None);
        by_hand.note = Some("x\u{1b}[2J\nforged \u{202e}line".to_owned());
        let text = text(&[by_hand], usize::MAX, now());
        assert!(text.contains("x [2J forged  line") && text.lines().count() == 2, "{text:?}");
    }
}
