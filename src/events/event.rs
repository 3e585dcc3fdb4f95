//! Events: what happened, to be reported to people and programs. The sensor's events hold no text of their own, so that making
//! one allocates nothing.

use std::time::{Duration, SystemTime};

use crate::engine::{Ban, DistributedScan, Exempt, Notice, Probe, Repeated, Standing, Verdict};
use crate::types::{Backend, BanTarget, Expiry};

/// What happened, and when by the wall clock.
#[derive(Clone, Debug)]
pub struct Event {
    pub time: SystemTime,
    pub what: EventKind,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum EventKind {
    /// Capture and ruleset are in place.
    Started,
    /// A probe that is not enough for a ban.
    Probe(Probe),
    /// Enough for a ban, but the protocol is only logged.
    Scan(Ban),
    /// A backend enforces a ban.
    Blocked {
        ban: Ban,
        way: Backend,
        /// From the capture of the packet to the kernel's acknowledgement.
        reaction: Duration,
    },
    /// A line for TCP wrappers enforces a ban.
    Wrapped {
        target: BanTarget,
        /// `None` for a ban by an operator.
        ban: Option<Ban>,
        line: String,
    },
    /// A command was run for a ban.
    Ran {
        target: BanTarget,
        /// Only where the command was run because a ban on evidence begins.
        ban: Option<Ban>,
        /// On one line.
        command: String,
        /// How it ended and what it wrote, as a sentence.
        outcome: String,
        /// It succeeded.
        well: bool,
    },
    /// Connections of a blocked source were ended.
    Disconnected {
        target: BanTarget,
        connections: usize,
    },
    /// A backend did not take a ban.
    BlockFailed {
        way: Backend,
        target: BanTarget,
        reason: String,
    },
    /// A source that is never blocked probes this host.
    Exempt {
        spared: Exempt,
        /// Probes that this event stands for.
        probes: u32,
    },
    /// A source that was blocked or logged goes on sending.
    Repeated {
        target: BanTarget,
        standing: Standing,
        /// Packets that this event stands for.
        packets: u32,
    },
    /// Many sources share a scan.
    DistributedScan(DistributedScan),
    /// Sources above the ceilings: short bans, and sources that were not banned.
    Capped {
        bans: u32,
        withheld: u32,
    },
    /// A ban is gone from the kernel before its expiry.
    Lifted {
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
        /// The operator's remark.
        note: Option<String>,
        /// `None`: every backend of the configuration.
        way: Option<Backend>,
    },
    /// Bans that the kernel had forgotten were put back from the ledger.
    Restored {
        bans: usize,
        way: Backend,
    },
    /// Bans that were missing in a backend, for no reason that is known, were put back.
    Repaired {
        bans: usize,
        way: Backend,
    },
    /// The table was gone and was created again, with so many bans for the time that they had left.
    Healed {
        bans: usize,
    },
    /// The capture could not keep up.
    Dropped {
        /// Packets lost since the last such event.
        packets: u64,
    },
    /// Bans that the kernel held at the start.
    Adopted {
        bans: usize,
    },
    /// Something that an operator should know.
    Note(String),
    Error(String),
    /// The program ends; the kernel's set stays.
    Stopped,
}

/// What causes an event, and so how often there can be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineClass {
    /// Single packets, short bans above the ceiling, and ends of bans: forged packets can cause any number of them.
    Probe,
    /// Bans, whose number has a ceiling, and bans that were lifted.
    Ban,
    /// Bans that a backend refused: one per packet where the kernel's set is full.
    FailedBan,
    /// Notes and errors in words, which may have any cause.
    Diagnostic,
    /// Operators and this host. No packet causes one, so that they need no limit.
    Host,
}

impl EventKind {
    /// The event that reports `verdict`; `None` where none is due. A ban is reported by the ways that enforce it.
    #[must_use]
    pub fn from_verdict(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Probe(probe) => probe.fresh.then_some(Self::Probe(probe)),
            Verdict::LogOnly(ban) => Some(Self::Scan(ban)),
            Verdict::Exempt(spared) => spared.report.map(|probes| Self::Exempt { spared, probes }),
            Verdict::Repeated(Repeated { target, standing, report, .. }) => {
                report.map(|packets| Self::Repeated { target, standing, packets })
            }
            Verdict::Block(_) | Verdict::Ignored(_) => None,
        }
    }

    /// What causes events of this kind, for the budget of log lines. No wildcard: a new kind has to be classified.
    #[must_use]
    pub fn line_class(&self) -> LineClass {
        let class_of = |ban: Option<&Ban>| match ban {
            Some(ban) if ban.capped => LineClass::Probe,
            _ => LineClass::Ban,
        };
        match self {
            Self::Probe(_) | Self::Scan(_) | Self::Exempt { .. } | Self::Repeated { .. } => LineClass::Probe,
            // Short bans end too: minutes after a flood there are as many ends as there were bans.
            Self::Expired { .. } | Self::Ran { ban: None, .. } => LineClass::Probe,
            Self::Blocked { ban, .. } | Self::Ran { ban: Some(ban), .. } => class_of(Some(ban)),
            Self::Wrapped { ban, .. } => class_of(ban.as_ref()),
            Self::Disconnected { .. } | Self::DistributedScan(_) | Self::Capped { .. } | Self::Lifted { .. } => {
                LineClass::Ban
            }
            Self::BlockFailed { .. } => LineClass::FailedBan,
            Self::Dropped { .. } | Self::Note(_) | Self::Error(_) => LineClass::Diagnostic,
            Self::Started
            | Self::ByHand { .. }
            | Self::Unblocked { .. }
            | Self::Restored { .. }
            | Self::Repaired { .. }
            | Self::Healed { .. }
            | Self::Adopted { .. }
            | Self::Stopped => LineClass::Host,
        }
    }

    /// True for events of which forged packets can cause any number.
    #[must_use]
    pub fn is_attacker_driven(&self) -> bool {
        matches!(self.line_class(), LineClass::Probe | LineClass::FailedBan)
    }
}

impl From<Notice> for EventKind {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::DistributedScan(sweep) => Self::DistributedScan(sweep),
            Notice::Repeated { target, standing, packets } => Self::Repeated { target, standing, packets },
            Notice::Capped { bans, withheld } => Self::Capped { bans, withheld },
        }
    }
}

impl Event {
    /// `what`, now.
    #[must_use]
    pub fn now(what: EventKind) -> Self {
        Self { time: SystemTime::now(), what }
    }
}
