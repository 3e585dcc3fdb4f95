//! Converts bans to columns and back. A failing disk or an attacker with root permissions may have written anything to
//! the file: an invalid row gives `None`, never a panic and never a partial ban.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::Row;

use super::ban::{Author, BanRecord, BanSummary, Ended, Ending, Entry};
use crate::engine::{Class, Grade, LinkId};
use crate::types::{BanTarget, Protocol};

/// The columns that [`entry`] reads, in its order.
pub(super) const COLUMNS: &str = "subject, source, since, until, class, ports, probes, interface, strikes, method, author, \
                                  ended, ending, lifted_by, capped, note, evidence, guest_port";

/// The columns that [`in_force`] reads, in its order.
pub(super) const IN_FORCE: &str = "subject, source, since, until, class, ports, evidence, method, guest_port";

pub(super) const EXPIRED: &str = "expired";
pub(super) const LIFTED: &str = "lifted";
pub(super) const REPLACED: &str = "replaced";

/// The entry in a row of [`COLUMNS`].
pub(super) fn entry(row: &Row<'_>) -> Option<Entry> {
    let ended = match row.get::<_, Option<i64>>(11).ok()? {
        None => None,
        Some(at) => Some(Ended { how: ending(row)?, at: time(at)? }),
    };
    let ban = BanRecord {
        target: target(row.get_ref(0).ok()?.as_str().ok()?)?,
        source: row.get_ref(1).ok()?.as_str().ok()?.parse().ok()?,
        since: time(row.get(2).ok()?)?,
        until: until(row)?,
        class: class(row)?,
        ports: ports(row.get_ref(5).ok()?.as_str().ok()?)?,
        probes: row.get(6).ok()?,
        interface: row.get(7).ok()?,
        guest_port: guest_port(row, 17)?,
        methods: row.get_ref(9).ok()?.as_str().ok()?.parse().ok()?,
        author: author_from_key(row.get_ref(10).ok()?.as_str().ok()?)?,
        capped: row.get(14).ok()?,
        note: row.get(15).ok()?,
        grade: grade(row, 16)?,
    };
    Some(Entry { ban, strikes: row.get(8).ok()?, ended })
}

pub(super) fn in_force(row: &Row<'_>) -> Option<BanSummary> {
    let (who, source) = (row.get_ref(0).ok()?.as_str().ok()?, row.get_ref(1).ok()?.as_str().ok()?);
    let target = target(who)?;
    Some(BanSummary {
        target,
        // The source is usually the target, which is already parsed.
        source: if source == who { target.element() } else { source.parse().ok()? },
        since: time(row.get(2).ok()?)?,
        until: until(row)?,
        class: class(row)?,
        grade: grade(row, 6)?,
        port: ports(row.get_ref(5).ok()?.as_str().ok()?)?.first().copied(),
        // A later release may have other backends; the ban is still in force.
        methods: row.get_ref(7).ok()?.as_str().ok()?.parse().unwrap_or_default(),
        guest_port: guest_port(row, 8)?,
    })
}

fn until(row: &Row<'_>) -> Option<Option<SystemTime>> {
    match row.get::<_, Option<i64>>(3).ok()? {
        None => Some(None),
        Some(until) => time(until).map(Some),
    }
}

fn class(row: &Row<'_>) -> Option<Option<Class>> {
    match row.get_ref(4).ok()?.as_str_or_null().ok()? {
        None => Some(None),
        Some(key) => Class::from_key(key).map(Some),
    }
}

fn grade(row: &Row<'_>, place: usize) -> Option<Option<Grade>> {
    match row.get_ref(place).ok()?.as_str_or_null().ok()? {
        None => Some(None),
        Some(key) => Grade::from_key(key).map(Some),
    }
}

fn guest_port(row: &Row<'_>, place: usize) -> Option<Option<LinkId>> {
    match row.get_ref(place).ok()?.as_str_or_null().ok()? {
        None => Some(None),
        Some(text) => {
            let (index, name) = text.split_once(' ')?;
            Some(Some(LinkId::new(index.parse().ok()?, name)))
        }
    }
}

/// A bridge port as "7 veth0". No interface has a name with a space.
pub(super) fn guest_port_text(port: LinkId) -> String {
    format!("{} {}", port.index, port.name())
}

fn ending(row: &Row<'_>) -> Option<Ending> {
    match row.get_ref(12).ok()?.as_str().ok()? {
        EXPIRED => Some(Ending::Expired),
        REPLACED => Some(Ending::Replaced),
        LIFTED => Some(Ending::Lifted { by: row.get(13).ok()? }),
        _ => None,
    }
}

/// The target with exactly this spelling: another spelling would be a second ban of the same host.
pub(super) fn target(text: &str) -> Option<BanTarget> {
    text.parse().ok()
}

/// Ports as "tcp/23 udp/53".
pub(super) fn ports_text(ports: &[(Protocol, u16)]) -> String {
    let items: Vec<String> = ports.iter().map(|(protocol, port)| format!("{}/{port}", protocol.key())).collect();
    items.join(" ")
}

pub(super) fn ports(text: &str) -> Option<Vec<(Protocol, u16)>> {
    let items = text.split_ascii_whitespace().map(|item| {
        let (key, port) = item.split_once('/')?;
        Some((Protocol::from_key(key)?, port.parse().ok()?))
    });
    items.collect()
}

/// The name of `author` in the ledger and in JSON.
#[must_use]
pub fn author_key(author: Author) -> &'static str {
    match author {
        Author::Detector => "detector",
        Author::Operator => "operator",
        Author::Import => "import",
    }
}

/// The author with this name.
#[must_use]
pub fn author_from_key(key: &str) -> Option<Author> {
    [Author::Detector, Author::Operator, Author::Import].into_iter().find(|author| author_key(*author) == key)
}

/// Microseconds since 1970, clamped to 292,000 years before and after.
pub(super) fn micros(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    }
}

pub(super) fn time(micros: i64) -> Option<SystemTime> {
    let span = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { UNIX_EPOCH.checked_sub(span) } else { UNIX_EPOCH.checked_add(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_parses_only_canonical_spelling() {
        let networks = ["203.0.113.0/24", "203.0.113.6/31", "2001:db8:1::/48", "2001:db8:1:200::/56", "::/48"];
        for text in ["192.0.2.7", "2001:db8:1:2::/64", "fe80::1/128"].into_iter().chain(networks) {
            assert_eq!(target(text).map(|target| target.to_string()).as_deref(), Some(text));
        }
        let one = ["", "192.0.2.7/32", "192.0.2.07", "2001:DB8::/64", "2001:db8::", "/64", "a/b", "::1\0/64"];
        let networks =
            ["203.0.113.1/24", "10.0.0.0/7", "203.0.113.0/024", "2001:db8::/32", "2001:db8:0:1::/56", "0.0.0.0/0"];
        for text in one.into_iter().chain(networks) {
            assert_eq!(target(text), None, "{text:?}");
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
            assert_eq!(time(micros_).map(micros), Some(micros_));
        }
        assert!(time(i64::MIN).is_some());
    }
}
