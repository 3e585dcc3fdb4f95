//! Defines the engine's verdict on a packet. Every verdict carries its reason; logs, replay and tests read the same
//! value.

use std::net::IpAddr;

use serde::Serialize;

use super::allow::Protection;
#[cfg(test)]
use super::class::Class;
use super::class::Grade;
use super::distributed_scan::DistributedScan;
use super::evidence::Ports;
use super::observation::Observation;
use crate::types::{BanTarget, Expiry, Protocol, Response, Timestamp};
#[cfg(test)]
use crate::wire::fixtures;

/// Why a packet is not evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IgnoreReason {
    /// Sent by this host itself.
    Own,
    /// An answer, or a packet without a port.
    NoRequest,
    /// Broadcast, multicast, or for another host on the link.
    #[serde(rename = "for_nobody")]
    NotUnicast,
    /// Destination is not an address of this host.
    NotOurs,
    /// Source is not a valid host address.
    NoSource,
    /// Wrong checksum, so that the kernel drops it.
    Damaged,
    /// Arrived on an interface that has no route back to its source, where the kernel checks that (reverse-path
    /// filter).
    WrongInterface,
    NotMonitored,
    /// A program listens on the port.
    Open,
    /// The port had a listener, or this host used it, recently.
    RecentlyOpen,
    /// The port belongs to a service of this host that is down at the moment.
    RememberedService,
    /// The interface is not monitored, or is loopback.
    OtherInterface,
}

/// One probe that counts against its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub observation: Observation,
    /// The target against which it counts; in a ban, the blocked target, which may be a surrounding network.
    pub target: BanTarget,
    /// Distinct ports that the target has probed within the window, including this one.
    pub distinct: u8,
    /// Probes since the first of the target, including repetitions.
    pub probes: u32,
    /// True if the port is new for the target within the window.
    pub fresh: bool,
}

/// A decision to ban a source, with its evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// The probe that completed the evidence.
    pub probe: Probe,
    pub ports: Ports,
    pub grade: Grade,
    /// Number of hosts that were probed. More than one only if the engine judges a network ([`super::Local::Prefixes`],
    /// [`super::Local::Any`]) and no single host of it was scanned; `ports` then holds only the last port.
    pub hosts: u8,
    /// Time of its first probe.
    pub first: Timestamp,
    /// Earlier bans of the target that count.
    pub strikes: u32,
    /// Duration of the ban: the configured time, escalated with `strikes`, and up to 5 % longer if many bans begin at
    /// once.
    pub expiry: Expiry,
    /// True if the ceilings are reached: the ban is short and does not count as a strike.
    pub capped: bool,
}

impl Ban {
    /// Why the source is banned, as a clause: "3 distinct closed ports were probed".
    pub fn reason(&self) -> String {
        if self.hosts > 1 {
            return format!("closed ports of {} hosts were probed", self.hosts);
        }
        let conclusive = self.ports.iter().find(|(_, _, class)| class.is_conclusive());
        match (conclusive, self.ports.iter().count()) {
            (Some((_, port, class)), _) => format!("a {class} probe of port {port}, which no TCP stack sends"),
            (None, 1) => "a closed port was probed".to_owned(),
            (None, ports) => format!("{ports} distinct closed ports were probed"),
        }
    }
}

/// A probe by a source that is never blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exempt {
    pub observation: Observation,
    /// Why it is never blocked.
    pub protection: Protection,
    /// Probes since the last log line about this source, if a line is due now.
    pub report: Option<u32>,
}

/// A packet from a source that already has a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    pub source: IpAddr,
    pub target: BanTarget,
    pub response: Response,
    /// The protocol of the packet; `None` if it belongs to no protocol that can be monitored.
    pub protocol: Option<Protocol>,
    /// Packets since the last log line about this target, if a line is due now.
    pub report: Option<u32>,
    /// The caller should check that the kernel still enforces the ban, and call [`super::Engine::lift`] if it does not.
    pub verify: bool,
}

/// The engine's verdict on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// No evidence, with the reason.
    Ignored(IgnoreReason),
    /// Evidence, not yet enough for a ban.
    Probe(Probe),
    /// Evidence against an exempt source.
    Exempt(Exempt),
    /// Enough for a ban: block the target. If that fails, the caller reports it with [`super::Engine::lift`].
    Block(Ban),
    /// Enough for a ban, but the protocol is only logged.
    LogOnly(Ban),
    /// The source already has a verdict.
    Repeated(Repeated),
}

/// A notice that was not caused by a single packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineNotice {
    /// Many sources share a scan.
    DistributedScan(DistributedScan),
    /// Packets from a judged source since its last log line.
    Repeated {
        target: BanTarget,
        response: Response,
        /// The protocol of the first of these packets; `None` if it belongs to no protocol that can be monitored.
        protocol: Option<Protocol>,
        packets: u32,
    },
    /// Sources with enough evidence for a ban above the ceilings.
    Capped {
        /// Short bans.
        bans: u32,
        /// Sources that were not banned.
        withheld: u32,
    },
}

#[cfg(test)]
impl Ban {
    /// A ban of 192.0.2.7 after one SYN.
    pub(crate) fn example() -> Self {
        let source = IpAddr::from([192, 0, 2, 7]);
        let packet = fixtures::packet(source, [192, 0, 2, 1], fixtures::tcp(40_000, 23, fixtures::SYN));
        let observation = Observation { interface: 1, ..Observation::from_packet(&packet).unwrap() };
        let probe = Probe { observation, target: BanTarget::containing(source), distinct: 1, probes: 1, fresh: true };
        let ports = Ports::collect([(Protocol::Tcp, 23, Class::Syn)].into_iter());
        let first = Timestamp::default();
        let grade = Grade::Forgeable;
        Self { probe, ports, grade, hosts: 1, first, strikes: 0, expiry: Expiry::Never, capped: false }
    }
}
