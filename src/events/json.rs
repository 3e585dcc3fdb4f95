//! Formats an event as a JSON object, which is the same in the live log, in a replay, in `status` and on the control
//! socket.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::event::{Event, EventKind};
use crate::clock::{BanEnd, WallTime};
use crate::engine::{Ban, Class, Grade, Observation};
use crate::types::{Backend, BanTarget, Protocol, Response};

/// The serialised form of an event. Fields that do not apply are omitted. Both sides of the control socket use this
/// type. A reader treats unknown values as absent, because the daemon may have another version.
#[serde_with::skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    pub event: EventName,
    pub time: Option<WallTime>,
    #[serde(default, deserialize_with = "known_or_none")]
    pub source: Option<IpAddr>,
    #[serde(default, deserialize_with = "known_or_none")]
    pub destination: Option<IpAddr>,
    #[serde(default, deserialize_with = "known_or_none")]
    pub class: Option<Class>,
    #[serde(default, deserialize_with = "known_or_none")]
    pub proto: Option<Protocol>,
    pub port: Option<u16>,
    pub fragmented: Option<bool>,
    #[serde(rename = "subject", default, deserialize_with = "known_or_none")]
    pub target: Option<BanTarget>,
    #[serde(default, deserialize_with = "known_ports")]
    pub ports: Option<Vec<PortRecord>>,
    /// Grade of the evidence of a ban.
    #[serde(default, deserialize_with = "known_or_none")]
    pub evidence: Option<Grade>,
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
    #[serde(default, deserialize_with = "known_or_none")]
    pub method: Option<Backend>,
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

/// Reads a value; `None` if this version does not know it.
fn known_or_none<'de, T: DeserializeOwned, D: Deserializer<'de>>(value: D) -> Result<Option<T>, D::Error> {
    Ok(T::deserialize(Value::deserialize(value)?).ok())
}

/// The ports whose protocol this version knows.
fn known_ports<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<PortRecord>>, D::Error> {
    let ports: Option<Vec<Value>> = Deserialize::deserialize(value)?;
    Ok(ports.map(|ports| ports.into_iter().filter_map(|port| PortRecord::deserialize(port).ok()).collect()))
}

/// The name of an event; several [`EventKind`]s may share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum EventName {
    Start,
    Probe,
    Scan,
    Block,
    Run,
    Refused,
    Repeat,
    Unblock,
    Expire,
    Heal,
    Error,
    Note,
    Stop,
    /// Only on the control socket: events were dropped, because the reader was too slow.
    Lost,
    /// A name that this version does not know.
    #[default]
    #[serde(other)]
    Other,
}

impl EventName {
    /// The name in JSON.
    pub fn key(self) -> &'static str {
        self.into()
    }
}

impl From<&EventKind> for EventName {
    fn from(kind: &EventKind) -> Self {
        match kind {
            EventKind::Started => Self::Start,
            EventKind::Probe(_) => Self::Probe,
            EventKind::Scan(_) | EventKind::DistributedScan(_) => Self::Scan,
            EventKind::Blocked { .. }
            | EventKind::Shortened { .. }
            | EventKind::Entered { .. }
            | EventKind::ByHand { .. } => Self::Block,
            EventKind::Ran { .. } => Self::Run,
            EventKind::Exempt { .. } => Self::Refused,
            EventKind::Repeated { .. } => Self::Repeat,
            EventKind::BanVanished { .. } | EventKind::Unblocked { .. } => Self::Unblock,
            EventKind::TableReinstalled { .. } | EventKind::Restored { .. } | EventKind::Repaired { .. } => Self::Heal,
            EventKind::Expired { .. } => Self::Expire,
            EventKind::BlockFailed { .. } | EventKind::Error(_) | EventKind::Dropped { .. } => Self::Error,
            EventKind::Capped { .. }
            | EventKind::Disconnected { .. }
            | EventKind::Adopted { .. }
            | EventKind::Note(_) => Self::Note,
            EventKind::Stopped => Self::Stop,
        }
    }
}

/// A port with the class of its probe.
#[serde_with::skip_serializing_none]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    pub proto: Protocol,
    pub port: u16,
    /// Omitted if unknown.
    #[serde(default, deserialize_with = "known_or_none")]
    pub class: Option<Class>,
}

impl From<(Protocol, u16, Class)> for PortRecord {
    fn from((protocol, port, class): (Protocol, u16, Class)) -> Self {
        Self { proto: protocol, port, class: Some(class) }
    }
}

impl From<&(Protocol, u16)> for PortRecord {
    fn from((protocol, port): &(Protocol, u16)) -> Self {
        Self { proto: *protocol, port: *port, class: None }
    }
}

impl fmt::Display for PortRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.proto.key(), self.port)?;
        self.class.iter().try_for_each(|class| write!(f, " ({})", class.key()))
    }
}

/// Why a ban of the kernel's trap is short. The ledger stores it as the note of the ban.
pub const WITHOUT_VERDICT: &str = "the kernel's trap counted its probes, without a verdict of the sensor (packets were lost, or \
                                   the ceilings of new bans are reached)";

impl From<&Event> for EventRecord {
    fn from(event: &Event) -> Self {
        let base = Self { event: (&event.kind).into(), time: Some(WallTime(event.time)), ..Self::default() };
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
                evidence: Some(Grade::Forgeable),
                expires: Some(BanEnd::new(*expiry, event.time)),
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
            EventKind::Repeated { target, response, packets, .. } => {
                let why = match response {
                    Response::Block => "already blocked",
                    Response::Log | Response::RunCommand => "only logged",
                };
                Self { packets: Some((*packets).into()), ..base.target(*target).reason(why) }
            }
            EventKind::DistributedScan(scan) => Self {
                sources: Some(scan.sources),
                distinct_ports: Some(scan.ports),
                ..base.reason("distributed scan")
            },
            EventKind::Capped { bans, withheld } => {
                Self { withheld: Some((*withheld).into()), ..base.reason("above the ceilings of new bans").bans(*bans) }
            }
            EventKind::BanVanished { target } => base.subject(*target).reason("missing in the kernel's set"),
            EventKind::Dropped { packets } => Self { packets: Some(*packets), ..base.reason("capture overrun") },
            EventKind::Unblocked { target, by } => base.target(*target).reason(format!("deleted by {by}")),
            EventKind::Expired { target } => base.target(*target),
            EventKind::Restored { bans, backend } => {
                base.method(*backend).reason("put back from the ledger").bans(*bans)
            }
            EventKind::ByHand { target, expiry, by, note, .. } => Self {
                note: note.clone(),
                expires: Some(BanEnd::new(*expiry, event.time)),
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
        Self { method: Some(backend), ..self }
    }

    fn bans(self, bans: impl TryInto<u64>) -> Self {
        Self { bans: bans.try_into().ok(), ..self }
    }

    fn subject(self, target: BanTarget) -> Self {
        Self { target: Some(target), ..self }
    }

    fn target(self, target: BanTarget) -> Self {
        Self { source: Some(target.element()), ..self.subject(target) }
    }

    fn observation(self, observation: &Observation) -> Self {
        Self {
            source: Some(observation.source),
            destination: Some(observation.destination),
            class: Some(observation.class),
            proto: Some(observation.protocol),
            port: Some(observation.port),
            fragmented: observation.fragmented.then_some(true),
            ..self
        }
    }

    fn ban(self, ban: &Ban, at: SystemTime) -> Self {
        Self {
            ports: Some(ban.ports.iter().map(PortRecord::from).collect()),
            evidence: Some(ban.grade),
            probes: Some(ban.probe.probes),
            expires: Some(BanEnd::new(ban.expiry, at)),
            ..self.subject(ban.probe.target).observation(&ban.probe.observation).reason(ban.reason())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_other_versions_are_ignored() {
        let text = json!({
            "event": "ponder", "source": "192.0.2.7", "destination": "mac", "subject": "everyone", "class": "warp", "proto": "quic", "evidence": "certain", "method": "ebpf",
            "ports": [{"proto": "quic", "port": 1}, {"proto": "tcp", "port": 23, "class": "warp"}], "new": [1]
        });
        let port = PortRecord { proto: Protocol::Tcp, port: 23, class: None };
        let source = "192.0.2.7".parse().ok();
        let read = EventRecord { source, ports: Some(vec![port]), ..EventRecord::default() };
        assert_eq!(serde_json::from_value::<EventRecord>(text).unwrap(), read);
        assert_eq!(serde_json::from_str::<EventRecord>("{\"event\":\"stop\"}").unwrap().event, EventName::Stop);
        assert!(serde_json::from_str::<EventRecord>("{}").is_err(), "the name is required");
    }
}
