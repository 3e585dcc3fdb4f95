//! A replay's [`Summary`] as text for people and as one JSON object.

use std::fmt;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::summary::{Judged, Summary, key};
use crate::engine::{Class, IgnoreReason};
use crate::events::json::rfc3339;
use crate::types::{Expiry, Protocol};

/// Writes the summary for people.
pub(super) fn text(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    writeln!(out)?;
    match summary.span {
        Some((first, last)) => {
            writeln!(out, "{} packets, from {} to {}", summary.packets, rfc3339(first), rfc3339(last))?;
        }
        None => writeln!(out, "no packets")?,
    }
    judged(out, "would have been blocked", &summary.blocked)?;
    judged(out, "would have been logged, not blocked", &summary.logged)?;
    if !summary.suspects.is_empty() {
        writeln!(out, "{} below the threshold of {} ports:", summary.suspects.len(), summary.scan_trigger + 1)?;
    }
    for ((subject, protocol), left) in &summary.suspects {
        let ports = Ports(left.ports.iter().map(|port| (*protocol, *port, None)));
        writeln!(out, "  {subject}: {ports} ({} probes, at most {} ports at one time)", left.probes, left.distinct)?;
    }
    if !summary.spared.is_empty() {
        writeln!(out, "{} never blocked:", summary.spared.len())?;
    }
    for (source, protected) in &summary.spared {
        let ports = Ports(protected.ports.iter().map(|(protocol, port)| (*protocol, *port, None)));
        writeln!(out, "  {source}: {}; {ports} ({} probes)", protected.protection, protected.probes)?;
    }
    if summary.unlisted > 0 {
        writeln!(out, "{} more sources are not listed", summary.unlisted)?;
    }
    counts(summary, out)
}

fn judged(out: &mut impl Write, what: &str, list: &[Judged]) -> io::Result<()> {
    writeln!(out, "{} {what}{}", list.len(), if list.is_empty() { "" } else { ":" })?;
    for Judged { subject, time, expiry, reason, ports, later, .. } in list {
        let ports = Ports(ports.iter().map(|(protocol, port, class)| (*protocol, *port, Some(*class))));
        write!(out, "  {subject}: at {}", rfc3339(*time))?;
        if let Some(expiry) = expiry {
            write!(out, " for {expiry}")?;
        }
        write!(out, ", because {reason}: {ports}")?;
        if *later > 0 {
            write!(out, "; {later} packets came later")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn counts(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    if !summary.innocent.is_empty() {
        writeln!(out, "packets that are no evidence:")?;
    }
    for (why, count) in &summary.innocent {
        writeln!(out, "  {count:>10}  {}", sentence(*why))?;
    }
    let [not_ip, truncated, malformed] = summary.undecoded;
    let undecoded = [(not_ip, "not IP"), (truncated, "captured too short to judge"), (malformed, "malformed")];
    for (count, what) in undecoded.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "  {count:>10}  {what}")?;
    }
    for (link, count) in &summary.unknown_links {
        writeln!(out, "  {count:>10}  of link type {link}, which is not read")?;
    }
    if summary.forgot_ports {
        writeln!(out, "more ports were in use than can be remembered: some of the above may be no scan")?;
    }
    Ok(())
}

fn sentence(why: IgnoreReason) -> &'static str {
    match why {
        IgnoreReason::Own => "the host's own",
        IgnoreReason::NoRequest => "answers, or without a port",
        IgnoreReason::NotUnicast => "broadcast, multicast, or for another host on the link",
        IgnoreReason::NotOurs => "for an address that is not --local",
        IgnoreReason::NoSource => "from an address that no host can have",
        IgnoreReason::NotMonitored => "for ports that nobody watches",
        IgnoreReason::Open => "for ports in use",
        IgnoreReason::RecentlyOpen => "for ports in use a moment ago",
        IgnoreReason::OtherInterface => "of an interface that is not watched",
    }
}

/// "tcp 23 (syn), tcp 25 (syn)".
struct Ports<I>(I);

impl<I: Iterator<Item = (Protocol, u16, Option<Class>)> + Clone> fmt::Display for Ports<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (protocol, port, class)) in self.0.clone().enumerate() {
            write!(f, "{}{} {port}", if index == 0 { "" } else { ", " }, protocol.key())?;
            if let Some(class) = class {
                write!(f, " ({class})")?;
            }
        }
        Ok(())
    }
}

/// The summary as the last JSON object of a replay.
pub(super) fn object(summary: &Summary) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    put("event", "summary".into());
    if let Some((first, last)) = summary.span {
        put("time", rfc3339(last).into());
        put("first", rfc3339(first).into());
    }
    put("packets", summary.packets.into());
    put("blocked", summary.blocked.iter().map(judgement).collect());
    put("logged", summary.logged.iter().map(judgement).collect());
    let suspects = summary.suspects.iter().map(|((subject, protocol), left)| {
        json!({
            "subject": subject.to_string(), "proto": protocol.key(), "ports": left.ports,
            "distinct_ports": left.distinct, "needed": u16::from(summary.scan_trigger) + 1, "probes": left.probes,
        })
    });
    put("suspects", suspects.collect());
    let spared = summary.spared.iter().map(|(source, protected)| {
        let ports: Vec<_> =
            protected.ports.iter().map(|(protocol, port)| json!({"proto": protocol.key(), "port": port})).collect();
        json!({
            "source": source, "reason": protected.protection.to_string(), "ports": ports, "probes": protected.probes,
        })
    });
    put("spared", spared.collect());
    put("unlisted", summary.unlisted.into());
    put("repeated", summary.repeated.into());
    put("innocent", counted(summary.innocent.iter().map(|(why, count)| (key(*why).to_owned(), *count))));
    let [not_ip, truncated, malformed] = summary.undecoded;
    put("undecoded", json!({"not_ip": not_ip, "truncated": truncated, "malformed": malformed}));
    put("unknown_links", counted(summary.unknown_links.iter().map(|(link, count)| (link.to_string(), *count))));
    if summary.forgot_ports {
        put("forgot_ports", true.into());
    }
    Value::Object(object)
}

fn judgement(judged: &Judged) -> Value {
    let ports: Vec<_> = judged
        .ports
        .iter()
        .map(|(protocol, port, class)| json!({"proto": protocol.key(), "port": port, "class": class.key()}))
        .collect();
    let expires = judged.expiry.map(|expiry| match expiry {
        Expiry::Never => "never".to_owned(),
        Expiry::After(span) => rfc3339(judged.time.checked_add(span).unwrap_or(judged.time)),
    });
    let mut object = json!({
        "subject": judged.subject.to_string(), "source": judged.subject.element(), "time": rfc3339(judged.time),
        "first": rfc3339(judged.first), "reason": judged.reason, "ports": ports, "later_packets": judged.later,
    });
    if let (Some(object), Some(expires)) = (object.as_object_mut(), expires) {
        object.insert("expires".to_owned(), expires.into());
    }
    object
}

fn counted(counts: impl Iterator<Item = (String, u64)>) -> Value {
    Value::Object(counts.map(|(key, count)| (key, count.into())).collect())
}
