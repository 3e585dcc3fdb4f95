//! [`Figures`] to one JSON object: the numbers of the page, with the names that the live log has.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::calendar::{WEEKDAYS, stamp};
use super::figures::Figures;
use crate::engine::Class;

/// The object. Times are RFC 3339 in UTC, spans are seconds.
#[must_use]
pub fn json(figures: &Figures, host: Option<&str>) -> Value {
    let at = |time: SystemTime| Value::from(stamp(time));
    let hours = WEEKDAYS.iter().zip(figures.hours).map(|(day, hours)| (day.to_ascii_lowercase(), json!(hours)));
    json!({
        "event": "report",
        "host": host,
        "from": at(figures.from),
        "to": at(figures.to),
        "kept": figures.kept,
        "bans": figures.bans,
        "sources": figures.sources,
        "in_force": figures.in_force,
        "repeat_offenders": figures.repeaters,
        "probes": figures.probes,
        "over_time": {
            "bucket_s": figures.bucket.as_secs(),
            "bans": figures.over_time.iter().map(|(start, bans)| json!({"time": at(*start), "bans": bans})).collect::<Vec<_>>(),
        },
        "classes": counts(figures.classes.iter().map(|(class, bans)| (class.map_or("none", Class::key), *bans))),
        "ports": {
            "most": figures.ports.items.iter().map(|((protocol, port), bans)| {
                json!({"proto": protocol.key(), "port": port, "service": super::services::name(*protocol, *port), "bans": bans})
            }).collect::<Vec<_>>(),
            "more": figures.ports.more,
        },
        "networks": {
            "most": figures.networks.items.iter().map(|network| {
                json!({"network": network.prefix.to_string(), "bans": network.bans, "sources": network.sources})
            }).collect::<Vec<_>>(),
            "more": figures.networks.more,
        },
        "offenders": {
            "most": figures.offenders.items.iter().map(|offender| json!({
                "subject": offender.subject.to_string(),
                "strikes": offender.strikes,
                "first": at(offender.first),
                "last": at(offender.last),
                "blocked_s": offender.blocked.as_secs(),
            })).collect::<Vec<_>>(),
            "more": figures.offenders.more,
        },
        "hours": hours.collect::<Map<_, _>>(),
        "ends": {
            "in_force": figures.ends.in_force,
            "expired": figures.ends.expired,
            "lifted": figures.ends.lifted,
            "replaced": figures.ends.replaced,
        },
        "authors": counts(figures.authors.iter().copied()),
        "methods": counts(figures.methods.iter().copied()),
        "ahead": figures.ahead,
        "unreadable": figures.unreadable,
    })
}

fn counts<'a>(items: impl Iterator<Item = (&'a str, u64)>) -> Map<String, Value> {
    items.map(|(name, bans)| (name.to_owned(), bans.into())).collect()
}
