//! Events to JSON: one object an event, the same shape in the live log, in a replay and on the control socket.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::event::{Event, EventKind};
use crate::engine::{Ban, Observation, Standing};
use crate::types::{Backend, Expiry};

/// The JSON object of an event. Keys: `event` (`start`, `probe`, `scan`, `block`, `run`, `refused`, `repeat`, `unblock`, `expire`, `heal`,
/// `error`, `stop`, `note`), `time` (RFC 3339, UTC), and where they apply `source`, `subject`, `class`, `proto`, `port` or
/// `ports`, `reason`, `expires`.
#[must_use]
pub fn of(event: &Event) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    put("event", kind(&event.what).into());
    put("time", rfc3339(event.time).into());
    match &event.what {
        EventKind::Started | EventKind::Stopped => {}
        EventKind::Probe(probe) => {
            sighting(&mut put, &probe.sighting);
            put("subject", probe.subject.to_string().into());
            put("distinct_ports", probe.distinct.into());
        }
        EventKind::Scan(ban) => self::ban(&mut put, ban, event.time),
        EventKind::Blocked { ban, reaction, way } => {
            self::ban(&mut put, ban, event.time);
            put("method", way.name().into());
            put("reaction_us", u64::try_from(reaction.as_micros()).unwrap_or(u64::MAX).into());
        }
        EventKind::Wrapped { subject, ban, line } => {
            match ban {
                Some(ban) => self::ban(&mut put, ban, event.time),
                None => put("subject", subject.to_string().into()),
            }
            put("method", Backend::HostsDeny.name().into());
            put("line", line.as_str().into());
        }
        EventKind::Ran { subject, command, outcome, well, .. } => {
            put("subject", subject.to_string().into());
            put("method", Backend::Command.name().into());
            put("command", command.as_str().into());
            put("reason", outcome.as_str().into());
            put("well", (*well).into());
        }
        EventKind::Disconnected { subject, connections } => {
            put("subject", subject.to_string().into());
            put("reason", "connections ended".into());
            put("connections", (*connections).into());
        }
        EventKind::BlockFailed { subject, reason, way } => {
            put("method", way.name().into());
            put("subject", subject.to_string().into());
            put("reason", reason.as_str().into());
        }
        EventKind::Exempt { spared, probes } => {
            sighting(&mut put, &spared.sighting);
            put("reason", spared.protection.to_string().into());
            put("probes", (*probes).into());
        }
        EventKind::Repeated { subject, standing, packets } => {
            put("source", subject.element().to_string().into());
            put("subject", subject.to_string().into());
            let why = match standing {
                Standing::Blocked => "already blocked",
                Standing::Logged => "only logged",
            };
            put("reason", why.into());
            put("packets", (*packets).into());
        }
        EventKind::DistributedScan(sweep) => {
            put("reason", "distributed scan".into());
            put("sources", sweep.sources.into());
            put("distinct_ports", sweep.ports.into());
        }
        EventKind::Capped { bans } => {
            put("reason", "above max_new_bans_per_minute".into());
            put("bans", (*bans).into());
        }
        EventKind::Lifted { subject } => {
            put("subject", subject.to_string().into());
            put("reason", "gone from the kernel's set".into());
        }
        EventKind::Dropped { packets } => {
            put("reason", "capture overrun".into());
            put("packets", (*packets).into());
        }
        EventKind::Unblocked { subject, by } => {
            put("source", subject.element().to_string().into());
            put("subject", subject.to_string().into());
            put("reason", format!("deleted by {by}").into());
        }
        EventKind::Expired { subject } => {
            put("source", subject.element().to_string().into());
            put("subject", subject.to_string().into());
        }
        EventKind::Restored { bans, way } => {
            put("method", way.name().into());
            put("reason", "put back from the ledger".into());
            put("bans", (*bans).into());
        }
        EventKind::ByHand { subject, expiry, by, note, .. } => {
            put("source", subject.element().to_string().into());
            put("subject", subject.to_string().into());
            put("reason", format!("added by {by}").into());
            if let Some(note) = note {
                put("note", note.as_str().into());
            }
            expires(&mut put, *expiry, event.time);
        }
        EventKind::Healed { bans } => {
            put("reason", "the table was gone".into());
            put("bans", (*bans).into());
        }
        EventKind::Repaired { bans, way } => {
            put("method", way.name().into());
            let place = match way {
                Backend::Nft | Backend::Command => "missing in the kernel's sets",
                Backend::Route => "missing in the kernel's routes",
                Backend::HostsDeny => "missing in hosts.deny",
            };
            put("reason", place.into());
            put("bans", (*bans).into());
        }
        EventKind::Adopted { bans } => {
            put("reason", "adopted from the kernel's sets".into());
            put("bans", (*bans).into());
        }
        EventKind::Note(text) | EventKind::Error(text) => put("reason", text.as_str().into()),
    }
    Value::Object(object)
}

fn kind(what: &EventKind) -> &'static str {
    match what {
        EventKind::Started => "start",
        EventKind::Probe(_) => "probe",
        EventKind::Scan(_) | EventKind::DistributedScan(_) => "scan",
        EventKind::Blocked { .. } | EventKind::Wrapped { .. } | EventKind::ByHand { .. } => "block",
        EventKind::Ran { .. } => "run",
        EventKind::Exempt { .. } => "refused",
        EventKind::Repeated { .. } => "repeat",
        EventKind::Lifted { .. } | EventKind::Unblocked { .. } => "unblock",
        EventKind::Healed { .. } | EventKind::Restored { .. } | EventKind::Repaired { .. } => "heal",
        EventKind::Expired { .. } => "expire",
        EventKind::BlockFailed { .. } | EventKind::Error(_) | EventKind::Dropped { .. } => "error",
        EventKind::Capped { .. } | EventKind::Disconnected { .. } | EventKind::Adopted { .. } | EventKind::Note(_) => {
            "note"
        }
        EventKind::Stopped => "stop",
    }
}

fn sighting(put: &mut impl FnMut(&str, Value), sighting: &Observation) {
    put("source", sighting.source.to_string().into());
    put("destination", sighting.destination.to_string().into());
    put("class", sighting.class.key().into());
    put("proto", sighting.protocol.key().into());
    put("port", sighting.port.into());
    if sighting.fragmented {
        put("fragmented", true.into());
    }
}

fn ban(put: &mut impl FnMut(&str, Value), ban: &Ban, at: SystemTime) {
    sighting(put, &ban.probe.sighting);
    put("subject", ban.probe.subject.to_string().into());
    let ports: Vec<Value> = ban
        .ports
        .iter()
        .map(|(protocol, port, class)| json!({"proto": protocol.key(), "port": port, "class": class.key()}))
        .collect();
    put("ports", ports.into());
    put("probes", ban.probe.probes.into());
    put("reason", reason(ban).into());
    expires(put, ban.expiry, at);
}

fn expires(put: &mut impl FnMut(&str, Value), expiry: Expiry, at: SystemTime) {
    match expiry {
        Expiry::Never => put("expires", "never".into()),
        Expiry::After(span) => put("expires", rfc3339(at + span).into()),
    }
}

/// Why a ban was made, as a sentence.
#[must_use]
pub fn reason(ban: &Ban) -> String {
    if ban.hosts > 1 {
        return format!("closed ports of {} hosts were touched", ban.hosts);
    }
    let conclusive = ban.ports.iter().find(|(_, _, class)| class.is_conclusive());
    match (conclusive, ban.ports.iter().count()) {
        (Some((_, port, class)), _) => format!("a {class} probe of port {port}, which no TCP stack sends"),
        (None, 1) => "a closed port was touched".to_owned(),
        (None, ports) => format!("{ports} distinct closed ports were touched"),
    }
}

/// A time in UTC, to the microsecond.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_micros(time).to_string()
}
