//! Defines the events that are reported to operators and programs. Events of the sensor contain no text, so that
//! creating one does not allocate.

use std::time::{Duration, SystemTime};

use crate::engine::{Ban, DistributedScan, EngineNotice, Exempt, Probe, Repeated, Verdict};
use crate::types::{Backend, BanTarget, Expiry, Protocol, Response};

/// An event with its wall-clock time.
#[derive(Clone, Debug)]
pub struct Event {
    pub time: SystemTime,
    pub kind: EventKind,
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(strum::EnumCount))]
pub enum EventKind {
    /// Capture and ruleset are ready.
    Started,
    /// A probe that is not enough for a ban.
    Probe(Probe),
    /// Enough evidence for a ban, but the protocol is only logged.
    Scan(Ban),
    /// A backend enforces a ban.
    Blocked {
        ban: Ban,
        backend: Backend,
        /// Time from the capture of the packet to the kernel's acknowledgement.
        reaction: Duration,
    },
    /// A ban of the kernel's trap on which the sensor has no verdict, and which was therefore shortened.
    Shortened {
        target: BanTarget,
        expiry: Expiry,
        /// The probed ports that the sensor saw, if any.
        ports: Vec<(Protocol, u16)>,
    },
    /// An entry in the file of a backend, such as a line of hosts.deny, enforces a ban.
    Entered {
        target: BanTarget,
        backend: Backend,
        /// `None` for an operator's ban.
        ban: Option<Ban>,
        entry: String,
    },
    /// A command was run for a ban.
    Ran {
        target: BanTarget,
        /// Set only if the command ran because a ban on evidence begins.
        ban: Option<Ban>,
        /// The command on one line.
        command: Box<str>,
        /// Its result and output as a sentence.
        outcome: Box<str>,
        /// True if it succeeded.
        well: bool,
        /// Set if no further attempt will undo the command of the ban that began at this time.
        undone: Option<SystemTime>,
    },
    /// Connections of a blocked source were ended.
    Disconnected {
        target: BanTarget,
        connections: usize,
    },
    /// A backend refused a ban.
    BlockFailed {
        backend: Backend,
        target: BanTarget,
        reason: String,
    },
    /// A source that is never blocked probes this host.
    Exempt {
        exempt: Exempt,
        /// Number of probes that this event represents.
        probes: u32,
    },
    /// A blocked or log-only source keeps sending.
    Repeated {
        target: BanTarget,
        response: Response,
        /// The protocol of the first of them, whose mode decides the wording of the classic line.
        protocol: Option<Protocol>,
        /// Number of packets that this event represents.
        packets: u32,
    },
    /// Many sources share a scan.
    DistributedScan(DistributedScan),
    /// Sources above the ceilings: short bans, and sources that were not banned.
    Capped {
        bans: u32,
        withheld: u32,
    },
    /// A ban vanished from the kernel before its expiry, without a notification.
    BanVanished {
        target: BanTarget,
    },
    /// A ban was deleted from the kernel's set.
    Unblocked {
        target: BanTarget,
        by: String,
    },
    /// A ban has expired.
    Expired {
        target: BanTarget,
    },
    /// A ban by an operator.
    ByHand {
        target: BanTarget,
        expiry: Expiry,
        by: String,
        note: Option<String>,
        /// `None`: every configured backend.
        backend: Option<Backend>,
    },
    /// Bans missing in the kernel were restored from the ledger.
    Restored {
        bans: usize,
        backend: Backend,
    },
    /// Bans that were missing in a backend for an unknown reason were restored.
    Repaired {
        bans: usize,
        backend: Backend,
    },
    /// The table was missing and was created again, with this many bans for their remaining times.
    TableReinstalled {
        bans: usize,
    },
    /// The capture lost packets.
    Dropped {
        /// Packets lost since the last such event.
        packets: u64,
    },
    /// Bans that the kernel held at the start.
    Adopted {
        bans: usize,
    },
    /// A message for the operator.
    Note(String),
    Error(String),
    /// The program ends; the kernel's sets stay.
    Stopped,
}

/// The cause of an event, which determines how often it can occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineClass {
    /// Single packets, short bans above the ceiling, and ends of bans: forged packets can cause any number of them.
    Probe,
    /// Bans, whose number is limited by a ceiling, and lifted bans.
    Ban,
    /// Bans refused by a backend: one per packet if the kernel's set is full.
    FailedBan,
    /// Notes and errors with any cause.
    Diagnostic,
    /// Single bans that operators add or lift. A script can do this with any number of addresses.
    Operator,
    /// Caused by operators or this host. No packet causes one, so they need no limit.
    Host,
}

impl EventKind {
    /// The event that reports `verdict`; `None` if none is due. A ban is reported by the backends that enforce it.
    pub fn from_verdict(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Probe(probe) => probe.fresh.then_some(Self::Probe(probe)),
            Verdict::LogOnly(ban) => Some(Self::Scan(ban)),
            Verdict::Exempt(exempt) => exempt.report.map(|probes| Self::Exempt { exempt, probes }),
            Verdict::Repeated(Repeated { target, response, protocol, report, .. }) => {
                report.map(|packets| Self::Repeated { target, response, protocol, packets })
            }
            Verdict::Block(_) | Verdict::Ignored(_) => None,
        }
    }

    /// The ban on evidence that a backend reports, also for a command that failed. Several backends report the same ban.
    pub fn reported_ban(&self) -> Option<(&Ban, Backend)> {
        match self {
            Self::Blocked { ban, backend, .. } | Self::Entered { ban: Some(ban), backend, .. } => Some((ban, *backend)),
            Self::Ran { ban: Some(ban), .. } => Some((ban, Backend::Command)),
            _ => None,
        }
    }

    /// The class of the event, for the log line limit. No wildcard at the end, so that a new kind must be classified.
    pub fn line_class(&self) -> LineClass {
        match self {
            Self::Probe(_) | Self::Scan(_) | Self::Exempt { .. } | Self::Repeated { .. } => LineClass::Probe,
            // Short bans also end: minutes after a flood there are as many ends as there were bans.
            Self::Shortened { .. } | Self::Expired { .. } | Self::Ran { ban: None, .. } => LineClass::Probe,
            _ if self.reported_ban().is_some_and(|(ban, _)| ban.capped) => LineClass::Probe,
            Self::Blocked { .. } | Self::Entered { .. } | Self::Ran { .. } => LineClass::Ban,
            Self::Disconnected { .. } | Self::DistributedScan(_) | Self::Capped { .. } | Self::BanVanished { .. } => {
                LineClass::Ban
            }
            Self::BlockFailed { .. } => LineClass::FailedBan,
            Self::Dropped { .. } | Self::Note(_) | Self::Error(_) => LineClass::Diagnostic,
            Self::ByHand { .. } | Self::Unblocked { .. } => LineClass::Operator,
            Self::Started
            | Self::Restored { .. }
            | Self::Repaired { .. }
            | Self::TableReinstalled { .. }
            | Self::Adopted { .. }
            | Self::Stopped => LineClass::Host,
        }
    }

    /// True for events that forged packets can cause in any number.
    pub fn is_attacker_driven(&self) -> bool {
        matches!(self.line_class(), LineClass::Probe | LineClass::FailedBan)
    }
}

impl From<EngineNotice> for EventKind {
    fn from(notice: EngineNotice) -> Self {
        match notice {
            EngineNotice::DistributedScan(scan) => Self::DistributedScan(scan),
            EngineNotice::Repeated { target, response, protocol, packets } => {
                Self::Repeated { target, response, protocol, packets }
            }
            EngineNotice::Capped { bans, withheld } => Self::Capped { bans, withheld },
        }
    }
}

impl Event {
    /// An event that happens now.
    pub fn now(kind: EventKind) -> Self {
        Self { time: SystemTime::now(), kind }
    }
}
