//! Formats the results of a replay as text: the lines of events and the [`Summary`].

use std::fmt;
use std::io::{self, Write};

use super::port_inference::Sign;
use super::summary::{NoEvidence, Open, ScannerSummary, Summary};
use crate::engine::IgnoreReason;
use crate::events::classic_log;
use crate::events::event::EventKind;
use crate::events::json::PortRecord;
use crate::types::counted;

/// Maximum number of open ports that are listed.
const OPEN: usize = 32;

/// The classic line of an event, reworded because a replay blocks nothing.
pub(super) fn line(kind: &EventKind) -> Option<String> {
    let line = classic_log::line(kind)?;
    Some(match kind {
        EventKind::Blocked { .. } => line.replacen(" has been blocked via ", " would be banned via ", 1),
        EventKind::Repeated { .. } => line.replacen(" is already blocked Ignoring", " would already be banned", 1),
        EventKind::Scan(_) => line + "; only logged",
        _ => line,
    })
}

pub(super) fn write(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    writeln!(out)?;
    match (summary.first, summary.last) {
        (Some(first), Some(last)) => writeln!(out, "{}, from {first} to {last}", counted(summary.packets, "packet"))?,
        _ => writeln!(out, "no packets")?,
    }
    writeln!(out, "configuration: {}", summary.configuration)?;
    writeln!(out, "settings: {}", summary.settings)?;
    match summary.local.as_slice() {
        [] => writeln!(
            out,
            "judged: the ports of every address, each as a separate host; name your own hosts with --local"
        )?,
        local => writeln!(out, "judged: the ports of {}", Joined(local.iter()))?,
    }
    if !summary.gateways.is_empty() {
        writeln!(out, "inferred gateways: {}", Joined(summary.gateways.iter()))?;
    }
    write_judged(out, "would be banned", &summary.blocked)?;
    write_judged(out, "would be logged, not banned", &summary.logged)?;
    if !summary.suspects.is_empty() {
        writeln!(out, "{} below the threshold of {} ports:", summary.suspects.len(), summary.needed())?;
    }
    for suspect in summary.suspects.values() {
        let port = |port: &u16| PortRecord::from(&(suspect.protocol, *port));
        let ports = Joined(suspect.ports.iter().map(port));
        let (probes, distinct) = (counted(suspect.probes, "probe"), counted(suspect.distinct, "port"));
        let (target, victims) = (suspect.target, Joined(suspect.victims.iter()));
        writeln!(out, "  {target}: {ports} of {victims} ({probes}, at most {distinct} at one time)")?;
    }
    if !summary.exempt.is_empty() {
        writeln!(out, "{} never blocked:", summary.exempt.len())?;
    }
    for exempt in summary.exempt.values() {
        let ports = Joined(exempt.ports.values());
        let (source, protection) = (exempt.source, exempt.protection);
        let probes = counted(exempt.probes, "probe");
        writeln!(out, "  {source}: {protection}; {ports} ({probes})")?;
    }
    if summary.unlisted > 0 {
        writeln!(out, "sources that are not listed: {}", summary.unlisted)?;
    }
    write_open(summary, out)?;
    write_counts(summary, out)
}

fn write_open(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    if !summary.open.is_empty() {
        writeln!(out, "inferred open ports: {}", summary.open.len())?;
    }
    for Open { address, port, reason, packets } in summary.open.values().take(OPEN) {
        let reason = match reason {
            Sign::Sends => "it sent packets",
            Sign::Connection => "it accepted a connection",
        };
        writeln!(out, "  {address} {port}: {reason} ({})", counted(*packets, "packet"))?;
    }
    if summary.open.len() > OPEN {
        writeln!(out, "  and {} more", summary.open.len() - OPEN)?;
    }
    Ok(())
}

fn write_judged(out: &mut impl Write, what: &str, list: &[ScannerSummary]) -> io::Result<()> {
    writeln!(out, "{} {what}{}", list.len(), if list.is_empty() { "" } else { ":" })?;
    for judged in list {
        write!(out, "  {}: at {}", judged.target, judged.time)?;
        if let Some(expiry) = judged.expiry {
            write!(out, " for {expiry}")?;
        }
        let (ports, victims) = (Joined(judged.ports.iter()), Joined(judged.victims.iter()));
        write!(out, ", because {}: {ports} of {victims}", judged.reason)?;
        if judged.later > 0 {
            write!(out, "; later packets: {}", judged.later)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_counts(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    if !summary.innocent.is_empty() {
        writeln!(out, "packets that do not count as evidence:")?;
    }
    for (why, count) in &summary.innocent {
        writeln!(out, "  {count:>10}  {}", sentence(*why))?;
    }
    let undecoded = [
        (summary.undecoded.not_ip, "not IP"),
        (summary.undecoded.truncated, "truncated by the capture"),
        (summary.undecoded.malformed, "malformed"),
    ];
    for (count, what) in undecoded.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "  {count:>10}  {what}")?;
    }
    for (link, count) in &summary.unknown_links {
        writeln!(out, "  {count:>10}  of the unsupported link type {link}")?;
    }
    if summary.forgot_ports {
        writeln!(out, "more ports were in use than can be remembered, so some sources above may not be scanners")?;
    }
    Ok(())
}

fn sentence(why: NoEvidence) -> &'static str {
    let NoEvidence::Engine(why) = why else {
        return "without an answer in the capture, so their ports may be open (--local counts them as closed)";
    };
    match why {
        IgnoreReason::Own => "sent by the host itself",
        IgnoreReason::NoRequest => "answers, or packets without a port",
        IgnoreReason::NotUnicast => "broadcast, multicast, or for another host on the link",
        IgnoreReason::NotOurs => "to an address outside --local",
        IgnoreReason::NoSource => "from an address that cannot be a source",
        IgnoreReason::Damaged => "damaged",
        IgnoreReason::WrongInterface => "on an interface that has no route back to the source",
        IgnoreReason::NotMonitored => "to ports that are not monitored",
        IgnoreReason::Open => "to ports in use",
        IgnoreReason::RecentlyOpen => "to ports in use a moment ago",
        IgnoreReason::RememberedService => "to ports of remembered services",
        IgnoreReason::OtherInterface => "on an interface that is not monitored",
    }
}

/// Items with commas: "10.0.0.1, 10.0.0.2", or "tcp 23 (syn), tcp 25 (syn)".
struct Joined<I>(I);

impl<I: Iterator<Item: fmt::Display> + Clone> fmt::Display for Joined<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.clone().enumerate() {
            write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
