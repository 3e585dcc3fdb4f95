//! Formats an event as a JSON object, which is the same in the live log, in a replay, in `status` and on the control
//! socket.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::event::{Event, EventKind};
use crate::clock::{BanEnd, WallTime};
use crate::engine::{Ban, Class, Grade, Observation, RepeatedStatus};
use crate::types::{Backend, BanTarget, Protocol};

/// The serialised form of an event. Fields that do not apply are omitted. Both sides of the control socket use this
/// type: a reader accepts unknown kinds, classes and methods.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// `start`, `probe`, `scan`, `block`, `run`, `refused`, `repeat`, `unblock`, `expire`, `heal`, `error`, `stop`,
    /// `note`; on the control socket also `lost`.
    pub event: Cow<'static, str>,
    pub time: Option<WallTime>,
    pub source: Option<String>,
    pub destination: Option<String>,
    pub class: Option<Cow<'static, str>>,
    pub proto: Option<Cow<'static, str>>,
    pub port: Option<u16>,
    pub fragmented: Option<bool>,
    #[serde(rename = "subject")]
    pub target: Option<String>,
    pub ports: Option<Vec<PortRecord>>,
    /// Grade of the evidence of a ban: `forgeable` or `proven`.
    pub evidence: Option<Cow<'static, str>>,
    pub probes: Option<u32>,
    /// Bans of the target that count, including this one.
    pub strikes: Option<u32>,
    /// The ban is short and does not count as a strike: it is above the ceilings of new bans, or the kernel's trap made
    /// it without a verdict of the sensor.
    pub capped: Option<bool>,
    pub command: Option<String>,
    pub reason: Option<Cow<'static, str>>,
    pub note: Option<String>,
    pub sources: Option<u32>,
    pub distinct_ports: Option<u32>,
    pub expires: Option<BanEnd>,
    pub method: Option<Cow<'static, str>>,
    pub reaction_us: Option<u64>,
    pub hosts_deny: Option<String>,
    pub well: Option<bool>,
    pub connections: Option<u64>,
    pub packets: Option<u64>,
    pub bans: Option<u64>,
    /// Sources that were not banned because a ceiling was reached.
    pub withheld: Option<u64>,
    pub events: Option<u64>,
}

/// A port with the class of its probe.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    pub proto: Cow<'static, str>,
    pub port: u16,
    /// Omitted if unknown.
    pub class: Option<Cow<'static, str>>,
}

impl From<(Protocol, u16, Class)> for PortRecord {
    fn from((protocol, port, class): (Protocol, u16, Class)) -> Self {
        Self { proto: protocol.key().into(), port, class: Some(class.key().into()) }
    }
}

impl From<&(Protocol, u16)> for PortRecord {
    fn from((protocol, port): &(Protocol, u16)) -> Self {
        Self { proto: protocol.key().into(), port: *port, class: None }
    }
}

/// Why a ban of the kernel's trap is short. The ledger stores it as the note of the ban.
pub const WITHOUT_VERDICT: &str = "the kernel's trap counted its probes, without a verdict of the sensor (packets were lost, or \
                                   the ceilings of new bans are reached)";

impl From<&Event> for EventRecord {
    fn from(event: &Event) -> Self {
        let base = Self { event: kind(&event.kind).into(), time: Some(WallTime(event.time)), ..Self::default() };
        match &event.kind {
            EventKind::Started | EventKind::Stopped => base,
            EventKind::Probe(probe) => Self {
                distinct_ports: Some(probe.distinct.into()),
                ..base.subject(probe.target).observation(&probe.observation)
            },
            EventKind::Scan(ban) => base.ban(ban, event.time),
            EventKind::Blocked { ban, reaction, backend } => Self {
                reaction_us: Some(u64::try_from(reaction.as_micros()).unwrap_or(u64::MAX)),
                strikes: Some(ban.strikes.saturating_add(1)),
                capped: ban.capped.then_some(true),
                ..base.ban(ban, event.time).method(*backend)
            },
            EventKind::Shortened { target, expiry, ports } => Self {
                ports: (!ports.is_empty()).then(|| ports.iter().map(PortRecord::from).collect()),
                evidence: Some(Grade::Forgeable.key().into()),
                expires: Some(BanEnd::of(*expiry, event.time)),
                capped: Some(true),
                ..base.target(*target).method(Backend::Nft).reason(WITHOUT_VERDICT)
            },
            EventKind::Entered { target, backend, ban, entry } => {
                let base = match ban {
                    Some(ban) => base.ban(ban, event.time),
                    None => base.subject(*target),
                };
                let hosts_deny = (*backend == Backend::HostsDeny).then(|| entry.clone());
                Self { hosts_deny, ..base.method(*backend) }
            }
            EventKind::Ran { target, command, outcome, well, .. } => Self {
                command: Some(command.to_string()),
                well: Some(*well),
                ..base.subject(*target).method(Backend::Command).reason(outcome.to_string())
            },
            EventKind::Disconnected { target, connections } => Self {
                connections: u64::try_from(*connections).ok(),
                ..base.subject(*target).reason("connections ended")
            },
            EventKind::BlockFailed { target, reason, backend } => {
                base.subject(*target).method(*backend).reason(reason.clone())
            }
            EventKind::Exempt { exempt, probes } => Self {
                probes: Some(*probes),
                ..base.observation(&exempt.observation).reason(exempt.protection.to_string())
            },
            EventKind::Repeated { target, standing, packets, .. } => {
                let why = match standing {
                    RepeatedStatus::Blocked => "already blocked",
                    RepeatedStatus::Logged => "only logged",
                };
                Self { packets: Some((*packets).into()), ..base.target(*target).reason(why) }
            }
            EventKind::DistributedScan(sweep) => Self {
                sources: Some(sweep.sources),
                distinct_ports: Some(sweep.ports),
                ..base.reason("distributed scan")
            },
            EventKind::Capped { bans, withheld } => {
                Self { withheld: Some((*withheld).into()), ..base.reason("above the ceilings of new bans").bans(*bans) }
            }
            EventKind::Lifted { target } => base.subject(*target).reason("missing in the kernel's set"),
            EventKind::Dropped { packets } => Self { packets: Some(*packets), ..base.reason("capture overrun") },
            EventKind::Unblocked { target, by } => base.target(*target).reason(format!("deleted by {by}")),
            EventKind::Expired { target } => base.target(*target),
            EventKind::Restored { bans, backend } => {
                base.method(*backend).reason("put back from the ledger").bans(*bans)
            }
            EventKind::ByHand { target, expiry, by, note, .. } => Self {
                note: note.clone(),
                expires: Some(BanEnd::of(*expiry, event.time)),
                ..base.target(*target).reason(format!("added by {by}"))
            },
            EventKind::TableReinstalled { bans } => base.reason("the table was missing").bans(*bans),
            EventKind::Repaired { bans, backend } => {
                base.method(*backend).reason(format!("missing in {}", backend.place())).bans(*bans)
            }
            EventKind::Adopted { bans } => base.reason("adopted from the kernel's sets").bans(*bans),
            EventKind::Note(text) | EventKind::Error(text) => base.reason(text.clone()),
        }
    }
}

impl EventRecord {
    /// The object on one line, without a line feed.
    pub fn to_json(&self) -> String {
        // Serialisation of strings and numbers cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    fn reason(self, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    fn method(self, backend: Backend) -> Self {
        Self { method: Some(backend.name().into()), ..self }
    }

    fn bans(self, bans: impl TryInto<u64>) -> Self {
        Self { bans: bans.try_into().ok(), ..self }
    }

    fn subject(self, target: BanTarget) -> Self {
        Self { target: Some(target.to_string()), ..self }
    }

    fn target(self, target: BanTarget) -> Self {
        Self { source: Some(target.element().to_string()), ..self.subject(target) }
    }

    fn observation(self, observation: &Observation) -> Self {
        Self {
            source: Some(observation.source.to_string()),
            destination: Some(observation.destination.to_string()),
            class: Some(observation.class.key().into()),
            proto: Some(observation.protocol.key().into()),
            port: Some(observation.port),
            fragmented: observation.fragmented.then_some(true),
            ..self
        }
    }

    fn ban(self, ban: &Ban, at: SystemTime) -> Self {
        Self {
            ports: Some(ban.ports.iter().map(PortRecord::from).collect()),
            evidence: Some(ban.grade.key().into()),
            probes: Some(ban.probe.probes),
            expires: Some(BanEnd::of(ban.expiry, at)),
            ..self.subject(ban.probe.target).observation(&ban.probe.observation).reason(reason(ban))
        }
    }
}

pub(super) fn kind(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::Started => "start",
        EventKind::Probe(_) => "probe",
        EventKind::Scan(_) | EventKind::DistributedScan(_) => "scan",
        EventKind::Blocked { .. }
        | EventKind::Shortened { .. }
        | EventKind::Entered { .. }
        | EventKind::ByHand { .. } => "block",
        EventKind::Ran { .. } => "run",
        EventKind::Exempt { .. } => "refused",
        EventKind::Repeated { .. } => "repeat",
        EventKind::Lifted { .. } | EventKind::Unblocked { .. } => "unblock",
        EventKind::TableReinstalled { .. } | EventKind::Restored { .. } | EventKind::Repaired { .. } => "heal",
        EventKind::Expired { .. } => "expire",
        EventKind::BlockFailed { .. } | EventKind::Error(_) | EventKind::Dropped { .. } => "error",
        EventKind::Capped { .. } | EventKind::Disconnected { .. } | EventKind::Adopted { .. } | EventKind::Note(_) => {
            "note"
        }
        EventKind::Stopped => "stop",
    }
}

/// The reason of a ban as a sentence.
pub fn reason(ban: &Ban) -> String {
    if ban.hosts > 1 {
        return format!("closed ports of {} hosts were probed", ban.hosts);
    }
    let conclusive = ban.ports.iter().find(|(_, _, class)| class.is_conclusive());
    match (conclusive, ban.ports.iter().count()) {
        (Some((_, port, class)), _) => format!("a {class} probe of port {port}, which no TCP stack sends"),
        (None, 1) => "a closed port was probed".to_owned(),
        (None, ports) => format!("{ports} distinct closed ports were probed"),
    }
}
