//! Converts bans to columns and back, and replaces the rows of a table. A failing disk or an attacker with root
//! permissions may have written anything to the file: an invalid row gives `None`, never a panic and never a partial
//! ban.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Params, Row};

use super::ban::{BanRecord, BanSummary, EndRecord, Ending, LedgerEntry};
use crate::engine::LinkId;
use crate::types::{BanTarget, Protocol};

/// The columns that [`entry`] reads, in its order, and the id.
pub(super) const COLUMNS: &str = "subject, source, since, until, class, ports, probes, interface, strikes, method, author, \
                                  ended, ending, lifted_by, capped, note, evidence, guest_port, id";

/// Indexes of columns; that of `until` is the same in [`IN_FORCE`].
pub(super) const UNTIL: usize = 3;
pub(super) const ID: usize = 18;

/// The columns that [`in_force`] reads, in its order.
pub(super) const IN_FORCE: &str = "subject, source, since, until, class, ports, evidence, method, guest_port";

pub(super) const EXPIRED: &str = "expired";
pub(super) const LIFTED: &str = "lifted";
pub(super) const REPLACED: &str = "replaced";

/// The entry in a row of [`COLUMNS`].
pub(super) fn entry(row: &Row<'_>) -> Option<LedgerEntry> {
    let ended = match optional_time(row, 11).ok()? {
        None => None,
        Some(at) => Some(EndRecord { how: ending(row)?, at }),
    };
    let ban = BanRecord {
        target: parsed(row, 0)?,
        source: parsed(row, 1)?,
        since: time(row.get(2).ok()?),
        until: optional_time(row, UNTIL).ok()?,
        class: optional(row, 4, |class| class.parse().ok())?,
        ports: ports(text(row, 5)?)?,
        probes: row.get(6).ok()?,
        interface: row.get(7).ok()?,
        guest_port: optional(row, 17, guest_port)?,
        backends: parsed(row, 9)?,
        author: parsed(row, 10)?,
        capped: row.get(14).ok()?,
        note: row.get(15).ok()?,
        grade: optional(row, 16, |grade| grade.parse().ok())?,
    };
    Some(LedgerEntry { ban, strikes: row.get(8).ok()?, ended })
}

pub(super) fn in_force(row: &Row<'_>) -> Option<BanSummary> {
    let (subject, source) = (text(row, 0)?, text(row, 1)?);
    let target: BanTarget = subject.parse().ok()?;
    Some(BanSummary {
        target,
        // The source is usually the target, which is already parsed.
        source: if source == subject { target.element() } else { source.parse().ok()? },
        since: time(row.get(2).ok()?),
        until: optional_time(row, UNTIL).ok()?,
        class: optional(row, 4, |class| class.parse().ok())?,
        grade: optional(row, 6, |grade| grade.parse().ok())?,
        port: ports(text(row, 5)?)?.first().copied(),
        // A later release may have other backends; the ban is still in force.
        backends: text(row, 7)?.parse().unwrap_or_default(),
        guest_port: optional(row, 8, guest_port)?,
    })
}

/// The text of a column.
pub(super) fn text<'a>(row: &'a Row<'_>, column: usize) -> Option<&'a str> {
    row.get_ref(column).ok()?.as_str().ok()
}

/// The value of a text column. A target in another spelling is invalid: it would be a second ban of the same host.
pub(super) fn parsed<T: FromStr>(row: &Row<'_>, column: usize) -> Option<T> {
    text(row, column)?.parse().ok()
}

/// The value of a text column that may be null; `None` if it is invalid.
fn optional<T>(row: &Row<'_>, column: usize, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    match row.get_ref(column).ok()?.as_str_or_null().ok()? {
        None => Some(None),
        Some(text) => parse(text).map(Some),
    }
}

/// The time in a column that may be null.
pub(super) fn optional_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<SystemTime>> {
    row.get(column).map(|micros: Option<i64>| micros.map(time))
}

fn guest_port(text: &str) -> Option<LinkId> {
    let (index, name) = text.split_once(' ')?;
    Some(LinkId::new(index.parse().ok()?, name))
}

/// A bridge port as "7 veth0". No interface has a name with a space.
pub(super) fn guest_port_text(port: LinkId) -> String {
    format!("{} {}", port.index, port.name())
}

fn ending(row: &Row<'_>) -> Option<Ending> {
    match text(row, 12)? {
        EXPIRED => Some(Ending::Expired),
        REPLACED => Some(Ending::Replaced),
        LIFTED => Some(Ending::Lifted { by: row.get(13).ok()? }),
        _ => None,
    }
}

/// Ports as "tcp/23 udp/53".
pub(super) fn ports_text(ports: &[(Protocol, u16)]) -> String {
    let items: Vec<String> = ports.iter().map(|(protocol, port)| format!("{}/{port}", protocol.key())).collect();
    items.join(" ")
}

pub(super) fn ports(text: &str) -> Option<Vec<(Protocol, u16)>> {
    let items = text.split_ascii_whitespace().map(|item| {
        let (key, port) = item.split_once('/')?;
        Some((key.parse().ok()?, port.parse().ok()?))
    });
    items.collect()
}

/// Microseconds since 1970, clamped to 292,000 years before and after.
pub(super) fn micros(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    }
}

/// The reverse of [`micros`]. `SystemTime` counts seconds with 64 bits, so every value is valid.
pub(super) fn time(micros: i64) -> SystemTime {
    let span = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH - span } else { UNIX_EPOCH + span }
}

/// Replaces the rows of a table with `rows`, using a statement that deletes all and one that inserts a row.
pub(super) fn replace<R: Params>(
    connection: &Connection,
    [delete, insert]: [&str; 2],
    rows: impl IntoIterator<Item = R>,
) -> rusqlite::Result<()> {
    connection.execute(delete, [])?;
    let mut insert = connection.prepare(insert)?;
    rows.into_iter().try_for_each(|row| insert.execute(row).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_parses_only_canonical_spelling() {
        let networks = ["203.0.113.0/24", "203.0.113.6/31", "2001:db8:1::/48", "2001:db8:1:200::/56", "::/48"];
        for text in ["192.0.2.7", "2001:db8:1:2::/64", "fe80::1/128"].into_iter().chain(networks) {
            assert_eq!(text.parse().map(|target: BanTarget| target.to_string()).as_deref(), Ok(text));
        }
        let one = ["", "192.0.2.7/32", "192.0.2.07", "2001:DB8::/64", "2001:db8::", "/64", "a/b", "::1\0/64"];
        let networks =
            ["203.0.113.1/24", "10.0.0.0/7", "203.0.113.0/024", "2001:db8::/32", "2001:db8:0:1::/56", "0.0.0.0/0"];
        for text in one.into_iter().chain(networks) {
            assert!(text.parse::<BanTarget>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ports_read_back_as_written() {
        let all = [(Protocol::Tcp, 23), (Protocol::Udp, 65_535), (Protocol::Sctp, 0), (Protocol::Icmp, 8)];
        assert_eq!(ports_text(&all), "tcp/23 udp/65535 sctp/0 icmp/8");
        assert_eq!(ports(&ports_text(&all)).as_deref(), Some(&all[..]));
        assert_eq!(ports(""), Some(Vec::new()));
        for wrong in ["tcp", "tcp/", "tcp/65536", "tcp/-1", "ip/1", "tcp/1,udp/2", "/1"] {
            assert_eq!(ports(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn times_outside_clock_range_are_valid() {
        for micros_ in [0, 1, -1, 1_795_242_733_123_456, i64::MAX, i64::MIN + 1] {
            assert_eq!(micros(time(micros_)), micros_);
        }
        assert!(time(i64::MIN) < UNIX_EPOCH);
    }
}
